//! Loops that the BPF verifier accepts, from one source for both builds and the host.

/// As [`repeat`], with the first `FEW` rounds (at most eight) written out. With `may_goto` they cost nothing but
/// themselves, where a round of the loop also counts, in memory.
#[cfg(not(all(target_arch = "bpf", feature = "bpf-loop")))]
#[inline(always)]
pub fn repeat_few<const FEW: u32, S, F: Fn(&mut S) -> bool + Copy>(
    limit: u32,
    state: &mut S,
    step: F,
) {
    const { assert!(FEW <= 8) };
    let end = FEW > 0 && !step(state)
        || FEW > 1 && !step(state)
        || FEW > 2 && !step(state)
        || FEW > 3 && !step(state)
        || FEW > 4 && !step(state)
        || FEW > 5 && !step(state)
        || FEW > 6 && !step(state)
        || FEW > 7 && !step(state);
    if !end {
        repeat(limit, state, step);
    }
}

/// See the other one. With `bpf_loop` nothing is written out: rounds before the loop leave the verifier bounds that
/// move with each round of it, and it would not come to an end.
#[cfg(all(target_arch = "bpf", feature = "bpf-loop"))]
#[inline(always)]
pub fn repeat_few<const FEW: u32, S, F: Fn(&mut S) -> bool + Copy>(
    limit: u32,
    state: &mut S,
    step: F,
) {
    repeat(limit, state, step);
}

/// Calls `step` with `state` until it returns false.
///
/// In the kernel the loop ends by `step`'s own answer: `may_goto`, and `limit` for `bpf_loop`, are
/// the last resort that the verifier asks for. On the host `limit` holds as well, so that a loop
/// which relies on it behaves alike everywhere.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub fn repeat<S, F: Fn(&mut S) -> bool + Copy>(limit: u32, state: &mut S, step: F) {
    for _ in 0..limit {
        if !step(state) {
            return;
        }
    }
}

/// See the host's `repeat`. Kernel 6.9 and newer: no cost but a counter on the stack.
#[cfg(all(target_arch = "bpf", not(feature = "bpf-loop")))]
#[inline(always)]
pub fn repeat<S, F: Fn(&mut S) -> bool + Copy>(_limit: u32, state: &mut S, step: F) {
    loop {
        // SAFETY: a jump that may be taken and nothing else; the label leaves the loop.
        unsafe { core::arch::asm!("may_goto {0}", label { break }) };
        if !step(state) {
            break;
        }
    }
}

/// See the host's `repeat`. Kernel 5.17 and newer: a call for each round.
#[cfg(all(target_arch = "bpf", feature = "bpf-loop"))]
#[inline(always)]
pub fn repeat<S, F: Fn(&mut S) -> bool + Copy>(limit: u32, state: &mut S, _step: F) {
    extern "C" fn round<S, F: Fn(&mut S) -> bool + Copy>(
        _round: u64,
        state: *mut core::ffi::c_void,
    ) -> i64 {
        const { assert!(core::mem::size_of::<F>() == 0, "a step captures nothing") };
        // SAFETY: F has no bytes, so there is nothing to be wrong about.
        let step: F = unsafe { core::mem::zeroed() };
        // SAFETY: `state` is the exclusive reference that `repeat` holds for the whole loop.
        let state = unsafe { &mut *state.cast::<S>() };
        !step(state) as i64
    }
    // SAFETY: the callback has the signature that the helper calls, `state` outlives the call.
    unsafe {
        aya_ebpf::helpers::generated::bpf_loop(
            limit,
            round::<S, F> as *mut core::ffi::c_void,
            (state as *mut S).cast(),
            0,
        )
    };
}

/// Moves a place on, as `*at += by` does. In the kernel the compiler does not see it: it would count
/// the rounds of the loop instead, and the verifier would walk each of them.
#[inline(always)]
pub fn step(at: &mut u32, by: u32) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: arithmetic on registers.
    unsafe {
        core::arch::asm!("{0} += {1}", inout(wreg) *at, in(wreg) by, options(pure, nomem, nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        *at = at.wrapping_add(by);
    }
}
