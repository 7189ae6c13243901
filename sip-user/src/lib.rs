//! sipline's daemon and its control command.
//!
//! [`core`] decides: bytes and an `Instant` in, commands out. [`io`] moves datagrams, [`fastpath`] feeds the
//! kernel half, [`control`] talks to operators, and [`run`] wires them together.

pub mod config;
pub mod core;
pub mod fastpath;
