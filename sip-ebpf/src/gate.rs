//! The gate: how much one source may send, and what is no SIP at all.
//!
//! Each source has a token bucket, kept as one number: for how long it would have to be silent to owe nothing, its debt.
//! A datagram adds what it costs; whose debt has reached the limit is not let in, and does not owe more for that. A rate
//! is so a cost, and a burst a limit.
//!
//! Two rates share the debt of a source. The small one is for what strangers ask. The large one is for sources from which
//! somebody has registered, so that an office behind one address is served; and for responses, which a stranger too may send
//! as often as he is asked: whom a PBX calls, by us, need not have registered.
//!
//! The debts are an array of buckets with two sources each: a word for a source. A lookup touches one cache line and a
//! change writes one word, so no lock is needed. Who owes least makes room for a source that is new:
//! most often somebody who owes nothing, which is the same as not to be there.
//!
//! | bits of a word | |
//! | --- | --- |
//! | 32..64 | the source; a word of zero is free |
//! | 0..32 | when it owes nothing, in units of 2^14 ns |

use crate::Reason;
use crate::tables::SOURCES_PER_BUCKET;

/// The words of a bucket.
pub type Words = [u64; SOURCES_PER_BUCKET];

/// The highest rate, in datagrams a second: its cost is six units.
pub const MOST_PER_SECOND: u32 = 10_000;

/// The longest debt, in seconds: what seems to be longer is one of hours ago, before the number of units went round.
pub const LONGEST_DEBT: u32 = 60;

const LONGEST: u32 = units(LONGEST_DEBT as u64 * 1_000_000_000);

/// How much may be sent. All zero: nothing is asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Rate {
    /// What a datagram costs, in units of 2^14 ns.
    pub cost: u32,
    /// Whose debt is as long is not let in, in the same units.
    pub limit: u32,
}

impl Rate {
    /// `per_second` datagrams a second in the long run, `burst` at once. Both are at least 1; the rate is at most
    /// [`MOST_PER_SECOND`], and `burst` is what is sent in [`LONGEST_DEBT`] at most.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        let per_second = if per_second == 0 { 1 } else { per_second } as u64;
        let cost = units(1_000_000_000 / per_second);
        let cost = if cost == 0 { 1 } else { cost };
        let limit = cost.saturating_mul(if burst == 0 { 1 } else { burst });
        Self { cost, limit: if limit > LONGEST { LONGEST } else { limit } }
    }
}

/// The rates.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Rules {
    /// Of strangers.
    pub stranger: Rate,
    /// Of sources that are known, and of messages that prove themselves.
    pub registered: Rate,
}

/// Who a source is. The numbers are what the kernel keeps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Standing {
    /// A PBX, or somebody in a trusted or exempt network: nothing is asked.
    Exempt = 0,
    /// Anybody.
    Stranger = 1,
    /// Somebody has registered from there.
    Registered = 2,
}

const fn units(nanoseconds: u64) -> u32 {
    (nanoseconds >> 14) as u32
}

/// The bucket of a source.
#[inline(always)]
pub fn bucket(source: u32, mask: u32) -> u32 {
    let mixed = (source ^ source >> 15).wrapping_mul(0x2c1b_3c6d);
    (mixed ^ mixed >> 16) & mask
}

/// The name of an IPv6 network of 64 bits, which is one source. Two may share one, and then what they may send.
#[inline(always)]
pub const fn name_of_network(network: u64) -> u32 {
    (network.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 | 1
}

#[inline(always)]
fn left(word: u64, now: u64) -> u32 {
    let left = (word as u32).wrapping_sub(units(now));
    if left > LONGEST { 0 } else { left }
}

/// What a source owes. `now` is in nanoseconds of a clock that only goes on.
#[inline(always)]
fn debt(words: &Words, source: u32, now: u64) -> u32 {
    let mut found = 0;
    for word in words {
        if (*word >> 32) as u32 == source && *word != 0 {
            found = left(*word, now);
        }
    }
    found
}

/// Lets a datagram of a source in, or says why it is dropped. `text` are its first eight bytes, the first in the lowest bits.
#[inline(always)]
pub fn take(
    words: &mut Words,
    source: u32,
    now: u64,
    rules: &Rules,
    registered: bool,
    text: u64,
) -> Result<(), Reason> {
    const SIP: u32 = u32::from_le_bytes(*b"SIP/");
    let rate = if registered || text as u32 == SIP { rules.registered } else { rules.stranger };
    if debt(words, source, now) >= rate.limit {
        return Err(if registered { Reason::RateRegistered } else { Reason::RateStranger });
    }
    charge(words, source, now, rate.cost);
    Ok(())
}

/// Adds to what a source owes: in its own word, else a free one, else that of who owes least.
#[inline(always)]
fn charge(words: &mut Words, source: u32, now: u64, cost: u32) {
    let mut best = 0;
    let mut score = 0;
    let mut owed = 0;
    for (i, word) in words.iter().enumerate() {
        let left = left(*word, now);
        let own = (*word >> 32) as u32 == source && *word != 0;
        // Own, free, and then who owes least.
        let this = if own {
            u32::MAX
        } else if *word == 0 {
            u32::MAX - 1
        } else {
            u32::MAX - 2 - left
        };
        if own {
            owed = left;
        }
        if this > score {
            score = this;
            best = i;
        }
    }
    let owed = owed + cost;
    let owed = if owed > LONGEST { LONGEST } else { owed };
    let word = (source as u64) << 32 | units(now).wrapping_add(owed) as u64;
    // SAFETY: `best` is the number of one of the words.
    unsafe { *words.as_mut_ptr().add(crate::scan::confine::<1>(best as u32) as usize) = word };
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const RULES: Rules = Rules { stranger: Rate::new(20, 60), registered: Rate::new(500, 2000) };

    /// How many of `count` datagrams, `every` nanoseconds apart, are let in.
    fn flood(words: &mut Words, start: u64, count: u64, every: u64, registered: bool) -> u64 {
        let mut taken = |n: &u64| take(words, 7, start + n * every, &RULES, registered, 0).is_ok();
        (0..count).filter(|n| taken(n)).count() as u64
    }

    #[test]
    fn a_stranger_has_a_burst_and_then_his_rate() {
        let mut words = Words::default();
        assert_eq!(flood(&mut words, 0, 400, 0, false), 60);
        let later = flood(&mut words, 0, 100_000, MS, false);
        assert!((1995..=2005).contains(&later), "{later} in 100 s");
        // Who was silent has all of it again.
        assert_eq!(flood(&mut words, 200_000 * MS, 400, 0, false), 60);
    }

    #[test]
    fn an_office_that_has_registered_is_served() {
        let mut words = Words::default();
        assert_eq!(flood(&mut words, 0, 400, 0, true), 400);
        assert_eq!(flood(&mut words, 0, 10_000, 0, true), 1600);
        assert_eq!(take(&mut words, 7, 0, &RULES, true, 0), Err(Reason::RateRegistered));
        assert_eq!(take(&mut words, 7, 0, &RULES, false, 0), Err(Reason::RateStranger));
    }

    #[test]
    fn responses_are_let_in_beside_a_flood() {
        let mut words = Words::default();
        flood(&mut words, 0, 10_000, MS, false);
        let mut take = |text: &[u8; 8]| {
            take(&mut words, 7, 9_999 * MS, &RULES, false, u64::from_le_bytes(*text))
        };
        assert_eq!(take(b"INVITE s"), Err(Reason::RateStranger));
        let answered = (0..10_000).filter(|_| take(b"SIP/2.0 ").is_ok()).count();
        assert!((470..=560).contains(&answered), "{answered}");
    }

    #[test]
    fn who_owes_least_makes_room() {
        let mut words = Words::default();
        for source in 1..=2 {
            for _ in 0..source {
                charge(&mut words, source, 5, RULES.stranger.cost);
            }
        }
        for source in 1..=2 {
            assert_eq!(debt(&words, source, 5), source * RULES.stranger.cost);
        }
        charge(&mut words, 9, 5, 1);
        assert_eq!((debt(&words, 1, 5), debt(&words, 9, 5)), (0, 1));
        assert_eq!(debt(&words, 2, 5), 2 * RULES.stranger.cost);
    }

    #[test]
    fn the_clock_may_go_round() {
        let mut words = Words::default();
        let round = 1u64 << 46;
        assert_eq!(flood(&mut words, round - MS, 400, 0, false), 60);
        assert_eq!(flood(&mut words, round + MS, 400, 0, false), 1, "two milliseconds later");
        assert_eq!(flood(&mut words, round + 9 * 3_600_000 * MS, 400, 0, false), 60);
        assert_eq!(flood(&mut words, round + 18 * 3_600_000 * MS, 400, 0, false), 60);
    }

    #[test]
    fn rates_are_what_they_say() {
        assert_eq!(Rate::new(0, 0), Rate { cost: 61_035, limit: 61_035 });
        assert_eq!(Rate::new(MOST_PER_SECOND, 1).cost, 6);
        assert_eq!(Rate::new(1, u32::MAX).limit, LONGEST);
        assert_eq!(Rate::new(u32::MAX, 1).cost, 1);
    }
}
