//! The stateful half in the world: made from the configuration, with the store that it needs for secrets and
//! bindings.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::keeper::{Keeper, Reports};
use super::random_key;
use crate::config::{Config, Key, Trust};
use crate::core::accounting::Accounting;
use crate::core::authenticator::Authenticator;
use crate::core::clock::Clock;
use crate::core::registrar::Domains;
use crate::core::sources::Sources;
use crate::core::stateful::{CallRules, Settings, Stateful};
use crate::core::transaction;
use crate::store::{self, WriterSettings};

/// What a configuration with a registrar is made into.
pub(super) fn open(
    config: &Config,
    key: Key,
    now: Instant,
) -> Result<Option<(Stateful, Keeper, Reports)>> {
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
    let (keeper, reports) = Keeper::start(kept, WriterSettings::default(), clock)?;
    let mut stateful = Stateful::new(fresh, settings, Some(authenticator), now);
    let other = random_key()?.0;
    let since = (now, UNIX_EPOCH + unix);
    let accounting = Accounting::new(config.accounting, other, fresh[1] as u32, since);
    stateful.set_accounting(Some(accounting));
    Ok(Some((stateful, keeper, reports)))
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
