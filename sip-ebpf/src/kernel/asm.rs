//! Instructions that the verifier must see and the compiler would not write.

use core::arch::asm;

/// `value & MASK`, kept even where the compiler finds it needless.
#[inline(always)]
pub(super) fn mask<const MASK: u32>(value: u32) -> u32 {
    let mut value = value;
    // SAFETY: arithmetic on a register.
    unsafe {
        asm!("{0} &= {mask}", inout(wreg) value, mask = const MASK, options(pure, nomem, nostack));
    }
    value
}

/// Eight bytes, maybe unaligned, `OFFSET` behind `from`; the compiler would load them one by one.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub(super) unsafe fn load<const OFFSET: i16>(from: *const u8) -> u64 {
    let word;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{0} = *(u64 *)({1} + {offset})", out(reg) word, in(reg) from,
            offset = const OFFSET, options(pure, readonly, nostack));
    }
    word
}

/// Two bytes, maybe unaligned, `OFFSET` behind `from`.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub(super) unsafe fn load_short<const OFFSET: i16>(from: *const u8) -> u32 {
    let half: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{0} = *(u16 *)({1} + {offset})", out(reg) half, in(reg) from,
            offset = const OFFSET, options(pure, readonly, nostack));
    }
    half as u32
}

/// Puts eight bytes, maybe unaligned, `OFFSET` behind `to`.
///
/// # Safety
/// They must be writable.
#[inline(always)]
pub(super) unsafe fn store<const OFFSET: i16>(to: *mut u8, word: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("*(u64 *)({0} + {offset}) = {1}", in(reg) to, in(reg) word,
            offset = const OFFSET, options(nostack));
    }
}

/// Puts 32 bytes, maybe unaligned.
///
/// # Safety
/// They must be writable.
#[inline(always)]
pub(super) unsafe fn store_four(to: *mut u8, four: [u64; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "*(u64 *)({0} + 0) = {1}",
            "*(u64 *)({0} + 8) = {2}",
            "*(u64 *)({0} + 16) = {3}",
            "*(u64 *)({0} + 24) = {4}",
            in(reg) to, in(reg) four[0], in(reg) four[1], in(reg) four[2], in(reg) four[3],
            options(nostack)
        );
    }
}

/// Puts `N` words, maybe unaligned: four at one place, for an address takes as much as a store.
///
/// # Safety
/// They must be writable.
#[inline(always)]
pub(super) unsafe fn store_run<const N: usize>(to: *mut u8, word: impl Fn(usize) -> u64) {
    // SAFETY: the caller's promise.
    unsafe {
        for i in (0..N).step_by(4) {
            let to = to.add(8 * i);
            store::<0>(to, word(i));
            if i + 1 < N {
                store::<8>(to, word(i + 1));
            }
            if i + 2 < N {
                store::<16>(to, word(i + 2));
            }
            if i + 3 < N {
                store::<24>(to, word(i + 3));
            }
        }
    }
}

/// Copies 64 bytes, maybe unaligned; not onto themselves.
///
/// # Safety
/// They must be readable and writable.
#[inline(always)]
pub(super) unsafe fn copy_64(from: *const u8, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{a} = *(u64 *)({from} + 0)",
            "{b} = *(u64 *)({from} + 8)",
            "{c} = *(u64 *)({from} + 16)",
            "{d} = *(u64 *)({from} + 24)",
            "*(u64 *)({to} + 0) = {a}",
            "*(u64 *)({to} + 8) = {b}",
            "*(u64 *)({to} + 16) = {c}",
            "*(u64 *)({to} + 24) = {d}",
            "{a} = *(u64 *)({from} + 32)",
            "{b} = *(u64 *)({from} + 40)",
            "{c} = *(u64 *)({from} + 48)",
            "{d} = *(u64 *)({from} + 56)",
            "*(u64 *)({to} + 32) = {a}",
            "*(u64 *)({to} + 40) = {b}",
            "*(u64 *)({to} + 48) = {c}",
            "*(u64 *)({to} + 56) = {d}",
            from = in(reg) from, to = in(reg) to,
            a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
            options(nostack)
        );
    }
}

/// 32 bytes, maybe unaligned.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub(super) unsafe fn load_four(from: *const u8) -> [u64; 4] {
    // SAFETY: the caller's promise.
    unsafe { [load::<0>(from), load::<8>(from), load::<16>(from), load::<24>(from)] }
}

/// The word at a distance: to where that is set, `$on` instructions on, if it has a byte below space.
macro_rules! borrow {
    ($at:literal, $on:literal) => {
        concat!(
            "{word} = *(u64 *)({from} + {",
            $at,
            "})\n",
            "{word} -= {by}\n",
            "if {word} & {highs} goto +",
            $on,
        )
    };
}

/// As [`borrow!`], for a delimiter.
macro_rules! delimiter {
    ($at:literal, $on:literal) => {
        concat!(
            "{word} = *(u64 *)({from} + {",
            $at,
            "})\n",
            "{other} = {word}\n",
            "{word} -= {hyphens}\n",
            "{other} ^= {semicolons}\n",
            "{other} -= {ones}\n",
            "{word} |= {other}\n",
            "if {word} & {highs} goto +",
            $on,
        )
    };
}

/// Behind eight words: the distance of none, and then that of each, all to the same end.
macro_rules! distance {
    () => {
        concat!(
            "{at} = 64\ngoto +15\n",
            "{at} = 0\ngoto +13\n",
            "{at} = 8\ngoto +11\n",
            "{at} = 16\ngoto +9\n",
            "{at} = 24\ngoto +7\n",
            "{at} = 32\ngoto +5\n",
            "{at} = 40\ngoto +3\n",
            "{at} = 48\ngoto +1\n",
            "{at} = 56",
        )
    };
}

/// Looks at 64 bytes in words, from `OFFSET` behind `from` on, until one has a byte below space: how far that
/// word is, and what is left of it when spaces are taken off, highest bits only. Bytes from 0xa0 on look alike;
/// 64 and zero if there is neither.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub(super) unsafe fn first_borrow<const OFFSET: i16>(
    from: *const u8,
    by: u64,
    highs: u64,
) -> (u64, u64) {
    let (word, at);
    // SAFETY: the caller's promise. Each word that has one jumps to where its own distance is set: the last one's
    // is behind the way of those that have none.
    unsafe {
        asm!(
            borrow!("a", "23"),
            borrow!("b", "22"),
            borrow!("c", "21"),
            borrow!("d", "20"),
            borrow!("e", "19"),
            borrow!("f", "18"),
            borrow!("g", "17"),
            borrow!("h", "16"),
            distance!(),
            "{word} &= {highs}",
            word = out(reg) word, at = out(reg) at,
            from = in(reg) from, by = in(reg) by, highs = in(reg) highs,
            a = const OFFSET, b = const OFFSET + 8, c = const OFFSET + 16, d = const OFFSET + 24,
            e = const OFFSET + 32, f = const OFFSET + 40, g = const OFFSET + 48, h = const OFFSET + 56,
            options(pure, readonly, nostack)
        );
    }
    (at, word)
}

/// 32 bytes in words, each less `by`, ored together: in two registers.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub(super) unsafe fn less_four(from: *const u8, by: u64) -> u64 {
    let all;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{all} = *(u64 *)({from} + 0)",
            "{all} -= {by}",
            "{one} = *(u64 *)({from} + 8)",
            "{one} -= {by}",
            "{all} |= {one}",
            "{one} = *(u64 *)({from} + 16)",
            "{one} -= {by}",
            "{all} |= {one}",
            "{one} = *(u64 *)({from} + 24)",
            "{one} -= {by}",
            "{all} |= {one}",
            all = out(reg) all, one = out(reg) _, from = in(reg) from, by = in(reg) by,
            options(pure, readonly, nostack)
        );
    }
    all
}

/// As [`first_borrow`], for what [`sip_ebpf::text::delimiters`] marks.
///
/// # Safety
/// 64 bytes must be readable.
#[inline(always)]
pub(super) unsafe fn first_delimiter<const OFFSET: i16>(from: *const u8) -> (u64, u64) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let (word, at);
    // SAFETY: the caller's promise. The jumps are those of `first_borrow`.
    unsafe {
        asm!(
            delimiter!("a", "51"),
            delimiter!("b", "46"),
            delimiter!("c", "41"),
            delimiter!("d", "36"),
            delimiter!("e", "31"),
            delimiter!("f", "26"),
            delimiter!("g", "21"),
            delimiter!("h", "16"),
            distance!(),
            "{word} &= {highs}",
            word = out(reg) word, other = out(reg) _, at = out(reg) at, from = in(reg) from,
            hyphens = in(reg) ONES * b'-' as u64, semicolons = in(reg) ONES * b';' as u64,
            ones = in(reg) ONES, highs = in(reg) ONES << 7,
            a = const OFFSET, b = const OFFSET + 8, c = const OFFSET + 16, d = const OFFSET + 24,
            e = const OFFSET + 32, f = const OFFSET + 40, g = const OFFSET + 48, h = const OFFSET + 56,
            options(pure, readonly, nostack)
        );
    }
    (at, word)
}

/// Puts four bytes, maybe unaligned.
///
/// # Safety
/// Four bytes must be writable at `to`.
#[inline(always)]
pub(super) unsafe fn store_half(to: *mut u8, word: u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("*(u32 *)({0} + 0) = {1}", in(reg) to, in(reg) word as u64, options(nostack)) };
}

/// Adds to a word that all CPUs share; gives what it was (kernel 5.12).
///
/// # Safety
/// `to` must be an aligned word of a map.
#[inline(always)]
pub(super) unsafe fn fetch_add(to: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: the caller's promise. The compiler has no such atomic for BPF, the machine has.
    unsafe {
        asm!("{0} = atomic_fetch_add((u64 *)({1} + 0), {0})", inout(reg) value, in(reg) to,
            options(nostack));
    }
    value
}

/// Sets bits of a word that several CPUs change.
///
/// # Safety
/// `to` must be an aligned word of a map.
#[inline(always)]
pub(super) unsafe fn atomic_or(to: *mut u64, bits: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) to, in(reg) bits, options(nostack)) };
}
