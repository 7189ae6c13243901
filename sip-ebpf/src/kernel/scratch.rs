//! The per-CPU memory that a packet is worked on in: its text, what was found, what goes out.

use core::arch::asm;

use sip_ebpf::scan::Index;
use sip_ebpf::text::{SLACK, Text};

/// Longest payload that is read; a power of two, for reads are masked.
pub(crate) const TEXT: u32 = 2048;

/// One CPU's memory.
#[repr(C)]
pub(crate) struct Scratch {
    /// Always zero, and the verifier does not know: see [`Text::fresh`].
    pub(crate) zero: u64,
    pub(crate) index: Index,
    pub(crate) text: [u8; (TEXT + SLACK) as usize],
}

/// The text in a [`Scratch`].
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    scratch: *const Scratch,
    len: u32,
}

impl Bytes {
    /// `len` bytes of text, which stand in `scratch` with [`SLACK`] zeros behind them.
    pub(crate) fn new(scratch: *const Scratch, len: u32) -> Self {
        Self { scratch, len }
    }

    #[inline(always)]
    fn at(self, at: u32) -> *const u8 {
        let mut at = at as u64;
        // SAFETY: arithmetic on a register: the verifier wants to see the bound, and the compiler
        // would drop an `and` it finds needless.
        unsafe { asm!("{0} &= 2047", inout(reg) at, options(pure, nomem, nostack)) };
        // SAFETY: `at` is below TEXT, and reads reach at most SLACK further.
        unsafe {
            (&raw const (*self.scratch).text)
                .cast::<u8>()
                .add(at as usize)
        }
    }
}

impl Text for Bytes {
    #[inline(always)]
    fn len(self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn word(self, at: u32) -> u64 {
        let from = self.at(at);
        let word;
        // SAFETY: `at` keeps the read in the text. The load is by hand, for the compiler would
        // make eight of one that may be unaligned.
        unsafe {
            asm!("{0} = *(u64 *)({1} + 0)", out(reg) word, in(reg) from,
                options(pure, readonly, nostack));
        }
        word
    }

    #[inline(always)]
    fn byte(self, at: u32) -> u8 {
        // SAFETY: `at` keeps the read in the text.
        unsafe { *self.at(at) }
    }

    #[inline(always)]
    fn fresh(self, value: u32) -> u32 {
        // SAFETY: `zero` is in the scratch memory.
        let zero = unsafe { (&raw const (*self.scratch).zero).read_volatile() };
        value.wrapping_add(zero as u32)
    }
}
