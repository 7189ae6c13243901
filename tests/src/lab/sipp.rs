//! SIPp as callers and as PBXs, playing the scenarios of `tests/lab`.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{Lab, PORT, PROXY, PROXY_IPV6, Place, Process};

/// A SIPp to be started.
#[derive(Clone, Debug)]
pub struct Sipp {
    scenario: String,
    place: Place,
    port: u16,
    /// Calls a second and how many; `None` is a PBX, which waits.
    calls: Option<(u32, u32)>,
    talk: Duration,
    /// How long it may run at most.
    limit: Duration,
    target: String,
    /// Whom its calls name.
    user: String,
    ipv6: bool,
    /// What the scenario reads as `[field0]` and so on: a line for each call, in order.
    injected: Vec<String>,
    /// What credentials are made for, without the scheme.
    auth_uri: Option<String>,
}

impl Sipp {
    /// A PBX that plays a scenario until it is killed; it calls itself by its place's name.
    pub fn pbx(place: Place, scenario: &str) -> Self {
        Self {
            scenario: scenario.to_owned(),
            place,
            port: PORT,
            calls: None,
            talk: Duration::from_millis(500),
            limit: Duration::from_secs(600),
            target: PROXY.to_owned(),
            user: "service".to_owned(),
            ipv6: false,
            injected: Vec::new(),
            auth_uri: None,
        }
    }

    /// Callers among the phones: `rate` calls a second, `calls` in all.
    pub fn caller(scenario: &str, rate: u32, calls: u32) -> Self {
        let seconds = u64::from(calls.div_ceil(rate.max(1)));
        Self {
            calls: Some((rate, calls)),
            place: Place::Phones,
            // A call may take 40 s beyond its start before it gives up.
            limit: Duration::from_secs(seconds + 40),
            ..Self::pbx(Place::Phones, scenario)
        }
    }

    /// Calls another port of its own, so that several callers can run beside each other.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// How long a call talks, or rings before its caller gives up.
    #[must_use]
    pub fn talk(self, talk: Duration) -> Self {
        Self { talk, ..self }
    }

    /// Calls somebody else than the proxy.
    #[must_use]
    pub fn target(self, address: &str) -> Self {
        Self { target: address.to_owned(), ..self }
    }

    /// Calls this user, from a PBX in place of the phones.
    #[must_use]
    pub fn from_pbx(self, place: Place, user: &str) -> Self {
        Self { place, user: user.to_owned(), ..self }
    }

    /// Gives each call a line of fields with semicolons between them.
    #[must_use]
    pub fn inject(self, injected: Vec<String>) -> Self {
        Self { injected, ..self }
    }

    /// Makes credentials for this Request-URI, without its scheme; else they are for the proxy's address.
    #[must_use]
    pub fn auth_uri(self, uri: &str) -> Self {
        Self { auth_uri: Some(uri.to_owned()), ..self }
    }

    /// Uses the IPv6 addresses of its place and of the proxy.
    #[must_use]
    pub fn ipv6(self) -> Self {
        Self { ipv6: true, target: format!("[{PROXY_IPV6}]"), ..self }
    }

    /// Starts it, and waits until it listens. `name` names its files in the lab's directory.
    pub fn start(&self, lab: &Lab, name: &str) -> Result<Running> {
        let log = lab.dir().join(format!("{name}.calls"));
        let scenario = scenarios().join(format!("{}.xml", self.scenario));
        if !scenario.exists() {
            bail!("no scenario {}", scenario.display());
        }
        let mut command = lab.command(self.place, "sipp");
        command.current_dir(lab.dir());
        command.arg("-sf").arg(scenario);
        let address = match self.ipv6 {
            true => format!("[{}]", self.place.address_ipv6()),
            false => self.place.address().to_owned(),
        };
        command.args(["-i", &address, "-p", &self.port.to_string()]);
        command.args(["-key", "pbx", self.place.name(), "-s", &self.user]);
        command.args(["-d", &self.talk.as_millis().to_string()]);
        command.args(["-timeout", &format!("{}s", self.limit.as_secs())]);
        // No behaviour of SIPp's own: what is unexpected is to be seen, not answered.
        // Else a hundred datagrams at once are too many for it: what a daemon finds in its sockets when it starts.
        command.args(["-buff_size", "2097152"]);
        command.args(["-nostdin", "-nd", "-trace_logs"]).arg("-log_file").arg(&log);
        command.arg("-trace_err").arg("-error_file").arg(lab.dir().join(format!("{name}.errors")));
        if !self.injected.is_empty() {
            let file = lab.dir().join(format!("{name}.csv"));
            fs::write(&file, format!("SEQUENTIAL\n{}\n", self.injected.join("\n")))?;
            command.arg("-inf").arg(file);
        }
        if let Some(uri) = &self.auth_uri {
            command.args(["-auth_uri", uri]);
        }
        if let Some((rate, calls)) = self.calls {
            command.args(["-r", &rate.to_string(), "-m", &calls.to_string()]);
            // All of them may be open at once: a limit would slow the callers down.
            command.args(["-l", &calls.to_string()]);
            command.arg(format!("{}:{PORT}", self.target));
        }
        let process = Process::start(name, &mut command, &lab.dir().join(format!("{name}.out")))?;
        let mut running = Running { process, log, limit: self.limit };
        self.wait_until_it_listens(lab, &mut running)?;
        Ok(running)
    }
}

impl Sipp {
    fn wait_until_it_listens(&self, lab: &Lab, running: &mut Running) -> Result<()> {
        // As it stands there: the port in hexadecimal, behind the local address.
        let (sockets, nobody) = match self.ipv6 {
            true => ("/proc/net/udp6", "0".repeat(32)),
            false => ("/proc/net/udp", "0".repeat(8)),
        };
        let port = format!(":{:04X} {nobody}:0000", self.port);
        let start = Instant::now();
        loop {
            // Callers may be through already.
            if let Some(status) = running.process.ended()? {
                return if self.calls.is_some() {
                    Ok(())
                } else {
                    bail!("SIPp ended at once ({status}): {}", running.process.last_words())
                };
            }
            if lab.run(self.place, "cat", &[sockets])?.contains(&port) {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(10) {
                bail!(
                    "SIPp does not listen on port {}: {}",
                    self.port,
                    running.process.last_words()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A SIPp that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub process: Process,
    log: PathBuf,
    limit: Duration,
}

impl Running {
    /// Waits until all its calls are over, and returns what it noted.
    pub fn finish(&mut self) -> Result<Vec<Event>> {
        self.process.wait(self.limit + Duration::from_secs(5))?;
        self.events()
    }

    /// What it has noted so far.
    pub fn events(&self) -> Result<Vec<Event>> {
        read_log(&self.log)
    }
}

/// What happened to a call.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Word {
    /// The caller is about to send its INVITE (or OPTIONS).
    Placed,
    /// A PBX got the INVITE.
    Invited,
    /// The caller got a 200 for its INVITE.
    Answered,
    /// The second INVITE of a dialog was answered.
    Held,
    /// It ended as its scenario says.
    Ended,
    /// A failure was answered.
    Refused,
    /// Nothing came for too long.
    Silent,
}

/// One line of a scenario's log.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What happened.
    pub word: Word,
    /// The call.
    pub call_id: String,
    /// When: seconds since 1970.
    pub at: f64,
    /// Which PBX, where the line names one.
    pub pbx: Option<String>,
}

/// Reads what a scenario has logged. A file that is not there yet holds nothing.
fn read_log(path: &Path) -> Result<Vec<Event>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    // A line may be only half there while SIPp runs.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| {
            parse(line).with_context(|| format!("{}: not a log line: {line}", path.display()))
        })
        .collect()
}

fn parse(line: &str) -> Option<Event> {
    let mut fields = line.split_whitespace();
    let word = match fields.next()? {
        "placed" => Word::Placed,
        "invited" => Word::Invited,
        "answered" => Word::Answered,
        "held" => Word::Held,
        "ended" => Word::Ended,
        "refused" => Word::Refused,
        "silent" => Word::Silent,
        _ => return None,
    };
    let call_id = fields.next()?.to_owned();
    let seconds: f64 = fields.next()?.parse().ok()?;
    let micros: f64 = fields.next()?.parse().ok()?;
    let pbx = fields.next().map(str::to_owned);
    Some(Event { word, call_id, at: seconds + micros / 1e6, pbx })
}

/// Where the scenarios are.
fn scenarios() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_scenario_is_read_back() {
        let event = parse("answered 1-7@10.10.1.2 1795383816.000000 498270.000000 pbx1").unwrap();
        assert_eq!(event.word, Word::Answered);
        assert_eq!(event.call_id, "1-7@10.10.1.2");
        assert!((event.at - 1_795_383_816.498_27).abs() < 1e-5);
        assert_eq!(event.pbx.as_deref(), Some("pbx1"));
        assert!(parse("answered 1-7@10.10.1.2 then").is_none());
        assert!(parse("").is_none());
    }
}
