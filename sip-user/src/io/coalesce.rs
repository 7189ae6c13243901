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
/// So many datagrams are worth a wake-up: to wait for more would only make them late.
const ENOUGH: u32 = 8;
/// How long they are being served, about. What comes in that time is read without another wake-up, so the pause is
/// shorter by it: the busier the thread, the less there is to save.
const SERVED: Duration = Duration::from_micros(72);

/// See the module. One thread sleeps by it; any may ask.
#[derive(Debug)]
pub struct Coalescer {
    longest: Duration,
    start: Instant,
    /// Datagrams that came since [`Self::since`].
    count: AtomicU64,
    /// Nanoseconds from the start.
    since: AtomicU64,
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
            pause: AtomicU64::new(0),
        }
    }

    /// Datagrams have been read.
    pub fn read(&self, datagrams: usize) {
        self.count.fetch_add(datagrams as u64, Ordering::Relaxed);
    }

    /// The thread has nothing to do: it sleeps for as long as is right.
    pub fn idle(&self) {
        let pause = self.next(self.start.elapsed());
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
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
        let pause = pause(self.longest, count, passed);
        self.since.store(nanoseconds(now), Ordering::Relaxed);
        self.pause.store(nanoseconds(pause), Ordering::Relaxed);
        pause
    }
}

/// The pause for a rate of `count` datagrams in `passed`: until there are enough, if that is worth it.
///
/// A pause ends with a wake-up of its own, and when it has brought nothing, the next datagram costs another one. With
/// `x` datagrams to be expected in a pause, one of them costs (1 + e^-x) / (x + e^-x) wake-ups: as many as without any
/// pause at 1, and seven tenths at one and a half, where we begin.
fn pause(longest: Duration, count: u64, passed: Duration) -> Duration {
    let enough = passed.saturating_mul(ENOUGH) / u32::try_from(count).unwrap_or(u32::MAX).max(1);
    let pause = longest.min(enough.saturating_sub(SERVED));
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
        let at = |per_second: u64| pause(LONGEST, per_second, Duration::from_secs(1)).as_micros();
        assert_eq!(at(0), 0);
        assert_eq!(at(1000), 0, "one in the longest pause: as dear as without");
        assert_eq!(at(1500), 1000);
        assert_eq!(at(4_000), 1000);
        assert_eq!(at(10_000), 728, "eight in that time and in the one that they take");
        assert_eq!(at(57_000), 68);
        assert_eq!(at(100_000), 0, "more come while some are served");
        assert_eq!(pause(LONGEST, 1, Duration::ZERO), Duration::ZERO);
        assert_eq!(pause(Duration::ZERO, 1000, SLOT), Duration::ZERO);
        let short = Duration::from_micros(100);
        assert_eq!(pause(short, 20_000, Duration::from_secs(1)), short);
        assert_eq!(pause(short, 10_000, Duration::from_secs(1)), Duration::ZERO);
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
