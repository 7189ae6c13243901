//! The kernel half: the program loaded, attached to each interface, pinned, and adopted again.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode as Flags, loaded_programs};
use aya_log::EbpfLogger;
use ipnet::IpNet;
use sip_ebpf::gate;
use sip_ebpf::tables::{Endpoint, Endpoint6, Local, Pbx, Pbx6, Schedule};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::forwarding::{self, Forwarding};
use super::interfaces::{self, Interface};
use super::object::{self, Build, Missing, Options, PROGRAM};
use super::pins::{self, Pins};
use super::tables::Tables;
use super::{Attachment, CallBuckets, EventCounts, Events, Fastpath, Mode, OpenCalls, Users};
use crate::config::{Loops, Xdp as Config, XdpMode};
use crate::core::challenges::Challenges;
use crate::core::registered::Source;

/// How often VLAN devices are looked for.
const VLANS_EVERY: Duration = Duration::from_secs(10);

/// The kernel half, loaded and attached.
pub(super) struct Linux {
    tables: Tables,
    asking: super::challenges::Tables,
    users: Arc<super::users::Table>,
    open: Arc<super::open::Table>,
    attachments: Vec<Attachment>,
    links: Vec<Link>,
    pins: Option<Pins>,
    build: Build,
    adopted: bool,
    /// What was switched on, to be switched off again.
    switched: Vec<Forwarding>,
    vlans_read: Instant,
    logs: Option<JoinHandle<()>>,
    /// Holds the program.
    _rest: Rest,
}

/// The object, while its programs for IPv6 are loaded and afterwards. Verifying those takes longer than all others together,
/// for which nobody should have to wait: until they are there, IPv6 goes up.
struct Rest(Option<thread::JoinHandle<Ebpf>>);

impl Rest {
    fn load(mut ebpf: Ebpf) -> Result<Self> {
        let load = move || {
            match object::load_six(&mut ebpf) {
                Ok(missing) => {
                    tell_missing(missing);
                    info!("the program carries IPv6");
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    warn!(reason, "the program does not carry IPv6: the daemon does");
                }
            }
            ebpf
        };
        let builder = thread::Builder::new().name("sipline-load".to_owned());
        Ok(Self(Some(builder.spawn(load).context("cannot start a thread")?)))
    }
}

/// What is lost with programs that the kernel has not accepted.
fn tell_missing(missing: Missing) {
    for (name, error) in missing {
        let lost = match name {
            object::CHALLENGE => "the program does not ask for credentials: the daemon does",
            object::SIX_CHALLENGE | object::SIX_ASK => {
                "the program does not ask for credentials over IPv6: the daemon does"
            }
            object::QUALIFY => "the program does not answer for users: the daemon does",
            object::SIX_QUALIFY => {
                "the program does not answer for users over IPv6: the daemon does"
            }
            _ => "the program does not tell what becomes of calls: they have no record",
        };
        warn!(reason = format!("{error:#}"), "{lost}");
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        // Nothing of it is left behind when this returns.
        drop(self.0.take().map(thread::JoinHandle::join));
    }
}

/// One attachment. A pinned one outlives this process, another ends with it.
struct Link {
    interface: String,
    /// Held, not read: an unpinned program stays attached as long as this lives.
    _link: Held,
}

#[expect(dead_code, reason = "held for their descriptors")]
enum Held {
    Own(XdpLink),
    Pinned(FdLink),
}

impl Linux {
    /// Loads the program, attaches it to every interface of `config`, and pins or adopts.
    ///
    /// # Errors
    /// When one interface cannot be had in the mode that is ordered; then none of them is attached
    /// that was not before.
    pub(super) fn open(config: &Config, key: [u64; 2]) -> Result<Self> {
        if config.interfaces.is_empty() {
            bail!("xdp.interfaces is empty: name the interfaces that SIP arrives by");
        }
        let pins = config.pin.as_deref().map(Pins::open).transpose()?;
        let mut options = Options { log: config.log, ..Options::new(config.call_buckets) };
        if let Some(pins) = &pins {
            // Made once to see what they should be like; those that have no pin are let go again.
            let first =
                if config.loops == Loops::BpfLoop { Build::BpfLoop } else { Build::MayGoto };
            let made = object::maps(first, &options)?;
            options.pinned = pins.fitting(&made);
        }
        let adopted = !options.pinned.is_empty();
        let (build, mut ebpf, missing) = object::load(config.loops, &options)?;
        tell_missing(missing);
        let attached = attach_all(&mut ebpf, config, pins.as_ref())?;

        let mut before = Vec::new();
        if let Some(pins) = &pins {
            pins.pin_maps(&ebpf, &options.pinned)?;
            before = forwarding::remembered(pins);
        }
        let attachments: Vec<Attachment> =
            attached.iter().map(|(attachment, _)| attachment.clone()).collect();
        let links = attached
            .into_iter()
            .map(|(attachment, link)| pin(attachment.interface, link, pins.as_ref()))
            .collect::<Result<Vec<Link>>>()?;
        if let Some(pins) = &pins {
            pins.sweep(&config.interfaces)?;
        }
        let switched = forwarding::switch_on(pins.as_ref(), &before);
        let logs = if config.log { Some(read_logs(&mut ebpf)?) } else { None };
        let mut tables = Tables::new(&mut ebpf, key, config.call_buckets)?;
        tables.set_outlive(config.outlive);
        let asking = super::challenges::Tables::new(&mut ebpf)?;
        let users = Arc::new(super::users::Table::new(&mut ebpf)?);
        let open = Arc::new(super::open::Table::new(&mut ebpf)?);
        let mut this = Self {
            tables,
            asking,
            users,
            open,
            attachments,
            links,
            pins,
            build,
            adopted,
            switched,
            vlans_read: Instant::now(),
            logs,
            _rest: Rest::load(ebpf)?,
        };
        this.read_vlans()?;
        Ok(this)
    }

    fn read_vlans(&mut self) -> Result<()> {
        self.vlans_read = Instant::now();
        let ports: Vec<&str> = self.attachments.iter().map(|a| a.interface.as_str()).collect();
        self.tables.set_vlans(&interfaces::ports(&ports)?)
    }
}

impl Fastpath for Linux {
    fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    fn describe(&self) -> String {
        let ports: Vec<String> =
            self.attachments.iter().map(|a| format!("{} {}", a.interface, a.mode)).collect();
        let pins = match (&self.pins, self.adopted) {
            (None, _) => "not pinned",
            (Some(_), false) => "pinned",
            (Some(_), true) => "pinned, tables adopted",
        };
        format!("{}; loops by {}; {pins}", ports.join(", "), self.build.name())
    }

    fn set_config(&mut self, flags: u32) -> Result<()> {
        self.read_vlans()?;
        self.tables.set_config(flags)
    }

    fn set_locals(&mut self, locals: &[(Endpoint, Local)]) -> Result<()> {
        self.tables.set_locals(locals)
    }

    fn set_locals6(&mut self, locals: &[(Endpoint6, Local<Endpoint6>)]) -> Result<()> {
        self.tables.set_locals6(locals)
    }

    fn set_rates(&mut self, rates: gate::Rules) -> Result<()> {
        self.tables.set_rates(rates);
        Ok(())
    }

    fn set_registered(&mut self, sources: &[Source]) -> Result<()> {
        self.tables.set_registered(sources)
    }

    fn change_registered(&mut self, changes: &[(Source, bool)]) -> Result<()> {
        self.tables.change_registered(changes)
    }

    fn set_endpoints(&mut self, endpoints: &[(SocketAddr, Instant)]) -> Result<()> {
        self.tables.set_endpoints(endpoints)
    }

    fn change_endpoints(&mut self, changes: &[(SocketAddr, Option<Instant>)]) -> Result<()> {
        self.tables.change_endpoints(changes)
    }

    fn users(&self) -> Option<Arc<dyn Users>> {
        Some(self.users.clone())
    }

    fn set_challenges(&mut self, challenges: Option<&Challenges>) -> Result<()> {
        self.asking.set(challenges)
    }

    fn set_source(&mut self, network: IpNet, bits: u32) -> Result<()> {
        self.tables.set_source(network, bits)
    }

    fn set_sources(&mut self, sources: &[(IpNet, u32)]) -> Result<()> {
        self.tables.set_sources(sources)
    }

    fn set_pbx(&mut self, slot: u32, pbx: Pbx) -> Result<()> {
        self.tables.set_pbx(slot, pbx)
    }

    fn set_pbx6(&mut self, slot: u32, pbx: Pbx6) -> Result<()> {
        self.tables.set_pbx6(slot, pbx)
    }

    fn set_schedule6(&mut self, schedule: &Schedule) -> Result<()> {
        self.tables.set_schedule6(schedule)
    }

    fn set_schedule(&mut self, schedule: &Schedule) -> Result<()> {
        self.tables.set_schedule(schedule)
    }

    fn heartbeat(&mut self, vouch: Duration) -> Result<()> {
        if self.vlans_read.elapsed() >= VLANS_EVERY {
            self.read_vlans()?;
        }
        self.tables.heartbeat(vouch)
    }

    fn counters(&mut self) -> Result<Vec<u64>> {
        self.tables.counters()
    }

    fn pbx_calls(&mut self) -> Result<Vec<u64>> {
        self.tables.steered()
    }

    fn calls(&self) -> Option<Arc<dyn CallBuckets>> {
        Some(self.tables.calls())
    }

    fn events(&mut self) -> Option<Events> {
        self.tables.events()
    }

    fn open_calls(&self) -> Option<Arc<dyn OpenCalls>> {
        Some(self.open.clone())
    }

    fn event_counts(&mut self) -> Result<EventCounts> {
        self.tables.event_counts()
    }

    fn close(mut self: Box<Self>, keep: bool) -> Result<()> {
        if let Some(logs) = self.logs.take() {
            logs.abort();
        }
        // Nobody answers for us any more, whatever stays attached.
        self.tables.heartbeat(Duration::ZERO)?;
        if keep && self.pins.is_some() {
            info!("the program stays attached; `sipline detach` removes it");
            return Ok(());
        }
        if keep {
            warn!("xdp.keep needs xdp.pin: detaching");
        }
        let removed = match &self.pins {
            Some(pins) => pins.remove_all().map(drop),
            None => Ok(()),
        };
        for link in self.links.drain(..) {
            info!(interface = link.interface, "detached");
        }
        forwarding::switch_off(&self.switched)?;
        removed
    }
}

/// Removes everything that is pinned under `root`; gives the interfaces that were detached.
pub(super) fn detach(root: &Path) -> Result<Vec<String>> {
    let Some(pins) = Pins::existing(root) else {
        return Ok(Vec::new());
    };
    let switched = forwarding::remembered(&pins);
    let interfaces = pins.remove_all()?;
    forwarding::switch_off(&switched)?;
    Ok(interfaces)
}

/// Attaches to each interface; an error lets go of those that were attached here.
fn attach_all(
    ebpf: &mut Ebpf,
    config: &Config,
    pins: Option<&Pins>,
) -> Result<Vec<(Attachment, XdpLink)>> {
    let program = ebpf.program_mut(PROGRAM).context("the object has no program")?;
    let program: &mut Xdp = program.try_into()?;
    let known = interfaces::all()?;
    let mut attached = Vec::new();
    for name in &config.interfaces {
        let Some(interface) = known.iter().find(|i| i.name == *name) else {
            let names: Vec<&str> = known.iter().map(|i| i.name.as_str()).collect();
            bail!("xdp.interfaces: there is no interface {name} here, only {}", names.join(", "));
        };
        let (mode, link) = match adopt(program, config.mode, interface, pins)? {
            Some(adopted) => adopted,
            // Asked for again: what did not fit was detached just now.
            None => attach(program, config.mode, &again(name)?)?,
        };
        let attachment = Attachment { interface: name.clone(), mode };
        attached.push((attachment, link));
    }
    Ok(attached)
}

fn again(name: &str) -> Result<Interface> {
    let found = interfaces::all()?.into_iter().find(|i| i.name == name);
    found.with_context(|| format!("interface {name} went away"))
}

/// Takes over what an earlier daemon left attached: the kernel exchanges the program in one step, and
/// no packet meets the interface without one.
fn adopt(
    program: &mut Xdp,
    wanted: XdpMode,
    interface: &Interface,
    pins: Option<&Pins>,
) -> Result<Option<(Mode, XdpLink)>> {
    let name = &interface.name;
    let Some((path, link)) = pins.and_then(|pins| pins.find_link(name)) else {
        return Ok(None);
    };
    let id = link.info().context("cannot ask about a pinned link")?.program_id();
    let mode = interface.xdp.iter().find(|(_, running)| *running == id).map(|(mode, _)| *mode);
    let why = match (mode, wanted) {
        (None, _) => Some("the interface it was attached to is gone".to_owned()),
        (Some(Mode::Generic), XdpMode::Native) | (Some(Mode::Native), XdpMode::Generic) => {
            Some(format!("xdp.mode is {wanted} now, which a link cannot change"))
        }
        _ => None,
    };
    if let Some(why) = why {
        info!(interface = name, reason = why, "the pinned link is not adopted, but made anew");
        drop(link);
        pins::remove_link(&path)?;
        return Ok(None);
    }
    let link = XdpLink::try_from(link).context("a pinned link is not of XDP")?;
    let id = program
        .attach_to_link(link)
        .with_context(|| format!("{name}: cannot put the new program into the pinned link"))?;
    let mode = mode.unwrap_or(Mode::Generic);
    info!(interface = name, %mode, "adopted: the program was exchanged in place");
    Ok(Some((mode, program.take_link(id)?)))
}

fn attach(program: &mut Xdp, wanted: XdpMode, interface: &Interface) -> Result<(Mode, XdpLink)> {
    let name = &interface.name;
    if !interface.xdp.is_empty() {
        bail!("{}", taken(interface));
    }
    let modes: &[Mode] = match wanted {
        XdpMode::Native => &[Mode::Native],
        XdpMode::Generic => &[Mode::Generic],
        XdpMode::Auto => &[Mode::Native, Mode::Generic],
        XdpMode::Off => bail!("xdp.mode is off"),
    };
    let mut reasons = Vec::new();
    for &mode in modes {
        let flags = if mode == Mode::Native { Flags::Driver } else { Flags::Skb };
        match program.attach(name, flags) {
            Ok(id) => {
                info!(interface = name, %mode, "attached");
                return Ok((mode, program.take_link(id)?));
            }
            Err(error) => {
                let reason = explain(&error, mode, name);
                info!(interface = name, %mode, reason, "cannot attach");
                reasons.push(format!("{mode}: {reason}"));
            }
        }
    }
    Err(anyhow!("cannot attach to {name}: {}", reasons.join("; ")))
}

/// Whose program is there, and what can be done.
fn taken(interface: &Interface) -> String {
    let owners: Vec<String> = interface
        .xdp
        .iter()
        .map(|(mode, id)| {
            let name = loaded_programs()
                .filter_map(Result::ok)
                .find(|program| program.id() == *id)
                .and_then(|program| program.name_as_str().map(str::to_owned))
                .unwrap_or_default();
            format!("program \"{name}\" (id {id}, {mode})")
        })
        .collect();
    if owners.iter().any(|owner| owner.starts_with("program \"sipline\"")) {
        return format!(
            "{}: XDP is taken by {}, left there by an earlier sipline: `sipline detach` removes it",
            interface.name,
            owners.join(" and ")
        );
    }
    format!(
        "{0}: XDP is taken by {1}; remove it (`ip link set dev {0} xdp off`, or the program that \
         owns it), or take {0} out of xdp.interfaces",
        interface.name,
        owners.join(" and ")
    )
}

/// Why the kernel refuses an attachment, and what to do.
fn explain(error: &ProgramError, mode: Mode, name: &str) -> String {
    let number = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    let advice = match (number, mode) {
        (Some(libc::EOPNOTSUPP), Mode::Native) => format!(
            "the driver has no native XDP, or large receive offload is on (`ethtool -K {name} lro \
             off`)"
        ),
        (Some(libc::EINVAL | libc::ERANGE | libc::E2BIG), Mode::Native) => format!(
            "the driver refuses, most likely for the MTU: native XDP wants a frame in one page (`ip \
             link set dev {name} mtu 1500`), and some drivers a free queue for each CPU"
        ),
        (Some(libc::EBUSY | libc::EEXIST), _) => interfaces::all()
            .ok()
            .and_then(|all| all.into_iter().find(|i| i.name == name))
            .filter(|i| !i.xdp.is_empty())
            .map_or_else(|| "another program is attached".into(), |i| taken(&i)),
        (Some(libc::EPERM), _) => "attaching XDP needs CAP_NET_ADMIN and CAP_BPF".into(),
        _ => return error.to_string(),
    };
    format!("{error}: {advice}")
}

/// Pins an attachment unless it is pinned at its place already.
fn pin(interface: String, link: XdpLink, pins: Option<&Pins>) -> Result<Link> {
    let Some(pins) = pins else {
        return Ok(Link { interface, _link: Held::Own(link) });
    };
    let link = FdLink::try_from(link).map_err(|error| {
        anyhow!(
            "{interface}: attached the old way, which cannot be pinned ({error}); write pin = \"\""
        )
    })?;
    let path = pins.link(&interface);
    if path.exists() {
        return Ok(Link { interface, _link: Held::Pinned(link) });
    }
    let pinned =
        link.pin(&path).with_context(|| format!("cannot pin the link {}", path.display()))?;
    Ok(Link { interface, _link: Held::Pinned(FdLink::from(pinned)) })
}

fn read_logs(ebpf: &mut Ebpf) -> Result<JoinHandle<()>> {
    let logger = EbpfLogger::init_with_logger(ebpf, ToTracing)
        .context("xdp.log is on, but this build of the program writes no logs")?;
    // SAFETY: the logger owns its descriptor and never changes it.
    let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = logger.map_err(|error| anyhow!("cannot read kernel logs: {error}"))?;
    Ok(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }))
}

/// Kernel logs as events of the daemon's own log.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: "sipline::kernel", "{text}"),
            log::Level::Warn => tracing::warn!(target: "sipline::kernel", "{text}"),
            log::Level::Info => tracing::info!(target: "sipline::kernel", "{text}"),
            log::Level::Debug => tracing::debug!(target: "sipline::kernel", "{text}"),
            log::Level::Trace => tracing::trace!(target: "sipline::kernel", "{text}"),
        }
    }

    fn flush(&self) {}
}
