//! The threads of the workers.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::keeper::Reports;
use super::peers::{Mailbox, Peers};
use super::stateful::{self, Seed};
use super::tasks::Tasks;
use super::turns;
use super::worker::{Parts, Worker};
use crate::io::coalesce::Coalescer;

/// How long the other workers may take to end.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// Runs a worker on this thread.
pub(super) fn serve<F: Future<Output = Result<()>>>(
    coalesce: Duration,
    work: impl FnOnce(Arc<Coalescer>) -> F,
) -> Result<()> {
    turns::soon();
    let coalescer = Arc::new(Coalescer::new(coalesce));
    let (idle, woken) = (coalescer.clone(), coalescer.clone());
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.on_thread_park(move || idle.idle()).on_thread_unpark(move || woken.woken());
    let runtime = runtime.enable_all().build()?;
    LocalSet::new().block_on(&runtime, work(coalescer))
}

/// What the thread of a worker starts with.
pub(super) struct Start {
    pub(super) parts: Parts,
    pub(super) reports: Option<Reports>,
    pub(super) mailbox: Mailbox,
    pub(super) seed: Seed,
}

/// The other workers, each on a thread of its own.
pub(super) struct Crew {
    /// Each says how it has ended.
    ended: UnboundedReceiver<(usize, Result<()>)>,
    left: usize,
}

impl Crew {
    pub(super) fn start(starts: Vec<Start>) -> Result<Self> {
        let (end, ended) = unbounded_channel();
        let left = starts.len();
        for start in starts {
            let number = start.parts.peers.me().number();
            let end = end.clone();
            let work = move || {
                let coalesce = start.parts.config.sip.coalesce;
                let served = || serve(coalesce, move |coalescer| follower(start, coalescer));
                // What it held goes with it, and the daemon too.
                let result = catch_unwind(AssertUnwindSafe(served));
                let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("it has panicked")));
                let _ = end.send((number, result));
            };
            let thread = std::thread::Builder::new().name(format!("sip-{}", number + 1));
            thread.spawn(work).context("no thread for a worker")?;
        }
        Ok(Self { ended, left })
    }

    /// Waits until one ends that should not.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match self.ended.recv().await {
            Some((number, result)) => {
                self.left -= 1;
                let why = result.err().unwrap_or_else(|| anyhow::anyhow!("it has ended"));
                why.context(format!("worker {} of the daemon has failed", number + 1))
            }
            // There are no others.
            None => std::future::pending().await,
        }
    }

    /// Ends all and waits for it.
    pub(super) async fn end(mut self, peers: &Peers) {
        for other in peers.others() {
            peers.order(other, |worker| worker.end.notify_one());
        }
        let all = async {
            while self.left > 0
                && let Some((number, result)) = self.ended.recv().await
            {
                self.left -= 1;
                if let Err(error) = result {
                    let (worker, error) = (number + 1, format!("{error:#}"));
                    tracing::error!(worker, error, "a worker has failed at its end");
                }
            }
        };
        if timeout(END_PATIENCE, all).await.is_err() {
            tracing::error!(left = self.left, "workers do not end: their calls have no record");
        }
    }
}

/// A worker that is not the first.
async fn follower(start: Start, coalescer: Arc<Coalescer>) -> Result<()> {
    let Start { parts, reports, mailbox, seed } = start;
    let mut worker = Worker::new(parts, coalescer)?;
    let stateful = stateful::open(&worker.config, &seed, worker.peers.me())?;
    worker.proxy.set_stateful(stateful);
    worker.restore_calls();
    worker.beat();
    let end = worker.end.clone();
    let worker = Rc::new(RefCell::new(worker));
    worker.borrow_mut().begin();
    let mut tasks = Tasks::default();
    let mut result = tasks.serve(&worker, reports, mailbox).await;
    if result.is_ok() {
        tokio::select! {
            () = end.notified() => {}
            error = tasks.failed() => result = Err(error),
        }
    }
    tasks.end().await;
    if result.is_ok() {
        worker.borrow_mut().close_records();
    }
    result
}
