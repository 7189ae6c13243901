//! REGISTER: carried out, stored, answered, and told to the PBXs, in this order.

use sip_ebpf::cookie;
use sip_ebpf::header::Span;

use super::*;

impl Stateful {
    /// A REGISTER whose sender is who he says; `proved` if he had to show that.
    pub(super) fn register(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        id: ServerId,
        flow: Flow,
        proved: bool,
    ) {
        if !self.storable {
            return self.answer(now, message, id, flow, &self.unavailable());
        }
        if let Err(response) = self.admit(message) {
            return self.answer(now, message, id, flow, &response);
        }
        let mut changes = Vec::new();
        let origin = registrar::Origin { from: flow.peer, local: flow.local };
        let response = self.registrar.handle(now, message, origin, &mut changes);
        self.counts.registered += u64::from(response.code == 200);
        let saved = changes.iter().filter_map(|change| match change {
            Change::Saved(row) => Some(row.expires),
            Change::Removed(_) | Change::User { .. } => None,
        });
        if let Some(until) = saved.max()
            && self.source(flow.peer) == Source::Other
        {
            self.commands.push_back(Command::Learned { from: flow.peer.ip(), until });
        }
        self.apply(now, changes, proved.then_some(flow.peer));
        self.answer(now, message, id, flow, &response);
    }

    /// What the registrar has changed goes to the store and to the PBXs. `proved` is where it was registered from by
    /// somebody who has proved who he is.
    pub(super) fn apply(&mut self, now: Instant, changes: Vec<Change>, proved: Option<SocketAddr>) {
        let kept = |from: &SocketAddr| self.kept.lookup(from.ip()) & source::REGISTERED != 0;
        let proved = proved.filter(kept);
        for change in changes {
            match change {
                Change::Saved(row) => {
                    match proved {
                        Some(from) => self.endpoints.registered(&row.key, from, row.expires),
                        None => self.endpoints.gone(&row.key),
                    }
                    self.commands.push_back(Command::Save(row));
                }
                Change::Removed(key) => {
                    self.endpoints.gone(&key);
                    self.commands.push_back(Command::Remove(key));
                }
                Change::User { user, until } => {
                    if self.answers_qualify() {
                        self.mirror(now, &user);
                    }
                    if self.forking.user_changed(now, &user, until).is_err() {
                        // Those who were here and whom a PBX may still have take the room.
                        tracing::debug!(%user, "too many users: the PBXs are not told of this one");
                    }
                }
            }
        }
    }

    /// Until when a user is registered, for who answers PBXs in our name. Before the PBXs are told, who may ask at once.
    fn mirror(&mut self, now: Instant, user: &str) {
        let until = self.registrar.lookup_user(user, now).iter().map(|reach| reach.expires).max();
        let span = Span { at: 0, end: u32::try_from(user.len()).unwrap_or(u32::MAX) };
        let name = cookie::user(&self.cookie_keys, user.as_bytes(), span);
        self.commands.push_back(Command::User { name, until });
    }
}
