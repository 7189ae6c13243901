//! Writing behind: changes are queued, and a task carries them to the database in batches.
//!
//! What the queue has taken is not lost when the database goes away: it waits, and is written when the
//! database is back, in order for each binding. Of a binding only its newest state waits. A batch whose
//! commit was not answered is written again; that does no harm, since bindings are replaced by their key and
//! records are kept apart by their `uniqueid`. What is queued when the process is killed is lost.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use sqlx::{AnyConnection, Connection};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::binding::{self, Binding, BindingKey};
use super::cdr::{self, Cdr, Record};
use super::dialect::Dialect;
use super::sql::Sized;
use super::{Boxed, Error, Store};

/// How long a batch may take before the connection is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The first and the longest pause between two attempts to reach the database.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Room for so many batches stays when nothing waits.
const KEPT_BATCHES: usize = 4;

/// How much is queued, and when it is written.
#[derive(Clone, Copy, Debug)]
pub struct WriterSettings {
    /// Changes of bindings that may wait. One for each binding, however often it changes.
    pub max_bindings: usize,
    /// Records that may wait.
    pub max_cdrs: usize,
    /// So many changes are written without waiting for more.
    pub batch: usize,
    /// The longest that a change waits for others.
    pub interval: Duration,
}

impl Default for WriterSettings {
    fn default() -> Self {
        Self {
            max_bindings: 200_000,
            max_cdrs: 100_000,
            batch: 1000,
            interval: Duration::from_millis(200),
        }
    }
}

/// Why a change was not taken. Nothing is queued then, and nothing may be acknowledged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// As many changes wait as may.
    Full,
    /// A text is too long, or holds what cannot be stored.
    Value {
        /// Which.
        field: &'static str,
    },
    /// The writer has been stopped.
    Stopped,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the queue to the database is full"),
            Self::Value { field } => write!(f, "{field} is too long or cannot be stored"),
            Self::Stopped => f.write_str("the writer to the database has been stopped"),
        }
    }
}

impl std::error::Error for Refused {}

/// What the writer has done, and how it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Counters {
    /// Changes taken.
    pub queued: u64,
    /// Changes that took the place of one that waited.
    pub coalesced: u64,
    /// Changes refused.
    pub refused: u64,
    /// Changes written.
    pub written: u64,
    /// Changes that the database will not have: they are lost, and logged.
    pub failed: u64,
    /// Of the changes refused: records of calls.
    pub refused_cdrs: u64,
    /// Of the changes written: records of calls.
    pub written_cdrs: u64,
    /// Of the changes that the database will not have: records of calls.
    pub failed_cdrs: u64,
    /// Batches written.
    pub batches: u64,
    /// How often the database came back.
    pub reconnects: u64,
    /// Changes of bindings that wait now.
    pub waiting_bindings: u64,
    /// Records that wait now.
    pub waiting_cdrs: u64,
    /// Whether the database is there now, as far as the writer knows.
    pub connected: bool,
}

/// What a stopped writer could not write.
#[derive(Debug, Default)]
pub struct Left {
    /// So many changes of bindings.
    pub bindings: usize,
    /// These records.
    pub cdrs: Vec<Cdr>,
}

/// Takes changes and writes them behind. Taking does not wait, and may be done from any thread.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
    alive: watch::Receiver<()>,
}

impl Writer {
    /// Starts the task, which reaches for the database at once and prepares its tables
    /// ([`Store::prepare`]) when that has not been done yet. Wants a tokio runtime.
    pub fn start(store: &Store, settings: WriterSettings) -> Self {
        let shared = Arc::new(Shared {
            settings,
            queue: Mutex::default(),
            wake: Notify::new(),
            progress: Notify::new(),
            counts: Counts::default(),
        });
        let (lives, alive) = watch::channel(());
        let task = Task::new(store.clone(), Arc::clone(&shared));
        let task = tokio::spawn(async move {
            // Goes with the task, however that ends.
            let _lives = lives;
            task.run().await;
        });
        Self { shared, task: Mutex::new(Some(task)), alive }
    }

    /// Returns when its task has ended: it was stopped, or it has failed and nothing is written any more.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut alive = self.alive.clone();
        async move { while alive.changed().await.is_ok() {} }
    }

    /// Writes a new binding, or the new state of one.
    ///
    /// # Errors
    /// [`Refused`]; when it is full, changes of bindings that wait already are still taken.
    pub fn put_binding(&self, mut binding: Binding) -> Result<(), Refused> {
        let taken = binding
            .fit()
            .and_then(|()| self.shared.take_binding(binding.key(), Some(Box::new(binding))));
        self.shared.count(taken)
    }

    /// Removes a binding, whether it is there or not.
    ///
    /// # Errors
    /// As [`Writer::put_binding`].
    pub fn delete_binding(&self, key: BindingKey) -> Result<(), Refused> {
        let taken = self.shared.take_binding(key, None);
        self.shared.count(taken)
    }

    /// Writes a call detail record.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn insert_cdr(&self, cdr: Cdr) -> Result<(), Refused> {
        let taken = Record::new(cdr).and_then(|record| self.shared.take_cdr(record));
        add(&self.shared.counts.refused_cdrs, usize::from(taken.is_err()));
        self.shared.count(taken)
    }

    /// What it has done, and how it is. Waits for nothing.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    /// Changes of bindings that wait now. Waits for nothing.
    pub fn waiting_bindings(&self) -> usize {
        self.shared.counts.waiting_bindings.load(Ordering::Acquire)
    }

    /// Writes what waits without waiting for more, and says whether nothing waits any longer.
    pub async fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let progress = self.shared.progress.notified();
            {
                let mut queue = self.shared.queue();
                if queue.waiting() == 0 {
                    return true;
                }
                queue.hurry = true;
            }
            self.shared.wake.notify_one();
            if timeout_at(deadline, progress).await.is_err() {
                return self.shared.queue().waiting() == 0;
            }
        }
    }

    /// Takes no more changes, writes what waits, and ends. What is not written within the limit comes back.
    pub async fn stop(&self, limit: Duration) -> Left {
        self.shared.queue().stopped = true;
        self.flush(limit).await;
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            // Aborted is what it is to be.
            let _ = task.await;
        }
        let mut queue = self.shared.queue();
        let bindings = queue.bindings.len() + queue.flying_bindings.len();
        let flying = std::mem::take(&mut queue.flying_cdrs);
        let waiting = std::mem::take(&mut queue.cdrs);
        let cdrs = flying.iter().cloned().chain(waiting).map(Record::into_cdr).collect();
        Left { bindings, cdrs }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }
}

/// The state that a binding is to have: `None` is gone.
type State = Option<Box<Binding>>;
type BindingChange = (BindingKey, State);

/// What the taking side and the task share.
#[derive(Debug)]
struct Shared {
    settings: WriterSettings,
    queue: Mutex<Queue>,
    /// There is something to do.
    wake: Notify,
    /// Something was written.
    progress: Notify,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Queue {
    bindings: HashMap<BindingKey, State>,
    /// The keys of `bindings`, the oldest change first.
    order: VecDeque<BindingKey>,
    cdrs: VecDeque<Record>,
    /// The batch that is being written. It counts as waiting until the database has it.
    flying_bindings: Arc<Vec<BindingChange>>,
    flying_cdrs: Arc<Vec<Record>>,
    /// Somebody waits: do not wait for more.
    hurry: bool,
    stopped: bool,
}

impl Queue {
    fn waiting(&self) -> usize {
        self.waiting_bindings() + self.waiting_cdrs()
    }

    fn waiting_bindings(&self) -> usize {
        self.bindings.len() + self.flying_bindings.len()
    }

    fn waiting_cdrs(&self) -> usize {
        self.cdrs.len() + self.flying_cdrs.len()
    }

    /// Gives back what an outage of the database has taken, but for room for so many changes.
    fn release(&mut self, room: usize) {
        self.bindings.shrink_to(room);
        self.order.shrink_to(room);
        self.cdrs.shrink_to(room);
    }
}

#[derive(Debug, Default)]
struct Counts {
    queued: AtomicU64,
    coalesced: AtomicU64,
    refused: AtomicU64,
    written: AtomicU64,
    failed: AtomicU64,
    refused_cdrs: AtomicU64,
    written_cdrs: AtomicU64,
    failed_cdrs: AtomicU64,
    batches: AtomicU64,
    reconnects: AtomicU64,
    connected: AtomicBool,
    /// What waits, beside the queue: who only counts need not wait for the queue.
    waiting_bindings: AtomicUsize,
    waiting_cdrs: AtomicUsize,
}

fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is held; if something did, the queue would still be whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_binding(&self, key: BindingKey, state: State) -> Result<(), Refused> {
        let mut queue = self.queue();
        if queue.stopped {
            return Err(Refused::Stopped);
        }
        let room = queue.waiting_bindings() < self.settings.max_bindings;
        if let Some(waits) = queue.bindings.get_mut(&key) {
            *waits = state;
            add(&self.counts.coalesced, 1);
            return Ok(());
        }
        if !room {
            return Err(Refused::Full);
        }
        queue.bindings.insert(key, state);
        queue.order.push_back(key);
        self.note(&queue);
        self.tell(&queue);
        Ok(())
    }

    fn take_cdr(&self, record: Record) -> Result<(), Refused> {
        let mut queue = self.queue();
        if queue.stopped {
            return Err(Refused::Stopped);
        }
        if queue.waiting_cdrs() >= self.settings.max_cdrs {
            return Err(Refused::Full);
        }
        queue.cdrs.push_back(record);
        self.note(&queue);
        self.tell(&queue);
        Ok(())
    }

    fn note(&self, queue: &Queue) {
        // Released, so that who has seen that something was taken also sees that it waits.
        self.counts.waiting_bindings.store(queue.waiting_bindings(), Ordering::Release);
        self.counts.waiting_cdrs.store(queue.waiting_cdrs(), Ordering::Release);
    }

    /// Wakes the task when a first change waits, or a full batch.
    fn tell(&self, queue: &Queue) {
        let waiting = queue.bindings.len() + queue.cdrs.len();
        if waiting == 1 || waiting == self.settings.batch {
            self.wake.notify_one();
        }
    }

    fn count(&self, taken: Result<(), Refused>) -> Result<(), Refused> {
        add(if taken.is_ok() { &self.counts.queued } else { &self.counts.refused }, 1);
        taken
    }

    fn counters(&self) -> Counters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        Counters {
            queued: of(&counts.queued),
            coalesced: of(&counts.coalesced),
            refused: of(&counts.refused),
            written: of(&counts.written),
            failed: of(&counts.failed),
            refused_cdrs: of(&counts.refused_cdrs),
            written_cdrs: of(&counts.written_cdrs),
            failed_cdrs: of(&counts.failed_cdrs),
            batches: of(&counts.batches),
            reconnects: of(&counts.reconnects),
            waiting_bindings: counts.waiting_bindings.load(Ordering::Acquire) as u64,
            waiting_cdrs: counts.waiting_cdrs.load(Ordering::Acquire) as u64,
            connected: counts.connected.load(Ordering::Relaxed),
        }
    }

    /// Returns when a batch is full, or the oldest change has waited long enough.
    async fn wait_for_batch(&self) {
        let settings = &self.settings;
        let mut deadline = None;
        loop {
            {
                let queue = self.queue();
                let waiting = queue.bindings.len() + queue.cdrs.len();
                if waiting >= settings.batch || (waiting > 0 && queue.hurry) {
                    return;
                }
                if waiting > 0 {
                    deadline.get_or_insert_with(|| Instant::now() + settings.interval);
                }
            }
            let woken = self.wake.notified();
            match deadline {
                None => woken.await,
                Some(deadline) => {
                    if timeout_at(deadline, woken).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Makes the oldest changes the flying batch.
    fn take_off(&self) -> Batch {
        let mut queue = self.queue();
        let size = self.settings.batch.max(1);
        let mut bindings = Vec::with_capacity(size.min(queue.order.len()));
        while bindings.len() < size
            && let Some(key) = queue.order.pop_front()
        {
            if let Some(state) = queue.bindings.remove(&key) {
                bindings.push((key, state));
            }
        }
        // Two nodes that write the same rows take their locks in the same order.
        bindings.sort_unstable_by_key(|(key, _)| *key);
        let records = size.min(queue.cdrs.len());
        let cdrs = queue.cdrs.drain(..records).collect();
        queue.flying_bindings = Arc::new(bindings);
        queue.flying_cdrs = Arc::new(cdrs);
        self.note(&queue);
        Batch { bindings: Arc::clone(&queue.flying_bindings), cdrs: Arc::clone(&queue.flying_cdrs) }
    }

    fn landed(&self) {
        let mut queue = self.queue();
        queue.flying_bindings = Arc::default();
        queue.flying_cdrs = Arc::default();
        if queue.waiting() == 0 {
            queue.hurry = false;
            queue.release(KEPT_BATCHES * self.settings.batch);
        }
        self.note(&queue);
        drop(queue);
        self.progress.notify_waiters();
    }
}

/// Changes that are written together.
#[derive(Debug)]
struct Batch {
    bindings: Arc<Vec<BindingChange>>,
    cdrs: Arc<Vec<Record>>,
}

#[derive(Debug)]
struct Task {
    store: Store,
    shared: Arc<Shared>,
    connection: Option<AnyConnection>,
    prepared: bool,
    /// Whether there ever was a connection.
    known: bool,
    pause: Duration,
    statements: Statements,
}

impl Task {
    fn new(store: Store, shared: Arc<Shared>) -> Self {
        Self {
            statements: Statements::new(store.inner.dialect),
            store,
            shared,
            connection: None,
            prepared: false,
            known: false,
            pause: PAUSES.0,
        }
    }

    async fn run(mut self) {
        loop {
            self.connected().await;
            self.shared.wait_for_batch().await;
            let batch = self.shared.take_off();
            if batch.bindings.is_empty() && batch.cdrs.is_empty() {
                continue;
            }
            // Until the database has taken or refused all of it: the newer ones wait meanwhile.
            while let Err(error) = self.write(&batch).await {
                self.lost(&error);
                // Also for a database that can be reached but does not write, as with a full disk.
                self.rest().await;
                self.connected().await;
            }
            self.pause = PAUSES.0;
            add(&self.shared.counts.batches, 1);
            self.shared.landed();
        }
    }

    /// Returns when there is a connection and the tables are there.
    async fn connected(&mut self) {
        while self.connection.is_none() {
            match self.connect().await {
                Ok(connection) => {
                    self.connection = Some(connection);
                    self.shared.counts.connected.store(true, Ordering::Relaxed);
                    if self.known {
                        add(&self.shared.counts.reconnects, 1);
                        let waiting = self.shared.queue().waiting();
                        tracing::info!(waiting, "the database is back");
                    }
                    self.known = true;
                }
                Err(error) => {
                    self.lost(&error);
                    self.rest().await;
                }
            }
        }
    }

    /// Waits before the next attempt, longer each time.
    async fn rest(&mut self) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSES.1);
    }

    async fn connect(&mut self) -> Result<AnyConnection, Error> {
        let mut connection = self.store.connect().await?;
        if !self.prepared {
            let prepared = timeout(6 * WRITE_TIMEOUT, self.store.prepare_on(&mut connection));
            prepared.await.unwrap_or(Err(Error::Unavailable(sqlx::Error::PoolTimedOut)))?;
            self.prepared = true;
        }
        Ok(connection)
    }

    fn lost(&mut self, error: &Error) {
        self.connection = None;
        let first = !self.known && self.pause == PAUSES.0;
        if self.shared.counts.connected.swap(false, Ordering::Relaxed) || first {
            let waiting = self.shared.queue().waiting();
            tracing::warn!(%error, waiting, "the database is away; changes wait until it is back");
        }
    }

    /// Writes a batch. What the database will not have is counted and left out; an error is that the
    /// database went away.
    async fn write(&mut self, batch: &Batch) -> Result<(), Error> {
        let all = batch.bindings.len() + batch.cdrs.len();
        match self.transaction(&batch.bindings, &batch.cdrs).await {
            Ok(()) => {
                add(&self.shared.counts.written, all);
                add(&self.shared.counts.written_cdrs, batch.cdrs.len());
                return Ok(());
            }
            Err(error) if self.is_about_values(&error) => {}
            Err(error) => return Err(error),
        }
        // How many in all, and how many of these are records.
        let add_one = |counts: &mut [usize; 2], cdr: &[Record]| {
            counts[0] += 1;
            counts[1] += cdr.len();
        };
        // One of them is to blame, and the others must not suffer. Should the database go away meanwhile,
        // all of them are written again: that does no harm.
        let (mut written, mut failed) = ([0, 0], [0, 0]);
        for number in 0..all {
            // One list after the other: beyond its end a list gives nothing.
            let binding = batch.bindings.get(number..=number).unwrap_or_default();
            let number = number.wrapping_sub(batch.bindings.len());
            let cdr = batch.cdrs.get(number..).and_then(|cdrs| cdrs.get(..1)).unwrap_or_default();
            match self.transaction(binding, cdr).await {
                Ok(()) => add_one(&mut written, cdr),
                Err(error) if self.is_about_values(&error) => {
                    add_one(&mut failed, cdr);
                    let uniqueid = cdr.first().map(Record::uniqueid);
                    tracing::error!(%error, uniqueid, "the database refuses a change; it is lost");
                }
                Err(error) => return Err(error),
            }
        }
        let counts = &self.shared.counts;
        let [all, cdrs] = written;
        add(&counts.written, all);
        add(&counts.written_cdrs, cdrs);
        let [all, cdrs] = failed;
        add(&counts.failed, all);
        add(&counts.failed_cdrs, cdrs);
        Ok(())
    }

    fn transaction<'a>(
        &'a mut self,
        bindings: &'a [BindingChange],
        cdrs: &'a [Record],
    ) -> Boxed<'a, (), Error> {
        Box::pin(async move {
            // `connected` has seen to it that there is one; without, it is as if it had been lost.
            let Some(connection) = &mut self.connection else {
                return Err(Error::Unavailable(sqlx::Error::PoolClosed));
            };
            match timeout(WRITE_TIMEOUT, self.statements.write(connection, bindings, cdrs)).await {
                Ok(done) => done.map_err(Error::Unavailable),
                Err(_) => Err(Error::Unavailable(sqlx::Error::PoolTimedOut)),
            }
        })
    }

    fn is_about_values(&self, error: &Error) -> bool {
        match error {
            Error::Unavailable(sqlx::Error::Database(error)) => {
                self.store.inner.dialect.is_about_values(error.as_ref())
            }
            Error::Unavailable(sqlx::Error::Encode(_)) => true,
            _ => false,
        }
    }
}

/// The statements that carry changes.
#[derive(Debug)]
struct Statements {
    put: Sized,
    delete: Sized,
    insert: Sized,
}

impl Statements {
    fn new(dialect: &dyn Dialect) -> Self {
        let update = dialect.or_update("id", binding::COLUMNS);
        let ignore = dialect.or_ignore("uniqueid");
        Self {
            put: Sized::insert(dialect, "location", binding::COLUMNS, &[], &update),
            delete: Sized::delete(dialect, "location", "id"),
            insert: Sized::insert(dialect, "cdr", cdr::COLUMNS, cdr::TIMES, &ignore),
        }
    }

    /// Carries changes to the database in one transaction.
    fn write<'a>(
        &'a self,
        connection: &'a mut AnyConnection,
        bindings: &'a [BindingChange],
        cdrs: &'a [Record],
    ) -> Boxed<'a, ()> {
        Box::pin(async move {
            let ids: Vec<String> = bindings.iter().map(|(key, _)| key.hex()).collect();
            let mut puts = Vec::with_capacity(bindings.len());
            let mut deletes = Vec::new();
            for (id, (_, state)) in ids.iter().zip(bindings) {
                match state {
                    Some(binding) => puts.push((id, binding)),
                    None => deletes.push(id),
                }
            }
            let mut transaction = connection.begin().await?;
            for (text, piece) in self.put.pieces(&puts) {
                // Who shares the CPU has its turn before each piece: SIP, where it is late.
                thread::yield_now();
                let mut query = sqlx::query(text);
                for (id, binding) in piece {
                    query = binding.bind(id, query);
                }
                query.execute(&mut *transaction).await?;
            }
            for (text, piece) in self.delete.pieces(&deletes) {
                thread::yield_now();
                let mut query = sqlx::query(text);
                for id in piece {
                    query = query.bind(id.as_str());
                }
                query.execute(&mut *transaction).await?;
            }
            for (text, piece) in self.insert.pieces(cdrs) {
                thread::yield_now();
                let mut query = sqlx::query(text);
                for record in piece {
                    query = record.bind(query);
                }
                query.execute(&mut *transaction).await?;
            }
            transaction.commit().await
        })
    }
}
