//! Digest authentication (RFC 3261 22, RFC 7616, RFC 8760), both sides of it.
//!
//! **Who asks** is a [`Challenger`]. It has a key and no memory: its nonces carry when they were made, and a
//! signature, so any node with the same key takes them. The memory that the counts of a client need
//! ([`NonceCounts`]) is apart, has a bound, and is written to by requests with a right answer only. A request
//! passes in two steps, because the secrets of a user may have to be fetched in between:
//!
//! 1. [`Challenger::claim`] reads the credentials and finds those that answer a nonce of ours: a [`Claim`].
//!    All that can be refused without the secrets is refused here.
//! 2. [`Challenger::verify`] holds a claim against the secrets. No secrets, for a user who does not exist,
//!    cost the same and end the same as a wrong password.
//!
//! A step that fails gives a [`Refusal`], which says how it is answered ([`Refusal::answer`]); challenges are
//! made by [`Challenger::challenge`]. ACK and CANCEL are never challenged: they cannot be sent anew with
//! another CSeq (22.1).
//!
//! **Who is asked** reads a [`Challenge`] and answers with a [`Session`].
//!
//! Time is a parameter, in seconds of Unix time, because nonces are read by other nodes. It should run evenly:
//! take the clock once at the start, and add the `Instant`'s progress.

mod algorithm;
mod client;
mod credentials;
mod nonce;
mod params;
mod replay;
mod secret;
mod server;
#[cfg(test)]
mod tests;
mod uri;

pub use algorithm::{Algorithm, Hash, UnknownAlgorithm};
pub use client::{Challenge, Session, Unanswerable};
pub use credentials::Credentials;
pub use params::Malformed;
pub use replay::NonceCounts;
pub use secret::{BadHa1, Ha1, Secret};
pub use server::{
    Answer, BadSettings, Challenger, Claim, MIN_KEY, Refusal, Request, Settings, Subject,
};
pub use uri::same_resource;

/// In which role somebody asks for credentials: that decides the status and the names of the headers.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Role {
    /// A user agent server or a registrar (22.2): 401.
    UserAgent,
    /// A proxy (22.3): 407.
    Proxy,
}

impl Role {
    /// The status code of a challenge.
    pub const fn status(self) -> u16 {
        match self {
            Self::UserAgent => 401,
            Self::Proxy => 407,
        }
    }

    /// The reason phrase of a challenge (21.4.2, 21.4.8).
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::UserAgent => "Unauthorized",
            Self::Proxy => "Proxy Authentication Required",
        }
    }

    /// The header of a challenge.
    pub const fn challenge_header(self) -> &'static str {
        match self {
            Self::UserAgent => "WWW-Authenticate",
            Self::Proxy => "Proxy-Authenticate",
        }
    }

    /// The header of the credentials that answer it.
    pub const fn credentials_header(self) -> &'static str {
        match self {
            Self::UserAgent => "Authorization",
            Self::Proxy => "Proxy-Authorization",
        }
    }
}
