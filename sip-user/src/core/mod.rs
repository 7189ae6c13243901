//! What the proxy decides, without sockets and without a clock: bytes and an `Instant` in, commands out.

pub mod dispatcher;
pub mod probe;
