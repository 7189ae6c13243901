//! Both builds of the kernel program pass this kernel's verifier, and cost it no more than recorded.

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use aya::EbpfLoader;
use aya::programs::Xdp;

/// Growth that fails: the counts differ between compilers and kernels, but not by this much.
const GROWTH: f64 = 1.10;
/// The verifier gives up at a million; a program near that is one change from refusal.
const LIMIT: u64 = 800_000;

const BUILDS: [&str; 2] = ["may_goto", "bpf_loop"];

/// Verified instructions, by build and program.
type Counts = BTreeMap<String, BTreeMap<String, u64>>;

#[test]
fn verified_instructions_do_not_grow() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let record = root.join("verifier.json");
    let counts: Counts =
        BUILDS.iter().map(|build| ((*build).to_owned(), verified_instructions(build))).collect();
    println!("{}", serde_json::to_string_pretty(&counts).unwrap());

    for (build, programs) in &counts {
        for (program, count) in programs {
            assert!(*count < LIMIT, "{build} {program}: {count} verified instructions");
        }
    }
    if env::var_os("SIPLINE_VERIFIER_RECORD").is_some() {
        fs::write(&record, serde_json::to_string_pretty(&counts).unwrap() + "\n").unwrap();
        println!("recorded in {}", record.display());
        return;
    }
    let recorded = fs::read_to_string(&record)
        .expect("tests/verifier.json is there: make it with `cargo xtask verify --record`");
    let recorded: Counts = serde_json::from_str(&recorded).unwrap();
    let names = |counts: &Counts| -> Vec<String> {
        let programs = counts.iter().flat_map(|(build, programs)| {
            programs.keys().map(move |program| format!("{build} {program}"))
        });
        programs.collect()
    };
    assert_eq!(
        names(&counts),
        names(&recorded),
        "programs came or went: look at them, then `cargo xtask verify --record`"
    );
    let mut grown = Vec::new();
    for (build, programs) in &counts {
        for (program, count) in programs {
            let before = recorded[build][program];
            #[allow(clippy::cast_precision_loss, reason = "counts are below a million")]
            if *count as f64 > before as f64 * GROWTH {
                grown.push(format!("{build} {program}: {before} became {count}"));
            }
        }
    }
    assert!(
        grown.is_empty(),
        "verified instructions grew by more than a tenth; if that is meant, `cargo xtask verify --record`: {grown:?}"
    );
}

/// Loads every program of a build and asks the kernel what it took to verify it.
fn verified_instructions(build: &str) -> BTreeMap<String, u64> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let user = unsafe { libc::geteuid() };
    assert_eq!(user, 0, "loading a program into the kernel needs root");
    let dir = env::var_os("SIPLINE_BPF_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf"),
        PathBuf::from,
    );
    let path = dir.join(format!("sipline-xdp.{build}.o"));
    let object = fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask build`", path.display()));
    let mut ebpf = EbpfLoader::new().load(&object).unwrap();
    let counts: BTreeMap<String, u64> = ebpf
        .programs_mut()
        // What the benchmark measures against is not loaded where calls are carried.
        .filter(|(name, _)| !name.starts_with("bench_"))
        .map(|(name, program)| {
            let program: &mut Xdp = program.try_into().unwrap();
            program.load().unwrap_or_else(|error| panic!("{build} {name}: {error:#}"));
            let info = program.info().unwrap();
            let count = info.verified_instruction_count().expect("kernel 5.16 and later count");
            (name.to_owned(), u64::from(count))
        })
        .collect();
    assert!(!counts.is_empty(), "{build} has no program");
    counts
}
