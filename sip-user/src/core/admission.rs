//! What is let in: new work while there is room for it, and calls for a PBX no faster than it wants them.
//!
//! Overload is shed at the door, while an answer is still cheap, and the least harmful first: a REGISTER comes
//! again, a call is lost, an emergency call must not be. What belongs to a call that goes on does not come by
//! here: it needs no memory. Which PBX a call goes to, and which of them has room, is the dispatcher's to say
//! ([`super::dispatcher::Dispatcher::place`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sip_ebpf::message::{Message, Scheme, Uri};

use super::moment::Moment;

/// What is told to who is turned away: at least this, and up to twice as much, so that not all come back at once.
const RETRY_AFTER: u32 = 5;
/// The number that is taken for an emergency wherever it is dialled (ETSI TS 102 164).
const EMERGENCY: &str = "112";

/// What a request asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A REGISTER, or another request that is no call: until nine tenths of the room are taken.
    Other,
    /// An INVITE: until nineteen twentieths are taken.
    Call,
    /// A call for help: while there is any room.
    Emergency,
}

impl Kind {
    /// Of an INVITE to this Request-URI.
    pub fn of_invite(uri: &Uri<'_>) -> Self {
        let is_emergency = match uri.scheme {
            // RFC 5031: `urn:service:sos` and what is below it.
            Scheme::Other(scheme) if scheme.eq_ignore_ascii_case("urn") => {
                let text = uri.text.to_ascii_lowercase();
                let service = text.strip_prefix("urn:service:sos");
                service.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            }
            Scheme::Tel => uri.text.split([':', ';']).nth(1) == Some(EMERGENCY),
            _ => uri.user == Some(EMERGENCY),
        };
        if is_emergency { Self::Emergency } else { Self::Call }
    }
}

/// No room: the answer is 503 with this Retry-After, in seconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shed {
    /// In seconds.
    pub retry_after: u32,
}

/// The door.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    most: usize,
    shed: u64,
}

impl Admission {
    /// `most` transactions are the room that there is (`dispatch.max_transactions`).
    pub fn new(most: usize) -> Self {
        Self { most, shed: 0 }
    }

    /// The room of a new configuration.
    pub fn reload(&mut self, most: usize) {
        self.most = most;
    }

    /// Fewer transactions than this leave room for it.
    pub fn room(&self, kind: Kind) -> usize {
        match kind {
            Kind::Other => self.most - self.most / 10,
            Kind::Call => self.most - self.most / 20,
            Kind::Emergency => self.most,
        }
    }

    /// A request that starts something has come, and there are so many transactions.
    pub fn admit(&mut self, kind: Kind, transactions: usize) -> Result<(), Shed> {
        if transactions < self.room(kind) {
            return Ok(());
        }
        // One after another, which is as good as by chance.
        let more = (self.shed % u64::from(RETRY_AFTER + 1)) as u32;
        self.shed += 1;
        Err(Shed { retry_after: RETRY_AFTER + more })
    }

    /// How many were turned away so far.
    pub fn shed(&self) -> u64 {
        self.shed
    }
}

/// What a response says in Retry-After (RFC 3261 20.33): `18000;duration=3600 (in a meeting)` are five hours.
pub fn retry_after(response: &Message<'_>) -> Option<Duration> {
    let mut headers = response.headers();
    let header = headers.find(|header| header.name.eq_ignore_ascii_case(b"Retry-After"))?;
    let digits = header.value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = header.value.split_at_checked(digits)?;
    if digits.is_empty() || !matches!(rest.first(), None | Some(b' ' | b'\t' | b';' | b'(')) {
        return None;
    }
    let add = |sum: u32, digit: &u8| sum.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
    Some(Duration::from_secs(digits.iter().fold(0, add).into()))
}

/// So many in a second, and as many at once (a token bucket, as its generic cell rate algorithm). A limit of 0 is
/// none.
///
/// A clone is the same bucket.
#[derive(Clone, Debug, Default)]
pub(super) struct Rate {
    /// When all that were taken so far are made good: a [`Moment`], or 0.
    free: Arc<AtomicU64>,
}

impl Rate {
    /// How long until one more may be taken.
    pub(super) fn wait(&self, now: Instant, per_second: u32) -> Duration {
        wait(self.free.load(Ordering::Relaxed), now, per_second)
    }

    /// Whether one more may be taken.
    pub(super) fn has_room(&self, now: Instant, per_second: u32) -> bool {
        self.wait(now, per_second).is_zero()
    }

    /// Takes one, if one may be taken.
    pub(super) fn take(&self, now: Instant, per_second: u32) -> bool {
        let taken = |free: u64| {
            let is_free = wait(free, now, per_second).is_zero();
            is_free.then(|| match each(per_second) {
                Some(each) => {
                    let from =
                        Moment::of_bits(free).map_or(now, |free| Instant::from(free).max(now));
                    Moment::from(from + each).bits()
                }
                None => 0,
            })
        };
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }
}

fn wait(free: u64, now: Instant, per_second: u32) -> Duration {
    let free = Moment::of_bits(free).map(Instant::from);
    let (Some(free), Some(each)) = (free, each(per_second)) else { return Duration::ZERO };
    let taken = free.saturating_duration_since(now);
    taken.saturating_sub(Duration::from_secs(1) - each)
}

/// What one costs; at most a second.
fn each(per_second: u32) -> Option<Duration> {
    Duration::from_secs(1).checked_div(per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_harmful_is_shed_first() {
        let mut door = Admission::new(100);
        for (kind, room) in [(Kind::Other, 90), (Kind::Call, 95), (Kind::Emergency, 100)] {
            assert_eq!(door.admit(kind, room - 1), Ok(()));
            assert!(door.admit(kind, room).is_err());
        }
        let told: Vec<_> = (0..12).map(|_| door.admit(Kind::Call, 100).unwrap_err()).collect();
        assert!(told.iter().all(|shed| (5..=10).contains(&shed.retry_after)));
        assert!(
            told[..6].iter().all(|shed| told.iter().filter(|other| *other == shed).count() == 2)
        );
        assert_eq!(door.shed(), 15);
        door.reload(1000);
        assert_eq!(door.admit(Kind::Other, 100), Ok(()));
    }

    #[test]
    fn emergencies() {
        let of = |text: &str| Kind::of_invite(&Uri::parse(text).unwrap());
        for text in
            ["urn:service:sos", "urn:service:SOS.fire", "sip:112@x", "tel:112", "tel:112;a=b"]
        {
            assert_eq!(of(text), Kind::Emergency, "{text}");
        }
        for text in ["sip:1123@x", "sip:112.example", "urn:service:sosx", "urn:other", "tel:1120"] {
            assert_eq!(of(text), Kind::Call, "{text}");
        }
    }

    #[test]
    fn what_retry_after_says() {
        let of = |header: &str| {
            let text = format!(
                "SIP/2.0 503 Service Unavailable\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\n\
                 To: <sip:a@b>;tag=2\r\nCall-ID: c\r\nCSeq: 1 INVITE\r\n{header}\r\n"
            );
            let mut index = sip_ebpf::scan::Index::new();
            let message = Message::parse(text.as_bytes(), &mut index).unwrap();
            retry_after(&message).map(|after| after.as_secs())
        };
        assert_eq!(of(""), None);
        assert_eq!(of("retry-after :  20\r\n"), Some(20));
        assert_eq!(of("Retry-After: 18000;duration=3600\r\n"), Some(18_000));
        assert_eq!(of("Retry-After: 120 (I'm in a meeting)\r\n"), Some(120));
        assert_eq!(of("Retry-After: 99999999999999\r\n"), Some(u64::from(u32::MAX)));
        for bad in ["", "-1", "1.5", "soon", ";1"] {
            assert_eq!(of(&format!("Retry-After: {bad}\r\n")), None, "{bad}");
        }
    }

    #[test]
    fn a_rate_holds_over_time_and_lets_bursts_through() {
        let start = Instant::now();
        let rate = Rate::default();
        let take = |now: Instant, per_second: u32| {
            let room = rate.has_room(now, per_second);
            assert_eq!(rate.take(now, per_second), room);
            room
        };
        // Ten at once, and then one each tenth of a second.
        assert_eq!((0..20).filter(|_| take(start, 10)).count(), 10);
        let times = (1..=1000).map(|n| start + Duration::from_millis(n * 10));
        assert_eq!(times.filter(|now| take(*now, 10)).count(), 100);
        // The limit goes, and comes back.
        let later = start + Duration::from_secs(20);
        assert!((0..1000).all(|_| take(later, 0)));
        assert!(take(later, 1) && !take(later, 1));
        assert_eq!(rate.wait(later, 1), Duration::from_secs(1));
        let fast = Rate::default();
        assert!(fast.clone().take(later, u32::MAX));
        assert!(fast.has_room(later, u32::MAX));
    }
}
