//! What the seed's proxy answers and does, row by row, from the daemon as it is built: two PBXs, phones, and MariaDB
//! with Asterisk's table of users. The rows are those of the seed's routing, failover and monitoring; each is a case.

mod calls;
mod dialogs;
mod dispatch;
mod failover;
mod hygiene;
mod identity;
mod location;
mod monitoring;
mod peer;
mod registrar;
mod text;
mod workers;
mod world;
