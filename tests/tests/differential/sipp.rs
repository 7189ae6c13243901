//! The messages that SIPp makes of the lab's scenarios: the parts of it that those use, played between a
//! caller and a PBX through a [`Pair`].

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;

use sipline_tests::fixtures::pair::{Difference, Heard};
use sipline_tests::fixtures::world::{PBX1, PBX2, PHONE, PROXY};
use sipline_tests::fixtures::{Message, Pair};

/// Callers and the PBXs that they call, as the lab plays them together. Scenarios that ask for a password
/// are not here: what they say is for the registrar, to whom the program passes all of it up.
pub(crate) const PLAYS: [(&str, &str); 6] = [
    ("caller", "pbx"),
    ("caller-cancels", "pbx-rings"),
    ("caller-refused", "pbx-busy"),
    ("caller-waits", "pbx-hangs-up"),
    ("caller-holds", "pbx-holds"),
    ("options", "pbx"),
];

/// Plays a call. Each datagram is sent twice, as one that is repeated (17.1.1.2): the copy has the same
/// fate, and goes no further. Says whether the caller came to the end of its scenario.
///
/// # Errors
/// What is not the same with the program and without.
pub(crate) fn play(
    pair: &mut Pair,
    (caller, pbx): (&str, &str),
    number: u32,
    each: &mut dyn FnMut(Heard),
) -> Result<bool, Box<Difference>> {
    let mut parties = vec![Party::new(caller, PHONE, PROXY, number)];
    parties.extend([PBX1, PBX2].map(|at| Party::new(pbx, at, PROXY, number)));
    let mut waiting = VecDeque::new();
    loop {
        for party in &mut parties {
            while let Some(datagram) = party.next() {
                waiting.push_back((party.at, datagram));
            }
        }
        let Some((from, datagram)) = waiting.pop_front() else { break };
        let first = pair.hear(from, PROXY, &datagram)?;
        let copy = pair.hear(from, PROXY, &datagram)?;
        assert_eq!(copy.sent, first.sent, "a copy has the fate of the first");
        for sent in &first.sent {
            if let Some(party) = parties.iter_mut().find(|party| party.at == sent.to) {
                party.receive(&sent.payload);
            }
        }
        each(first);
        each(copy);
    }
    Ok(parties[0].is_through())
}

enum Step {
    /// A template.
    Send(String),
    Receive(Receive),
    /// Something that sends nothing, and where it goes on.
    Other(Option<String>),
}

struct Receive {
    /// Method or status.
    what: String,
    optional: bool,
    routes: bool,
    next: Option<String>,
    /// Variables, and the headers whose values they get: the expressions of the lab take all of these.
    assigns: Vec<(String, String)>,
}

struct Party {
    at: SocketAddrV4,
    proxy: SocketAddrV4,
    number: u32,
    steps: Vec<Step>,
    /// Names of labels, and the steps that stand behind them.
    labels: Vec<(String, usize)>,
    step: usize,
    /// What it received last.
    last: Option<Message>,
    routes: Vec<String>,
    variables: HashMap<String, String>,
}

impl Party {
    fn new(scenario: &str, at: SocketAddrV4, proxy: SocketAddrV4, number: u32) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("lab/{scenario}.xml"));
        let text = fs::read_to_string(&file).expect("a scenario of the lab");
        let (steps, labels) = read(&text);
        let (last, routes, variables) = (None, Vec::new(), HashMap::new());
        Self { at, proxy, number, steps, labels, step: 0, last, routes, variables }
    }

    fn is_through(&self) -> bool {
        self.step >= self.steps.len()
    }

    /// What it sends before it waits for something.
    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.steps.get(self.step)? {
                Step::Send(template) => {
                    let bytes = self.render(template, self.step);
                    self.step += 1;
                    return Some(bytes);
                }
                Step::Receive(_) => return None,
                Step::Other(next) => self.step = self.place(next.as_deref()),
            }
        }
    }

    fn place(&self, next: Option<&str>) -> usize {
        let label = |name: &str| {
            self.labels.iter().find(|(label, _)| label == name).expect("a label that is there").1
        };
        next.map_or(self.step + 1, label)
    }

    /// Takes a message if the scenario waits for it; what it does not wait for is ignored.
    fn receive(&mut self, bytes: &[u8]) {
        let message = Message::read(bytes);
        let mut words = message.start.split(' ');
        let first = words.next().unwrap_or_default();
        let what = if first == "SIP/2.0" { words.next().unwrap_or_default() } else { first };
        while let Some(Step::Receive(receive)) = self.steps.get(self.step) {
            if receive.what == what {
                if receive.routes {
                    self.routes = message.values("Record-Route");
                    if first == "SIP/2.0" {
                        self.routes.reverse();
                    }
                }
                for (variable, header) in &receive.assigns {
                    self.variables.insert(variable.clone(), message.value(header));
                }
                self.step = self.place(receive.next.as_deref());
                self.last = Some(message);
                return;
            }
            if !receive.optional {
                return;
            }
            self.step += 1;
        }
    }

    /// A template with its keywords filled in.
    fn render(&self, template: &str, step: usize) -> Vec<u8> {
        let (head, body) = template.split_once("\n\n").unwrap_or((template, ""));
        let lines = |text: &str| -> String {
            let filled = text.lines().filter_map(|line| {
                let filled = self.fill(line, step);
                (!filled.is_empty() || line.is_empty()).then_some(filled)
            });
            filled.map(|line| line + "\r\n").collect()
        };
        let body = lines(body);
        let head = lines(head).replace("[len]", &body.len().to_string());
        format!("{head}\r\n{body}").into_bytes()
    }

    fn fill(&self, line: &str, step: usize) -> String {
        let mut out = String::new();
        let mut rest = line;
        while let Some((before, behind)) = rest.split_once('[') {
            out += before;
            let (keyword, behind) = behind.split_once(']').expect("a keyword ends");
            out += &self.value(keyword, step);
            rest = behind;
        }
        out + rest
    }

    fn value(&self, keyword: &str, step: usize) -> String {
        let last = |header: &str| match &self.last {
            Some(message) => message.values(header),
            None => Vec::new(),
        };
        let branch = |step: usize| format!("z9hG4bK-{}-{}-{step}", self.number, self.at.port());
        match keyword {
            "service" => "service".into(),
            "transport" => "UDP".into(),
            "remote_ip" => self.proxy.ip().to_string(),
            "remote_port" => self.proxy.port().to_string(),
            "local_ip" | "media_ip" => self.at.ip().to_string(),
            "local_port" => self.at.port().to_string(),
            "local_ip_type" | "media_ip_type" => "4".into(),
            "call_id" => match &self.last {
                Some(message) => message.value("Call-ID"),
                None => format!("{}-1@{}", self.number, self.at.ip()),
            },
            "call_number" => self.number.to_string(),
            "pid" => "4711".into(),
            "pbx" => if self.at == PBX1 { "pbx1" } else { "pbx2" }.into(),
            // Filled in when the body is there.
            "len" => "[len]".into(),
            "branch" => branch(step),
            "routes" => match &self.routes[..] {
                [] => String::new(),
                routes => format!("Route: {}", routes.join(", ")),
            },
            "next_url" => {
                let contact = last("Contact").into_iter().next().expect("a Contact");
                let url = contact.split('<').next_back().and_then(|url| url.split('>').next());
                url.expect("brackets").to_owned()
            }
            "peer_tag_param" => {
                let tag = last("To")
                    .first()
                    .and_then(|to| to.split_once(";tag=").map(|to| to.1.to_owned()));
                tag.map(|tag| format!(";tag={tag}")).unwrap_or_default()
            }
            _ => {
                if let Some(back) = keyword.strip_prefix("branch-") {
                    return branch(step - back.parse::<usize>().expect("a number"));
                }
                if let Some(variable) = keyword.strip_prefix('$') {
                    return self.variables[variable].clone();
                }
                let header = keyword.strip_prefix("last_").and_then(|name| name.strip_suffix(':'));
                let header = header.unwrap_or_else(|| panic!("the keyword [{keyword}]"));
                // All of them in one line, as SIPp writes them.
                match &last(header)[..] {
                    [] => String::new(),
                    values => format!("{header}: {}", values.join(", ")),
                }
            }
        }
    }
}

/// The steps of a scenario, and where its labels are.
fn read(text: &str) -> (Vec<Step>, Vec<(String, usize)>) {
    let (mut steps, mut labels) = (Vec::new(), Vec::new());
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.split_once("-->").expect("the end of a comment").1;
            continue;
        }
        let (tag, behind) = rest.split_once('>').expect("the end of a tag");
        let name = tag[1..].split(|c: char| c.is_whitespace() || c == '/').next().unwrap_or("");
        let attribute = |name: &str| {
            let (_, value) = tag.split_once(&format!(" {name}=\""))?;
            Some(value.split('"').next().unwrap_or_default().to_owned())
        };
        rest = behind;
        match name {
            "send" => {
                let (_, template) = rest.split_once("<![CDATA[").expect("what is sent");
                let (template, behind) = template.split_once("]]>").expect("its end");
                let lines: Vec<&str> = template.trim().lines().map(str::trim).collect();
                steps.push(Step::Send(lines.join("\n")));
                rest = behind;
            }
            "recv" => steps.push(Step::Receive(Receive {
                what: attribute("request").or(attribute("response")).expect("what is received"),
                optional: attribute("optional").is_some_and(|value| value == "true"),
                routes: attribute("rrs").is_some_and(|value| value == "true"),
                next: attribute("next"),
                assigns: Vec::new(),
            })),
            "ereg" if attribute("search_in").is_some_and(|place| place == "hdr") => {
                let header = attribute("header").expect("a header");
                let header = header.trim_end_matches(':').to_owned();
                let variable = attribute("assign_to").expect("a variable");
                if let Some(Step::Receive(receive)) = steps.last_mut() {
                    receive.assigns.push((variable, header));
                }
            }
            "nop" | "pause" => steps.push(Step::Other(attribute("next"))),
            "label" => labels.push((attribute("id").expect("a name"), steps.len())),
            _ => {}
        }
    }
    (steps, labels)
}
