//! Calls that are carried without memory, by the kernel or by us: known by the copy of their INVITE, and by what is told of
//! them afterwards ([`sip_ebpf::report`]).
//!
//! What is told names a call by the keyed hash of its Call-ID and knows no tags. So such a call has one dialog here, and
//! ends by the first BYE.
//!
//! The kernel carries these calls on while there is no daemon. What is known of each is kept for the next one, which goes on
//! with the record: [`Accounting::kept`] and [`Accounting::restore`], whose bytes are of no use to anybody else.

use super::*;
use sip_ebpf::report::Report;
use sip_ebpf::tables::OPEN_LEN;

/// How long a call is remembered that is over: its INVITE may be repeated (64 T1).
const REPEATED: Duration = Duration::from_secs(32);
/// The most that are remembered so.
pub(super) const MOST_OVER: usize = 100_000;
/// How long a report waits for its INVITE, whose copy comes another way.
const HOLD: Duration = Duration::from_millis(100);
/// Reports that wait.
pub(super) const MOST_EARLY: usize = 1_000;

/// What is known of such calls beside their records.
#[derive(Debug, Default)]
pub(super) struct Steered {
    /// Places in [`Accounting::calls`], by hash.
    pub(super) slots: HashMap<u64, u32>,
    /// Their last CSeq, of calls that are over.
    pub(super) over: HashMap<u64, (Instant, u32)>,
    /// When each of these ended.
    pub(super) ended: VecDeque<(Instant, u64)>,
    /// Reports of calls that are not known yet, in order.
    pub(super) early: VecDeque<Early>,
    /// Whether somebody keeps them for whoever comes after us.
    kept: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Early {
    at: Instant,
    heard: Instant,
    hash: u64,
    report: Report,
}

/// Between moments here and nanoseconds of a clock that goes on when we end.
pub trait Moments {
    /// By that clock.
    fn to_clock(&self, at: Instant) -> u64;

    /// The moment of a time by that clock.
    fn at_clock(&self, time: u64) -> Instant;
}

impl Accounting {
    /// Somebody keeps what is known of steered calls: [`Command::Keep`] and [`Command::Drop`] are wanted.
    pub fn keep_steered(&mut self) {
        self.steered.kept = true;
    }

    /// Whether there is anything to tell us of calls that are steered.
    pub fn is_wanted(&self) -> bool {
        self.rules.max_calls != 0 || !self.is_empty()
    }

    /// An INVITE was steered at this time to a PBX, of this name and address. `hash` is that of its Call-ID.
    pub fn handle_steered(
        &mut self,
        (now, at): (Instant, Instant),
        invite: Invite<'_, '_>,
        hash: u64,
        (pbx, address): (Option<&str>, SocketAddr),
    ) {
        let cseq = invite.message.cseq().map_or(0, |cseq| cseq.number);
        if let Some(call) = self.steered_call(hash)
            && (cseq <= call.cseq || call.answered.is_some())
        {
            // A repetition. It may have gone elsewhere because the first PBX was found dead.
            if cseq == call.cseq && call.answered.is_none() && call.callee != Some(address) {
                (call.callee, call.pbx) = (Some(address), pbx.map(channel));
                self.keep(hash);
            }
            return;
        }
        let over = self.steered.over.get(&hash);
        if over.is_some_and(|(ended, last)| cseq <= *last && at < *ended + REPEATED) {
            return;
        }
        let Some(token) = self.handle_invite(at, invite) else { return };
        self.handle_target(token, pbx, address);
        if let Some(call) = self.calls.get_mut(token.slot as usize) {
            call.hash = Some(hash);
        }
        self.steered.slots.insert(hash, token.slot);
        self.keep(hash);
        let waiting = std::mem::take(&mut self.steered.early);
        let (mine, others) = waiting.into_iter().partition(|early| early.hash == hash);
        self.steered.early = others;
        let mine: VecDeque<Early> = mine;
        for early in mine.iter().filter(|early| now < early.heard + HOLD) {
            self.handle_report((now, early.at), hash, early.report);
        }
    }

    /// Something was told of a steered call that happened at this time; `now` is when it was heard. What is told of others
    /// is of no interest.
    pub fn handle_report(&mut self, (now, at): (Instant, Instant), hash: u64, report: Report) {
        let Some(slot) = self.steered.slots.get(&hash).copied() else {
            return self.early(now, Early { at, heard: now, hash, report });
        };
        let dialog = self.tag(None);
        let Some(call) = self.calls.get_mut(slot as usize) else { return };
        let token = Token { slot, attempt: call.attempt };
        match report {
            Report::Final { status, cancelled } => {
                call.cancelled |= cancelled && call.answered.is_none();
                if status < 300 {
                    self.handle_answered(at, token, status, None);
                } else {
                    self.handle_failed(at, token, status, By::Callee);
                }
            }
            Report::Bye { by_caller } => {
                if call.answered.is_none() && by_caller {
                    // In an early dialog (15): the INVITE is still to be answered, most likely by 487.
                    call.cancelled = true;
                } else if call.answered.is_none() {
                    // Who is called has no dialog before he answers: it was not told.
                    (call.answered, call.status) = (Some(at), 200);
                }
                match call.legs.first_mut() {
                    Some(leg) => leg.ended = true,
                    None => call.legs.push(Leg { tag: dialog, ended: true }),
                }
                if call.is_over() {
                    let ending = if by_caller { Ending::Caller } else { Ending::Callee };
                    self.close(slot, at, ending);
                }
            }
        }
        self.keep(hash);
    }

    /// A steered call is carried with memory from now on: its record goes on. One that has none gets one.
    pub fn handle_taken(&mut self, now: Instant, invite: Invite<'_, '_>) -> Option<Token> {
        let from_tag = invite.message.from().ok().and_then(|from| from.tag());
        let key = self.key_of(invite.message.call_id().unwrap_or_default(), from_tag);
        let cseq = invite.message.cseq().map_or(0, |cseq| cseq.number);
        let steered = |slot: &u32| {
            let call = self.calls.get(*slot as usize);
            call.is_some_and(|call| {
                call.key == key
                    && call.hash.is_some()
                    && call.answered.is_none()
                    && call.cseq == cseq
            })
        };
        let Some(slot) = self.by_key.find(key as u64, steered).copied() else {
            return self.handle_invite(now, invite);
        };
        self.take_from_steered(slot);
        self.attempts += 1;
        let attempt = self.attempts;
        self.calls.get_mut(slot as usize)?.attempt = attempt;
        Some(Token { slot, attempt })
    }

    // ---- For who comes after us -----------------------------------------------------------------

    /// What is known of a steered call, in at most [`OPEN_LEN`] bytes. None if there is no such call.
    pub fn kept(&self, hash: u64, clock: &impl Moments) -> Option<Vec<u8>> {
        let slot = self.steered.slots.get(&hash)?;
        let call = self.calls.get(*slot as usize)?;
        let mut bytes = Vec::with_capacity(OPEN_LEN);
        let moment = |at: Option<Instant>| at.map_or(0, |at| clock.to_clock(at).max(1));
        let failed = call.failed.map(|failed| failed.at);
        for time in [Some(call.started), call.answered, failed] {
            bytes.extend_from_slice(&moment(time).to_le_bytes());
        }
        bytes.extend_from_slice(&call.cseq.to_le_bytes());
        bytes.extend_from_slice(&call.status.to_le_bytes());
        let early = !call.legs.is_empty() && call.answered.is_none();
        bytes.push(u8::from(call.cancelled) | u8::from(early) << 1);
        let callee = call.callee.map(put::address).unwrap_or_default();
        let texts = &call.texts;
        let all: [(&str, usize); TEXTS] = [
            (&self.unique_id(call), 32),
            (&put::address(call.caller), 56),
            (&callee, 56),
            (call.pbx.as_deref().unwrap_or_default(), 80),
            (&texts.accountcode, 20),
            (&texts.src, 80),
            (&texts.dst, 80),
            (&texts.clid, 80),
            (&texts.dcontext, 80),
            (&texts.lastdata, 80),
            (&texts.call_id, 255),
        ];
        const {
            assert!(3 * 8 + 4 + 2 + 1 + TEXTS + 32 + 2 * 56 + 6 * 80 + 20 + 255 <= OPEN_LEN);
        }
        for (text, most) in all {
            // Texts are as long as their columns, but of characters; this is of bytes.
            let text = &text[..text.floor_char_boundary(most)];
            bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(text.as_bytes());
        }
        Some(bytes)
    }

    /// Goes on with a call that an earlier daemon has kept. False if these are no such bytes, or there is no room.
    pub fn restore(&mut self, hash: u64, bytes: &[u8], clock: &impl Moments) -> bool {
        if self.calls.len() >= self.rules.max_calls || self.steered.slots.contains_key(&hash) {
            return false;
        }
        self.read_kept(hash, bytes, clock).is_some()
    }

    fn read_kept(&mut self, hash: u64, bytes: &[u8], clock: &impl Moments) -> Option<()> {
        let mut rest = bytes;
        let moment = |time: u64| (time != 0).then(|| clock.at_clock(time));
        let started = moment(u64::from_le_bytes(take(&mut rest)?))?;
        let answered = moment(u64::from_le_bytes(take(&mut rest)?));
        let failed = moment(u64::from_le_bytes(take(&mut rest)?));
        let cseq = u32::from_le_bytes(take(&mut rest)?);
        let status = u16::from_le_bytes(take(&mut rest)?);
        let [bits] = take(&mut rest)?;
        let mut texts: [Box<str>; TEXTS] = Default::default();
        for text in &mut texts {
            let [len] = take(&mut rest)?;
            let (read, more) = rest.split_at_checked(usize::from(len))?;
            (*text, rest) = (str::from_utf8(read).ok()?.into(), more);
        }
        let [id, caller, callee, pbx, accountcode, src, dst, clid, dcontext, lastdata, call_id] =
            texts;
        if id.is_empty() {
            return None;
        }
        self.attempts += 1;
        self.counts.calls += 1;
        let leg = Leg { tag: self.tag(None), ended: answered.is_none() };
        let cancelled = bits & 1 != 0;
        let ending = if cancelled { Ending::Cancelled } else { Ending::Refused };
        let call = Call {
            // Its INVITE is not here to make the right one of, and nobody asks for it.
            key: hash.into(),
            attempt: self.attempts,
            sequence: 0,
            cseq,
            started,
            rang: None,
            answered,
            status,
            cancelled,
            failed: failed.map(|at| Failed { at, ending }),
            legs: if answered.is_some() || bits & 2 != 0 { vec![leg] } else { Vec::new() },
            caller: caller.parse().ok()?,
            callee: callee.parse().ok(),
            from_pbx: false,
            pbx: Some(pbx).filter(|pbx| !pbx.is_empty()),
            hash: Some(hash),
            id: Some(id),
            place: None,
            texts: Box::new(Texts { clid, src, dst, dcontext, lastdata, accountcode, call_id }),
        };
        let longest = self.rules.longest_call;
        let end = match (failed, answered) {
            (Some(failed), _) => failed.checked_add(AGAIN),
            (None, Some(answered)) => answered.checked_add(longest),
            (None, None) => started.checked_add(LONGEST_SETUP),
        };
        let slot = self.insert(call)?;
        self.ends.set(slot, end);
        self.steered.slots.insert(hash, slot);
        Some(())
    }

    // ---- Small things ---------------------------------------------------------------------------

    fn steered_call(&mut self, hash: u64) -> Option<&mut Call> {
        let slot = self.steered.slots.get(&hash)?;
        self.calls.get_mut(*slot as usize)
    }

    /// What is known of a call has changed.
    fn keep(&mut self, hash: u64) {
        if self.steered.kept && self.steered.slots.contains_key(&hash) {
            self.commands.push_back(Command::Keep(hash));
        }
    }

    fn early(&mut self, now: Instant, early: Early) {
        let waiting = &mut self.steered.early;
        while waiting.len() >= MOST_EARLY
            || waiting.front().is_some_and(|first| first.heard + HOLD <= now)
        {
            waiting.pop_front();
        }
        waiting.push_back(early);
    }

    /// A call is steered no longer, but goes on.
    pub(super) fn take_from_steered(&mut self, slot: u32) {
        let Some(call) = self.calls.get_mut(slot as usize) else { return };
        let Some(hash) = call.hash.take() else { return };
        self.steered.slots.remove(&hash);
        if self.steered.kept {
            self.commands.push_back(Command::Drop(hash));
        }
    }

    /// A steered call is over.
    pub(super) fn steered_over(&mut self, hash: u64, at: Instant, cseq: u32) {
        let steered = &mut self.steered;
        steered.slots.remove(&hash);
        while let Some((ended, old)) = steered.ended.front().copied()
            && (ended + REPEATED <= at || steered.ended.len() >= MOST_OVER)
        {
            steered.ended.pop_front();
            if steered.over.get(&old).is_some_and(|(last, _)| *last == ended) {
                steered.over.remove(&old);
            }
        }
        steered.ended.push_back((at, hash));
        steered.over.insert(hash, (at, cseq));
        if steered.kept {
            self.commands.push_back(Command::Drop(hash));
        }
    }
}

/// Texts of a call that is kept.
const TEXTS: usize = 11;

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, more) = rest.split_first_chunk()?;
    *rest = more;
    Some(*first)
}
