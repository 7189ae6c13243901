//! `doctor`: what is there and what is missing, one line each, and what to do about it.

use std::{env, fs, path::Path};

use anyhow::{Result, bail};
use sipline_tests::{kernel as probe, lab::Engine};

use crate::{
    process::{find, is_root, output},
    setup::{self, PROGRAMS},
    toolchain,
};

pub(crate) fn run() -> Result<()> {
    let mut report = Report::default();
    build_tools(&mut report);
    kernel(&mut report);
    lab(&mut report);
    interfaces(&mut report);
    if report.missing > 0 {
        bail!("{} missing: `cargo xtask setup` installs what can be installed", report.missing);
    }
    println!("all that is needed is there");
    Ok(())
}

/// Prints the lines and counts what is missing.
#[derive(Default)]
struct Report {
    missing: u32,
}

impl Report {
    fn ok(&mut self, what: &str, found: impl AsRef<str>) {
        println!("ok       {what:<22} {}", found.as_ref());
    }

    /// Not needed, but good to know.
    fn note(&mut self, what: &str, found: impl AsRef<str>) {
        println!("note     {what:<22} {}", found.as_ref());
    }

    fn missing(&mut self, what: &str, advice: impl AsRef<str>) {
        self.missing += 1;
        println!("MISSING  {what:<22} {}", advice.as_ref());
    }
}

fn build_tools(report: &mut Report) {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    match output(rustc, ["--version"]) {
        Some(version) => report.ok("host compiler", version.trim()),
        None => report.missing("host compiler", "install Rust 1.95 or newer, https://rustup.rs"),
    }
    for (tool, component) in [("cargo-clippy", "clippy"), ("cargo-fmt", "rustfmt")] {
        match find(tool) {
            Some(_) => report.ok(component, "for contributors"),
            None => report
                .note(component, format!("for contributors: `rustup component add {component}`")),
        }
    }

    let compiler = toolchain::compiler();
    match &compiler {
        Ok(Some(compiler)) => {
            let way = match compiler.kind {
                toolchain::Kind::Debian => "Debian's package",
                toolchain::Kind::Nightly => "rustup nightly, builds core itself",
            };
            report.ok(
                "BPF compiler",
                format!("{} ({way}, LLVM {})", compiler.version, compiler.llvm),
            );
        }
        Ok(None) => report.missing(
            "BPF compiler",
            format!(
                "Debian: {}; nightly: {}. `cargo xtask setup`",
                toolchain::debian().err().unwrap_or_default(),
                toolchain::nightly().err().unwrap_or_default(),
            ),
        ),
        Err(error) => report.missing("BPF compiler", error.to_string()),
    }

    let wanted = compiler.ok().flatten().map(|compiler| compiler.llvm);
    match toolchain::linker() {
        None => report.missing("bpf-linker", "not there, or does not start: `cargo xtask setup`"),
        Some(linker) => match (linker.llvm, wanted) {
            (Some(has), Some(wants)) if has != wants => report.missing(
                "bpf-linker",
                format!(
                    "{} has LLVM {has}, the compiler LLVM {wants}: `cargo xtask setup`",
                    linker.version
                ),
            ),
            (Some(has), _) => {
                report.ok("bpf-linker", format!("{}, LLVM {has} as the compiler", linker.version));
            }
            (None, _) => report.ok(
                "bpf-linker",
                format!("{}, its LLVM cannot be told from outside", linker.version),
            ),
        },
    }
}

fn kernel(report: &mut Report) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    report.ok("kernel", release.trim());

    if !is_root() {
        report.note("root", "some questions to the kernel need root: run doctor as root");
    }
    for (name, bit) in [("CAP_NET_ADMIN", 12), ("CAP_BPF", 39)] {
        // CAP_SYS_ADMIN includes CAP_BPF.
        if has_capability(bit) || has_capability(21) {
            report.ok(name, "held");
        } else {
            report.missing(name, "run as root: XDP and the lab need it (mode `off` does not)");
        }
    }

    match probe::load() {
        Ok(()) => report.ok("BPF programs", "load"),
        Err(error) => report.missing("BPF programs", format!("do not load: {error:#}")),
    }
    let bpf_loop = probe::helper(probe::BPF_LOOP);
    match probe::may_goto() {
        Ok(()) => report.ok("may_goto", "there"),
        Err(_) => report.note("may_goto", "needs kernel 6.9; the slower bpf_loop build is used"),
    }
    match bpf_loop {
        Ok(true) => report.ok("bpf_loop", "there"),
        Ok(false) => report.missing("bpf_loop", "needs kernel 5.17; mode `off` works without"),
        Err(error) => report.missing("bpf_loop", format!("cannot ask: {error:#}")),
    }
    match probe::helper(probe::XDP_LOAD_BYTES) {
        Ok(true) => report.ok("bpf_xdp_load_bytes", "there"),
        Ok(false) => {
            report.missing("bpf_xdp_load_bytes", "needs kernel 5.18; mode `off` works without")
        }
        Err(error) => report.missing("bpf_xdp_load_bytes", format!("cannot ask: {error:#}")),
    }
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        report.ok("BTF of the kernel", "/sys/kernel/btf/vmlinux");
    } else {
        report.note("BTF of the kernel", "not there; sipline does not need it");
    }
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default().trim() {
        "0" => report.note("BPF JIT", "off, so slow: `sysctl net.core.bpf_jit_enable=1`"),
        "" => report.note("BPF JIT", "cannot be read here"),
        _ => report.ok("BPF JIT", "on"),
    }
    if setup::bpffs_is_mounted() {
        report.ok("BPF file system", "/sys/fs/bpf");
    } else {
        report.missing("BPF file system", "`mount -t bpf bpf /sys/fs/bpf`, or `cargo xtask setup`");
    }
}

fn lab(report: &mut Report) {
    for (program, package) in PROGRAMS {
        match find(program) {
            Some(path) => report.ok(program, path.display().to_string()),
            None => report.missing(program, format!("package {package}: `cargo xtask setup`")),
        }
    }
    for engine in Engine::ALL {
        match engine.find() {
            Some(path) => report.ok(engine.program(), path.display().to_string()),
            None => report.missing(
                engine.program(),
                format!("packages {}: `cargo xtask setup`", engine.packages().join(", ")),
            ),
        }
    }
    match probe::veth_native() {
        Ok(()) => report.ok("veth, native XDP", "attaches"),
        Err(error) => report.missing("veth, native XDP", format!("{error:#}")),
    }
}

/// Drivers known to run XDP programs in native mode, from the kernel's sources up to 6.18.
const NATIVE_DRIVERS: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "dpaa2-eth",
    "ena",
    "fec",
    "fsl_dpa",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "fsl_enetc4",
    "funeth",
    "gve",
    "gvnic",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "lan966x-switch",
    "mana",
    "mlx4_en",
    "mlx4_core",
    "mlx5_core",
    "mtk_soc_eth",
    "mvneta",
    "mvpp2",
    "netsec",
    "nfp",
    "nicvf",
    "octeontx2-nicpf",
    "octeontx2-nicvf",
    "qede",
    "rvu_nicpf",
    "rvu_nicvf",
    "sfc",
    "sfc_ef100",
    "st_gmac",
    "stmmac",
    "thunder-nicvf",
    "tsnep",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
    "xen_netfront",
];

/// One line for each interface that has a driver; nothing here is needed, so nothing is missing.
fn interfaces(report: &mut Report) {
    let Ok(entries) = fs::read_dir("/sys/class/net") else {
        return;
    };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    for name in names {
        let device = Path::new("/sys/class/net").join(&name).join("device/driver");
        let Ok(driver) = fs::read_link(device) else {
            continue;
        };
        let driver = driver.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let what = format!("interface {name}");
        if NATIVE_DRIVERS.contains(&driver.as_str()) {
            report.ok(&what, format!("driver {driver}: native XDP"));
        } else {
            report.note(&what, format!("driver {driver}: not known for native XDP; generic works"));
        }
    }
}

fn has_capability(bit: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|held| held >> bit & 1 == 1)
}
