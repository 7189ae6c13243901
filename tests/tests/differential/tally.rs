//! How much of it all the program did itself.

use std::collections::BTreeMap;
use std::fmt;

use sip_ebpf::Reason;
use sip_ebpf::reason::Way;
use sipline_tests::fixtures::pair::Heard;

/// Datagrams by what the daemon does with them when it is alone: how many, and how many of these the program
/// answered, sent on or dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    paths: BTreeMap<u32, (u64, u64)>,
}

impl Tally {
    pub(crate) fn count(&mut self, heard: &Heard) {
        let Some(daemon) = heard.daemon else { return };
        let (all, kernel) = self.paths.entry(daemon as u32).or_default();
        *all += 1;
        *kernel += u64::from(heard.kernel.way() != Way::Up);
    }

    /// How many datagrams it counts.
    pub(crate) fn datagrams(&self) -> u64 {
        self.paths.values().map(|(all, _)| all).sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (path, (all, kernel)) in &other.paths {
            let sum = self.paths.entry(*path).or_default();
            (sum.0, sum.1) = (sum.0 + all, sum.1 + kernel);
        }
    }

    /// Of each path: at least so many datagrams, and of these at least this share by the program.
    ///
    /// # Panics
    /// When there are fewer, or the share is smaller: then the comparison says less than it seems to.
    pub(crate) fn check(&self, floors: &[(Reason, u64, f64)]) {
        for (path, least, share) in floors {
            let (all, kernel) = self.paths.get(&(*path as u32)).copied().unwrap_or_default();
            assert!(all >= *least, "{}: {all} datagrams, and {least} are wanted", path.name());
            let got = kernel as f64 / all as f64;
            assert!(
                got >= *share,
                "{}: {kernel} of {all} in the kernel, floor {share}",
                path.name()
            );
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:20} {:>9} {:>9} {:>6}",
            "as the daemon says", "datagrams", "in kernel", "%"
        )?;
        for (path, (all, kernel)) in &self.paths {
            let name = Reason::ALL[*path as usize].name();
            let share = 100.0 * *kernel as f64 / *all as f64;
            writeln!(f, "{name:20} {all:>9} {kernel:>9} {share:>6.1}")?;
        }
        Ok(())
    }
}
