//! What operators say to a running daemon, and how it is said: one JSON object on a line each way. And what
//! the daemon tells to who watches it, over HTTP.

pub mod client;
pub mod http;
pub mod human;
pub mod metrics;
pub mod protocol;
pub mod server;
pub mod status;
