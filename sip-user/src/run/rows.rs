//! Between rows of the store and what the core means by them.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::core::accounting::{Cdr, Disposition};
use crate::core::digest::{Ha1, Hash, Secret};
use crate::core::registrar::{Key as BindingName, Methods, Row};
use crate::store::{self, BindingKey, Credentials};

/// The secrets of a user that can be used.
pub(super) fn secrets(credentials: Credentials) -> Vec<Secret> {
    let mut secrets = Vec::new();
    let hashes = [
        (&credentials.ha1, Hash::Md5, Secret::Ha1 as fn(Ha1) -> Secret),
        (&credentials.ha1b, Hash::Md5, Secret::Ha1b),
        (&credentials.ha1_sha256, Hash::Sha256, Secret::Ha1),
    ];
    for (digits, hash, secret) in hashes {
        let Some(digits) = digits else { continue };
        match Ha1::from_hex(hash, digits.trim()) {
            Ok(ha1) => secrets.push(secret(ha1)),
            Err(error) => {
                tracing::warn!(%error, user = credentials.username, "a secret cannot be used");
            }
        }
    }
    // Behind the hashes, which cost less; it serves what they do not.
    secrets.extend(credentials.password.map(|password| Secret::Password(password.into())));
    secrets
}

/// A binding as the store has it. Its texts stay where they are.
pub(super) fn binding(row: Row, now: Instant, unix: Duration) -> store::Binding {
    let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
    let expires_at = signed(row.expires_unix(now, unix));
    let Row { key, received, local, path, q, call_id, cseq, user_agent, methods, .. } = row;
    store::Binding {
        user: key.user.into(),
        domain: key.domain.into(),
        contact: key.contact.into(),
        received: received.map(|received| received.to_string()),
        local_address: local.to_string(),
        path: path.map(String::from),
        // None is worth as much as the highest (RFC 3261 16.6).
        q: q.unwrap_or(HIGHEST_Q),
        expires_at,
        call_id: call_id.into(),
        cseq,
        user_agent: user_agent.map(String::from).unwrap_or_default(),
        instance: key.instance.map(String::from),
        reg_id: key.reg_id.map(NonZeroU32::get),
        methods: methods.0,
        updated_at: signed(unix.as_secs()),
    }
}

/// What identifies it there.
pub(super) fn key(name: &BindingName) -> BindingKey {
    let reg_id = name.reg_id.map(NonZeroU32::get);
    BindingKey::new(&name.user, &name.domain, &name.contact, name.instance.as_deref(), reg_id)
}

/// A binding as the registrar takes it. None if it is none that we would have written.
pub(super) fn row(binding: store::Binding, now: Instant, unix: Duration) -> Option<Row> {
    let some = |text: String| (!text.is_empty()).then(|| text.into());
    let received: Option<SocketAddr> = match &binding.received {
        Some(received) => Some(received.parse().ok()?),
        None => None,
    };
    Some(Row {
        received,
        local: binding.local_address.parse().ok()?,
        expires: Row::expires_at(u64::try_from(binding.expires_at).ok()?, now, unix),
        key: BindingName {
            user: binding.user.into(),
            domain: binding.domain.into(),
            contact: binding.contact.into(),
            instance: binding.instance.and_then(some),
            reg_id: binding.reg_id.and_then(NonZeroU32::new),
        },
        path: binding.path.and_then(some),
        q: Some(binding.q).filter(|q| *q != HIGHEST_Q),
        call_id: binding.call_id.into(),
        cseq: binding.cseq,
        user_agent: some(binding.user_agent),
        methods: Methods(binding.methods),
    })
}

/// In thousandths.
const HIGHEST_Q: u16 = 1000;

/// The record of a call as the store has it.
pub(super) fn record(cdr: Cdr) -> store::Cdr {
    let at = |micros| UNIX_EPOCH + Duration::from_micros(micros);
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    store::Cdr {
        calldate: at(cdr.calldate),
        clid: cdr.clid.into(),
        src: cdr.src.into(),
        dst: cdr.dst.into(),
        dcontext: cdr.dcontext.into(),
        channel: cdr.channel.into(),
        dstchannel: cdr.dstchannel.into(),
        lastapp: cdr.lastapp.to_owned(),
        lastdata: cdr.lastdata.into(),
        duration: seconds(cdr.duration),
        billsec: seconds(cdr.billsec),
        disposition: match cdr.disposition {
            Disposition::Answered => store::Disposition::Answered,
            Disposition::NoAnswer => store::Disposition::NoAnswer,
            Disposition::Busy => store::Disposition::Busy,
            Disposition::Failed => store::Disposition::Failed,
        },
        accountcode: cdr.accountcode.into(),
        uniqueid: cdr.uniqueid.into(),
        answerdate: cdr.answerdate.map(at),
        enddate: at(cdr.enddate),
        call_id: cdr.call_id.into(),
        sip_code: cdr.sip_code,
        ending: cdr.ending.as_str().to_owned(),
        ..store::Cdr::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_come_back_as_they_were() {
        let now = Instant::now();
        let unix = Duration::from_secs(1_700_000_000);
        let full = Row {
            key: BindingName {
                user: "anna".into(),
                domain: "example.com".into(),
                contact: "sip:anna@10.0.0.2:5062;ob".into(),
                instance: Some("<urn:uuid:1>".into()),
                reg_id: NonZeroU32::new(2),
            },
            received: Some("198.51.100.7:4000".parse().unwrap()),
            local: "[2001:db8::1]:5060".parse().unwrap(),
            path: Some("<sip:edge;lr>".into()),
            q: Some(700),
            expires: now + Duration::from_secs(600),
            call_id: "c1".into(),
            cseq: 7,
            user_agent: Some("phone".into()),
            methods: Methods(5),
        };
        let there = |row: &Row| binding(row.clone(), now, unix);
        assert_eq!(row(there(&full), now, unix), Some(full.clone()));
        // After a restart five minutes later, with another `Instant`.
        let (later, unix_later) = (now + Duration::from_secs(9), unix + Duration::from_secs(300));
        let back = row(there(&full), later, unix_later).unwrap();
        assert_eq!(back.expires, later + Duration::from_secs(300));
        let key = BindingName { instance: None, reg_id: None, ..full.key.clone() };
        let bare = Row { key, received: None, path: None, q: None, user_agent: None, ..full };
        assert_eq!(row(there(&bare), now, unix), Some(bare.clone()));
        let odd = store::Binding { local_address: "here".into(), ..there(&bare) };
        assert_eq!(row(odd, now, unix), None);
    }

    #[test]
    fn all_secrets_of_a_user() {
        let credentials = Credentials {
            username: "anna".into(),
            password: Some("secret".into()),
            ha1: Some("B1726872C344B6DC8365B774F8FD6412 ".into()),
            ha1b: Some("no digits".into()),
            ..Credentials::default()
        };
        let ha1 = Ha1::new(Hash::Md5, "alice", "example.com", "secret");
        let want = [Secret::Ha1(ha1), Secret::Password("secret".into())];
        assert_eq!(secrets(credentials), want);
    }
}
