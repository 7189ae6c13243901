//! What is stored of a user's secret.

use std::fmt;

use super::super::text::Text;
use super::algorithm::{Digested, Hash};

/// One stored secret of a user. A user may have several, for several algorithms.
///
/// It shows in no log: `Debug` leaves it out.
#[derive(Clone, Eq, PartialEq)]
pub enum Secret {
    /// The password, in clear text: serves every algorithm.
    Password(Text),
    /// HA1 of the plain user name: serves the algorithms of its hash.
    Ha1(Ha1),
    /// HA1 of `user@domain`, for phones that put this into `username` (Kamailio's `ha1b`).
    Ha1b(Ha1),
}

impl Secret {
    /// Whether it serves algorithms of this hash.
    pub fn serves(&self, hash: Hash) -> bool {
        match self {
            Self::Password(_) => true,
            Self::Ha1(ha1) | Self::Ha1b(ha1) => ha1.hash == hash,
        }
    }

    /// HA1 of this hash; of a password, for this user and realm.
    pub(super) fn ha1(&self, hash: Hash, username: &str, realm: &str) -> Option<Ha1> {
        match self {
            Self::Password(password) => Some(Ha1::new(hash, username, realm, password)),
            Self::Ha1(ha1) | Self::Ha1b(ha1) => (ha1.hash == hash).then_some(*ha1),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password(_) => "Password(..)",
            Self::Ha1(_) => "Ha1(..)",
            Self::Ha1b(_) => "Ha1b(..)",
        })
    }
}

/// The hash of `username:realm:password` (RFC 7616 3.4.2). Who knows it can do all that its user can, in this
/// realm.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Ha1 {
    hash: Hash,
    /// As many as the hash has; zeros follow.
    bytes: [u8; 32],
}

/// No HA1 of this hash: one has 32 hexadecimal digits for MD5, and 64 for the others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BadHa1 {
    /// The hash.
    pub hash: Hash,
}

impl Ha1 {
    /// Of a password.
    pub fn new(hash: Hash, username: &str, realm: &str, password: &str) -> Self {
        let parts = [username.as_bytes(), realm.as_bytes(), password.as_bytes()];
        Self { hash, bytes: hash.of(&parts).bytes() }
    }

    /// From hexadecimal digits, in either case.
    pub fn from_hex(hash: Hash, text: &str) -> Result<Self, BadHa1> {
        let mut bytes = [0; 32];
        if text.len() != 2 * hash.bytes() {
            return Err(BadHa1 { hash });
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            for digit in pair {
                let digit = char::from(*digit).to_digit(16).ok_or(BadHa1 { hash })?;
                *byte = *byte << 4 | digit as u8;
            }
        }
        Ok(Self { hash, bytes })
    }

    /// Its hexadecimal digits, to be stored.
    pub fn hex(&self) -> String {
        self.digested().hex().as_str().to_owned()
    }

    /// Its hash.
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    pub(super) fn digested(&self) -> Digested {
        Digested::of_bytes(self.bytes, self.hash)
    }
}

impl fmt::Display for BadHa1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HA1 of {:?} has {} hexadecimal digits", self.hash, 2 * self.hash.bytes())
    }
}

impl std::error::Error for BadHa1 {}

impl fmt::Debug for Ha1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ha1(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ha1_from_its_digits() {
        // printf '%s' 'alice:example.com:secret' | md5sum
        let made = Ha1::new(Hash::Md5, "alice", "example.com", "secret");
        let digits = made.hex();
        assert_eq!(digits, "b1726872c344b6dc8365b774f8fd6412");
        for hash in [Hash::Md5, Hash::Sha256, Hash::Sha512_256] {
            let made = Ha1::new(hash, "alice", "example.com", "secret");
            let digits = made.hex();
            assert_eq!(Ha1::from_hex(hash, &digits), Ok(made));
            assert_eq!(Ha1::from_hex(hash, &digits.to_uppercase()), Ok(made));
            let bad = Err(BadHa1 { hash });
            assert_eq!(Ha1::from_hex(hash, &digits[1..]), bad);
            assert_eq!(Ha1::from_hex(hash, &format!("{}g", &digits[1..])), bad);
            assert_eq!(Ha1::from_hex(hash, &format!("+{}", &digits[1..])), bad);
            assert_eq!(Ha1::from_hex(hash, ""), bad);
        }
        assert_eq!(BadHa1 { hash: Hash::Md5 }.to_string(), "HA1 of Md5 has 32 hexadecimal digits");
    }

    #[test]
    fn nothing_shows_in_a_log() {
        let ha1 = Ha1::new(Hash::Md5, "alice", "example.com", "secret");
        let all = [Secret::Password("secret".into()), Secret::Ha1(ha1), Secret::Ha1b(ha1)];
        assert_eq!(format!("{all:?} {ha1:?}"), "[Password(..), Ha1(..), Ha1b(..)] Ha1(..)");
    }
}
