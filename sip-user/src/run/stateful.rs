//! The stateful half in the world: made from the configuration, with the store that it needs for secrets and
//! bindings.
//!
//! The core says what is to be fetched and written. Fetching waits for the store, in tasks of its own; writing
//! does not, it goes to the [`Writer`]'s queue.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::rows::{binding, record, row, secrets};
use super::{Node, random_key};
use crate::config::{Config, Key, Trust};
use crate::core::accounting::{Accounting, Cdr};
use crate::core::authenticator::{Authenticator, Away, Ticket};
use crate::core::clock::Clock;
use crate::core::registrar::{Domains, Key as BindingName, Row};
use crate::core::sources::Sources;
use crate::core::stateful::{CallRules, Settings, Stateful};
use crate::core::transaction;
use crate::store::{self, BindingKey, Store, Writer, WriterSettings};

/// How long the start waits for the bindings of a store that does not answer. They come later then.
const START_PATIENCE: Duration = Duration::from_secs(3);
/// How long what waits for the store may take at the end.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// The longest pause between two attempts to read the bindings.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// So many bindings are read back before others have their turn.
const ROWS_AT_ONCE: usize = 1000;
/// A tenth of the writer's queue is kept for what is on its way when REGISTERs are refused.
const RESERVE: usize = 10;

/// A question to the store.
pub(super) struct Question {
    ticket: Ticket,
    user: Box<str>,
    domain: Box<str>,
}

/// The store, and what goes there and comes from there.
pub(super) struct Keeper {
    store: Store,
    writer: Writer,
    questions: UnboundedSender<Question>,
    clock: Clock,
    /// Changes that may wait before REGISTERs are refused.
    most_waiting: u64,
}

/// What a configuration with a registrar is made into.
pub(super) fn open(
    config: &Config,
    key: Key,
    now: Instant,
) -> Result<Option<(Stateful, Keeper, UnboundedReceiver<Question>)>> {
    let (Some(_), Some(kept)) = (&config.registrar, &config.store) else { return Ok(None) };
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let clock = Clock::new(now, unix);
    let Some(settings) = settings(config) else { return Ok(None) };
    let fresh = random_key()?.0;
    let authenticator = Authenticator::new(
        config.auth.rules.clone(),
        config.auth.digest.clone(),
        &nonce_key(key),
        fresh[0] as u32,
        clock,
    );
    let authenticator = authenticator.context("[auth]")?;
    let kept = store::Settings { url: kept.url.clone(), users: kept.users.clone() };
    let store = Store::new(&kept).context("[store]")?;
    let limits = WriterSettings::default();
    let writer = Writer::start(&store, limits);
    let most_waiting = limits.max_bindings - limits.max_bindings / RESERVE;
    // As many questions as the authenticator has on their way at most.
    let (questions, asked) = unbounded_channel();
    let keeper = Keeper { store, writer, questions, clock, most_waiting: most_waiting as u64 };
    let mut stateful = Stateful::new(fresh, settings, Some(authenticator), now);
    let other = random_key()?.0;
    let since = (now, UNIX_EPOCH + unix);
    let accounting = Accounting::new(config.accounting, other, fresh[1] as u32, since);
    stateful.set_accounting(Some(accounting));
    Ok(Some((stateful, keeper, asked)))
}

/// What a reload may change too.
pub(super) fn settings(config: &Config) -> Option<Settings> {
    let registrar = config.registrar.as_ref()?;
    let locals = config.sip.listen.clone();
    let believed = Trust { networks: config.auth.trusted.clone(), deny: Vec::new() };
    Some(Settings {
        domains: Domains::new(registrar.domains.iter().map(String::as_str), &locals),
        locals,
        believed: Sources::new(&believed),
        registrar: registrar.rules,
        forking: registrar.forking,
        transactions: transaction::Config::default(),
        calls: CallRules {
            answer_timeout: config.dispatch.answer_timeout,
            ring_timeout: config.dispatch.ring_timeout,
            max_transactions: config.dispatch.max_transactions,
            no_destination: config.sip.no_destination,
            ..CallRules::default()
        },
        credentials: config.pbx_credentials.clone(),
        retry_after: config.auth.rules.retry_after,
    })
}

/// Nonces are signed by the key of the configuration, so all nodes take them, but not with the very key that
/// other signatures are made with.
fn nonce_key(key: Key) -> Vec<u8> {
    let words = key.0.iter().flat_map(|word| word.to_be_bytes());
    b"sipline nonces ".iter().copied().chain(words).collect()
}

impl Keeper {
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn ask(&self, ticket: Ticket, user: Box<str>, domain: Box<str>) {
        // The task that answers ends with the daemon.
        let _ = self.questions.send(Question { ticket, user, domain });
    }

    pub(super) fn save(&self, now: Instant, row: &Row) {
        let binding = binding(row, now, self.clock.unix(now));
        if let Err(refused) = self.writer.put_binding(binding) {
            tracing::error!(%refused, user = &*row.key.user, "a registration is not stored");
        }
    }

    pub(super) fn remove(&self, key: &BindingName) {
        let reg_id = key.reg_id.map(NonZeroU32::get);
        let key =
            BindingKey::new(&key.user, &key.domain, &key.contact, key.instance.as_deref(), reg_id);
        if let Err(refused) = self.writer.delete_binding(key) {
            tracing::error!(%refused, "the end of a registration is not stored");
        }
    }

    pub(super) fn record(&self, cdr: &Cdr) {
        if let Err(refused) = self.writer.insert_cdr(record(cdr)) {
            tracing::error!(%refused, call_id = &*cdr.call_id, "the record of a call is not stored");
        }
    }

    /// Whether there is room for what would be accepted.
    pub(super) fn has_room(&self) -> bool {
        self.writer.counters().waiting_bindings < self.most_waiting
    }

    pub(super) fn counters(&self) -> store::Counters {
        self.writer.counters()
    }

    /// Writes what waits.
    pub(super) async fn stop(self) {
        let left = self.writer.stop(STOP_PATIENCE).await;
        if left.bindings + left.cdrs.len() > 0 {
            tracing::error!(
                bindings = left.bindings,
                records = left.cdrs.len(),
                "the database is away: these changes are lost"
            );
        }
    }
}

// ---- Tasks ---------------------------------------------------------------------------------------

/// Fetches secrets, several at a time.
pub(super) async fn fetch_secrets(
    node: Rc<RefCell<Node>>,
    store: Store,
    mut asked: UnboundedReceiver<Question>,
) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            question = asked.recv() => {
                let Some(Question { ticket, user, domain }) = question else { return };
                let store = store.clone();
                running.spawn_local(async move { (ticket, store.user(&user, &domain).await) });
            }
            Some(answered) = running.join_next() => {
                let Ok((ticket, answer)) = answered else { continue };
                let answer = match answer {
                    Ok(found) => Ok(found.map(secrets)),
                    Err(error) => {
                        tracing::warn!(%error, "a user cannot be looked up");
                        Err(Away)
                    }
                };
                node.borrow_mut().secrets(ticket, answer);
            }
        }
    }
}

/// Reads the bindings back before anything is served, unless the store is away: then they are read back when it
/// is there.
///
/// # Errors
/// A store that cannot be used, now or later.
pub(super) async fn restore(node: &Rc<RefCell<Node>>, store: &Store) -> Result<bool> {
    match tokio::time::timeout(START_PATIENCE, read_back(node, store)).await {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error @ (store::Error::Newer { .. } | store::Error::Foreign { .. }))) => {
            bail!("[store] {error}")
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "registrations are not read back yet");
            Ok(false)
        }
        Err(_) => {
            tracing::warn!("the database does not answer: registrations are not read back yet");
            Ok(false)
        }
    }
}

/// As [`restore`], until it is done.
pub(super) async fn restore_later(node: Rc<RefCell<Node>>, store: Store) {
    let mut pause = Duration::from_millis(500);
    loop {
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        match read_back(&node, &store).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "registrations are not read back yet"),
        }
    }
}

async fn read_back(node: &Rc<RefCell<Node>>, store: &Store) -> Result<(), store::Error> {
    store.prepare().await?;
    let mut all = Vec::new();
    store.load_bindings(|binding| all.push(binding)).await?;
    let (mut taken, mut refused) = (0, 0);
    for some in all.chunks(ROWS_AT_ONCE) {
        let (took, not) = node.borrow_mut().restore(some);
        taken += took;
        refused += not;
        tokio::task::yield_now().await;
    }
    tracing::info!(taken, refused, engine = store.engine(), "registrations are read back");
    // Those that ended while nobody was here to see it.
    let gone = store.remove_expired_bindings(0).await?;
    tracing::debug!(gone, "registrations have ended meanwhile");
    Ok(())
}

/// Bindings of a store as the registrar takes them.
pub(super) fn rows(bindings: &[store::Binding], now: Instant, keeper: &Keeper) -> Vec<Row> {
    let unix = keeper.clock.unix(now);
    bindings.iter().filter_map(|binding| row(binding, now, unix)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_have_a_key_of_their_own() {
        let key = nonce_key(Key([1, 2]));
        assert_eq!(key.len(), 31);
        assert_ne!(key, nonce_key(Key([2, 1])));
    }
}
