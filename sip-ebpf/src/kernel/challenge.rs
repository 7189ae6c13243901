//! The second program: asks for credentials in the daemon's name. The first one jumps here with what it would otherwise
//! pass up, so that neither is too much for the verifier.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS};
use aya_ebpf::btf_maps::{Array, HashMap, ProgramArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;
use sip_ebpf::challenge::{self, Asking, Challenge, Domain, Domains, MAX_DOMAINS};
use sip_ebpf::cookie;
use sip_ebpf::header::Span;
use sip_ebpf::nonce::Stamp;
use sip_ebpf::route::Tables;
use sip_ebpf::scan::Kind;
use sip_ebpf::tables::{flag, program, source};

use super::maps::{CONFIG, COUNTERS, SCRATCH};
use super::scratch::{self, Out, Scratch};
use super::tables::Kernel;
use super::text::Bytes;
use super::{asm, fits, send};

/// What the first program jumps to.
#[btf_map]
static PROGRAMS: ProgramArray<{ program::COUNT as usize }> = ProgramArray::new();

#[btf_map]
static DOMAINS: HashMap<Domain, Challenge, { MAX_DOMAINS as usize }> = HashMap::new();

#[btf_map]
static ASKING: Array<Asking, 1> = Array::new();

/// How many nonces were made.
#[btf_map]
static NONCES: Array<u64, 1> = Array::new();

/// All of it must be on: what the program jumps with has then been read whole.
const NEEDED: u32 = flag::CHALLENGE | flag::STEER | flag::KEEPALIVES;

/// Jumps to the program below, or to [`super::qualify`], if it may have an answer to what would go up. Comes back if there is none.
#[inline(always)]
pub(super) fn jump(ctx: &XdpContext, scratch: *mut Scratch, reason: Reason) {
    // One way for the verifier, whatever the reason.
    let reason = scratch::fresh(scratch, reason as u32);
    let candidate = reason == Reason::Untrusted as u32
        || reason == Reason::Method as u32
        || reason == Reason::UnknownCall as u32;
    let qualify = reason == Reason::OptionsNotForUs as u32;
    if !candidate && !qualify {
        return;
    }
    let needed = if qualify { super::qualify::NEEDED } else { NEEDED };
    if !CONFIG.get(0).is_some_and(|config| config.flags & needed == needed) {
        return;
    }
    // SAFETY: the entry of this CPU.
    unsafe { (*scratch).reason = reason };
    if qualify {
        // SAFETY: nothing here has to be dropped.
        return unsafe { PROGRAMS.tail_call(ctx, program::QUALIFY) };
    }
    // SAFETY: nothing here has to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, program::CHALLENGE) };
}

/// Answers a request that has no credentials, and takes the ACK of such an answer; all else goes up for the reason that
/// the first program had.
#[xdp]
fn sipline_challenge(ctx: XdpContext) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let before = unsafe { (*scratch).reason };
    let (reason, action) = match packet(&ctx, scratch) {
        Ok((reason, action)) => (reason as u32, action),
        Err(Reason::Mtu) => (Reason::Mtu as u32, XDP_PASS),
        Err(_) => (before, XDP_PASS),
    };
    if let Some(counter) = COUNTERS.get_ptr_mut(reason) {
        // SAFETY: this CPU's own counter.
        unsafe { *counter += 1 };
    }
    action
}

#[inline(always)]
fn packet(ctx: &XdpContext, scratch: *mut Scratch) -> Result<(Reason, u32), Reason> {
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let s = unsafe { &mut *scratch };
    let (Some(config), Some(asking)) = (CONFIG.get(0), ASKING.get(0)) else {
        return Err(Reason::NotConfigured);
    };
    let Some(kernel) = Kernel::new(config, scratch, s.packet.src) else {
        return Err(Reason::NotConfigured);
    };
    let t = Bytes::new(ctx, scratch);
    if s.reason == Reason::UnknownCall as u32 {
        return match challenge::is_acknowledged(t, &s.index, &s.plan, &config.keys) {
            true => Ok((Reason::ChallengeAcked, XDP_DROP)),
            false => Err(Reason::UnknownCall),
        };
    }
    if kernel.source() & source::BELIEVED != 0 || asking.offset == 0 {
        return Err(Reason::Method);
    }
    if !kernel.alive() {
        return Err(Reason::HeartbeatStale);
    }
    let Some(role) = challenge::wanted(t, &s.index, &s.plan, &Maps { asking }, &mut s.domain)
    else {
        return Err(Reason::Method);
    };
    // SAFETY: the daemon writes an entry whole or not at all, and changes none that is right.
    let Some(challenge) = (unsafe { DOMAINS.get(&s.domain) }) else {
        return Err(Reason::Method);
    };
    let Some(call_id) = s.index.first(Kind::CallId) else {
        return Err(Reason::OddHeader);
    };
    let span = Span { at: call_id.value as u32, end: call_id.end as u32 };
    s.plan.tag = cookie::challenge_tag(&config.keys, t, span).0;
    let Some(count) = NONCES.get_ptr_mut(0) else {
        return Err(Reason::NotConfigured);
    };
    // SAFETY: an aligned word that all CPUs count up together.
    let count = unsafe { asm::fetch_add(count, 1) };
    let seconds = (s.now() + asking.offset) / 1_000_000_000;
    let stamp = Stamp::new(seconds, asking.instance, count as u32);
    let mut out = Out::new(scratch);
    let made = (challenge, role, stamp);
    s.front = challenge::answer(t, &s.index, s.packet, &s.plan, made, &mut out);
    fits(s.front)?;
    send::answer::<false>(ctx, scratch).map(|action| (Reason::Challenged, action))
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
