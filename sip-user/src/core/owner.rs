//! Whose a message is where several workers serve: each user, with all that is known of him, belongs to one of them.
//!
//! | message | belongs to the worker of |
//! | --- | --- |
//! | REGISTER, PUBLISH | the user in To: his contacts and his secrets are there |
//! | INVITE, CANCEL and ACK of a phone | the user in From, who is asked who he is |
//! | all else that needs memory | the user in the Request-URI, whose contacts are wanted |
//! | a call that was steered without memory, from its INVITE to its BYE | the Call-ID |
//! | a response to a request of ours | who has sent that, by the branch |
//! | a response to a probe | the first one, who probes |
//!
//! So what belongs together is together: an INVITE with its CANCEL and the ACK of its failure, a registration with its
//! refreshes and with the calls to it. A request that only passes is whoever's who receives it, and so is one whose user
//! cannot be read.
//!
//! Counts of nonces are kept by worker too. Who registers, publishes or calls is asked who he is by his own worker, so a
//! request that was heard cannot be repeated to another one. Other requests of phones are asked by the worker of the user
//! whom they are for, and their credentials name that user in their URI: only if that is not looked at
//! (`auth.require_uri`) may one be repeated to a user of another worker, once.

use std::net::SocketAddr;
use std::time::Instant;

use sip_ebpf::message::Message;
use sip_ebpf::report::Report;
use sip_ebpf::scan::Method;
use sip_ebpf::siphash::siphash;
use sip_ebpf::text::Text;

use super::probe::Token;
use super::registrar::normal;
use super::transaction::Branch;

/// The most workers.
pub const MAX_WORKERS: usize = 64;

/// One worker among others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Worker {
    number: u8,
    count: u8,
    key: [u64; 2],
}

impl Worker {
    /// The only one.
    pub const ALONE: Self = Self { number: 0, count: 1, key: [0; 2] };

    /// The one of this number, from 0. `key` is secret and the same for all, or strangers could choose whom they keep
    /// busy.
    pub fn new(number: usize, count: usize, key: [u64; 2]) -> Self {
        let count = count.clamp(1, MAX_WORKERS);
        // At most MAX_WORKERS.
        Self { number: number.min(count - 1) as u8, count: count as u8, key }
    }

    /// Which one it is.
    pub fn number(self) -> usize {
        usize::from(self.number)
    }

    /// How many there are.
    pub fn count(self) -> usize {
        usize::from(self.count)
    }

    /// Whether it is the only one.
    pub fn is_alone(self) -> bool {
        self.count == 1
    }

    /// Whose a user is, whatever his domain: PBXs are told of him without it. Names that are equal (19.1.4) are the
    /// same worker's.
    pub fn of_user(self, user: &str) -> usize {
        let user = normal(user);
        let text = user.as_bytes();
        let (hash, _) = siphash(self.key, text, 0, Text::len(text));
        (((hash >> 32) * u64::from(self.count)) >> 32) as usize
    }

    /// Whose a request is that needs memory. None: whoever has it.
    pub fn of_request(self, message: &Message<'_>, from_pbx: bool) -> Option<usize> {
        if self.is_alone() {
            return None;
        }
        let uri = match message.method() {
            Method::Register | Method::Publish => message.to().ok()?.uri,
            Method::Invite | Method::Cancel | Method::Ack if !from_pbx => message.from().ok()?.uri,
            _ => message.request_uri().ok()?,
        };
        Some(self.of_user(uri.user?))
    }

    /// Whose a call is that was steered without memory, with its record: by the keyed hash of its Call-ID, which is all
    /// that the kernel tells of it.
    pub fn of_call(self, hash: u64) -> usize {
        (((hash >> 32) * u64::from(self.count)) >> 32) as usize
    }

    /// Whose the response is whose top Via has this branch of the daemon's. None: whoever has it.
    pub fn of_branch(self, branch: &[u8]) -> Option<usize> {
        if self.is_alone() {
            return None;
        }
        if Token::from_branch(branch).is_some() {
            return Some(0);
        }
        let branch = Branch::parse(str::from_utf8(branch).ok()?)?;
        // Of a time with more workers, maybe.
        Some(usize::from(branch.worker())).filter(|number| *number < self.count())
    }
}

/// Messages for another worker, in the order in which they came: one piece of memory for all of them.
#[derive(Debug, Default)]
pub struct Parcel {
    bytes: Vec<u8>,
    items: Vec<Item>,
}

/// What is to be done with a message that was passed on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Passed {
    /// It is served.
    Message,
    /// It is a BYE, which was sent on already and ends a record. So many workers did not have that.
    Bye(u8),
    /// It is an INVITE that was steered to the PBX in this slot, at this time.
    Steered(u32, Instant),
    /// It is no message: something has become of a steered call, of which this is the hash, at this time.
    Report(u64, Instant, Report),
}

#[derive(Clone, Copy, Debug)]
struct Item {
    local: usize,
    from: SocketAddr,
    end: usize,
    what: Passed,
}

impl Parcel {
    pub(super) fn put(&mut self, local: usize, from: SocketAddr, bytes: &[u8], what: Passed) {
        self.bytes.extend_from_slice(bytes);
        self.items.push(Item { local, from, end: self.bytes.len(), what });
    }

    /// How many messages.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How much memory it takes, about.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.items.len() * size_of::<Item>()
    }

    /// The messages: which of our addresses each came to, who sent it, and what it holds.
    pub fn messages(&self) -> impl Iterator<Item = (usize, SocketAddr, &[u8], Passed)> {
        let mut start = 0;
        self.items.iter().map(move |item| {
            let bytes = self.bytes.get(start..item.end).unwrap_or_default();
            start = item.end;
            (item.local, item.from, bytes, item.what)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sip_ebpf::scan::Index;

    fn worker(number: usize) -> Worker {
        Worker::new(number, 5, [7, 9])
    }

    fn of(text: &str, from_pbx: bool) -> Option<usize> {
        let mut index = Index::new();
        worker(0).of_request(&Message::parse(text.as_bytes(), &mut index).unwrap(), from_pbx)
    }

    fn request(method: &str) -> String {
        format!(
            "{method} sip:asked@h SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\n\
             From: <sip:sender@h>;tag=1\r\nTo: <sip:called@h>\r\nCall-ID: c\r\nCSeq: 1 {method}\r\n\r\n"
        )
    }

    #[test]
    fn by_whom_a_request_is_about() {
        let user = |name| Some(worker(3).of_user(name));
        for method in ["REGISTER", "PUBLISH"] {
            assert_eq!(
                [of(&request(method), false), of(&request(method), true)],
                [user("called"); 2]
            );
        }
        for method in ["INVITE", "CANCEL", "ACK"] {
            assert_eq!(of(&request(method), false), user("sender"));
            assert_eq!(of(&request(method), true), user("asked"));
        }
        for method in ["MESSAGE", "OPTIONS", "NOTIFY", "X"] {
            assert_eq!(
                [of(&request(method), false), of(&request(method), true)],
                [user("asked"); 2]
            );
        }
        let without = request("INVITE").replace("sender@", "").replace("<sip:called", "<tel:1");
        assert_eq!(of(&without, false), None);
        assert_eq!(of(&request("REGISTER").replace("To:", "X:"), false), None);
        let mut index = Index::new();
        let text = request("REGISTER");
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        assert_eq!(Worker::ALONE.of_request(&message, false), None);
    }

    #[test]
    fn by_who_has_sent_the_request() {
        let branch = |number| format!("z9hG4bKsldt00112233445566{number:02x}.0123456789abcdef");
        assert_eq!(worker(2).of_branch(branch(4).as_bytes()), Some(4));
        assert_eq!(worker(2).of_branch(branch(5).as_bytes()), None, "there are no more");
        assert_eq!(worker(2).of_branch(Token(1).branch().as_bytes()), Some(0));
        assert_eq!(worker(2).of_branch(b"z9hG4bKother"), None);
        assert_eq!(Worker::ALONE.of_branch(branch(0).as_bytes()), None);
    }

    #[test]
    fn everybody_has_some() {
        let mut users = [0; MAX_WORKERS];
        let worker = Worker::new(99, 99, [1, 2]);
        assert_eq!((worker.number(), worker.count()), (63, 64));
        for number in 0..64_000 {
            users[worker.of_user(&format!("user{number}"))] += 1;
        }
        assert!(users.iter().all(|users| (800..1200).contains(users)), "{users:?}");
    }

    #[test]
    fn a_parcel_keeps_what_was_put_into_it() {
        let mut parcel = Parcel::default();
        assert!(parcel.is_empty());
        let from = |port| SocketAddr::from(([192, 0, 2, 1], port));
        parcel.put(0, from(1), b"one", Passed::Message);
        parcel.put(2, from(2), b"", Passed::Message);
        parcel.put(1, from(3), b"three", Passed::Bye(1));
        let all: Vec<_> = parcel.messages().collect();
        assert_eq!(parcel.len(), 3);
        assert_eq!(all[0], (0, from(1), &b"one"[..], Passed::Message));
        assert_eq!(all[1], (2, from(2), &b""[..], Passed::Message));
        assert_eq!(all[2], (1, from(3), &b"three"[..], Passed::Bye(1)));
    }

    proptest! {
        /// However a name is written, it is the same worker's.
        #[test]
        fn escapes_make_no_difference(
            name in "[a-zA-Z0-9_.!~*'()-]{1,12}",
            escaped in proptest::collection::vec(any::<bool>(), 12),
            key in any::<[u64; 2]>(),
            count in 1..=64usize,
        ) {
            let worker = Worker::new(0, count, key);
            let other: String = name.chars().zip(escaped).map(|(c, escaped)| match escaped {
                true if c.is_ascii_lowercase() => format!("%{:02x}", u32::from(c)),
                true => format!("%{:02X}", u32::from(c)),
                false => c.to_string(),
            }).collect();
            prop_assert_eq!(worker.of_user(&name), worker.of_user(&other));
            prop_assert!(worker.of_user(&name) < count);
        }
    }
}
