//! What operators say to a running daemon, and how it is said: one JSON object on a line each way.

pub mod client;
pub mod human;
pub mod protocol;
pub mod server;
pub mod status;
