//! What a lab would leave behind, and how it is removed whatever happens.

use std::{
    collections::BTreeMap,
    fs,
    io::Error,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

const PREFIX: &str = "sipline-lab-";

/// A name for the next lab of this process.
pub(super) fn next_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    name(std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The name of the `number`th lab of a process; [`remove_stale`] reads it back.
fn name(pid: u32, number: u32) -> String {
    format!("{PREFIX}{pid}-{number}")
}

/// What is to be removed when a lab ends.
#[derive(Clone, Debug)]
pub(super) struct Remains {
    pub(super) namespaces: Vec<String>,
    pub(super) pins: PathBuf,
    pub(super) dir: PathBuf,
}

impl Remains {
    /// Removes all of it. What is not there is no error.
    fn remove(&self) {
        // Pins first: they hold the program on the interfaces.
        remove_pins(&self.pins);
        for namespace in &self.namespaces {
            delete_namespace(namespace);
        }
        if std::env::var_os("SIPLINE_LAB_KEEP").is_some() {
            eprintln!("lab: kept {}", self.dir.display());
        } else if let Err(error) = fs::remove_dir_all(&self.dir)
            && self.dir.exists()
        {
            eprintln!("lab: cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// Removes its lab's remains when dropped, or when a signal ends the process.
#[derive(Debug)]
pub(super) struct Guard {
    number: u64,
}

impl Guard {
    pub(super) fn new(remains: Remains) -> Self {
        listen_for_signals();
        let mut alive = alive();
        alive.next += 1;
        let number = alive.next;
        alive.labs.insert(number, remains);
        Self { number }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Under the lock: a signal that comes now waits, and finds nothing left to do.
        let mut alive = alive();
        if let Some(remains) = alive.labs.remove(&self.number) {
            remains.remove();
        }
    }
}

/// Starts a child so that no signal can come between its start and its place in the list.
pub(super) fn spawn(command: &mut Command) -> Result<Child, Error> {
    let mut alive = alive();
    let child = command.spawn()?;
    alive.children.push(child.id());
    Ok(child)
}

/// A child has been waited for, so its number may belong to somebody else from now on.
pub(super) fn forget(pid: u32) {
    alive().children.retain(|child| *child != pid);
}

/// Removes what labs of processes that no longer run have left.
pub fn remove_stale() {
    for namespace in names_in(Path::new("/run/netns")) {
        if is_stale(&namespace) {
            eprintln!("lab: removing namespace {namespace} of a run that is gone");
            delete_namespace(&namespace);
        }
    }
    for pins in names_in(Path::new(super::BPFFS)) {
        if is_stale(&pins) {
            remove_pins(&Path::new(super::BPFFS).join(pins));
        }
    }
    let temp = std::env::temp_dir();
    for dir in names_in(&temp) {
        if is_stale(&dir) {
            // Best effort: it is only a directory of logs.
            let _ = fs::remove_dir_all(temp.join(dir));
        }
    }
}

/// What must not outlive this process.
struct Alive {
    next: u64,
    labs: BTreeMap<u64, Remains>,
    children: Vec<u32>,
}

static ALIVE: Mutex<Alive> =
    Mutex::new(Alive { next: 0, labs: BTreeMap::new(), children: Vec::new() });

fn alive() -> MutexGuard<'static, Alive> {
    // A panic elsewhere must not stop the cleaning.
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen_for_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut signals = match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
            Ok(signals) => signals,
            Err(error) => {
                eprintln!(
                    "lab: cannot catch signals, a Ctrl-C will leave namespaces behind: {error}"
                );
                return;
            }
        };
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                eprintln!("\nlab: signal {signal}, cleaning up");
                // The lock is kept until the process ends, so that nobody starts anything new.
                let alive = alive();
                for child in &alive.children {
                    let pid = child.cast_signed();
                    // SAFETY: kill and waitpid with a null pointer touch no memory; the number is that
                    // of a child not yet waited for.
                    unsafe {
                        libc::kill(pid, libc::SIGKILL);
                        libc::waitpid(pid, std::ptr::null_mut(), 0);
                    }
                }
                for remains in alive.labs.values() {
                    remains.remove();
                }
                std::process::exit(128 + signal);
            }
        });
    });
}

fn is_stale(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next())
        .and_then(|pid| pid.parse::<u32>().ok())
        .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn remove_pins(pins: &Path) {
    if pins.exists()
        && let Err(error) = fs::remove_dir_all(pins)
    {
        eprintln!("lab: cannot remove pins {}: {error}", pins.display());
    }
}

fn delete_namespace(namespace: &str) {
    if !Path::new("/run/netns").join(namespace).exists() {
        return;
    }
    for _ in 0..10 {
        let deleted = Command::new("ip")
            .args(["netns", "delete", namespace])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if deleted.is_ok_and(|status| status.success()) {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    eprintln!("lab: cannot delete the namespace {namespace}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_processes_are_stale() {
        assert!(!is_stale(&format!("{}-phones", name(std::process::id(), 0))));
        // Above the largest process number that Linux gives.
        assert!(is_stale(&format!("{}-phones", name(1 << 30, 0))));
        assert!(!is_stale("docker0"));
        assert!(!is_stale("sipline-lab-x-0-phones"));
    }
}
