//! The command line.
//!
//! What was asked for goes to standard output, as a table or with `--json` as one JSON object; errors go to
//! standard error, or with `--json` to standard output as `{"error": ...}`. The exit status is 0 when it was
//! done, 1 when it was not, 2 when the command line is wrong.

mod users;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

use crate::config::{AdminState, Config, ConfigError, DEFAULT_PATH, DEFAULT_SOCKET};
use crate::control::protocol::{Request, Response, SHOWN};
use crate::control::{client, human};
use crate::{fastpath, run};
use users::Users;

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
    /// Show what the kernel and the daemon have done.
    Stats,
    /// Read the configuration file again; a bad one changes nothing.
    Reload,
    /// Remove a program that a daemon left attached (xdp.keep).
    Detach(ConfigFile),
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
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
        Verb::Users { file, order } => {
            users::main(&file.config, &cli.socket, order.unwrap_or(Users::List), json)
        }
        Verb::Registrations { order } => ask(&cli.socket, &registrations(order), json),
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
        Backends::Add { id, address, weight, draining } => {
            let state = if draining { AdminState::Draining } else { AdminState::Active };
            Request::Add { id, address, weight, state }
        }
        Backends::Remove { id } => Request::Remove { id },
    }
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

fn ask(socket: &std::path::Path, request: &Request, json: bool) -> Result<bool> {
    let Response { result, error, .. } = client::ask(socket, request)?;
    if let Some(outcome) = result {
        if json {
            print(&serde_json::to_value(&outcome)?);
        } else {
            say(&human::outcome(&outcome));
        }
        return Ok(true);
    }
    let Some(failure) = error else { anyhow::bail!("the daemon's answer says nothing") };
    if json {
        print(&json!({ "error": failure.message, "problems": failure.problems }));
    } else {
        eprintln!("sipline: {}", failure.message);
    }
    Ok(false)
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
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
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
            "stats --json",
            "reload",
            "detach --config x",
        ] {
            let words = std::iter::once("sipline").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in ["", "backends add pbx3", "backends add a 1.2.3.4:5 --weight 17", "walk"] {
            let words = std::iter::once("sipline").chain(line.split_terminator(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
