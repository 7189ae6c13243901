//! Orders about registrations and users.

use std::collections::BTreeMap;
use std::time::Instant;

use super::Node;
use crate::control::protocol::{
    Forgotten, Leg, Outcome, RegistrarStats, Registration, Registrations, Response,
};
use crate::core::forking::Forking;
use crate::core::registrar::{Aor, Row};

impl Node {
    /// Who is registered: up to `limit` of all, or one user with how he is at each PBX.
    pub(super) fn registrations(&mut self, user: Option<String>, limit: usize) -> Response {
        let now = Instant::now();
        let Some(stateful) = self.proxy.stateful() else { return no_registrar() };
        let registrar = stateful.registrar();
        let aor = match user.as_deref().map(read_aor).transpose() {
            Ok(aor) => aor,
            Err(response) => return *response,
        };
        let of = |row: &Row| {
            aor.as_ref()
                .is_none_or(|aor| (aor.user(), aor.domain()) == (&*row.key.user, &*row.key.domain))
        };
        let live = registrar.rows().filter(|row| row.expires > now && of(row));
        let mut list: Vec<_> = match aor {
            Some(_) => live.collect(),
            None => live.take(limit).collect(),
        };
        list.sort_by(|a, b| a.key.cmp(&b.key));
        let legs = aor.as_ref().map(|aor| legs(stateful.forking(), aor.user(), now));
        let legs = legs.unwrap_or_default();
        let total = match aor {
            Some(_) => list.len(),
            None => registrar.bindings(),
        };
        let registrations = list.iter().map(|row| registration(row, now, &legs)).collect();
        let outcome = Registrations { registrations, total, removed: None };
        Response::done(Outcome::Registrations(outcome))
    }

    /// Takes a contact of a user away, or all of them.
    pub(super) fn unregister(&mut self, user: &str, contact: Option<&str>) -> Response {
        let now = Instant::now();
        let aor = match read_aor(user) {
            Ok(aor) => aor,
            Err(response) => return *response,
        };
        let Some(stateful) = self.proxy.stateful_mut() else { return no_registrar() };
        let gone = stateful.remove(now, &aor, contact);
        tracing::info!(user, contact, gone, "unregistered by hand");
        self.carry_out();
        if gone == 0 {
            return Response::failed(match contact {
                Some(contact) => format!("{user} is not registered with the contact {contact}"),
                None => format!("{user} is not registered"),
            });
        }
        let mut response = self.registrations(Some(user.to_owned()), 0);
        if let Some(Outcome::Registrations(left)) = &mut response.result {
            left.removed = Some(gone);
        }
        response
    }

    /// What is known of a user's password counts no more.
    pub(super) fn forget(&mut self, user: &str) -> Response {
        let Some(stateful) = self.proxy.stateful_mut() else { return no_registrar() };
        let Some((name, domain)) = user.rsplit_once('@') else { return *no_aor(user) };
        if let Some(authenticator) = stateful.authenticator_mut() {
            authenticator.forget(name, domain);
        }
        Response::done(Outcome::Forgotten(Forgotten { forgotten: user.to_owned() }))
    }

    pub(super) fn registrar_stats(&self) -> Option<RegistrarStats> {
        let (stateful, keeper) = (self.proxy.stateful()?, self.keeper.as_ref()?);
        let asking = stateful.authenticator()?;
        let (done, asked, written) = (stateful.counts(), asking.counts(), keeper.counters());
        let mut counters: BTreeMap<_, _> = [
            ("registered", done.registered),
            ("forwarded", done.forwarded),
            ("failed_over", done.failed_over),
            ("answered_late", done.answered_late),
            ("shed", done.shed),
            ("absorbed", done.absorbed),
            ("no_transaction_left", done.full),
            ("forked", done.forked),
            ("forked_unanswered", done.forked_unanswered),
            ("pbx_challenges_unanswered", done.challenges_unanswered),
            ("credentials_right", asked.passed),
            ("credentials_wrong", asked.wrong),
            ("challenged", asked.challenged),
            ("secrets_unavailable", asked.unavailable),
            ("secrets_fetched", asked.fetches),
            ("secrets_not_fetched", asked.fetches_failed),
            ("store_written", written.written),
            ("store_refused", written.refused),
            ("store_failed", written.failed),
            ("store_reconnects", written.reconnects),
        ]
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count))
        .collect();
        let replies = done.replies.iter();
        counters.extend(replies.map(|(code, count)| (format!("replied_{code}"), *count)));
        Some(RegistrarStats {
            users: stateful.registrar().aors(),
            contacts: stateful.registrar().bindings(),
            transactions: stateful.transactions(),
            waiting: asking.parked(),
            store: keeper.engine().to_owned(),
            connected: written.connected,
            unwritten: written.waiting_bindings + written.waiting_cdrs,
            counters,
        })
    }
}

fn registration(row: &Row, now: Instant, legs: &[Leg]) -> Registration {
    let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
    Registration {
        user: format!("{}@{}", row.key.user, row.key.domain),
        contact: row.key.contact.to_string(),
        received: row.received,
        local: row.local,
        expires_in: row.expires.saturating_duration_since(now).as_secs(),
        q: row.q,
        path: text(&row.path),
        instance: text(&row.key.instance),
        reg_id: row.key.reg_id.map(std::num::NonZeroU32::get),
        user_agent: text(&row.user_agent),
        call_id: row.call_id.to_string(),
        cseq: row.cseq,
        pbxs: legs.to_vec(),
    }
}

fn legs(forking: &Forking, user: &str, now: Instant) -> Vec<Leg> {
    let legs = forking.legs(user).into_iter().map(|leg| Leg {
        id: leg.id.to_owned(),
        registered_for: leg
            .registered_until
            .map(|until| until.saturating_duration_since(now).as_secs()),
        last: leg.last,
        failures: leg.failures,
    });
    legs.collect()
}

/// `user@domain`
fn read_aor(text: &str) -> Result<Aor, Box<Response>> {
    let parts = text.rsplit_once('@');
    parts.and_then(|(user, domain)| Aor::new(user, domain)).ok_or_else(|| no_aor(text))
}

fn no_aor(text: &str) -> Box<Response> {
    Box::new(Response::failed(format!("\"{text}\" is no user: write user@domain")))
}

fn no_registrar() -> Response {
    Response::failed("there is no registrar: the configuration has no [registrar]")
}
