//! Sees which calls reach a host, also when nobody there listens any more.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::UdpSocket,
    os::fd::{FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};

use super::{Lab, PORT, Place};
use crate::kernel;

/// Listens to a host's network beside the host: which INVITEs arrive there, and when first.
#[derive(Debug)]
pub struct Witness {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<HashMap<String, f64>>>,
}

impl Witness {
    /// Starts to listen at a place of the lab.
    pub fn start(lab: &Lab, place: Place) -> Result<Self> {
        let socket = kernel::in_namespace(&lab.namespace_file(place), packet_socket)
            .with_context(|| format!("cannot listen beside {}", place.name()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || listen(socket, &flag));
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops, and returns the Call-IDs of the INVITEs seen, with the time of the first (seconds since
    /// 1970).
    pub fn finish(mut self) -> Result<HashMap<String, f64>> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(seen)) => Ok(seen),
            _ => bail!("the witness panicked"),
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // The thread sees it within its timeout and ends by itself.
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A socket that gets every IPv4 packet of this network namespace.
fn packet_socket() -> Result<UdpSocket> {
    let protocol = u16::to_be(0x0800);
    // SAFETY: socket takes numbers only.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, i32::from(protocol))
    };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("cannot open a packet socket");
    }
    // SAFETY: the descriptor is new and ours.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let buffer: libc::c_int = 16 << 20;
    // SAFETY: the value lives through the call and its length is given.
    let set = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&fd),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            std::ptr::from_ref(&buffer).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set != 0 {
        return Err(io::Error::last_os_error()).context("cannot enlarge the buffer");
    }
    // Only recv and the timeout are used of it, which are the same for every kind of datagram socket.
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(Duration::from_millis(100))).context("cannot set a timeout")?;
    Ok(socket)
}

fn listen(socket: UdpSocket, stop: &AtomicBool) -> HashMap<String, f64> {
    let mut seen = HashMap::new();
    let mut packet = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut packet) {
            Ok(length) => {
                if let Some(call_id) = invite(&packet[..length]) {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    seen.entry(call_id.to_owned()).or_insert(now.as_secs_f64());
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The interface went down; it may come back.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
    seen
}

/// The Call-ID of an INVITE without a To tag of its own dialog, in an IPv4 packet to the SIP port.
fn invite(packet: &[u8]) -> Option<&str> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    if *packet.get(9)? != 17 {
        return None;
    }
    let port = packet.get(header + 2..header + 4)?;
    if port != PORT.to_be_bytes() {
        return None;
    }
    let message = std::str::from_utf8(packet.get(header + 8..)?).ok()?;
    let lines = message.strip_prefix("INVITE ")?;
    lines.lines().find_map(|line| line.strip_prefix("Call-ID: ")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(port: u16, text: &str) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[9] = 17;
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        packet.extend_from_slice(text.as_bytes());
        packet
    }

    #[test]
    fn only_an_invite_to_the_sip_port_is_noted() {
        let text = "INVITE sip:a@b SIP/2.0\r\nCall-ID: 7@here\r\n\r\n";
        assert_eq!(invite(&packet(PORT, text)), Some("7@here"));
        assert_eq!(invite(&packet(PORT + 1, text)), None);
        assert_eq!(invite(&packet(PORT, "BYE sip:a@b SIP/2.0\r\nCall-ID: 7@here\r\n\r\n")), None);
        assert_eq!(invite(&packet(PORT, text)[..30]), None);
        assert_eq!(invite(&[]), None);
    }
}
