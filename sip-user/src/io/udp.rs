//! UDP sockets that read and write many datagrams at a time, and read what ICMP says.
//!
//! One socket for each of our addresses, bound to that address: what it reads was sent there, and what it
//! sends comes from there. `IP_RECVERR` makes the kernel keep every ICMP error for a packet from our
//! address and port, and so also for those that the XDP program sent.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use crate::core::dispatcher::Unreachable;

/// Datagrams in one system call. What the first of them is answered with leaves when the last one is done: more would
/// save little, and cost each a third of a millisecond.
pub const BATCH: usize = 16;
/// The longest datagram.
const LONGEST: usize = 65_536;
/// Room for datagrams that come while we do something else: tens of thousands of them.
const RECEIVE_BUFFER: libc::c_int = 16 * 1024 * 1024;
/// Room for datagrams that the interface is slow to take.
const SEND_BUFFER: libc::c_int = 4 * 1024 * 1024;
/// Sockets of one address that share that room; more have as much as these.
const SHARES: libc::c_int = 8;
/// A send that fails may have met the error of an earlier one: it is tried again this often.
const TRIES: usize = 3;

/// One of our addresses.
#[derive(Debug)]
pub struct Udp {
    fd: AsyncFd<UdpSocket>,
    local: SocketAddr,
}

/// What became of datagrams that were to be sent.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sent {
    /// They went out.
    pub sent: u64,
    /// The socket was full.
    pub dropped: u64,
    /// The system refused them: where to, and why.
    pub failed: Vec<(SocketAddr, io::ErrorKind)>,
}

impl Udp {
    /// Binds an address. Call it inside the runtime.
    pub fn bind(local: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(local)?;
        prepare(&socket, local, 1)?;
        Self::of(socket)
    }

    /// From a socket of [`bind_all`]. Call it inside the runtime.
    pub fn of(socket: UdpSocket) -> io::Result<Self> {
        let local = socket.local_addr()?;
        let interest = Interest::READABLE | Interest::ERROR;
        // SAFETY: the socket owns its descriptor, gives the same one for as long as it lives, and the
        // `AsyncFd` owns the socket.
        let fd = unsafe { AsyncFd::register_with_interest(socket, interest) }?;
        Ok(Self { fd, local })
    }

    /// The address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Waits until there are datagrams or errors. Read both until they are used up, then clear the guard.
    pub async fn ready(&self) -> io::Result<AsyncFdReadyGuard<'_, UdpSocket>> {
        self.fd.ready(Interest::READABLE | Interest::ERROR).await
    }

    /// Reads what has come, up to [`BATCH`] datagrams; zero when there is nothing.
    pub fn receive(&self, batch: &mut Batch) -> io::Result<usize> {
        batch.receive(self.fd.as_raw_fd())
    }

    /// Sends datagrams in their order.
    pub fn send<'a, I>(&self, datagrams: I) -> Sent
    where
        I: IntoIterator<Item = (SocketAddr, &'a [u8])>,
    {
        let mut result = Sent::default();
        let mut datagrams = datagrams.into_iter().peekable();
        while let Some(first) = datagrams.next() {
            if datagrams.peek().is_none() {
                // Nothing to gather: it takes no memory.
                self.send_one(first, &mut result);
                break;
            }
            let rest = datagrams.by_ref().take(BATCH - 1);
            let some: Vec<_> = std::iter::once(first).chain(rest).collect();
            self.send_some(&some, &mut result);
        }
        result
    }

    /// Errors that the network has reported, each with the address that the packet was sent to.
    pub fn errors(&self, mut each: impl FnMut(SocketAddr, Unreachable)) -> u64 {
        let mut count = 0;
        while let Some(error) = next_error(self.fd.as_raw_fd()) {
            count += 1;
            if let Some((to, what)) = error {
                each(to, what);
            }
        }
        count
    }

    /// Datagrams that the kernel dropped because the socket was full (`SO_MEMINFO`), and the room it has.
    pub fn receive_drops(&self) -> io::Result<(u64, u64)> {
        const SK_MEMINFO_RCVBUF: usize = 1;
        const SK_MEMINFO_DROPS: usize = 8;
        const SO_MEMINFO: libc::c_int = 55;
        let mut info = [0u32; 9];
        let mut len = mem::size_of_val(&info) as libc::socklen_t;
        // SAFETY: `info` is writable for `len` bytes.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((u64::from(info[SK_MEMINFO_DROPS]), u64::from(info[SK_MEMINFO_RCVBUF])))
    }

    fn send_one(&self, (to, bytes): (SocketAddr, &[u8]), result: &mut Sent) {
        let name = Name::new(to);
        let mut tries = 0;
        loop {
            // SAFETY: name and bytes are readable for their lengths.
            let done = unsafe {
                libc::sendto(
                    self.fd.as_raw_fd(),
                    bytes.as_ptr().cast(),
                    bytes.len(),
                    libc::MSG_DONTWAIT,
                    (&raw const name.storage).cast(),
                    name.len,
                )
            };
            if done >= 0 {
                result.sent += 1;
                return;
            }
            match Refused::by(&io::Error::last_os_error(), &mut tries) {
                Refused::Again => {}
                Refused::Full => return result.dropped += 1,
                Refused::For(kind) => return result.failed.push((to, kind)),
            }
        }
    }

    fn send_some(&self, datagrams: &[(SocketAddr, &[u8])], result: &mut Sent) {
        let mut names: Vec<Name> = datagrams.iter().map(|(to, _)| Name::new(*to)).collect();
        let mut pieces: Vec<libc::iovec> = datagrams
            .iter()
            .map(|(_, bytes)| libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            })
            .collect();
        let mut headers: Vec<libc::mmsghdr> = names
            .iter_mut()
            .zip(&mut pieces)
            .map(|(name, piece)| header(&mut name.storage, name.len, piece))
            .collect();
        let mut at = 0;
        let mut tries = 0;
        while at < headers.len() {
            let rest = headers.len() - at;
            // SAFETY: `rest` headers are there from `at` on; names, pieces and bytes outlive the call, and
            // the kernel only reads the bytes.
            let done = unsafe {
                libc::sendmmsg(
                    self.fd.as_raw_fd(),
                    headers.as_mut_ptr().add(at),
                    rest as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            if let Ok(done) = usize::try_from(done) {
                result.sent += done as u64;
                at += done;
                tries = 0;
                continue;
            }
            match Refused::by(&io::Error::last_os_error(), &mut tries) {
                Refused::Again => {}
                Refused::Full => {
                    result.dropped += rest as u64;
                    return;
                }
                Refused::For(kind) => {
                    if let Some((to, _)) = datagrams.get(at) {
                        result.failed.push((*to, kind));
                    }
                    at += 1;
                    tries = 0;
                }
            }
        }
    }
}

/// Binds an address for several threads: the system gives what one peer sends to the same one of the sockets
/// (`SO_REUSEPORT`).
///
/// # Errors
/// As those of one socket; also when others share the address in this way already.
pub fn bind_all(local: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
    // Alone, which fails if anybody is there, of whatever kind.
    let first = UdpSocket::bind(local)?;
    let sockets = if count == 1 {
        vec![first]
    } else {
        // The one that the system has chosen, if none was named.
        let local = first.local_addr()?;
        drop(first);
        (0..count).map(|_| bind_shared(local)).collect::<io::Result<_>>()?
    };
    sockets.iter().try_for_each(|socket| prepare(socket, local, count))?;
    Ok(sockets)
}

fn bind_shared(local: SocketAddr) -> io::Result<UdpSocket> {
    let family = match local {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    // SAFETY: it takes numbers.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else has it.
    let socket = unsafe { UdpSocket::from_raw_fd(fd) };
    set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    let name = Name::new(local);
    // SAFETY: the name is readable for its length.
    match unsafe { libc::bind(fd, (&raw const name.storage).cast(), name.len) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the options of one of so many sockets for an address.
fn prepare(socket: &UdpSocket, local: SocketAddr, count: usize) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let fd = socket.as_raw_fd();
    let (level, name) = match local {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    set_option(fd, level, name, 1)?;
    // Together they have as much as one, down to an eighth for each.
    let share = libc::c_int::try_from(count).unwrap_or(SHARES).clamp(1, SHARES);
    // The forced ones go beyond net.core.rmem_max and need CAP_NET_ADMIN; the others stop there.
    for (forced, plain, size) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER / share),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER / share),
    ] {
        if set_option(fd, libc::SOL_SOCKET, forced, size).is_err() {
            set_option(fd, libc::SOL_SOCKET, plain, size)?;
        }
    }
    Ok(())
}

/// What a datagram that was not sent comes to.
enum Refused {
    /// It is tried again.
    Again,
    /// The socket is full. A datagram is no promise: who sent the request sends it again.
    Full,
    /// It cannot be sent.
    For(io::ErrorKind),
}

impl Refused {
    fn by(error: &io::Error, tries: &mut usize) -> Self {
        match error.kind() {
            io::ErrorKind::Interrupted => Self::Again,
            io::ErrorKind::WouldBlock => Self::Full,
            // This may be the error of an earlier datagram, told now.
            _ if *tries + 1 < TRIES => {
                *tries += 1;
                Self::Again
            }
            kind => Self::For(kind),
        }
    }
}

/// Room for one batch of datagrams; made once and used for all sockets.
pub struct Batch {
    bytes: Vec<u8>,
    names: Vec<libc::sockaddr_storage>,
    /// Of each place in `bytes`: what the kernel is told about it. They point to `names`, `pieces` and `bytes`,
    /// none of which ever moves or grows.
    headers: Vec<libc::mmsghdr>,
    pieces: Vec<libc::iovec>,
    /// Length and sender of each datagram of the last batch.
    got: Vec<(usize, Option<SocketAddr>)>,
}

impl Default for Batch {
    fn default() -> Self {
        // SAFETY: all zero is a value of the type.
        let name: libc::sockaddr_storage = unsafe { mem::zeroed() };
        // Zeroed pages that are never written to cost no memory.
        let mut bytes = vec![0; BATCH * LONGEST];
        let mut names = vec![name; BATCH];
        let piece = |bytes: &mut [u8]| libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let mut pieces: Vec<_> = bytes.chunks_exact_mut(LONGEST).map(piece).collect();
        let places = names.iter_mut().zip(&mut pieces);
        let headers = places.map(|(name, piece)| header(name, NAME, piece)).collect();
        Self { bytes, names, headers, pieces, got: Vec::with_capacity(BATCH) }
    }
}

impl Batch {
    /// The datagrams of the last batch.
    pub fn datagrams(&mut self) -> impl Iterator<Item = (SocketAddr, &mut [u8])> {
        let got = self.got.iter();
        got.zip(self.bytes.chunks_exact_mut(LONGEST)).filter_map(|((len, from), bytes)| {
            let from = (*from)?;
            Some((from, bytes.get_mut(..*len)?))
        })
    }

    fn receive(&mut self, fd: RawFd) -> io::Result<usize> {
        self.got.clear();
        debug_assert_eq!(self.pieces.len(), self.headers.len());
        // SAFETY: every header points to a name and a piece of our own, which outlive the call.
        let done = unsafe {
            libc::recvmmsg(
                fd,
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let Ok(done) = usize::try_from(done) else { return Err(io::Error::last_os_error()) };
        for (header, name) in self.headers.iter_mut().zip(&self.names).take(done) {
            self.got.push((header.msg_len as usize, address(name)));
            // Where there was the room for a name, there is its length now.
            header.msg_hdr.msg_namelen = NAME;
        }
        Ok(done)
    }
}

/// Room for the longest name.
const NAME: libc::socklen_t = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;

/// A socket address as the system takes it.
struct Name {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl Name {
    fn new(address: SocketAddr) -> Self {
        // SAFETY: all zero is a value of the type.
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        let len = match address {
            SocketAddr::V4(v4) => {
                let name = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is large enough and aligned for every kind of address.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(name) };
                mem::size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                let name = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(name) };
                mem::size_of::<libc::sockaddr_in6>()
            }
        };
        Self { storage, len: len as libc::socklen_t }
    }
}

/// The address that the system wrote, if it is one of the Internet.
fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which kind of address it is.
            let name = unsafe { (&raw const *storage).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::from((ip, u16::from_be(name.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { (&raw const *storage).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Some(std::net::SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn header(
    name: &mut libc::sockaddr_storage,
    len: libc::socklen_t,
    piece: &mut libc::iovec,
) -> libc::mmsghdr {
    // SAFETY: all zero is a value of the type.
    let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
    header.msg_hdr.msg_name = (&raw mut *name).cast();
    header.msg_hdr.msg_namelen = len;
    header.msg_hdr.msg_iov = piece;
    header.msg_hdr.msg_iovlen = 1;
    header
}

/// Takes one entry from the error queue: `None` when it is empty, `Some(None)` for one that says nothing
/// about reaching somebody.
fn next_error(fd: RawFd) -> Option<Option<(SocketAddr, Unreachable)>> {
    let mut bytes = [0u8; 64];
    let mut piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // Aligned as control messages have to be.
    let mut control = [0u64; 32];
    // SAFETY: all zero is a value of the type.
    let mut name: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let len = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let mut message = header(&mut name, len, &mut piece).msg_hdr;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control) as _;
    // SAFETY: every pointer in the header is to memory of ours that outlives the call.
    let done =
        unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if done < 0 {
        return None;
    }
    // SAFETY: the kernel has filled the header in.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give pointers to whole headers inside `control`.
        let this = unsafe { &*next };
        let (level, kind) = (this.cmsg_level, this.cmsg_type);
        let is_error = (level == libc::IPPROTO_IP && kind == libc::IP_RECVERR)
            || (level == libc::IPPROTO_IPV6 && kind == libc::IPV6_RECVERR);
        if is_error {
            // SAFETY: data of this kind starts with this struct; it may lie unaligned.
            let error =
                unsafe { libc::CMSG_DATA(next).cast::<libc::sock_extended_err>().read_unaligned() };
            return Some(unreachable(&error).and_then(|what| Some((address(&name)?, what))));
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    Some(None)
}

/// What an ICMP error says, if it says that somebody cannot be reached (RFC 792, RFC 1812 5.2.7.1,
/// RFC 4443 3.1). "Fragmentation needed" and "time exceeded" do not say that.
fn unreachable(error: &libc::sock_extended_err) -> Option<Unreachable> {
    match (error.ee_origin, error.ee_type, error.ee_code) {
        (libc::SO_EE_ORIGIN_ICMP, 3, code) => match code {
            0 | 6 | 11 => Some(Unreachable::Network),
            1 | 7 | 12 => Some(Unreachable::Host),
            2 => Some(Unreachable::Protocol),
            3 => Some(Unreachable::Port),
            9 | 10 | 13 => Some(Unreachable::Prohibited),
            _ => None,
        },
        (libc::SO_EE_ORIGIN_ICMP6, 1, code) => match code {
            0 => Some(Unreachable::Network),
            1 | 5 | 6 => Some(Unreachable::Prohibited),
            3 => Some(Unreachable::Host),
            4 => Some(Unreachable::Port),
            _ => None,
        },
        _ => None,
    }
}

fn set_option(
    fd: RawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is readable for `len` bytes.
    match unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn loopback(v6: bool) -> SocketAddr {
        if v6 { "[::1]:0".parse().unwrap() } else { "127.0.0.1:0".parse().unwrap() }
    }

    #[tokio::test]
    async fn datagrams_come_and_go_in_batches() {
        for v6 in [false, true] {
            let one = Udp::bind(loopback(v6)).unwrap();
            let two = Udp::bind(loopback(v6)).unwrap();
            let bytes: Vec<Vec<u8>> = (0..100u8).map(|i| vec![i; usize::from(i) * 10]).collect();
            let sent = one.send(bytes.iter().map(|b| (two.local(), &b[..])));
            assert_eq!(sent, Sent { sent: 100, ..Sent::default() });
            let mut batch = Batch::default();
            let mut got = Vec::new();
            while got.len() < 100 {
                let mut guard = two.ready().await.unwrap();
                while two.receive(&mut batch).is_ok_and(|n| n > 0) {
                    for (from, bytes) in batch.datagrams() {
                        assert_eq!(from, one.local());
                        got.push(bytes.to_vec());
                    }
                }
                guard.clear_ready();
            }
            assert_eq!(got, bytes);
            let error = two.receive(&mut batch).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            let (drops, room) = two.receive_drops().unwrap();
            assert_eq!(drops, 0);
            assert!(room > 100_000);
        }
    }

    #[tokio::test]
    async fn several_share_an_address_and_nobody_else() {
        for v6 in [false, true] {
            let sockets = bind_all(loopback(v6), 3).unwrap();
            let local = sockets[0].local_addr().unwrap();
            assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == local));
            assert_eq!(bind_all(local, 3).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            assert_eq!(bind_all(local, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            let shared: Vec<_> = sockets.into_iter().map(|s| Udp::of(s).unwrap()).collect();
            // What one peer sends comes to one of them.
            let peer = Udp::bind(loopback(v6)).unwrap();
            peer.send((0..BATCH).map(|_| (local, &b"hello"[..])));
            let mut batch = Batch::default();
            let got = shared.iter().map(|socket| socket.receive(&mut batch).unwrap_or(0));
            let mut got: Vec<_> = got.collect();
            got.sort_unstable();
            assert_eq!(got, [0, 0, BATCH]);
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_told_at_once() {
        for v6 in [false, true] {
            let one = Udp::bind(loopback(v6)).unwrap();
            let closed = {
                let gone = UdpSocket::bind(loopback(v6)).unwrap();
                gone.local_addr().unwrap()
            };
            let sent = one.send([(closed, &b"hello"[..])]);
            assert_eq!(sent.sent, 1);
            let wait = tokio::time::timeout(Duration::from_secs(5), one.ready());
            let mut guard = wait.await.expect("woken by the error").unwrap();
            let mut told = Vec::new();
            let count = one.errors(|to, what| told.push((to, what)));
            assert_eq!((count, &told[..]), (1, &[(closed, Unreachable::Port)][..]));
            guard.clear_ready();
            // The error does not stick to the next datagram.
            let two = Udp::bind(loopback(v6)).unwrap();
            let sent = one.send([(two.local(), &b"hello"[..])]);
            assert_eq!(sent, Sent { sent: 1, ..Sent::default() });
        }
    }

    #[tokio::test]
    async fn a_datagram_that_cannot_leave_holds_up_no_other() {
        let one = Udp::bind(loopback(false)).unwrap();
        let two = Udp::bind(loopback(false)).unwrap();
        // The loopback address reaches nobody outside.
        let nowhere: SocketAddr = "192.0.2.1:5060".parse().unwrap();
        let long = vec![0; 70_000];
        let sent = one.send([
            (two.local(), &b"a"[..]),
            (nowhere, &b"b"[..]),
            (two.local(), &long[..]),
            (two.local(), &b"c"[..]),
        ]);
        assert_eq!(sent.sent, 2, "{sent:?}");
        let to: Vec<_> = sent.failed.iter().map(|(to, _)| *to).collect();
        assert_eq!(to, [nowhere, two.local()]);
    }
}
