//! The store, on a thread of its own.
//!
//! Rows for a database take milliseconds when there are a thousand of them, and nobody's call is to wait for
//! that. So all that speaks to the database is here, beside the thread that speaks SIP and below it in priority;
//! between them there are channels, and nothing that either could hold while the other wants it. All workers write into
//! the same two; each hears what is its own.
//!
//! ```text
//!  SIP ── Save, Remove, Cdr ──► take_changes ──► Writer ──► batches ──► database
//!      ── FetchSecrets ───────► answer ────────► Finder ──► batches ──► database
//!      ◄─ Report ────────────── answer, read_back ◄──────────────────── database
//! ```
//!
//! What waits is bounded by the core: changes by [`Keeper::has_room`], questions by the authenticator.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc as blocking;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc::{
    Receiver, Sender, UnboundedReceiver, UnboundedSender, channel, unbounded_channel,
};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{sleep, sleep_until, timeout};

use super::worker::Worker;
use super::{memory, rows, turns};
use crate::core::accounting::Cdr;
use crate::core::authenticator::{Away, Ticket};
use crate::core::clock::Clock;
use crate::core::digest::Secret;
use crate::core::owner;
use crate::core::registrar::{Key as BindingName, Row};
use crate::store::{
    self, Counters, Finder, Left, MOST_USERS, Refused, Settings, Store, Writer, WriterSettings,
};

/// How long the start waits for the bindings of a store that does not answer. They come later then.
const START_PATIENCE: Duration = Duration::from_secs(3);
/// How long what waits for the store may take at the end.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How much longer than that its thread may take to end.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// The first and the longest pause between two attempts to read the bindings, and how long one may take.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
const READ_PATIENCE: Duration = Duration::from_secs(300);
/// How long changes wait for others before they are taken, so that they wake the thread seldom.
const TAKE_INTERVAL: Duration = Duration::from_millis(20);
/// How long after a question to the database the next one is put, with all that was wanted meanwhile: a question costs
/// about as much for one user as for ten.
const ASK_INTERVAL: Duration = Duration::from_millis(3);
/// So many changes are taken before others have their turn, on the thread and on its CPU.
const CHANGES_AT_ONCE: usize = 64;
/// So many bindings that were read back, or answers, are handled before SIP has its turn.
const ROWS_AT_ONCE: usize = 100;
const ANSWERS_AT_ONCE: usize = 16;
/// Reports that may wait. The thread of the store waits then, and its questions are fewer and larger.
const REPORTS: usize = 16;
/// A tenth of the writer's queue is kept for what is on its way when REGISTERs are refused.
const RESERVE: usize = 10;

/// The answer to a question for secrets.
pub(super) type Answer = (Ticket, Result<Option<Vec<Secret>>, Away>);

/// The side of one worker: takes what goes to the store, and never waits for it.
pub(super) struct Keeper {
    worker: usize,
    engine: &'static str,
    writer: Arc<Writer>,
    changes: UnboundedSender<Change>,
    questions: UnboundedSender<Question>,
    shared: Arc<Shared>,
    limits: WriterSettings,
    /// Of the first worker.
    left: Option<oneshot::Receiver<Left>>,
}

impl Keeper {
    /// Starts the thread, which begins with reading the bindings back. `first` is the first worker; for each there are
    /// its side and what it hears.
    ///
    /// # Errors
    /// The store's settings are wrong, or there can be no thread.
    pub(super) fn start(
        settings: Settings,
        limits: WriterSettings,
        clock: Clock,
        first: owner::Worker,
    ) -> Result<Vec<(Self, Reports)>> {
        let (changes, changed) = unbounded_channel();
        let (questions, asked) = unbounded_channel();
        let (report, reports): (Vec<_>, Vec<_>) =
            (0..first.count()).map(|_| channel(REPORTS)).unzip();
        let (leave, left) = oneshot::channel();
        let (started, start) = blocking::sync_channel(1);
        let shared = Arc::<Shared>::default();
        let shares = Arc::clone(&shared);
        let ends = Ends { changed, asked, report, leave, shared: shares, clock, first };
        let thread = thread::Builder::new().name("store".into());
        let serve = {
            let shared = Arc::clone(&shared);
            move || watch(&shared, || serve(&settings, limits, ends, &started))
        };
        // It ends with the channels.
        thread.spawn(serve).context("no thread for the store")?;
        let started = start.recv().context("the thread of the store does not start")?;
        let (engine, writer) = started.context("[store]")?;
        let restored = Arc::new(Restored::new(reports.len()));
        let mut left = Some(left);
        let sides = reports.into_iter().enumerate().map(|(worker, reports)| {
            let keeper = Self {
                worker,
                engine,
                writer: writer.clone(),
                changes: changes.clone(),
                questions: questions.clone(),
                shared: shared.clone(),
                limits,
                left: left.take(),
            };
            let restored = restored.clone();
            (keeper, Reports { reports, engine, taken: 0, refused: 0, restored })
        });
        Ok(sides.collect())
    }

    /// The engine's name, for people.
    pub(super) fn engine(&self) -> &'static str {
        self.engine
    }

    pub(super) fn ask(&self, ticket: Ticket, user: Box<str>, domain: Box<str>) {
        // If nobody is there who answers, the question is given up in its time, as if the store were away.
        let _ = self.questions.send(Question { worker: self.worker, ticket, user, domain });
    }

    pub(super) fn save(&self, row: Box<Row>) {
        if let Err(refused) = self.hand(Change::Save(row)) {
            tracing::error!(%refused, "a registration is not stored");
        }
    }

    pub(super) fn remove(&self, key: Box<BindingName>) {
        if let Err(refused) = self.hand(Change::Remove(key)) {
            tracing::error!(%refused, "the end of a registration is not stored");
        }
    }

    pub(super) fn record(&self, cdr: Box<Cdr>) {
        if let Err(refused) = self.hand(Change::Record(cdr)) {
            tracing::error!(%refused, "the record of a call is not stored");
        }
    }

    /// Whether there is room for what would be accepted.
    pub(super) fn has_room(&self) -> bool {
        let most = self.limits.max_bindings - self.limits.max_bindings / RESERVE;
        let waiting = self.shared.bindings.load(Ordering::Acquire) + self.writer.waiting_bindings();
        waiting < most && !self.shared.failed()
    }

    pub(super) fn counters(&self) -> Counters {
        // In this order: what has left the first is in the second.
        let bindings = self.shared.bindings.load(Ordering::Acquire);
        let cdrs = self.shared.cdrs.load(Ordering::Acquire);
        let mut counters = self.writer.counters();
        counters.waiting_bindings += bindings as u64;
        counters.waiting_cdrs += cdrs as u64;
        counters.refused += self.shared.refused.load(Ordering::Relaxed);
        counters.refused_cdrs += self.shared.refused_cdrs.load(Ordering::Relaxed);
        counters.connected &= !self.shared.failed();
        counters
    }

    /// Writes what waits. The other workers have ended.
    pub(super) async fn stop(self) {
        let Self { changes, left, .. } = self;
        // The last of them, which is the order to end.
        drop(changes);
        let Some(left) = left else { return };
        match timeout(STOP_PATIENCE + END_PATIENCE, left).await {
            Ok(Ok(left)) if left.bindings + left.cdrs.len() > 0 => tracing::error!(
                bindings = left.bindings,
                records = left.cdrs.len(),
                "the database is away: these changes are lost"
            ),
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => {
                tracing::error!("the store does not end in order: changes may be lost");
            }
        }
    }

    fn hand(&self, change: Change) -> Result<(), Refused> {
        let (waiting, most) = match change {
            Change::Save(_) | Change::Remove(_) => {
                (&self.shared.bindings, self.limits.max_bindings)
            }
            Change::Record(_) => (&self.shared.cdrs, self.limits.max_cdrs),
        };
        let is_record = matches!(change, Change::Record(_));
        let handed = if waiting.load(Ordering::Relaxed) >= most {
            Err(Refused::Full)
        } else {
            waiting.fetch_add(1, Ordering::Relaxed);
            self.changes.send(change).map_err(|_| Refused::Stopped)
        };
        if handed.is_err() {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            self.shared.refused_cdrs.fetch_add(u64::from(is_record), Ordering::Relaxed);
        }
        handed
    }
}

/// What the store says, for the SIP side.
pub(super) struct Reports {
    reports: Receiver<Report>,
    engine: &'static str,
    taken: usize,
    refused: usize,
    restored: Arc<Restored>,
}

/// What all workers together have read back.
#[derive(Debug)]
struct Restored {
    taken: AtomicUsize,
    refused: AtomicUsize,
    /// Workers that have not all of theirs.
    waited_for: AtomicUsize,
}

impl Restored {
    fn new(workers: usize) -> Self {
        let (taken, refused) = Default::default();
        Self { taken, refused, waited_for: AtomicUsize::new(workers) }
    }

    /// One more has all of its bindings. The last one hears how many there are.
    fn add(&self, taken: usize, refused: usize) -> Option<(usize, usize)> {
        self.taken.fetch_add(taken, Ordering::AcqRel);
        self.refused.fetch_add(refused, Ordering::AcqRel);
        let is_last = self.waited_for.fetch_sub(1, Ordering::AcqRel) == 1;
        is_last.then(|| (self.taken.load(Ordering::Acquire), self.refused.load(Ordering::Acquire)))
    }
}

impl Reports {
    /// Takes the bindings before anything is served, unless the store is away: then they come when it is there.
    ///
    /// # Errors
    /// A store that cannot be used, now or later.
    pub(super) async fn restore(&mut self, worker: &RefCell<Worker>) -> Result<()> {
        let all = async {
            while let Some(report) = self.reports.recv().await {
                match report {
                    Report::Unread(error) if is_final(&error) => bail!("[store] {error}"),
                    Report::Unread(error) => {
                        tracing::warn!(%error, "registrations are not read back yet");
                        break;
                    }
                    report => {
                        let all = matches!(report, Report::Read { .. });
                        self.take(worker, report).await;
                        if all {
                            break;
                        }
                    }
                }
            }
            Ok(())
        };
        timeout(START_PATIENCE, all).await.unwrap_or_else(|_| {
            tracing::warn!("the database does not answer: registrations are not read back yet");
            Ok(())
        })
    }

    /// Takes all that comes, until the thread has ended.
    pub(super) async fn hear(mut self, worker: Rc<RefCell<Worker>>) {
        while let Some(report) = self.reports.recv().await {
            self.take(&worker, report).await;
        }
    }

    async fn take(&mut self, worker: &RefCell<Worker>, report: Report) {
        match report {
            Report::Secrets(mut answers) => {
                while !answers.is_empty() {
                    let some = answers.len().min(ANSWERS_AT_ONCE);
                    worker.borrow_mut().secrets(answers.drain(..some));
                    yield_now().await;
                }
            }
            Report::Bindings(rows) => {
                let taken = worker.borrow_mut().restore(&rows);
                self.taken += taken;
                self.refused += rows.len() - taken;
                yield_now().await;
            }
            Report::Read { malformed } => {
                if let Some((taken, refused)) = self.restored.add(self.taken, self.refused) {
                    memory::give_back();
                    let (refused, engine) = (refused + malformed, self.engine);
                    tracing::info!(taken, refused, engine, "registrations are read back");
                }
            }
            Report::Unread(error) => {
                tracing::debug!(%error, "registrations are not read back yet");
            }
        }
    }
}

/// Whether it will not mend itself.
fn is_final(error: &store::Error) -> bool {
    matches!(error, store::Error::Newer { .. } | store::Error::Foreign { .. })
}

// ---- Between the threads -------------------------------------------------------------------------

/// What is to be written.
enum Change {
    Save(Box<Row>),
    Remove(Box<BindingName>),
    Record(Box<Cdr>),
}

/// Whose secrets are wanted.
struct Question {
    worker: usize,
    ticket: Ticket,
    user: Box<str>,
    domain: Box<str>,
}

/// What the store says.
enum Report {
    /// The answers to questions that were asked together.
    Secrets(Vec<Answer>),
    /// Bindings that it has kept; more follow.
    Bindings(Vec<Row>),
    /// That was all of them, without those that could not be read.
    Read { malformed: usize },
    /// They could not be read yet.
    Unread(Arc<store::Error>),
}

#[derive(Debug, Default)]
struct Shared {
    /// Changes that the thread has not taken yet.
    bindings: AtomicUsize,
    cdrs: AtomicUsize,
    /// Changes that it could not be given, and how many of these were records of calls.
    refused: AtomicU64,
    refused_cdrs: AtomicU64,
    failed: AtomicBool,
}

impl Shared {
    /// Whether the thread has ended before its time.
    fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

/// The thread's ends of the channels.
struct Ends {
    changed: UnboundedReceiver<Change>,
    asked: UnboundedReceiver<Question>,
    /// By worker.
    report: Vec<Sender<Report>>,
    leave: oneshot::Sender<Left>,
    shared: Arc<Shared>,
    clock: Clock,
    first: owner::Worker,
}

// ---- The thread ----------------------------------------------------------------------------------

type Started = Result<(&'static str, Arc<Writer>), store::Error>;

/// Tells when the thread ends before its time: nothing is stored then, so nothing more is accepted.
fn watch(shared: &Shared, serve: impl FnOnce() -> bool) {
    // What it held goes with it; the rest is atomic numbers and channels.
    if !catch_unwind(AssertUnwindSafe(serve)).unwrap_or(false) {
        shared.failed.store(true, Ordering::Relaxed);
        tracing::error!(
            "the thread of the store has failed: registrations and records are not stored any more, and users \
             who are not in memory get 503; start the daemon again, and please report this with the lines above"
        );
    }
}

/// Runs the thread. Says whether it has ended in order.
fn serve(
    settings: &Settings,
    limits: WriterSettings,
    ends: Ends,
    started: &blocking::SyncSender<Started>,
) -> bool {
    turns::later();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = store::Error::Unavailable(sqlx::Error::Io(error));
            // Whoever started the thread waits for this.
            return started.send(Err(error)).is_ok();
        }
    };
    let in_order = runtime.block_on(async {
        let store = match Store::new(settings) {
            Ok(store) => store,
            Err(error) => return started.send(Err(error)).is_ok(),
        };
        let writer = Arc::new(Writer::start(&store, limits));
        if started.send(Ok((store.engine(), Arc::clone(&writer)))).is_err() {
            return true;
        }
        let Ends { changed, asked, report, leave, shared, clock, first } = ends;
        let read = async {
            let read = read_back(&store, clock, first, &report);
            tokio::join!(answer(&store, asked, &report), read);
            std::future::pending().await
        };
        tokio::select! {
            () = take_changes(changed, &writer, &shared, clock) => {}
            () = writer.ended() => return false,
            () = read => {}
        }
        // Nobody may be there any more who wants to know.
        let _ = leave.send(writer.stop(STOP_PATIENCE).await);
        true
    });
    // A name that the system looks up for a connection does not keep us.
    runtime.shutdown_background();
    in_order
}

/// Hands changes to the writer as the store has them, until no more can come.
async fn take_changes(
    mut changed: UnboundedReceiver<Change>,
    writer: &Writer,
    shared: &Shared,
    clock: Clock,
) {
    let mut some = Vec::new();
    loop {
        let count = changed.recv_many(&mut some, CHANGES_AT_ONCE).await;
        if count == 0 {
            return;
        }
        let now = Instant::now();
        let unix = clock.unix(now);
        for change in some.drain(..) {
            let (waiting, taken) = match change {
                Change::Save(row) => {
                    (&shared.bindings, writer.put_binding(rows::binding(*row, now, unix)))
                }
                Change::Remove(name) => (&shared.bindings, writer.delete_binding(rows::key(&name))),
                Change::Record(cdr) => (&shared.cdrs, writer.insert_cdr(rows::record(*cdr))),
            };
            // Behind the writer's own count, so that it never seems that nothing waits.
            waiting.fetch_sub(1, Ordering::Release);
            if let Err(refused) = taken {
                tracing::error!(%refused, "a change is not stored");
            }
        }
        if count < CHANGES_AT_ONCE && !changed.is_closed() {
            sleep(TAKE_INTERVAL).await;
        } else {
            thread::yield_now();
            yield_now().await;
        }
    }
}

/// Answers questions, those that wait together, one batch after the other. The first of many is not kept waiting.
async fn answer(store: &Store, mut asked: UnboundedReceiver<Question>, report: &[Sender<Report>]) {
    let mut finder = Finder::new(store);
    let mut questions = Vec::new();
    let mut next = Instant::now();
    loop {
        sleep_until(next.into()).await;
        if asked.recv_many(&mut questions, MOST_USERS).await == 0 {
            return;
        }
        next = Instant::now() + ASK_INTERVAL;
        let wanted: Vec<_> = questions.iter().map(|asked| (&*asked.user, &*asked.domain)).collect();
        let answers: Vec<(usize, Answer)> = match finder.users(&wanted).await {
            Ok(found) => {
                let found = found.into_iter().map(|user| Ok(user.map(rows::secrets)));
                let asked = questions.drain(..).zip(found);
                asked.map(|(asked, found)| (asked.worker, (asked.ticket, found))).collect()
            }
            Err(error) => {
                // Who has asked meanwhile would fare no better, and later.
                while let Ok(question) = asked.try_recv() {
                    questions.push(question);
                }
                tracing::warn!(%error, users = questions.len(), "users cannot be looked up");
                let away = |asked: Question| (asked.worker, (asked.ticket, Err(Away)));
                questions.drain(..).map(away).collect()
            }
        };
        let mut by_worker: Vec<Vec<Answer>> = report.iter().map(|_| Vec::new()).collect();
        for (worker, answer) in answers {
            if let Some(its) = by_worker.get_mut(worker) {
                its.push(answer);
            }
        }
        for (report, answers) in report.iter().zip(by_worker) {
            if !answers.is_empty() && report.send(Report::Secrets(answers)).await.is_err() {
                return;
            }
        }
    }
}

/// Reads the bindings back, as soon as the database is there.
async fn read_back(store: &Store, clock: Clock, first: owner::Worker, report: &[Sender<Report>]) {
    let mut pause = PAUSES.0;
    let (mut rows, malformed) = loop {
        let error = match timeout(READ_PATIENCE, load(store, clock)).await {
            Ok(Ok(loaded)) => break loaded,
            Ok(Err(error)) => error,
            Err(late) => store::Error::Unavailable(sqlx::Error::Io(late.into())),
        };
        let error = Arc::new(error);
        for report in report {
            if report.send(Report::Unread(error.clone())).await.is_err() {
                return;
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    };
    while !rows.is_empty() {
        let some = rows.split_off(rows.len().saturating_sub(ROWS_AT_ONCE));
        let mut by_worker: Vec<Vec<Row>> = report.iter().map(|_| Vec::new()).collect();
        for row in some {
            // They may have been another's when they were written.
            if let Some(its) = by_worker.get_mut(first.of_user(&row.key.user)) {
                its.push(row);
            }
        }
        for (report, rows) in report.iter().zip(by_worker) {
            if !rows.is_empty() && report.send(Report::Bindings(rows)).await.is_err() {
                return;
            }
        }
    }
    for report in report {
        if report.send(Report::Read { malformed }).await.is_err() {
            return;
        }
    }
    // Those that ended while nobody was here to see it.
    match store.remove_expired_bindings(0).await {
        Ok(gone) => tracing::debug!(gone, "registrations have ended meanwhile"),
        Err(error) => tracing::warn!(%error, "registrations that have ended stay in the database"),
    }
}

/// The bindings, and how many could not be read.
async fn load(store: &Store, clock: Clock) -> Result<(Vec<Row>, usize), store::Error> {
    store.prepare().await?;
    let now = Instant::now();
    let unix = clock.unix(now);
    let (mut all, mut malformed) = (Vec::new(), 0);
    store
        .load_bindings(|binding| match rows::row(binding, now, unix) {
            Some(row) => all.push(row),
            None => malformed += 1,
        })
        .await?;
    Ok((all, malformed))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::core::registrar::Methods;
    use crate::store::{NewUser, Users};

    /// How long anything may take that takes a moment.
    const LIMIT: Duration = Duration::from_secs(20);

    /// A database of SQLite that goes with its owner.
    struct File(PathBuf);

    impl File {
        fn new(name: &str) -> Self {
            let name = format!("sipline-keeper-{name}-{}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn settings(&self) -> Settings {
            let url = format!("sqlite://{}/sipline.db", self.0.display());
            Settings { url, users: Users::Own }
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn start(settings: Settings) -> (Keeper, Reports) {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let clock = Clock::new(Instant::now(), unix);
        let first = owner::Worker::ALONE;
        let mut sides = Keeper::start(settings, WriterSettings::default(), clock, first).unwrap();
        sides.pop().unwrap()
    }

    fn wait<T>(limited: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(LIMIT, limited).await.expect("it takes too long") })
    }

    async fn bindings(reports: &mut Reports) -> Vec<Row> {
        let mut all = Vec::new();
        loop {
            match reports.reports.recv().await.expect("the thread goes on") {
                Report::Bindings(some) => all.extend(some),
                Report::Read { malformed: 0 } => return all,
                _ => panic!("nobody has asked anything"),
            }
        }
    }

    /// The answers to so many questions, by their tickets.
    async fn answers(reports: &mut Reports, count: usize) -> Vec<Answer> {
        let mut all: Vec<Answer> = Vec::new();
        while all.len() < count {
            match reports.reports.recv().await.expect("the thread goes on") {
                Report::Secrets(some) => all.extend(some),
                Report::Unread(_) | Report::Bindings(_) | Report::Read { .. } => {}
            }
        }
        all.sort_by_key(|(ticket, _)| *ticket);
        all
    }

    fn row(number: usize) -> Row {
        Row {
            key: BindingName {
                user: format!("u{number}").into(),
                domain: "example.com".into(),
                contact: format!("sip:u{number}@192.0.2.1").into(),
                instance: None,
                reg_id: None,
            },
            received: None,
            local: "192.0.2.9:5060".parse().unwrap(),
            path: None,
            q: None,
            expires: Instant::now() + Duration::from_secs(3600),
            call_id: "c".into(),
            cseq: 1,
            user_agent: None,
            methods: Methods(0),
        }
    }

    #[test]
    fn what_was_handed_over_is_there_at_the_next_start() {
        let file = File::new("restart");
        wait(async {
            let (keeper, mut reports) = start(file.settings());
            assert!(bindings(&mut reports).await.is_empty());
            for number in 0..2500 {
                keeper.save(Box::new(row(number)));
            }
            for number in 0..500 {
                keeper.remove(Box::new(row(number).key));
            }
            let counters = keeper.counters();
            assert!(counters.waiting_bindings + counters.written >= 2000, "{counters:?}");
            assert!(keeper.has_room());
            keeper.stop().await;

            let (keeper, mut reports) = start(file.settings());
            let rows = bindings(&mut reports).await;
            let users: BTreeSet<_> = rows.into_iter().map(|row| row.key.user).collect();
            assert_eq!(users, (500..2500).map(|number| row(number).key.user).collect());
            assert_eq!(keeper.counters().waiting_bindings, 0);
            keeper.stop().await;
            // And then the thread has ended.
            assert!(reports.reports.recv().await.is_none());
        });
    }

    #[test]
    fn each_worker_hears_what_is_its_own() {
        let file = File::new("workers");
        let three = owner::Worker::new(0, 3, [1, 2]);
        wait(async {
            let (keeper, mut reports) = start(file.settings());
            bindings(&mut reports).await;
            (0..300).for_each(|number| keeper.save(Box::new(row(number))));
            keeper.stop().await;

            let clock = Clock::new(Instant::now(), Duration::ZERO);
            let limits = WriterSettings::default();
            let sides = Keeper::start(file.settings(), limits, clock, three).unwrap();
            let (keepers, mut reports): (Vec<_>, Vec<_>) = sides.into_iter().unzip();
            let mut all = 0;
            for (worker, reports) in reports.iter_mut().enumerate() {
                let rows = bindings(reports).await;
                assert!(rows.iter().all(|row| three.of_user(&row.key.user) == worker));
                assert!(rows.len() > 50, "{}", rows.len());
                all += rows.len();
            }
            assert_eq!(all, 300);
            for (number, keeper) in (0..).zip(&keepers) {
                keeper.ask(Ticket::test(number), "u1".into(), "example.com".into());
            }
            for (number, reports) in (0..).zip(&mut reports) {
                assert_eq!(answers(reports, 1).await[0].0, Ticket::test(number));
            }
            // The thread ends with the last of them.
            let mut keepers = keepers.into_iter();
            let first = keepers.next().unwrap();
            assert!(keepers.all(|keeper| keeper.left.is_none()));
            first.stop().await;
        });
    }

    #[test]
    fn every_question_of_a_burst_is_answered() {
        let file = File::new("burst");
        wait(async {
            let (keeper, mut reports) = start(file.settings());
            bindings(&mut reports).await;
            let store = Store::new(&file.settings()).unwrap();
            for number in 0..20 {
                let (ha1, ha1_sha256) = ("a".repeat(32), "b".repeat(64));
                let (username, domain) = (format!("u{number}"), "example.com".into());
                store.add_user(&NewUser { username, domain, ha1, ha1_sha256 }).await.unwrap();
            }
            for number in 0..3000 {
                let user = format!("u{}", number % 40).into();
                keeper.ask(Ticket::test(number), user, "example.com".into());
            }
            for (number, (ticket, answer)) in
                answers(&mut reports, 3000).await.into_iter().enumerate()
            {
                assert_eq!(ticket, Ticket::test(number as u64));
                let secrets = answer.unwrap().map(|secrets| secrets.len());
                assert_eq!(secrets, Some(2).filter(|_| number % 40 < 20));
            }
            keeper.stop().await;
        });
    }

    #[test]
    fn every_question_to_a_database_that_is_away_hears_so() {
        let url = "mysql://nobody@localhost/none?socket=/no/such/socket".into();
        wait(async {
            let (keeper, mut reports) = start(Settings { url, users: Users::Own });
            for number in 0..1000 {
                keeper.ask(Ticket::test(number), format!("u{number}").into(), "d".into());
            }
            for (_, answer) in answers(&mut reports, 1000).await {
                assert_eq!(answer.unwrap_err(), Away);
            }
            assert!(!keeper.counters().connected);
            // Changes are taken all the same.
            keeper.save(Box::new(row(1)));
            assert!(keeper.has_room());
            assert_eq!(keeper.counters().waiting_bindings, 1);
        });
    }

    #[test]
    fn settings_that_cannot_be_used_are_told_at_the_start() {
        let settings = Settings { url: "oracle://x/y".into(), users: Users::Own };
        let clock = Clock::new(Instant::now(), Duration::ZERO);
        let first = owner::Worker::ALONE;
        let started = Keeper::start(settings, WriterSettings::default(), clock, first);
        let error = started.err().unwrap();
        assert!(format!("{error:#}").contains("[store]"), "{error:#}");
    }

    #[test]
    fn a_thread_that_panics_is_noticed() {
        let shared = Shared::default();
        watch(&shared, || true);
        assert!(!shared.failed());
        watch(&shared, || panic!("meant: a test"));
        assert!(shared.failed());
    }
}
