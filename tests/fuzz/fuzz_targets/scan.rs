//! Any bytes as a datagram: what must hold holds. `cargo xtask fuzz scan` runs it.
#![no_main]

#[path = "../src/invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    invariants::hold(data);
});
