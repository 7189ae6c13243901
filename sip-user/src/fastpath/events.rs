//! What the kernel tells: the ring `EVENTS`, and the call table as memory of ours.

use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::{Map, MapData, RingBuf};
use sip_ebpf::tables::{CALLS_PER_BUCKET, CallBucket, Event};

use super::CallBuckets;

/// The ring `EVENTS`.
///
/// Nobody is woken by it: look into it often enough, or it is full and calls go without a net.
pub struct Events(RingBuf<MapData>);

impl Events {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self> {
        let map = ebpf.take_map("EVENTS").context("the object has no map EVENTS")?;
        Ok(Self(RingBuf::try_from(map).context("EVENTS")?))
    }

    /// Takes the next event, with the message that it is about; false if there is none.
    pub fn next(&mut self, take: impl FnOnce(Event, &[u8])) -> bool {
        let Some(record) = self.0.next() else { return false };
        if let Some((event, text)) = Event::read(&record) {
            take(event, text);
        }
        true
    }
}

/// `CALLS`, mapped.
pub(super) struct Calls {
    start: NonNull<[AtomicU64; CALLS_PER_BUCKET]>,
    buckets: u32,
}

// SAFETY: memory that is shared with the kernel and changed by atomic operations only.
unsafe impl Send for Calls {}
// SAFETY: as above.
unsafe impl Sync for Calls {}

impl Calls {
    pub(super) fn of(ebpf: &Ebpf, buckets: u32) -> Result<Self> {
        let Some(Map::Array(table)) = ebpf.map("CALLS") else {
            bail!("the object has no map CALLS")
        };
        let (length, both) = (size(buckets), libc::PROT_READ | libc::PROT_WRITE);
        let descriptor = table.fd().as_fd().as_raw_fd();
        // SAFETY: a new mapping at a place that the kernel chooses.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, both, libc::MAP_SHARED, descriptor, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("cannot map CALLS");
        }
        let start = NonNull::new(start.cast()).context("CALLS")?;
        Ok(Self { start, buckets })
    }
}

impl CallBuckets for Calls {
    fn bucket(&self, index: u32) -> Option<&[AtomicU64; CALLS_PER_BUCKET]> {
        if index >= self.buckets {
            return None;
        }
        // SAFETY: the mapping holds so many buckets and lives as long as this. Words are written whole by all.
        Some(unsafe { self.start.add(index as usize).as_ref() })
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        // SAFETY: the mapping of `of`, which nobody borrows any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), size(self.buckets)) };
    }
}

fn size(buckets: u32) -> usize {
    buckets as usize * size_of::<CallBucket>()
}
