//! The scanner in BPF and on the host: one source, two machines, the same answers.

use std::path::Path;
use std::{fs, thread};

use sip_ebpf::scan::{Index, scan};
use sip_user::fastpath::object::Build;
use sipline_tests::fixtures::each_build;
use sipline_tests::fixtures::scanner::{LONGEST, Scanner, view};
use sipline_tests::fixtures::world::{PBX1, PHONE};

/// The messages that the scanner's own tests read.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut all: Vec<(String, Vec<u8>)> = fs::read_dir(&directory)
        .expect("the corpus")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sip"))
        .map(|path| (path.display().to_string(), fs::read(&path).expect("a message")))
        .collect();
    all.sort();
    assert!(all.len() > 50, "the corpus has {} messages only", all.len());
    all
}

/// Runs `body` with the scanner of each build, in a thread that is kept on one CPU.
fn each_scanner(body: impl Fn(&Scanner) + Sync) {
    for build in Build::ALL {
        println!("build: {}", build.name());
        thread::scope(|scope| {
            let run = scope.spawn(|| body(&Scanner::new(build)));
            if let Err(panic) = run.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

fn compare(scanner: &Scanner, name: &str, message: &[u8]) {
    if message.is_empty() || message.len() > LONGEST {
        return;
    }
    let mut host = Index::new();
    let accepted = scan(message, &mut host).is_ok();
    let (in_kernel, kernel) = scanner.scan(message);
    assert_eq!(in_kernel, accepted, "{name}: accepted in the kernel (left), on the host (right)");
    if accepted {
        assert_eq!(view(&kernel), view(&host), "{name}: kernel (left), host (right)");
    } else {
        assert_eq!(kernel.error, host.error, "{name}: why it is refused");
    }
}

#[test]
fn the_corpus_is_read_alike() {
    let corpus = corpus();
    each_scanner(|scanner| {
        for (name, message) in &corpus {
            compare(scanner, name, message);
        }
    });
}

#[test]
fn the_corpus_cut_anywhere_is_read_alike() {
    let corpus = corpus();
    each_scanner(|scanner| {
        for (name, message) in &corpus {
            // Every length of the short ones; of the long ones enough to meet each place in a word.
            let step = 1 + message.len() / 400 * 2;
            for n in (1..message.len()).step_by(step) {
                compare(scanner, &format!("{name} cut to {n}"), &message[..n]);
            }
        }
    });
}

/// The whole decision over the corpus: [`sipline_tests::fixtures::Subject`] compares each run with
/// the host's.
#[test]
fn the_corpus_is_decided_alike() {
    let corpus = corpus();
    each_build(|subject| {
        for (name, message) in &corpus {
            if message.len() > LONGEST {
                continue;
            }
            println!("{name}");
            subject.send(PHONE, &message[..]);
            subject.send(PBX1, &message[..]);
        }
    });
}
