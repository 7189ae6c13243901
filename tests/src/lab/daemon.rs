//! The daemon under test: the built `sipline` binary, its configuration, and its control socket.

use std::{
    env,
    fmt::{self, Write as _},
    fs,
    io::{BufRead, BufReader, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{INTERFACES, Lab, PORT, PROXY, PROXY_IPV6, Place, Process, output};

/// How the kernel half is attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// After the stack has made a socket buffer.
    Generic,
    /// Not at all: the daemon serves everything.
    Off,
    /// The best that works.
    Auto,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
            Self::Auto => "auto",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            other => Err(format!("`{other}` is not native, generic, off or auto")),
        }
    }
}

/// What a test chooses of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[xdp] mode`
    pub mode: Mode,
    /// `[xdp] loops`
    pub loops: String,
    /// `[xdp] keep`
    pub keep: bool,
    /// `[probe] interval`; the timeout is the same, at most a second.
    pub probe: Duration,
    /// `[probe] fall`
    pub fall: u32,
    /// Whether the PBXs are reached over IPv6; the proxy listens on both addresses in any case.
    pub ipv6: bool,
    /// `[metrics] listen`
    pub metrics: Option<SocketAddr>,
    /// Whether there is a registrar for example.com, with its store in the lab's directory.
    pub registrar: bool,
    /// The URL of the registrar's store, if it is another one: its users are those of Asterisk's `sipusers`.
    pub database: Option<String>,
    /// Whether calls of the phones' network are steered without asking who calls.
    pub trusted: bool,
    /// Whether that is so while somebody is registered from where they come from, and PBXs that ask for users are answered.
    pub registered: bool,
    /// `[sip] no_destination`
    pub no_destination: String,
    /// `[sip] workers`; none: as many as there are CPUs.
    pub workers: Option<usize>,
    /// `[gate]`, as it stands in the file. It is off unless a test is about it: SIPp is many phones at one address.
    pub gate: String,
    /// More sections, as they stand in the file.
    pub more: String,
}

impl Settings {
    /// Probes each second; two failures take a PBX out, one success brings it back.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            loops: "auto".into(),
            keep: false,
            probe: Duration::from_secs(1),
            fall: 2,
            ipv6: false,
            metrics: None,
            registrar: false,
            database: None,
            trusted: true,
            registered: false,
            no_destination: "503".into(),
            workers: None,
            gate: "enabled = false".into(),
            more: String::new(),
        }
    }

    fn toml(&self, lab: &Lab) -> String {
        let mut text = String::new();
        let milliseconds = self.probe.as_millis();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            r#"[sip]
listen = ["{PROXY}:{PORT}", "[{PROXY_IPV6}]:{PORT}"]
key = "000102030405060708090a0b0c0d0e0f"
no_destination = "{no_destination}"
{workers}
[trust]
networks = {trusted:?}
registered = {registered:?}

[gate]
{gate}

[probe]
interval = "{milliseconds}ms"
timeout = "{timeout}ms"
fall = {fall}
rise = 1

[xdp]
mode = "{mode}"
interfaces = {INTERFACES:?}
pin = "{pins}"
keep = {keep}
loops = "{loops}"

[control]
socket = "{socket}"

[log]
level = "info"
"#,
            no_destination = self.no_destination,
            gate = self.gate,
            workers = match self.workers {
                Some(workers) => format!("workers = {workers}\n"),
                None => String::new(),
            },
            trusted = match self.trusted {
                true => &["10.10.1.0/24", "fd10:10:1::/64"][..],
                false => &[],
            },
            registered = match self.registered {
                true => &["10.10.1.0/24", "fd10:10:1::/64"][..],
                false => &[],
            },
            timeout = milliseconds.min(1000),
            fall = self.fall,
            mode = self.mode,
            pins = lab.pins().display(),
            keep = self.keep,
            loops = self.loops,
            socket = socket(lab).display(),
        );
        if let Some(address) = self.metrics {
            let _ = write!(text, "\n[metrics]\nlisten = \"{address}\"\n");
        }
        if self.registrar {
            let own = format!("sqlite://{}", lab.dir().join("sipline.db").display());
            let qualify = if self.registered { "registered" } else { "relay" };
            let (url, users) = match &self.database {
                Some(url) => (url, "asterisk"),
                None => (&own, "own"),
            };
            let _ = write!(
                text,
                "\n[registrar]\ndomains = [\"example.com\"]\nanswer_qualify = \"{qualify}\"\n\n\
                 [store]\nurl = \"{url}\"\nusers = \"{users}\"\n",
            );
        }
        let _ = write!(text, "\n{}\n", self.more);
        for place in [Place::Pbx1, Place::Pbx2] {
            let address = match self.ipv6 {
                true => format!("[{}]:{PORT}", place.address_ipv6()),
                false => format!("{}:{PORT}", place.address()),
            };
            let _ =
                write!(text, "\n[[pbx]]\nid = \"{}\"\naddress = \"{address}\"\n", place.name(),);
        }
        text
    }
}

/// A running `sipline run`. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    /// The process.
    pub process: Process,
    control: Control,
    log: PathBuf,
}

impl Daemon {
    /// Writes the configuration, starts the daemon in the proxy's namespace, and waits until it answers
    /// on its control socket.
    pub fn start(lab: &Lab, settings: &Settings) -> Result<Self> {
        let config = lab.dir().join("sipline.toml");
        fs::write(&config, settings.toml(lab))
            .with_context(|| format!("cannot write {}", config.display()))?;
        let control = Control::of(lab)?;
        let mut command = lab.command(Place::Proxy, &control.binary);
        command.arg("run").arg("--config").arg(&config);
        let log = log_file(lab);
        let process = Process::start("sipline", &mut command, &log)?;
        let mut daemon = Self { process, control, log };
        daemon.wait_until_ready()?;
        if settings.ipv6 && settings.mode != Mode::Off {
            daemon.wait_for_ipv6()?;
        }
        Ok(daemon)
    }

    /// Waits until its kernel program carries IPv6, which it does later than IPv4.
    pub fn wait_for_ipv6(&self) -> Result<()> {
        let start = Instant::now();
        while !fs::read_to_string(&self.log)?.contains("the program carries IPv6") {
            if start.elapsed() > Duration::from_secs(30) {
                bail!("the program does not carry IPv6:\n{}", self.process.last_words());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Its control command.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Waits until a PBX is used as `state` says.
    pub fn wait_for_state(&self, pbx: Place, state: &str, limit: Duration) -> Result<()> {
        self.wait_for(pbx, state, limit, |is| is.state == state)
    }

    fn wait_for(
        &self,
        pbx: Place,
        what: &str,
        limit: Duration,
        holds: impl Fn(&Backend) -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            let is = self.control.backend(pbx)?;
            if holds(&is) {
                return Ok(());
            }
            if start.elapsed() > limit {
                bail!(
                    "{} is not {what} after {:.0} s but {is:?}:\n{}",
                    pbx.name(),
                    limit.as_secs_f32(),
                    self.process.last_words()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a PBX is used, and its first probe has ended: what the kernel program sends it has
    /// an address to go to.
    pub fn wait_until_probed(&self, pbx: Place, limit: Duration) -> Result<()> {
        self.wait_for(pbx, "active and probed", limit, |is| is.state == "active" && is.probed)
    }

    /// Ends it as an operator would, and waits for the end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.signal(libc::SIGTERM)?;
        self.process.wait(Duration::from_secs(15))
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.ended()? {
                bail!("sipline ended at once ({status}):\n{}", self.process.last_words());
            }
            match self.control.ask("stats") {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > Duration::from_secs(20) => {
                    return Err(error.context(format!(
                        "sipline does not answer:\n{}",
                        self.process.last_words()
                    )));
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// The control command of a daemon.
#[derive(Clone, Debug)]
pub struct Control {
    binary: PathBuf,
    socket: PathBuf,
}

impl Control {
    /// Of the daemon of a lab.
    pub(super) fn of(lab: &Lab) -> Result<Self> {
        Ok(Self { binary: binary()?, socket: socket(lab) })
    }

    /// Runs the control command as an operator would; returns what it prints with `--json`.
    pub fn command(&self, args: &[&str]) -> Result<Value> {
        let mut command = std::process::Command::new(&self.binary);
        command.arg("--socket").arg(&self.socket).args(args).arg("--json");
        let text = output(&mut command)?;
        serde_json::from_str(&text).with_context(|| format!("{args:?} did not print JSON: {text}"))
    }

    /// Asks on the socket itself, which costs no process: `backends` or `stats`.
    pub fn ask(&self, verb: &str) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.socket).context("no daemon answers")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        writeln!(stream, "{}", serde_json::json!({ "verb": verb }))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).context("the daemon does not answer")?;
        let mut answer: Value = serde_json::from_str(&line)
            .with_context(|| format!("`{verb}` was not answered with JSON: {line}"))?;
        if answer["ok"] != true {
            bail!("`{verb}` was refused: {}", answer["error"]);
        }
        Ok(answer["result"].take())
    }

    /// What a PBX is used for.
    pub fn backend(&self, pbx: Place) -> Result<Backend> {
        let answer = self.ask("backends")?;
        let view = answer["backends"]
            .as_array()
            .and_then(|list| list.iter().find(|view| view["id"] == pbx.name()))
            .with_context(|| format!("no {} in {answer}", pbx.name()))?;
        Ok(Backend {
            state: view["state"].as_str().with_context(|| format!("no state in {view}"))?.into(),
            reason: view["reason"].as_str().map(str::to_owned),
            probed: view["last_probe"].is_string(),
            slot: view["slot"]
                .as_u64()
                .and_then(|slot| slot.try_into().ok())
                .with_context(|| format!("no slot in {view}"))?,
            age: Duration::from_millis(
                view["for_ms"].as_u64().with_context(|| format!("no for_ms in {view}"))?,
            ),
        })
    }

    /// Who handled how many messages so far.
    pub fn totals(&self) -> Result<Totals> {
        let stats = self.ask("stats")?;
        let share = &stats["share"];
        let number = |name: &str| {
            share[name].as_u64().with_context(|| format!("no share.{name} in {stats}"))
        };
        let mode = stats["xdp"]["mode"].as_str();
        Ok(Totals {
            mode: mode.with_context(|| format!("no xdp.mode in {stats}"))?.to_owned(),
            kernel: number("kernel_messages")?,
            daemon: number("daemon_messages")?,
        })
    }
}

/// What a PBX is used for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Backend {
    /// `active`, `inactive`, `draining` or `disabled`.
    pub state: String,
    /// Why it is inactive.
    pub reason: Option<String>,
    /// Whether a probe of it has ended, well or not.
    pub probed: bool,
    /// Its slot in the kernel's tables.
    pub slot: u8,
    /// For how long it has been so.
    pub age: Duration,
}

/// Who handled how many messages.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Totals {
    /// How the kernel program is attached: `native`, `generic` or `off`.
    pub mode: String,
    /// Messages that the kernel program served alone.
    pub kernel: u64,
    /// Messages that came up to the daemon.
    pub daemon: u64,
}

impl Totals {
    /// What came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            mode: self.mode.clone(),
            kernel: self.kernel.saturating_sub(before.kernel),
            daemon: self.daemon.saturating_sub(before.daemon),
        }
    }
}

/// The `sipline` binary: `SIPLINE_BIN`, else where `cargo xtask build` puts it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SIPLINE_BIN") {
        return Ok(path.into());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let target = match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => root.join(dir),
        _ => root.join("target"),
    };
    let binary = target.join("release/sipline");
    if !binary.exists() {
        bail!("{} is not there: run `cargo xtask build`", binary.display());
    }
    Ok(binary)
}

fn socket(lab: &Lab) -> PathBuf {
    lab.dir().join("control.sock")
}

/// A file for each daemon of a lab: a restart must not overwrite what the first one said.
fn log_file(lab: &Lab) -> PathBuf {
    (1..)
        .map(|number| lab.dir().join(format!("sipline.{number}.log")))
        .find(|path| !path.exists())
        .unwrap_or_else(|| lab.dir().join("sipline.log"))
}

/// What `sipline users` answers as JSON to these arguments and this input, with the configuration of the lab's daemon.
///
/// # Panics
/// When it cannot be started or does not answer by JSON.
pub fn users(lab: &Lab, args: &[&str], input: &str) -> Value {
    let mut command = lab.command(Place::Proxy, binary().unwrap());
    command.args(["users", "--json", "--config"]).arg(lab.dir().join("sipline.toml"));
    command.arg("--socket").arg(lab.dir().join("control.sock")).args(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{args:?}: {error}: {}", String::from_utf8_lossy(&output.stdout))
    })
}
