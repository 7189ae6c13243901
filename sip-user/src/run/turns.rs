//! Whose turn it is where threads share a CPU: that of SIP comes before that of the store.

/// A slice of CPU time of SIP's, in nanoseconds. Who asks for a short one has its turn soon after it wakes up, also where
/// somebody else is in the middle of a long one (Linux 6.12; those before do not look at it).
const SLICE: u64 = 100_000;
/// A slice of the store's. It gives up what is left of one wherever it yields, so it is not to lose much.
const STORE_SLICE: u64 = 1_000_000;
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
    // SAFETY: it only asks; 0 is the calling thread.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    ask_for(SLICE, nice);
    // SAFETY: it takes a number.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, SLACK) };
}

/// Lets the calling thread, and those that it will start, come after that of SIP.
///
/// This decides who comes first when both wake up. Where neither sleeps, the system looks at it only once a tick, which
/// is up to 4 ms: so the store's thread yields between pieces of work that are much shorter than that.
pub(super) fn later() {
    // SAFETY: it takes a number. Linux makes the calling thread nicer and no other.
    let nice = unsafe { libc::nice(NICE) };
    ask_for(STORE_SLICE, nice);
}

fn ask_for(slice: u64, nice: libc::c_int) {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: libc::SCHED_FLAG_RESET_ON_FORK as u64,
        nice,
        priority: 0,
        runtime: slice,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the attributes are as long as they say, and the system only reads them.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}
