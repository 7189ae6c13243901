//! The kernel is an accelerator: what leaves with it is what leaves without, for every datagram.
//!
//! One corpus goes through both sides of a [`Pair`]: the messages of `tests/corpus`, what SIPp says in the
//! lab's scenarios, and calls made of generated messages. A side that passes all up would be the same as the
//! other at no pains, so each part says which share of what the daemon does alone the program must have done
//! itself ([`Tally::check`]).

#[allow(dead_code, reason = "the properties of the scanner use the rest")]
#[path = "../../../sip-ebpf/tests/properties/generate.rs"]
mod generate;
mod scene;
mod sipp;
mod tally;

use std::fs;
use std::path::Path;

use sip_ebpf::Reason;
use sip_user::fastpath::object::Build;
use sipline_tests::fixtures::scanner::LONGEST;
use sipline_tests::fixtures::world::{DENIED, PBX1, PBX2, PHONE, PROXY, SECOND, STRANGER};
use sipline_tests::fixtures::{Pair, net};

use tally::Tally;

/// The seed of the generated calls, unless `SIPLINE_DIFFERENTIAL_SEED` names another.
const SEED: u64 = 3261;
/// How many of them each build is given, unless `SIPLINE_DIFFERENTIAL_SECONDS` says for how long.
const SCENES: u64 = 1_000;

/// Runs `body` with a pair for each build of the program, in a network of its own.
fn each_pair(body: impl Fn(&mut Pair) + Sync) {
    for build in Build::ALL {
        println!("build: {}", build.name());
        net::with(|| body(&mut Pair::new(build)));
    }
}

#[test]
fn the_corpus_is_answered_alike() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut files: Vec<_> = fs::read_dir(&directory)
        .expect("the corpus")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sip"))
        .collect();
    files.sort();
    let mut messages: Vec<_> =
        files.iter().map(|path| (path, fs::read(path).expect("a message"))).collect();
    // A longer one comes in fragments, which no program sees whole.
    messages.retain(|(_, message)| message.len() <= LONGEST);
    let invite = fs::read(directory.join("call-invite.sip")).expect("the INVITE of the corpus");
    each_pair(|pair| {
        let mut tally = Tally::default();
        for from in [PHONE, STRANGER, PBX1, PBX2, DENIED] {
            for to in [PROXY, SECOND] {
                for (path, message) in &messages {
                    pair.reset();
                    // What belongs to the corpus' call finds it.
                    for bytes in [&invite, message] {
                        match pair.hear(from, to, bytes) {
                            Ok(heard) => tally.count(&heard),
                            Err(difference) => panic!("{}: {difference}", path.display()),
                        }
                    }
                }
            }
        }
        println!("{tally}");
        tally.check(&[
            (Reason::OptionsAnswered, 4, 1.0),
            (Reason::CrlfAnswered, 8, 1.0),
            (Reason::InviteSteered, 200, 0.9),
            (Reason::InviteRepeated, 20, 0.8),
            (Reason::CancelSteered, 2, 1.0),
            (Reason::AckSteered, 2, 1.0),
            (Reason::Denied, 100, 1.0),
        ]);
    });
}

#[test]
fn what_sipp_says_is_answered_alike() {
    each_pair(|pair| {
        let mut tally = Tally::default();
        for number in 0..6 {
            for play in sipp::PLAYS {
                pair.reset();
                match sipp::play(pair, play, number, &mut |heard| tally.count(&heard)) {
                    Ok(through) => assert!(through, "{play:?}: the caller came to no end"),
                    Err(difference) => panic!("{play:?}: {difference}"),
                }
            }
        }
        println!("{tally}");
        // What SIPp says is in the usual form: nothing of it needs the daemon.
        tally.check(&[
            (Reason::OptionsAnswered, 10, 1.0),
            (Reason::InviteSteered, 30, 1.0),
            (Reason::InviteRepeated, 30, 1.0),
            (Reason::CancelSteered, 10, 1.0),
            (Reason::AckSteered, 10, 1.0),
            (Reason::DialogToPbx, 40, 1.0),
            (Reason::DialogToPhone, 10, 1.0),
            (Reason::ResponseForwarded, 100, 1.0),
        ]);
    });
}

#[test]
fn generated_calls_are_answered_alike() {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
    };
    let seed = number("SIPLINE_DIFFERENTIAL_SEED").unwrap_or(SEED);
    let seconds = number("SIPLINE_DIFFERENTIAL_SECONDS");
    each_pair(|pair| {
        let limit = match seconds {
            // Both builds share the time.
            Some(seconds) => scene::Limit::Time(std::time::Duration::from_secs(seconds) / 2),
            None => scene::Limit::Scenes(SCENES),
        };
        let tally = scene::search(pair, seed, limit);
        println!("{tally}");
        if seconds.is_some() && tally.datagrams() < 5_000 {
            // Too few, in a short time, to say anything about shares.
            return;
        }
        // Generated messages have many forms, and some of them only the daemon reads.
        tally.check(&[
            (Reason::OptionsAnswered, 150, 0.6),
            (Reason::CrlfAnswered, 30, 1.0),
            (Reason::InviteSteered, 400, 0.6),
            (Reason::InviteRepeated, 200, 0.5),
            (Reason::CancelSteered, 50, 0.35),
            (Reason::AckSteered, 50, 0.35),
            (Reason::DialogToPbx, 80, 0.6),
            (Reason::DialogToPhone, 60, 0.6),
            (Reason::ResponseForwarded, 200, 0.8),
            (Reason::Denied, 20, 1.0),
            (Reason::EmptyDatagram, 80, 1.0),
        ]);
    });
}
