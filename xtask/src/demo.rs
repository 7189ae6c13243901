//! `demo`: real calls through the proxy while a PBX dies and comes back, and what became of each.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sipline_tests::lab::{
    Control, Daemon, Lab, Mode, Outage, Outcome, Place, Settings, Share, Sipp, Story, Totals,
    Witness, Word,
};

use crate::{build, process::is_root, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How the kernel program is attached: native, generic, off or auto
    #[arg(long, default_value = "native")]
    mode: Mode,
    /// Which build of the kernel program: auto, may_goto or bpf_loop
    #[arg(long, default_value = "auto", value_parser = ["auto", "may_goto", "bpf_loop"])]
    loops: String,
    /// Calls a second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2000))]
    rate: u32,
    /// For how long calls are placed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(10..=600))]
    seconds: u32,
    /// OPTIONS a second beside the calls
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5000))]
    options: u32,
    /// How pbx1 dies: its program only (its host still says so by ICMP), or its host (silence)
    #[arg(long, default_value = "program", value_parser = ["program", "host"])]
    death: String,
    /// Write the result as JSON to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The PBX that dies.
const VICTIM: Place = Place::Pbx1;
/// How long a call talks.
const TALK: Duration = Duration::from_secs(1);
/// The shares of two equal PBXs may differ by this much.
const EVEN: f64 = 0.1;

pub(crate) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!(
            "the demo needs root: it makes network namespaces and loads a program into the kernel"
        );
    }
    setup::run(&setup::Args::default())?;
    build::run(&build::Args::default())?;

    let report = play(args)?;
    let faults = report.faults();
    print!("{}", report.table());
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report.json(&faults))?;
        fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("; "));
    }
    Ok(())
}

/// Everything that the demo found out.
struct Report {
    mode: String,
    rate: u32,
    seconds: u32,
    story: Story,
    outage: Outage,
    /// How the proxy knew of the death.
    reason: Option<String>,
    /// New calls that reached the dead PBX's host although its death was known.
    sent_knowing: usize,
    options_asked: usize,
    options_answered: usize,
    messages: Totals,
    /// Share of the calls placed before the death, while the victim was out, and after it was back.
    shares: [(&'static str, Share); 3],
}

/// The lab from its making to its end, with the calls between.
fn play(args: &Args) -> Result<Report> {
    say("making the lab: phones, proxy, pbx1, pbx2");
    let lab = Lab::new()?;
    let mut pbx1 = pbx(Place::Pbx1).start(&lab, "pbx1")?;
    let _pbx2 = pbx(Place::Pbx2).start(&lab, "pbx2")?;
    let settings = Settings { loops: args.loops.clone(), ..Settings::new(args.mode) };
    let mut daemon = Daemon::start(&lab, &settings)?;
    daemon.wait_for_state(Place::Pbx1, "active", Duration::from_secs(10))?;
    daemon.wait_for_state(Place::Pbx2, "active", Duration::from_secs(10))?;
    let before = daemon.control().totals()?;
    say(&format!("the proxy runs, XDP {}", before.mode));

    let watch = Watch::start(daemon.control(), VICTIM);
    let witness = Witness::start(&lab, VICTIM)?;
    let options = args.options * (args.seconds + 2);
    let mut options =
        Sipp::caller("options", args.options, options).port(5070).start(&lab, "options")?;
    let calls = args.rate * args.seconds;
    let mut callers = Sipp::caller("caller", args.rate, calls).talk(TALK).start(&lab, "callers")?;
    let start = Instant::now();
    let (death, rebirth) = (args.seconds * 35 / 100, args.seconds * 60 / 100);
    let (mut killed, mut restarted) = (0.0, 0.0);
    let mut dead = None;

    // A call may give up 10 s after its INVITE and 10 s after its BYE.
    let limit = args.seconds + 30;
    for second in 1.. {
        thread::sleep(
            (start + Duration::from_secs(second)).saturating_duration_since(Instant::now()),
        );
        let events = callers.events()?;
        let count = |word| events.iter().filter(|event| event.word == word).count();
        let mut note = String::new();
        if second == u64::from(death) {
            if args.death == "host" {
                lab.silence(VICTIM)?;
            }
            killed = now();
            pbx1.process.kill()?;
            note = format!("   <- {} killed", VICTIM.name());
        }
        if second == u64::from(rebirth) {
            if args.death == "host" {
                lab.revive(VICTIM)?;
            }
            // Before it is: it may answer a probe while it starts.
            restarted = now();
            dead = Some(std::mem::replace(&mut pbx1, pbx(VICTIM).start(&lab, "pbx1-again")?));
            note = format!("   <- {} started again", VICTIM.name());
        }
        say(&format!(
            "{second:>3} s  placed {:>6}  answered {:>6}  ended {:>6}  {} {}{note}",
            count(Word::Placed),
            count(Word::Answered),
            count(Word::Ended),
            VICTIM.name(),
            watch.state(),
        ));
        if callers.process.ended()?.is_some() {
            break;
        }
        if second > u64::from(limit) {
            bail!("the callers do not end");
        }
    }
    drop(dead);
    let events = callers.finish()?;
    let options = options.finish()?;
    let after = daemon.control().totals()?;
    let reached = witness.finish()?;
    let changes = watch.finish()?;
    let status = daemon.terminate()?;
    if !status.success() {
        bail!("sipline ended with {status}:\n{}", daemon.process.last_words());
    }

    let first = |state_is_active: bool, since: f64| {
        changes
            .iter()
            .find(|change| change.at >= since && (change.state == "active") == state_is_active)
    };
    let reason = first(false, killed).and_then(|change| change.reason.clone());
    let known = first(false, killed).map_or(f64::INFINITY, |change| change.at);
    let back = first(true, restarted).map_or(f64::INFINITY, |change| change.at);
    let story = Story::new(&events, &reached);
    let count = |word| options.iter().filter(|event| event.word == word).count();
    Ok(Report {
        mode: after.mode.clone(),
        rate: args.rate,
        seconds: args.seconds,
        shares: [
            ("before", story.share(0.0, killed)),
            ("during", story.share(known, restarted)),
            ("after", story.share(back, f64::INFINITY)),
        ],
        story,
        reason,
        // What was on its way at that moment is forgiven.
        sent_knowing: reached.values().filter(|at| (known + 0.1..restarted).contains(*at)).count(),
        outage: Outage { pbx: VICTIM.name().into(), killed, known, restarted, back },
        options_asked: count(Word::Placed),
        options_answered: count(Word::Ended),
        messages: after.since(&before),
    })
}

fn pbx(place: Place) -> Sipp {
    Sipp::pbx(place, "pbx")
}

impl Report {
    fn count(&self, outcome: Outcome) -> usize {
        self.story.count(outcome, Some(&self.outage))
    }

    fn lost(&self) -> usize {
        self.count(Outcome::LostTalking) + self.count(Outcome::LostSent)
    }

    /// What is not as it should be; empty when the demo succeeded.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let placed = self.story.calls().count();
        let wanted = self.rate * self.seconds;
        if placed != wanted as usize {
            faults.push(format!("{placed} calls were placed instead of {wanted}"));
        }
        match self.count(Outcome::Failed) {
            0 => {}
            failed => faults.push(format!("{failed} calls failed")),
        }
        match self.count(Outcome::LostSent) {
            0 => {}
            lost => {
                faults.push(format!("{lost} calls were lost that the dead PBX had not answered"))
            }
        }
        if self.options_answered != self.options_asked {
            let left = self.options_asked - self.options_answered;
            faults.push(format!("{left} OPTIONS were not answered"));
        }
        if !self.outage.known.is_finite() {
            faults.push("the death of the PBX was never noticed".into());
        }
        if self.sent_knowing > 0 {
            faults.push(format!(
                "{} new calls were sent to a PBX known to be dead",
                self.sent_knowing
            ));
        }
        if !self.outage.back.is_finite() {
            faults.push("the PBX was not used again after its return".into());
        }
        for (when, share) in &self.shares {
            let (one, two) = (of(share, Place::Pbx1), of(share, Place::Pbx2));
            let total = f64::from(one + two);
            if *when == "during" {
                if one > 0 {
                    faults.push(format!("{one} calls are said to be answered by the dead PBX"));
                }
            } else if (f64::from(one) - f64::from(two)).abs() > EVEN * total {
                faults.push(format!("shares {when} are uneven: {one} and {two}"));
            }
            if one + two == 0 {
                faults.push(format!("no call was answered {when} the outage"));
            }
        }
        let Totals { kernel, daemon, .. } = self.messages;
        if self.mode == "off" {
            if kernel != 0 {
                faults.push(format!("{kernel} messages went through the kernel in mode off"));
            }
        } else if kernel < 9 * daemon {
            faults.push(format!("only {kernel} messages in the kernel, {daemon} in the daemon"));
        }
        faults
    }

    fn table(&self) -> String {
        let outage = &self.outage;
        let Totals { kernel, daemon, .. } = self.messages;
        let percent = |part: u64| 100.0 * part as f64 / (kernel + daemon).max(1) as f64;
        let mut rows = vec![
            ("XDP".into(), self.mode.clone()),
            (
                "calls placed".into(),
                format!(
                    "{} ({} a second for {} s)",
                    self.story.calls().count(),
                    self.rate,
                    self.seconds
                ),
            ),
            ("  answered".into(), self.count(Outcome::Answered).to_string()),
            ("  failed".into(), self.count(Outcome::Failed).to_string()),
            (
                "  lost to the dead PBX".into(),
                format!(
                    "{} ({} were talking to it, {} were sent to it before its death was known)",
                    self.lost(),
                    self.count(Outcome::LostTalking),
                    self.count(Outcome::LostSent),
                ),
            ),
            (
                "OPTIONS answered".into(),
                format!("{} of {}", self.options_answered, self.options_asked),
            ),
            ("messages in the kernel".into(), format!("{kernel} ({:.2} %)", percent(kernel))),
            ("messages in the daemon".into(), format!("{daemon} ({:.2} %)", percent(daemon))),
            (
                format!("{} out after", outage.pbx),
                format!(
                    "{:.3} s ({})",
                    outage.known - outage.killed,
                    self.reason.as_deref().unwrap_or("for no reason given"),
                ),
            ),
            (
                format!("{} in again after", outage.pbx),
                format!("{:.3} s (from its start)", outage.back - outage.restarted),
            ),
        ];
        for (when, share) in &self.shares {
            rows.push((
                format!("share {when}"),
                format!("pbx1 {}, pbx2 {}", of(share, Place::Pbx1), of(share, Place::Pbx2)),
            ));
        }
        let mut text = String::from("\n");
        for (what, value) in rows {
            text += &format!("  {what:<26} {value}\n");
        }
        text + "\n"
    }

    fn json(&self, faults: &[String]) -> Value {
        let outage = &self.outage;
        let pbx = |place: Place| {
            let mut value = json!({});
            for (when, share) in &self.shares {
                value[*when] = json!(of(share, place));
            }
            if place.name() == outage.pbx {
                value["reason"] = json!(self.reason);
                value["out_after_s"] = json!(finite(outage.known - outage.killed));
                value["in_after_s"] = json!(finite(outage.back - outage.restarted));
            }
            value
        };
        json!({
            "mode": self.mode,
            "rate": self.rate,
            "seconds": self.seconds,
            "placed": self.story.calls().count(),
            "answered": self.count(Outcome::Answered),
            "failed": self.count(Outcome::Failed),
            "lost_to_dead_pbx": self.lost(),
            "lost_while_talking": self.count(Outcome::LostTalking),
            "lost_before_known": self.count(Outcome::LostSent),
            "sent_to_known_dead_pbx": self.sent_knowing,
            "options": { "asked": self.options_asked, "answered": self.options_answered },
            "kernel_messages": self.messages.kernel,
            "daemon_messages": self.messages.daemon,
            "pbx": { "pbx1": pbx(Place::Pbx1), "pbx2": pbx(Place::Pbx2) },
            "faults": faults,
        })
    }
}

fn of(share: &Share, place: Place) -> u32 {
    share.get(place.name()).copied().unwrap_or(0)
}

/// JSON has no infinity.
fn finite(seconds: f64) -> Option<f64> {
    seconds.is_finite().then_some(seconds)
}

/// One change in what a PBX is used for.
#[derive(Clone, Debug)]
struct Change {
    at: f64,
    state: String,
    reason: Option<String>,
}

/// Looks at the state of a PBX all the time.
struct Watch {
    stop: Arc<AtomicBool>,
    changes: Arc<std::sync::Mutex<Vec<Change>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Watch {
    fn start(control: Control, place: Place) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let changes = Arc::new(std::sync::Mutex::new(Vec::<Change>::new()));
        let (flag, list) = (Arc::clone(&stop), Arc::clone(&changes));
        let thread = thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                let backend = control.backend(place)?;
                let mut list = list.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if list.last().is_none_or(|last| last.state != backend.state) {
                    // When the daemon knew, not when we asked.
                    let at = now() - backend.age.as_secs_f64();
                    list.push(Change { at, state: backend.state, reason: backend.reason });
                }
                drop(list);
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        Self { stop, changes, thread: Some(thread) }
    }

    /// What it is used for now.
    fn state(&self) -> String {
        let changes = self.changes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        changes.last().map(|change| change.state.clone()).unwrap_or_default()
    }

    fn finish(mut self) -> Result<Vec<Change>> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_else(|_| bail!("the watch panicked"))?;
        }
        Ok(self.changes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn say(text: &str) {
    eprintln!("demo: {text}");
}
