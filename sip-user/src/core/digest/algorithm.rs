//! Hashes, and what is made with them (RFC 7616 3.4.1 to 3.4.3).

use std::fmt;
use std::str::FromStr;

use md5::Md5;
use sha2::digest::{Digest, Output};
use sha2::{Sha256, Sha512_256};

use super::secret::Ha1;

/// A hash function.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Hash {
    /// MD5 (RFC 1321).
    Md5,
    /// SHA-256 (FIPS 180-4).
    Sha256,
    /// SHA-512/256 (FIPS 180-4), which is not the front half of SHA-512.
    Sha512_256,
}

impl Hash {
    /// Length of its result in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha256 | Self::Sha512_256 => 32,
        }
    }

    /// The hash of `parts`, with a colon between each two.
    pub(super) fn of(self, parts: &[&[u8]]) -> Digested {
        fn run<D: Digest>(parts: &[&[u8]]) -> Output<D> {
            let mut hasher = D::new();
            for (number, part) in parts.iter().enumerate() {
                if number != 0 {
                    hasher.update(b":");
                }
                hasher.update(part);
            }
            hasher.finalize()
        }
        match self {
            Self::Md5 => Digested::new(&run::<Md5>(parts)),
            Self::Sha256 => Digested::new(&run::<Sha256>(parts)),
            Self::Sha512_256 => Digested::new(&run::<Sha512_256>(parts)),
        }
    }
}

/// The result of a hash; zeros fill it up.
#[derive(Clone, Copy)]
pub(super) struct Digested {
    bytes: [u8; 32],
    len: usize,
}

impl Digested {
    fn new(bytes: &[u8]) -> Self {
        let mut all = [0; 32];
        for (to, from) in all.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self { bytes: all, len: bytes.len().min(32) }
    }

    /// A stored one.
    pub(super) fn of_bytes(bytes: [u8; 32], hash: Hash) -> Self {
        Self { bytes, len: hash.bytes() }
    }

    pub(super) fn bytes(self) -> [u8; 32] {
        self.bytes
    }

    pub(super) fn hex(self) -> Hex {
        let mut digits = [0; 64];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.bytes) {
            for (digit, half) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
                *digit = if half < 10 { b'0' + half } else { b'a' + half - 10 };
            }
        }
        Hex { digits, len: 2 * self.len }
    }
}

/// A hash in lower-case hexadecimal digits, as it goes into the next one.
#[derive(Clone, Copy)]
pub(super) struct Hex {
    digits: [u8; 64],
    len: usize,
}

impl Hex {
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.digits.get(..self.len).unwrap_or_default()
    }

    pub(super) fn as_str(&self) -> &str {
        // Only digits are written into it.
        str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

/// What the parameter `algorithm` names (RFC 7616 6.1).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Algorithm {
    /// The hash.
    pub hash: Hash,
    /// Whether nonce and cnonce go into HA1 (`-sess`).
    pub session: bool,
}

impl Algorithm {
    /// MD5: what is meant where none is named, and all that most phones know.
    pub const MD5: Self = Self { hash: Hash::Md5, session: false };
    /// MD5-sess.
    pub const MD5_SESS: Self = Self { hash: Hash::Md5, session: true };
    /// SHA-256.
    pub const SHA_256: Self = Self { hash: Hash::Sha256, session: false };
    /// SHA-256-sess.
    pub const SHA_256_SESS: Self = Self { hash: Hash::Sha256, session: true };
    /// SHA-512-256.
    pub const SHA_512_256: Self = Self { hash: Hash::Sha512_256, session: false };
    /// SHA-512-256-sess.
    pub const SHA_512_256_SESS: Self = Self { hash: Hash::Sha512_256, session: true };

    /// All that there are here.
    pub const ALL: [Self; 6] = [
        Self::MD5,
        Self::MD5_SESS,
        Self::SHA_256,
        Self::SHA_256_SESS,
        Self::SHA_512_256,
        Self::SHA_512_256_SESS,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match (self.hash, self.session) {
            (Hash::Md5, false) => "MD5",
            (Hash::Md5, true) => "MD5-sess",
            (Hash::Sha256, false) => "SHA-256",
            (Hash::Sha256, true) => "SHA-256-sess",
            (Hash::Sha512_256, false) => "SHA-512-256",
            (Hash::Sha512_256, true) => "SHA-512-256-sess",
        }
    }

    /// The response (RFC 7616 3.4.1) of who knows `ha1`, which is one of this hash.
    pub(super) fn response(self, ha1: &Ha1, input: &Input<'_>) -> Hex {
        let nonce = input.nonce.as_bytes();
        let cnonce = input.cnonce.as_bytes();
        let mut ha1 = ha1.digested().hex();
        if self.session {
            ha1 = self.hash.of(&[ha1.as_bytes(), nonce, cnonce]).hex();
        }
        let ha2 = self.hash.of(&[input.method.as_bytes(), input.uri.as_bytes()]).hex();
        let (ha1, ha2) = (ha1.as_bytes(), ha2.as_bytes());
        match input.nc {
            Some(nc) => self.hash.of(&[ha1, nonce, nc.as_bytes(), cnonce, b"auth", ha2]),
            None => self.hash.of(&[ha1, nonce, ha2]),
        }
        .hex()
    }
}

/// What goes into a response beside the secret. All texts without quotes and escapes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a> {
    pub(super) nonce: &'a str,
    /// The eight digits of nc with `qop=auth`; none without qop.
    pub(super) nc: Option<&'a str>,
    /// Empty where there is none.
    pub(super) cnonce: &'a str,
    pub(super) method: &'a str,
    pub(super) uri: &'a str,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No [`Algorithm`] has this name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UnknownAlgorithm;

impl fmt::Display for UnknownAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an algorithm is one of")?;
        for (number, algorithm) in Algorithm::ALL.into_iter().enumerate() {
            write!(f, "{} {algorithm}", if number == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl std::error::Error for UnknownAlgorithm {}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    /// By its name; case does not matter.
    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        let mut all = Self::ALL.into_iter();
        all.find(|one| one.name().eq_ignore_ascii_case(name)).ok_or(UnknownAlgorithm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(hash: Hash, text: &str) -> String {
        hash.of(&[text.as_bytes()]).hex().as_str().to_owned()
    }

    #[test]
    fn the_hashes_are_those() {
        // RFC 1321 A.5, FIPS 180-4.
        assert_eq!(hex(Hash::Md5, "abc"), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(
            hex(Hash::Sha256, "abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            hex(Hash::Sha512_256, "abc"),
            "53048e2681941ef99b2e29b76b4c7dabe4c2d0c634fc6d46e0e2f13107e7af23"
        );
        // The user hash of RFC 7616 3.9.2. What is printed there is the front half of SHA-512; this is
        // what SHA-512/256 makes of it.
        assert_eq!(
            hex(Hash::Sha512_256, "Jäsøn Doe:api@example.org"),
            "793263caabb707a56211940d90411ea4a575adeccb7e360aeb624ed06ece9b0b"
        );
    }

    #[test]
    fn names() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.name().parse(), Ok(algorithm));
            assert_eq!(algorithm.name().to_lowercase().parse(), Ok(algorithm));
        }
        for name in ["", "SHA", "AKAv1-MD5", "MD5 ", "SHA-512"] {
            assert_eq!(name.parse::<Algorithm>(), Err(UnknownAlgorithm), "{name}");
        }
        assert_eq!(
            UnknownAlgorithm.to_string(),
            "an algorithm is one of MD5, MD5-sess, SHA-256, SHA-256-sess, SHA-512-256, SHA-512-256-sess"
        );
    }

    /// Examples of RFC 2617 3.5, RFC 7616 3.9.1, and RFC 2069 2.4 with its erratum.
    #[test]
    fn responses_of_the_rfcs() {
        let mut input = Input {
            nonce: "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
            nc: Some("00000001"),
            cnonce: "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
            method: "GET",
            uri: "/dir/index.html",
        };
        let ha1 = |hash| Ha1::new(hash, "Mufasa", "http-auth@example.org", "Circle of Life");
        assert_eq!(
            Algorithm::MD5.response(&ha1(Hash::Md5), &input).as_str(),
            "8ca523f5e9506fed4657c9700eebdbec"
        );
        assert_eq!(
            Algorithm::SHA_256.response(&ha1(Hash::Sha256), &input).as_str(),
            "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"
        );
        input.nonce = "dcd98b7102dd2f0e8b11d0f600bfb0c093";
        input.cnonce = "0a4f113b";
        let ha1 = Ha1::new(Hash::Md5, "Mufasa", "testrealm@host.com", "Circle Of Life");
        assert_eq!(
            Algorithm::MD5.response(&ha1, &input).as_str(),
            "6629fae49393a05397450978507c4ef1"
        );
        input.nc = None;
        let ha1 = Ha1::new(Hash::Md5, "Mufasa", "testrealm@host.com", "CircleOfLife");
        assert_eq!(
            Algorithm::MD5.response(&ha1, &input).as_str(),
            "1949323746fe6a43ef61f9606e7febea"
        );
    }

    /// RFC 8760 prints no values. These were made with Python's hashlib.
    #[test]
    fn responses_of_all_algorithms() {
        let input = Input {
            nonce: "abcdef",
            nc: Some("00000001"),
            cnonce: "0123",
            method: "REGISTER",
            uri: "sip:example.com",
        };
        let with_qop = [
            "37be73834640c730a9a7e1e94b5043e6",
            "9c88e0531dc010bf538ac96154917b81",
            "b192cda88869a3c2307036f87083fb6bc11041dac82005bfe55002c9ccaa7540",
            "7b33706701b565b22ca99759b88a7bbb8e9e176bc400f00f6107199494cc0fec",
            "a8a944634b1b848bb1519c2ee637420f1a9bc760573164217226c9ec65b3ab65",
            "9fecaa6365274720f6ab67750f4b178bbfc0088b3a1d1c9f9c5a49077c0253d1",
        ];
        let without = [
            (Algorithm::MD5, "a78abdd5e960b1ad429a41df9ce15386"),
            (
                Algorithm::SHA_256,
                "26bbe9ffa85e975d48a53686750d117e9678b739c6063753c963bb6e1d7700b4",
            ),
            (
                Algorithm::SHA_512_256,
                "d293c728145aa61ec7011ce7e9991151cd670a320f64f6e5227a3a01f9703037",
            ),
        ];
        let ha1 = |algorithm: Algorithm| Ha1::new(algorithm.hash, "alice", "example.com", "secret");
        for (algorithm, want) in Algorithm::ALL.into_iter().zip(with_qop) {
            assert_eq!(algorithm.response(&ha1(algorithm), &input).as_str(), want, "{algorithm}");
        }
        for (algorithm, want) in without {
            let input = Input { nc: None, cnonce: "", ..input };
            assert_eq!(algorithm.response(&ha1(algorithm), &input).as_str(), want, "{algorithm}");
        }
    }
}
