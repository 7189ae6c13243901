//! The kernel asked directly: what it can do, by loading the smallest program that needs it.
//!
//! Without any library, so that it answers on a machine where nothing of ours has been built yet.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::Error,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};

/// Number of the helper `bpf_loop` (kernel 5.17).
pub const BPF_LOOP: i32 = 181;
/// Number of the helper `bpf_xdp_load_bytes` (kernel 5.18).
pub const XDP_LOAD_BYTES: i32 = 189;

// From linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_PASS: i32 = 2;

/// `r0 = VALUE`
const fn set_r0(value: i32) -> [u8; 8] {
    let v = value.to_ne_bytes();
    [0xb7, 0, 0, 0, v[0], v[1], v[2], v[3]]
}

/// `call HELPER`
const fn call(helper: i32) -> [u8; 8] {
    let v = helper.to_ne_bytes();
    [0x85, 0, 0, 0, v[0], v[1], v[2], v[3]]
}

/// `may_goto +0`
const MAY_GOTO: [u8; 8] = [0xe5, 0, 0, 0, 0, 0, 0, 0];
/// `exit`
const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`; what follows is zero.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The start of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Whether a program may be loaded at all.
pub fn load() -> Result<()> {
    load_program(&[set_r0(XDP_PASS), EXIT]).map(drop)
}

/// Whether the verifier knows the instruction `may_goto`.
pub fn may_goto() -> Result<()> {
    load_program(&[MAY_GOTO, set_r0(XDP_PASS), EXIT]).map(drop)
}

/// Whether the kernel has this helper for XDP programs.
///
/// The program calls it without arguments, so it never loads; the verifier's words tell a helper that
/// it does not know from one that it knows and sees called wrongly.
pub fn helper(number: i32) -> Result<bool> {
    match load_program(&[call(number), set_r0(XDP_PASS), EXIT]) {
        Ok(_) => Ok(true),
        Err(error) => {
            let text = format!("{error:#}");
            if text.contains("invalid func") || text.contains("unknown func") {
                return Ok(false);
            }
            if text.contains("verifier:") { Ok(true) } else { Err(error) }
        }
    }
}

/// Whether veth takes an XDP program in native mode: tried on a pair in a network namespace of its
/// own, which is gone afterwards.
pub fn veth_native() -> Result<()> {
    // Only the thread changes its namespace; both end together.
    on_a_thread(|| {
        // SAFETY: unshare takes flags and touches no memory of ours.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(Error::last_os_error()).context("cannot make a network namespace");
        }
        let made = Command::new("ip")
            .args(["link", "add", "probe0", "type", "veth", "peer", "name", "probe1"])
            .stdin(Stdio::null())
            .output()
            .context("cannot start `ip`")?;
        if !made.status.success() {
            bail!("cannot make a veth pair: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        attach_pass("probe0").map(drop)
    })
}

/// Attaches a program that passes everything to an interface of this network namespace, in native
/// mode. It stays until the descriptor is closed or the interface is gone.
///
/// A veth interface whose peer sends by XDP loses frames unless it runs a program itself.
pub fn pass_everything(namespace: &Path, interface: &str) -> Result<OwnedFd> {
    in_namespace(namespace, || attach_pass(interface))
}

/// Runs `work` on a thread of its own inside a network namespace.
pub fn in_namespace<T: Send>(
    namespace: &Path,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    on_a_thread(|| {
        let file = File::open(namespace)
            .with_context(|| format!("no network namespace {}", namespace.display()))?;
        // SAFETY: setns takes an open descriptor and a flag; it moves this thread only.
        if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(Error::last_os_error())
                .with_context(|| format!("cannot enter {}", namespace.display()));
        }
        work()
    })
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn attach_pass(interface: &str) -> Result<OwnedFd> {
    let name = CString::new(interface)?;
    // SAFETY: the name is a C string that lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(Error::last_os_error()).with_context(|| format!("no interface {interface}"));
    }
    let program = load_program(&[set_r0(XDP_PASS), EXIT])?;
    let attr = LinkCreate {
        prog_fd: u32::try_from(program.as_raw_fd())?,
        target_ifindex: index,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    bpf(BPF_LINK_CREATE, &attr)
        .with_context(|| format!("cannot attach to {interface} in native mode"))
}

fn load_program(instructions: &[[u8; 8]]) -> Result<OwnedFd> {
    let license = CString::from(c"Dual MIT/GPL");
    let mut log = vec![0u8; 64 * 1024];
    let attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: u32::try_from(instructions.len())?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 1,
        log_size: u32::try_from(log.len())?,
        log_buf: log.as_mut_ptr() as u64,
        ..ProgLoad::default()
    };
    bpf(BPF_PROG_LOAD, &attr).map_err(|error| {
        let words = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
        if words.is_empty() {
            anyhow::Error::from(error)
        } else {
            anyhow::anyhow!("{error}; verifier: {}", words.trim())
        }
    })
}

fn bpf<T>(command: libc::c_long, attr: &T) -> Result<OwnedFd, Error> {
    // SAFETY: `attr` is the start of a `union bpf_attr` for this command and lives through the call,
    // as do the buffers that it points to; the kernel takes what is missing at its end as zero.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    match i32::try_from(fd) {
        // SAFETY: the kernel just gave us this descriptor and nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(Error::last_os_error()),
    }
}
