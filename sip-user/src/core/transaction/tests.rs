//! On virtual time: what one end does, written down with the millisecond that it does it in.

mod client;
mod load;
mod matching;
mod network;
mod server;

use std::time::{Duration, Instant};

use sip_ebpf::message::Message;
use sip_ebpf::scan::Index;

use super::*;
use crate::core::testing;

const LOCAL: &str = "192.0.2.1:5060";
const PEER: &str = "192.0.2.2:5060";

/// Transactions, a clock, and what has come out.
struct End {
    transactions: Transactions,
    start: Instant,
    now: Instant,
    reliable: bool,
    /// `MILLISECONDS WHAT`
    log: Vec<String>,
    sent: Vec<Transmit>,
}

impl End {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let start = Instant::now();
        let transactions = Transactions::new([1, 2], config, start);
        Self { transactions, start, now: start, reliable: false, log: Vec::new(), sent: Vec::new() }
    }

    fn reliable() -> Self {
        Self { reliable: true, ..Self::new() }
    }

    fn flow(&self) -> Flow {
        Flow { local: 0, peer: PEER.parse().unwrap(), reliable: self.reliable }
    }

    fn millis(&self) -> u128 {
        (self.now - self.start).as_millis()
    }

    /// Writes down what has come out.
    fn drain(&mut self) {
        while let Some(command) = self.transactions.poll_command() {
            let what = match &command {
                Command::Send(transmit) => {
                    self.sent.push(transmit.clone());
                    short(&transmit.bytes)
                }
                Command::Timeout { why, .. } => format!("timeout {why:?}"),
                Command::TransportError { .. } => "error".to_owned(),
                Command::Terminated { .. } => "end".to_owned(),
            };
            self.log.push(format!("{} {what}", self.millis()));
        }
    }

    /// Lets time pass until `millis` have passed since the start.
    fn until(&mut self, millis: u64) {
        let end = self.start + Duration::from_millis(millis);
        while let Some(at) = self.transactions.poll_timeout().filter(|at| *at <= end) {
            assert!(at >= self.now, "time runs forward");
            self.now = at;
            self.transactions.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// Until nothing is left.
    fn finish(&mut self) {
        let mut steps = 0;
        while let Some(at) = self.transactions.poll_timeout() {
            self.now = at;
            self.transactions.handle_timeout(at);
            self.drain();
            steps += 1;
            assert!(steps < 10_000, "it does not end");
        }
        self.empty();
    }

    #[track_caller]
    fn empty(&self) {
        let transactions = &self.transactions;
        assert_eq!(transactions.len(), 0);
        assert_eq!(transactions.held_bytes(), 0);
        assert_eq!(transactions.poll_timeout(), None);
    }

    /// What has happened since the last time.
    fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// A request of ours.
    fn ask(&mut self, method: &str, limits: Limits) -> ClientId {
        let branch = self.transactions.branch();
        let text = request(method, &format!("{LOCAL};branch={branch}"));
        let flow = self.flow();
        let asked =
            self.transactions.request(self.now, branch, flow, limits, text.into_bytes()).unwrap();
        self.drain();
        asked
    }

    /// The answer to the `nth` datagram that we have sent.
    fn answer_to(&mut self, nth: usize, status: &str) -> &'static str {
        let request = String::from_utf8(self.sent[nth].bytes.to_vec()).unwrap();
        self.hear_response(&testing::response(&request, status, "them"))
    }

    /// The answer to the first datagram that we have sent.
    fn answer(&mut self, status: &str) -> &'static str {
        self.answer_to(0, status)
    }

    fn hear_response(&mut self, text: &str) -> &'static str {
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let fate = self.transactions.handle_response(self.now, &message);
        self.drain();
        match fate {
            ResponseFate::Of(_) => "passed",
            ResponseFate::Absorbed => "absorbed",
            ResponseFate::Unmatched => "unmatched",
        }
    }

    /// A request to us.
    fn hear(&mut self, text: &str) -> RequestFate {
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let fate = self.transactions.handle_request(self.now, &message, self.flow());
        self.drain();
        fate
    }

    #[track_caller]
    fn hear_new(&mut self, text: &str) -> ServerId {
        match self.hear(text) {
            RequestFate::New { id, request, .. } => {
                assert_eq!(&*request, text.as_bytes());
                id
            }
            other => panic!("{other:?}"),
        }
    }

    fn respond(&mut self, id: ServerId, request: &str, status: &str) -> Result<(), RespondError> {
        let response = testing::response(request, status, "us");
        let done = self.transactions.respond(self.now, id, response.into_bytes());
        self.drain();
        done
    }

    fn icmp(&mut self) {
        self.transactions.handle_transport_error(self.now, PEER.parse().unwrap());
        self.drain();
    }

    fn cancel(&mut self, id: ClientId) {
        self.transactions.cancel(self.now, id);
        self.drain();
    }
}

/// The method or the status.
fn short(bytes: &[u8]) -> String {
    let text = str::from_utf8(bytes).unwrap();
    text.strip_prefix("SIP/2.0 ").unwrap_or(text).split(' ').next().unwrap().to_owned()
}

fn request(method: &str, via: &str) -> String {
    format!(
        "{method} sip:bob@192.0.2.2 SIP/2.0\r\nVia: SIP/2.0/UDP {via}\r\nRoute: <sip:192.0.2.2;lr>\r\n\
         Max-Forwards: 70\r\nFrom: <sip:alice@x>;tag=a\r\nTo: <sip:bob@x>\r\nCall-ID: 42@x\r\n\
         CSeq: 1 {method}\r\nContent-Length: 0\r\n\r\n"
    )
}

/// From a client with a magic cookie.
fn theirs(method: &str) -> String {
    request(method, "192.0.2.2;branch=z9hG4bKtheirs")
}

fn times(what: &str, millis: &[u64]) -> Vec<String> {
    millis.iter().map(|at| format!("{at} {what}")).collect()
}
