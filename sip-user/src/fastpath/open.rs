//! The table of calls that are carried by the kernel alone: the kernel program does not look at it, but it lives as long as
//! they do.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use sip_ebpf::tables::OPEN_LEN;

use super::OpenCalls;
use super::tables::{gone, take};

type Entry = [u8; OPEN_LEN];

/// `OPEN` of one loaded object.
pub struct Table(Mutex<HashMap<MapData, u64, Entry>>);

impl Table {
    /// Takes it out of `ebpf`.
    ///
    /// # Errors
    /// When the object has no such map: it is not of this source.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self(Mutex::new(take(ebpf, "OPEN")?)))
    }

    /// For the time of one write; who has panicked has left nothing half done.
    fn lock(&self) -> MutexGuard<'_, HashMap<MapData, u64, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenCalls for Table {
    fn set(&self, call: u64, record: &[u8]) -> Result<()> {
        let mut entry = [0; OPEN_LEN];
        ensure!(record.len() <= OPEN_LEN, "the record of a call is too long: {}", record.len());
        entry.iter_mut().zip(record).for_each(|(to, from)| *to = *from);
        self.lock().insert(call, entry, 0).context("cannot write OPEN")
    }

    fn remove(&self, call: u64) -> Result<()> {
        gone(self.lock().remove(&call)).context("cannot remove one from OPEN")
    }

    fn all(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        let table = self.lock();
        let all: Result<Vec<_>, _> = table.iter().collect();
        let all = all.context("cannot read OPEN")?;
        Ok(all.into_iter().map(|(call, entry)| (call, entry.to_vec())).collect())
    }
}
