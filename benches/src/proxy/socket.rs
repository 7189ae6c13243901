//! The generator's UDP sockets: connected to the proxy, many datagrams in a call, each with the time at
//! which the kernel took it.

use std::io;
use std::mem;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result};
use sipline_tests::kernel;

/// Datagrams read in one system call.
const READ: usize = 64;
/// Datagrams sent in one system call: few, because they share a time of departure.
const SEND: usize = 16;
/// The longest datagram that is read whole.
const LONGEST: usize = 4096;
/// Room for what comes while we do something else.
const BUFFER: libc::c_int = 32 * 1024 * 1024;
/// Room for a control message with a time, in eight bytes.
const CONTROL: usize = 8;

/// Nanoseconds of the clock that the kernel stamps packets with.
pub(super) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut time) };
    nanoseconds(&time)
}

fn nanoseconds(time: &libc::timespec) -> u64 {
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// A phone's or a PBX's socket, and what waits to be sent. `T` says what a datagram is, for whoever wants
/// to know when it left.
pub(super) struct Port<T> {
    socket: UdpSocket,
    local: SocketAddrV4,
    bytes: Vec<u8>,
    /// Where each datagram ends in `bytes`.
    ends: Vec<(usize, T)>,
}

impl<T: Copy + Send> Port<T> {
    /// Binds an address in a namespace; all that is sent goes to the proxy.
    pub(super) fn bind(namespace: &Path, local: SocketAddrV4, proxy: SocketAddrV4) -> Result<Self> {
        let socket = kernel::in_namespace(namespace, || -> Result<UdpSocket> {
            let socket = UdpSocket::bind(local).with_context(|| format!("cannot bind {local}"))?;
            socket.connect(proxy).with_context(|| format!("no way from {local} to {proxy}"))?;
            Ok(socket)
        })?;
        socket.set_nonblocking(true)?;
        let fd = socket.as_raw_fd();
        set_option(fd, libc::SO_TIMESTAMPNS, 1).context("no times of arrival")?;
        set_option(fd, libc::SO_RCVBUFFORCE, BUFFER).context("no room for what comes")?;
        set_option(fd, libc::SO_SNDBUFFORCE, BUFFER).context("no room for what goes")?;
        Ok(Self { socket, local, bytes: Vec::new(), ends: Vec::new() })
    }

    /// Its own address.
    pub(super) fn local(&self) -> SocketAddrV4 {
        self.local
    }

    /// Its descriptor, for poll.
    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Where the next datagram is to be written; [`Port::end`] ends it.
    pub(super) fn text(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Ends a datagram.
    pub(super) fn end(&mut self, what: T) {
        self.ends.push((self.bytes.len(), what));
    }

    /// Sends what waits; says of each datagram when it left. What the socket does not take is lost, as on
    /// any network: whoever waits for the answer will notice.
    pub(super) fn flush(&mut self, mut left: impl FnMut(T, u64)) {
        let mut start = 0;
        let mut ends = &self.ends[..];
        while !ends.is_empty() {
            let mut pieces = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; SEND];
            // SAFETY: all zero is a value of the type.
            let mut headers: [libc::mmsghdr; SEND] = unsafe { mem::zeroed() };
            let (some, rest) = ends.split_at(ends.len().min(SEND));
            let mut from = start;
            for ((end, _), (piece, header)) in some.iter().zip(pieces.iter_mut().zip(&mut headers))
            {
                let bytes = &mut self.bytes[from..*end];
                piece.iov_base = bytes.as_mut_ptr().cast();
                piece.iov_len = bytes.len();
                header.msg_hdr.msg_iov = piece;
                header.msg_hdr.msg_iovlen = 1;
                from = *end;
            }
            let time = now();
            // SAFETY: every header points to a piece, and every piece to bytes of ours.
            let done = unsafe {
                libc::sendmmsg(
                    self.socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    some.len() as libc::c_uint,
                    0,
                )
            };
            // An error is the first one's, or that of an earlier one, told by ICMP.
            let done = usize::try_from(done).unwrap_or(1).clamp(1, some.len());
            for (_, what) in &some[..done] {
                left(*what, time);
            }
            start = some[done - 1].0;
            ends = if done < some.len() { &ends[done..] } else { rest };
        }
        self.bytes.clear();
        self.ends.clear();
    }
}

/// Waits until one of the sockets can be read, or for a time.
pub(super) fn wait(fds: &mut [libc::pollfd], nanoseconds: u64) {
    let time = libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000).cast_signed(),
        tv_nsec: (nanoseconds % 1_000_000_000).cast_signed(),
    };
    // SAFETY: descriptors and time are there; no signals are masked.
    unsafe {
        libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, &raw const time, ptr::null())
    };
}

/// What one read brought.
pub(super) struct Inbox {
    bytes: Vec<u8>,
    control: Vec<[u64; CONTROL]>,
    got: Vec<(usize, u64)>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; READ * LONGEST],
            control: vec![[0; CONTROL]; READ],
            got: Vec::with_capacity(READ),
        }
    }

    /// One without room, which takes the place of another for a while.
    pub(super) fn empty() -> Self {
        Self { bytes: Vec::new(), control: Vec::new(), got: Vec::new() }
    }

    /// Reads what there is, up to a batch; gives how much.
    pub(super) fn receive<T: Copy + Send>(&mut self, port: &Port<T>) -> usize {
        self.got.clear();
        let mut pieces = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; READ];
        // SAFETY: all zero is a value of the type.
        let mut headers: [libc::mmsghdr; READ] = unsafe { mem::zeroed() };
        let room = self.bytes.chunks_exact_mut(LONGEST).zip(&mut self.control);
        for ((bytes, control), (piece, header)) in room.zip(pieces.iter_mut().zip(&mut headers)) {
            piece.iov_base = bytes.as_mut_ptr().cast();
            piece.iov_len = bytes.len();
            header.msg_hdr.msg_iov = piece;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = size_of_val(control) as _;
        }
        // SAFETY: every header points to a piece and to room for control messages, all ours.
        let done = unsafe {
            libc::recvmmsg(
                port.fd(),
                headers.as_mut_ptr(),
                READ as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        // An error is "nothing there", or an ICMP error of what was sent, which is lost anyway.
        let done = usize::try_from(done).unwrap_or(0);
        let late = now();
        for header in &headers[..done] {
            self.got.push((header.msg_len as usize, stamp(&header.msg_hdr).unwrap_or(late)));
        }
        done
    }

    /// The datagrams of the last read, each with its time of arrival.
    pub(super) fn datagrams(&self) -> impl Iterator<Item = (&[u8], u64)> {
        let chunks = self.bytes.chunks_exact(LONGEST);
        self.got.iter().zip(chunks).map(|((len, time), bytes)| (&bytes[..*len], *time))
    }
}

/// When the kernel took a datagram.
fn stamp(header: &libc::msghdr) -> Option<u64> {
    // SAFETY: the kernel has filled the header in.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give pointers to whole headers inside the room given.
        let this = unsafe { &*next };
        if this.cmsg_level == libc::SOL_SOCKET && this.cmsg_type == libc::SCM_TIMESTAMPNS {
            // SAFETY: data of this kind is a timespec; it may lie unaligned.
            let time = unsafe { libc::CMSG_DATA(next).cast::<libc::timespec>().read_unaligned() };
            return Some(nanoseconds(&time));
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    None
}

fn set_option(fd: RawFd, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is readable for `len` bytes.
    let done =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, name, (&raw const value).cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
