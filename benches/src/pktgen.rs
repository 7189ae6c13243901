//! `pktgen`: SIP frames out of an interface, as many as one CPU makes (`BPF_PROG_TEST_RUN` with live frames).
//!
//! The kernel's own pktgen sends one fixed payload; this sends a mix of SIP messages, with another Call-ID in each.
//! docs/benchmarking.md says how to measure a network card with it.

use std::fs;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::Ebpf;
use aya::maps::{Array, PerCpuArray};
use serde::Serialize;
use sip_user::fastpath::object::{self, Bench, Build, Options, PKTGEN};
use sipline_tests::fixtures::frame::{DOT1Q, Mac};
use sipline_tests::fixtures::message::Message;
use sipline_tests::fixtures::{Checksum, Frame};

use crate::testrun::fresh_frame;
use crate::wire::BATCH;
use crate::{paths, wire};

/// Frames that can take turns: as many as the program has places for.
const TURNS: u32 = 32;
/// How often the program runs in the first system call; from then on, for about as long as [`CALL`] says.
const FIRST: u32 = 1 << 16;
/// At most so often: with a low rate, most runs send nothing, and a call ends only when it has run that often.
const MOST: u32 = 1 << 26;
/// A call is prepared for tens of milliseconds, so it should last.
const CALL: Duration = Duration::from_secs(1);
/// The generator needs no call table.
const CALL_BUCKETS: u32 = 1;

/// Sends SIP frames out of an interface.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The interface that they leave by
    #[arg(long, value_name = "NAME")]
    interface: String,
    /// Who sends, by the frames
    #[arg(long, value_name = "IP:PORT")]
    from: SocketAddrV4,
    /// The proxy
    #[arg(long, value_name = "IP:PORT")]
    to: SocketAddrV4,
    /// Hardware address of the proxy, or of the router before it; else that which the kernel knows for it
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    to_mac: Option<Mac>,
    /// Hardware address of the sender; else the interface's
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    from_mac: Option<Mac>,
    /// VLAN that the frames are tagged for
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(1..4095))]
    vlan: Option<u16>,
    /// What is sent, with how many of each in a round: options, invite, register, crlf, junk
    #[arg(long, default_value = "options=1", value_parser = Mix::from_str)]
    mix: Mix,
    /// How many addresses they come from, a power of two: that of --from and those that follow
    #[arg(long, default_value_t = 1, value_parser = sources)]
    sources: u32,
    /// Frames per second; 0 is as many as one CPU makes
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// How long
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Write what was sent and what came back as JSON to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Kinds of messages, each with its share.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mix(Vec<(Kind, u32)>);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Options,
    Invite,
    Register,
    Crlf,
    /// What is no SIP.
    Junk,
}

impl Kind {
    const ALL: [(&str, Self); 5] = [
        ("options", Self::Options),
        ("invite", Self::Invite),
        ("register", Self::Register),
        ("crlf", Self::Crlf),
        ("junk", Self::Junk),
    ];

    /// What UDP carries. Its Call-ID starts by eight bytes that change.
    fn payload(self, from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
        let call = format!("XXXXXXXX@{}", from.ip());
        let (mut message, uri) = match self {
            Self::Crlf => return b"\r\n\r\n".to_vec(),
            Self::Junk => return vec![0xa5; 200],
            Self::Options => (Message::request("OPTIONS", from, &call), format!("sip:{to}")),
            Self::Invite => (Message::invite(from, &call), format!("sip:service@{to}")),
            Self::Register => {
                let message = Message::request("REGISTER", from, &call);
                (message.line("Expires: 3600"), format!("sip:{}", to.ip()))
            }
        };
        let method = message.start.split(' ').next().unwrap_or_default();
        message.start = format!("{method} {uri} SIP/2.0");
        let address = match self {
            // Who registers is who is registered.
            Self::Register => format!("<sip:phone@{}>", to.ip()),
            _ => format!("<{uri}>"),
        };
        // Of the proxy's own domain, so that it asks who that is.
        let from = format!("phone <sip:phone@{}>;tag=from-{call}", to.ip());
        message.set("To", &address).set("From", &from).bytes()
    }
}

impl Mix {
    /// The frames as they take turns, each party with its hardware address.
    pub(crate) fn frames(
        &self,
        (from, from_mac): (SocketAddrV4, Mac),
        (to, to_mac): (SocketAddrV4, Mac),
        tags: &[(u16, u16)],
    ) -> Vec<Vec<u8>> {
        let frame = |kind: Kind| Frame {
            to: to_mac,
            from: from_mac,
            tags: tags.to_vec(),
            // None, for the Call-ID changes (RFC 768 allows it).
            checksum: Checksum::Zero,
            ..Frame::new(from, to, kind.payload(from, to))
        };
        self.turns().into_iter().map(|kind| frame(kind).bytes()).collect()
    }

    /// The kinds as they take turns, those that are seldom spread among the others.
    fn turns(&self) -> Vec<Kind> {
        let most = self.0.iter().map(|(_, share)| *share).max().unwrap_or(0);
        let round = |round| self.0.iter().filter(move |(_, share)| round < *share);
        (0..most).flat_map(round).map(|(kind, _)| *kind).collect()
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Kind::ALL.map(|(name, _)| name).join(", ");
        let part = |part: &str| {
            let (name, share) = part.split_once('=').unwrap_or((part, "1"));
            let kind = Kind::ALL.iter().find(|(known, _)| *known == name);
            let (_, kind) = kind.ok_or_else(|| format!("{name} is not one of {}", names()))?;
            match share.parse() {
                Ok(share @ 1..=1000) => Ok((*kind, share)),
                _ => Err(format!("{name}={share}: a share is a number from 1 to 1000")),
            }
        };
        let mut mix = text.split(',').map(part).collect::<Result<Vec<_>, _>>()?;
        // 80 to 20 is 4 to 1.
        let common = mix.iter().fold(0, |common, (_, share)| divisor(common, *share)).max(1);
        mix.iter_mut().for_each(|(_, share)| *share /= common);
        match mix.iter().map(|(_, share)| *share).sum() {
            1..=TURNS => Ok(Self(mix)),
            turns => Err(format!(
                "{turns} frames would take turns, and {TURNS} can: make shares rounder"
            )),
        }
    }
}

/// The greatest common divisor.
fn divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { divisor(b, a % b) }
}

/// What was sent, and what the interface has counted meanwhile.
#[derive(Debug, Serialize)]
pub(crate) struct Totals {
    /// Frames that were handed to the interface.
    pub(crate) sent: u64,
    /// Seconds that it took.
    seconds: f64,
    /// Frames in a second.
    pub(crate) pps: f64,
    /// Frames that the interface says it has received in that time: answers, if nobody else uses it.
    pub(crate) received: u64,
}

/// Sends as asked, and says each second how far it is.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.seconds > 0.0 && args.seconds <= 3600.0, "--seconds is from 0 to 3600");
    ensure!(args.rate >= 0.0 && args.rate.is_finite(), "--rate is 0 or more");
    ensure!(
        args.sources == 1
            || args.vlan.is_none() && args.from.ip().to_bits().is_multiple_of(args.sources),
        "--sources is without --vlan, and --from ends by as many zero bits"
    );
    let to_mac = match args.to_mac {
        Some(mac) => mac,
        None => neighbour(&args.interface, args.to)?,
    };
    let from_mac = match args.from_mac {
        Some(mac) => mac,
        None => own_mac(&args.interface)?,
    };
    let tags: Vec<_> = args.vlan.map(|id| (DOT1Q, id)).into_iter().collect();
    let frames = args.mix.frames((args.from, from_mac), (args.to, to_mac), &tags);
    let time = Duration::from_secs_f64(args.seconds);
    let load = Load { interface: &args.interface, rate: args.rate, sources: args.sources, time };
    let totals = send(&frames, &load, true)?;
    println!(
        "{} frames in {:.2} s, {:.0} in a second; {} came back",
        totals.sent, totals.seconds, totals.pps, totals.received
    );
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&totals)?;
        fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// How frames are sent.
pub(crate) struct Load<'a> {
    /// The interface that they leave by.
    pub(crate) interface: &'a str,
    /// In a second; 0: as many as one CPU makes.
    pub(crate) rate: f64,
    /// Addresses that they come from, a power of two: the frame's and those that follow it.
    pub(crate) sources: u32,
    /// For how long.
    pub(crate) time: Duration,
}

/// Sends the frames in turns, and says now and then how far it is, if it is to.
pub(crate) fn send(frames: &[Vec<u8>], load: &Load<'_>, tell: bool) -> Result<Totals> {
    let Load { interface, rate, sources, time } = *load;
    // The program makes a packet shorter at will, and hardly longer.
    let longest = frames.iter().max_by_key(|frame| frame.len()).context("nothing to send")?;
    let pause = if rate == 0.0 { 0 } else { ((1e9 / rate) as u64).max(1) };
    let end = monotonic() + time.as_nanos() as u64;
    let turns = frames.len() as u32;
    let bench = Bench { pktgen: (turns, pause, end), sources, ..Bench::default() };
    let mut ebpf = self::load(&Options { bench, ..Options::new(CALL_BUCKETS) }, &[PKTGEN])?;
    fill(&mut ebpf, frames)?;

    let before = received(interface)?;
    let start = monotonic();
    let mut repeat = FIRST;
    let mut told = Instant::now();
    loop {
        let now = monotonic();
        if now >= end {
            break;
        }
        let left = Duration::from_nanos(end - now).min(CALL);
        let call = Instant::now();
        wire::send(&ebpf, PKTGEN, interface, longest, repeat)?;
        // The next call is to take as long as is right, whatever the machine does in it.
        let took = call.elapsed().max(Duration::from_micros(1));
        repeat = (f64::from(repeat) * left.as_secs_f64() / took.as_secs_f64()) as u32;
        repeat = repeat.clamp(BATCH, MOST);
        if tell && told.elapsed() >= CALL {
            told = Instant::now();
            let passed = (monotonic().min(end) - start) as f64 / 1e9;
            let sent = sent(&ebpf)?;
            eprintln!("{passed:>5.1} s: {sent} frames, {:.0} in a second", sent as f64 / passed);
        }
    }
    let seconds = end.saturating_sub(start) as f64 / 1e9;
    // What is on its way back.
    std::thread::sleep(Duration::from_millis(50));
    let sent = sent(&ebpf)?;
    ensure!(sent > 0, "nothing was sent: {interface} cannot send what XDP makes (ndo_xdp_xmit)");
    let received = received(interface)?.saturating_sub(before);
    Ok(Totals { sent, seconds, pps: sent as f64 / seconds, received })
}

/// Programs of a generator, in the first build that the kernel takes.
pub(crate) fn load(options: &Options, programs: &[&str]) -> Result<Ebpf> {
    let load = |build| -> Result<Ebpf> {
        let mut ebpf = object::maps(build, options)?;
        for name in programs {
            object::program(&mut ebpf, name)?;
        }
        Ok(ebpf)
    };
    let [first, second] = Build::ALL;
    load(first).or_else(|_| load(second)).context("the generator needs root, and Linux 5.18")
}

/// Puts the frames where the generator takes them from.
fn fill(ebpf: &mut Ebpf, frames: &[Vec<u8>]) -> Result<()> {
    for (frame, turn) in frames.iter().zip(0..) {
        fresh_frame(ebpf, turn, frame)?;
        let map = ebpf.map_mut("BENCH_MIX").context("the object has no BENCH_MIX")?;
        let mut mix: Array<_, [u32; 2]> = Array::try_from(map)?;
        mix.set(turn, [frame.len() as u32, paths::vary(frame)], 0)?;
    }
    Ok(())
}

/// How many frames the generator has sent.
fn sent(ebpf: &Ebpf) -> Result<u64> {
    let map = ebpf.map("BENCH_SENT").context("the object has no BENCH_SENT")?;
    let map: PerCpuArray<_, [u64; 2]> = PerCpuArray::try_from(map)?;
    Ok(map.get(&0, 0)?.iter().map(|[sent, _]| sent).sum())
}

/// CLOCK_MONOTONIC, which the generator looks at too, in nanoseconds.
fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock is there, and so is the place for its time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn received(interface: &str) -> Result<u64> {
    wire::received(interface).with_context(|| format!("is there an interface {interface}?"))
}

/// The hardware address that the kernel knows for the proxy.
fn neighbour(interface: &str, to: SocketAddrV4) -> Result<Mac> {
    let table = fs::read_to_string("/proc/net/arp").context("cannot read /proc/net/arp")?;
    let ip = to.ip().to_string();
    let found = table.lines().skip(1).find_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let [address, _, _, mac, _, device] = columns[..] else { return None };
        (address == ip && device == interface).then(|| parse_mac(mac).ok()).flatten()
    });
    match found {
        Some(mac) if mac != [0; 6] => Ok(mac),
        _ => bail!(
            "the kernel knows no hardware address for {ip} on {interface}: ping it once, or give --to-mac, which is \
             the router's where the proxy is in another network"
        ),
    }
}

/// The hardware address of an interface.
pub(crate) fn own_mac(interface: &str) -> Result<Mac> {
    let path = format!("/sys/class/net/{interface}/address");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("cannot read {path}: is there an interface {interface}?"))?;
    parse_mac(text.trim()).map_err(anyhow::Error::msg)
}

/// A number of addresses.
fn sources(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(n) if n.is_power_of_two() && n <= 1 << 16 => Ok(n),
        _ => Err(format!("{text} is no power of two up to 65536")),
    }
}

pub(crate) fn parse_mac(text: &str) -> Result<Mac, String> {
    let mut parts = text.split(':').map(|part| u8::from_str_radix(part, 16));
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = match parts.next() {
            Some(Ok(part)) => part,
            _ => return Err(format!("{text} is no hardware address, as 02:00:00:00:00:01")),
        };
    }
    if parts.next().is_some() {
        return Err(format!("{text} is longer than a hardware address"));
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use aya::programs::XdpMode;
    use clap::Parser;
    use sip_ebpf::Reason;
    use sip_user::fastpath::object::{DROP, PROGRAM};
    use sipline_tests::fixtures::net;

    use super::*;
    use crate::testrun::{self, program};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.args)
    }

    #[test]
    fn a_mix_is_kinds_and_shares() {
        let mix: Mix = "options=40,invite=20,crlf=10".parse().unwrap();
        assert_eq!(mix.0, [(Kind::Options, 4), (Kind::Invite, 2), (Kind::Crlf, 1)]);
        let turns = mix.turns();
        assert_eq!(turns.len(), 7);
        assert_eq!(turns[..3], [Kind::Options, Kind::Invite, Kind::Crlf]);
        assert!("options=97,invite=3".parse::<Mix>().unwrap_err().contains("100 frames"));
        assert!(
            parse("pktgen --interface x --from 1.1.1.0:1 --to 2.2.2.2:2 --sources 256").is_ok()
        );
        assert!(parse("pktgen --interface x --from 1.1.1.0:1 --to 2.2.2.2:2 --sources 3").is_err());
        assert!("bye=1".parse::<Mix>().unwrap_err().contains("options, invite"));
        assert!("invite=0".parse::<Mix>().unwrap_err().contains("1 to 1000"));
        assert_eq!(parse_mac("02:00:00:00:01:ff"), Ok([2, 0, 0, 0, 1, 255]));
        assert!(parse_mac("02:00:00").is_err() && parse_mac("02:00:00:00:01:02:03").is_err());
    }

    #[test]
    fn the_program_takes_what_is_sent() {
        let (totals, counts) = net::with(|| -> Result<_> {
            wire::own_sysfs()?;
            let programs = [PROGRAM, DROP];
            let mut proxy = testrun::load(Build::MayGoto, Bench::default(), &programs)?;
            program(&mut proxy.ebpf, PROGRAM)?.attach("ph", XdpMode::Driver)?;
            for port in ["phx", "p1x", "p2x"] {
                program(&mut proxy.ebpf, DROP)?.attach(port, XdpMode::Driver)?;
            }
            // Where calls go out, the driver must take frames that are redirected.
            for port in ["p1", "p2"] {
                program(&mut proxy.ebpf, PROGRAM)?.attach(port, XdpMode::Driver)?;
            }
            let line = "pktgen --interface phx --from 10.10.1.2:5060 --to 10.10.0.1:5060 \
                        --to-mac 02:00:00:00:01:01 --mix options=3,invite=1,crlf=1 --rate 20000 \
                        --seconds 0.3 --json /dev/null";
            run(&parse(line).unwrap())?;
            let told = testrun::count(&proxy.tables, Reason::OptionsAnswered)?;
            let args = parse(&line.replace("--rate 20000", "--rate 0")).unwrap();
            run(&args)?;
            let count = |reason| testrun::count(&proxy.tables, reason);
            let counts = [
                count(Reason::OptionsAnswered)?,
                count(Reason::InviteSteered)?,
                count(Reason::CrlfAnswered)?,
                count(Reason::Malformed)?,
            ];
            Ok((told, counts))
        })
        .unwrap();
        let [options, invites, keepalives, malformed] = counts;
        assert_eq!(malformed, 0);
        // How many fewer is a matter of what else the machine does.
        assert!((1..=3_600).contains(&totals), "{totals} of 3,600");
        assert!(options > totals, "as many as one CPU makes");
        // The mix is kept, but for what the card's queue has lost.
        assert!(invites > options / 6 && keepalives > options / 6, "{counts:?}");
    }
}
