//! SIP as sipline's XDP program sees it: one source, compiled for BPF and for the host.
//!
//! Nothing here allocates, panics, does input or output, or reads a clock. The XDP program
//! (`src/main.rs`) and the daemon share all of it, so that both answer alike.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod address;
pub mod calls;
pub mod challenge;
pub mod cookie;
pub mod edit;
pub mod gate;
pub mod hash;
pub mod header;
pub mod insert;
#[cfg(not(target_arch = "bpf"))]
pub mod message;
pub mod nonce;
pub mod qualify;
pub mod reason;
pub mod repeat;
pub mod report;
pub mod route;
pub mod scan;
pub mod siphash;
pub mod six;
pub mod tables;
pub mod text;

pub use reason::Reason;
