//! The two proxies, set up to do the same.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sipline_tests::fixtures::world::KEY;
use sipline_tests::lab::{
    self, Database, Engine, INTERFACES, Lab, Mode, PORT, PROXY, Place, Process,
};

use super::generator::{password, user_name};
use super::usage::Tree;
use super::{GENERATOR_CPU, PROXY_CPU};
use crate::{machine, wire};

/// A proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Proxy {
    /// Ours.
    Sipline,
    /// Debian's.
    Kamailio,
}

/// What is switched on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Setting {
    /// Phones' calls are challenged.
    pub(super) challenge: bool,
    /// Registrations go to the PBXs too.
    pub(super) fork: bool,
    /// Calls go to the PBXs.
    pub(super) calls: bool,
    /// How the kernel half of sipline is attached.
    pub(super) mode: Mode,
    /// sipline watches over calls that the kernel steers (`dispatch.shadow`).
    pub(super) shadow: bool,
    /// Kamailio passes calls on without transactions.
    pub(super) stateless: bool,
    /// There is an interface where strangers are: [`STRANGERS`].
    pub(super) strangers: bool,
}

impl Setting {
    /// Daemons alone, and nothing switched on.
    pub(super) const OFF: Self = Self {
        challenge: false,
        fork: false,
        calls: false,
        mode: Mode::Off,
        shadow: true,
        stateless: false,
        strangers: false,
    };
}

/// The interface of strangers.
pub(super) const STRANGERS: &str = "st";

/// How Kamailio is tuned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    /// Processes that receive.
    pub(super) children: u32,
    /// Whether registrations go to the database too.
    pub(super) write_behind: bool,
}

/// A running proxy. Dropping it kills it.
pub(super) struct Server {
    process: Process,
    tree: Tree,
    /// Kernel threads that work for the proxy's interfaces.
    threads: Vec<i32>,
}

/// The file of Kamailio's configuration.
const KAMAILIO: &str = include_str!("../../kamailio.cfg");
/// The same where it keeps no transactions.
const KAMAILIO_STATELESS: &str = include_str!("../../kamailio-stateless.cfg");
/// The database of Kamailio, where the users of both are.
const DATABASE: &str = "sipline_bench";
/// The database that sipline writes to.
const OWN: &str = "sipline";

impl Server {
    /// Starts a proxy on its CPU.
    pub(super) fn start(
        lab: &Lab,
        database: &Database,
        proxy: Proxy,
        setting: Setting,
        tuning: Tuning,
        threads: &[i32],
    ) -> Result<Self> {
        let mut command = match proxy {
            Proxy::Sipline => sipline(lab, database, setting)?,
            Proxy::Kamailio => kamailio(lab, database, setting, tuning)?,
        };
        detached(lab)?;
        let log = lab.dir().join(format!("{proxy:?}.log"));
        // What it starts is where it is.
        machine::pin(0, PROXY_CPU)?;
        let process = Process::start(&format!("{proxy:?}"), &mut command, &log);
        machine::pin(0, GENERATOR_CPU)?;
        let process = process?;
        let tree = Tree::below(process.pid(), PROXY_CPU)?;
        Ok(Self { tree, process, threads: threads.to_vec() })
    }

    /// Looks again which processes there are: they have all started now.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.check()?;
        self.tree = Tree::below(self.process.pid(), PROXY_CPU)?;
        Ok(())
    }

    /// Ends it: there is room for another one.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Fails when it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.process.ended()? {
            bail!("the proxy has ended ({status}):\n{}", self.process.last_words());
        }
        Ok(())
    }

    /// What it printed last.
    pub(super) fn last_words(&self) -> String {
        self.process.last_words()
    }

    /// CPU time so far: of the processes, and of the kernel threads that work for them.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let kernel = self.threads.iter().map(|thread| wire::cpu_time(*thread));
        Ok(self.tree.cpu()? + kernel.sum::<Result<Duration>>()?)
    }

    pub(super) fn memory(&self) -> Result<u64> {
        self.tree.memory()
    }
}

/// Takes away what a killed daemon has left in the kernel, where it would go on with the work of the next proxy.
fn detached(lab: &Lab) -> Result<()> {
    let pins = lab.pins();
    if pins.exists() {
        fs::remove_dir_all(&pins).with_context(|| format!("cannot empty {}", pins.display()))?;
    }
    // The kernel lets go of it a moment later.
    for _ in 0..100 {
        let links = lab.run(Place::Proxy, "ip", &["-o", "link", "show"])?;
        if !links.contains("xdp") {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("there is still an XDP program on the proxy's interfaces")
}

fn kamailio(lab: &Lab, database: &Database, setting: Setting, tuning: Tuning) -> Result<Command> {
    let dir = lab.dir();
    let config = dir.join("kamailio.cfg");
    let text = if setting.stateless { KAMAILIO_STATELESS } else { KAMAILIO };
    fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
    let list = dir.join("dispatcher.list");
    let pbxs = [Place::Pbx1, Place::Pbx2].map(|pbx| format!("1 sip:{}:{PORT}\n", pbx.address()));
    fs::write(&list, pbxs.concat()).with_context(|| format!("cannot write {}", list.display()))?;
    // A namespace of process numbers: when the first one dies, by whatever, so do its children.
    let mut command = lab.command(Place::Proxy, "unshare");
    command.args(["--pid", "--fork", "--kill-child", "kamailio"]);
    command.args(["-DD", "-E", "-x", "tlsf", "-X", "tlsf", "-m", "1024"]);
    command.arg("-f").arg(&config).arg("-Y").arg(dir).arg("-n").arg(tuning.children.to_string());
    command.arg("-l").arg(format!("udp:{PROXY}:{PORT}"));
    // As much room for datagrams as it can get.
    command.args(["-b", "16777216"]);
    let mut define = |text: String| {
        command.arg("-A").arg(text);
    };
    define(format!("PBX1=\"{}\"", Place::Pbx1.address()));
    define(format!("PBX2=\"{}\"", Place::Pbx2.address()));
    define(format!("DISPATCHER_LIST=\"{}\"", list.display()));
    define(format!("DATABASE=\"mysql://root@localhost/{DATABASE}\""));
    if tuning.write_behind {
        define("WRITE_BEHIND".to_owned());
    }
    if setting.fork {
        define("FORK".to_owned());
    }
    if !setting.challenge {
        define("TRUSTED".to_owned());
    }
    command.env("MYSQL_UNIX_PORT", socket(database)?);
    Ok(command)
}

fn sipline(lab: &Lab, database: &Database, setting: Setting) -> Result<Command> {
    let dir = lab.dir().display();
    let Setting { mode, shadow, .. } = setting;
    let mut interfaces = INTERFACES.to_vec();
    if setting.strangers {
        interfaces.push(STRANGERS);
    }
    let pins = if mode == Mode::Off { String::new() } else { lab.pins().display().to_string() };
    // With it, live frames can be made of what it will say.
    let [high, low] = KEY;
    let mut text = format!(
        "[sip]\nlisten = [\"{PROXY}:{PORT}\"]\nkey = \"{high:016x}{low:016x}\"\n\
         [gate]\nexempt = [\"10.10.1.0/24\"]\n\
         [probe]\ninterval = \"15s\"\n\
         [xdp]\nmode = \"{mode}\"\ninterfaces = {interfaces:?}\npin = \"{pins}\"\n\
         [dispatch]\nshadow = {shadow}\n\
         [control]\nsocket = \"{dir}/control.sock\"\n\
         [log]\nlevel = \"warn\"\n"
    );
    if setting.challenge {
        let url = database.url(Some(OWN));
        // Each registration is told to the PBXs at once, as Kamailio does it, and no records are kept.
        text.push_str(&format!(
            "[accounting]\nmax_calls = 0\n[registrar]\nfork_rate = 100000\njitter = 0\n[auth]\n\
             [store]\nurl = \"{url}\"\ntable = {{ table = \"{DATABASE}.sipusers\", \
             username = \"username\", password = \"sippasswd\" }}\n"
        ));
    } else {
        text.push_str("[trust]\nnetworks = [\"10.10.1.0/24\"]\n");
    }
    // One that is disabled is not told of registrations.
    let state = if setting.fork || setting.calls { "active" } else { "disabled" };
    for pbx in [Place::Pbx1, Place::Pbx2] {
        let (id, address) = (pbx.name(), pbx.address());
        text.push_str(&format!(
            "[[pbx]]\nid = \"{id}\"\naddress = \"{address}:{PORT}\"\nstate = \"{state}\"\n"
        ));
    }
    let config = lab.dir().join("sipline.toml");
    fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
    let mut command = lab.command(Place::Proxy, lab::binary()?);
    command.arg("run").arg("--config").arg(&config);
    Ok(command)
}

/// Starts MariaDB with the users in a table as Asterisk reads it, and Kamailio's tables.
pub(super) fn database(users: u32) -> Result<Database> {
    let database = Database::start(Engine::MariaDb)?;
    let mut text = format!("CREATE DATABASE {DATABASE};\nUSE {DATABASE};\n");
    text.push_str(
        "CREATE TABLE sipusers (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(80) NOT NULL, \
         username VARCHAR(80) NOT NULL, sippasswd VARCHAR(80) NOT NULL, UNIQUE KEY (username));\n",
    );
    for first in (0..users).step_by(1000) {
        let rows: Vec<String> = (first..users.min(first + 1000))
            .map(|user| {
                let name = user_name(user);
                format!("('{name}','{name}','{}')", password(user))
            })
            .collect();
        let rows = rows.join(",");
        text.push_str(&format!("INSERT INTO sipusers (name,username,sippasswd) VALUES {rows};\n"));
    }
    // Kamailio wants its own tables as its package makes them.
    for file in ["standard-create.sql", "usrloc-create.sql"] {
        let path = Path::new("/usr/share/kamailio/mysql").join(file);
        let sql =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.push_str(&sql);
    }
    execute(&database, &text)?;
    Ok(database)
}

/// Forgets all registrations.
pub(super) fn forget_registrations(database: &Database) -> Result<()> {
    execute(
        database,
        &format!(
            "DELETE FROM {DATABASE}.location; DROP DATABASE IF EXISTS {OWN}; CREATE DATABASE {OWN};\n"
        ),
    )
}

fn execute(database: &Database, sql: &str) -> Result<()> {
    let file = Path::new(&socket(database)?).with_file_name("bench.sql");
    fs::write(&file, sql).with_context(|| format!("cannot write {}", file.display()))?;
    let input = fs::File::open(&file).with_context(|| format!("no {}", file.display()))?;
    let output = Command::new("mariadb")
        .args(["--no-defaults", "--user=root"])
        .arg(format!("--socket={}", socket(database)?))
        .stdin(input)
        .output()
        .context("cannot start `mariadb`")?;
    if !output.status.success() {
        bail!("the database refuses: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn socket(database: &Database) -> Result<String> {
    let url = database.url(None);
    let (_, socket) = url.rsplit_once("socket=").with_context(|| format!("no socket in {url}"))?;
    Ok(socket.to_owned())
}
