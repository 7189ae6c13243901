//! The stateful half in the world: made from the configuration, with the store that it needs for secrets and
//! bindings.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::keeper::{Keeper, Reports};
use super::random_key;
use crate::config::{Config, Key, Registrar, Trust};
use crate::core::accounting::{self, Accounting};
use crate::core::authenticator::{self, Authenticator};
use crate::core::clock::Clock;
use crate::core::family::ByFamily;
use crate::core::forking;
use crate::core::owner::Worker;
use crate::core::registrar::{self, Domains};
use crate::core::sources::Sources;
use crate::core::stateful::{CallRules, Settings, Stateful};
use crate::core::transaction;
use crate::store::{self, WriterSettings};

/// What the stateful halves of all workers have in common, beside the configuration.
#[derive(Clone, Copy)]
pub(super) struct Seed {
    key: Key,
    /// Secret, and another one at each start.
    fresh: [u64; 2],
    records: [u64; 2],
    now: Instant,
    unix: Duration,
}

impl Seed {
    pub(super) fn new(key: Key, now: Instant) -> Result<Self> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Of the same moment: the kernel program was loaded meanwhile.
        let unix = unix.saturating_sub(now.elapsed());
        Ok(Self { key, fresh: random_key()?.0, records: random_key()?.0, now, unix })
    }

    /// Of the nonces that the kernel makes: that of no worker.
    pub(super) fn kernel_instance(&self) -> u32 {
        self.fresh[0] as u32 ^ 0x80_0000
    }

    fn clock(&self) -> Clock {
        Clock::new(self.now, self.unix)
    }
}

/// Starts the store, if there is a registrar: for each worker its side of it.
pub(super) fn start_store(
    config: &Config,
    seed: &Seed,
    first: Worker,
) -> Result<Option<Vec<(Keeper, Reports)>>> {
    let (Some(_), Some(kept)) = (&config.registrar, &config.store) else { return Ok(None) };
    let kept = store::Settings { url: kept.url.clone(), users: kept.users.clone() };
    Keeper::start(kept, WriterSettings::default(), seed.clock(), first).map(Some)
}

/// What a configuration with a registrar is made into, for one worker.
pub(super) fn open(config: &Config, seed: &Seed, worker: Worker) -> Result<Option<Stateful>> {
    let Some(settings) = settings(config, worker) else { return Ok(None) };
    if config.registrar.is_none() {
        return Ok(Some(Stateful::new(seed.fresh, settings, None, seed.now)));
    }
    let Seed { key, fresh, records, now, unix } = *seed;
    // Nonces and records name who has made them: no two of them are equal.
    let number = worker.number() as u32;
    let authenticator = Authenticator::new(
        asking(config, worker),
        config.auth.digest.clone(),
        &nonce_key(key),
        fresh[0] as u32 ^ number,
        seed.clock(),
    );
    let authenticator = authenticator.context("[auth]")?;
    let mut stateful = Stateful::new(fresh, settings, Some(authenticator), now);
    let since = (now, UNIX_EPOCH + unix);
    let records =
        Accounting::new(accounting(config, worker), records, fresh[1] as u32 ^ number, since);
    stateful.set_accounting(Some(records));
    Ok(Some(stateful))
}

/// What a reload may change too.
pub(super) fn settings(config: &Config, worker: Worker) -> Option<Settings> {
    let without = Registrar {
        domains: Vec::new(),
        rules: registrar::Rules::default(),
        forking: forking::Rules::default(),
    };
    let registrar = match &config.registrar {
        Some(registrar) => registrar,
        // Only for calls that are taken over from their PBX, and for those between IPv4 and IPv6.
        None if config.dispatch.shadow || listens_on_both(config) => &without,
        None => return None,
    };
    let locals = config.sip.listen.clone();
    let believed = Trust { networks: config.auth.trusted.clone(), ..Trust::default() };
    let share = |most| share(most, worker);
    let rate = registrar.forking.rate.div_ceil(worker.count() as u32);
    let transactions = transaction::Config::default();
    let calls = CallRules::default();
    Some(Settings {
        domains: Domains::new(registrar.domains.iter().map(String::as_str), &locals),
        locals,
        believed: Sources::new(&believed),
        registrar: registrar::Rules {
            max_aors: share(registrar.rules.max_aors),
            ..registrar.rules
        },
        forking: forking::Rules {
            rate,
            in_flight: share(registrar.forking.in_flight),
            max_users: share(registrar.forking.max_users),
            ..registrar.forking
        },
        transactions: transaction::Config {
            transactions: share(transactions.transactions),
            bytes: share(transactions.bytes),
            worker: worker.number() as u8,
            ..transactions
        },
        calls: CallRules {
            answer_timeout: config.dispatch.answer_timeout,
            ring_timeout: config.dispatch.ring_timeout,
            max_transactions: share(config.dispatch.max_transactions),
            max_calls: share(calls.max_calls),
            no_destination: config.sip.no_destination,
        },
        credentials: config.pbx_credentials.clone(),
        retry_after: config.auth.rules.retry_after,
        registers: config.registrar.is_some(),
    })
}

/// Whether there may be calls between IPv4 and IPv6.
fn listens_on_both(config: &Config) -> bool {
    let ByFamily { v4, v6 } = ByFamily::first(&config.sip.listen);
    v4.is_some() && v6.is_some()
}

/// Which records one worker keeps.
pub(super) fn accounting(config: &Config, worker: Worker) -> accounting::Rules {
    let rules = config.accounting;
    accounting::Rules { max_calls: share(rules.max_calls, worker), ..rules }
}

fn asking(config: &Config, worker: Worker) -> authenticator::Rules {
    let rules = config.auth.rules.clone();
    let share = |most| share(most, worker);
    authenticator::Rules {
        max_known: share(rules.max_known),
        max_unknown: share(rules.max_unknown),
        max_fetches: share(rules.max_fetches),
        max_parked: share(rules.max_parked),
        max_nonces: share(rules.max_nonces),
        ..rules
    }
}

/// The share of one worker in what all may have together.
fn share(most: usize, worker: Worker) -> usize {
    most.div_ceil(worker.count())
}

/// Nonces are signed by the key of the configuration, so all nodes take them, but not with the very key that
/// other signatures are made with.
fn nonce_key(key: Key) -> Vec<u8> {
    let words = key.0.iter().flat_map(|word| word.to_be_bytes());
    b"sipline nonces ".iter().copied().chain(words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_may_have_is_shared() {
        let worker = Worker::new(1, 3, [1, 2]);
        assert_eq!(share(500_000, worker), 166_667);
        assert_eq!([share(1, worker), share(1, Worker::ALONE)], [1, 1]);
    }

    #[test]
    fn nonces_have_a_key_of_their_own() {
        let key = nonce_key(Key([1, 2]));
        assert_eq!(key.len(), 31);
        assert_ne!(key, nonce_key(Key([2, 1])));
    }
}
