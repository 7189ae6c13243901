//! What runs on the thread of a worker: a task for each socket, the timer, the mailbox, the heartbeat.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::Notify;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};

use super::keeper::Reports;
use super::peers::{Mailbox, Received};
use super::worker::Worker;
use crate::io::udp::Udp;

/// How often each worker says that it is alive.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// How often it is looked what the kernel tells: short beside the time in which a PBX refuses a call, and long enough to
/// cost nothing. The ring holds the calls of that time at any rate.
const EVENTS: Duration = Duration::from_millis(10);
/// Pieces of mail that are read before others have their turn.
const MAIL_IN_A_ROW: usize = 8;

/// Everything that runs beside the main task of a thread; nothing of it outlives this.
#[derive(Default)]
pub(super) struct Tasks(JoinSet<()>);

impl Tasks {
    pub(super) fn add(&mut self, task: impl Future<Output = ()> + 'static) {
        self.0.spawn_local(task);
    }

    /// All that a worker does by itself, from its heartbeat on: its bindings are there before it reads its sockets.
    pub(super) async fn serve(
        &mut self,
        worker: &Rc<RefCell<Worker>>,
        reports: Option<Reports>,
        mailbox: Mailbox,
    ) -> Result<()> {
        self.add(vouch(worker.clone()));
        if let Some(mut reports) = reports {
            reports.restore(worker).await?;
            self.add(reports.hear(worker.clone()));
        }
        let (sockets, wake) = {
            let worker = worker.borrow();
            (worker.sockets.clone(), worker.wake.clone())
        };
        for at in 0..sockets.len() {
            self.add(read_socket(worker.clone(), sockets.clone(), at));
        }
        self.add(keep_time(worker.clone(), wake));
        if worker.borrow().events.is_some() {
            self.add(read_events(worker.clone()));
        }
        if !worker.borrow().peers.me().is_alone() {
            self.add(read_mail(worker.clone(), mailbox));
        }
        Ok(())
    }

    /// Waits until one has panicked. Others may end.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        while let Some(ended) = self.0.join_next().await {
            if let Err(error) = ended {
                return anyhow::Error::new(error).context("a task has failed: please report this");
            }
        }
        std::future::pending().await
    }

    /// Ends all and waits for it, so that what they held is free.
    pub(super) async fn end(mut self) {
        self.0.shutdown().await;
    }
}

async fn read_socket(worker: Rc<RefCell<Worker>>, sockets: Rc<[Udp]>, at: usize) {
    let Some(socket) = sockets.get(at) else { return };
    loop {
        let mut guard = match socket.ready().await {
            Ok(guard) => guard,
            Err(error) => {
                tracing::error!(%error, local = %socket.local(), "cannot wait for a socket");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if guard.ready().is_error() {
            worker.borrow_mut().read_errors(at);
        }
        if worker.borrow_mut().read(at) {
            guard.clear_ready();
        } else {
            // More is there: the others first.
            drop(guard);
            yield_now().await;
        }
    }
}

/// What other workers have written.
async fn read_mail(worker: Rc<RefCell<Worker>>, mut mailbox: Mailbox) {
    while let Some(received) = mailbox.receive().await {
        handle_mail(&mut worker.borrow_mut(), received, &mut mailbox);
        yield_now().await;
    }
}

fn handle_mail(worker: &mut Worker, received: Received, mailbox: &mut Mailbox) {
    match received {
        Received::Order(order) => order(worker),
        Received::Mail(mail) => {
            worker.handle_mail(mail);
            for _ in 1..MAIL_IN_A_ROW {
                let Some(mail) = mailbox.try_receive() else { break };
                worker.handle_mail(mail);
            }
        }
    }
}

/// What the kernel tells. It wakes nobody, which would cost it more than the telling.
async fn read_events(worker: Rc<RefCell<Worker>>) {
    let mut look = interval(EVENTS);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        while worker.borrow_mut().read_events() {
            yield_now().await;
        }
    }
}

async fn keep_time(worker: Rc<RefCell<Worker>>, wake: Rc<Notify>) {
    loop {
        let next = worker.borrow_mut().arm();
        let timer = async {
            match next {
                Some(next) => sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = timer => worker.borrow_mut().tick(),
            () = wake.notified() => {}
        }
    }
}

async fn vouch(worker: Rc<RefCell<Worker>>) {
    let mut beat = interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        worker.borrow_mut().beat();
    }
}
