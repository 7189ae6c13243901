//! SIP as sipline's XDP program sees it: one source, compiled for BPF and for the host.
//!
//! Nothing here allocates, panics, does input or output, or reads a clock. The XDP program
//! (`src/main.rs`) and the daemon share all of it, so that both answer alike.
#![no_std]

pub mod reason;
pub mod tables;

pub use reason::Reason;
