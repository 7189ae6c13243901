//! `sipline users`: the users in the store, without the daemon. One that runs is told to look again.

use std::io::{BufRead, IsTerminal};
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::json;

use super::{print, say};
use crate::config::Config;
use crate::control::client;
use crate::control::protocol::Request;
use crate::core::authenticator::Realm;
use crate::core::digest::{Ha1, Hash};
use crate::store::{Credentials, NewUser, Store};

/// The longest password, in bytes.
const LONGEST_PASSWORD: usize = 256;

#[derive(Debug, Subcommand)]
pub(super) enum Users {
    /// Show them (the default).
    List,
    /// Add one. The password is asked for, or read from standard input.
    Add {
        /// user@domain
        user: String,
    },
    /// Give one another password. It is asked for, or read from standard input.
    Passwd {
        /// user@domain
        user: String,
    },
    /// Remove one. His registrations last until they end.
    Remove {
        /// user@domain
        user: String,
    },
}

/// Says whether it was done.
pub(super) fn main(file: &Path, socket: &Path, order: Users, json: bool) -> Result<bool> {
    let Some((config, settings)) = super::with_store(file, "users", json)? else {
        return Ok(false);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = Store::new(&settings)?;
        store.prepare().await?;
        match order {
            Users::List => list(&store, json).await,
            Users::Add { user } => {
                let new = new_user(&user, &config)?;
                store.add_user(&new).await.with_context(|| user.clone())?;
                tell(&user, socket, "added", json);
                Ok(true)
            }
            Users::Passwd { user } => {
                let new = new_user(&user, &config)?;
                if !store.change_user(&new).await? {
                    bail!("there is no user {user}");
                }
                tell(&user, socket, "changed", json);
                Ok(true)
            }
            Users::Remove { user } => {
                let (name, domain) = split(&user)?;
                if !store.remove_user(name, domain).await? {
                    bail!("there is no user {user}");
                }
                tell(&user, socket, "removed", json);
                Ok(true)
            }
        }
    })
}

async fn list(store: &Store, json: bool) -> Result<bool> {
    let mut users = Vec::new();
    store.list_users(|user| users.push(user)).await?;
    if json {
        let list = users.iter().map(|user| {
            json!({ "user": user.username, "domain": user.domain, "secrets": secrets(user) })
        });
        print(&json!({ "users": list.collect::<Vec<_>>() }));
    } else {
        for user in &users {
            let domain = user.domain.as_deref().unwrap_or("*");
            say(&format!("{}@{domain}  {}\n", user.username, secrets(user).join(", ")));
        }
    }
    Ok(true)
}

/// What there is of a user's secrets, by name.
fn secrets(user: &Credentials) -> Vec<&'static str> {
    let all = [
        ("password", user.password.is_some()),
        ("ha1", user.ha1.is_some()),
        ("ha1b", user.ha1b.is_some()),
        ("ha1_sha256", user.ha1_sha256.is_some()),
    ];
    all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

fn new_user(user: &str, config: &Config) -> Result<NewUser> {
    let (name, domain) = split(user)?;
    let domain = domain.to_ascii_lowercase();
    let password = read_password(user)?;
    let realm = match &config.auth.rules.realm {
        Realm::Domain => domain.as_str(),
        Realm::Fixed(realm) => realm,
    };
    Ok(NewUser {
        username: name.to_owned(),
        ha1: Ha1::new(Hash::Md5, name, realm, &password).hex(),
        ha1_sha256: Ha1::new(Hash::Sha256, name, realm, &password).hex(),
        domain,
    })
}

fn split(user: &str) -> Result<(&str, &str)> {
    let parts =
        user.rsplit_once('@').filter(|(name, domain)| !name.is_empty() && !domain.is_empty());
    parts.with_context(|| format!("\"{user}\" is no user: write user@domain"))
}

fn read_password(user: &str) -> Result<String> {
    let password = if std::io::stdin().is_terminal() {
        let password = rpassword::prompt_password(format!("password of {user}: "))?;
        if rpassword::prompt_password("again: ")? != password {
            bail!("they differ");
        }
        password
    } else {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    if password.is_empty() || password.len() > LONGEST_PASSWORD {
        bail!("a password has 1 to {LONGEST_PASSWORD} bytes");
    }
    Ok(password)
}

/// Says that it is done, and has the daemon look again.
fn tell(user: &str, socket: &Path, what: &str, json: bool) {
    let told = client::ask(socket, &Request::Forget { user: user.to_owned() });
    let told = told.is_ok_and(|response| response.ok);
    if json {
        print(&json!({ what: user, "daemon_told": told }));
    } else {
        say(&format!("{user} is {what}\n"));
        if !told {
            say(
                "no daemon was told: one that runs may go by what it knew, for as long as auth.cache\n",
            );
        }
    }
}
