//! The lab that tests and the demo share, and what they need of the kernel.
//!
//! The tests themselves are in `tests/tests/`; the scenarios that SIPp plays are in `tests/lab/`.

#[cfg(feature = "fixtures")]
pub mod fixtures;
pub mod kernel;
pub mod lab;
