//! What the proxy decides, without sockets and without a clock: bytes and an `Instant` in, commands out.

pub mod canonical;
pub mod counters;
pub mod dispatcher;
pub mod family;
pub mod probe;
pub mod proxy;
pub mod reply;
pub mod sources;
