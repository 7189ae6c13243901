//! sipline's daemon and its control command.
//!
//! [`mod@core`] decides: bytes and an `Instant` in, commands out. [`io`] moves datagrams, [`fastpath`] feeds
//! the kernel half, [`control`] talks to operators, [`run`] wires them together, and [`cli`] is the command. [`import`]
//! reads what other proxies have.

pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod fastpath;
pub mod import;
pub mod io;
pub mod run;
pub mod store;
