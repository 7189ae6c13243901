//! Whose turn it is where threads share a CPU: that of SIP comes before that of the store.

/// A slice of CPU time, in nanoseconds. Who asks for a short one has its turn soon after it wakes up, also where
/// somebody else is in the middle of a long one (Linux 6.12; those before do not look at it).
const SLICE: u64 = 100_000;
/// How much later than it was asked for a pause may end, in nanoseconds. 50 us unless changed, which is a lot of
/// a pause between datagrams.
const SLACK: libc::c_ulong = 1_000;
/// How much nicer the thread of the store is.
const NICE: libc::c_int = 5;

/// The attributes of `sched_setattr(2)`, as they were first.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Gives the calling thread short slices and exact pauses. Threads that it starts do not have the slices. Where that
/// is not allowed, all have their turns as the system likes.
pub(super) fn soon() {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: libc::SCHED_FLAG_RESET_ON_FORK as u64,
        // SAFETY: it only asks; 0 is the calling thread.
        nice: unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) },
        priority: 0,
        runtime: SLICE,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the attributes are as long as they say, and the system only reads them.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    // SAFETY: it takes a number.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, SLACK) };
}

/// Lets the calling thread, and those that it will start, come after that of SIP.
pub(super) fn later() {
    // SAFETY: it takes a number. Linux makes the calling thread nicer and no other.
    unsafe { libc::nice(NICE) };
}
