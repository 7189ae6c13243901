//! What it was measured on.

use std::fs;
use std::io;
use std::time::Duration;

use anyhow::{Context, Result};

/// Kernel and processor, in a line.
pub(crate) fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let spectre = read("/sys/devices/system/cpu/vulnerabilities/spectre_v2");
    let retpolines = if spectre.contains("Retpoline") { ", retpolines" } else { "" };
    format!("Linux {kernel}, {} CPUs, {model}{retpolines}", cpus())
}

/// How many CPUs there are.
pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Time that the host has kept a CPU from running, by the kernel's count of steps of 10 ms.
pub(crate) fn stolen(cpu: usize) -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let prefix = format!("cpu{cpu} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
    let ticks = line.and_then(|line| line.split_whitespace().nth(7)?.parse::<u64>().ok());
    // A hundred in a second, whatever the kernel's own ticks are.
    Ok(Duration::from_millis(10 * ticks.context("no time stolen in /proc/stat")?))
}

/// Keeps a thread on one CPU; 0 is the calling one.
pub(crate) fn pin(thread: i32, cpu: usize) -> Result<()> {
    // SAFETY: all zero is an empty set, and it is as large as is said.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if done != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot keep thread {thread} on CPU {cpu}"));
    }
    Ok(())
}

/// Puts a thread before all ordinary ones, and before those of a lower priority (1 to 99); 0 is the
/// calling one. Whatever else the machine does then waits.
pub(crate) fn favour(thread: i32, priority: i32) -> Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameters are there.
    if unsafe { libc::sched_setscheduler(thread, libc::SCHED_FIFO, &raw const parameters) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot give thread {thread} priority"));
    }
    Ok(())
}

/// Makes a thread one among others again; 0 is the calling one.
pub(crate) fn ordinary(thread: i32) -> Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are there.
    if unsafe { libc::sched_setscheduler(thread, libc::SCHED_OTHER, &raw const parameters) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot take thread {thread} its priority"));
    }
    Ok(())
}

/// Lets a thread run only while its CPU has nothing else to do; 0 is the calling one.
pub(crate) fn last_of_all(thread: i32) -> Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are there.
    if unsafe { libc::sched_setscheduler(thread, libc::SCHED_IDLE, &raw const parameters) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot put thread {thread} last"));
    }
    Ok(())
}
