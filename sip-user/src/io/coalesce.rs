//! Waking up for several datagrams instead of for each: what network cards call interrupt coalescing
//! (`ethtool --coalesce`), for a thread.
//!
//! A datagram that comes alone pays for a whole wake-up of the thread, and that costs more than what is then done
//! for it. So while datagrams come often, the thread waits a little before it looks for more. While they come
//! seldom it does not: nothing would come in the meantime.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the rate is measured before it is believed.
const SLOT: Duration = Duration::from_millis(10);
/// So many datagrams are worth a wake-up: to wait for more would only make them late. Those that come while the thread
/// works are read without another one, so the pause is shorter by that time: the busier it is, the less there is to save.
const ENOUGH: u32 = 8;

/// See the module. One thread sleeps by it; any may ask.
#[derive(Debug)]
pub struct Coalescer {
    longest: Duration,
    start: Instant,
    /// Datagrams that came since [`Self::since`].
    count: AtomicU64,
    /// Nanoseconds from the start.
    since: AtomicU64,
    /// When the thread had something to do again, in nanoseconds from the start.
    woken: AtomicU64,
    /// For how long it has worked since [`Self::since`], in nanoseconds.
    busy: AtomicU64,
    /// The pause that is right at the rate of the last slot, in nanoseconds.
    pause: AtomicU64,
}

impl Coalescer {
    /// Waits for `longest` at most; zero means never.
    pub fn new(longest: Duration) -> Self {
        Self {
            longest,
            start: Instant::now(),
            count: AtomicU64::new(0),
            since: AtomicU64::new(0),
            woken: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            pause: AtomicU64::new(0),
        }
    }

    /// Datagrams have been read.
    pub fn read(&self, datagrams: usize) {
        self.count.fetch_add(datagrams as u64, Ordering::Relaxed);
    }

    /// The thread has nothing to do: it sleeps for as long as is right.
    pub fn idle(&self) {
        let now = self.start.elapsed();
        let worked = nanoseconds(now).saturating_sub(self.woken.load(Ordering::Relaxed));
        self.busy.fetch_add(worked, Ordering::Relaxed);
        let pause = self.next(now);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }

    /// The thread has something to do again.
    pub fn woken(&self) {
        self.woken.store(nanoseconds(self.start.elapsed()), Ordering::Relaxed);
    }

    fn next(&self, now: Duration) -> Duration {
        if self.longest.is_zero() {
            return Duration::ZERO;
        }
        let since = Duration::from_nanos(self.since.load(Ordering::Relaxed));
        let passed = now.saturating_sub(since);
        if passed < SLOT {
            return Duration::from_nanos(self.pause.load(Ordering::Relaxed));
        }
        let count = self.count.swap(0, Ordering::Relaxed);
        let busy = Duration::from_nanos(self.busy.swap(0, Ordering::Relaxed));
        let pause = pause(self.longest, count, passed, busy);
        self.since.store(nanoseconds(now), Ordering::Relaxed);
        self.pause.store(nanoseconds(pause), Ordering::Relaxed);
        pause
    }
}

/// The pause for a rate of `count` datagrams in `passed`, of which the thread was `busy` for some time: until there are
/// enough, if that is worth it.
///
/// A pause ends with a wake-up of its own, and when it has brought nothing, the next datagram costs another one. With
/// `x` datagrams to be expected in a pause, one of them costs (1 + e^-x) / (x + e^-x) wake-ups: as many as without any
/// pause at 1, and seven tenths at one and a half, where we begin.
fn pause(longest: Duration, count: u64, passed: Duration, busy: Duration) -> Duration {
    let free = passed.saturating_sub(busy).saturating_mul(ENOUGH);
    let pause = longest.min(free / u32::try_from(count).unwrap_or(u32::MAX).max(1));
    let doubled = u128::from(count) * pause.as_nanos() * 2 / passed.as_nanos().max(1);
    if doubled < 3 { Duration::ZERO } else { pause }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(1);

    #[test]
    fn the_pause_follows_the_rate() {
        const SECOND: Duration = Duration::from_secs(1);
        // Of a thread that works for ten microseconds at each.
        let at = |per_second: u64| {
            let busy = Duration::from_micros(10 * per_second);
            pause(LONGEST, per_second, SECOND, busy).as_micros()
        };
        assert_eq!(at(0), 0);
        assert_eq!(at(1000), 0, "one in the longest pause: as dear as without");
        assert_eq!(at(1500), 1000);
        assert_eq!(at(4_000), 1000);
        assert_eq!(at(10_000), 720, "eight in that time and in the one that they take");
        assert_eq!(at(50_000), 80);
        assert_eq!(at(80_000), 20);
        assert_eq!(at(90_000), 0, "more come while some are served");
        assert_eq!(at(200_000), 0);
        assert_eq!(pause(LONGEST, 1, Duration::ZERO, Duration::ZERO), Duration::ZERO);
        assert_eq!(pause(Duration::ZERO, 1000, SLOT, Duration::ZERO), Duration::ZERO);
        let short = Duration::from_micros(100);
        assert_eq!(pause(short, 20_000, SECOND, SECOND / 5), short);
        assert_eq!(pause(short, 10_000, SECOND, SECOND / 5), Duration::ZERO);
    }

    #[test]
    fn a_rate_is_that_of_the_last_slot() {
        let coalescer = Coalescer::new(LONGEST);
        let next = |millis| coalescer.next(Duration::from_millis(millis)).as_micros();
        coalescer.read(30);
        assert_eq!(next(1), 0, "not yet measured");
        assert_eq!(next(10), 1000);
        assert_eq!(next(15), 1000);
        // A second of silence.
        coalescer.read(1);
        assert_eq!(next(1015), 0);
        let off = Coalescer::new(Duration::ZERO);
        off.read(1000);
        assert_eq!(off.next(SLOT), Duration::ZERO);
    }
}
