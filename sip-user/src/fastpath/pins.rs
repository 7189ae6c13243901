//! What outlives the daemon: maps and links pinned in a bpffs, under the version of their layout.
//!
//! ```text
//! <pin>/v1/CALLS ...            the maps in KEPT and HELD
//! <pin>/v1/link-eth0            the program's attachment to eth0
//! <pin>/v1/lo-forwarding-was-0  present if we switched it on (any map, pinned once more); lo-forwarding6-was-0 for IPv6
//! ```

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::{Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use sip_ebpf::tables::LAYOUT;
use tracing::{info, warn};

use super::tables::{HELD, KEPT};

const LINK: &str = "link-";
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The directory of the configuration, and the part of it that is of our layout.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
    ours: PathBuf,
}

impl Pins {
    /// Makes the directories where they are missing, mounting the bpffs at its usual place if
    /// nobody did.
    pub(super) fn open(root: &Path) -> Result<Self> {
        on_bpffs(root)?;
        let pins = Self { root: root.to_owned(), ours: root.join(format!("v{LAYOUT}")) };
        fs::create_dir_all(&pins.ours)
            .with_context(|| format!("cannot make {}", pins.ours.display()))?;
        Ok(pins)
    }

    /// What is pinned under `root`, if anything is.
    pub(super) fn existing(root: &Path) -> Option<Self> {
        root.is_dir().then(|| Self { root: root.to_owned(), ours: root.join(format!("v{LAYOUT}")) })
    }

    /// The pinned maps that fit the ones just made from the object; the others are named in the log
    /// with what differs.
    pub(super) fn fitting(&self, made: &Ebpf) -> BTreeMap<&'static str, PathBuf> {
        let mut fitting = BTreeMap::new();
        for name in KEPT {
            let path = self.ours.join(name);
            if !path.exists() {
                continue;
            }
            let difference = match (MapInfo::from_pin(&path), made.map(name).map(info_of)) {
                (Ok(old), Some(Ok(new))) => difference(&old, &new),
                (Err(error), _) | (_, Some(Err(error))) => Some(error.to_string()),
                (_, None) => Some("the program has no such map any more".into()),
            };
            match difference {
                None => {
                    fitting.insert(name, path);
                }
                Some(difference) => {
                    warn!(map = name, difference, "pinned map does not fit: made anew, data lost");
                }
            }
        }
        fitting
    }

    /// Pins every map of [`KEPT`] that is not `there` yet, over a pin that did not fit, and those of [`HELD`] over what an
    /// earlier program jumped by.
    pub(super) fn pin_maps(&self, ebpf: &Ebpf, there: &BTreeMap<&str, PathBuf>) -> Result<()> {
        for name in KEPT.into_iter().chain(HELD) {
            if there.contains_key(name) {
                continue;
            }
            let path = self.ours.join(name);
            remove(&path)?;
            let map = ebpf.map(name).with_context(|| format!("the object has no map {name}"))?;
            map.pin(&path).with_context(|| format!("cannot pin {}", path.display()))?;
        }
        Ok(())
    }

    /// Where the attachment to an interface is pinned.
    pub(super) fn link(&self, interface: &str) -> PathBuf {
        self.ours.join(link_name(interface))
    }

    /// The pinned attachment to an interface, of this layout or another, and where it is.
    pub(super) fn find_link(&self, interface: &str) -> Option<(PathBuf, FdLink)> {
        let name = link_name(interface);
        let mut versions = self.versions();
        // Ours first.
        versions.sort_by_key(|version| *version != self.ours);
        for path in versions.iter().map(|version| version.join(&name)).filter(|p| p.exists()) {
            match PinnedLink::from_pin(&path) {
                Ok(link) => return Some((path, FdLink::from(link))),
                Err(error) => {
                    warn!(pin = %path.display(), %error, "cannot open a pinned link");
                }
            }
        }
        None
    }

    /// Removes the pins of interfaces that are not in `keep` and all pins of other layouts, which
    /// detaches what they held.
    pub(super) fn sweep(&self, keep: &[String]) -> Result<()> {
        for version in self.versions() {
            let ours = version == self.ours;
            for (interface, path) in links(&version) {
                if !ours || !keep.contains(&interface) {
                    info!(interface, "detaching: not in the configuration any more");
                    remove_link(&path)?;
                }
            }
            if !ours {
                remove_directory(&version)?;
            }
        }
        Ok(())
    }

    /// Remembers something over restarts. bpffs holds no text, so one of the maps is pinned under a name that says it.
    pub(super) fn remember(&self, what: &str) -> Result<()> {
        let path = self.ours.join(what);
        if path.exists() {
            return Ok(());
        }
        let map = MapData::from_pin(self.ours.join("CONFIG"))?;
        map.pin(&path).with_context(|| format!("cannot pin {}", path.display()))
    }

    /// Whether that was remembered, by us or by a daemon of another layout.
    pub(super) fn remembers(&self, what: &str) -> bool {
        self.versions().iter().any(|version| version.join(what).exists())
    }

    /// Removes everything, links first; gives the interfaces that were attached.
    pub(super) fn remove_all(&self) -> Result<Vec<String>> {
        let mut interfaces = Vec::new();
        for version in self.versions() {
            for (interface, path) in links(&version) {
                remove_link(&path)?;
                interfaces.push(interface);
            }
            remove_directory(&version)?;
        }
        // Others may keep pins here, and a mount point cannot go: both are fine.
        let _ = fs::remove_dir(&self.root);
        Ok(interfaces)
    }

    fn versions(&self) -> Vec<PathBuf> {
        let is_version = |name: &str| {
            name.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.parse::<u32>().is_ok())
        };
        entries(&self.root)
            .into_iter()
            .filter(|(name, path)| is_version(name) && path.is_dir())
            .map(|(_, path)| path)
            .collect()
    }
}

fn info_of(map: &Map) -> Result<MapInfo, aya::maps::MapError> {
    let data = match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::RingBuf(data) => data,
        _ => return Err(aya::maps::MapError::InvalidMapType { map_type: 0 }),
    };
    data.info()
}

/// The first attribute that differs, in words.
fn difference(old: &MapInfo, new: &MapInfo) -> Option<String> {
    let attributes = [
        ("key size", old.key_size(), new.key_size()),
        ("value size", old.value_size(), new.value_size()),
        ("max_entries", old.max_entries(), new.max_entries()),
        ("flags", old.map_flags(), new.map_flags()),
    ];
    let kinds = (old.map_type().ok(), new.map_type().ok());
    if kinds.0 != kinds.1 {
        return Some(format!("type {:?}, wanted {:?}", kinds.0, kinds.1));
    }
    attributes
        .iter()
        .find(|(_, old, new)| old != new)
        .map(|(name, old, new)| format!("{name} {old}, wanted {new}"))
}

/// bpffs has no names with a dot, and interfaces do (`eth0.7`).
fn link_name(interface: &str) -> String {
    format!("{LINK}{}", interface.replace('%', "%25").replace('.', "%2e"))
}

fn interface_name(name: &str) -> Option<String> {
    Some(name.strip_prefix(LINK)?.replace("%2e", ".").replace("%25", "%"))
}

fn links(directory: &Path) -> Vec<(String, PathBuf)> {
    entries(directory)
        .into_iter()
        .filter_map(|(name, path)| Some((interface_name(&name)?, path)))
        .collect()
}

fn entries(directory: &Path) -> Vec<(String, PathBuf)> {
    let Ok(read) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut found: Vec<_> = read
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect();
    found.sort();
    found
}

/// Detaches a pinned link and removes its pin. The program is off the interface when this returns:
/// that is asked for, since the kernel lets go of a pin some time after its file is gone.
pub(super) fn remove_link(path: &Path) -> Result<()> {
    let name = CString::new(path.as_os_str().as_bytes()).context("a path holds a NUL")?;
    let object = ObjectGet { path: name.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &object)
        .with_context(|| format!("cannot open the pin {}", path.display()))?;
    // SAFETY: a descriptor that the kernel has just given to us alone.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let detach = LinkDetach { fd: link.as_raw_fd() as u32 };
    bpf(BPF_LINK_DETACH, &detach)
        .with_context(|| format!("cannot detach {}: is it a link of XDP?", path.display()))?;
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}

// From linux/bpf.h; the aya crate has neither call.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Attributes of `BPF_OBJ_GET`.
#[repr(C)]
struct ObjectGet {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Attributes of `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkDetach {
    fd: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes are as long as is said, and the callers' pointers in them are valid.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn remove_directory(directory: &Path) -> Result<()> {
    for (_, path) in entries(directory) {
        remove(&path)?;
    }
    fs::remove_dir(directory).with_context(|| format!("cannot remove {}", directory.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Checks that `path`, or what will hold it, is on a bpffs.
fn on_bpffs(path: &Path) -> Result<()> {
    let usual = Path::new("/sys/fs/bpf");
    if path.starts_with(usual) && !is_bpffs(usual)? {
        mount(usual)?;
    }
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    if !is_bpffs(there)? {
        bail!(
            "xdp.pin: {} is not on a bpffs; mount one (`mount -t bpf bpf /sys/fs/bpf`) and name a \
             directory in it, or write pin = \"\" to pin nothing",
            path.display()
        );
    }
    Ok(())
}

fn is_bpffs(path: &Path) -> Result<bool> {
    let name = CString::new(path.as_os_str().as_bytes()).context("xdp.pin holds a NUL")?;
    // SAFETY: all zero is a value of this struct of integers.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a C string, and a struct to be written.
    if unsafe { libc::statfs(name.as_ptr(), &raw mut stat) } != 0 {
        let error = io::Error::last_os_error();
        return Err(error).with_context(|| format!("xdp.pin: cannot look at {}", path.display()));
    }
    Ok(stat.f_type == BPF_FS_MAGIC)
}

fn mount(at: &Path) -> Result<()> {
    let target = CString::new(at.as_os_str().as_bytes()).context("a path holds a NUL")?;
    // SAFETY: C strings, and no data.
    let done = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            target.as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            std::ptr::null(),
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error()).with_context(|| {
            format!("no bpffs at {}: mount one with `mount -t bpf bpf {0}`", at.display())
        });
    }
    info!(at = %at.display(), "mounted a bpffs");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_go_there_and_back() {
        for name in ["eth0", "eth0.7", "a%2eb", "bond0.1.2"] {
            let pin = link_name(name);
            assert!(!pin.contains('.'), "{pin}");
            assert_eq!(interface_name(&pin).as_deref(), Some(name));
        }
        assert_eq!(interface_name("CALLS"), None);
    }

    #[test]
    fn a_directory_elsewhere_is_refused_with_advice() {
        let error = Pins::open(Path::new("/tmp/no-bpffs-here")).unwrap_err().to_string();
        assert!(error.contains("mount -t bpf"), "{error}");
        assert!(!Path::new("/tmp/no-bpffs-here").exists());
    }
}
