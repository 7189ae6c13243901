//! What the proxy decides, without sockets and without a clock: bytes and an `Instant` in, commands out.

pub mod accounting;
pub mod across;
pub mod admission;
pub mod authenticator;
pub mod bans;
pub mod call_table;
pub mod canonical;
pub mod challenges;
pub mod clock;
pub mod context;
pub mod cookie;
pub mod counters;
pub mod decision;
pub mod digest;
pub mod dispatcher;
pub mod endpoints;
pub mod family;
pub mod forking;
pub mod gate;
mod moment;
pub mod owner;
pub mod probe;
pub mod proxy;
mod put;
pub mod registered;
pub mod registrar;
pub mod reply;
pub mod router;
#[cfg(test)]
mod seed;
mod shadow;
pub mod sources;
pub mod stateful;
#[cfg(test)]
mod testing;
pub mod text;
mod timers;
pub mod transaction;
pub(crate) mod view;
