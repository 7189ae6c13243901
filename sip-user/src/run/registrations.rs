//! Orders about registrations and users.

use std::time::Instant;

use super::node::{Answered, Node, failed};
use super::worker::Worker;
use crate::control::protocol::{Forgotten, Leg, Outcome, Registration, Registrations, Response};
use crate::core::forking::Forking;
use crate::core::registrar::{Aor, Row};

impl Node {
    /// Who is registered: up to `limit` of all, or one user with how he is at each PBX.
    pub(super) async fn registrations(&self, user: Option<String>, limit: usize) -> Answered {
        let aor = user.as_deref().map(read_aor).transpose()?;
        let lists = match aor {
            Some(aor) => {
                let owner = self.here(|worker| worker.peers.me().of_user(aor.user()))?;
                vec![self.at(owner, move |worker| worker.registrations(Some(&aor), limit)).await?]
            }
            None => self.each(move |worker| worker.registrations(None, limit)).await?,
        };
        let lists: Option<Vec<_>> = lists.into_iter().collect();
        let lists = lists.ok_or_else(no_registrar)?;
        let total = lists.iter().map(|list| list.total).sum();
        let mut registrations: Vec<_> =
            lists.into_iter().flat_map(|list| list.registrations).collect();
        if user.is_none() {
            registrations.truncate(limit);
        }
        registrations.sort_by(|a, b| (&a.user, &a.contact).cmp(&(&b.user, &b.contact)));
        let outcome = Registrations { registrations, total, removed: None };
        Ok(Response::done(Outcome::Registrations(outcome)))
    }

    /// Takes a contact of a user away, or all of them.
    pub(super) async fn unregister(&self, user: String, contact: Option<String>) -> Answered {
        let aor = read_aor(&user)?;
        let owner = self.here(|worker| worker.peers.me().of_user(aor.user()))?;
        let which = contact.clone();
        let gone = self.at(owner, move |worker| worker.unregister(&aor, which.as_deref())).await?;
        let gone = gone.ok_or_else(no_registrar)?;
        tracing::info!(user, contact, gone, "unregistered by hand");
        if gone == 0 {
            return Err(failed(match contact {
                Some(contact) => format!("{user} is not registered with the contact {contact}"),
                None => format!("{user} is not registered"),
            }));
        }
        let mut response = self.registrations(Some(user), 0).await?;
        if let Some(Outcome::Registrations(left)) = &mut response.result {
            left.removed = Some(gone);
        }
        Ok(response)
    }

    /// What is known of a user's password counts no more.
    pub(super) async fn forget(&self, user: String) -> Answered {
        let Some((name, domain)) = user.rsplit_once('@') else { return Err(no_aor(&user)) };
        let (name, domain) = (name.to_owned(), domain.to_owned());
        let has = self.each(move |worker| worker.forget(&name, &domain)).await?;
        if has.contains(&false) {
            return Err(no_registrar());
        }
        Ok(Response::done(Outcome::Forgotten(Forgotten { forgotten: user })))
    }
}

/// Those of this worker. None, or false, if there is no registrar.
impl Worker {
    fn registrations(&self, aor: Option<&Aor>, limit: usize) -> Option<Registrations> {
        let now = Instant::now();
        let stateful = self.proxy.stateful().filter(|has| has.registers())?;
        let registrar = stateful.registrar();
        let of = |row: &Row| {
            aor.is_none_or(|aor| (aor.user(), aor.domain()) == (&*row.key.user, &*row.key.domain))
        };
        let live = registrar.rows().filter(|row| row.expires > now && of(row));
        let list: Vec<_> = match aor {
            Some(_) => live.collect(),
            None => live.take(limit).collect(),
        };
        let legs = aor.map(|aor| legs(stateful.forking(), aor.user(), now)).unwrap_or_default();
        let total = match aor {
            Some(_) => list.len(),
            None => registrar.bindings(),
        };
        let registrations = list.iter().map(|row| registration(row, now, &legs)).collect();
        Some(Registrations { registrations, total, removed: None })
    }

    /// How many are gone.
    fn unregister(&mut self, aor: &Aor, contact: Option<&str>) -> Option<usize> {
        let registrar = self.proxy.stateful_mut().filter(|has| has.registers())?;
        let gone = registrar.remove(Instant::now(), aor, contact);
        self.carry_out();
        Some(gone)
    }

    fn forget(&mut self, name: &str, domain: &str) -> bool {
        let stateful = self.proxy.stateful_mut().filter(|has| has.registers());
        let Some(stateful) = stateful else { return false };
        stateful.forget(name, domain);
        true
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
    failed(format!("\"{text}\" is no user: write user@domain"))
}

fn no_registrar() -> Box<Response> {
    failed("there is no registrar: the configuration has no [registrar]")
}
