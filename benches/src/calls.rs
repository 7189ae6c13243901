//! Whole calls by live frames: INVITE, 100, 180, 200, ACK, BYE and 200 of many calls, from the phones' side and from both
//! PBXs', each call with a Call-ID, tags and branches of its own.
//!
//! What phones and PBXs send depends on what the proxy has put in, so it is made beforehand, by the shared code with the
//! proxy's key. A program in the kernel sends it (`bench_calls`), and sends no more than has come out at the other side, where
//! another one counts it by kind and drops it (`bench_sink`): so nothing is lost for want of room in a ring.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::maps::xdp::DevMap;
use aya::maps::{Array, MapData};
use aya::programs::XdpMode;
use aya::{Pod, maps::Map};
use sip_ebpf::tables::{Pbx, PbxState};
use sip_user::fastpath::object::{Bench, CALLS, Options, SINK};
use sipline_tests::fixtures::frame::Mac;
use sipline_tests::fixtures::message::Message;
use sipline_tests::fixtures::world::{PHONE, PROXY, World, pbx};
use sipline_tests::fixtures::{Frame, net};

use crate::testrun::{fresh_frame, program};
use crate::{paths, pktgen, wire};

/// Frames of a call.
pub(crate) const STAGES: usize = 7;

/// The sides of the proxy: the phones', and that of each PBX.
pub(crate) const SIDES: usize = 3;

/// Hardware addresses of each side: the proxy's, and the peer's.
pub(crate) type Macs = [(Mac, Mac); SIDES];

/// Both PBXs in their order, each with its slot.
pub(crate) type Turns = [(u8, SocketAddrV4); 2];

/// What is different in a call, as the program takes it.
type Own = [u8; 96];

/// A piece of it: place in the frame, place in [`Own`], length.
type Piece = [u32; 3];

/// The most pieces that a frame has.
const PIECES: usize = 8;

/// Where the UDP checksum stands in a frame.
const CHECKSUM: usize = 40;

/// Where in [`Own`] its parts stand, behind the checksums of all frames, and how long they are: what the phone has chosen, the
/// signature of the cookie, our branches of INVITE and of BYE.
const PARTS: [(usize, usize); 4] = [(16, 8), (24, 16), (40, 16), (56, 16)];

/// How often the program runs in a system call, which takes tens of milliseconds to prepare.
const RUNS: u32 = 1 << 23;

/// Calls that are to be sent.
pub(crate) struct Calls {
    /// The frames of an even call, and those of an odd one, which the other PBX has.
    templates: [Template; 2],
    own: Vec<Own>,
}

struct Template {
    frames: [(usize, Vec<u8>); STAGES],
    pieces: [Vec<Piece>; STAGES],
}

impl Calls {
    /// Makes `count` calls, which go to these PBXs in turn, each with its slot. `start` is the first of their numbers, which
    /// nobody else has.
    pub(crate) fn new(macs: &Macs, turns: Turns, start: u32, count: u32) -> Result<Self> {
        let worlds = turns.map(|(slot, address)| {
            let mut world = World::default();
            world.pbxs.fill(Pbx::default());
            world.pbxs[usize::from(slot)] = pbx(address, PbxState::Active);
            world.set_turns(&[slot]);
            world
        });
        let frames = |number: u32| call(&worlds[(number - start) as usize & 1], macs, number);
        let templates = [frames(start), frames(start + 1)].map(|(frames, own)| {
            let pieces = std::array::from_fn(|stage| pieces(stage, &frames[stage].1, &own));
            Template { frames, pieces }
        });
        let mut all = Vec::new();
        for number in start..start + count {
            let (frames, own) = frames(number);
            let template = &templates[(number - start) as usize & 1];
            for (stage, frame) in frames.iter().enumerate() {
                ensure!(template.with(stage, &own) == frame.1, "{number:X}: stage {stage} differs");
            }
            all.push(own);
        }
        Ok(Self { templates, own: all })
    }

    /// Loads the program that sends them, with so many nanoseconds between two frames.
    pub(crate) fn load(&self, pause: u64) -> Result<Sender> {
        let bench =
            Bench { calls: self.own.len() as u32, pktgen: (0, pause, 0), ..Bench::default() };
        let options = Options { bench, ..Options::new(1) };
        let mut ebpf = pktgen::load(&options, &[CALLS, SINK])?;
        for (template, first) in self.templates.iter().zip([0, 8]) {
            for (stage, turn) in (0..STAGES).zip(first..) {
                let (side, frame) = &template.frames[stage];
                fresh_frame(&mut ebpf, turn, frame)?;
                set(&mut ebpf, "BENCH_MIX", turn, [frame.len() as u32, *side as u32])?;
                let given = template.pieces[stage].concat();
                let mut pieces = [0; 3 * PIECES];
                pieces.get_mut(..given.len()).context("too many pieces")?.copy_from_slice(&given);
                set(&mut ebpf, "BENCH_PIECES", turn, pieces)?;
            }
        }
        let map = ebpf.map_mut("BENCH_CALLS").context("the object has no BENCH_CALLS")?;
        let mut map: Array<_, Own> = Array::try_from(map)?;
        for (own, n) in self.own.iter().zip(0..) {
            map.set(n, own, 0)?;
        }
        let frames = self.templates.iter().flat_map(|template| &template.frames);
        let longest = frames.map(|(_, frame)| frame).max_by_key(|frame| frame.len());
        let longest = longest.context("no frames")?.clone();
        Ok(Sender { ebpf, longest, frames: (self.own.len() * STAGES) as u64 })
    }
}

impl Template {
    /// A frame of a call.
    fn with(&self, stage: usize, own: &Own) -> Vec<u8> {
        let mut frame = self.frames[stage].1.clone();
        for [to, from, len] in self.pieces[stage].iter().map(|piece| piece.map(|n| n as usize)) {
            frame[to..to + len].copy_from_slice(&own[from..from + len]);
        }
        frame
    }
}

/// A call's frames, each with the side that it comes from, and what is different in them.
fn call(world: &World, macs: &Macs, number: u32) -> ([(usize, Vec<u8>); STAGES], Own) {
    let number = format!("{number:08X}");
    let tag = format!("pbx-{number}");
    let invite = Message::invite(PHONE, &format!("{number}@{}", PHONE.ip()));
    let paths::Call { pbx, invite, at_pbx, ok, ok_at_phone } = paths::call(world, invite, &tag);
    let bye = ok_at_phone.next("BYE", PHONE, 2);
    let (_, bye_at_pbx) = paths::next(world, PHONE, &bye);
    let parts = [
        number.clone(),
        signed(&ok_at_phone.value("Record-Route")),
        signed(&at_pbx.value("Via")),
        signed(&bye_at_pbx.value("Via")),
    ];
    let sent: [(SocketAddrV4, Message); STAGES] = [
        (PHONE, invite),
        (pbx, at_pbx.response("100 Trying", &tag)),
        (pbx, at_pbx.response("180 Ringing", &tag)),
        (pbx, ok),
        (PHONE, ok_at_phone.next("ACK", PHONE, 1)),
        (PHONE, bye),
        (pbx, bye_at_pbx.response("200 OK", &tag)),
    ];
    let frames = sent.map(|(from, message)| {
        let side = usize::from(from.ip().octets()[2]) - 1;
        let (to_mac, from_mac) = macs[side];
        let frame = Frame::new(from, PROXY, message).with(|frame| {
            (frame.to, frame.from) = (to_mac, from_mac);
        });
        (side, frame.bytes())
    });
    let mut own = [0; 96];
    for (stage, (_, frame)) in frames.iter().enumerate() {
        own[2 * stage..2 * stage + 2].copy_from_slice(&frame[CHECKSUM..CHECKSUM + 2]);
    }
    for (part, (at, len)) in parts.iter().zip(PARTS) {
        own[at..at + len].copy_from_slice(part.as_bytes());
    }
    (frames, own)
}

/// The last 16 digits of a value: our branch, or the signature of our cookie.
fn signed(value: &str) -> String {
    let value = value.trim_end_matches('>');
    value[value.len() - 16..].to_owned()
}

/// Where the pieces of a call are in one of its frames.
fn pieces(stage: usize, frame: &[u8], own: &Own) -> Vec<Piece> {
    let checksum = [CHECKSUM as u32, 2 * stage as u32, 2];
    let found = PARTS.iter().flat_map(|(from, len)| {
        let part = &own[*from..from + len];
        let places = frame.windows(*len).enumerate().filter(move |(_, bytes)| *bytes == part);
        places.map(|(to, _)| [to as u32, *from as u32, *len as u32])
    });
    [checksum].into_iter().chain(found).collect()
}

/// The program that sends them.
pub(crate) struct Sender {
    ebpf: Ebpf,
    longest: Vec<u8>,
    frames: u64,
}

impl Sender {
    /// Makes this interface, of this thread's namespace, the peer of a side: frames leave by it, and what comes to it is
    /// counted and dropped.
    pub(crate) fn join(&mut self, side: usize, interface: &str) -> Result<()> {
        program(&mut self.ebpf, SINK)?.attach(interface, XdpMode::Driver)?;
        let map = self.ebpf.map_mut("BENCH_PORTS").context("the object has no BENCH_PORTS")?;
        let mut ports: DevMap<_> = DevMap::try_from(map)?;
        ports.set(side as u32, net::index(interface), None, 0)?;
        Ok(())
    }

    /// Sends all of them, or until nothing comes out any more. `interface` is one of this thread's namespace.
    pub(crate) fn send(&self, interface: &str) -> Result<Sent> {
        let mut before = 0;
        loop {
            wire::send(&self.ebpf, CALLS, interface, &self.longest, RUNS)?;
            let out = self.came_out(0)?;
            if out >= self.frames || out == before {
                break;
            }
            before = out;
        }
        let state: [u64; 5] = get(&self.ebpf, "BENCH_STATE", 0)?;
        let [_, frames, _, first, last] = state;
        Ok(Sent { frames, time: Duration::from_nanos(last - first), out: self.came_out(0)? })
    }

    /// How many frames came out at a side that start by this letter.
    pub(crate) fn at(&self, side: usize, letter: u8) -> Result<u64> {
        self.came_out((side as u32 + 1) << 4 | u32::from(letter) & 15)
    }

    fn came_out(&self, key: u32) -> Result<u64> {
        get(&self.ebpf, "BENCH_OUT", key)
    }
}

/// What became of frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// So many were sent.
    pub(crate) frames: u64,
    /// From the first to the last.
    pub(crate) time: Duration,
    /// So many came out at the other side.
    pub(crate) out: u64,
}

fn set<V: Pod>(ebpf: &mut Ebpf, map: &str, key: u32, value: V) -> Result<()> {
    let map: &mut Map = ebpf.map_mut(map).with_context(|| format!("the object has no {map}"))?;
    Ok(Array::<&mut MapData, V>::try_from(map)?.set(key, value, 0)?)
}

fn get<V: Pod>(ebpf: &Ebpf, map: &str, key: u32) -> Result<V> {
    let map = ebpf.map(map).with_context(|| format!("the object has no {map}"))?;
    Ok(Array::<&MapData, V>::try_from(map)?.get(&key, 0)?)
}

#[cfg(test)]
mod tests {
    use sip_ebpf::Reason;
    use sip_user::fastpath::object::{Build, PROGRAM};

    use sipline_tests::fixtures::world::{PBX1, PBX2};

    use super::*;
    use crate::machine;
    use crate::testrun;

    fn macs() -> Macs {
        std::array::from_fn(|side| {
            let mac = |host| [2, 0, 0, 0, side as u8 + 1, host];
            (mac(1), mac(2))
        })
    }

    #[test]
    fn each_call_is_another() {
        let calls = Calls::new(&macs(), [(7, PBX2), (3, PBX1)], 0xC0DE_0000, 4).unwrap();
        let [even, odd] = &calls.templates;
        let sides = |template: &Template| template.frames.each_ref().map(|(side, _)| *side);
        assert_eq!(sides(even), [0, 2, 2, 2, 0, 0, 2]);
        assert_eq!(sides(odd), [0, 1, 1, 1, 0, 0, 1]);
        for stage in 0..STAGES {
            let frames = [0, 2].map(|n| even.with(stage, &calls.own[n]));
            let text = frames.each_ref().map(|frame| String::from_utf8_lossy(&frame[42..]));
            assert!(
                text[0].contains("Call-ID: C0DE0000@") && text[1].contains("Call-ID: C0DE0002@")
            );
        }
    }

    #[test]
    fn the_proxy_carries_whole_calls() {
        const COUNT: u32 = 1001;
        let (counts, out) = net::with(|| -> Result<_> {
            // One PBX after the other, as one CPU has the turn.
            machine::pin(0, 0)?;
            wire::own_sysfs()?;
            let mut proxy = testrun::load(Build::MayGoto, Bench::default(), &[PROGRAM])?;
            for port in net::PORTS {
                program(&mut proxy.ebpf, PROGRAM)?.attach(port, XdpMode::Driver)?;
            }
            let turns = [(0, PBX1), (1, PBX2)];
            let mut sender = Calls::new(&macs(), turns, 0xC0DE_0000, COUNT)?.load(0)?;
            for (side, port) in net::PORTS.iter().enumerate() {
                sender.join(side, &format!("{port}x"))?;
            }
            let sent = sender.send("phx")?;
            assert_eq!((sent.frames, sent.out), (7007, 7007), "{sent:?}");
            let counts = [Reason::InviteSteered, Reason::ResponseForwarded, Reason::DialogToPbx]
                .map(|reason| testrun::count(&proxy.tables, reason).unwrap());
            let at = |side: usize| [b'I', b'A', b'B', b'S'].map(|c| sender.at(side, c).unwrap());
            Ok((counts, [at(0), at(1), at(2)]))
        })
        .unwrap();
        assert_eq!(counts, [1001, 4004, 2002]);
        assert_eq!(out, [[0, 0, 0, 4004], [501, 501, 501, 0], [500, 500, 500, 0]]);
    }
}
