//! Brings both builds of the kernel program into this build; `cargo xtask build` makes them.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

const OBJECTS: [&str; 2] = ["sipline-xdp.may_goto.o", "sipline-xdp.bpf_loop.o"];

fn main() {
    println!("cargo::rerun-if-env-changed=SIPLINE_BPF_DIR");
    let from = match env::var_os("SIPLINE_BPF_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => variable("CARGO_MANIFEST_DIR").join("../target/bpf"),
    };
    let to = variable("OUT_DIR");
    for name in OBJECTS {
        let object = from.join(name);
        println!("cargo::rerun-if-changed={}", object.display());
        if let Err(error) = bring(&object, &to.join(name)) {
            println!(
                "cargo::error=no kernel program at {} ({error}): run `cargo xtask build`",
                object.display()
            );
            process::exit(1);
        }
    }
}

/// A copy, for `include_bytes_aligned!` names its file by OUT_DIR.
fn bring(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::write(to, fs::read(from)?)
}

/// A variable that cargo always sets for build scripts.
fn variable(name: &str) -> PathBuf {
    match env::var_os(name) {
        Some(value) => PathBuf::from(value),
        None => {
            println!("cargo::error={name} is not set: this is a build script of cargo");
            process::exit(1);
        }
    }
}
