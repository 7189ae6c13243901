//! Which compiler makes the kernel program: Debian's packaged one, or a rustup nightly.
//!
//! Debian's `rustc-web` comes with a ready-made `core` for `bpfel-unknown-none`, so it needs neither
//! nightly nor the library's source. A rustup nightly with `rust-src` builds `core` itself. Whichever
//! it is, `bpf-linker` must be linked against the same major version of LLVM as that compiler.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::process::{self, find, output};

/// The version of bpf-linker that is installed and tested.
pub(crate) const BPF_LINKER: &str = "0.13.0";

/// The majors of LLVM that this bpf-linker can be built with.
pub(crate) const LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// The major of LLVM that Debian's packaged compiler is made with.
pub(crate) const DEBIAN_LLVM: u32 = 22;

/// Chooses the compiler by hand: `debian` or `nightly`.
pub(crate) const CHOICE: &str = "SIPLINE_BPF_TOOLCHAIN";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// The target: BPF in the byte order of this machine.
pub(crate) const TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// A kind of compiler for the kernel program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Debian's `rustc-web`, `cargo-web` and `libstd-rust-web-dev-bpf`.
    Debian,
    /// rustup's nightly with `rust-src`.
    Nightly,
}

/// A compiler for the kernel program that is on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    pub(crate) kind: Kind,
    /// What `rustc --version` says.
    pub(crate) version: String,
    /// The major of its LLVM.
    pub(crate) llvm: u32,
}

/// What bpf-linker is on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    pub(crate) version: String,
    /// The major of the LLVM that it is linked against; `None` when it cannot be told.
    pub(crate) llvm: Option<u32>,
}

/// What the user asked for with [`CHOICE`].
pub(crate) fn choice() -> Result<Option<Kind>> {
    match env::var(CHOICE).as_deref() {
        Err(_) | Ok("") => Ok(None),
        Ok("debian") => Ok(Some(Kind::Debian)),
        Ok("nightly") => Ok(Some(Kind::Nightly)),
        Ok(other) => bail!("{CHOICE} is `{other}`; it must be `debian` or `nightly`"),
    }
}

/// The compiler to use: what the user asked for, else Debian's, else nightly; `None` when there is none.
pub(crate) fn compiler() -> Result<Option<Compiler>> {
    Ok(match choice()? {
        Some(Kind::Debian) => debian().ok(),
        Some(Kind::Nightly) => nightly().ok(),
        None => debian().ok().or_else(|| nightly().ok()),
    })
}

/// Debian's compiler, or what is missing for it.
pub(crate) fn debian() -> Result<Compiler, String> {
    let compiler = describe(Kind::Debian, DEBIAN_RUSTC, &[])
        .ok_or_else(|| format!("{DEBIAN_RUSTC} is not there (package rustc-web)"))?;
    if !Path::new(DEBIAN_CARGO).exists() {
        return Err(format!("{DEBIAN_CARGO} is not there (package cargo-web)"));
    }
    let core = output(DEBIAN_RUSTC, ["--print", "target-libdir", "--target", TARGET])
        .map(|dir| PathBuf::from(dir.trim()));
    if !core.is_some_and(|dir| dir.is_dir()) {
        return Err(format!("no core library for {TARGET} (package libstd-rust-web-dev-bpf)"));
    }
    Ok(compiler)
}

/// rustup's nightly, or what is missing for it.
pub(crate) fn nightly() -> Result<Compiler, String> {
    let rustup = find("rustup").ok_or("rustup is not there")?;
    let rustc = ["run", "nightly", "rustc"];
    let compiler =
        describe(Kind::Nightly, &rustup, &rustc).ok_or("rustup has no nightly toolchain")?;
    let sysroot = output(&rustup, rustc.iter().copied().chain(["--print", "sysroot"]));
    let core = sysroot
        .map(|root| Path::new(root.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs"));
    if !core.is_some_and(|file| file.exists()) {
        return Err("the nightly toolchain has no rust-src".into());
    }
    Ok(compiler)
}

/// The bpf-linker in `PATH`, if it runs.
pub(crate) fn linker() -> Option<Linker> {
    let path = find("bpf-linker")?;
    let version = output(&path, ["--version"])?;
    let version = version.trim().trim_start_matches("bpf-linker ").to_owned();
    // Linked dynamically unless somebody chose otherwise, and then its libraries tell the major.
    let llvm = output("ldd", [&path]).and_then(|libs| llvm_of_libraries(&libs));
    Some(Linker { path, version, llvm })
}

/// A cargo call that builds for the BPF target with this compiler; the caller adds `build` options.
pub(crate) fn cargo_build(compiler: &Compiler, linker: &Linker) -> Command {
    let mut command = match compiler.kind {
        Kind::Debian => {
            let mut command = Command::new(DEBIAN_CARGO);
            command.arg("build");
            // A stable compiler that may use the unstable features of aya-ebpf and of our own crate.
            command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            command
        }
        Kind::Nightly => {
            let mut command = Command::new(find("rustup").unwrap_or_else(|| "rustup".into()));
            command.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]);
            command.env_remove("RUSTC").env_remove("RUSTC_BOOTSTRAP");
            command
        }
    };
    // What the cargo that started us, or the user's settings for user space, would change.
    for name in [
        "CARGO",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "LD_LIBRARY_PATH",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
    command
        .current_dir(process::root())
        .env(
            "RUSTFLAGS",
            format!(
                "-C linker={} -C link-arg=--btf -C debuginfo=2 -C target-cpu=v3 --cfg=bpf_target_arch=\"{}\"",
                linker.path.display(),
                env::consts::ARCH,
            ),
        )
        // Above one unit the verifier sees calls where it should see straight code.
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .args(["--release", "--target", TARGET]);
    command
}

/// The compiler and linker to use, or one clear line that says what is missing.
pub(crate) fn ready() -> Result<(Compiler, Linker)> {
    let Some(compiler) = compiler()? else {
        bail!(
            "no compiler for the kernel program: run `cargo xtask setup`, or see `cargo xtask doctor`"
        );
    };
    let Some(linker) = linker() else {
        bail!("no bpf-linker that runs: run `cargo xtask setup`");
    };
    if let Some(llvm) = linker.llvm.filter(|llvm| *llvm != compiler.llvm) {
        bail!(
            "bpf-linker is made with LLVM {llvm}, but the compiler ({}) with LLVM {}: run `cargo xtask setup`",
            compiler.version,
            compiler.llvm,
        );
    }
    Ok((compiler, linker))
}

fn describe(kind: Kind, program: impl AsRef<Path>, args: &[&str]) -> Option<Compiler> {
    let text = output(program.as_ref(), args.iter().copied().chain(["-vV"]))?;
    let version = text.lines().next()?.to_owned();
    let llvm = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    Some(Compiler { kind, version, llvm: llvm.split('.').next()?.parse().ok()? })
}

/// The major in `libLLVM.so.22.1` or `libLLVM-14.so.1`, from what ldd prints.
fn llvm_of_libraries(libraries: &str) -> Option<u32> {
    let at = libraries.find("libLLVM")?;
    let digits: String = libraries[at..]
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::llvm_of_libraries;

    #[test]
    fn the_major_of_llvm_is_read_from_the_linkers_libraries() {
        let new = "\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x00007f8b25a00000)";
        assert_eq!(llvm_of_libraries(new), Some(22));
        let old = "\tlibLLVM-14.so.1 => /lib/x86_64-linux-gnu/libLLVM-14.so.1 (0x0000)";
        assert_eq!(llvm_of_libraries(old), Some(14));
        assert_eq!(llvm_of_libraries("\tlibc.so.6 => /lib/libc.so.6 (0x0000)"), None);
    }
}
