//! One contact of a user: as it lies in memory, and as a store writes it.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::Deref;
use std::slice;
use std::time::{Duration, Instant};

use sip_ebpf::scan::Method;

use super::super::moment::Moment;

/// What tells a [`Row`] from all others.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// User of the address-of-record, as [`super::Aor::user`] has it.
    pub user: Box<str>,
    /// Its domain, as [`super::Aor::domain`] has it.
    pub domain: Box<str>,
    /// The Contact's URI as the phone wrote it.
    pub contact: Box<str>,
    /// `+sip.instance` without its quotes (RFC 5626 4.1): `<urn:uuid:…>`.
    pub instance: Option<Box<str>>,
    /// `reg-id` (RFC 5626 4.2).
    pub reg_id: Option<NonZeroU32>,
}

/// A binding as a store has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// Whose it is and which.
    pub key: Key,
    /// Where requests to it go in place of the address in its URI: where the REGISTER of a phone came from
    /// that does not know its own address (behind a NAT), or that named its flow (`reg-id`).
    pub received: Option<SocketAddr>,
    /// Our address that the REGISTER came to; requests to the contact leave from there.
    pub local: SocketAddr,
    /// The values of Path in their order, as a Route line has them (RFC 3327).
    pub path: Option<Box<str>>,
    /// `q` in thousandths, 0 to 1000; none if the phone gave none.
    pub q: Option<u16>,
    /// When it ends. A store has no use for it: see [`Row::expires_unix`].
    pub expires: Instant,
    /// Call-ID of the REGISTER that wrote it (10.3 step 7).
    pub call_id: Box<str>,
    /// CSeq of that REGISTER, below 2^31.
    pub cseq: u32,
    /// User-Agent, cut where it is too long.
    pub user_agent: Option<Box<str>>,
    /// The methods that the phone allows.
    pub methods: Methods,
}

impl Row {
    /// When it ends, in seconds of Unix time, rounded up. `unix` is the Unix time at `now`.
    pub fn expires_unix(&self, now: Instant, unix: Duration) -> u64 {
        let left = self.expires.saturating_duration_since(now);
        let at = unix.saturating_add(left);
        at.as_secs() + u64::from(at.subsec_nanos() != 0)
    }

    /// What [`Row::expires`] is of a row that a store says to end at `expires` seconds of Unix time: `now`
    /// if that is past.
    pub fn expires_at(expires: u64, now: Instant, unix: Duration) -> Instant {
        let left = Duration::from_secs(expires).saturating_sub(unix);
        // A date that no clock reaches is none that we have written.
        now.checked_add(left).unwrap_or(now)
    }
}

/// Methods of an Allow (20.5), a bit for each [`Method`] in the order of their numbers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Methods(pub u16);

impl Methods {
    /// Whether it may be sent. A phone without Allow takes every one (20.5), and of a method that we have no
    /// number for nobody here knows.
    pub fn allow(self, method: Method) -> bool {
        self.0 == 0 || method == Method::Extension || self.0 & Self::bit(method) != 0
    }

    /// Takes a name of Allow in. One that has no number is passed over.
    pub(super) fn add(&mut self, name: &str) {
        if let Some((_, method)) = NAMES.iter().find(|(known, _)| *known == name) {
            self.0 |= Self::bit(*method);
        }
    }

    fn bit(method: Method) -> u16 {
        // There are 16 methods.
        1u16.checked_shl(method as u32).unwrap_or(0)
    }
}

const NAMES: [(&str, Method); 14] = [
    ("INVITE", Method::Invite),
    ("ACK", Method::Ack),
    ("BYE", Method::Bye),
    ("CANCEL", Method::Cancel),
    ("OPTIONS", Method::Options),
    ("REGISTER", Method::Register),
    ("PRACK", Method::Prack),
    ("UPDATE", Method::Update),
    ("INFO", Method::Info),
    ("SUBSCRIBE", Method::Subscribe),
    ("NOTIFY", Method::Notify),
    ("REFER", Method::Refer),
    ("MESSAGE", Method::Message),
    ("PUBLISH", Method::Publish),
];

/// Marks a `q` that was not given.
const NO_Q: u16 = u16::MAX;

/// A binding in memory: one piece of text for all its strings, and numbers as small as they go.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    /// User, contact, Call-ID, User-Agent, instance and Path, one behind the other.
    texts: Box<str>,
    /// Where the first five of them end.
    ends: [u16; 5],
    flow: Source,
    /// Place in the list of our addresses.
    pub(super) local: u16,
    q: u16,
    pub(super) methods: Methods,
    pub(super) cseq: u32,
    reg_id: u32,
    expires: Moment,
}

/// A flow in sixteen bytes: of an `Option<SocketAddr>` half would be for IPv6.
#[derive(Clone, Debug)]
enum Source {
    /// There is none.
    None,
    V4(Ipv4Addr, u16),
    Other(Box<SocketAddr>),
}

/// The strings and numbers of a [`Binding`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    pub(super) user: &'a str,
    pub(super) contact: &'a str,
    pub(super) call_id: &'a str,
    /// Empty if there is none, as the next two.
    pub(super) user_agent: &'a str,
    pub(super) instance: &'a str,
    pub(super) path: &'a str,
    pub(super) flow: Option<SocketAddr>,
    pub(super) local: u16,
    pub(super) q: Option<u16>,
    pub(super) methods: Methods,
    pub(super) cseq: u32,
    pub(super) reg_id: Option<NonZeroU32>,
    pub(super) expires: Instant,
}

impl Binding {
    /// None if the strings are longer than 64 KiB together, which those that were checked are not.
    pub(super) fn pack(parts: &Parts<'_>) -> Option<Self> {
        let Parts { user, contact, call_id, user_agent, instance, path, .. } = *parts;
        let strings = [user, contact, call_id, user_agent, instance, path];
        let texts = strings.concat().into_boxed_str();
        let mut ends = [0; 5];
        let mut at = 0;
        for (end, text) in ends.iter_mut().zip(strings) {
            at += text.len();
            *end = u16::try_from(at).ok()?;
        }
        Some(Self {
            texts,
            ends,
            flow: Source::from(parts.flow),
            local: parts.local,
            q: parts.q.unwrap_or(NO_Q),
            methods: parts.methods,
            cseq: parts.cseq,
            reg_id: parts.reg_id.map_or(0, NonZeroU32::get),
            expires: parts.expires.into(),
        })
    }

    /// Whose it is, as [`super::Aor::user`] has it.
    pub(super) fn user(&self) -> &str {
        self.text(0, self.ends[0])
    }

    pub(super) fn contact(&self) -> &str {
        self.text(self.ends[0], self.ends[1])
    }

    pub(super) fn call_id(&self) -> &str {
        self.text(self.ends[1], self.ends[2])
    }

    pub(super) fn user_agent(&self) -> Option<&str> {
        Some(self.text(self.ends[2], self.ends[3])).filter(|text| !text.is_empty())
    }

    pub(super) fn instance(&self) -> Option<&str> {
        Some(self.text(self.ends[3], self.ends[4])).filter(|text| !text.is_empty())
    }

    pub(super) fn path(&self) -> Option<&str> {
        self.texts.get(usize::from(self.ends[4])..).filter(|text| !text.is_empty())
    }

    pub(super) fn flow(&self) -> Option<SocketAddr> {
        match &self.flow {
            Source::None => None,
            Source::V4(ip, port) => Some((*ip, *port).into()),
            Source::Other(address) => Some(**address),
        }
    }

    pub(super) fn expires(&self) -> Instant {
        self.expires.into()
    }

    pub(super) fn q(&self) -> Option<u16> {
        (self.q != NO_Q).then_some(self.q)
    }

    pub(super) fn reg_id(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.reg_id)
    }

    pub(super) fn key(&self, domain: &str) -> Key {
        Key {
            user: self.user().into(),
            domain: domain.into(),
            contact: self.contact().into(),
            instance: self.instance().map(Into::into),
            reg_id: self.reg_id(),
        }
    }

    pub(super) fn row(&self, domain: &str, locals: &[SocketAddr]) -> Row {
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        Row {
            key: self.key(domain),
            received: self.flow(),
            local: locals.get(usize::from(self.local)).copied().unwrap_or(unspecified),
            path: self.path().map(Into::into),
            q: self.q(),
            expires: self.expires(),
            call_id: self.call_id().into(),
            cseq: self.cseq,
            user_agent: self.user_agent().map(Into::into),
            methods: self.methods,
        }
    }

    fn text(&self, at: u16, end: u16) -> &str {
        self.texts.get(usize::from(at)..usize::from(end)).unwrap_or_default()
    }
}

impl From<Option<SocketAddr>> for Source {
    fn from(flow: Option<SocketAddr>) -> Self {
        match flow {
            None => Self::None,
            Some(SocketAddr::V4(v4)) => Self::V4(*v4.ip(), v4.port()),
            Some(other) => Self::Other(Box::new(other)),
        }
    }
}

/// The contacts of a user. Most users have one, which needs no list.
#[derive(Debug)]
pub(super) enum Contacts {
    One(Binding),
    Many(Box<[Binding]>),
}

impl Contacts {
    pub(super) fn into_vec(self) -> Vec<Binding> {
        match self {
            Self::One(binding) => vec![binding],
            Self::Many(bindings) => bindings.into_vec(),
        }
    }
}

impl Default for Contacts {
    fn default() -> Self {
        Self::Many(Box::default())
    }
}

impl Deref for Contacts {
    type Target = [Binding];

    fn deref(&self) -> &[Binding] {
        match self {
            Self::One(binding) => slice::from_ref(binding),
            Self::Many(bindings) => bindings,
        }
    }
}

impl From<Vec<Binding>> for Contacts {
    fn from(mut bindings: Vec<Binding>) -> Self {
        match (bindings.len(), bindings.pop()) {
            (1, Some(binding)) => Self::One(binding),
            (_, last) => {
                bindings.extend(last);
                Self::Many(bindings.into_boxed_slice())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_is_small() {
        assert_eq!((size_of::<Binding>(), size_of::<Contacts>()), (64, 64));
    }
}
