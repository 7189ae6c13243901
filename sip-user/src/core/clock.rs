//! The time of day for a core that has no clock.

use std::time::{Duration, Instant};

/// Unix time that runs evenly: taken from the clock once, and carried on by the progress of an `Instant`. A
/// clock that somebody sets while the daemon runs makes no nonce stale and ends no contact.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    unix: Duration,
}

impl Clock {
    /// `unix` is the Unix time at `now`.
    pub fn new(now: Instant, unix: Duration) -> Self {
        Self { start: now, unix }
    }

    /// Unix time at `now`.
    pub fn unix(&self, now: Instant) -> Duration {
        match now.checked_duration_since(self.start) {
            Some(after) => self.unix.saturating_add(after),
            None => self.unix.saturating_sub(self.start.saturating_duration_since(now)),
        }
    }

    /// Unix time at `now` in whole seconds.
    pub fn seconds(&self, now: Instant) -> u64 {
        self.unix(now).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_the_instant() {
        let now = Instant::now();
        let clock = Clock::new(now, Duration::from_millis(1_700_000_000_900));
        assert_eq!(clock.seconds(now), 1_700_000_000);
        assert_eq!(clock.seconds(now + Duration::from_millis(100)), 1_700_000_001);
        assert_eq!(clock.seconds(now - Duration::from_secs(1)), 1_699_999_999);
    }
}
