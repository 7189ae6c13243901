//! How memory is had from the system.

/// What is at least this large is had from the system by itself, and goes back to it as it came: glibc's value at
/// its start.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 128 * 1024;

/// Keeps large tables out of the heap. To be called before there are threads.
///
/// glibc does so by itself at first. But with each large piece that is given back it takes larger ones for small,
/// up to 32 MiB: a table that grows then moves within the heap, and each time leaves a hole behind it which the
/// system does not get back. That cost a third of all that a registration cost.
pub(super) fn settle() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it sets a number of the allocator's, and no other thread is there to read it.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Gives back what lies free in the heap, after something that has needed much and is over: glibc does so by itself
/// only at the heap's end.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it touches only what nobody has.
    unsafe {
        libc::malloc_trim(0);
    }
}
