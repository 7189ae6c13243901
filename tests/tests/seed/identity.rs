//! Authentication, Record-Route and presence.

use sipline_tests::lab::{Mode, PROXY, Place};

use crate::text::{ack_of, header, headers, reply, status};
use crate::world::{Case, EXTENSION, World, at_our_address, from_pbx, run};

const CASES: &[Case] = &[
    ("401 in the realm of the To domain for a REGISTER", |w| challenged(w, "REGISTER")),
    ("407 in the realm of the From domain for a call", |w| challenged(w, "INVITE")),
    ("407 for a MESSAGE", |w| challenged(w, "MESSAGE")),
    ("407 also if the From domain has a port", a_port_is_no_excuse),
    ("one answer for a wrong password and for nobody", wrong_password),
    ("403 Forbidden auth ID: a REGISTER for another one", registers_another),
    ("403 Forbidden auth ID: a call as another one", calls_as_another),
    ("403 Forbidden auth ID: a PUBLISH for another one, by its To", publishes_another),
    ("a user of another domain is none of ours", another_domain),
    ("403 Not relaying: from elsewhere to elsewhere", not_relaying),
    ("credentials for us are removed, those for others stay", credentials),
    ("a PBX is believed", pbx_is_believed),
    ("Record-Route with lr, on what makes a dialog", record_route),
    ("preloaded Routes are dropped", preloaded),
    ("404 Not here for PUBLISH and SUBSCRIBE", presence),
];

#[test]
fn identity() {
    run(Mode::Off, CASES);
}

fn challenged(world: &mut World, method: &str) {
    let mut phone = world.phone();
    let text = phone.request(method, "sip:example.com", "who", "");
    phone.peer.send(&text);
    let (code, name) = match method {
        "REGISTER" => ("401", "WWW-Authenticate"),
        _ => ("407", "Proxy-Authenticate"),
    };
    let answer = phone.hears(&text, code);
    let challenge = header(&answer, name);
    assert!(challenge.contains("realm=\"example.com\"") && challenge.contains("nonce=\""));
    world.pbx1().hears_nothing();
}

fn a_port_is_no_excuse(world: &mut World) {
    let mut phone = world.phone();
    let text = phone.request("INVITE", EXTENSION, "port", "");
    let text = text.replace("@example.com>;tag=from", "@EXAMPLE.com:5060>;tag=from");
    phone.peer.send(&text);
    phone.hears(&text, "407");
}

fn wrong_password(world: &mut World) {
    let mut phone = world.phone();
    let mut answers = Vec::new();
    for (user, password) in [(phone.user.clone(), "guess"), ("nobody".to_owned(), "secret")] {
        phone.user = user.clone();
        let text = phone.authorized_as(&user, password, "INVITE", EXTENSION, "guess", "");
        phone.peer.send(&text);
        answers.push(status(&phone.hears(&text, "407")).to_owned());
    }
    assert_eq!(answers[0], answers[1]);
}

fn registers_another(world: &mut World) {
    let mut phone = world.phone();
    let me = phone.user.clone();
    phone.user = "u90".into();
    let uri = "sip:example.com";
    let text = phone.authorized_as(&me, "secret", "REGISTER", uri, "another", "");
    phone.peer.send(&text);
    assert_eq!(status(&phone.peer.expect("403")), "403 Forbidden auth ID");
}

fn calls_as_another(world: &mut World) {
    let mut phone = world.phone();
    let me = phone.user.clone();
    phone.user = "u90".into();
    let text = phone.authorized_as(&me, "secret", "INVITE", EXTENSION, "another", "");
    phone.peer.send(&text);
    assert_eq!(status(&phone.hears(&text, "403")), "403 Forbidden auth ID");
    world.pbx1().hears_nothing();
    world.pbx2().hears_nothing();
}

fn publishes_another(world: &mut World) {
    let mut phone = world.phone();
    let text = phone.authorized("PUBLISH", "sip:u90@example.com", "publish", "Event: presence\r\n");
    phone.peer.send(&text);
    assert_eq!(status(&phone.peer.expect("403")), "403 Forbidden auth ID");
}

fn another_domain(world: &mut World) {
    let mut phone = world.phone();
    let text = phone.request("REGISTER", "sip:example.com", "domain", "");
    phone.peer.send(text.replace("@example.com", "@other.example"));
    phone.peer.expect("404");
}

fn not_relaying(world: &mut World) {
    let mut phone = world.phone();
    let text = phone.request("INVITE", "sip:200@far.example", "relay", "");
    let text = text.replace("@example.com", "@evil.example");
    phone.peer.send(&text);
    let refused = phone.hears(&text, "403");
    assert_eq!(status(&refused).to_ascii_lowercase(), "403 not relaying");
}

fn credentials(world: &mut World) {
    let mut phone = world.phone();
    let other = "Proxy-Authorization: Digest username=\"x\", realm=\"elsewhere\", nonce=\"n\", \
                 uri=\"sip:200@example.com\", response=\"00000000000000000000000000000000\"\r\n";
    let text = phone.authorized("INVITE", EXTENSION, "credentials", other);
    assert_eq!(headers(&text, "Proxy-Authorization").len(), 2);
    phone.peer.send(&text);
    phone.peer.expect("100");
    let (place, invite) = world.who_is_invited();
    let left = headers(&invite, "Proxy-Authorization");
    assert!(left.len() == 1 && left[0].contains("realm=\"elsewhere\""), "{invite}");
    world.answer(place, &invite, "486 Busy Here");
    phone.hears(&text, "486");
}

fn pbx_is_believed(world: &mut World) {
    let mut phone = world.phone();
    phone.registers("");
    let text = from_pbx(Place::Pbx2, "INVITE", &at_our_address(&phone.user), "believed");
    world.pbx2().send(&text);
    world.pbx2().expect("100");
    let invite = phone.peer.expect("INVITE");
    phone.peer.send(reply(&invite, "486 Busy Here", ""));
    phone.peer.expect("ACK");
    let busy = world.pbx2().expect("486");
    world.pbx2().send(ack_of(&text, &busy));
}

fn record_route(world: &mut World) {
    let mut phone = world.phone();
    let (place, sent, invite) = world.call(&mut phone, "record");
    let route = header(&invite, "Record-Route");
    assert!(route.starts_with(&format!("<sip:{PROXY}:5060;lr")), "{route}");
    world.answer(place, &invite, "486 Busy Here");
    phone.hears(&sent, "486");
    let mut other = world.phone();
    other.registers("");
    let text = phone.authorized("MESSAGE", &format!("sip:{}@example.com", other.user), "m", "");
    phone.peer.send(text);
    let message = other.peer.expect("MESSAGE");
    assert!(headers(&message, "Record-Route").is_empty());
    other.peer.send(reply(&message, "200 OK", ""));
    phone.peer.expect("200");
}

fn preloaded(world: &mut World) {
    let mut phone = world.phone();
    let routes = format!("Route: <sip:{PROXY}:5060;lr>, <sip:evil.example;lr>\r\n");
    let text = phone.authorized("INVITE", EXTENSION, "preloaded", &routes);
    phone.peer.send(&text);
    phone.peer.expect("100");
    let (place, invite) = world.who_is_invited();
    assert!(headers(&invite, "Route").is_empty(), "{invite}");
    world.answer(place, &invite, "486 Busy Here");
    phone.hears(&text, "486");
}

fn presence(world: &mut World) {
    let mut phone = world.phone();
    for method in ["PUBLISH", "SUBSCRIBE"] {
        let uri = format!("sip:{}@example.com", phone.user);
        let answer = phone.asks(method, &uri, method, "Event: presence\r\n", "404");
        assert_eq!(status(&answer), "404 Not here");
    }
    let text = from_pbx(Place::Pbx1, "SUBSCRIBE", &at_our_address(&phone.user), "presence");
    world.pbx1().send(text);
    assert_eq!(status(&world.pbx1().expect("404")), "404 Not here");
}
