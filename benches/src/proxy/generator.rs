//! Phones and PBXs in one thread: an open-loop load, which starts operations at a given rate whatever
//! becomes of those before, and counts what became of each.
//!
//! Nobody here sends anything twice: a datagram that is lost is an operation that is lost. What the proxy
//! sends twice is not answered twice.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result};
use sipline_tests::lab::{Lab, PORT, PROXY, Place};

use super::digest::Challenge;
use super::message::{SDP, fields, find, header, method, numbers, respond, status, uri, value};
use super::socket::{Inbox, Port, now, wait};

/// Sockets of the phones; each stands for many phones.
const PHONES: u16 = 4;
/// The number that is called.
const CALLED: &str = "9999";
/// How long the PBXs let a call ring.
const RING: Duration = Duration::from_millis(50);
/// How long a call is held.
const HOLD: Duration = Duration::from_millis(100);
/// An expiry that nothing here lives to see.
const EXPIRES: u32 = 3600;

/// What the phones do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Operation {
    /// REGISTER, 401, REGISTER with credentials, 200; or at once with the credentials of the last
    /// challenge, as phones do that remember it.
    Register { remember: bool },
    /// INVITE (and 407, ACK, INVITE with credentials, when the proxy asks), 100, 180, 200, ACK, BYE, 200.
    Call,
    /// A call that is not answered.
    Ring,
    /// OPTIONS to the proxy itself, and 200.
    Options,
}

/// What became of the operations.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Started.
    pub(super) started: u64,
    /// Ended as they should; a [`Operation::Ring`] does when it rings.
    pub(super) succeeded: u64,
    /// Final responses that should not have been.
    pub(super) refused: BTreeMap<u16, u64>,
    /// Registrations that the PBXs got from the proxy.
    pub(super) forked: u64,
    /// Requests that the proxy sent to a PBX again.
    pub(super) again: u64,
    /// By how much the last operation was started too late. When this grows, the generator itself is too
    /// slow; what was late and has caught up was still asked of the proxy.
    pub(super) late: Duration,
}

impl Counts {
    /// Operations that are not over, or ended as they should not.
    pub(super) fn lost(&self) -> u64 {
        self.started - self.succeeded
    }
}

/// The generator.
pub(super) struct Generator {
    phones: Vec<Port<Sent>>,
    pbxs: Vec<Port<Sent>>,
    inbox: Inbox,
    /// Goes into Call-IDs and branches, so that what comes late is told from what is expected.
    round: u32,
    operation: Operation,
    /// Nanoseconds between two starts, the time of the next one, and how many are to come.
    pause: f64,
    next: f64,
    left: u64,
    ops: Vec<Op>,
    users: Vec<User>,
    /// Those who take turns, and whose turn is next.
    turns: Range<usize>,
    next_user: usize,
    /// Final answers that the PBXs are about to give: when, who, to which call, what.
    ringing: VecDeque<(u64, usize, u32, Vec<u8>)>,
    /// Calls that are held, and until when.
    held: VecDeque<(u64, u32)>,
    counts: Counts,
    /// Time that messages took through the proxy, in nanoseconds.
    delays: Vec<u64>,
}

/// Which message a datagram is, to know when it was sent.
#[derive(Clone, Copy)]
enum Sent {
    ByPhone(u32),
    ByPbx(u32),
    Other,
}

#[derive(Default)]
struct User {
    /// Of its last REGISTER.
    cseq: u32,
    challenge: Option<Challenge>,
    /// How often the challenge has been answered.
    count: u32,
}

struct Op {
    user: u32,
    stage: Stage,
    /// When the phone sent its last request.
    by_phone: u64,
    /// When the PBX sent its last response that counts.
    by_pbx: u64,
    /// Has come to a PBX.
    arrived: bool,
    dialog: Option<Box<Dialog>>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// The first request is out.
    Asked,
    /// So is the one with credentials.
    Authorized,
    /// Talking.
    Answered,
    /// BYE is out.
    Ending,
    Over,
}

struct Dialog {
    /// The remote target.
    target: String,
    /// The To of the 200, with its tag.
    to: String,
    /// The Route lines.
    route: String,
}

impl Generator {
    /// Makes sockets in a lab, for so many users.
    pub(super) fn new(lab: &Lab, users: usize) -> Result<Self> {
        let proxy = address(PROXY, PORT)?;
        let bind = |place: Place, port| {
            Port::bind(&lab.namespace_file(place), address(place.address(), port)?, proxy)
        };
        Ok(Self {
            phones: (0..PHONES).map(|i| bind(Place::Phones, PORT + i)).collect::<Result<_>>()?,
            pbxs: vec![bind(Place::Pbx1, PORT)?, bind(Place::Pbx2, PORT)?],
            inbox: Inbox::new(),
            round: 0,
            operation: Operation::Call,
            pause: 0.0,
            next: 0.0,
            left: 0,
            ops: Vec::new(),
            users: (0..users).map(|_| User::default()).collect(),
            turns: 0..users,
            next_user: 0,
            ringing: VecDeque::new(),
            held: VecDeque::new(),
            counts: Counts::default(),
            delays: Vec::new(),
        })
    }

    /// Another proxy will answer: nothing of the last one is remembered.
    pub(super) fn forget(&mut self) {
        self.users.iter_mut().for_each(|user| *user = User::default());
        self.begin(Operation::Call, 1.0, 0);
    }

    /// Starts `count` operations from now on, `rate` in a second, if [`Generator::run`] is called.
    pub(super) fn begin(&mut self, operation: Operation, rate: f64, count: u64) {
        self.round += 1;
        self.operation = operation;
        self.pause = 1e9 / rate;
        self.next = now() as f64;
        self.left = count;
        self.ops.clear();
        self.ringing.clear();
        self.held.clear();
        self.counts = Counts::default();
        self.delays.clear();
    }

    /// Users who take turns from now on. There must be such users.
    pub(super) fn take_turns(&mut self, users: Range<usize>) {
        self.next_user = users.start;
        self.turns = users;
    }

    /// What became of the operations so far.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What messages took through the proxy so far, in nanoseconds, sorted.
    pub(super) fn delays(&mut self) -> &[u64] {
        self.delays.sort_unstable();
        &self.delays
    }

    /// Forgets the delays so far.
    pub(super) fn clear_delays(&mut self) {
        self.delays.clear();
    }

    /// Runs for a time.
    pub(super) fn run(&mut self, time: Duration) {
        self.run_while(time, |_| true);
    }

    /// Runs until everything has been started and is over, or a time has passed.
    pub(super) fn finish(&mut self, time: Duration) {
        self.run_while(time, |all| {
            let refused: u64 = all.counts.refused.values().sum();
            all.left > 0 || all.counts.succeeded + refused < all.counts.started
        });
    }

    fn run_while(&mut self, time: Duration, go_on: impl Fn(&Self) -> bool) {
        let end = now() + time.as_nanos() as u64;
        let mut fds: Vec<libc::pollfd> = self
            .phones
            .iter()
            .chain(&self.pbxs)
            .map(|port| libc::pollfd { fd: port.fd(), events: libc::POLLIN, revents: 0 })
            .collect();
        loop {
            let time = now();
            if time >= end || !go_on(self) {
                return;
            }
            self.start(time);
            self.answer(time);
            self.hang_up(time);
            self.flush();
            if !self.receive() {
                let next = [
                    Some(end),
                    (self.left > 0).then_some(self.next as u64),
                    self.ringing.front().map(|(due, ..)| *due),
                    self.held.front().map(|(due, _)| *due),
                ];
                let due = next.into_iter().flatten().min().unwrap_or(end);
                wait(&mut fds, due.saturating_sub(now()));
            }
        }
    }

    /// Starts what is due.
    fn start(&mut self, time: u64) {
        // Between two looks at the sockets, so that answers do not wait behind a burst.
        for _ in 0..16 {
            if self.left == 0 || self.next > time as f64 {
                return;
            }
            self.counts.late = Duration::from_nanos(time - self.next as u64);
            self.next += self.pause;
            self.left -= 1;
            self.counts.started += 1;
            let user = self.next_user;
            self.next_user = if user + 1 < self.turns.end { user + 1 } else { self.turns.start };
            self.ops.push(Op {
                user: user as u32,
                stage: Stage::Asked,
                by_phone: 0,
                by_pbx: 0,
                arrived: false,
                dialog: None,
            });
            let op = self.ops.len() as u32 - 1;
            match self.operation {
                Operation::Register { remember } => {
                    if remember && self.users[user].challenge.is_some() {
                        self.ops[op as usize].stage = Stage::Authorized;
                        self.register(op, true);
                    } else {
                        self.register(op, false);
                    }
                }
                Operation::Call | Operation::Ring => self.invite(op, None),
                Operation::Options => self.options(op),
            }
        }
    }

    /// Sends the answers of the PBXs that are due.
    fn answer(&mut self, time: u64) {
        while self.ringing.front().is_some_and(|(due, ..)| *due <= time) {
            let Some((_, pbx, op, text)) = self.ringing.pop_front() else { return };
            self.pbxs[pbx].text().extend_from_slice(&text);
            self.pbxs[pbx].end(Sent::ByPbx(op));
        }
    }

    /// Ends the calls that have been held long enough.
    fn hang_up(&mut self, time: u64) {
        while self.held.front().is_some_and(|(due, _)| *due <= time) {
            let Some((_, op)) = self.held.pop_front() else { return };
            self.ops[op as usize].stage = Stage::Ending;
            self.in_dialog(op, "BYE", 3);
        }
    }

    fn flush(&mut self) {
        let ops = &mut self.ops;
        for port in self.phones.iter_mut().chain(&mut self.pbxs) {
            port.flush(|what, time| match what {
                Sent::ByPhone(op) => ops[op as usize].by_phone = time,
                Sent::ByPbx(op) => ops[op as usize].by_pbx = time,
                Sent::Other => {}
            });
        }
    }

    /// Reads a batch from each socket; whether there was anything.
    fn receive(&mut self) -> bool {
        let mut inbox = std::mem::replace(&mut self.inbox, Inbox::empty());
        let mut any = false;
        for phone in 0..self.phones.len() {
            any |= inbox.receive(&self.phones[phone]) > 0;
            for (message, time) in inbox.datagrams() {
                self.at_phone(message, time);
            }
        }
        for pbx in 0..self.pbxs.len() {
            any |= inbox.receive(&self.pbxs[pbx]) > 0;
            for (message, time) in inbox.datagrams() {
                self.at_pbx(pbx, message, time);
            }
        }
        self.inbox = inbox;
        self.flush();
        any
    }

    /// A response came to a phone.
    fn at_phone(&mut self, message: &[u8], time: u64) {
        let status = match status(message) {
            Some(status) => status,
            // Our own request: a reflector is measured, and that is its answer.
            None if self.operation == Operation::Options => 200,
            None => return,
        };
        let Some((round, op)) = numbers(message, b"branch=z9hG4bKb") else { return };
        let index = op as usize;
        if round != self.round || index >= self.ops.len() || self.ops[index].stage == Stage::Over {
            return;
        }
        let stage = self.ops[index].stage;
        let invited = header(message, "CSeq", "").is_some_and(|cseq| cseq.ends_with(b"INVITE"));
        match (status, stage) {
            (180, _) if self.operation == Operation::Ring && invited => self.succeed(index),
            (100..200, _) => {}
            (401 | 407, Stage::Asked) => {
                let challenge = Challenge::read(message);
                let user = self.ops[index].user as usize;
                if invited {
                    self.refuse(op, message);
                }
                let Some(challenge) = challenge else { return self.fail(index, status) };
                self.ops[index].stage = Stage::Authorized;
                self.users[user].challenge = Some(challenge);
                self.users[user].count = 0;
                if invited { self.invite_again(op) } else { self.register(op, true) }
            }
            // The nonce has become too old.
            (401, Stage::Authorized)
                if self.operation == (Operation::Register { remember: true })
                    && self.users[self.ops[index].user as usize].count > 1 =>
            {
                let Some(challenge) = Challenge::read(message) else {
                    return self.fail(index, status);
                };
                let user = &mut self.users[self.ops[index].user as usize];
                (user.challenge, user.count) = (Some(challenge), 0);
                self.register(op, true);
            }
            (200..300, Stage::Asked | Stage::Authorized) if invited => {
                self.delays.push(time.saturating_sub(self.ops[index].by_pbx));
                let Some(dialog) = dialog(message) else { return self.fail(index, status) };
                self.ops[index].dialog = Some(Box::new(dialog));
                self.ops[index].stage = Stage::Answered;
                self.in_dialog(op, "ACK", if stage == Stage::Authorized { 2 } else { 1 });
                self.held.push_back((now() + HOLD.as_nanos() as u64, op));
            }
            // The 200 again, because the ACK came late.
            (200..300, _) if invited => self.counts.again += 1,
            (200..300, Stage::Ending) => {
                self.delays.push(time.saturating_sub(self.ops[index].by_pbx));
                self.succeed(index);
            }
            (200..300, _) => {
                self.delays.push(time.saturating_sub(self.ops[index].by_phone));
                self.succeed(index);
            }
            _ => {
                if invited {
                    self.refuse(op, message);
                }
                self.fail(index, status);
            }
        }
    }

    fn succeed(&mut self, op: usize) {
        self.ops[op].stage = Stage::Over;
        self.ops[op].dialog = None;
        self.counts.succeeded += 1;
    }

    fn fail(&mut self, op: usize, status: u16) {
        self.ops[op].stage = Stage::Over;
        *self.counts.refused.entry(status).or_default() += 1;
    }

    /// A request came to a PBX.
    fn at_pbx(&mut self, pbx: usize, message: &[u8], time: u64) {
        let method = method(message);
        let more = format_args!("");
        let op = header(message, "Call-ID", "i").filter(|id| id.starts_with(b"c"));
        let op = op.and_then(|id| numbers(id, b"c"));
        match (method, op) {
            (b"INVITE" | b"ACK" | b"BYE", Some((round, op))) => {
                if round != self.round || op as usize >= self.ops.len() {
                    return;
                }
                let call = &mut self.ops[op as usize];
                let delay = time.saturating_sub(call.by_phone);
                match method {
                    b"INVITE" if call.arrived => self.counts.again += 1,
                    b"INVITE" => {
                        call.arrived = true;
                        self.delays.push(delay);
                        self.ring(pbx, op, message);
                    }
                    b"BYE" => {
                        self.delays.push(delay);
                        let port = &mut self.pbxs[pbx];
                        respond(port.text(), message, "200 OK", None, more, "");
                        port.end(Sent::ByPbx(op));
                    }
                    _ => self.delays.push(delay),
                }
            }
            (b"REGISTER", _) => {
                self.counts.forked += 1;
                let contact = header(message, "Contact", "m").unwrap_or_default();
                let contact = String::from_utf8_lossy(uri(contact)).into_owned();
                let port = &mut self.pbxs[pbx];
                respond(
                    port.text(),
                    message,
                    "200 OK",
                    Some(format_args!("r{pbx}")),
                    format_args!(
                        "Contact: <{contact}>;expires={EXPIRES}\r\nExpires: {EXPIRES}\r\n"
                    ),
                    "",
                );
                port.end(Sent::Other);
            }
            (b"OPTIONS" | b"CANCEL", _) => {
                let port = &mut self.pbxs[pbx];
                respond(port.text(), message, "200 OK", Some(format_args!("o{pbx}")), more, "");
                port.end(Sent::Other);
            }
            _ => {}
        }
    }

    /// 100 and 180 at once, and the 200 later.
    fn ring(&mut self, pbx: usize, op: u32, invite: &[u8]) {
        let round = self.round;
        let port = &mut self.pbxs[pbx];
        let contact = format!("Contact: <sip:{CALLED}@{}>\r\n", port.local());
        respond(port.text(), invite, "100 Trying", None, format_args!(""), "");
        port.end(Sent::Other);
        let tag = format!("p{pbx}.{round}.{op}");
        let tag = Some(format_args!("{tag}"));
        let more = format_args!("{contact}");
        respond(port.text(), invite, "180 Ringing", tag, more, "");
        port.end(Sent::Other);
        if self.operation != Operation::Ring {
            let mut text = Vec::with_capacity(1200);
            respond(&mut text, invite, "200 OK", tag, more, SDP);
            self.ringing.push_back((now() + RING.as_nanos() as u64, pbx, op, text));
        }
    }

    fn phone(&mut self, op: u32) -> &mut Port<Sent> {
        let phones = self.phones.len();
        // A user has always the same phone.
        &mut self.phones[self.ops[op as usize].user as usize % phones]
    }

    fn register(&mut self, op: u32, authorized: bool) {
        let (round, index) = (self.round, self.ops[op as usize].user);
        let name = user_name(index);
        let user = &mut self.users[index as usize];
        user.cseq += 1;
        let cseq = user.cseq;
        let uri = format!("sip:{PROXY}");
        let mut credentials = String::new();
        if authorized && let Some(challenge) = &user.challenge {
            user.count += 1;
            let answer = challenge.answer(&name, &password(index), "REGISTER", &uri, user.count);
            let _ = write!(credentials, "Authorization: {answer}\r\n");
        }
        let phone = self.phone(op);
        let at = phone.local();
        // Writing to a Vec cannot fail.
        let _ = write!(
            phone.text(),
            "REGISTER {uri} SIP/2.0\r\n\
             Via: SIP/2.0/UDP {at};rport;branch=z9hG4bKb{round}.{op}.{cseq}\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:{name}@{PROXY}>;tag=r{round}.{op}\r\n\
             To: <sip:{name}@{PROXY}>\r\n\
             Call-ID: r{index}@{at}\r\n\
             CSeq: {cseq} REGISTER\r\n\
             Contact: <sip:{name}@{at}>\r\n\
             Expires: {EXPIRES}\r\n\
             Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, NOTIFY, REFER\r\n\
             User-Agent: phone\r\n\
             {credentials}Content-Length: 0\r\n\r\n"
        );
        phone.end(Sent::ByPhone(op));
    }

    fn options(&mut self, op: u32) {
        let round = self.round;
        let name = user_name(self.ops[op as usize].user);
        let phone = self.phone(op);
        let at = phone.local();
        // Writing to a Vec cannot fail.
        let _ = write!(
            phone.text(),
            "OPTIONS sip:{PROXY}:{PORT} SIP/2.0\r\n\
             Via: SIP/2.0/UDP {at};rport;branch=z9hG4bKb{round}.{op}.1\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:{name}@{PROXY}>;tag=o{round}.{op}\r\n\
             To: <sip:{PROXY}:{PORT}>\r\n\
             Call-ID: o{round}.{op}@{at}\r\n\
             CSeq: 1 OPTIONS\r\n\
             Contact: <sip:{name}@{at}>\r\n\
             Accept: application/sdp\r\n\
             User-Agent: phone\r\n\
             Content-Length: 0\r\n\r\n"
        );
        phone.end(Sent::ByPhone(op));
    }

    /// The INVITE with credentials.
    fn invite_again(&mut self, op: u32) {
        let index = self.ops[op as usize].user;
        let user = &mut self.users[index as usize];
        user.count += 1;
        let Some(challenge) = &user.challenge else { return };
        let uri = format!("sip:{CALLED}@{PROXY}");
        let answer =
            challenge.answer(&user_name(index), &password(index), "INVITE", &uri, user.count);
        self.invite(op, Some(&answer));
    }

    fn invite(&mut self, op: u32, authorization: Option<&str>) {
        let round = self.round;
        let name = user_name(self.ops[op as usize].user);
        let credentials = match authorization {
            Some(answer) => format!("Proxy-Authorization: {answer}\r\n"),
            None => String::new(),
        };
        let cseq = if authorization.is_some() { 2 } else { 1 };
        let phone = self.phone(op);
        let at = phone.local();
        let _ = write!(
            phone.text(),
            "INVITE sip:{CALLED}@{PROXY} SIP/2.0\r\n\
             Via: SIP/2.0/UDP {at};rport;branch=z9hG4bKb{round}.{op}.{cseq}\r\n\
             Max-Forwards: 70\r\n\
             From: \"{name}\" <sip:{name}@{PROXY}>;tag=f{round}.{op}\r\n\
             To: <sip:{CALLED}@{PROXY}>\r\n\
             Call-ID: c{round}.{op}@{at}\r\n\
             CSeq: {cseq} INVITE\r\n\
             Contact: <sip:{name}@{at}>\r\n\
             Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, NOTIFY, REFER\r\n\
             Supported: replaces, timer\r\n\
             User-Agent: phone\r\n\
             {credentials}Content-Type: application/sdp\r\n\
             Content-Length: {}\r\n\r\n{SDP}",
            SDP.len()
        );
        phone.end(Sent::ByPhone(op));
    }

    /// The ACK for a refusal: of the same branch as the INVITE (RFC 3261 17.1.1.3).
    fn refuse(&mut self, op: u32, response: &[u8]) {
        let round = self.round;
        let name = user_name(self.ops[op as usize].user);
        let cseq = if self.ops[op as usize].stage == Stage::Asked { 1 } else { 2 };
        let to = String::from_utf8_lossy(header(response, "To", "t").unwrap_or_default());
        let phone = self.phone(op);
        let at = phone.local();
        let _ = write!(
            phone.text(),
            "ACK sip:{CALLED}@{PROXY} SIP/2.0\r\n\
             Via: SIP/2.0/UDP {at};rport;branch=z9hG4bKb{round}.{op}.{cseq}\r\n\
             Max-Forwards: 70\r\n\
             From: \"{name}\" <sip:{name}@{PROXY}>;tag=f{round}.{op}\r\n\
             To: {to}\r\n\
             Call-ID: c{round}.{op}@{at}\r\n\
             CSeq: {cseq} ACK\r\n\
             Content-Length: 0\r\n\r\n"
        );
        phone.end(Sent::Other);
    }

    /// ACK or BYE, by the route that the 200 has told.
    fn in_dialog(&mut self, op: u32, method: &str, cseq: u32) {
        let round = self.round;
        let name = user_name(self.ops[op as usize].user);
        let Some(dialog) = self.ops[op as usize].dialog.take() else { return };
        let Dialog { target, to, route } = &*dialog;
        let phone = self.phone(op);
        let at = phone.local();
        let _ = write!(
            phone.text(),
            "{method} {target} SIP/2.0\r\n\
             Via: SIP/2.0/UDP {at};rport;branch=z9hG4bKb{round}.{op}.{method}\r\n\
             {route}Max-Forwards: 70\r\n\
             From: \"{name}\" <sip:{name}@{PROXY}>;tag=f{round}.{op}\r\n\
             To: {to}\r\n\
             Call-ID: c{round}.{op}@{at}\r\n\
             CSeq: {cseq} {method}\r\n\
             Content-Length: 0\r\n\r\n"
        );
        phone.end(Sent::ByPhone(op));
        self.ops[op as usize].dialog = Some(dialog);
    }
}

/// What a 200 says about the dialog (RFC 3261 12.1.2).
fn dialog(ok: &[u8]) -> Option<Dialog> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let routes = fields(ok).filter_map(|line| value(line, "Record-Route", ""));
    let routes: Vec<String> = routes.map(|value| format!("Route: {}\r\n", text(value))).collect();
    let to = header(ok, "To", "t").filter(|to| find(to, b";tag=").is_some())?;
    Some(Dialog {
        target: text(uri(header(ok, "Contact", "m")?)),
        to: text(to),
        route: routes.into_iter().rev().collect(),
    })
}

/// The name of a user.
pub(super) fn user_name(index: u32) -> String {
    format!("u{index:06}")
}

/// A user's password.
pub(super) fn password(index: u32) -> String {
    format!("secret{index:06}")
}

fn address(ip: &str, port: u16) -> Result<SocketAddrV4> {
    let ip: Ipv4Addr = ip.parse().with_context(|| format!("{ip} is no address"))?;
    Ok(SocketAddrV4::new(ip, port))
}
