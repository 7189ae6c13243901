//! The kernel's table of users, which every worker writes: a PBX may ask for a user as soon as it has been told of him, so
//! nobody may be between.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{HashMap, MapData};

use super::Users;
use super::tables::{monotonic_of, take};

/// `USERS` of one loaded object. It is not pinned: what an earlier daemon has written may be true no longer.
pub struct Table(Mutex<HashMap<MapData, u64, u64>>);

impl Table {
    /// Takes it out of `ebpf`; its programs keep using it.
    ///
    /// # Errors
    /// When the object has no such map: it is not of this source.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self(Mutex::new(take(ebpf, "USERS")?)))
    }

    /// For the time of one write; who has panicked has left nothing half done.
    fn lock(&self) -> MutexGuard<'_, HashMap<MapData, u64, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Users for Table {
    fn set(&self, name: u64, until: Option<Instant>) -> Result<()> {
        let until = until.map_or(0, monotonic_of);
        self.lock().insert(name, until, 0).context("cannot write USERS")
    }

    fn clear(&self) -> Result<()> {
        let mut table = self.lock();
        let names: Vec<u64> =
            table.keys().collect::<Result<_, _>>().context("cannot read USERS")?;
        for name in names {
            // One that the kernel itself has put out is gone all the same.
            super::tables::gone(table.remove(&name)).context("cannot remove one from USERS")?;
        }
        Ok(())
    }
}
