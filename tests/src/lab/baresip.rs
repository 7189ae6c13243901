//! baresip: a phone that nobody here has written.
//!
//! It has no sound card: what it hears is what it says. The test works its menu over a TCP socket
//! in the phones' namespace, where it also says what happens (its module `ctrl_tcp`).

use std::{
    collections::VecDeque,
    fs,
    io::{ErrorKind, Read, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Lab, PORT, PROXY, Place, Process};
use crate::kernel;

/// Where it listens for SIP.
const SIP: u16 = 5070;
/// Where its menu is.
const MENU: u16 = 4444;
/// How long it may take to start, or to answer.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest message on its socket, in bytes.
const LONGEST: usize = 1 << 20;

/// A running baresip. Dropping it kills it.
#[derive(Debug)]
pub struct Baresip {
    process: Process,
    stream: TcpStream,
    /// What has come and is not a whole message yet.
    buffer: Vec<u8>,
    /// What has happened and nobody has waited for.
    events: VecDeque<Value>,
}

impl Baresip {
    /// Starts it as a phone of `user` of example.com, which registers at once.
    pub fn start(lab: &Lab, user: &str, password: &str) -> Result<Self> {
        let dir = lab.dir().join("baresip");
        fs::create_dir(&dir).context("cannot make baresip's directory")?;
        fs::write(dir.join("config"), config(&modules()?))?;
        fs::write(
            dir.join("accounts"),
            format!(
                "<sip:{user}@example.com>;auth_user={user};auth_pass={password};\
                 outbound=\"sip:{PROXY}:{PORT}\";regint=600;answermode=manual\n"
            ),
        )?;
        fs::write(dir.join("contacts"), "")?;
        let mut command = lab.command(Place::Phones, "baresip");
        command.arg("-4").arg("-s").arg("-f").arg(&dir);
        command.env("HOME", &dir);
        let mut process = Process::start("baresip", &mut command, &lab.dir().join("baresip.log"))?;
        let stream = connect(lab, &mut process)?;
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self { process, stream, buffer: Vec::new(), events: VecDeque::new() })
    }

    /// Does something by its menu, like `dial`, `accept`, `hold`, `resume` or `hangup`.
    pub fn command(&mut self, command: &str, params: &str) -> Result<()> {
        let text = json!({ "command": command, "params": params, "token": "t" }).to_string();
        write!(self.stream, "{}:{text},", text.len()).context("baresip does not listen")?;
        let answer = self.wait(LIMIT, |message| message["response"] == true, "an answer")?;
        ensure!(answer["ok"] == true, "baresip refuses {command}: {answer}");
        Ok(())
    }

    /// Waits until it says that this has happened, such as `REGISTER_OK` or `CALL_ESTABLISHED`. What it said
    /// before is skipped.
    pub fn wait_for(&mut self, event: &str) -> Result<Value> {
        self.wait(LIMIT, |message| message["type"] == event, event)
    }

    /// Ends it as its user would, and waits for the end. It takes its registration back.
    pub fn quit(mut self) -> Result<()> {
        self.process.signal(libc::SIGTERM)?;
        self.process.wait(LIMIT).map(drop)
    }

    fn wait(
        &mut self,
        limit: Duration,
        holds: impl Fn(&Value) -> bool,
        what: &str,
    ) -> Result<Value> {
        let start = Instant::now();
        let mut looked = 0;
        loop {
            while looked < self.events.len() {
                if holds(&self.events[looked]) {
                    let found = self.events.remove(looked);
                    // An answer says nothing of the order of what has happened.
                    if found.as_ref().is_some_and(|message| message["event"] == true) {
                        self.events.drain(..looked);
                    }
                    return found.context("it was there");
                }
                looked += 1;
            }
            if start.elapsed() > limit {
                bail!(
                    "baresip does not say {what}, but {:?}: {}",
                    self.events,
                    self.process.last_words()
                );
            }
            self.read()?;
        }
    }

    /// Reads what has come: netstrings of JSON.
    fn read(&mut self) -> Result<()> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => bail!("baresip has ended: {}", self.process.last_words()),
            Ok(length) => self.buffer.extend_from_slice(&chunk[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot read from baresip"),
        }
        while let Some(colon) = self.buffer.iter().position(|byte| *byte == b':') {
            let length: usize = std::str::from_utf8(&self.buffer[..colon])
                .ok()
                .and_then(|digits| digits.parse().ok())
                .filter(|length| *length <= LONGEST)
                .context("baresip speaks something else than netstrings")?;
            let (start, end) = (colon + 1, colon + 1 + length);
            // A comma ends it.
            if self.buffer.len() <= end {
                return Ok(());
            }
            // Colours of a terminal come as they are, which JSON does not allow.
            let text: String = String::from_utf8_lossy(&self.buffer[start..end])
                .chars()
                .filter(|c| !c.is_control())
                .collect();
            let message = serde_json::from_str(&text)
                .with_context(|| format!("baresip does not speak JSON: {text}"))?;
            self.events.push_back(message);
            self.buffer.drain(..=end);
        }
        Ok(())
    }
}

fn connect(lab: &Lab, process: &mut Process) -> Result<TcpStream> {
    let address: SocketAddr = ([127, 0, 0, 1], MENU).into();
    let connect = || Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1))?);
    let start = Instant::now();
    loop {
        if let Some(status) = process.ended()? {
            bail!("baresip ended at once ({status}): {}", process.last_words());
        }
        match kernel::in_namespace(&lab.namespace_file(Place::Phones), connect) {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() > LIMIT => {
                return Err(error.context(format!("no menu: {}", process.last_words())));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Where Debian keeps its modules: below a directory of the architecture in later releases.
fn modules() -> Result<String> {
    let plain = Path::new("/usr/lib/baresip/modules");
    if plain.is_dir() {
        return Ok(plain.display().to_string());
    }
    let output = Command::new("dpkg").args(["-L", "baresip-core"]).output();
    let output = output.context("`baresip` is not there: run `cargo xtask setup`")?;
    let files = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = files.lines().find_map(|line| line.strip_suffix("/ctrl_tcp.so"));
    found.map(str::to_owned).context("no modules of baresip: run `cargo xtask setup`")
}

fn config(modules: &str) -> String {
    let address = Place::Phones.address();
    format!(
        "poll_method epoll\n\
         sip_listen {address}:{SIP}\n\
         net_interface eth0\n\
         call_local_timeout 30\n\
         audio_player aubridge,loop\n\
         audio_source aubridge,loop\n\
         audio_alert aubridge,alert\n\
         ausrc_srate 8000\n\
         auplay_srate 8000\n\
         ausrc_channels 1\n\
         auplay_channels 1\n\
         module_path {modules}\n\
         module g711.so\n\
         module aubridge.so\n\
         module_tmp account.so\n\
         module_app menu.so\n\
         module_app ctrl_tcp.so\n\
         ctrl_tcp_listen 127.0.0.1:{MENU}\n"
    )
}
