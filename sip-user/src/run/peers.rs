//! Between the workers: messages that are another's, and orders of the node.
//!
//! ```text
//!  worker ── Mail: messages, ICMP errors ──► the worker whose they are      bounded: what has no room is dropped
//!         ── Mail: evidence of PBXs ───────► the first one, which decides
//!  first  ── Order: a closure, run between two messages ──► each            few: people and changes of PBXs
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{
    Receiver, Sender, UnboundedReceiver, UnboundedSender, channel, unbounded_channel,
};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::bans::Suspicion;
use super::worker::Worker;
use crate::core::dispatcher::{Evidence, Unreachable};
use crate::core::owner::{self, Parcel};

/// Mail that may wait for a worker, in pieces and in bytes.
const MAIL: usize = 4096;
const MAIL_BYTES: usize = 16 * 1024 * 1024;
/// How long a worker may take for an order.
const PATIENCE: Duration = Duration::from_secs(5);

/// What one worker has for another.
pub(super) enum Mail {
    Parcel(Parcel),
    /// Network errors for what somebody has sent.
    Unreachable(Arc<[(SocketAddr, Unreachable)]>),
    /// For the one who decides about PBXs.
    Evidence(Evidence),
    /// For the same one, who decides about bans too.
    Suspicion(Suspicion),
}

impl Mail {
    fn size(&self) -> usize {
        match self {
            Self::Parcel(parcel) => parcel.size(),
            Self::Unreachable(_) | Self::Evidence(_) | Self::Suspicion(_) => size_of::<Self>(),
        }
    }
}

/// What a worker is to do between two messages.
pub(super) type Order = Box<dyn FnOnce(&mut Worker) + Send>;

/// Where one worker gets its mail.
pub(super) struct Mailbox {
    mail: Receiver<Mail>,
    waiting: Arc<AtomicUsize>,
    orders: UnboundedReceiver<Order>,
}

/// What a mailbox holds.
pub(super) enum Received {
    Mail(Mail),
    Order(Order),
}

impl Mailbox {
    /// The next piece, orders first. None when nobody is left who could write.
    pub(super) async fn receive(&mut self) -> Option<Received> {
        tokio::select! {
            biased;
            order = self.orders.recv() => Some(Received::Order(order?)),
            mail = self.mail.recv() => Some(Received::Mail(self.taken(mail?))),
        }
    }

    /// A piece of mail that is there already.
    pub(super) fn try_receive(&mut self) -> Option<Mail> {
        self.mail.try_recv().ok().map(|mail| self.taken(mail))
    }

    fn taken(&self, mail: Mail) -> Mail {
        self.waiting.fetch_sub(mail.size(), Ordering::Relaxed);
        mail
    }
}

/// The address of one worker.
#[derive(Clone)]
struct Address {
    mail: Sender<Mail>,
    waiting: Arc<AtomicUsize>,
    orders: UnboundedSender<Order>,
    /// Milliseconds from [`Peers::start`] to when its heart beat last.
    pulse: Arc<AtomicU64>,
}

/// All workers, as one of them sees them.
#[derive(Clone)]
pub(super) struct Peers {
    me: owner::Worker,
    all: Arc<[Address]>,
    start: Instant,
}

impl Peers {
    /// So many workers with their mailboxes. `key` is secret.
    pub(super) fn group(count: usize, key: [u64; 2]) -> Vec<(Self, Mailbox)> {
        let start = Instant::now();
        let (mut all, mut boxes) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (to_mail, mail) = channel(MAIL);
            let (to_orders, orders) = unbounded_channel();
            let waiting = Arc::<AtomicUsize>::default();
            boxes.push(Mailbox { mail, waiting: waiting.clone(), orders });
            let pulse = Arc::default();
            all.push(Address { mail: to_mail, waiting, orders: to_orders, pulse });
        }
        let all: Arc<[_]> = all.into();
        let of =
            |number| Self { me: owner::Worker::new(number, count, key), all: all.clone(), start };
        boxes.into_iter().enumerate().map(|(number, mailbox)| (of(number), mailbox)).collect()
    }

    /// Which one this is.
    pub(super) fn me(&self) -> owner::Worker {
        self.me
    }

    /// The numbers of the others.
    pub(super) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.me.number();
        (0..self.me.count()).filter(move |number| *number != me)
    }

    /// Writes to a worker. False if it has too much to read.
    pub(super) fn post(&self, to: usize, mail: Mail) -> bool {
        let Some(address) = self.all.get(to) else { return false };
        let size = mail.size();
        if address.waiting.fetch_add(size, Ordering::Relaxed) < MAIL_BYTES
            && address.mail.try_send(mail).is_ok()
        {
            return true;
        }
        address.waiting.fetch_sub(size, Ordering::Relaxed);
        false
    }

    /// Gives an order to a worker.
    pub(super) fn order(&self, to: usize, order: impl FnOnce(&mut Worker) + Send + 'static) {
        if let Some(address) = self.all.get(to) {
            // One that has ended is noticed by who has started it.
            let _ = address.orders.send(Box::new(order));
        }
    }

    /// Asks a worker. None if it does not answer.
    pub(super) fn ask<T, F>(
        &self,
        to: usize,
        question: F,
    ) -> impl Future<Output = Option<T>> + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&mut Worker) -> T + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.order(to, move |worker| {
            // Nobody may wait any more.
            let _ = answer.send(question(worker));
        });
        async { timeout(PATIENCE, answered).await.ok()?.ok() }
    }

    /// This one is alive.
    pub(super) fn beat(&self) {
        let passed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(address) = self.all.get(self.me.number()) {
            address.pulse.store(passed, Ordering::Relaxed);
        }
    }

    /// From now on all are to be seen alive.
    pub(super) fn begin(&self) {
        let passed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.all.iter().for_each(|address| address.pulse.store(passed, Ordering::Relaxed));
    }

    /// Who was seen alive longest ago, and when.
    pub(super) fn slowest(&self) -> (usize, Instant) {
        let beats = self.all.iter().map(|address| address.pulse.load(Ordering::Relaxed));
        let (passed, number) = beats.zip(0..).min().unwrap_or_default();
        (number, self.start + Duration::from_millis(passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_is_bounded_in_pieces_and_in_bytes() {
        let mut group = Peers::group(2, [1, 2]);
        let (_, mut mailbox) = group.pop().unwrap();
        let (peers, _) = group.pop().unwrap();
        assert_eq!(peers.others().collect::<Vec<_>>(), [1]);
        let error = || {
            let to = "192.0.2.1:5060".parse().unwrap();
            Mail::Unreachable(Arc::new([(to, Unreachable::Port)]))
        };
        assert_eq!((0..2 * MAIL).filter(|_| peers.post(1, error())).count(), MAIL);
        assert!(!peers.post(2, error()), "there is no such worker");
        let mut read = 0;
        while mailbox.try_receive().is_some() {
            read += 1;
        }
        assert_eq!(read, MAIL);
        assert_eq!(mailbox.waiting.load(Ordering::Relaxed), 0);
        // As if there were large messages.
        mailbox.waiting.store(MAIL_BYTES, Ordering::Relaxed);
        assert!(!peers.post(1, error()));
        assert_eq!(mailbox.waiting.load(Ordering::Relaxed), MAIL_BYTES);
    }

    #[test]
    fn the_slowest_heart_is_known() {
        let group = Peers::group(3, [1, 2]);
        std::thread::sleep(Duration::from_millis(3));
        for (peers, _) in group.iter().filter(|(peers, _)| peers.me().number() != 1) {
            peers.beat();
        }
        let (number, at) = group[0].0.slowest();
        assert_eq!(number, 1);
        assert!(at < Instant::now());
    }
}
