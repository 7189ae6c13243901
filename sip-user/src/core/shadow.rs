//! INVITEs that were steered without memory, kept until it is sure that their PBX takes them.
//!
//! See `docs/architecture.md`, "No call lost". Here they are only kept, found and called up in time; what then becomes
//! of them is decided in [`super::proxy`].

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The most that are kept, and their bytes: some seconds of calls, at any rate that is carried.
const MOST: usize = 100_000;
const MOST_BYTES: usize = 128 << 20;
/// How long after the first look at a call that is heard of the next one is.
const AGAIN: Duration = Duration::from_secs(5);
/// For how long a call is known that was taken over: its first PBX may still say something (64 T1).
const AFTER: Duration = Duration::from_secs(32);
/// For how long a call is looked after that is heard of: a little more than Timer C (16.6).
const LIFE: Duration = Duration::from_secs(190);
/// How long a refusal waits for the copy of its INVITE, which comes another way.
const HOLD: Duration = Duration::from_millis(100);
/// Refusals that wait.
const MOST_HELD: usize = 1_000;

/// One INVITE.
#[derive(Debug)]
pub(super) struct Shadow {
    /// As it came.
    pub(super) request: Box<[u8]>,
    /// Who sent it.
    pub(super) from: SocketAddr,
    /// Which address of ours it came to.
    pub(super) local: usize,
    /// The keyed hash of its Call-ID.
    pub(super) hash: u64,
    /// Slot of the PBX that it went to.
    pub(super) slot: u32,
    /// Whether it was taken over.
    pub(super) taken: bool,
    /// Whether its first PBX was told to let it be.
    pub(super) cancelled: bool,
    since: Instant,
    due: Instant,
}

/// A response that waits for its INVITE.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Box<[u8]>,
    pub(super) from: SocketAddr,
    pub(super) local: usize,
    branch: u64,
    until: Instant,
}

/// What is due.
#[derive(Debug)]
pub(super) enum Due {
    /// The call of this branch wants a look; it is so late.
    Look(u64, Duration),
    /// The INVITE of this response does not come.
    Held(Held),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shadows {
    /// By the number in our branch.
    calls: HashMap<u64, Shadow>,
    bytes: usize,
    /// When calls want to be looked at. Each of these queues is for one pause, so it is in order.
    queues: [VecDeque<(Instant, u64)>; 3],
    held: VecDeque<Held>,
}

impl Shadows {
    /// Keeps an INVITE; a repetition changes nothing, unless it went to another PBX. Gives a response that waited for
    /// it; the error is that there is no room.
    pub(super) fn put(
        &mut self,
        now: Instant,
        patience: Duration,
        branch: u64,
        (local, from, bytes): (usize, SocketAddr, &[u8]),
        (hash, slot): (u64, u32),
    ) -> Result<Option<Held>, ()> {
        let due = now + patience;
        match self.calls.get_mut(&branch) {
            Some(shadow) if shadow.taken || shadow.slot == slot => return Ok(None),
            Some(shadow) => (shadow.slot, shadow.due) = (slot, due),
            None => {
                if self.calls.len() >= MOST || self.bytes + bytes.len() > MOST_BYTES {
                    return Err(());
                }
                self.bytes += bytes.len();
                let shadow = Shadow {
                    request: bytes.into(),
                    from,
                    local,
                    hash,
                    slot,
                    taken: false,
                    cancelled: false,
                    since: now,
                    due,
                };
                self.calls.insert(branch, shadow);
            }
        }
        self.queues[0].push_back((due, branch));
        let at = self.held.iter().position(|held| held.branch == branch);
        Ok(at.and_then(|at| self.held.remove(at)))
    }

    pub(super) fn get(&self, branch: u64) -> Option<&Shadow> {
        self.calls.get(&branch)
    }

    pub(super) fn get_mut(&mut self, branch: u64) -> Option<&mut Shadow> {
        self.calls.get_mut(&branch)
    }

    pub(super) fn remove(&mut self, branch: u64) {
        if let Some(shadow) = self.calls.remove(&branch) {
            self.bytes -= shadow.request.len();
        }
    }

    /// Its PBX was heard: it is looked at again, unless it is too old.
    pub(super) fn again(&mut self, now: Instant, branch: u64) {
        match self.calls.get_mut(&branch) {
            Some(shadow) if now.saturating_duration_since(shadow.since) < LIFE => {
                shadow.due = now + AGAIN;
                self.queues[1].push_back((shadow.due, branch));
            }
            _ => self.remove(branch),
        }
    }

    /// It is taken over, and known for as long as its first PBX may say something.
    pub(super) fn taken(&mut self, now: Instant, branch: u64) {
        if let Some(shadow) = self.calls.get_mut(&branch) {
            (shadow.taken, shadow.due) = (true, now + AFTER);
            self.queues[2].push_back((shadow.due, branch));
        }
    }

    /// Lets a response wait. False if it cannot.
    pub(super) fn hold(
        &mut self,
        now: Instant,
        branch: u64,
        (local, from, bytes): (usize, SocketAddr, &[u8]),
    ) -> bool {
        if self.held.len() >= MOST_HELD {
            return false;
        }
        let (bytes, until) = (bytes.into(), now + HOLD);
        self.held.push_back(Held { bytes, from, local, branch, until });
        true
    }

    /// The branches of calls that went to a PBX and were not taken over.
    pub(super) fn at(&self, slot: u32) -> Vec<u64> {
        let there = self.calls.iter().filter(|(_, shadow)| shadow.slot == slot && !shadow.taken);
        there.map(|(branch, _)| *branch).collect()
    }

    /// When [`Shadows::poll`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let calls = self.queues.iter().filter_map(|queue| queue.front().map(|(due, _)| *due));
        calls.chain(self.held.front().map(|held| held.until)).min()
    }

    /// The next thing that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Due> {
        if self.held.front().is_some_and(|held| held.until <= now) {
            return self.held.pop_front().map(Due::Held);
        }
        for queue in &mut self.queues {
            while let Some((due, branch)) = queue.front().copied().filter(|(due, _)| *due <= now) {
                queue.pop_front();
                // One that has moved meanwhile is due at another time.
                if self.calls.get(&branch).is_some_and(|shadow| shadow.due == due) {
                    return Some(Due::Look(branch, now - due));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn from() -> SocketAddr {
        "192.0.2.1:5060".parse().unwrap()
    }

    fn put(shadows: &mut Shadows, now: Instant, branch: u64, slot: u32) -> Option<Held> {
        shadows.put(now, 3 * S, branch, (0, from(), b"INVITE"), (9, slot)).unwrap()
    }

    #[test]
    fn each_is_due_once_and_in_its_time() {
        let (mut shadows, now) = (Shadows::default(), Instant::now());
        assert!(put(&mut shadows, now, 1, 0).is_none());
        put(&mut shadows, now + S, 1, 0);
        put(&mut shadows, now + S, 2, 0);
        assert_eq!(shadows.poll_timeout(), Some(now + 3 * S));
        // It went elsewhere: the other PBX has its time too.
        put(&mut shadows, now + 2 * S, 1, 1);
        assert!(shadows.poll(now + 3 * S).is_none());
        assert!(matches!(shadows.poll(now + 4 * S), Some(Due::Look(2, Duration::ZERO))));
        shadows.again(now + 4 * S, 2);
        assert!(matches!(shadows.poll(now + 6 * S), Some(Due::Look(1, _))));
        assert_eq!(shadows.at(1), [1]);
        shadows.taken(now + 6 * S, 1);
        assert!(shadows.at(1).is_empty());
        assert!(matches!(shadows.poll(now + 9 * S), Some(Due::Look(2, _))));
        shadows.again(now + 200 * S, 2);
        assert_eq!(shadows.calls.len(), 1);
        assert!(matches!(shadows.poll(now + 38 * S), Some(Due::Look(1, _))));
        shadows.remove(1);
        assert_eq!((shadows.calls.len(), shadows.bytes, shadows.poll_timeout()), (0, 0, None));
    }

    #[test]
    fn what_comes_before_its_invite_waits_a_moment() {
        let (mut shadows, now) = (Shadows::default(), Instant::now());
        assert!(shadows.hold(now, 1, (0, from(), b"503")));
        assert!(shadows.hold(now, 2, (0, from(), b"503")));
        assert_eq!(put(&mut shadows, now, 1, 0).map(|held| held.branch), Some(1));
        assert!(shadows.poll(now).is_none());
        assert!(matches!(shadows.poll(now + HOLD), Some(Due::Held(Held { branch: 2, .. }))));
        for n in 0..MOST_HELD {
            assert!(shadows.hold(now, n as u64, (0, from(), b"")));
        }
        assert!(!shadows.hold(now, 0, (0, from(), b"")));
    }

    #[test]
    fn there_is_a_bound() {
        let (mut shadows, now) = (Shadows::default(), Instant::now());
        let large = vec![0; 1 << 20];
        let put = |shadows: &mut Shadows, n| shadows.put(now, S, n, (0, from(), &large), (n, 0));
        assert!((0..128).all(|n| put(&mut shadows, n).is_ok()));
        assert!(put(&mut shadows, 128).is_err());
        shadows.remove(5);
        assert!(put(&mut shadows, 128).is_ok());
    }
}
