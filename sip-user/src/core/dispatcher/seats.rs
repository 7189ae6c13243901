//! Places that are counted, whoever holds them: calls at a PBX, and those of a trial. Several dispatchers may count
//! together, each on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many places are taken. A clone counts the same places.
#[derive(Clone, Debug, Default)]
pub(super) struct Seats(Arc<AtomicUsize>);

/// A place that is taken, until this is dropped.
#[derive(Debug)]
pub(super) struct Seat(Seats);

impl Seats {
    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        // Nothing is read because of it that somebody has written before.
        self.0.load(Ordering::Relaxed)
    }

    /// Takes one of `most`, if one is free; 0 is no limit.
    pub(super) fn take(&self, most: usize) -> Option<Seat> {
        let more = |taken: usize| (most == 0 || taken < most).then_some(taken + 1);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Seat(self.clone()))
    }

    /// Whether these are the same places, and not only as many.
    pub(super) fn are(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Seat {
    /// Of which places it is one.
    pub(super) fn of(&self) -> &Seats {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whose turn it is, for all that place calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn(Arc<(AtomicUsize, AtomicBool)>);

impl Turn {
    /// The place in the schedule that was taken last; it may be one of a longer schedule.
    pub(super) fn get(&self) -> usize {
        self.0.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, turn: usize) {
        self.0.0.store(turn, Ordering::Relaxed);
    }

    /// Whether the last call went to a PBX on trial; the next one has not yet.
    pub(super) fn take_trial(&self) -> bool {
        self.0.1.swap(false, Ordering::Relaxed)
    }

    pub(super) fn set_trial(&self) {
        self.0.1.store(true, Ordering::Relaxed);
    }
}

/// Something that all see at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Flag(Arc<AtomicBool>);

impl Flag {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, is: bool) {
        self.0.store(is, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_there_are() {
        let seats = Seats::default();
        let (one, two) = (seats.take(2).unwrap(), seats.clone().take(2).unwrap());
        assert!(seats.take(2).is_none());
        assert_eq!(seats.taken(), 2);
        assert!(seats.are(one.of()) && !seats.are(&Seats::default()));
        drop(one);
        assert!(seats.take(2).is_some());
        drop(two);
        assert_eq!(seats.taken(), 0);
        let many: Vec<_> = (0..10).map(|_| seats.take(0).unwrap()).collect();
        assert_eq!(many.len(), seats.taken());
    }

    #[test]
    fn nor_by_threads() {
        let seats = Seats::default();
        let held = std::thread::scope(|scope| {
            let take = || (0..100).filter_map(|_| seats.take(150)).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!((held.len(), seats.taken()), (150, 150));
    }
}
