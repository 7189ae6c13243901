//! The scanner on the host: every message of the corpus is read as `tests/corpus/expect.toml` says, and
//! what must hold for all datagrams holds for each of them, whole and cut off anywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use sip_ebpf::message::{Contact, Error, Message, Rport, Scheme};
use sip_ebpf::scan::{FOLDED, Index, Method, scan};
use toml::{Table, Value};

#[path = "../fuzz/src/invariants.rs"]
mod invariants;

/// The classes of RFC 4475, by section and the name that the RFC gives its message.
const RFC_4475: [&str; 49] = [
    "3.1.1.1-wsinv",
    "3.1.1.2-intmeth",
    "3.1.1.3-esc01",
    "3.1.1.4-escnull",
    "3.1.1.5-esc02",
    "3.1.1.6-lwsdisp",
    "3.1.1.7-longreq",
    "3.1.1.8-dblreq",
    "3.1.1.9-semiuri",
    "3.1.1.10-transports",
    "3.1.1.11-mpart01",
    "3.1.1.12-unreason",
    "3.1.1.13-noreason",
    "3.1.2.1-badinv01",
    "3.1.2.2-clerr",
    "3.1.2.3-ncl",
    "3.1.2.4-scalar02",
    "3.1.2.5-scalarlg",
    "3.1.2.6-quotbal",
    "3.1.2.7-ltgtruri",
    "3.1.2.8-lwsruri",
    "3.1.2.9-lwsstart",
    "3.1.2.10-trws",
    "3.1.2.11-escruri",
    "3.1.2.12-baddate",
    "3.1.2.13-regbadct",
    "3.1.2.14-badaspec",
    "3.1.2.15-baddn",
    "3.1.2.16-badvers",
    "3.1.2.17-mismatch01",
    "3.1.2.18-mismatch02",
    "3.1.2.19-bigcode",
    "3.2.1-badbranch",
    "3.3.1-insuf",
    "3.3.2-unkscm",
    "3.3.3-novelsc",
    "3.3.4-unksm2",
    "3.3.5-bext01",
    "3.3.6-invut",
    "3.3.7-regaut01",
    "3.3.8-multi01",
    "3.3.9-mcl01",
    "3.3.10-bcast",
    "3.3.11-zeromf",
    "3.3.12-cparam01",
    "3.3.13-cparam02",
    "3.3.14-regescrt",
    "3.3.15-sdp01",
    "3.4.1-inv2543",
];

/// The classes of RFC 5118, by section.
const RFC_5118: [&str; 11] = [
    "4.1-ipv6-good",
    "4.2-ipv6-bad",
    "4.3-port-ambiguous",
    "4.4-port-unambiguous",
    "4.5-via-received-with-delim",
    "4.5-via-received-no-delim",
    "4.6-ipv6-in-sdp",
    "4.7-mult-ip-in-header",
    "4.8-mult-ip-in-sdp",
    "4.9-ipv4-mapped-ipv6",
    "4.10-ipv6-bug-abnf-3-colons",
];

fn corpus() -> BTreeMap<String, Vec<u8>> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut messages = BTreeMap::new();
    for entry in fs::read_dir(&dir).expect("tests/corpus is there") {
        let path = entry.expect("a directory that can be read").path();
        if path.extension().is_some_and(|extension| extension == "sip") {
            let name = path.file_stem().expect("it has an extension").to_str().expect("ASCII");
            messages.insert(name.to_owned(), fs::read(&path).expect("a file that can be read"));
        }
    }
    messages
}

fn expectations() -> Table {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus/expect.toml");
    fs::read_to_string(path).expect("expect.toml is there").parse().expect("it is TOML")
}

#[test]
fn every_class_has_its_message_and_every_message_its_expectation() {
    let messages: BTreeSet<_> = corpus().into_keys().collect();
    let expected: BTreeSet<_> = expectations().into_iter().map(|(name, _)| name).collect();
    assert_eq!(messages, expected, "tests/corpus/*.sip against tests/corpus/expect.toml");
    for (rfc, classes) in [("rfc4475", &RFC_4475[..]), ("rfc5118", &RFC_5118[..])] {
        for class in classes {
            let name = format!("{rfc}-{class}");
            assert!(messages.contains(&name), "no message for {name}");
        }
    }
}

#[test]
fn every_message_is_read_as_expected() {
    let messages = corpus();
    let mut wrong = Vec::new();
    for (name, expected) in expectations() {
        let expected = expected.as_table().expect("a table");
        let bytes = messages.get(&name).unwrap_or_else(|| panic!("no file {name}.sip"));
        for (key, want, got) in differences(bytes, expected) {
            wrong.push(format!("{name}: {key}: want {want}, got {got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where a message is not what was expected: key, expected value, value.
fn differences(bytes: &[u8], expected: &Table) -> Vec<(String, String, String)> {
    let facts = facts(bytes);
    let mut differences = Vec::new();
    for (key, want) in expected.iter().filter(|(key, _)| *key != "why") {
        let got = facts.get(key.as_str()).cloned();
        let got = got.unwrap_or_else(|| Value::String("(not known)".to_owned()));
        if got != *want {
            differences.push((key.clone(), want.to_string(), got.to_string()));
        }
    }
    for key in ["check", "all"] {
        // Absent is accepted; an error of `check` is one of `check_all` too.
        let known = expected.contains_key(key) || (key == "all" && expected.contains_key("check"));
        if let (false, Some(error)) = (known, facts.get(key)) {
            differences.push((key.to_owned(), "accepted".to_owned(), error.to_string()));
        }
    }
    differences
}

/// What can be read from a message, by the keys of expect.toml.
fn facts(bytes: &[u8]) -> BTreeMap<&'static str, Value> {
    let mut facts = BTreeMap::new();
    let mut index = Index::new();
    let folded = scan(bytes, &mut index).is_ok() && index.flags & FOLDED != 0;
    facts.insert("folded", Value::Boolean(folded));
    let mut bytes = bytes.to_vec();
    let mut index = Index::new();
    match Message::parse_folded(&mut bytes, &mut index) {
        Ok(message) => read(&message, &mut facts),
        Err(error) => fails(&mut facts, "check", error),
    }
    facts
}

fn fails(facts: &mut BTreeMap<&'static str, Value>, key: &'static str, error: Error) {
    facts.insert(key, text(format!("{error:?}")));
    facts.insert("status_code", Value::Integer(error.status().into()));
}

fn text(text: impl ToString) -> Value {
    Value::String(text.to_string())
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> Value {
    items.into_iter().map(text).collect::<Vec<_>>().into()
}

fn number(number: Option<impl Into<i64>>) -> Value {
    number.map_or_else(|| text(""), |number| Value::Integer(number.into()))
}

fn read(message: &Message<'_>, facts: &mut BTreeMap<&'static str, Value>) {
    let mut put = |key, value| {
        facts.insert(key, value);
    };
    if let Ok(method) = message.method_name() {
        put("method", text(method));
    }
    put("known_method", Value::Boolean(message.method() != Method::Extension));
    if let Some(status) = message.status() {
        put("status", Value::Integer(status.into()));
    }
    if let Ok(reason) = message.reason() {
        put("reason", text(reason));
    }
    if let Ok(uri) = message.request_uri() {
        put("uri", text(uri.text));
        put("user", text(uri.user.unwrap_or_default()));
        put("password", text(uri.password.unwrap_or_default()));
        put("host", uri.host.map_or_else(|| text(""), text));
        put("port", number(uri.port));
        put(
            "scheme",
            text(match uri.scheme {
                Scheme::Sip => "sip",
                Scheme::Sips => "sips",
                Scheme::Tel => "tel",
                Scheme::Other(name) => name,
            }),
        );
    }
    let vias: Vec<_> = message.vias().flatten().collect();
    put("vias_count", Value::Integer(vias.len() as i64));
    put(
        "vias",
        list(vias.iter().map(|via| {
            let port = via.port.map(|port| format!(":{port}")).unwrap_or_default();
            let branch = via.branch.unwrap_or("-");
            let (protocol, version, transport) = (via.protocol, via.version, via.transport);
            format!("{protocol}/{version}/{transport} {}{port} {branch}", via.host)
        })),
    );
    if let Some(via) = vias.first() {
        put("unique_branch", Value::Boolean(via.is_unique()));
        put("received", via.received.map_or_else(|| text(""), text));
        put(
            "rport",
            match via.rport {
                Rport::Absent => text(""),
                Rport::Empty => text("empty"),
                Rport::Value(port) => Value::Integer(port.into()),
            },
        );
        put("ttl", number(via.ttl));
        put("maddr", via.maddr.map_or_else(|| text(""), text));
    }
    for (address, keys) in [
        (message.from(), ["from_display", "from_uri", "from_tag"]),
        (message.to(), ["to_display", "to_uri", "to_tag"]),
    ] {
        let Ok(address) = address else { continue };
        put(keys[0], text(String::from_utf8_lossy(address.display.unwrap_or_default())));
        put(keys[1], text(address.uri.text));
        put(keys[2], text(address.tag().unwrap_or_default()));
    }
    if let Ok(call_id) = message.call_id() {
        put("call_id", text(call_id));
    }
    if let Ok(cseq) = message.cseq() {
        put("cseq", text(format!("{} {}", cseq.number, cseq.method)));
    }
    if let Ok(hops) = message.max_forwards() {
        put("max_forwards", number(hops.map(|hops| hops.value)));
    }
    put("routes", list(message.routes().flatten().map(|route| route.uri.text)));
    put("record_routes", list(message.record_routes().flatten().map(|route| route.uri.text)));
    contacts(message, &mut put);
    if let Ok(expires) = message.expires() {
        put("expires", number(expires));
    }
    if let Ok(length) = message.content_length() {
        put("content_length", number(length));
    }
    if let Ok(body) = message.body() {
        put("body", Value::Integer(body.len() as i64));
    }
    put("require", list(message.requires().flatten()));
    put("proxy_require", list(message.proxy_requires().flatten()));
    put("credentials", Value::Boolean(message.has_credentials()));
    if let Err(error) = message.check_all() {
        fails(facts, "all", error);
    }
    if let Err(error) = message.check() {
        fails(facts, "check", error);
    }
}

fn contacts(message: &Message<'_>, put: &mut impl FnMut(&'static str, Value)) {
    let contacts: Vec<_> = message.contacts().flatten().collect();
    put(
        "contacts",
        list(contacts.iter().map(|contact| match contact {
            Contact::Star => "*",
            Contact::Address(binding) => binding.address.uri.text,
        })),
    );
    let bindings: Vec<_> = contacts
        .iter()
        .filter_map(|contact| match contact {
            Contact::Star => None,
            Contact::Address(binding) => Some(binding),
        })
        .collect();
    let params = bindings.iter().flat_map(|binding| binding.address.params.map(|param| param.name));
    put("contact_params", list(params));
    let q: Vec<i64> = bindings.iter().filter_map(|binding| binding.q.map(i64::from)).collect();
    put("q", q.into());
    let expires: Vec<i64> =
        bindings.iter().filter_map(|binding| binding.expires.map(i64::from)).collect();
    put("contact_expires", expires.into());
    let instance = bindings.iter().find_map(|binding| binding.instance).unwrap_or_default();
    put("instance", text(String::from_utf8_lossy(instance)));
}

#[test]
fn what_must_hold_holds_for_every_message() {
    for (name, bytes) in corpus() {
        // libtest prints it when the assertion behind it fails.
        println!("{name}");
        invariants::hold(&bytes);
    }
}

/// A message that is cut off is an error, or one with less body: never one with other headers.
#[test]
fn what_is_cut_off_is_never_taken_for_the_whole() {
    for (name, bytes) in corpus() {
        let mut index = Index::new();
        let whole = scan(&bytes[..], &mut index);
        let headers_end = if whole.is_ok() { index.body as usize } else { bytes.len() };
        for len in 0..headers_end {
            let mut index = Index::new();
            let cut = scan(&bytes[..len], &mut index);
            assert!(cut.is_err(), "{name}: the first {len} bytes are a message");
        }
        // The body does not concern the scan; a few lengths are enough for the rest.
        for len in (headers_end..bytes.len()).step_by(7) {
            invariants::hold(&bytes[..len]);
        }
    }
}

/// Each byte of each short message replaced by some that mean something to a parser: others at each
/// place, all of them over the whole corpus.
#[test]
fn what_must_hold_holds_for_damaged_messages() {
    const BYTES: &[u8] = b"\0\t\r\n \",;:<>=@\\%/?\x7f\xff09";
    for (number, (_, bytes)) in corpus().into_iter().enumerate() {
        if bytes.len() > 700 {
            continue;
        }
        let mut damaged = bytes.clone();
        for at in 0..bytes.len() {
            for step in 0..3 {
                damaged[at] = BYTES[(number + at * 3 + step) % BYTES.len()];
                invariants::hold(&damaged);
            }
            damaged[at] = bytes[at];
        }
    }
}
