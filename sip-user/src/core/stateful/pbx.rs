//! The PBXs: which there are, what they are told of registrations, and what answers their challenges.

use super::super::digest::{Challenge, Role, Session};
use super::super::put::Put;
use super::super::transaction::Limits;
use super::*;
use sip_ebpf::siphash::siphash_word;
use sip_ebpf::tables::PbxState;

/// What answers the challenges of a PBX.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PbxCredentials {
    /// The user name in the credentials; none if it is that of the user who is registered.
    pub username: Option<Box<str>>,
    /// The password.
    pub secret: Secret,
}

/// A PBX as the dispatcher last had it.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Pbx {
    id: Box<str>,
    address: SocketAddr,
    up: bool,
}

impl Pbx {
    /// Its id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether it listens there, and so sends from there.
    pub(super) fn is_at(&self, address: SocketAddr) -> bool {
        self.address == address
    }
}

impl Stateful {
    /// Tells [`Forking`] what is new of the PBXs.
    pub(super) fn follow(&mut self, now: Instant, dispatcher: &Dispatcher) {
        let views = dispatcher.views();
        let gone = self.pbxs.keys().filter(|slot| !views.iter().any(|view| view.slot == **slot));
        for slot in gone.copied().collect::<Vec<_>>() {
            self.pbxs.remove(&slot);
            self.forking.pbx_removed(now, slot);
        }
        for view in views {
            // One that takes no new calls still has those that go on, and its users.
            let up = matches!(view.state, PbxState::Active | PbxState::Draining);
            let is = Pbx { id: view.id.into(), address: view.address, up };
            let was = self.pbxs.get(&view.slot);
            let same = was.is_some_and(|was| (&was.id, was.address) == (&is.id, is.address));
            match was {
                Some(was) if same && was.up == up => continue,
                Some(_) if same && up => self.forking.pbx_up(now, view.slot),
                Some(_) if same => self.forking.pbx_down(now, view.slot),
                _ => {
                    let added = self.forking.pbx_added(now, view.slot, view.id, view.address, up);
                    if added.is_err() {
                        // Slots of the dispatcher are slots of the tables, of which there are as many.
                        continue;
                    }
                }
            }
            self.pbxs.insert(view.slot, is);
        }
    }

    /// Sends a REGISTER of ours.
    pub(super) fn tell_pbx(&mut self, now: Instant, register: &forking::Register) {
        let forking::Register { token, from, to, .. } = register;
        let local = self.settings.locals.iter().position(|local| local == from).unwrap_or(0);
        let branch = self.transactions.branch();
        let mut via = String::with_capacity(96);
        via.text("SIP/2.0/UDP ");
        via.address(*from);
        via.text(";rport;branch=");
        via.text(&branch.text());
        let datagram = register.datagram(&via);
        let flow = Flow { local, peer: *to, reliable: false };
        let sent = self.transactions.request(now, branch, flow, Limits::default(), datagram);
        match sent {
            Ok(id) => {
                self.counts.forked += 1;
                self.flights.insert(id, *token);
            }
            Err(error) => {
                tracing::debug!(%error, pbx = %to, "a REGISTER is not sent");
                self.forking.handle_no_answer(now, *token);
            }
        }
    }

    /// Answers the challenge of a PBX, if there are credentials for it.
    pub(super) fn authorize(&mut self, now: Instant, challenged: &forking::Challenged) {
        let credentials = self.credentials(challenged);
        if credentials.is_none() {
            self.counts.challenges_unanswered += 1;
        }
        self.forking.authorize(now, challenged.token, credentials.as_deref());
    }

    /// The value of the header with credentials.
    fn credentials(&mut self, challenged: &forking::Challenged) -> Option<String> {
        let forking::Challenged { slot, user, status, challenges, uri, .. } = challenged;
        let pbx = self.pbxs.get(slot)?;
        let Some(PbxCredentials { username, secret }) = self.settings.credentials.get(&pbx.id)
        else {
            tracing::debug!(pbx = &*pbx.id, "asks for credentials, and none are configured");
            return None;
        };
        let role = if *status == 407 { Role::Proxy } else { Role::UserAgent };
        let values = challenges.iter().map(String::as_bytes);
        let challenge = match Challenge::choose(values, secret) {
            Ok(challenge) => challenge,
            Err(error) => {
                tracing::debug!(pbx = &*pbx.id, %error, "its challenge cannot be answered");
                return None;
            }
        };
        self.cnonces += 1;
        let cnonce = format!("{:016x}", siphash_word(self.key, self.cnonces));
        let username = username.as_deref().unwrap_or(user);
        let mut session = Session::new(challenge, cnonce);
        let line = session.authorize(role, username, secret, "REGISTER", uri)?;
        Some(line.split_once(": ")?.1.trim_end().to_owned())
    }
}
