//! `setup`: installs what is missing, says what it is about to do, and is quick when nothing is missing.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use sipline_tests::lab::Engine;

use crate::{
    process::{self, find, is_root},
    toolchain::{self, BPF_LINKER, DEBIAN_LLVM, Kind, LINKER_LLVMS},
};

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Say what is missing and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Programs that the lab runs, and the Debian packages that bring them.
pub(crate) const PROGRAMS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nsenter", "util-linux"),
    ("sipp", "sip-tester"),
    ("baresip", "baresip-core"),
];

const BPFFS: &str = "/sys/fs/bpf";

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let plan = plan()?;
    if plan.is_empty() {
        eprintln!("setup: nothing is missing ({:.1} s)", start.elapsed().as_secs_f32());
        return Ok(());
    }
    eprintln!("setup is about to:");
    for line in plan.lines() {
        eprintln!("  - {line}");
    }
    if args.dry_run {
        return Ok(());
    }
    carry_out(&plan)?;

    let left = self::plan()?;
    if !left.is_empty() {
        bail!("still missing after setup: {}", left.lines().join("; "));
    }
    eprintln!("setup: done in {:.0} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Debian's Kamailio, for the benchmark that compares us with it: nothing else needs it.
pub(crate) fn kamailio() -> Result<()> {
    const PACKAGES: [&str; 2] = ["kamailio", "kamailio-mysql-modules"];
    let query = ["--show", "--showformat=${db:Status-Status}\\n"];
    let states = process::output("dpkg-query", query.iter().chain(&PACKAGES));
    let there =
        states.is_some_and(|text| text.lines().filter(|state| *state == "installed").count() == 2);
    if there {
        return Ok(());
    }
    if !is_root() {
        bail!("this needs root: it installs Kamailio");
    }
    no_kamailio_at_boot()?;
    install_packages(&PACKAGES.map(String::from))
}

/// What is to be done. All empty: nothing.
#[derive(Default)]
struct Plan {
    packages: Vec<String>,
    /// The major of LLVM that bpf-linker is to be made with.
    linker: Option<u32>,
    mount_bpffs: bool,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.packages.is_empty() && self.linker.is_none() && !self.mount_bpffs
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.packages.is_empty() {
            lines.push(format!("install with apt-get: {}", self.packages.join(" ")));
        }
        if let Some(llvm) = self.linker {
            lines.push(format!(
                "install with cargo: bpf-linker {BPF_LINKER} for LLVM {llvm} (a minute or two)"
            ));
        }
        if self.mount_bpffs {
            lines.push(format!("mount the BPF file system on {BPFFS}"));
        }
        lines
    }
}

/// Looks at what is there, without starting more than a few short programs.
fn plan() -> Result<Plan> {
    let mut plan = Plan::default();
    for (program, package) in PROGRAMS {
        if find(program).is_none() {
            plan.packages.push(package.into());
        }
    }
    for engine in Engine::ALL {
        if engine.find().is_none() {
            plan.packages.extend(engine.packages().iter().map(|package| (*package).into()));
        }
    }

    let llvm = match toolchain::compiler()? {
        Some(compiler) => compiler.llvm,
        None if toolchain::choice()? == Some(Kind::Nightly) => {
            // The reason is at hand: asking for it again is what failed.
            let reason = toolchain::nightly().err().unwrap_or_default();
            bail!(
                "{}=nightly, but {reason}: run `rustup toolchain install nightly --component rust-src`",
                toolchain::CHOICE
            );
        }
        None => {
            let packages = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
            plan.packages.extend(packages.map(String::from));
            DEBIAN_LLVM
        }
    };

    let linker_is_right =
        toolchain::linker().is_some_and(|linker| linker.llvm.is_none_or(|major| major == llvm));
    if !linker_is_right {
        if !LINKER_LLVMS.contains(&llvm) {
            bail!(
                "the compiler has LLVM {llvm}; bpf-linker {BPF_LINKER} can be made with {} to {}. \
                 Use Debian's compiler ({}=debian) or a nightly in that range",
                LINKER_LLVMS.start(),
                LINKER_LLVMS.end(),
                toolchain::CHOICE,
            );
        }
        if !llvm_prefix(llvm).join("bin/llvm-config").exists() {
            plan.packages.push(format!("llvm-{llvm}-dev"));
        }
        for (package, file) in [("libzstd-dev", "zstd.h"), ("zlib1g-dev", "zlib.h")] {
            if !Path::new("/usr/include").join(file).exists() {
                plan.packages.push(package.into());
            }
        }
        plan.linker = Some(llvm);
    }

    plan.mount_bpffs = !bpffs_is_mounted();
    Ok(plan)
}

fn carry_out(plan: &Plan) -> Result<()> {
    let needs_root = !plan.packages.is_empty() || plan.mount_bpffs;
    if needs_root && !is_root() {
        bail!("this needs root: run `sudo -E env \"PATH=$PATH\" cargo xtask setup`");
    }
    if !plan.packages.is_empty() {
        install_packages(&plan.packages)?;
    }
    if let Some(llvm) = plan.linker {
        install_linker(llvm)?;
    }
    if plan.mount_bpffs {
        process::run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))?;
    }
    Ok(())
}

fn install_packages(packages: &[String]) -> Result<()> {
    if find("apt-get").is_none() {
        bail!(
            "there is no apt-get here: install what these Debian packages hold by hand: {}",
            packages.join(" ")
        );
    }
    if packages.iter().any(|package| Engine::Postgres.packages().contains(&package.as_str())) {
        no_database_at_boot()?;
    }
    if !lists_are_fresh() {
        process::run(apt().arg("update"))?;
    }
    let install =
        || process::run(apt().args(["install", "--yes", "--no-install-recommends"]).args(packages));
    // A list from this morning can name a package that the mirror has replaced since.
    install().or_else(|error| {
        eprintln!("  {error}; reading the package lists again");
        process::run(apt().arg("update"))?;
        install()
    })
    .context(
        "apt could not install the packages; the compiler is in Debian 12 with security updates, \
         elsewhere use `rustup toolchain install nightly --component rust-src`",
    )
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // A file that was written before its package came stays as it is.
    command.args(["-o", "Dpkg::Options::=--force-confold"]);
    command
}

/// The tests run database servers of their own, and a machine does not get one because of them. MariaDB's
/// package has no service; PostgreSQL's makes a database that is started at every boot, unless it is told
/// not to. What its owner has told it before stays.
fn no_database_at_boot() -> Result<()> {
    const FILE: &str = "/etc/postgresql-common/createcluster.conf";
    const TEXT: &str = "# Written by sipline's `cargo xtask setup`, which needs the programs only.\n\
                        create_main_cluster = false\n";

    let path = Path::new(FILE);
    if path.exists() {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::write(path, TEXT).with_context(|| format!("cannot write {FILE}"))
}

/// The package's service would take port 5060 from then on. Masked, as `systemctl mask` does it, which also
/// works where systemd does not run; what was installed before stays as it is.
fn no_kamailio_at_boot() -> Result<()> {
    const UNIT: &str = "/etc/systemd/system/kamailio.service";

    if find("kamailio").is_some() || fs::symlink_metadata(UNIT).is_ok() {
        return Ok(());
    }
    fs::create_dir_all("/etc/systemd/system").context("cannot make /etc/systemd/system")?;
    std::os::unix::fs::symlink("/dev/null", UNIT).with_context(|| format!("cannot mask {UNIT}"))?;
    eprintln!("setup: the service of Kamailio is masked; `systemctl unmask kamailio` undoes it");
    Ok(())
}

/// Whether apt's package lists are there and were read within a day.
fn lists_are_fresh() -> bool {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let lists = Path::new("/var/lib/apt/lists");
    let there = fs::read_dir(lists).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    });
    // The files carry the mirror's dates; the directories tell when apt last wrote here.
    let read = [lists.to_path_buf(), lists.join("partial")]
        .iter()
        .filter_map(|dir| fs::metadata(dir).ok()?.modified().ok())
        .max();
    there && read.is_some_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < DAY))
}

fn install_linker(llvm: u32) -> Result<()> {
    let mut command = process::cargo();
    command
        .current_dir("/")
        .env("LLVM_PREFIX", llvm_prefix(llvm))
        .env_remove("CARGO_TARGET_DIR")
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}")]);
    process::run(&mut command)
}

fn llvm_prefix(llvm: u32) -> std::path::PathBuf {
    format!("/usr/lib/llvm-{llvm}").into()
}

/// Whether pins can be made where everybody expects them.
pub(crate) fn bpffs_is_mounted() -> bool {
    fs::read_to_string("/proc/self/mounts")
        .is_ok_and(|mounts| mounts.lines().any(|line| line.contains(&format!(" {BPFFS} bpf "))))
}
