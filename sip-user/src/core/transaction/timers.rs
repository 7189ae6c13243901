//! How long each thing takes (RFC 3261 17, table 4).

use std::time::Duration;

use super::wheel::Tick;

/// The durations that all timers are made of. The letters are RFC 3261's and, for L and M, RFC 6026's. They
/// are counted in milliseconds; what is finer is rounded up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timers {
    /// How long a message takes there and back, by estimate: 500 ms. First interval of A, E and G; B, F, H,
    /// J, L and M are 64 times this, for all transports but J.
    pub t1: Duration,
    /// The longest interval between repetitions of a request that is no INVITE, and of a response to an
    /// INVITE (E, G): 4 s.
    pub t2: Duration,
    /// How long a message stays in the network: 5 s. Timers I and K.
    pub t4: Duration,
    /// Timer C (16.6 step 11): how long an INVITE may ring; counted anew from each provisional response but
    /// 100. More than 3 minutes: 181 s.
    pub c: Duration,
    /// Timer D (17.1.1.2): how long repetitions of a failure are acknowledged. At least 32 s: 32 s.
    pub d: Duration,
    /// How long an INVITE waits for its first answer before we send the 100 of 17.2.1: 200 ms.
    pub trying: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            t1: Duration::from_millis(500),
            t2: Duration::from_secs(4),
            t4: Duration::from_secs(5),
            c: Duration::from_secs(181),
            d: Duration::from_secs(32),
            trying: Duration::from_millis(200),
        }
    }
}

/// Limits of one client transaction that are its user's, so that another server can be tried in time.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Limits {
    /// Of an INVITE: how long until it has any response. Of another request: how long until it has its final
    /// one. Without this, or above 64 T1, Timers B and F stand.
    pub answer: Option<Duration>,
    /// Of an INVITE: how long it may ring, in place of Timer C. At most Timer C.
    pub ring: Option<Duration>,
}

/// [`Timers`] in ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks {
    pub(super) t1: Tick,
    pub(super) t2: Tick,
    pub(super) t4: Tick,
    pub(super) c: Tick,
    pub(super) d: Tick,
    pub(super) trying: Tick,
}

impl Ticks {
    pub(super) fn new(timers: &Timers) -> Self {
        // Nothing may be repeated without any time between.
        let t1 = ticks(timers.t1).max(1);
        Self {
            t1,
            t2: ticks(timers.t2).max(t1),
            t4: ticks(timers.t4),
            c: ticks(timers.c),
            d: ticks(timers.d),
            trying: ticks(timers.trying),
        }
    }

    /// 64 T1: how long one side of a transaction waits for the other.
    pub(super) fn patience(&self) -> Tick {
        self.t1.saturating_mul(64)
    }

    /// How long until a client's Timer E has grown to T2 (RFC 4320 4.1): 3.5 s.
    pub(super) fn e_reaches_t2(&self) -> Tick {
        let (mut interval, mut passed) = (self.t1, self.t1);
        while interval.saturating_mul(2) < self.t2 {
            interval *= 2;
            passed = passed.saturating_add(interval);
        }
        passed
    }

    /// How long an INVITE of a client may be left without an answer by the transaction user: long enough to
    /// try several servers until Timer C, so only one that has been forgotten comes to it.
    pub(super) fn unanswered(&self) -> Tick {
        self.c.saturating_mul(4)
    }
}

/// Rounded up; at most 49 days, so that sums of them are far from the end.
pub(super) fn ticks(duration: Duration) -> Tick {
    let whole = duration.as_nanos().div_ceil(1_000_000);
    Tick::from(u32::try_from(whole).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_rounded_up() {
        assert_eq!(ticks(Duration::ZERO), 0);
        assert_eq!(ticks(Duration::from_nanos(1)), 1);
        assert_eq!(ticks(Duration::from_millis(500)), 500);
        assert_eq!(ticks(Duration::MAX), Tick::from(u32::MAX));
    }

    #[test]
    fn when_timer_e_reaches_t2() {
        let at = |t1, t2| {
            let (t1, t2) = (Duration::from_millis(t1), Duration::from_millis(t2));
            Ticks::new(&Timers { t1, t2, ..Timers::default() }).e_reaches_t2()
        };
        assert_eq!(at(500, 4000), 3500);
        assert_eq!(at(500, 3000), 3500);
        assert_eq!(at(500, 500), 500);
        assert_eq!(at(0, 0), 1);
        assert_eq!(at(500, 0), 500);
    }
}
