//! What the four state machines have in common.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sip_ebpf::scan::Index;

use super::answered::Kept;
use super::client_invite::ClientInvite;
use super::client_other::ClientOther;
use super::server_invite::ServerInvite;
use super::server_other::ServerOther;
use super::timers::Ticks;
use super::wheel::{NEVER, Tick};
use super::{Command, Expired, Flow, TransactionId, Transmit};

/// One of the four.
#[derive(Debug)]
pub(super) enum Machine {
    ClientInvite(ClientInvite),
    ClientOther(ClientOther),
    ServerInvite(ServerInvite),
    ServerOther(ServerOther),
}

impl Machine {
    /// A timer has fired: what the transaction waited for is over, or something is to be sent again.
    pub(super) fn timeout(&mut self, line: &mut Line, cx: &mut Context<'_>) {
        if line.end <= cx.now {
            cx.late = cx.now - line.end;
            line.end = NEVER;
            match self {
                Self::ClientInvite(machine) => machine.end(line, cx),
                Self::ClientOther(machine) => machine.end(line, cx),
                Self::ServerInvite(machine) => machine.end(line, cx),
                Self::ServerOther(machine) => machine.end(line, cx),
            }
        } else if line.again <= cx.now {
            line.again = NEVER;
            match self {
                Self::ClientInvite(machine) => machine.again(line, cx),
                Self::ClientOther(machine) => machine.again(line, cx),
                Self::ServerInvite(machine) => machine.again(line, cx),
                Self::ServerOther(machine) => machine.again(line, cx),
            }
        }
    }

    /// What was sent last did not arrive (17.1.4, 17.2.4).
    pub(super) fn transport_error(&mut self, line: &mut Line, cx: &mut Context<'_>) {
        line.errors = false;
        match self {
            Self::ClientInvite(machine) => machine.transport_error(cx),
            Self::ClientOther(machine) => machine.transport_error(cx),
            Self::ServerInvite(machine) => machine.transport_error(cx),
            Self::ServerOther(machine) => machine.transport_error(cx),
        }
    }

    pub(super) fn is_terminated(&self) -> bool {
        match self {
            Self::ClientInvite(machine) => machine.is_terminated(),
            Self::ClientOther(machine) => machine.is_terminated(),
            Self::ServerInvite(machine) => machine.is_terminated(),
            Self::ServerOther(machine) => machine.is_terminated(),
        }
    }

    /// Whether it is only there for repetitions, and of what.
    pub(super) fn kept(&self) -> Option<Kept> {
        match self {
            Self::ClientInvite(machine) => machine.is_answered().then_some(Kept::Invite),
            Self::ServerInvite(machine) => machine.is_accepted().then_some(Kept::Invite),
            Self::ServerOther(machine) => machine.is_answered().then_some(Kept::Answered),
            Self::ClientOther(_) => None,
        }
    }

    /// Ends it if that is so: its last timer, early.
    pub(super) fn forget(&mut self) {
        if self.kept().is_none() {
            return;
        }
        match self {
            Self::ClientInvite(machine) => machine.forget(),
            Self::ServerInvite(machine) => machine.forget(),
            Self::ServerOther(machine) => machine.forget(),
            Self::ClientOther(_) => {}
        }
    }

    /// Whether the transaction user does not know of it: a CANCEL of ours.
    pub(super) fn is_hidden(&self) -> bool {
        matches!(self, Self::ClientOther(machine) if machine.is_cancel())
    }
}

/// What each transaction keeps besides its state.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) flow: Flow,
    /// What is sent again, or will be needed to make something.
    pub(super) bytes: Option<Arc<[u8]>>,
    /// Whether an error from the peer's address is about what was sent last.
    pub(super) errors: bool,
    /// Between repetitions.
    pub(super) interval: Tick,
    /// When to send again.
    pub(super) again: Tick,
    /// When the state is over.
    pub(super) end: Tick,
}

impl Line {
    pub(super) fn new(flow: Flow, bytes: Arc<[u8]>) -> Self {
        let bytes = Some(bytes);
        Self { flow, bytes, errors: false, interval: 0, again: NEVER, end: NEVER }
    }

    /// How many bytes are kept.
    pub(super) fn held(&self) -> usize {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len())
    }

    /// Sends what is kept.
    pub(super) fn send(&mut self, cx: &mut Context<'_>) {
        if let Some(bytes) = self.bytes.clone() {
            self.send_once(cx, bytes);
        }
    }

    /// Sends something that is not kept.
    pub(super) fn send_once(&mut self, cx: &mut Context<'_>, bytes: Arc<[u8]>) {
        self.errors = true;
        let Flow { local, peer, .. } = self.flow;
        cx.out.push_back(Command::Send(Transmit { local, to: peer, bytes }));
    }

    /// Sends again after `interval`, unless the transport sees to it.
    pub(super) fn repeat(&mut self, cx: &Context<'_>, interval: Tick) {
        self.interval = interval;
        self.again = if self.flow.reliable { NEVER } else { cx.now + interval };
    }

    /// How long a state is kept only for what the network repeats: not at all where it repeats nothing.
    /// None for that.
    pub(super) fn linger(&mut self, cx: &Context<'_>, time: Tick) -> Option<()> {
        self.again = NEVER;
        self.end = cx.now + time;
        (!self.flow.reliable && time > 0).then_some(())
    }
}

/// What a machine may touch.
pub(super) struct Context<'a> {
    pub(super) now: Tick,
    /// How late the timer is that has fired.
    pub(super) late: Tick,
    pub(super) ticks: &'a Ticks,
    pub(super) id: TransactionId,
    pub(super) key: [u64; 2],
    pub(super) out: &'a mut VecDeque<Command>,
    pub(super) index: &'a mut Index,
    /// A CANCEL that is to be sent in a transaction of its own.
    pub(super) cancel: Option<Vec<u8>>,
}

impl Context<'_> {
    /// Tells the transaction user that time is up.
    pub(super) fn expired(&mut self, why: Expired) {
        let late = Duration::from_millis(self.late);
        self.out.push_back(Command::Timeout { id: self.id, why, late });
    }

    /// Tells the transaction user that a message did not arrive.
    pub(super) fn failed(&mut self) {
        self.out.push_back(Command::TransportError { id: self.id });
    }
}
