//! Which transaction a message belongs to (RFC 3261 17.1.3, 17.2.3).
//!
//! What tells transactions apart is kept as a keyed hash of 128 bits, so that each costs the same room, however
//! long a branch or a Call-ID is, and nobody can choose where it falls in the table.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use sip_ebpf::cookie;
use sip_ebpf::message::{Error, Host, Message, Via};
use sip_ebpf::scan::Index;
use sip_ebpf::siphash::siphash_word;
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::core::put::Put;

/// Hexadecimal digits of a branch of ours.
const DIGITS: usize = 16;
/// Stands before them. Without it the branch would be that of a probe ([`crate::core::probe::Token`]).
const MARK: u8 = b't';
/// Ends them, if the transaction user has put something behind.
const SEPARATOR: u8 = b'.';

/// The branch of a client transaction (8.1.1.7): a keyed hash of a number that is used once.
///
/// It reads `z9hG4bKsldt` and 16 hexadecimal digits. A proxy may put a dot and more behind, what it detects
/// loops by for example (16.6 step 8): that is its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Branch(u64);

impl Branch {
    pub(super) fn new(key: [u64; 2], number: u64) -> Self {
        Self(siphash_word([key[0], key[1] ^ u64::from(MARK)], number))
    }

    /// The branch with the number of the worker whose transaction it is.
    pub(super) fn of_worker(self, worker: u8) -> Self {
        Self(self.0 & !0xff | u64::from(worker))
    }

    /// The number of the worker whose transaction it is: the last two digits.
    pub fn worker(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// Reads a branch of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes().strip_prefix(cookie::DAEMON)?.strip_prefix(&[MARK])?;
        let (digits, rest) = text.split_at_checked(DIGITS)?;
        if !matches!(rest.first(), None | Some(&SEPARATOR)) {
            return None;
        }
        let number = digits.iter().try_fold(0, |number, digit| {
            Some(number << 4 | u64::from(char::from(*digit).to_digit(16)?))
        });
        number.map(Self)
    }
}

impl Branch {
    /// Its text, with room for what stands behind.
    pub fn text(self) -> String {
        // The kernel passes responses with such a branch up.
        let start = str::from_utf8(cookie::DAEMON).unwrap_or_default();
        let mut text = String::with_capacity(48);
        text.text(start);
        text.ascii(MARK);
        text.hex(self.0, DIGITS as u32);
        text
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// What a transaction is found by.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key(u64, u64);

impl Key {
    /// The branch of a client transaction's key.
    pub(super) fn branch(self) -> Branch {
        Branch(self.0)
    }
}

/// Finds by [`Key`]. A key is a hash already.
pub(super) type KeyHasher = BuildHasherDefault<Fold>;

/// See [`KeyHasher`].
#[derive(Debug, Default)]
pub(super) struct Fold(u64);

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = self.0.rotate_left(5) ^ word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What a request tells of its server transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    /// The transaction that it repeats, or makes.
    pub(super) own: Key,
    /// Of a CANCEL and an ACK: the INVITE that it is about.
    pub(super) invite: Key,
    /// Without the magic cookie (17.2.3, rules of RFC 2543).
    pub(super) legacy: Option<Legacy>,
}

/// What matters besides the key where there is no magic cookie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Legacy {
    /// Of an ACK: the INVITE, if that had no To tag.
    pub(super) invite_without_tag: Key,
    /// The To tag: of an ACK it must be that of the response.
    pub(super) to_tag: u64,
}

/// The key of a client transaction (17.1.3).
pub(super) fn client(key: [u64; 2], branch: Branch, method: &str) -> Key {
    let mut hash = hasher(key, b'c');
    field(&mut hash, method.as_bytes());
    Key(branch.0, hash.finish())
}

/// Reads what 17.2.3 compares. The INVITE of an ACK or CANCEL has their top Via, Call-ID and so on, and
/// another method only.
pub(super) fn server(key: [u64; 2], message: &Message<'_>) -> Result<Identity, Error> {
    let via = message.top_via()?;
    let method = message.method_name()?;
    if via.is_unique() {
        let of = |method: &str| {
            let mut hash = hasher(key, b's');
            field(&mut hash, via.branch.unwrap_or_default().as_bytes());
            sent_by(&mut hash, &via);
            field(&mut hash, method.as_bytes());
            finish(&hash)
        };
        let own = of(method);
        // Others are about themselves.
        let invite = if matches!(method, "ACK" | "CANCEL") { of("INVITE") } else { own };
        return Ok(Identity { own, invite, legacy: None });
    }
    let tag = message.to()?.tag().unwrap_or_default();
    let mut common = hasher(key, b'l');
    field(&mut common, message.request_uri_bytes());
    field(&mut common, message.from()?.tag().unwrap_or_default().as_bytes());
    field(&mut common, message.call_id()?.as_bytes());
    common.write_u32(message.cseq()?.number);
    sent_by(&mut common, &via);
    field(&mut common, via.transport.to_ascii_uppercase().as_bytes());
    for param in via.params {
        field(&mut common, param.name.to_ascii_lowercase().as_bytes());
        field(&mut common, param.value.unwrap_or_default());
    }
    let of = |method: &str, tag: &str| {
        let mut hash = common;
        field(&mut hash, method.as_bytes());
        field(&mut hash, tag.as_bytes());
        finish(&hash)
    };
    let legacy = Legacy { invite_without_tag: of("INVITE", ""), to_tag: to_tag(key, tag) };
    Ok(Identity { own: of(method, tag), invite: of("INVITE", tag), legacy: Some(legacy) })
}

/// The To tag of a response, as [`Legacy`] keeps it.
pub(super) fn to_tag_of(key: [u64; 2], index: &mut Index, response: &[u8]) -> Option<u64> {
    let response = Message::parse(response, index).ok()?;
    Some(to_tag(key, response.to().ok()?.tag().unwrap_or_default()))
}

fn to_tag(key: [u64; 2], tag: &str) -> u64 {
    let mut hash = hasher(key, b't');
    field(&mut hash, tag.as_bytes());
    hash.finish()
}

/// Each purpose has hashes of its own.
fn hasher(key: [u64; 2], purpose: u8) -> SipHasher13 {
    let mut hash = SipHasher13::new_with_keys(key[0], key[1]);
    hash.write_u8(purpose);
    hash
}

/// With its length, so that where one ends and the next begins makes a difference.
fn field(hash: &mut SipHasher13, bytes: &[u8]) {
    hash.write_u64(bytes.len() as u64);
    hash.write(bytes);
}

/// Host and port; a missing port is the default one (18.1.1).
fn sent_by(hash: &mut SipHasher13, via: &Via<'_>) {
    match via.host {
        Host::V4(address) => field(hash, &address.octets()),
        Host::V6(address) => field(hash, &address.octets()),
        Host::Name(name) => {
            hash.write_u64(name.len() as u64);
            name.bytes().for_each(|byte| hash.write_u8(byte.to_ascii_lowercase()));
        }
    }
    let default = if via.transport.eq_ignore_ascii_case("TLS") { 5061 } else { 5060 };
    hash.write_u16(via.port.unwrap_or(default));
}

fn finish(hash: &SipHasher13) -> Key {
    let hash = hash.finish128();
    Key(hash.h1, hash.h2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::probe::Token;

    #[test]
    fn a_branch_comes_back() {
        let branch = Branch::new([1, 2], 3);
        let text = branch.to_string();
        assert_eq!(text.len(), "z9hG4bKsldt".len() + 16);
        assert!(text.starts_with("z9hG4bKsldt"));
        assert_eq!(Branch::parse(&text), Some(branch));
        assert_eq!(Branch::parse(&format!("{text}.0123")), Some(branch));
        assert_ne!(Branch::new([1, 2], 4), branch);
        assert_ne!(Branch::new([1, 3], 3), branch);
        for other in [
            "",
            "z9hG4bKsldt",
            "z9hG4bKsldt+123456789abcdef",
            "z9hG4bKsldt0123456789abcdefé",
            "z9hG4bKsldt0123456789abcde",
            "z9hG4bKsldt0123456789abcdef0",
            "z9hG4bKsldx0123456789abcdef",
            "z9hG4bKslkt0123456789abcdef",
        ] {
            assert_eq!(Branch::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_branch_names_its_worker() {
        let branch = Branch::new([1, 2], 3);
        let (one, other) = (branch.of_worker(0), branch.of_worker(63));
        assert_eq!((one.worker(), other.worker()), (0, 63));
        assert_eq!(Branch::parse(&other.to_string()).map(Branch::worker), Some(63));
        assert_ne!(one, other);
    }

    #[test]
    fn a_branch_is_no_probes() {
        let branch = Branch::new([1, 2], 3).to_string();
        assert_eq!(Token::from_branch(branch.as_bytes()), None);
        assert_eq!(Token::from_branch(format!("{branch}.1").as_bytes()), None);
        assert_eq!(Branch::parse(&Token(0x0123_4567_89ab_cdef).branch()), None);
    }
}
