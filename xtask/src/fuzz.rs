//! `fuzz`: random bytes into a fuzz target, by cargo-fuzz, which needs a nightly compiler; or generated calls
//! through the kernel program and through the daemon alone, which needs root.

use std::hash::{BuildHasher, RandomState};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    process::{self, find, is_root, output, root},
};

/// The target that compares the kernel program with the daemon.
const DIFFERENTIAL: &str = "differential";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The target: a file in tests/fuzz/fuzz_targets, or `differential` (no nightly compiler, but as root)
    #[arg(default_value = "scan")]
    target: String,
    /// How long to search
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u32,
    /// Of `differential`: the seed to start with, as a failure names it [default: a random one]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Passed on to libFuzzer
    #[arg(last = true)]
    more: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.target == DIFFERENTIAL {
        return differential(args);
    }
    if args.seed.is_some() {
        bail!("--seed is for the target `{DIFFERENTIAL}`; libFuzzer's is `-- -seed=S`");
    }
    let dir = root().join("tests/fuzz");
    if !dir.join("fuzz_targets").join(format!("{}.rs", args.target)).exists() {
        bail!("there is no fuzz target `{}` in tests/fuzz/fuzz_targets", args.target);
    }
    let Some(rustup) = find("rustup") else {
        bail!(
            "fuzzing needs a nightly compiler by rustup, and rustup is not there: https://rustup.rs"
        );
    };
    if output(&rustup, ["run", "nightly", "rustc", "--version"]).is_none() {
        bail!("fuzzing needs a nightly compiler: run `rustup toolchain install nightly`");
    }
    if find("c++").is_none() {
        bail!("fuzzing needs a C++ compiler for libFuzzer: run `apt-get install g++`");
    }
    if find("cargo-fuzz").is_none() {
        eprintln!("fuzz is about to install cargo-fuzz (a minute)");
        process::run(process::cargo().current_dir("/").args([
            "install",
            "cargo-fuzz",
            "--locked",
        ]))?;
    }
    let mut command = std::process::Command::new(rustup);
    // The stable compiler that runs us must not leak into the nightly call.
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    command.current_dir(root()).args(["run", "nightly", "cargo", "fuzz", "run", "--fuzz-dir"]);
    // What is found is kept in the first directory; the project's own messages are where it starts.
    let found = dir.join("corpus").join(&args.target);
    std::fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    command.arg(&dir).arg(&args.target).arg(found).arg(root().join("tests/corpus")).arg("--");
    command.arg(format!("-max_total_time={}", args.seconds));
    process::run(command.args(&args.more))
}

/// The test that CI runs with a fixed seed and for a fixed number of calls, as long as asked and with another seed.
fn differential(args: &Args) -> Result<()> {
    if !is_root() {
        bail!("comparing the kernel program with the daemon needs root");
    }
    if !args.more.is_empty() {
        bail!("the target `{DIFFERENTIAL}` has no libFuzzer to pass arguments on to");
    }
    build::run(&build::Args::kernel_only())?;
    let seed = args.seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 16);
    let mut command = process::cargo();
    command.args(["test", "--package", "sipline-tests", "--test", DIFFERENTIAL, "--"]);
    command.args(["--exact", "generated_calls_are_answered_alike", "--nocapture"]);
    command.env("SIPLINE_DIFFERENTIAL_SEED", seed.to_string());
    command.env("SIPLINE_DIFFERENTIAL_SECONDS", args.seconds.to_string());
    process::run(&mut command)
}
