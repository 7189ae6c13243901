//! Keeps what else the machine does off the proxy's CPU.
//!
//! A kernel thread that runs for some milliseconds twice in a second (`kdamond`, where DAMON watches the memory, is one) holds up
//! what comes meanwhile, and what has piled up behind it takes longer still at a high load: then it decides the delay at
//! p99, whatever the proxy is.

use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

/// Threads that were moved, and where they might run before.
static MOVED: Mutex<Vec<(i32, libc::cpu_set_t)>> = Mutex::new(Vec::new());

fn moved() -> MutexGuard<'static, Vec<(i32, libc::cpu_set_t)>> {
    // A panic elsewhere must not stop the cleaning.
    MOVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While there is one, all threads of the machine stay off a CPU that may run elsewhere, but for this process'. What belongs to a
/// CPU, as many kernel threads do, stays. Afterwards they may run where they might before, also if a signal ends the process.
pub(crate) struct Shield(());

impl Shield {
    /// For this CPU.
    pub(crate) fn start(cpu: usize) -> Result<Self> {
        // SAFETY: a function that takes nothing and may run at any time.
        unsafe { libc::atexit(restore_at_exit) };
        let own = std::process::id().to_string();
        let shield = Self(());
        for process in numbers("/proc").context("cannot read /proc")? {
            if process == own {
                continue;
            }
            // One that ends meanwhile needs nothing.
            let Ok(threads) = numbers(&format!("/proc/{process}/task")) else { continue };
            for thread in threads.iter().filter_map(|thread| thread.parse().ok()) {
                keep_off(thread, cpu);
            }
        }
        Ok(shield)
    }
}

impl Drop for Shield {
    fn drop(&mut self) {
        restore();
    }
}

extern "C" fn restore_at_exit() {
    restore();
}

fn restore() {
    for (thread, before) in moved().drain(..) {
        // It may be gone.
        let _ = set_affinity(thread, &before);
    }
}

/// Keeps a thread off a CPU if it may run on others; one that must not be moved stays.
fn keep_off(thread: i32, cpu: usize) {
    // Under the lock: who is moved is in the list.
    let mut moved = moved();
    let Ok(before) = affinity(thread) else { return };
    let mut after = before;
    // SAFETY: the set is there; a CPU that it has no room for is in none.
    let left = unsafe {
        if !libc::CPU_ISSET(cpu, &before) {
            return;
        }
        libc::CPU_CLR(cpu, &mut after);
        libc::CPU_COUNT(&after)
    };
    if left > 0 && set_affinity(thread, &after).is_ok() {
        moved.push((thread, before));
    }
}

/// Where a thread may run.
fn affinity(thread: i32) -> io::Result<libc::cpu_set_t> {
    // SAFETY: all zero is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is as large as is said.
    let done = unsafe { libc::sched_getaffinity(thread, size_of_val(&set), &raw mut set) };
    if done == 0 { Ok(set) } else { Err(io::Error::last_os_error()) }
}

fn set_affinity(thread: i32, set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: the set is as large as is said.
    let done = unsafe { libc::sched_setaffinity(thread, size_of_val(set), &raw const *set) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The names in a directory that are numbers.
fn numbers(dir: &str) -> io::Result<Vec<String>> {
    let names = fs::read_dir(dir)?.flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn others_are_kept_off_and_let_back() {
        let mut child = Command::new("sleep").arg("30").spawn().expect("sleep");
        let pid = child.id().cast_signed();
        let cpus = |thread: i32| -> Vec<usize> {
            let set = affinity(thread).expect("a thread");
            // SAFETY: a set that is there, and a number that it has room for.
            (0..1024).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
        };
        let (before, own) = (cpus(pid), cpus(0));
        let cpu = before[0];
        let shield = Shield::start(cpu).expect("a shield");
        let (during, own_during) = (cpus(pid), cpus(0));
        drop(shield);
        let after = cpus(pid);
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        // Who may run nowhere else stays.
        assert_eq!(during.contains(&cpu), before.len() == 1);
        assert_eq!((own_during, after), (own, before));
    }
}
