//! A time in eight bytes, for what is kept in great numbers: an `Instant` takes sixteen, and so does an
//! `Option` of one.

use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The first time that anybody kept: others are so many nanoseconds before or after it.
static BASE: OnceLock<Instant> = OnceLock::new();
/// Stands for [`BASE`]: centuries lie on either side.
const MIDDLE: u64 = 1 << 63;

/// An `Instant`, to the nanosecond. Made from one and read as one; moments are in the order of their times.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Moment(NonZeroU64);

impl Moment {
    /// As a number that is not 0.
    pub(super) fn bits(self) -> u64 {
        self.0.get()
    }

    /// From [`Moment::bits`]; none of 0.
    pub(super) fn of_bits(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).map(Self)
    }
}

impl From<Instant> for Moment {
    fn from(at: Instant) -> Self {
        let base = *BASE.get_or_init(|| at);
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let number = match at.checked_duration_since(base) {
            Some(after) => MIDDLE.saturating_add(nanoseconds(after)),
            None => MIDDLE.saturating_sub(nanoseconds(base.saturating_duration_since(at))),
        };
        Self(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN))
    }
}

impl From<Moment> for Instant {
    fn from(Moment(number): Moment) -> Self {
        let number = number.get();
        // Who has a moment has made one, so there is a base; without, nothing says when it was.
        let base = *BASE.get_or_init(Instant::now);
        let at = match number.checked_sub(MIDDLE) {
            Some(after) => base.checked_add(Duration::from_nanos(after)),
            None => base.checked_sub(Duration::from_nanos(MIDDLE - number)),
        };
        at.unwrap_or(base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_comes_back() {
        assert_eq!(size_of::<Option<Moment>>(), 8);
        let start = Instant::now();
        let mut last = None;
        for nanoseconds in [0, 1, 999, 1_000_000_007, 400 * 86_400 * 1_000_000_000] {
            let (before, after) =
                (Duration::from_nanos(nanoseconds), Duration::from_nanos(nanoseconds));
            for at in [start.checked_sub(before), start.checked_add(after)].into_iter().flatten() {
                assert_eq!(Instant::from(Moment::from(at)), at);
            }
            let moment = Moment::from(start + after);
            assert!(last.is_none_or(|last| last < moment));
            assert!(nanoseconds == 0 || Moment::from(start) < moment);
            last = Some(moment);
        }
        // What is too far away is as far as it can be.
        let far = start + Duration::from_secs(1000 * 365 * 86_400);
        assert!(Moment::from(far) > Moment::from(start));
        assert!(Instant::from(Moment::from(far)) < far);
    }
}
