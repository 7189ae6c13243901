//! No kernel half: everything is taken and nothing is done, so that the daemon has one code path.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use ipnet::IpNet;
use sip_ebpf::gate;
use sip_ebpf::reason::REASONS;
use sip_ebpf::tables::{Endpoint, Endpoint6, Local, MAX_PBX, Pbx, Pbx6, Schedule};

use super::{Attachment, CallBuckets, EventCounts, Events, Fastpath, OpenCalls, Users};
use crate::core::challenges::Challenges;
use crate::core::registered::Source;

/// The absence of a kernel half.
#[derive(Debug)]
pub struct Off {
    why: String,
}

impl Off {
    /// `why` there is none, for `sipline stats` and the log.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

impl Fastpath for Off {
    fn attachments(&self) -> &[Attachment] {
        &[]
    }

    fn describe(&self) -> String {
        self.why.clone()
    }

    fn set_config(&mut self, _flags: u32) -> Result<()> {
        Ok(())
    }

    fn set_locals(&mut self, _locals: &[(Endpoint, Local)]) -> Result<()> {
        Ok(())
    }

    fn set_locals6(&mut self, _locals: &[(Endpoint6, Local<Endpoint6>)]) -> Result<()> {
        Ok(())
    }

    fn set_rates(&mut self, _rates: gate::Rules) -> Result<()> {
        Ok(())
    }

    fn set_registered(&mut self, _sources: &[Source]) -> Result<()> {
        Ok(())
    }

    fn change_registered(&mut self, _changes: &[(Source, bool)]) -> Result<()> {
        Ok(())
    }

    fn set_endpoints(&mut self, _endpoints: &[(SocketAddr, Instant)]) -> Result<()> {
        Ok(())
    }

    fn change_endpoints(&mut self, _changes: &[(SocketAddr, Option<Instant>)]) -> Result<()> {
        Ok(())
    }

    fn users(&self) -> Option<Arc<dyn Users>> {
        None
    }

    fn set_challenges(&mut self, _challenges: Option<&Challenges>) -> Result<()> {
        Ok(())
    }

    fn set_source(&mut self, _network: IpNet, _bits: u32) -> Result<()> {
        Ok(())
    }

    fn set_sources(&mut self, _sources: &[(IpNet, u32)]) -> Result<()> {
        Ok(())
    }

    fn set_pbx(&mut self, _slot: u32, _pbx: Pbx) -> Result<()> {
        Ok(())
    }

    fn set_pbx6(&mut self, _slot: u32, _pbx: Pbx6) -> Result<()> {
        Ok(())
    }

    fn set_schedule6(&mut self, _schedule: &Schedule) -> Result<()> {
        Ok(())
    }

    fn set_schedule(&mut self, _schedule: &Schedule) -> Result<()> {
        Ok(())
    }

    fn heartbeat(&mut self, _vouch: Duration) -> Result<()> {
        Ok(())
    }

    fn counters(&mut self) -> Result<Vec<u64>> {
        Ok(vec![0; REASONS as usize])
    }

    fn pbx_calls(&mut self) -> Result<Vec<u64>> {
        Ok(vec![0; MAX_PBX as usize])
    }

    fn calls(&self) -> Option<Arc<dyn CallBuckets>> {
        None
    }

    fn events(&mut self) -> Option<Events> {
        None
    }

    fn open_calls(&self) -> Option<Arc<dyn OpenCalls>> {
        None
    }

    fn event_counts(&mut self) -> Result<EventCounts> {
        Ok(EventCounts::default())
    }

    fn close(self: Box<Self>, _keep: bool) -> Result<()> {
        Ok(())
    }
}
