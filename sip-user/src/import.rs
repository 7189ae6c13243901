//! What other proxies have, as configuration of ours.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use sip_ebpf::message::{Scheme, Uri};
use sip_ebpf::tables::MAX_PBX;

use crate::config::{
    AdminState, ConfigError, MAX_LIMIT, PbxConfig, PbxLimits, Problem, WEIGHTS, is_pbx_id,
    pbx_address_fault,
};

/// Bit of Kamailio's flags (`DS_INACTIVE_DST`): it starts as dead.
const INACTIVE: u32 = 1;
/// Bit of Kamailio's flags (`DS_DISABLED_DST`): it is not used.
const DISABLED: u32 = 4;

/// What a list holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Imported {
    /// The PBXs, in the order of the list.
    pub pbxs: Vec<PbxConfig>,
    /// What is different here from what the list says.
    pub notes: Vec<String>,
}

/// Reads the list of destinations of Kamailio's module `dispatcher` (its parameter `list_file`): lines of
/// `setid destination flags priority attributes`, the last three of which may be missing.
///
/// `set` chooses the destinations of one set; without it there must be only one. `path` is only the name in
/// errors, of which all are found at once.
pub fn kamailio_dispatcher(
    path: &Path,
    text: &str,
    set: Option<i64>,
) -> Result<Imported, ConfigError> {
    let mut reader = Reader { set, ..Reader::default() };
    for (number, line) in (1..).zip(text.lines()) {
        reader.line(number, line);
    }
    reader.finish().map_err(|problems| ConfigError { file: path.to_owned(), problems })
}

/// The PBXs as `[[pbx]]` sections, which can stand at the end of a configuration file.
pub fn toml(imported: &Imported) -> String {
    let mut text = String::new();
    for note in &imported.notes {
        let _ = writeln!(text, "# {note}");
    }
    for pbx in &imported.pbxs {
        let PbxConfig { id, address, weight, state, limits } = pbx;
        // An id has no character that a string of TOML would have to escape.
        let _ = write!(text, "\n[[pbx]]\nid = \"{id}\"\naddress = \"{address}\"\n");
        let _ = writeln!(text, "weight = {weight}");
        match state {
            AdminState::Active => {}
            AdminState::Draining => text += "state = \"draining\"\n",
            AdminState::Disabled => text += "state = \"disabled\"\n",
        }
        if limits.max_calls != 0 {
            let _ = writeln!(text, "max_calls = {}", limits.max_calls);
        }
    }
    text.trim_start_matches('\n').to_owned()
}

#[derive(Debug, Default)]
struct Reader {
    set: Option<i64>,
    /// The sets that there are, each with its first line.
    sets: Vec<(i64, usize)>,
    found: Vec<Destination>,
    addresses: HashMap<SocketAddr, usize>,
    ids: HashMap<String, usize>,
    priorities: BTreeSet<i64>,
    ignored: BTreeSet<String>,
    notes: Vec<String>,
    problems: Vec<Problem>,
}

#[derive(Debug)]
struct Destination {
    id: Option<String>,
    address: SocketAddr,
    /// None if the list does not say.
    weight: Option<u32>,
    state: AdminState,
    max_calls: u32,
}

/// A piece of a line, and where it starts: in characters, from 1.
#[derive(Clone, Copy, Debug)]
struct Word<'a> {
    line: usize,
    column: usize,
    text: &'a str,
}

impl Reader {
    fn line(&mut self, number: usize, line: &str) {
        let mut rest = line;
        let mut next = |last: bool| {
            rest = rest.trim_start();
            let at = line.len() - rest.len();
            let end = if last { None } else { rest.find(char::is_whitespace) };
            let (text, behind) = rest.split_at(end.unwrap_or(rest.len()));
            rest = behind;
            let column = line.get(..at).unwrap_or_default().chars().count() + 1;
            let text = text.trim_end();
            (!text.is_empty()).then_some(Word { line: number, column, text })
        };
        let Some(set) = next(false).filter(|word| !word.text.starts_with('#')) else { return };
        let (destination, flags, priority, attributes) =
            (next(false), next(false), next(false), next(true));
        let Ok(id) = set.text.parse::<i64>() else {
            let reason = format!(
                "\"{}\" is no number of a set: a line is \"setid destination flags priority attributes\"",
                set.text
            );
            return self.problem(set, reason);
        };
        if !self.sets.iter().any(|(known, _)| *known == id) {
            self.sets.push((id, number));
        }
        if self.set.is_some_and(|wanted| wanted != id) {
            return;
        }
        let Some(destination) = destination else {
            return self
                .problem(set, "the destination is missing, as in \"1 sip:192.0.2.11:5060\"");
        };
        let address = self.address(destination);
        let state = self.state(flags);
        if let Some(priority) = priority {
            match priority.text.parse() {
                Ok(priority) => _ = self.priorities.insert(priority),
                Err(_) => self.problem(priority, "the priority is a number"),
            }
        } else {
            self.priorities.insert(0);
        }
        let mut found = Destination { id: None, address, weight: None, state, max_calls: 0 };
        if let Some(attributes) = attributes {
            self.attributes(attributes, &mut found);
        }
        if found.weight == Some(0) && found.state == AdminState::Active {
            found.state = AdminState::Draining;
            self.notes.push(format!("line {number}: weight 0 is state \"draining\" here"));
        }
        self.found.push(found);
        if self.found.len() == MAX_PBX as usize + 1 {
            self.problem(destination, format!("more than {MAX_PBX} PBXs"));
        }
    }

    /// Where a destination is; something that is no PBX's address if that is not clear.
    fn address(&mut self, word: Word<'_>) -> SocketAddr {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = match uri_address(word.text) {
            Ok(address) => address,
            Err(reason) => {
                self.problem(word, reason);
                return nowhere;
            }
        };
        if let Some(fault) = pbx_address_fault(address) {
            self.problem(word, format!("{address}: {fault}"));
        } else if let Some(first) = self.addresses.insert(address, word.line) {
            self.problem(word, format!("{address} is taken on line {first}"));
        }
        address
    }

    fn state(&mut self, flags: Option<Word<'_>>) -> AdminState {
        let Some(word) = flags else { return AdminState::Active };
        let Ok(flags) = word.text.parse::<u32>() else {
            self.problem(word, "the flags are a number");
            return AdminState::Active;
        };
        if flags & DISABLED != 0 {
            return AdminState::Disabled;
        }
        if flags & INACTIVE != 0 {
            let line = word.line;
            self.notes
                .push(format!("line {line}: starts as inactive there, here probes will tell"));
        }
        AdminState::Active
    }

    fn attributes(&mut self, word: Word<'_>, found: &mut Destination) {
        let text = word.text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        let mut rweight = None;
        for attribute in text.unwrap_or(word.text).split(';') {
            let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
            let (name, value) = (name.trim(), value.trim());
            let mut number = |most: i64| match value.parse::<i64>() {
                Ok(number) if (0..=most).contains(&number) => u32::try_from(number).ok(),
                _ => {
                    let reason = format!("{name} is \"{value}\": it goes from 0 to {most}");
                    self.problem(word, reason);
                    None
                }
            };
            match name {
                "" => {}
                "weight" => found.weight = number(100),
                "rweight" => rweight = number(100),
                "maxload" => found.max_calls = number(MAX_LIMIT).unwrap_or(0),
                "duid" if is_pbx_id(value) => match self.ids.insert(value.to_owned(), word.line) {
                    None => found.id = Some(value.to_owned()),
                    Some(first) => {
                        self.problem(word, format!("duid \"{value}\" is taken on line {first}"));
                    }
                },
                "duid" => {
                    let line = word.line;
                    self.notes.push(format!("line {line}: duid \"{value}\" cannot be an id here"));
                }
                _ => _ = self.ignored.insert(name.to_owned()),
            }
        }
        found.weight = found.weight.or(rweight);
    }

    fn problem(&mut self, word: Word<'_>, reason: impl Into<String>) {
        let (line, column) = (word.line, word.column);
        self.problems.push(Problem { line, column, reason: reason.into() });
    }

    fn finish(mut self) -> Result<Imported, Vec<Problem>> {
        let whole = |reason: String| Problem { line: 0, column: 0, reason };
        if let ([_, (other, line), ..], None) = (&self.sets[..], self.set) {
            let (line, column) = (*line, 1);
            let sets: Vec<_> = self.sets.iter().map(|(set, _)| set.to_string()).collect();
            let reason =
                format!("set {other} is another one: choose one of {} with --set", sets.join(", "));
            self.problems.push(Problem { line, column, reason });
        } else if self.found.is_empty() && self.problems.is_empty() {
            let reason = match self.set {
                Some(set) => format!("there is no destination in set {set}"),
                None => "there is no destination".to_owned(),
            };
            self.problems.push(whole(reason));
        }
        if !self.problems.is_empty() {
            self.problems.sort_by_key(|problem| (problem.line, problem.column));
            return Err(self.problems);
        }
        if self.priorities.len() > 1 {
            self.notes.push("there are no priorities here: all of them get calls".to_owned());
        }
        if !self.ignored.is_empty() {
            let ignored: Vec<_> = self.ignored.into_iter().collect();
            self.notes.push(format!("not taken over: {}", ignored.join(", ")));
        }
        let (weights, exact) = weights(&self.found);
        if !exact {
            self.notes.push("weights are brought into 1 to 16: shares differ a little".to_owned());
        }
        let mut numbers = 1..;
        let ids = &self.ids;
        let mut fresh = move || {
            // A list has at most 64 ids, so one of these numbers is free.
            let free = numbers.find(|n: &u32| !ids.contains_key(&format!("pbx{n}")));
            format!("pbx{}", free.unwrap_or_default())
        };
        let pbxs = self.found.into_iter().zip(weights).map(|(found, weight)| PbxConfig {
            id: found.id.unwrap_or_else(&mut fresh),
            address: found.address,
            weight,
            state: found.state,
            limits: PbxLimits { max_calls: found.max_calls, calls_per_second: 0 },
        });
        Ok(Imported { pbxs: pbxs.collect(), notes: self.notes })
    }
}

/// The address that a SIP URI names, or why it names none.
fn uri_address(text: &str) -> Result<SocketAddr, String> {
    let uri = Uri::parse(text).map_err(|_| {
        format!("\"{text}\" is no SIP URI: a destination is written \"sip:192.0.2.11:5060\"")
    })?;
    let transport = uri.transport();
    if uri.scheme != Scheme::Sip || transport.is_some_and(|t| !t.eq_ignore_ascii_case("udp")) {
        return Err(format!("\"{text}\": PBXs are reached by sip: over UDP"));
    }
    let Some(ip) = uri.host.and_then(|host| host.ip()) else {
        return Err(format!("\"{text}\" names a host: a PBX needs an address"));
    };
    Ok(SocketAddr::new(ip, uri.port.unwrap_or(5060)))
}

/// Weights as they may be here, and whether the shares are the same. A list that gives some no weight gives them
/// none of the calls in Kamailio's weighted algorithms, but all in the others: they have the least.
fn weights(found: &[Destination]) -> (Vec<u8>, bool) {
    let most = u32::from(*WEIGHTS.end());
    let divisor = found.iter().filter_map(|found| found.weight).fold(0, gcd).max(1);
    let reduced: Vec<_> =
        found.iter().map(|found| (found.weight.unwrap_or(divisor) / divisor).max(1)).collect();
    let highest = reduced.iter().copied().max().unwrap_or(1);
    let exact = highest <= most;
    let fit = |weight: u32| match exact {
        true => weight,
        false => ((weight * most + highest / 2) / highest).clamp(1, most),
    };
    let fits = |weight: u32| u8::try_from(fit(weight)).unwrap_or(*WEIGHTS.end());
    (reduced.into_iter().map(fits).collect(), exact)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(text: &str) -> Result<Imported, String> {
        kamailio_dispatcher(Path::new("d.list"), text, None).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn error(text: &str) -> String {
        read(text).expect_err("must be refused")
    }

    #[test]
    fn a_list_as_people_have_it() {
        let text = "\
# setid(int) destination(sip uri) flags(int,opt) priority(int,opt) attributes(str,opt)

1 sip:192.168.1.42:5060
 1\tsip:192.168.1.142;transport=UDP 0 10 duid=main;weight=50;socket=udp:192.168.1.238:5060
1 sip:[2001:db8::1]:5080 8 0 \"maxload=30;weight=25\"
1 sip:192.168.1.43 4\r
1 sip:192.168.1.44 9 0 duid=a b;weight=0
";
        let imported = read(text).unwrap();
        let want = "\
# line 7: starts as inactive there, here probes will tell
# line 7: duid \"a b\" cannot be an id here
# line 7: weight 0 is state \"draining\" here
# there are no priorities here: all of them get calls
# not taken over: socket

[[pbx]]
id = \"pbx1\"
address = \"192.168.1.42:5060\"
weight = 1

[[pbx]]
id = \"main\"
address = \"192.168.1.142:5060\"
weight = 2

[[pbx]]
id = \"pbx2\"
address = \"[2001:db8::1]:5080\"
weight = 1
max_calls = 30

[[pbx]]
id = \"pbx3\"
address = \"192.168.1.43:5060\"
weight = 1
state = \"disabled\"

[[pbx]]
id = \"pbx4\"
address = \"192.168.1.44:5060\"
weight = 1
state = \"draining\"
";
        assert_eq!(toml(&imported), want);
        // What comes out is configuration.
        let file = format!("[sip]\nlisten = [\"192.0.2.1:5060\", \"[2001:db8::fe]:5060\"]\n{want}");
        let config = Config::parse(Path::new("f.toml"), &file).unwrap();
        assert_eq!(config.pbx, imported.pbxs);
    }

    #[test]
    fn the_plain_list_has_no_notes() {
        let imported = read("1 sip:192.0.2.1\n1 sip:192.0.2.2 0 0\n").unwrap();
        assert!(imported.notes.is_empty(), "{:?}", imported.notes);
        assert!(toml(&imported).starts_with("[[pbx]]\nid = \"pbx1\"\n"));
    }

    #[test]
    fn weights_keep_their_shares() {
        let of = |weights: &[u32]| {
            let lines: String = (1..)
                .zip(weights)
                .map(|(n, weight)| format!("1 sip:192.0.2.{n} 0 0 weight={weight}\n"))
                .collect();
            let imported = read(&lines).unwrap();
            let weights: Vec<_> = imported.pbxs.iter().map(|pbx| pbx.weight).collect();
            (weights, imported.notes.len())
        };
        assert_eq!(of(&[50, 50]), (vec![1, 1], 0));
        assert_eq!(of(&[60, 30, 10]), (vec![6, 3, 1], 0));
        assert_eq!(of(&[97, 3]), (vec![16, 1], 1));
        let rweight = read("1 sip:192.0.2.1 0 0 rweight=20\n1 sip:192.0.2.2 0 0 rweight=10;\n");
        let weights: Vec<_> = rweight.unwrap().pbxs.iter().map(|pbx| pbx.weight).collect();
        assert_eq!(weights, [2, 1]);
    }

    #[test]
    fn sets() {
        let text = "1 sip:192.0.2.1\n# x\n2 sip:192.0.2.2\n2 sip:192.0.2.1\n-3 sip:192.0.2.9\n";
        assert_eq!(
            error(&text.replace("2 sip:192.0.2.1\n", "")),
            "d.list:3:1: set 2 is another one: choose one of 1, 2, -3 with --set"
        );
        let of = |set| kamailio_dispatcher(Path::new("d.list"), text, Some(set));
        assert_eq!(of(2).unwrap().pbxs.len(), 2);
        assert_eq!(of(-3).unwrap().pbxs[0].address, "192.0.2.9:5060".parse().unwrap());
        assert_eq!(of(4).unwrap_err().to_string(), "d.list: there is no destination in set 4");
        assert_eq!(error("# nothing\n\n"), "d.list: there is no destination");
    }

    #[test]
    fn mistakes_are_told_with_their_places() {
        for (text, place, part) in [
            ("x sip:192.0.2.1", "1:1", "no number of a set"),
            ("1", "1:1", "destination is missing"),
            ("1 192.0.2.1:5060", "1:3", "is no SIP URI"),
            ("1 sip:", "1:3", "is no SIP URI"),
            ("1 sips:192.0.2.1", "1:3", "over UDP"),
            ("1 sip:192.0.2.1;transport=tcp", "1:3", "over UDP"),
            ("1 tel:112", "1:3", "over UDP"),
            ("1 sip:pbx.example.com", "1:3", "names a host"),
            ("1 sip:0.0.0.0", "1:3", "not the address of one machine"),
            ("1 sip:[fe80::1]", "1:3", "link-local"),
            ("1 sip:192.0.2.1 x", "1:17", "flags are a number"),
            ("1 sip:192.0.2.1 0 x", "1:19", "priority is a number"),
            ("1 sip:192.0.2.1 0 0 weight=101", "1:21", "from 0 to 100"),
            ("1 sip:192.0.2.1 0 0 weight", "1:21", "weight is \"\""),
            ("1 sip:192.0.2.1 0 0 maxload=x", "1:21", "from 0 to 1000000"),
            ("1 sip:192.0.2.1\n1 sip:192.0.2.1:5060", "2:3", "is taken on line 1"),
            (
                "1 sip:192.0.2.1 0 0 duid=a\n1 sip:192.0.2.2 0 0 duid=a",
                "2:21",
                "\"a\" is taken on line 1",
            ),
        ] {
            let error = error(text);
            assert!(error.starts_with(&format!("d.list:{place}: ")), "{text}: {error}");
            assert!(error.contains(part), "{text}: {error}");
        }
        // All at once, in order.
        let all = error("1 x\n1 sip:h.example\n1 sip:192.0.2.1 y\n");
        assert_eq!(all.lines().count(), 3, "{all}");
        let many: String = (1..=65).map(|n| format!("1 sip:192.0.2.{n}\n")).collect();
        assert!(error(&many).starts_with("d.list:65:3: more than 64 PBXs"));
    }

    proptest::proptest! {
        #[test]
        fn no_list_panics(text in "([0-9 \\t#:;=a-z\\[\\].\"é-]{0,40}\n?){0,6}") {
            let _ = read(&text);
        }
    }
}
