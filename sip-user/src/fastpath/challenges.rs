//! The kernel's tables by which it asks for credentials: [`sip_ebpf::challenge`].

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use sip_ebpf::challenge::{Asking, Challenge, Domain};

use super::tables::{set_all, take};
use crate::core::challenges::Challenges;

/// The tables of one loaded object.
pub struct Tables {
    asking: Array<MapData, Asking>,
    domains: HashMap<MapData, Domain, Challenge>,
}

impl Tables {
    /// Takes them out of `ebpf`; its programs keep using them.
    ///
    /// # Errors
    /// When the object has no such map, or one of another size: it is not of this source.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self { asking: take(ebpf, "ASKING")?, domains: take(ebpf, "DOMAINS")? })
    }

    /// Writes them; without challenges nobody is asked.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set(&mut self, challenges: Option<&Challenges>) -> Result<()> {
        let list = challenges.map_or(&[][..], |challenges| &challenges.domains);
        set_all(&mut self.domains, list, "DOMAINS")?;
        let asking = challenges.map(|challenges| challenges.asking).unwrap_or_default();
        self.asking.set(0, asking, 0).context("cannot write ASKING")
    }
}
