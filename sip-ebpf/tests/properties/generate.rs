//! Messages that RFC 3261 allows, made from parts that are known, in one of their many forms.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// A message and what is in it.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) bytes: Vec<u8>,
    pub(crate) parts: Parts,
}

/// What is in a message.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) start: Start,
    pub(crate) vias: Vec<Via>,
    pub(crate) from: Address,
    pub(crate) to: Address,
    pub(crate) call_id: String,
    pub(crate) cseq: u32,
    pub(crate) max_forwards: Option<u8>,
    pub(crate) routes: Vec<Address>,
    pub(crate) record_routes: Vec<Address>,
    pub(crate) contacts: Vec<Address>,
    pub(crate) expires: Option<u32>,
    pub(crate) require: Vec<String>,
    pub(crate) credentials: bool,
    pub(crate) others: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) content_length: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Start {
    Request { method: String, uri: Uri },
    Response { status: u16, reason: String, method: String },
}

impl Start {
    pub(crate) fn method(&self) -> &str {
        match self {
            Self::Request { method, .. } | Self::Response { method, .. } => method,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Via {
    pub(crate) transport: String,
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    pub(crate) branch: Option<String>,
    pub(crate) received: Option<IpAddr>,
    /// None: not there; zero: without a value.
    pub(crate) rport: Option<u16>,
    pub(crate) ttl: Option<u8>,
    pub(crate) maddr: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Uri {
    pub(crate) sips: bool,
    pub(crate) user: Option<(String, Option<String>)>,
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    pub(crate) params: Vec<(String, Option<String>)>,
    pub(crate) headers: Option<String>,
}

impl Uri {
    pub(crate) fn text(&self) -> String {
        let mut text = if self.sips { "sips:" } else { "sip:" }.to_owned();
        if let Some((user, password)) = &self.user {
            text += user;
            if let Some(password) = password {
                text += &format!(":{password}");
            }
            text += "@";
        }
        text += &self.host;
        if let Some(port) = self.port {
            text += &format!(":{port}");
        }
        for (name, value) in &self.params {
            text += &format!(";{name}");
            if let Some(value) = value {
                text += &format!("={value}");
            }
        }
        if let Some(headers) = &self.headers {
            text += &format!("?{headers}");
        }
        text
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Display {
    Tokens(Vec<String>),
    Quoted(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) display: Option<Display>,
    pub(crate) uri: Uri,
    pub(crate) brackets: bool,
    pub(crate) tag: Option<String>,
    pub(crate) params: Vec<(String, Option<String>)>,
}

/// Choices of form, from a list of numbers: all zero is the form that nearly everybody writes.
pub(crate) struct Style<'a> {
    choices: &'a [u8],
    at: usize,
}

impl<'a> Style<'a> {
    pub(crate) fn new(choices: &'a [u8]) -> Self {
        Self { choices, at: 0 }
    }

    /// A number below `n`.
    fn pick(&mut self, n: u8) -> u8 {
        let Some(choice) = self.choices.get(self.at % self.choices.len().max(1)) else { return 0 };
        self.at += 1;
        choice % n
    }

    /// White space where it may be (25.1, SWS), maybe folded.
    fn blank(&mut self) -> &'static str {
        ["", "", "", " ", "\t", "  \t ", "\r\n ", " \r\n\t"][self.pick(8) as usize]
    }

    /// White space where it must be (LWS).
    fn space(&mut self) -> &'static str {
        [" ", " ", " ", "  ", "\t", "\t ", "\r\n ", " \r\n \t"][self.pick(8) as usize]
    }

    fn header(&mut self, out: &mut String, long: &str, compact: &str, value: &str) {
        let name = if self.pick(4) == 3 && !compact.is_empty() { compact } else { long };
        match self.pick(6) {
            4 => *out += &name.to_lowercase(),
            5 => *out += &name.to_uppercase(),
            _ => *out += name,
        }
        if self.pick(6) == 5 {
            *out += [" ", "\t", "   "][self.pick(3) as usize];
        }
        *out += ":";
        *out += self.space();
        *out += value;
        if self.pick(6) == 5 {
            *out += [" ", "\t", "\r\n "][self.pick(3) as usize];
        }
        *out += "\r\n";
    }

    /// A list over lines and commas.
    fn list(&mut self, out: &mut String, long: &str, compact: &str, values: &[String]) {
        let mut line = String::new();
        for value in values {
            if line.is_empty() {
                line += value;
            } else if self.pick(3) == 2 {
                line += self.blank();
                line += ",";
                line += self.blank();
                line += value;
            } else {
                self.header(out, long, compact, &line);
                line = value.clone();
            }
        }
        if !values.is_empty() {
            self.header(out, long, compact, &line);
        }
    }

    fn param(&mut self, out: &mut String, name: &str, value: Option<&str>) {
        *out += self.blank();
        *out += ";";
        *out += self.blank();
        match self.pick(5) {
            4 => *out += &name.to_uppercase(),
            _ => *out += name,
        }
        if let Some(value) = value {
            *out += self.blank();
            *out += "=";
            *out += self.blank();
            *out += value;
        }
    }

    fn via(&mut self, via: &Via) -> String {
        let mut out = String::from("SIP");
        for part in ["2.0", &via.transport] {
            out += self.blank();
            out += "/";
            out += self.blank();
            out += part;
        }
        out += self.space();
        out += &via.host;
        if let Some(port) = via.port {
            out += self.blank();
            out += ":";
            out += self.blank();
            out += &port.to_string();
        }
        let mut params = Vec::new();
        params.extend(via.branch.clone().map(|branch| ("branch", Some(branch))));
        params.extend(via.received.map(|address| {
            // Both forms of an IPv6 address (RFC 5118 4.5).
            let bare = address.to_string();
            let brackets = address.is_ipv6() && self.pick(2) == 1;
            ("received", Some(if brackets { format!("[{bare}]") } else { bare }))
        }));
        params.extend(via.rport.map(|port| ("rport", (port != 0).then(|| port.to_string()))));
        params.extend(via.ttl.map(|ttl| ("ttl", Some(ttl.to_string()))));
        params.extend(via.maddr.clone().map(|maddr| ("maddr", Some(maddr))));
        if self.pick(4) == 3 {
            params.push(("x-other", Some("\"a;b,\\\" c\"".to_owned())));
        }
        let turn = self.pick(4) as usize % params.len().max(1);
        params.rotate_left(turn);
        for (name, value) in params {
            self.param(&mut out, name, value.as_deref());
        }
        out
    }

    fn address(&mut self, address: &Address) -> String {
        let mut out = String::new();
        match &address.display {
            Some(Display::Tokens(tokens)) => {
                for token in tokens {
                    if !out.is_empty() {
                        out += self.space();
                    }
                    out += token;
                }
                out += self.blank();
            }
            Some(Display::Quoted(text)) => {
                out += &format!("\"{text}\"");
                out += self.blank();
            }
            None => {}
        }
        if address.brackets {
            out += &format!("<{}>", address.uri.text());
        } else {
            out += &address.uri.text();
        }
        let mut params: Vec<_> =
            address.params.iter().map(|(n, v)| (n.as_str(), v.as_deref())).collect();
        let place = self.pick(3) as usize % (params.len() + 1);
        if let Some(tag) = &address.tag {
            params.insert(place, ("tag", Some(tag)));
        }
        for (name, value) in params {
            self.param(&mut out, name, value);
        }
        out
    }
}

impl Parts {
    /// Writes the message.
    pub(crate) fn write(&self, style: &mut Style<'_>) -> Vec<u8> {
        let mut out = match &self.start {
            Start::Request { method, uri } => format!("{method} {} SIP/2.0\r\n", uri.text()),
            Start::Response { status, reason, .. } => format!("SIP/2.0 {status} {reason}\r\n"),
        };
        let order = style.pick(3);
        if order == 1 {
            self.routing(&mut out, style);
        }
        let vias: Vec<_> = self.vias.iter().map(|via| style.via(via)).collect();
        style.list(&mut out, "Via", "v", &vias);
        if let Some(hops) = self.max_forwards {
            let zeros = ["", "0", "00"][style.pick(3) as usize];
            style.header(&mut out, "Max-Forwards", "", &format!("{zeros}{hops}"));
        }
        let from = style.address(&self.from);
        let to = style.address(&self.to);
        if order == 2 {
            style.header(&mut out, "To", "t", &to);
        }
        style.header(&mut out, "From", "f", &from);
        if order != 2 {
            style.header(&mut out, "To", "t", &to);
        }
        style.header(&mut out, "Call-ID", "i", &self.call_id);
        let cseq = format!("{}{}{}", self.cseq, style.space(), self.start.method());
        style.header(&mut out, "CSeq", "", &cseq);
        for (name, value) in &self.others {
            style.header(&mut out, name, "", value);
        }
        if order != 1 {
            self.routing(&mut out, style);
        }
        if let Some(expires) = self.expires {
            style.header(&mut out, "Expires", "", &expires.to_string());
        }
        style.list(&mut out, "Require", "", &self.require);
        if self.credentials {
            style.header(&mut out, "Proxy-Authorization", "", "Digest username=\"a, b\"");
        }
        if self.content_length {
            style.header(&mut out, "Content-Length", "l", &self.body.len().to_string());
        }
        out += "\r\n";
        let mut bytes = out.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    fn routing(&self, out: &mut String, style: &mut Style<'_>) {
        for (name, compact, addresses) in [
            ("Route", "", &self.routes),
            ("Record-Route", "", &self.record_routes),
            ("Contact", "m", &self.contacts),
        ] {
            let values: Vec<_> = addresses.iter().map(|address| style.address(address)).collect();
            style.list(out, name, compact, &values);
        }
    }
}

/// As `option::weighted`, which refuses never.
fn sometimes<T: Clone + std::fmt::Debug>(
    probability: f64,
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = Option<T>> {
    option::weighted(probability.max(0.01), value)
        .prop_map(move |value| value.filter(|_| probability > 0.0))
}

fn token() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9.!%*_+`'~-]{1,12}"
}

pub(crate) fn method() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("INVITE".to_owned()),
        Just("BYE".to_owned()),
        Just("SUBSCRIBE".to_owned()),
        Just("OPTIONS".to_owned()),
        token(),
    ]
}

fn host() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<Ipv4Addr>().prop_map(|address| address.to_string()),
        any::<Ipv6Addr>().prop_map(|address| format!("[{address}]")),
        "([a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?\\.){0,2}[a-z]([a-z0-9-]{0,5}[a-z0-9])?\\.?",
    ]
}

fn via() -> impl Strategy<Value = Via> {
    (
        prop_oneof![
            Just("UDP".to_owned()),
            Just("udp".to_owned()),
            Just("TCP".to_owned()),
            token()
        ],
        host(),
        option::of(1..=u16::MAX),
        option::weighted(0.9, token().prop_map(|rest| format!("z9hG4bK{rest}"))),
        option::of(any::<IpAddr>()),
        option::of(any::<u16>()),
        option::weighted(0.1, any::<u8>()),
        option::weighted(0.1, host()),
    )
        .prop_map(|(transport, host, port, branch, received, rport, ttl, maddr)| Via {
            transport,
            host,
            port,
            branch,
            received,
            rport,
            ttl,
            maddr,
        })
}

/// Names of a list of parameters are made to differ: none may stand there twice.
fn params(
    value: impl Strategy<Value = String>,
) -> impl Strategy<Value = Vec<(String, Option<String>)>> {
    vec(("[a-z][a-z0-9-]{0,5}", option::of(value)), 0..3).prop_map(|params| {
        let number = |(i, (name, value))| (format!("{name}-{i}"), value);
        params.into_iter().enumerate().map(number).collect()
    })
}

pub(crate) fn uri(in_request_line: bool) -> impl Strategy<Value = Uri> {
    let escaped = "([a-zA-Z0-9_.!~*'()&=+$,;?/-]|%[0-9a-fA-F]{2}){1,6}";
    let password = "([a-zA-Z0-9_.!~*'()&=+$,-]|%[0-9a-fA-F]{2}){0,4}";
    let value = "([a-zA-Z0-9_.!~*'()\\[\\]/:&+$-]|%[0-9a-fA-F]{2}){1,6}";
    let headers = if in_request_line { 0.0 } else { 0.1 };
    (
        any::<bool>(),
        option::of((escaped, option::of(password))),
        host(),
        option::of(1..=u16::MAX),
        params(value.prop_map(|value| value)),
        sometimes(headers, "[a-z]{1,5}=([a-z?/:+$]|%2[0-9]){0,5}(&[a-z]{1,4}=x?)?"),
    )
        .prop_map(|(sips, user, host, port, params, headers)| Uri {
            sips,
            user,
            host,
            port,
            params,
            headers,
        })
}

fn display() -> impl Strategy<Value = Display> {
    prop_oneof![
        vec(token(), 1..4).prop_map(Display::Tokens),
        "([ !#-\\[\\]-~é大]|\\\\[ -~])*".prop_map(Display::Quoted),
    ]
}

fn address(tag: f64, brackets: bool) -> impl Strategy<Value = Address> {
    let quoted = "\"([ !#-\\[\\]-~]|\\\\[ -~]){0,8}\"";
    (
        option::of(display()),
        uri(false),
        prop::bool::weighted(0.2),
        sometimes(tag, token()),
        params(prop_oneof![token(), quoted]),
    )
        .prop_map(move |(display, mut uri, bare, tag, params)| {
            let bare = bare && !brackets;
            if bare {
                // What must not stand outside of brackets (20.10).
                uri.params.clear();
                uri.headers = None;
                if let Some((user, _)) = &mut uri.user {
                    *user = user.replace([',', ';', '?'], "-");
                }
                if let Some((_, Some(password))) = &mut uri.user {
                    *password = password.replace(',', "-");
                }
            }
            Address {
                display: if bare { None } else { display },
                uri,
                brackets: !bare,
                tag,
                params,
            }
        })
}

fn start() -> impl Strategy<Value = Start> {
    prop_oneof![
        (method(), uri(true)).prop_map(|(method, uri)| Start::Request { method, uri }),
        (100..700u16, "[ -~é]{0,12}", method())
            .prop_map(|(status, reason, method)| Start::Response { status, reason, method }),
    ]
}

fn call_id() -> impl Strategy<Value = String> {
    let word = "[a-zA-Z0-9.!%*_+`'~()<>:\\\\\"/\\[\\]?{}-]{1,16}";
    (word, option::of(word)).prop_map(|(first, second)| match second {
        Some(second) => format!("{first}@{second}"),
        None => first,
    })
}

pub(crate) fn parts() -> impl Strategy<Value = Parts> {
    let people = (address(0.9, false), address(0.5, false), call_id(), 0..1u32 << 31);
    let routing = (
        vec(address(0.0, true), 0..3),
        vec(address(0.0, true), 0..3),
        vec(address(0.0, false), 0..3),
    );
    let rest = (
        option::of(any::<u8>()),
        option::of(any::<u32>()),
        vec(token(), 0..3),
        any::<bool>(),
        vec(("X-[A-Za-z]{0,12}", "[!-~]([ -~é]{0,20}[!-~])?"), 0..3),
        vec(any::<u8>(), 0..40),
        any::<bool>(),
    );
    (start(), vec(via(), 1..4), people, routing, rest).prop_map(
        |(start, vias, (from, to, call_id, cseq), (routes, record_routes, contacts), rest)| {
            let (max_forwards, expires, require, credentials, others, body, content_length) = rest;
            Parts {
                start,
                vias,
                from,
                to,
                call_id,
                cseq,
                max_forwards,
                routes,
                record_routes,
                contacts,
                expires,
                require,
                credentials,
                others,
                body,
                content_length,
            }
        },
    )
}

/// Any message, in any form.
pub(crate) fn message() -> impl Strategy<Value = Made> {
    (parts(), vec(any::<u8>(), 0..64)).prop_map(|(parts, choices)| {
        let bytes = parts.write(&mut Style::new(&choices));
        Made { bytes, parts }
    })
}

/// Any message, in the form that nearly everybody writes.
pub(crate) fn plain() -> impl Strategy<Value = Made> {
    parts().prop_map(|parts| {
        let bytes = parts.write(&mut Style::new(&[]));
        Made { bytes, parts }
    })
}
