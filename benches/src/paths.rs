//! The paths through the program, each with the frame that takes it.

use std::net::SocketAddrV4;

use sip_ebpf::Reason;
use sipline_tests::fixtures::message::Message;
use sipline_tests::fixtures::net;
use sipline_tests::fixtures::world::{PHONE, PROXY, World};
use sipline_tests::fixtures::{Checksum, Frame};

/// A path, and what takes it.
#[derive(Clone)]
pub(crate) struct Path {
    /// Its name in the results.
    pub(crate) name: &'static str,
    /// Where its frames come in.
    pub(crate) port: &'static str,
    /// The frame.
    pub(crate) frame: Vec<u8>,
    /// Where in the frame eight bytes change from packet to packet; 0: nowhere.
    pub(crate) vary: u32,
    /// The counter that each packet counts in.
    pub(crate) reason: Reason,
    /// The least share of the reflector's rate that will do, if one was set.
    pub(crate) target: Option<f64>,
}

/// A Call-ID of which eight bytes are told from all others: it starts by them.
const VARY: &str = "Call-ID: XXXXXXXX";

/// Where the PBXs are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ports {
    /// Behind the port that the phones are behind: what is sent on leaves by where it came in, as the reflector's does.
    One,
    /// Each behind a port of its own: what is sent on is redirected.
    Several,
}

/// All paths.
pub(crate) fn all(ports: Ports) -> Vec<Path> {
    let world = World::default();
    let options = Message::request("OPTIONS", PHONE, "1-3217@10.10.1.2");
    let invite = Message::invite(PHONE, "1-3217@10.10.1.2");
    let new = invite.clone().set("Call-ID", "XXXXXXXX@10.10.1.2");
    let Call { pbx, at_pbx, ok, ok_at_phone, .. } = call(&world, invite.clone(), "pbx");
    let ringing = at_pbx.response("180 Ringing", "pbx");
    let ack = ok_at_phone.next("ACK", PHONE, 1);
    let bye = ok_at_phone.next("BYE", PHONE, 2);
    let bye_back = ok_at_phone.next_back("BYE", pbx, 1);
    let path = |name, from: SocketAddrV4, message: Vec<u8>, reason, target| {
        let way = |from: SocketAddrV4| net::way(*from.ip()).expect("all are in the table");
        let there = if ports == Ports::One { way(PHONE) } else { way(from) };
        let mut frame = Frame::new(from, PROXY, message);
        (frame.to, frame.from, frame.checksum) = (there.from, way(from).to, Checksum::Right);
        let frame = frame.bytes();
        Path { name, port: there.port, vary: vary(&frame), frame, reason, target }
    };
    vec![
        path("options", PHONE, options.bytes(), Reason::OptionsAnswered, Some(0.30)),
        path("invite_new", PHONE, new.bytes(), Reason::InviteSteered, Some(0.25)),
        path("invite_known", PHONE, invite.bytes(), Reason::InviteRepeated, Some(0.25)),
        path("response_180", pbx, ringing.bytes(), Reason::ResponseForwarded, Some(0.25)),
        path("response_200", pbx, ok.bytes(), Reason::ResponseForwarded, Some(0.25)),
        path("ack", PHONE, ack.bytes(), Reason::DialogToPbx, None),
        path("bye_to_pbx", PHONE, bye.bytes(), Reason::DialogToPbx, None),
        path("bye_to_phone", pbx, bye_back.bytes(), Reason::DialogToPhone, None),
        path("crlf", PHONE, b"\r\n\r\n".to_vec(), Reason::CrlfAnswered, None),
    ]
}

/// A call up to its answer, as each side sees it.
pub(crate) struct Call {
    /// Who has it.
    pub(crate) pbx: SocketAddrV4,
    /// As the phone sends it.
    pub(crate) invite: Message,
    /// The same as it comes to the PBX.
    pub(crate) at_pbx: Message,
    /// The answer as the PBX sends it.
    pub(crate) ok: Message,
    /// The same as it comes to the phone.
    pub(crate) ok_at_phone: Message,
}

/// What becomes of an INVITE; the PBX has this tag.
pub(crate) fn call(world: &World, invite: Message, tag: &str) -> Call {
    let (pbx, at_pbx) = next(world, PHONE, &invite);
    let ok = at_pbx
        .response("200 OK", tag)
        .line(&format!("Contact: <sip:{pbx};transport=UDP>"))
        .line("Content-Type: application/sdp")
        .with_body(sipline_tests::fixtures::message::SDP);
    let (_, ok_at_phone) = next(world, pbx, &ok);
    Call { pbx, invite, at_pbx, ok, ok_at_phone }
}

/// Where in a frame eight bytes change from packet to packet, as in [`Path::vary`].
pub(crate) fn vary(frame: &[u8]) -> u32 {
    let at = frame.windows(VARY.len()).position(|bytes| bytes == VARY.as_bytes());
    // The eight bytes end it.
    at.map_or(0, |at| at + VARY.len() - 8) as u32
}

/// What the proxy makes of a message, and for whom.
pub(crate) fn next(
    world: &World,
    from: SocketAddrV4,
    message: &Message,
) -> (SocketAddrV4, Message) {
    let expected = world.expect(from, PROXY, &message.bytes());
    let (to, bytes) = expected.sent.expect("the messages of a call are sent on");
    (to, Message::read(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart() {
        let paths = all(Ports::Several);
        assert!(paths.iter().all(|path| (path.vary != 0) == (path.name == "invite_new")));
        assert!(paths.iter().all(|path| path.frame.len() < 2048));
    }
}
