//! Bans: every worker brings evidence to the first one, which decides; all carry it out, and the kernel too.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use sip_ebpf::tables::MAX_ENDPOINTS;

use super::node::{Answered, Node, failed};
use super::worker::Worker;
use crate::control::protocol::{self, Outcome, Response};
use crate::control::status::unix;
use crate::core::bans::{self, Ban, Command};
use crate::core::counters::Event;
use crate::core::registered::Source;

/// How many bans of one moment have a line each in the log: sources can be forged.
const TOLD_AT_ONCE: usize = 8;

/// How many sources one worker tells the others of at a time; more are told of with their next REGISTER.
const MAX_LEARNED: usize = 65_536;

/// What somebody has done.
#[derive(Debug)]
pub(super) struct Suspicion {
    from: IpAddr,
    /// What he calls himself, if that is it; else he has given a wrong password.
    agent: Option<Box<str>>,
}

impl Suspicion {
    /// A wrong password.
    pub(super) fn wrong_digest(from: IpAddr) -> Self {
        Self { from, agent: None }
    }
}

impl Worker {
    /// Somebody has done what leads to bans. If the first worker has too much to read it is as if he had not.
    pub(super) fn suspect(&mut self, suspicion: Suspicion) {
        let Suspicion { from, agent } = &suspicion;
        if self.is_exempt(*from) {
            return;
        }
        match &mut self.head {
            Some(head) => match agent {
                Some(agent) => head.bans.scanner(Instant::now(), *from, agent),
                None => head.bans.wrong_digest(Instant::now(), *from),
            },
            None => _ = self.peers.post(0, super::peers::Mail::Suspicion(suspicion)),
        }
    }

    /// Somebody has registered from there: he is no stranger any more.
    pub(super) fn learn(&mut self, from: IpAddr, until: Instant) {
        let source = Source::from(from);
        self.proxy.gate_mut().registered.learn(source, until);
        if !self.peers.me().is_alone() && self.learned.len() < MAX_LEARNED {
            self.learned.insert(source, until);
        }
    }

    /// With each beat of the heart, and not with each REGISTER: others and the kernel hear who has registered.
    pub(super) fn tell_learned(&mut self) {
        if !self.learned.is_empty() {
            let learned: Arc<[_]> = self.learned.drain().collect();
            for other in self.peers.others() {
                let learned = learned.clone();
                self.peers.order(other, move |worker| {
                    let registered = &mut worker.proxy.gate_mut().registered;
                    learned.iter().for_each(|(source, until)| registered.learn(*source, *until));
                });
            }
        }
        self.tell_endpoints();
        let registered = &mut self.proxy.gate_mut().registered;
        registered.handle_timeout(Instant::now());
        let changes = registered.take_changes();
        if let Some(head) = &mut self.head
            && !changes.is_empty()
        {
            let written = head.fastpath.change_registered(&changes);
            head.check_write("REGISTERED", written);
        }
    }

    /// The same of endpoints that somebody is registered from.
    fn tell_endpoints(&mut self) {
        let me = self.peers.me();
        let Some(stateful) = self.proxy.stateful_mut() else { return };
        let endpoints = stateful.endpoints_mut();
        endpoints.handle_timeout(Instant::now());
        let (changes, news) = (endpoints.take_changes(), endpoints.take_news());
        let refused = endpoints.take_refused();
        if refused > 0 {
            self.proxy.counters_mut().events(Event::EndpointsFull, refused);
            tracing::warn!(
                refused,
                most = MAX_ENDPOINTS,
                "no room for where they have registered from: they are asked for credentials"
            );
        }
        if !me.is_alone() && !news.is_empty() {
            let (news, number): (Arc<[_]>, _) = (news.into(), me.number());
            for other in self.peers.others() {
                let news = news.clone();
                self.peers.order(other, move |worker| {
                    if let Some(stateful) = worker.proxy.stateful_mut() {
                        let endpoints = stateful.endpoints_mut();
                        news.iter().for_each(|(from, until)| endpoints.told(number, *from, *until));
                    }
                });
            }
        }
        if let Some(head) = &mut self.head
            && !changes.is_empty()
        {
            let written = head.fastpath.change_endpoints(&changes);
            head.check_write("ENDPOINTS", written);
        }
    }

    /// PBXs, trusted and exempt networks, and sources that somebody has registered from: nobody there is banned but by
    /// hand. One phone with an old password is no reason to ban an office.
    fn is_exempt(&self, address: IpAddr) -> bool {
        self.proxy.gate().registered.has(address)
            || self.proxy.policy().sources.is_exempt(address)
            || self.is_pbx(|pbx| pbx == address)
    }

    fn is_pbx(&self, is: impl Fn(IpAddr) -> bool) -> bool {
        self.dispatcher.views().iter().any(|view| is(view.address.ip()))
    }

    /// Evidence goes where it belongs, and what follows is carried out.
    pub(super) fn watch_gate(&mut self) {
        for scanner in self.proxy.take_scanners() {
            self.suspect(Suspicion { from: scanner.from, agent: Some(scanner.agent) });
        }
        let Some(head) = &mut self.head else { return };
        let commands = head.bans.take_commands();
        for (n, command) in commands.iter().copied().enumerate() {
            self.ban(command, n < TOLD_AT_ONCE);
            for other in self.peers.others() {
                self.peers.order(other, move |worker| worker.ban(command, false));
            }
        }
        if let Some(more @ 1..) = commands.len().checked_sub(TOLD_AT_ONCE) {
            tracing::warn!(more, "bans have come and gone");
        }
    }

    /// Carries a command out; `tell` says whether the log has a line for it.
    fn ban(&mut self, command: Command, tell: bool) {
        self.proxy.handle_ban(command);
        let (Command::Ban(net) | Command::Lift(net)) = command;
        let Some(head) = &mut self.head else { return };
        match head.bans.get(net) {
            _ if !tell => {}
            Some(Ban { why, note, .. }) => {
                tracing::warn!(network = %net, reason = why.name(), note = &**note, "banned");
            }
            None => tracing::info!(network = %net, "not banned any more"),
        }
        let bits = self.proxy.policy().sources.exact(net);
        let written = head.fastpath.set_source(net, bits);
        head.check_write("SOURCES", written);
    }

    /// The configuration has changed.
    pub(super) fn reload_bans(&mut self) {
        let sources = &self.proxy.policy().sources;
        if let Some(head) = &mut self.head {
            let rules = self.config.gate.bans.clone();
            head.bans.reload(rules, |address| sources.is_exempt(address));
        }
    }

    fn bans(&self, limit: usize) -> Option<protocol::Bans> {
        let bans = &self.head.as_ref()?.bans;
        let now = Instant::now();
        let wall = unix(SystemTime::now());
        let mut all: Vec<_> = bans.list().collect();
        all.sort_by_key(|(net, ban)| (std::cmp::Reverse(ban.since), **net));
        let bans = all.iter().take(limit).map(|(net, ban)| protocol::Ban {
            network: **net,
            reason: ban.why.name().to_owned(),
            note: ban.note.to_string(),
            since: wall.saturating_sub(now.saturating_duration_since(ban.since)).as_secs(),
            expires_in: ban.until.map(|until| until.saturating_duration_since(now).as_secs()),
        });
        Some(protocol::Bans { bans: bans.collect(), total: all.len() })
    }
}

impl Node {
    /// Up to `limit` bans.
    pub(super) fn bans(&self, limit: usize) -> Answered {
        let bans = self.here(|worker| worker.bans(limit))?;
        let bans = bans.ok_or_else(|| failed("this worker does not decide about bans"))?;
        Ok(Response::done(Outcome::Bans(bans)))
    }

    /// Bans a network by hand.
    pub(super) fn ban(&self, network: IpNet, seconds: Option<u64>, note: &str) -> Answered {
        let duration = seconds.map(Duration::from_secs);
        let done = self.here(|worker| {
            let net = network.trunc();
            if worker.is_pbx(|pbx| net.contains(&pbx)) {
                return Err(format!("a PBX is in {net}: disable it, or ban less"));
            }
            let Some(head) = &mut worker.head else { return Ok(()) };
            let added = head.bans.add(Instant::now(), net, duration, note);
            added.map_err(|refusal: bans::Refusal| refusal.to_string())?;
            tracing::info!(network = %net, note, "banned by hand");
            worker.carry_out();
            Ok(())
        })?;
        done.map_err(failed)?;
        self.bans(protocol::SHOWN)
    }

    /// Ends a ban.
    pub(super) fn unban(&self, network: IpNet) -> Answered {
        let was = self.here(|worker| {
            let Some(head) = &mut worker.head else { return false };
            let was = head.bans.remove(network);
            worker.carry_out();
            was
        })?;
        if !was {
            return Err(failed(format!("{network} is not banned: `sipline bans` shows who is")));
        }
        self.bans(protocol::SHOWN)
    }
}
