//! The command line.
//!
//! What was asked for goes to standard output, as a table or with `--json` as one JSON object; errors go to
//! standard error, or with `--json` to standard output as `{"error": ...}`. The exit status is 0 when it was
//! done, 1 when it was not, 2 when the command line is wrong.

mod cdr;
mod users;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::config::{
    AdminState, Config, ConfigError, DEFAULT_PATH, DEFAULT_SOCKET, PbxConfig, PbxLimits, Problem,
};
use crate::control::protocol::{Request, Response, SHOWN};
use crate::control::{client, human};
use crate::store::Settings;
use crate::{fastpath, import, run};
use cdr::Records;
use users::Users;

/// The longest ban that has an end, in seconds: ten years.
const LONGEST_BAN: u64 = 3650 * 86_400;

/// SIP proxy and load balancer with an XDP fast path.
#[derive(Debug, Parser)]
#[command(name = "sipline", version, about, propagate_version = true)]
struct Cli {
    /// The control socket of the daemon.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Answer with JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon.
    Run(ConfigFile),
    /// Check a configuration file.
    Check(ConfigFile),
    /// Show or change the PBXs.
    Backends {
        #[command(subcommand)]
        order: Option<Backends>,
    },
    /// Show or change the users, in the store itself: the daemon need not run.
    Users {
        #[command(flatten)]
        file: ConfigFile,
        #[command(subcommand)]
        order: Option<Users>,
    },
    /// Show or end registrations.
    Registrations {
        #[command(subcommand)]
        order: Option<Registrations>,
    },
    /// Show calls that go on and have a record.
    Calls {
        #[command(subcommand)]
        order: Option<Calls>,
    },
    /// Show or change who is banned.
    Bans {
        #[command(subcommand)]
        order: Option<Bans>,
    },
    /// Show records of calls that are over, from the store itself: the daemon need not run.
    Cdr(Records),
    /// Show what the kernel and the daemon have done.
    Stats,
    /// Read the configuration file again; a bad one changes nothing.
    Reload,
    /// Remove a program that a daemon left attached (xdp.keep).
    Detach(ConfigFile),
    /// Take over what another proxy has.
    Import {
        #[command(subcommand)]
        from: Import,
    },
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Import {
    /// The list of Kamailio's module dispatcher, as [[pbx]] sections for the configuration file.
    KamailioDispatcher {
        /// The list.
        file: PathBuf,
        /// Take the destinations of this set.
        #[arg(long, allow_negative_numbers = true)]
        set: Option<i64>,
        /// Add them to the daemon that runs, until it ends.
        #[arg(long)]
        apply: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Registrations {
    /// Show them (the default).
    List {
        /// How many at most.
        #[arg(long, default_value_t = SHOWN)]
        limit: usize,
    },
    /// Show those of one user, and how he is at each PBX.
    Show {
        /// user@domain
        user: String,
    },
    /// End those of a user, in our place and at the PBXs.
    Remove {
        /// user@domain
        user: String,
        /// Only this contact: its URI, as `list` shows it.
        contact: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum Calls {
    /// Show them (the default).
    List {
        /// How many at most.
        #[arg(long, default_value_t = SHOWN)]
        limit: usize,
    },
    /// Show one.
    Show {
        /// Its id, as `list` shows it, or its Call-ID.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum Bans {
    /// Show them (the default).
    List {
        /// How many at most.
        #[arg(long, default_value_t = SHOWN)]
        limit: usize,
    },
    /// Hear nothing of a network, until the daemon ends.
    Add {
        /// A network or an address, as 198.51.100.0/24, 203.0.113.5 or 2001:db8::/64.
        #[arg(value_parser = network)]
        network: IpNet,
        /// Only for so long, as 30m, 12h or 7d.
        #[arg(long = "for", value_name = "TIME", value_parser = period)]
        period: Option<Duration>,
        /// Why, for others who look at it.
        #[arg(long, default_value = "")]
        note: String,
    },
    /// End a ban.
    Remove {
        /// The network, as `list` shows it.
        #[arg(value_parser = network)]
        network: IpNet,
    },
}

#[derive(Debug, Subcommand)]
enum Backends {
    /// Show them (the default).
    List,
    /// No new calls for a PBX; its calls go on.
    Drain {
        /// Its name.
        id: String,
    },
    /// Use a PBX again.
    Enable {
        /// Its name.
        id: String,
    },
    /// Do not use a PBX, and do not probe it.
    Disable {
        /// Its name.
        id: String,
    },
    /// Add a PBX until the daemon ends.
    Add {
        /// Its name.
        id: String,
        /// Where it listens, as 192.0.2.11:5060 or [2001:db8::11]:5060.
        address: SocketAddr,
        /// Its share of new calls.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
        weight: u8,
        /// Start it without new calls.
        #[arg(long)]
        draining: bool,
        /// Calls at a time; 0 is no limit.
        #[arg(long, default_value_t = 0)]
        max_calls: u32,
        /// New calls in a second; 0 is no limit.
        #[arg(long, default_value_t = 0)]
        calls_per_second: u32,
    },
    /// Remove a PBX.
    Remove {
        /// Its name.
        id: String,
    },
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    let done = match cli.verb {
        Verb::Run(file) => return daemon(&file, json),
        Verb::Check(file) => check(&file, json),
        Verb::Detach(file) => detach(&file, json),
        Verb::Import { from } => take_over(&cli.socket, from, json),
        Verb::Users { file, order } => {
            users::main(&file.config, &cli.socket, order.unwrap_or(Users::List), json)
        }
        Verb::Registrations { order } => ask(&cli.socket, &registrations(order), json),
        Verb::Calls { order } => ask(&cli.socket, &calls(order), json),
        Verb::Bans { order } => ask(&cli.socket, &bans(order), json),
        Verb::Cdr(records) => cdr::main(records, json),
        Verb::Stats => ask(&cli.socket, &Request::Stats, json),
        Verb::Reload => ask(&cli.socket, &Request::Reload, json),
        Verb::Backends { order } => {
            ask(&cli.socket, &backends(order.unwrap_or(Backends::List)), json)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error, json),
    }
}

fn daemon(file: &ConfigFile, json: bool) -> ExitCode {
    let config = match Config::load(&file.config) {
        Ok(config) => config,
        Err(error) => {
            tell_problems(&error, json);
            return ExitCode::FAILURE;
        }
    };
    match run::run(&file.config, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, json),
    }
}

fn check(file: &ConfigFile, json: bool) -> Result<bool> {
    match Config::load(&file.config) {
        Ok(config) => {
            let shown = file.config.display();
            if json {
                print(&json!({ "ok": true, "file": file.config, "pbxs": config.pbx.len() }));
            } else {
                say(&format!("{shown}: good, {} PBXs\n", config.pbx.len()));
            }
            Ok(true)
        }
        Err(error) => {
            tell_problems(&error, json);
            Ok(false)
        }
    }
}

fn detach(file: &ConfigFile, json: bool) -> Result<bool> {
    let config = match Config::load(&file.config) {
        Ok(config) => config,
        Err(error) => {
            tell_problems(&error, json);
            return Ok(false);
        }
    };
    let interfaces = fastpath::detach(&config.xdp)?;
    if json {
        print(&json!({ "detached": interfaces }));
    } else if interfaces.is_empty() {
        say("nothing was attached\n");
    } else {
        say(&format!("detached from {}\n", interfaces.join(", ")));
    }
    Ok(true)
}

fn backends(order: Backends) -> Request {
    match order {
        Backends::List => Request::Backends,
        Backends::Drain { id } => Request::Drain { id },
        Backends::Enable { id } => Request::Enable { id },
        Backends::Disable { id } => Request::Disable { id },
        Backends::Add { id, address, weight, draining, max_calls, calls_per_second } => {
            let state = if draining { AdminState::Draining } else { AdminState::Active };
            Request::Add { id, address, weight, state, max_calls, calls_per_second }
        }
        Backends::Remove { id } => Request::Remove { id },
    }
}

fn take_over(socket: &Path, from: Import, json: bool) -> Result<bool> {
    let Import::KamailioDispatcher { file, set, apply } = from;
    let imported = match read_list(&file, set) {
        Ok(imported) => imported,
        Err(error) => {
            tell_problems(&error, json);
            return Ok(false);
        }
    };
    if apply {
        add_all(socket, &imported.pbxs)?;
        for note in imported.notes {
            eprintln!("sipline: {note}");
        }
        return ask(socket, &Request::Backends, json);
    }
    if json {
        let pbxs = imported.pbxs.iter().map(|pbx| {
            json!({
                "id": pbx.id,
                "address": pbx.address,
                "weight": pbx.weight,
                "state": pbx.state,
                "max_calls": pbx.limits.max_calls,
            })
        });
        print(&json!({ "pbxs": pbxs.collect::<Vec<_>>(), "notes": imported.notes }));
    } else {
        say(&import::toml(&imported));
    }
    Ok(true)
}

fn read_list(file: &Path, set: Option<i64>) -> Result<import::Imported, ConfigError> {
    match std::fs::read_to_string(file) {
        Ok(text) => import::kamailio_dispatcher(file, &text, set),
        Err(error) => {
            let reason = format!("cannot be read: {error}");
            let problems = vec![Problem { line: 0, column: 0, reason }];
            Err(ConfigError { file: file.to_owned(), problems })
        }
    }
}

/// One after another; the first that is refused ends it, and what was added stays.
fn add_all(socket: &Path, pbxs: &[PbxConfig]) -> Result<()> {
    for (done, pbx) in pbxs.iter().enumerate() {
        let PbxConfig { id, address, weight, state, limits } = pbx.clone();
        let PbxLimits { max_calls, calls_per_second } = limits;
        let request = Request::Add { id, address, weight, state, max_calls, calls_per_second };
        let so_far = || {
            let (id, count) = (&pbx.id, pbxs.len());
            format!("{id} at {address} (of {count} PBXs {done} were added)")
        };
        let response = client::ask(socket, &request).with_context(so_far)?;
        if let Some(failure) = response.error {
            bail!("{}: {}", so_far(), failure.message);
        }
    }
    Ok(())
}

fn registrations(order: Option<Registrations>) -> Request {
    match order {
        None => Request::Registrations { user: None, limit: SHOWN },
        Some(Registrations::List { limit }) => Request::Registrations { user: None, limit },
        Some(Registrations::Show { user }) => {
            Request::Registrations { user: Some(user), limit: SHOWN }
        }
        Some(Registrations::Remove { user, contact }) => Request::Unregister { user, contact },
    }
}

fn calls(order: Option<Calls>) -> Request {
    match order {
        None => Request::Calls { id: None, limit: SHOWN },
        Some(Calls::List { limit }) => Request::Calls { id: None, limit },
        Some(Calls::Show { id }) => Request::Calls { id: Some(id), limit: SHOWN },
    }
}

fn bans(order: Option<Bans>) -> Request {
    match order {
        None => Request::Bans { limit: SHOWN },
        Some(Bans::List { limit }) => Request::Bans { limit },
        Some(Bans::Add { network, period, note }) => {
            Request::Ban { network, seconds: period.map(|period| period.as_secs()), note }
        }
        Some(Bans::Remove { network }) => Request::Unban { network },
    }
}

/// A network, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    let one = text.parse::<IpAddr>().map(IpNet::from).ok();
    let net = one.or_else(|| text.parse().ok());
    net.ok_or_else(|| "write 198.51.100.0/24, 2001:db8::/64 or one address".to_owned())
}

/// A time in seconds, minutes, hours or days.
fn period(text: &str) -> Result<Duration, String> {
    let bad = || "write a whole number and s, m, h or d, as 30m".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let each = match &text[digits..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    let seconds = number.checked_mul(each).filter(|seconds| (1..=LONGEST_BAN).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| "from 1s to 3650d".to_owned())
}

fn ask(socket: &Path, request: &Request, json: bool) -> Result<bool> {
    let Response { result, error, .. } = client::ask(socket, request)?;
    if let Some(outcome) = result {
        if json {
            print(&serde_json::to_value(&outcome)?);
        } else {
            say(&human::outcome(&outcome));
        }
        return Ok(true);
    }
    let Some(failure) = error else { bail!("the daemon's answer says nothing") };
    if json {
        print(&json!({ "error": failure.message, "problems": failure.problems }));
    } else {
        eprintln!("sipline: {}", failure.message);
    }
    Ok(false)
}

/// The configuration with its store, for verbs that work on that themselves; `kept` are what they look for there. `None`
/// if the file is wrong, which has been told.
fn with_store(file: &Path, kept: &str, json: bool) -> Result<Option<(Config, Settings)>> {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => {
            tell_problems(&error, json);
            return Ok(None);
        }
    };
    let Some(store) = &config.store else {
        bail!("{} has no [store], where {kept} are kept", file.display());
    };
    let settings = Settings { url: store.url.clone(), users: store.users.clone() };
    Ok(Some((config, settings)))
}

fn tell_problems(error: &ConfigError, json: bool) {
    if json {
        print(&json!({ "ok": false, "file": error.file, "problems": error.problems }));
    } else {
        eprintln!("{error}");
    }
}

fn fail(error: &anyhow::Error, json: bool) -> ExitCode {
    if json {
        print(&json!({ "error": format!("{error:#}") }));
    } else {
        eprintln!("sipline: {error:#}");
    }
    ExitCode::FAILURE
}

fn print(value: &Value) {
    say(&format!("{value:#}\n"));
}

/// To standard output; who does not want to read on (`| head`) is no error.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Instant;

    use clap::CommandFactory;
    use tokio::task::LocalSet;

    use super::*;
    use crate::config::Probe;
    use crate::control::protocol::{self, Outcome};
    use crate::control::server::Server;
    use crate::core::dispatcher::Dispatcher;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// A daemon's end of the control socket that adds what it is told to real PBXs.
    async fn with_daemon<T: Send + 'static>(
        socket: &Path,
        order: impl FnOnce() -> T + Send + 'static,
    ) -> (T, Vec<PbxConfig>) {
        let local = "192.0.2.1:5060".parse().unwrap();
        let dispatcher = Rc::new(RefCell::new(Dispatcher::new(&[local], Probe::default())));
        let added = Rc::new(RefCell::new(Vec::new()));
        let (pbxs, all) = (dispatcher.clone(), added.clone());
        let answer = move |request| {
            if let Request::Add { id, address, weight, state, max_calls, calls_per_second } =
                request
            {
                let limits = PbxLimits { max_calls, calls_per_second };
                let pbx = PbxConfig { id, address, weight, state, limits };
                if let Err(refusal) = pbxs.borrow_mut().add(Instant::now(), &pbx) {
                    return Response::failed(refusal.to_string());
                }
                all.borrow_mut().push(pbx);
            }
            Response::done(Outcome::Backends(protocol::Backends { backends: Vec::new() }))
        };
        let done = LocalSet::new()
            .run_until(async {
                let server = Server::bind(socket).unwrap();
                let answer: Rc<crate::control::server::Answer> = Rc::new(move |request| {
                    let response = answer(request);
                    Box::pin(async { response })
                });
                let task = tokio::task::spawn_local(async move { server.serve(answer).await });
                let done = tokio::task::spawn_blocking(order).await.unwrap();
                task.abort();
                let _ = task.await;
                done
            })
            .await;
        let added = added.take();
        (done, added)
    }

    #[tokio::test]
    async fn imported_pbxs_are_added() {
        let dir = std::env::temp_dir().join(format!("sipline-import-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (socket, file) = (dir.join("control.sock"), dir.join("dispatcher.list"));
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            read_list(&file, Some(1))
        };
        let add = |pbxs: &[PbxConfig]| {
            let (socket, pbxs) = (socket.clone(), pbxs.to_vec());
            move || add_all(&socket, &pbxs)
        };
        let good = "1 sip:192.0.2.11 0 0 weight=50;maxload=9\n2 sip:h\n1 sip:192.0.2.12 4\n";
        let pbxs = read(good).unwrap().pbxs;
        let (done, added) = with_daemon(&socket, add(&pbxs)).await;
        done.unwrap();
        assert_eq!(added, pbxs);
        assert_eq!((added.len(), added[1].state), (2, AdminState::Disabled));
        // There is no address of ours to reach the second one from.
        let mixed = "1 sip:192.0.2.11\n1 sip:[2001:db8::1]\n1 sip:192.0.2.12\n";
        let (done, added) = with_daemon(&socket, add(&read(mixed).unwrap().pbxs)).await;
        let error = done.unwrap_err().to_string();
        let place = "pbx2 at [2001:db8::1]:5060 (of 3 PBXs 1 were added): ";
        assert!(error.starts_with(place) && error.contains("no IPv6 address"), "{error}");
        assert_eq!(added.len(), 1);
        // A daemon or a list that is not there.
        let alone = add(&pbxs)().unwrap_err();
        assert!(format!("{alone:#}").contains("no daemon answers"), "{alone:#}");
        std::fs::remove_dir_all(&dir).unwrap();
        let gone = read_list(&file, None).unwrap_err().to_string();
        assert!(gone.contains("dispatcher.list: cannot be read"), "{gone}");
    }

    #[test]
    fn every_verb_reads() {
        for line in [
            "run --config x",
            "check --config x --json",
            "backends",
            "backends list --json",
            "backends drain pbx1",
            "--socket /tmp/x backends enable pbx1",
            "backends disable pbx1 --socket /tmp/x",
            "backends add pbx3 192.0.2.13:5060 --weight 2",
            "backends add pbx4 [2001:db8::13]:5060",
            "backends remove pbx3",
            "users --config x",
            "users list --config x --json",
            "users add anna@example.com",
            "users passwd anna@example.com --config x",
            "users remove anna@example.com",
            "registrations",
            "registrations list --limit 5",
            "registrations show anna@example.com --json",
            "registrations remove anna@example.com sip:anna@192.0.2.7",
            "calls",
            "calls list --limit 5 --json",
            "calls show 1700000000.1-00c0ffee",
            "bans",
            "bans list --limit 5 --json",
            "bans add 203.0.113.5",
            "bans add 2001:db8::/64 --for 12h --note rude",
            "bans remove 198.51.100.0/24",
            "cdr --config x",
            "cdr --from 2h --to 2026-01-31 --src 101 --dst 200 --limit 5 --csv",
            "cdr --json",
            "stats --json",
            "reload",
            "detach --config x",
            "import kamailio-dispatcher dispatcher.list",
            "import kamailio-dispatcher x --set -1 --apply --json",
            "backends add pbx3 192.0.2.13:5060 --max-calls 30 --calls-per-second 5",
        ] {
            let words = std::iter::once("sipline").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "",
            "backends add pbx3",
            "backends add a 1.2.3.4:5 --weight 17",
            "import kamailio-dispatcher",
            "import x",
            "bans add 203.0.113.5 --for 0s",
            "bans add 203.0.113.5 --for 12",
            "bans add somebody",
            "cdr --from yesterday",
            "cdr --csv --json",
            "walk",
        ] {
            let words = std::iter::once("sipline").chain(line.split_terminator(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
