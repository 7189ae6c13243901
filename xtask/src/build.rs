//! `build`: the kernel program in both builds, then the `sipline` binary that embeds them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    process::{self, root, target_dir},
    toolchain,
};

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Build the kernel program only
    #[arg(long)]
    kernel_only: bool,
}

impl Args {
    /// Only what goes into the kernel.
    pub(crate) fn kernel_only() -> Self {
        Self { kernel_only: true }
    }
}

/// The two builds of the kernel program: the object's name and the feature that makes it.
const OBJECTS: [(&str, Option<&str>); 2] =
    [("sipline-xdp.may_goto.o", None), ("sipline-xdp.bpf_loop.o", Some("bpf-loop"))];

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    kernel()?;
    if !args.kernel_only {
        process::run(process::cargo().args(["build", "--release", "--package", "sip-user"]))?;
        eprintln!("built {}", sipline().display());
    }
    eprintln!("build: {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Where the built binary is.
pub(crate) fn sipline() -> PathBuf {
    target_dir().join("release/sipline")
}

/// Builds both objects into `target/bpf`, where the build script of sip-user finds them.
fn kernel() -> Result<()> {
    let (compiler, linker) = toolchain::ready()?;
    eprintln!("kernel program: {}, bpf-linker {}", compiler.version, linker.version);

    // Its own target directory: another compiler, other flags, and no waiting for cargo's lock.
    let work = root().join("target/bpf-build");
    let objects = root().join("target/bpf");
    fs::create_dir_all(&objects).with_context(|| format!("cannot make {}", objects.display()))?;

    for (name, feature) in OBJECTS {
        let mut command = toolchain::cargo_build(&compiler, &linker);
        command.args(["--package", "sip-ebpf", "--bin", "sipline-xdp", "--target-dir"]).arg(&work);
        if let Some(feature) = feature {
            command.args(["--features", feature]);
        }
        process::run(&mut command)?;
        let made = work.join(toolchain::TARGET).join("release/sipline-xdp");
        install(&made, &objects.join(name))?;
    }
    Ok(())
}

/// Copies an object to its place, unless the same bytes are there: then sip-user is not built again.
fn install(made: &Path, place: &Path) -> Result<()> {
    let bytes = fs::read(made).with_context(|| format!("cannot read {}", made.display()))?;
    // Without BTF the kernel refuses the maps and bpf_loop, with a message that helps nobody.
    if !bytes.windows(5).any(|window| window == b".BTF\0") {
        bail!("{} has no BTF: the linker did not get --btf", made.display());
    }
    if fs::read(place).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    // By way of a temporary name, so that a build script never reads half of it.
    let part = place.with_extension("part");
    fs::write(&part, &bytes).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, place).with_context(|| format!("cannot write {}", place.display()))?;
    eprintln!("built {} ({} KiB)", place.display(), bytes.len() / 1024);
    Ok(())
}
