//! The lab: phones, the proxy and two PBXs, each in a network namespace of its own.
//!
//! ```text
//!  phones 10.10.1.2 ──── ph ┐          ┌ p1 ──── 10.10.2.2 pbx1
//!                           ├  proxy   ┤
//!             (10.10.1.1)   ┘ 10.10.0.1 └ p2 ──── 10.10.3.2 pbx2
//! ```
//!
//! Every link is a veth pair with a network of its own, over IPv4 and over IPv6 alike: 10.10.N.M is
//! fd10:10:N::M too. The proxy's addresses, which phones and PBXs talk to, are on its `lo`. Nothing leaves these namespaces, and nothing is left of them: a [`Lab`] takes
//! everything down when it is dropped, on a panic, and on SIGINT, SIGTERM and SIGHUP; what a killed run
//! left behind goes when the next one starts.

mod baresip;
mod daemon;
mod database;
mod process;
mod remains;
mod scene;
mod sipp;
mod story;
mod witness;

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

pub use baresip::Baresip;
pub use daemon::{Backend, Control, Daemon, Mode, Settings, Totals, binary, users};
pub use database::{Database, Engine};
pub use process::Process;
pub use remains::remove_stale;
pub use scene::{Scene, count, is_empty, now};
pub use sipp::{Event, Running, Sipp, Word};
pub use story::{Call, Outage, Outcome, Share, Story};
pub use witness::Witness;

use crate::kernel;

/// The proxy's address: what phones and PBXs talk to.
pub const PROXY: &str = "10.10.0.1";
/// The same over IPv6.
pub const PROXY_IPV6: &str = "fd10:10:0::1";
/// The port that everybody uses for SIP.
pub const PORT: u16 = 5060;

/// Waits until `look` finds something.
///
/// # Panics
/// When that takes longer than `limit`.
#[track_caller]
pub fn wait_for<T>(limit: Duration, look: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < limit, "not after {limit:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until something holds.
///
/// # Panics
/// When that takes longer than `limit`.
#[track_caller]
pub fn wait_until(limit: Duration, holds: impl Fn() -> bool) {
    wait_for(limit, || holds().then_some(()));
}

const BPFFS: &str = "/sys/fs/bpf";

/// One of the lab's namespaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// The callers.
    Phones,
    /// sipline.
    Proxy,
    /// The first PBX.
    Pbx1,
    /// The second PBX.
    Pbx2,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Phones, Self::Proxy, Self::Pbx1, Self::Pbx2];

    /// The name, as it ends the namespace's name and as the PBX calls itself.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Phones => "phones",
            Self::Proxy => "proxy",
            Self::Pbx1 => "pbx1",
            Self::Pbx2 => "pbx2",
        }
    }

    /// The address that SIP uses there.
    pub const fn address(self) -> &'static str {
        match self {
            Self::Phones => "10.10.1.2",
            Self::Proxy => PROXY,
            Self::Pbx1 => "10.10.2.2",
            Self::Pbx2 => "10.10.3.2",
        }
    }

    /// The address that SIP uses there over IPv6.
    pub const fn address_ipv6(self) -> &'static str {
        match self {
            Self::Phones => "fd10:10:1::2",
            Self::Proxy => PROXY_IPV6,
            Self::Pbx1 => "fd10:10:2::2",
            Self::Pbx2 => "fd10:10:3::2",
        }
    }
}

/// The links: the proxy's end and its addresses, and who is at the other end.
const LINKS: [(&str, &str, &str, Place); 3] = [
    ("ph", "10.10.1.1", "fd10:10:1::1", Place::Phones),
    ("p1", "10.10.2.1", "fd10:10:2::1", Place::Pbx1),
    ("p2", "10.10.3.1", "fd10:10:3::1", Place::Pbx2),
];

/// The proxy's interfaces, where XDP goes.
pub const INTERFACES: [&str; 3] = ["ph", "p1", "p2"];

/// The lab of one run. Dropping it removes everything that it made.
#[derive(Debug)]
pub struct Lab {
    name: String,
    dir: PathBuf,
    /// Programs on the peers' ends, which live as long as these descriptors.
    passers: Vec<OwnedFd>,
    // Last: it takes the rest down.
    _remains: remains::Guard,
}

impl Lab {
    /// Makes the namespaces, links, addresses and routes. Needs root.
    pub fn new() -> Result<Self> {
        Self::make(true)
    }

    /// A lab without XDP: its links are as the kernel makes them, and a native program on the proxy's
    /// interfaces cannot send.
    pub fn plain() -> Result<Self> {
        Self::make(false)
    }

    fn make(xdp: bool) -> Result<Self> {
        // SAFETY: geteuid has no preconditions and cannot fail.
        let user = unsafe { libc::geteuid() };
        ensure!(user == 0, "the lab needs root: it makes network namespaces");
        for program in ["ip", "ethtool", "nsenter", "sipp"] {
            let found = Command::new(program)
                .arg(if program == "sipp" { "-v" } else { "--version" })
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            ensure!(found.is_ok(), "`{program}` is not there: run `cargo xtask setup`");
        }
        remove_stale();
        mount_bpffs()?;

        let name = remains::next_name();
        let dir = std::env::temp_dir().join(&name);
        // The guard first: whatever fails from here on is taken down again.
        let guard = remains::Guard::new(remains::Remains {
            namespaces: Place::ALL.iter().map(|place| namespace(&name, *place)).collect(),
            pins: Path::new(BPFFS).join(&name),
            dir: dir.clone(),
        });
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut lab = Self { name, dir, passers: Vec::new(), _remains: guard };
        lab.build(xdp).context("cannot build the lab")?;
        Ok(lab)
    }

    /// A directory of this lab's own, for logs and sockets; it goes with the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The bpffs directory of this lab's own, for pins; whoever pins makes it, and it goes with the lab.
    pub fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.name)
    }

    /// A program to be run in one of the namespaces.
    ///
    /// By nsenter, because `ip netns exec` mounts a fresh /sys, where no pin is seen.
    pub fn command(&self, place: Place, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace_file(place).display()));
        command.arg(program.as_ref());
        command
    }

    /// Runs a short program in one of the namespaces and returns what it prints.
    pub fn run(&self, place: Place, program: &str, args: &[&str]) -> Result<String> {
        output(self.command(place, program).args(args))
    }

    /// Makes a peer's host fall silent, as one that has lost its power: packets still go there, and
    /// nothing comes back, not even ICMP or ARP.
    pub fn silence(&self, peer: Place) -> Result<()> {
        // A host without the address forwards nothing, so what comes for it ends there in silence. The
        // link stays up, as that of a host behind a switch would, and a witness still sees what comes.
        let address = format!("{}/24", peer.address());
        self.run(peer, "ip", &["address", "delete", &address, "dev", "eth0"]).map(drop)
    }

    /// Undoes [`Lab::silence`].
    pub fn revive(&self, peer: Place) -> Result<()> {
        let address = format!("{}/24", peer.address());
        self.run(peer, "ip", &["address", "add", &address, "dev", "eth0"])?;
        self.add_default_route(peer)
    }

    /// Takes away the programs at the peers' ends, which only pass everything, so that others have room there; or attaches
    /// them again.
    pub fn pass_everything(&mut self, on: bool) -> Result<()> {
        self.passers.clear();
        for (_, _, _, peer) in LINKS.iter().filter(|_| on) {
            self.passers.push(kernel::pass_everything(&self.namespace_file(*peer), "eth0")?);
        }
        Ok(())
    }

    /// The control command of a daemon whose control socket is this lab's.
    pub fn control(&self) -> Result<Control> {
        Control::of(self)
    }

    /// The file that stands for a namespace.
    pub fn namespace_file(&self, place: Place) -> PathBuf {
        Path::new("/run/netns").join(namespace(&self.name, place))
    }

    fn build(&mut self, xdp: bool) -> Result<()> {
        for place in Place::ALL {
            ip(&["netns", "add", &namespace(&self.name, place)])?;
            self.run(place, "ip", &["link", "set", "lo", "up"])?;
            // Without the search for another owner, which keeps a new address, and neighbours behind its
            // interface, from use for a second or two.
            let accept_dad = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad";
            self.run(place, "sh", &["-c", accept_dad])?;
        }
        let proxy = namespace(&self.name, Place::Proxy);
        self.run(Place::Proxy, "ip", &["address", "add", &format!("{PROXY}/32"), "dev", "lo"])?;
        self.run(
            Place::Proxy,
            "ip",
            &["address", "add", &format!("{PROXY_IPV6}/128"), "dev", "lo"],
        )?;
        for (end, address, address_ipv6, peer) in LINKS {
            let far = namespace(&self.name, peer);
            ip(&[
                "link", "add", end, "netns", &proxy, "type", "veth", "peer", "name", "eth0",
                "netns", &far,
            ])?;
            for (place, interface, address, address_ipv6) in [
                (Place::Proxy, end, address, address_ipv6),
                (peer, "eth0", peer.address(), peer.address_ipv6()),
            ] {
                // At once, and not when a task of the kernel has found that nobody is to be asked.
                for (address, more) in
                    [(format!("{address}/24"), None), (format!("{address_ipv6}/64"), Some("nodad"))]
                {
                    let mut add = vec!["address", "add", &address, "dev", interface];
                    add.extend(more);
                    self.run(place, "ip", &add)?;
                }
                if xdp {
                    // Checksums must be real: a program that edits a packet cannot finish a partial
                    // one. GRO switches on the receive path that takes frames sent by XDP.
                    self.run(place, "ethtool", &["-K", interface, "tx", "off", "gro", "on"])?;
                }
                self.run(place, "ip", &["link", "set", interface, "up"])?;
            }
            self.add_default_route(peer)?;
            self.run(peer, "ip", &["-6", "route", "add", "default", "via", address_ipv6])?;
        }
        self.pass_everything(xdp)
    }

    fn add_default_route(&self, peer: Place) -> Result<()> {
        let gateway = LINKS
            .iter()
            .find(|(_, _, _, at)| *at == peer)
            .map(|(_, address, _, _)| *address)
            .context("the proxy has no default route")?;
        self.run(peer, "ip", &["route", "replace", "default", "via", gateway]).map(drop)
    }
}

fn namespace(lab: &str, place: Place) -> String {
    format!("{lab}-{}", place.name())
}

fn ip(args: &[&str]) -> Result<String> {
    output(Command::new("ip").args(args))
}

/// Runs a short program to its end; its complaint is the error.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!(
            "{:?} failed ({}): {}{}",
            command,
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            // With --json, sipline says there what is wrong.
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Pins need a BPF file system. It is left mounted: others may have begun to use it.
fn mount_bpffs() -> Result<()> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    if mounts.lines().any(|line| line.contains(&format!(" {BPFFS} bpf "))) {
        return Ok(());
    }
    output(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS])).map(drop)
}
