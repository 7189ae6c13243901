//! Interfaces as the kernel tells of them over rtnetlink: names, VLANs, and which XDP program runs.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use sip_ebpf::tables::VlanPort;

use super::Mode;

/// An interface of the network namespace of the calling thread.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    /// Index of the interface below this one; 0 if there is none.
    pub(super) below: u32,
    /// Of a VLAN device: TPID and VLAN id.
    pub(super) vlan: Option<(u16, u16)>,
    /// Modes and ids of the XDP programs attached.
    pub(super) xdp: Vec<(Mode, u32)>,
}

// From linux/if_link.h, which the libc crate has only in part.
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const XDP_ATTACHED_DRV: u8 = 1;
const XDP_ATTACHED_SKB: u8 = 2;

/// All interfaces of the calling thread's network namespace.
pub(super) fn all() -> Result<Vec<Interface>> {
    let socket = dump().context("cannot ask the kernel for its interfaces (rtnetlink)")?;
    let mut found = Vec::new();
    // The kernel never sends more than 32 KiB at once in a dump.
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        // SAFETY: the buffer is as long as is said.
        let n =
            unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if n < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error).context("cannot read interfaces from rtnetlink");
        }
        if messages(&buffer[..n as usize], &mut found)? {
            return Ok(found);
        }
    }
}

/// The interfaces that lead to one of `ports`, and how: the port itself without a tag, a VLAN device
/// above it with its tags. This is what `VLANS` holds.
///
/// # Errors
/// When the kernel does not tell of its interfaces.
pub fn ports(ports: &[&str]) -> Result<Vec<(u32, VlanPort)>> {
    Ok(lead(&all()?, ports))
}

fn dump() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // nlmsghdr, then an empty ifinfomsg.
    let mut request = [0u8; 32];
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    request[0..4].copy_from_slice(&32u32.to_ne_bytes());
    request[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the buffer is as long as is said.
    let sent = unsafe { libc::send(fd, request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// Reads one datagram of the dump; true when it was the last.
fn messages(mut data: &[u8], found: &mut Vec<Interface>) -> Result<bool> {
    while data.len() >= 16 {
        let len = u32::from_ne_bytes([data[0], data[1], data[2], data[3]]) as usize;
        if len < 16 || len > data.len() {
            bail!("rtnetlink sent a message with a wrong length");
        }
        match i32::from(u16::from_ne_bytes([data[4], data[5]])) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = number::<4>(&data[16..len]).map_or(0, i32::from_ne_bytes);
                return Err(io::Error::from_raw_os_error(-code)).context("rtnetlink refuses");
            }
            kind if kind == i32::from(libc::RTM_NEWLINK) && len >= 32 => {
                found.push(interface(&data[16..len]));
            }
            _ => {}
        }
        data = &data[len.next_multiple_of(4).min(data.len())..];
    }
    Ok(false)
}

fn lead(all: &[Interface], ports: &[&str]) -> Vec<(u32, VlanPort)> {
    let by_index = |index| all.iter().find(|i: &&Interface| i.index == index);
    let mut found = Vec::new();
    for interface in all {
        let mut tags = Vec::new();
        let mut at = interface;
        while let (Some((protocol, id)), true) = (at.vlan, tags.len() < 2) {
            let Some(below) = by_index(at.below) else { break };
            tags.insert(0, [protocol.to_be(), id.to_be()]);
            at = below;
        }
        if !ports.contains(&at.name.as_str()) {
            continue;
        }
        let mut port = VlanPort { port: at.index, tags: tags.len() as u32, ..VlanPort::default() };
        for (to, from) in port.tag.iter_mut().zip(tags) {
            *to = from;
        }
        found.push((interface.index, port));
    }
    found
}

fn interface(message: &[u8]) -> Interface {
    let mut this = Interface {
        index: number::<4>(&message[4..]).map_or(0, u32::from_ne_bytes),
        ..Interface::default()
    };
    for (kind, value) in attributes(&message[16..]) {
        match kind {
            IFLA_IFNAME => this.name = text(value),
            IFLA_LINK => this.below = number::<4>(value).map_or(0, u32::from_ne_bytes),
            IFLA_LINKINFO => this.vlan = vlan(value),
            IFLA_XDP => this.xdp = xdp(value),
            _ => {}
        }
    }
    this
}

fn vlan(info: &[u8]) -> Option<(u16, u16)> {
    let mut is_vlan = false;
    let (mut id, mut protocol) = (None, None);
    for (kind, value) in attributes(info) {
        match kind {
            IFLA_INFO_KIND => is_vlan = text(value) == "vlan",
            IFLA_INFO_DATA => {
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_VLAN_ID => id = number::<2>(value).map(u16::from_ne_bytes),
                        IFLA_VLAN_PROTOCOL => protocol = number::<2>(value).map(u16::from_be_bytes),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if is_vlan { protocol.zip(id) } else { None }
}

fn xdp(value: &[u8]) -> Vec<(Mode, u32)> {
    let mut attached = 0;
    let mut single = 0;
    let mut both = Vec::new();
    for (kind, value) in attributes(value) {
        let id = number::<4>(value).map_or(0, u32::from_ne_bytes);
        match kind {
            IFLA_XDP_ATTACHED => attached = value.first().copied().unwrap_or(0),
            IFLA_XDP_PROG_ID => single = id,
            IFLA_XDP_DRV_PROG_ID => both.push((Mode::Native, id)),
            IFLA_XDP_SKB_PROG_ID => both.push((Mode::Generic, id)),
            _ => {}
        }
    }
    if !both.is_empty() {
        return both;
    }
    match attached {
        XDP_ATTACHED_DRV => vec![(Mode::Native, single)],
        XDP_ATTACHED_SKB => vec![(Mode::Generic, single)],
        _ => Vec::new(),
    }
}

/// The attributes in a piece of a netlink message; stops at the first whose length is wrong.
fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(number::<2>(data)?));
        // Two bits of the type say how the value is coded.
        let kind = u16::from_ne_bytes(number::<2>(data.get(2..)?)?) & 0x3fff;
        let value = data.get(4..len)?;
        data = data.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn number<const N: usize>(data: &[u8]) -> Option<[u8; N]> {
    data.first_chunk::<N>().copied()
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link(index: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body.extend(attributes.concat());
        let mut message = ((body.len() + 16) as u32).to_ne_bytes().to_vec();
        message.extend(libc::RTM_NEWLINK.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    #[test]
    fn a_vlan_and_what_runs_on_it() {
        let data = [attribute(IFLA_VLAN_ID, &[7, 0]), attribute(IFLA_VLAN_PROTOCOL, &[0x81, 0])];
        let info =
            [attribute(IFLA_INFO_KIND, b"vlan\0"), attribute(IFLA_INFO_DATA, &data.concat())];
        let xdp = [
            attribute(IFLA_XDP_ATTACHED, &[XDP_ATTACHED_DRV]),
            attribute(IFLA_XDP_PROG_ID, &99u32.to_ne_bytes()),
        ];
        let message = link(
            5,
            &[
                attribute(IFLA_IFNAME, b"eth0.7\0"),
                attribute(IFLA_LINK, &3u32.to_ne_bytes()),
                attribute(IFLA_LINKINFO, &info.concat()),
                attribute(IFLA_XDP, &xdp.concat()),
            ],
        );
        let mut found = Vec::new();
        assert!(!messages(&message, &mut found).unwrap());
        let want = Interface {
            index: 5,
            name: "eth0.7".into(),
            below: 3,
            vlan: Some((0x8100, u16::from_ne_bytes([7, 0]))),
            xdp: vec![(Mode::Native, 99)],
        };
        assert_eq!(found, [want]);
    }

    #[test]
    fn cut_messages_are_errors_or_nothing() {
        let message = link(5, &[attribute(IFLA_IFNAME, b"eth0\0"), attribute(IFLA_XDP, &[1; 9])]);
        for n in 16..message.len() {
            assert!(messages(&message[..n], &mut Vec::new()).is_err(), "{n}");
            // A length that fits, over attributes that do not.
            let mut cut = message[..n].to_vec();
            cut[..4].copy_from_slice(&(n as u32).to_ne_bytes());
            assert!(!messages(&cut, &mut Vec::new()).unwrap());
        }
    }

    #[test]
    fn this_machine_has_a_loopback() {
        let found = all().unwrap();
        assert!(found.iter().any(|i| i.name == "lo" && i.index == 1), "{found:?}");
    }

    fn device(index: u32, name: &str, below: u32, vlan: Option<(u16, u16)>) -> Interface {
        Interface { index, name: name.into(), below, vlan, xdp: Vec::new() }
    }

    #[test]
    fn vlan_devices_lead_to_their_port() {
        let all = [
            device(1, "lo", 0, None),
            device(2, "eth0", 0, None),
            device(3, "eth0.7", 2, Some((0x8100, 7))),
            device(4, "qinq", 5, Some((0x8100, 8))),
            device(5, "outer", 2, Some((0x88a8, 9))),
            device(6, "eth1.7", 7, Some((0x8100, 7))),
            device(7, "eth1", 0, None),
            device(8, "deep", 4, Some((0x8100, 1))),
        ];
        let tag = |protocol: u16, id: u16| [protocol.to_be(), id.to_be()];
        let port = |tags, tag| VlanPort { port: 2, tags, tag };
        let found = lead(&all, &["eth0"]);
        let want = [
            (2, port(0, [[0; 2]; 2])),
            (3, port(1, [tag(0x8100, 7), [0; 2]])),
            (4, port(2, [tag(0x88a8, 9), tag(0x8100, 8)])),
            (5, port(1, [tag(0x88a8, 9), [0; 2]])),
        ];
        assert_eq!(found, want);
    }
}
