//! The second program: asks for credentials in the daemon's name.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS};
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;
use sip_ebpf::challenge::{self, Asking, Challenge, Domain, Domains, MAX_DOMAINS, Role};
use sip_ebpf::cookie;
use sip_ebpf::header::Span;
use sip_ebpf::nonce::Stamp;
use sip_ebpf::route::Tables;
use sip_ebpf::scan::{Kind, Method};
use sip_ebpf::tables::{Endpoint, Endpoint6, flag, source};

use super::family::Family;
use super::maps::CONFIG;
use super::scratch::{Out, Work};
use super::tables::Kernel;
use super::text::Bytes;
use super::{asm, fits, programs, send};

#[btf_map]
static DOMAINS: HashMap<Domain, Challenge, { MAX_DOMAINS as usize }> = HashMap::new();

#[btf_map]
static ASKING: Array<Asking, 1> = Array::new();

/// How many nonces were made.
#[btf_map]
static NONCES: Array<u64, 1> = Array::new();

/// All of it must be on: what the program jumps with has then been read whole.
pub(super) const NEEDED: u32 = flag::CHALLENGE | flag::STEER | flag::KEEPALIVES;

/// The reasons that a request without credentials may have to go up, or the ACK of a challenge; one bit each.
pub(super) const REASONS: u64 = 1 << Reason::Untrusted as u32
    | 1 << Reason::Method as u32
    | 1 << Reason::Preloaded as u32
    | ACKS;

/// Those of an ACK: with a Route it is like one of a dialog.
const ACKS: u64 = 1 << Reason::UnknownCall as u32 | 1 << Reason::OddRoute as u32;

/// Answers a request that has no credentials, and takes the ACK of such an answer; all else goes up for the reason that
/// the first program had.
#[xdp]
fn sipline_challenge(ctx: XdpContext) -> u32 {
    programs::answer::<Endpoint>(&ctx, packet)
}

/// The same over IPv6, but for the answer, which would be too much for the verifier.
#[xdp]
fn sipline_six_challenge(ctx: XdpContext) -> u32 {
    let Some(work) = Endpoint6::work() else {
        return XDP_ABORTED;
    };
    let scratch = Work::scratch(work);
    let (reason, action) = match wanted(&ctx, work) {
        Ok(Some(role)) => {
            // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
            unsafe { (*scratch).told = role as u32 };
            programs::six_ask(&ctx);
            (None, XDP_PASS)
        }
        Ok(None) => (Some(Reason::ChallengeAcked), XDP_DROP),
        Err(_) => (None, XDP_PASS),
    };
    // SAFETY: as above.
    let before = unsafe { (*scratch).reason };
    programs::count(reason.map_or(before, |reason| reason as u32));
    action
}

/// Answers what the one before it was for.
#[xdp]
fn sipline_six_ask(ctx: XdpContext) -> u32 {
    programs::answer::<Endpoint6>(&ctx, |ctx, work| {
        let scratch = Work::scratch(work);
        // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
        let w = unsafe { &mut *work };
        let (t, mut draft) = (Bytes::new(ctx, scratch), Out::new(scratch));
        if !challenge::via_is_read(t, &w.scratch.index, &w.plan, &mut draft) {
            return Err(Reason::Method);
        }
        let proxy = w.scratch.told == Role::Proxy as u32;
        ask(ctx, work, if proxy { Role::Proxy } else { Role::Registrar })
    })
}

#[inline(always)]
fn packet(ctx: &XdpContext, work: *mut Work<Endpoint>) -> Result<(Reason, u32), Reason> {
    match wanted(ctx, work)? {
        Some(role) => ask(ctx, work, role),
        None => Ok((Reason::ChallengeAcked, XDP_DROP)),
    }
}

/// Whether the daemon would ask, and how: then the domain in the memory is the user's. None is the ACK of such an answer.
#[inline(always)]
fn wanted<A: Family>(ctx: &XdpContext, work: *mut Work<A>) -> Result<Option<Role>, Reason> {
    let scratch = Work::scratch(work);
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let (s, w) = unsafe { (&mut *scratch, &mut *work) };
    let (Some(config), Some(asking)) = (CONFIG.get(0), ASKING.get(0)) else {
        return Err(Reason::NotConfigured);
    };
    let Some(kernel) = Kernel::new(config, work, w.packet.src) else {
        return Err(Reason::NotConfigured);
    };
    let t = Bytes::new(ctx, scratch);
    if ACKS >> (s.reason & 63) & 1 != 0 {
        return match challenge::is_acknowledged(t, &s.index, &w.plan, &config.keys) {
            true => Ok(None),
            false => Err(Reason::UnknownCall),
        };
    }
    if kernel.source() & source::BELIEVED != 0 || asking.offset == 0 {
        return Err(Reason::Method);
    }
    // Of one with a Route, nobody has asked yet from where it comes.
    let invite = s.index.method == Method::Invite as u32;
    if s.reason == Reason::Preloaded as u32
        && (kernel.pbx_at(w.packet.src).is_some() || invite && kernel.trusted(w.packet.src))
    {
        return Err(Reason::Preloaded);
    }
    if !kernel.alive() {
        return Err(Reason::HeartbeatStale);
    }
    let wanted = challenge::wanted(t, &s.index, &w.plan, &Maps { asking }, &mut w.domain);
    wanted.map(Some).ok_or(Reason::Method)
}

/// Answers in the daemon's name: the domain in the memory is the user's.
#[inline(always)]
fn ask<A: Family>(
    ctx: &XdpContext,
    work: *mut Work<A>,
    role: Role,
) -> Result<(Reason, u32), Reason> {
    let scratch = Work::scratch(work);
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let (s, w) = unsafe { (&mut *scratch, &mut *work) };
    let (Some(config), Some(asking)) = (CONFIG.get(0), ASKING.get(0)) else {
        return Err(Reason::NotConfigured);
    };
    let t = Bytes::new(ctx, scratch);
    let mut out = Out::new(scratch);
    // SAFETY: the daemon writes an entry whole or not at all, and changes none that is right.
    let Some(challenge) = (unsafe { DOMAINS.get(&w.domain) }) else {
        return Err(Reason::Method);
    };
    let Some(call_id) = s.index.first(Kind::CallId) else {
        return Err(Reason::OddHeader);
    };
    let span = Span { at: call_id.value as u32, end: call_id.end as u32 };
    w.plan.tag = cookie::challenge_tag(&config.keys, t, span).0;
    let Some(count) = NONCES.get_ptr_mut(0) else {
        return Err(Reason::NotConfigured);
    };
    // SAFETY: an aligned word that all CPUs count up together.
    let count = unsafe { asm::fetch_add(count, 1) };
    let seconds = (s.now() + asking.offset) / 1_000_000_000;
    let stamp = Stamp::new(seconds, asking.instance, count as u32);
    let made = (challenge, role, stamp);
    s.front = challenge::answer(t, &s.index, w.packet, &w.plan, made, &mut out);
    fits(s.front)?;
    send::answer::<false, _>(ctx, work).map(|action| (Reason::Challenged, action))
}

struct Maps<'a> {
    asking: &'a Asking,
}

impl Domains for Maps<'_> {
    #[inline(always)]
    fn has(&self, key: &Domain) -> bool {
        // SAFETY: only whether it is there.
        unsafe { DOMAINS.get(key) }.is_some()
    }

    #[inline(always)]
    fn asking(&self) -> &Asking {
        self.asking
    }
}
