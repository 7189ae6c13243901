//! What processes take of the CPU and of memory.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// A process and all that it has started, and the kernel's thread that does what the CPU of the proxy has
/// put off (which is part of what its packets cost).
pub(super) struct Tree {
    processes: Vec<u32>,
    softirqs: Option<u32>,
}

impl Tree {
    /// The processes below a process, which must have started all of them by now. `cpu` is the one that
    /// they run on.
    pub(super) fn below(root: u32, cpu: usize) -> Result<Self> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut softirqs = None;
        for entry in fs::read_dir("/proc").context("cannot read /proc")? {
            let Ok(entry) = entry else { continue };
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A process that has ended meanwhile is none of ours.
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            // The name in parentheses may hold anything, also parentheses.
            let Some((name, rest)) = stat.rsplit_once(')') else { continue };
            if name.ends_with(&format!("(ksoftirqd/{cpu}")) {
                softirqs = Some(pid);
            }
            if let Some(parent) = rest.split_whitespace().nth(1).and_then(|ppid| ppid.parse().ok())
            {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut processes = vec![root];
        let mut next = 0;
        while let Some(pid) = processes.get(next) {
            processes.extend(children.remove(pid).unwrap_or_default());
            next += 1;
        }
        Ok(Self { processes, softirqs })
    }

    /// CPU time that they have had so far, of all their threads, in user space and in the kernel.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for pid in self.processes.iter().chain(&self.softirqs) {
            let tasks = format!("/proc/{pid}/task");
            for task in fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
                let path = task.with_context(|| format!("cannot read {tasks}"))?.path();
                let path = path.join("schedstat");
                // A thread may end at any time.
                let Ok(text) = fs::read_to_string(&path) else { continue };
                let first = text.split_whitespace().next().and_then(|ns| ns.parse().ok());
                sum += Duration::from_nanos(
                    first.with_context(|| format!("{} is no number", path.display()))?,
                );
            }
        }
        Ok(sum)
    }

    /// Resident memory in bytes; pages that several of them share count once.
    pub(super) fn memory(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in &self.processes {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            let kilobytes: u64 = text
                .lines()
                .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix("kB"))
                .and_then(|number| number.trim().parse().ok())
                .with_context(|| format!("no Pss in {path}"))?;
            sum += kilobytes * 1024;
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_usage_grows() {
        // Not `below`: what other tests start meanwhile ends meanwhile, and its time with it.
        let tree = Tree { processes: vec![std::process::id()], softirqs: None };
        let before = tree.cpu().unwrap();
        let mut x = 1_u64;
        while tree.cpu().unwrap() < before + Duration::from_millis(2) {
            x = x.wrapping_mul(3);
        }
        assert!(x != 0 && tree.memory().unwrap() > 100_000);
    }

    #[test]
    fn a_tree_has_who_was_started() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let tree = Tree::below(std::process::id(), 0).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(tree.processes.first(), Some(&std::process::id()));
        assert!(tree.processes.contains(&child.id()));
    }
}
