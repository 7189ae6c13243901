//! Sockets. No SIP here: datagrams, and the errors that the network reports for them.

pub mod coalesce;
pub mod udp;
