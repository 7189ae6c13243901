//! Who is compared as a whole, and the lab where all that a proxy costs is on one CPU.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sipline_tests::lab::{INTERFACES, Lab, Mode, Place};

use super::server::{Proxy, STRANGERS, Setting};
use super::{GENERATOR_CPU, PROXY_CPU};
use crate::{machine, wire};

/// A proxy, and how it is set up.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum Contender {
    /// sipline with XDP in the driver.
    Native,
    /// The same, and nobody watches over calls that the kernel steers.
    NativeUnwatched,
    /// sipline with XDP after the driver.
    Generic,
    /// sipline without XDP.
    Off,
    /// Kamailio with transactions.
    Kamailio,
    /// Kamailio without.
    KamailioStateless,
}

impl Contender {
    /// Its name for people.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Native => "sipline, XDP native",
            Self::NativeUnwatched => "sipline, XDP native, no shadows",
            Self::Generic => "sipline, XDP generic",
            Self::Off => "sipline, XDP off",
            Self::Kamailio => "Kamailio",
            Self::KamailioStateless => "Kamailio, stateless",
        }
    }

    /// The program.
    pub(super) const fn proxy(self) -> Proxy {
        match self {
            Self::Native | Self::NativeUnwatched | Self::Generic | Self::Off => Proxy::Sipline,
            Self::Kamailio | Self::KamailioStateless => Proxy::Kamailio,
        }
    }

    /// How it is set up to pass calls of a trusted network.
    pub(super) const fn setting(self, strangers: bool) -> Setting {
        let mode = match self {
            Self::Native | Self::NativeUnwatched => Mode::Native,
            Self::Generic => Mode::Generic,
            _ => Mode::Off,
        };
        Setting {
            calls: true,
            mode,
            shadow: !matches!(self, Self::NativeUnwatched),
            stateless: matches!(self, Self::KamailioStateless),
            strangers,
            ..Setting::OFF
        }
    }
}

/// Gives each interface a thread of its own for what it receives: those of the proxy's on the proxy's CPU, those of
/// its peers on the generator's. So a packet that the generator sends costs the proxy's CPU from the moment when it lies
/// in the interface's ring, as from a card's, and one that the proxy sends costs it up to the peer's ring. Gives the
/// threads of the proxy's interfaces.
pub(super) fn thread_interfaces(lab: &Lab, strangers: bool) -> Result<Vec<i32>> {
    let before = wire::napi_threads()?;
    for place in Place::ALL {
        let interfaces = if place == Place::Proxy { &INTERFACES[..] } else { &["eth0"][..] };
        for interface in interfaces {
            set_threaded(&lab.namespace_file(place), interface)?;
        }
    }
    if strangers {
        set_threaded(&lab.namespace_file(Place::Proxy), STRANGERS)?;
        std::thread::scope(|scope| {
            let own = scope.spawn(|| -> Result<()> {
                wire::own_sysfs()?;
                std::fs::write("/sys/class/net/eth0/threaded", "1").context("no NAPI threads")
            });
            own.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
    }
    let new: HashSet<(i32, String)> =
        wire::napi_threads()?.into_iter().filter(|thread| !before.contains(thread)).collect();
    let mut ours = Vec::new();
    for (id, name) in new {
        if name.starts_with("napi/eth0-") {
            machine::pin(id, GENERATOR_CPU)?;
            // Before the generator: what the proxy sends is taken at once.
            machine::favour(id, 2)?;
        } else {
            // In turns with the proxy's processes, as the kernel does it with soft interrupts when there are many.
            machine::pin(id, PROXY_CPU)?;
            ours.push(id);
        }
    }
    let wanted = INTERFACES.len() + usize::from(strangers);
    ensure!(ours.len() == wanted, "{} interfaces of {wanted} have NAPI threads", ours.len());
    Ok(ours)
}

fn set_threaded(namespace: &Path, interface: &str) -> Result<()> {
    let name = namespace.file_name().context("a namespace has no name")?;
    let write = format!("echo 1 > /sys/class/net/{interface}/threaded");
    let mut command = Command::new("ip");
    // It mounts a /sys of that namespace.
    command.args(["netns", "exec"]).arg(name).args(["sh", "-c", &write]);
    let status = command.status().context("cannot start `ip`")?;
    ensure!(status.success(), "{interface} gets no NAPI thread");
    Ok(())
}
