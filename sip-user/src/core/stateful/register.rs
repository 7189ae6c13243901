//! REGISTER: carried out, stored, answered, and told to the PBXs, in this order.

use super::*;

impl Stateful {
    /// A REGISTER whose sender is who he says.
    pub(super) fn register(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        id: ServerId,
        flow: Flow,
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
        self.apply(now, changes);
        self.answer(now, message, id, flow, &response);
    }

    /// What the registrar has changed goes to the store and to the PBXs.
    pub(super) fn apply(&mut self, now: Instant, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Saved(row) => self.commands.push_back(Command::Save(row)),
                Change::Removed(key) => self.commands.push_back(Command::Remove(key)),
                Change::User { user, until } => {
                    if self.forking.user_changed(now, &user, until).is_err() {
                        // Those who were here and whom a PBX may still have take the room.
                        tracing::debug!(%user, "too many users: the PBXs are not told of this one");
                    }
                }
            }
        }
    }
}
