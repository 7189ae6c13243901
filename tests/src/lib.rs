//! The lab that tests and the demo share, and what they need of the kernel.
//!
//! The tests themselves are in `tests/tests/`; the scenarios that SIPp plays are in `tests/lab/`.

#[cfg(feature = "fixtures")]
pub mod fixtures;
pub mod kernel;
pub mod lab;

/// Makes a test of each function, for each mode that XDP can have.
#[macro_export]
macro_rules! in_each_mode {
    ($($test:ident)+) => {
        mod native { $(#[test] fn $test() { super::$test($crate::lab::Mode::Native); })+ }
        mod generic { $(#[test] fn $test() { super::$test($crate::lab::Mode::Generic); })+ }
        mod off { $(#[test] fn $test() { super::$test($crate::lab::Mode::Off); })+ }
    };
}
