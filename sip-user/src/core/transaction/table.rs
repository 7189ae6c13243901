//! Where transactions live: numbered, and found by number or by key.

use std::collections::HashMap;

use super::TransactionId;
use super::key::{Key, KeyHasher};
use super::machine::{Line, Machine};
use super::types::Id;

/// More have no number.
const MOST: usize = u32::MAX as usize / 2;

/// One transaction.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) line: Line,
    pub(super) machine: Machine,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    /// Numbers of empty slots.
    free: Vec<u32>,
    by_key: HashMap<Key, u32, KeyHasher>,
    /// Transactions so far: tells one from the next in the same slot.
    generation: u32,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    entry: Option<Entry>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    pub(super) fn find(&self, key: Key) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Entry> {
        self.slots.get(slot as usize)?.entry.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.slots.get_mut(slot as usize)?.entry.as_mut()
    }

    /// The name of who lives in a slot.
    pub(super) fn id(&self, slot: u32) -> Option<TransactionId> {
        let Slot { generation, entry } = self.slots.get(slot as usize)?;
        let id = Id { slot, generation: *generation };
        Some(match entry.as_ref()?.machine {
            Machine::ClientInvite(_) | Machine::ClientOther(_) => TransactionId::client(id),
            Machine::ServerInvite(_) | Machine::ServerOther(_) => TransactionId::server(id),
        })
    }

    /// Where it lives, if it has not ended.
    pub(super) fn slot(&self, id: Id) -> Option<u32> {
        let slot = self.slots.get(id.slot as usize)?;
        (slot.entry.is_some() && slot.generation == id.generation).then_some(id.slot)
    }

    /// The name of the next one. None if there are too many.
    pub(super) fn vacant(&self) -> Option<Id> {
        let slot = match self.free.last() {
            Some(slot) => *slot,
            None if self.slots.len() >= MOST => return None,
            None => self.slots.len() as u32,
        };
        Some(Id { slot, generation: self.generation.wrapping_add(1) })
    }

    /// Puts a transaction where [`Table::vacant`] has said.
    pub(super) fn insert(&mut self, id: Id, entry: Entry) {
        self.generation = id.generation;
        self.by_key.insert(entry.key, id.slot);
        let slot = Slot { generation: id.generation, entry: Some(entry) };
        match self.slots.get_mut(id.slot as usize) {
            Some(free) => {
                *free = slot;
                self.free.pop();
            }
            None => self.slots.push(slot),
        }
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        if let Some(entry) = place.entry.take() {
            self.by_key.remove(&entry.key);
            self.free.push(slot);
        }
    }

    /// Gives memory back. Only for when it is empty.
    pub(super) fn release(&mut self) {
        *self = Self { generation: self.generation, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_small() {
        // And 24 bytes in the wheel, 12 in the lists of peers, about 30 in the map.
        assert!(size_of::<Slot>() <= 192, "{}", size_of::<Slot>());
    }
}
