//! The message as it is read: brought from the packet into the scratch memory, where reads need no
//! comparison with the packet's end.

use aya_ebpf::helpers::generated::bpf_xdp_load_bytes;
use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;
use sip_ebpf::repeat::{repeat_few, step};
use sip_ebpf::text::{HIGHS, LOWER, ONES, SLACK, Text, first};

use super::asm;
use super::scratch::{Scratch, TEXT, TEXT_AT, fresh};

/// How much is read at first. It holds the headers of nearly all messages, and bodies are not looked
/// at; what has longer headers is read whole when the scan gets there.
const FIRST: u32 = 512;

/// Bytes copied in a round.
const ROUND: u32 = 128;

/// Bytes copied at once where there are as many.
const BLOCK: u32 = 256;

/// Reads the start of the message that the packet in `scratch.frame` carries.
#[inline(always)]
pub(super) fn load(ctx: &XdpContext, scratch: *mut Scratch) -> Result<Bytes<'_>, Reason> {
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let s = unsafe { &mut *scratch };
    let n = asm::mask::<4095>(s.frame.len);
    if n == 0 || n > TEXT {
        return Err(Reason::TooLong);
    }
    let t = Bytes::new(ctx, scratch);
    if n >= FIRST {
        // As an INVITE is, at least: all in one.
        return if t.copy_block(0) && t.copy_block(BLOCK) {
            t.end(FIRST);
            Ok(t)
        } else {
            Err(Reason::BadLength)
        };
    }
    if n >= ROUND {
        let from = if n >= BLOCK + ROUND && t.copy_block(0) { BLOCK } else { 0 };
        return if fill(t, from, n) { Ok(t) } else { Err(Reason::BadLength) };
    }
    // SAFETY: `n` is less than ROUND.
    let text = unsafe { Scratch::text(scratch) };
    // SAFETY: as above.
    if unsafe { bpf_xdp_load_bytes(ctx.ctx, s.frame.start, text.cast(), n) } != 0 {
        return Err(Reason::BadLength);
    }
    t.end(n);
    Ok(t)
}

/// Copies the text from `from` to `to`, and zeros behind it; `to` is at least [`ROUND`]. False if it is
/// not there.
///
/// By hand: the helper's calls and returns cost more.
#[inline(always)]
fn fill(t: Bytes<'_>, from: u32, to: u32) -> bool {
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let start = unsafe { (*t.scratch).frame.start };
    let mut state = Fill { t, start, at: t.fresh(from), last: t.fresh(to - ROUND), done: false };
    repeat_few::<4, _, _>(TEXT / ROUND + 2, &mut state, |s| s.round());
    t.end(to);
    state.done
}

struct Fill<'a> {
    t: Bytes<'a>,
    start: u32,
    at: u32,
    last: u32,
    done: bool,
}

impl Fill<'_> {
    /// Copies [`ROUND`] bytes; false when no more are wanted or there.
    #[inline(always)]
    fn round(&mut self) -> bool {
        // The last round ends with the text: it may cover bytes of the round before again.
        self.done = self.at >= self.last;
        let at = if self.done { self.last } else { self.at };
        let at = asm::mask::<{ TEXT - 1 }>(at);
        let from = self.t.ctx.data() + asm::mask::<127>(self.start) as usize + at as usize;
        if from + ROUND as usize > self.t.ctx.data_end() {
            self.done = false;
            return false;
        }
        // SAFETY: in the text, as below.
        let (from, to) = (from as *const u8, unsafe { self.t.at(at).add(TEXT_AT as usize) });
        // SAFETY: compared with the end of the packet; at most `last`, so what is written ends with the
        // text. The verifier, which does not know `last`, sees that it stays in the entry.
        unsafe {
            asm::copy_64(from, to);
            asm::copy_64(from.add(64), to.add(64));
        }
        step(&mut self.at, ROUND);
        !self.done
    }
}

/// The text in a [`Scratch`].
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a> {
    ctx: &'a XdpContext,
    scratch: *mut Scratch,
    len: u32,
}

impl<'a> Bytes<'a> {
    /// The text of the packet in `scratch.frame`, which [`load`] reads.
    #[inline(always)]
    pub(super) fn new(ctx: &'a XdpContext, scratch: *mut Scratch) -> Self {
        // Volatile: what comparisons have told the verifier of the length would make it walk all that follows once for
        // each of them.
        // SAFETY: a field of the entry of this CPU.
        let len = unsafe { (&raw const (*scratch).frame.len).read_volatile() };
        Self { ctx, scratch, len }
    }

    /// Copies the [`BLOCK`] of the packet's text at `at`, which is [`FIRST`] less that at most. False if it is not there.
    #[inline(always)]
    fn copy_block(self, at: u32) -> bool {
        // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
        let start = unsafe { (*self.scratch).frame.start };
        let from = self.ctx.data() + asm::mask::<127>(start) as usize + at as usize;
        if from + BLOCK as usize > self.ctx.data_end() {
            return false;
        }
        // SAFETY: compared with the end of the packet; the text is longer than FIRST.
        unsafe {
            let (from, to) = (from as *const u8, Scratch::text(self.scratch).add(at as usize));
            for i in (0..BLOCK as usize).step_by(64) {
                asm::copy_64(from.add(i), to.add(i));
            }
        }
        true
    }

    /// Says that the text is there up to `at`, and puts zeros behind it.
    #[inline(always)]
    fn end(self, at: u32) {
        let at = asm::mask::<4095>(at);
        if at > TEXT {
            return;
        }
        // SAFETY: `at` is at most TEXT, and SLACK bytes follow the text.
        unsafe {
            (*self.scratch).loaded = at;
            let end = Scratch::text(self.scratch).add(at as usize);
            let mut i = 0;
            while i < SLACK as usize {
                asm::store_four(end.add(i), [0; 4]);
                i += 32;
            }
        }
    }

    /// [`TEXT_AT`] bytes before a place of the text. Accesses reach at most SLACK further.
    #[inline(always)]
    fn at(self, at: u32) -> *mut u8 {
        let at = asm::mask::<{ TEXT - 1 }>(at);
        // SAFETY: `at` is below TEXT, and the memory is longer.
        unsafe { self.scratch.cast::<u8>().add(at as usize) }
    }

    /// See [`Text::near_control`] and [`Text::near_blank`]; `limits` are what bytes are below.
    #[inline(always)]
    fn near_below(self, at: u32, limits: u64) -> u32 {
        let from = self.at(at);
        // SAFETY: `at` keeps the read in the text and the zeros behind it, and one of those stops the search.
        let (mut far, mut borrows) = unsafe { asm::first_borrow::<TEXT_AT>(from, limits, HIGHS) };
        if borrows == 0 {
            // SAFETY: as above; the memory is longer.
            (far, borrows) = unsafe { asm::first_borrow::<{ TEXT_AT + 64 }>(from, limits, HIGHS) };
            far += 64;
        }
        at + far as u32 + first(borrows)
    }

    /// Changes eight bytes of the text.
    #[inline(always)]
    pub(super) fn set(self, at: u32, word: u64) {
        // SAFETY: `at` keeps the write in the text.
        unsafe { asm::store::<TEXT_AT>(self.at(at), word) };
    }
}

impl Text for Bytes<'_> {
    #[inline(always)]
    fn len(self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn word(self, at: u32) -> u64 {
        // SAFETY: `at` keeps the read in the text.
        unsafe { asm::load::<TEXT_AT>(self.at(at)) }
    }

    #[inline(always)]
    fn byte(self, at: u32) -> u8 {
        // SAFETY: `at` keeps the read in the text.
        unsafe { *self.at(at).add(TEXT_AT as usize) }
    }

    #[inline(always)]
    fn pair(self, at: u32) -> [u64; 2] {
        let at = self.at(at);
        // SAFETY: `at` keeps the read in the text and the zeros behind it.
        unsafe { [asm::load::<TEXT_AT>(at), asm::load::<{ TEXT_AT + 8 }>(at)] }
    }

    #[inline(always)]
    fn four(self, at: u32) -> [u64; 4] {
        let at = self.at(at);
        // SAFETY: `at` keeps the read in the text and the zeros behind it.
        unsafe {
            [
                asm::load::<TEXT_AT>(at),
                asm::load::<{ TEXT_AT + 8 }>(at),
                asm::load::<{ TEXT_AT + 16 }>(at),
                asm::load::<{ TEXT_AT + 24 }>(at),
            ]
        }
    }

    #[inline(always)]
    fn borrows_four(self, at: u32) -> u64 {
        // SAFETY: `at` keeps the read in the text and the zeros behind it.
        unsafe { asm::less_four(self.at(at).add(TEXT_AT as usize), LOWER) }
    }

    #[inline(always)]
    fn near_control(self, at: u32) -> u32 {
        self.near_below(at, LOWER)
    }

    #[inline(always)]
    fn near_blank(self, at: u32) -> u32 {
        self.near_below(at, ONES * 0x21)
    }

    #[inline(always)]
    fn near_delimiter(self, at: u32) -> u32 {
        let from = self.at(at);
        // SAFETY: `at` keeps the read in the text and the zeros behind it.
        let (far, marks) = unsafe { asm::first_delimiter::<TEXT_AT>(from) };
        at + far as u32 + first(marks)
    }

    #[inline(always)]
    fn short(self, at: u32, more: u8) -> u32 {
        // SAFETY: `at` keeps the read in the text, and the memory is more than 255 bytes longer.
        unsafe { asm::load_short::<TEXT_AT>(self.at(at).add(more as usize)) }
    }

    #[inline(always)]
    fn more(self) -> bool {
        // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
        let loaded = unsafe { (*self.scratch).loaded };
        // Shorter than a round is never read in part: the verifier does not know.
        loaded < self.len && self.len >= ROUND && fill(self, loaded, self.len)
    }

    #[inline(always)]
    fn fresh(self, value: u32) -> u32 {
        fresh(self.scratch, value)
    }
}
