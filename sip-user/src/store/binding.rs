//! Bindings: what `location` holds.

use futures_util::TryStreamExt;
use sha2::{Digest, Sha256};
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, Row};

use super::writer::Refused;
use super::{Error, Store, text, unix_now};

/// The columns of `location`, in the order in which they are bound and read.
pub(super) const COLUMNS: &[&str] = &[
    "id",
    "username",
    "domain",
    "contact",
    "received",
    "local_address",
    "path",
    "q",
    "expires_at",
    "call_id",
    "cseq",
    "user_agent",
    "instance",
    "reg_id",
    "methods",
    "updated_at",
];

/// One binding of an address-of-record to a contact (RFC 3261 10.3).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Binding {
    /// The user of the address-of-record. At most 255 characters, as the other texts without a number.
    pub user: String,
    /// Its domain, in lower case.
    pub domain: String,
    /// The URI of the Contact. At most 2048 characters.
    pub contact: String,
    /// Where the REGISTER came from, if that is not where the contact says (a phone behind a NAT).
    pub received: Option<String>,
    /// The address of ours that it came to, and that requests to the contact leave from.
    pub local_address: String,
    /// The Path of RFC 3327. At most 4096 characters.
    pub path: Option<String>,
    /// The q of RFC 3261 20.10, in thousandths.
    pub q: u16,
    /// When it ends, in seconds since 1970 (UTC).
    pub expires_at: i64,
    /// The Call-ID of the REGISTER. At most 1024 characters.
    pub call_id: String,
    /// Its CSeq.
    pub cseq: u32,
    /// Its User-Agent; cut at 255 characters.
    pub user_agent: String,
    /// `+sip.instance` (RFC 5626 4.1).
    pub instance: Option<String>,
    /// `reg-id` (RFC 5626 4.2).
    pub reg_id: Option<u32>,
    /// The methods that the phone allows, a bit for each; 0 is all.
    pub methods: u16,
    /// When it was last changed, in seconds since 1970 (UTC).
    pub updated_at: i64,
}

impl Binding {
    /// What identifies it.
    pub fn key(&self) -> BindingKey {
        let instance = self.instance.as_deref();
        BindingKey::new(&self.user, &self.domain, &self.contact, instance, self.reg_id)
    }

    /// Makes it fit into every engine's columns, or says why it cannot.
    pub(super) fn fit(&mut self) -> Result<(), Refused> {
        cut(&mut self.user_agent, 255);
        let optional = |text| Option::<&str>::unwrap_or_default(text);
        let fields = [
            ("user", self.user.as_str(), 255),
            ("domain", &self.domain, 255),
            ("contact", &self.contact, 2048),
            ("received", optional(self.received.as_deref()), 255),
            ("local address", &self.local_address, 255),
            ("path", optional(self.path.as_deref()), 4096),
            ("Call-ID", &self.call_id, 1024),
            ("instance", optional(self.instance.as_deref()), 255),
        ];
        for (field, text, limit) in fields {
            if !fits(text, limit) {
                return Err(Refused::Value { field });
            }
        }
        Ok(())
    }

    pub(super) fn bind<'q>(
        &'q self,
        id: &'q str,
        query: Query<'q, Any, AnyArguments<'q>>,
    ) -> Query<'q, Any, AnyArguments<'q>> {
        query
            .bind(id)
            .bind(self.user.as_str())
            .bind(self.domain.as_str())
            .bind(self.contact.as_str())
            .bind(self.received.as_deref())
            .bind(self.local_address.as_str())
            .bind(self.path.as_deref())
            .bind(i32::from(self.q))
            .bind(self.expires_at)
            .bind(self.call_id.as_str())
            .bind(i64::from(self.cseq))
            .bind(self.user_agent.as_str())
            .bind(self.instance.as_deref())
            .bind(self.reg_id.map(i64::from))
            .bind(i32::from(self.methods))
            .bind(self.updated_at)
    }

    fn read(row: &AnyRow) -> sqlx::Result<Self> {
        let needed = |index| text(row, index).map(Option::unwrap_or_default);
        let number = |index| row.try_get::<i64, _>(index);
        // A value that somebody else has written and that does not fit is as good as none.
        let small = |number: i64| u32::try_from(number).unwrap_or_default();
        Ok(Self {
            user: needed(1)?,
            domain: needed(2)?,
            contact: needed(3)?,
            received: text(row, 4)?,
            local_address: needed(5)?,
            path: text(row, 6)?,
            q: u16::try_from(number(7)?).unwrap_or_default().min(1000),
            expires_at: number(8)?,
            call_id: needed(9)?,
            cseq: small(number(10)?),
            user_agent: needed(11)?,
            instance: text(row, 12)?,
            reg_id: row.try_get::<Option<i64>, _>(13)?.map(small),
            methods: u16::try_from(number(14)?).unwrap_or_default(),
            updated_at: number(15)?,
        })
    }
}

/// What identifies a binding: a digest of its user, domain and contact, so that the key is short and the
/// same in every engine, whatever its rules for comparing text. Of a phone with several flows (RFC 5626), which
/// have one contact, the flow counts too.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BindingKey([u8; 32]);

impl BindingKey {
    /// The key of a user's contact. The domain is compared without case.
    pub fn new(
        user: &str,
        domain: &str,
        contact: &str,
        instance: Option<&str>,
        reg_id: Option<u32>,
    ) -> Self {
        let mut digest = Sha256::new();
        let domain = domain.to_ascii_lowercase();
        let number = reg_id.map(|number| number.to_string());
        // An instance alone tells nothing apart that the contact does not.
        let flow = number.as_deref().map(|number| [instance.unwrap_or_default(), number]);
        for part in [user, &domain, contact].into_iter().chain(flow.into_iter().flatten()) {
            // With the length in front no two lists of parts are the same bytes.
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        }
        Self(digest.finalize().into())
    }

    pub(super) fn hex(self) -> String {
        let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
        self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }
}

impl Store {
    /// Reads all bindings that have not ended, one after another, in no order. Says how many.
    pub async fn load_bindings(&self, mut each: impl FnMut(Binding)) -> Result<u64, Error> {
        let query = format!(
            "SELECT {} FROM location WHERE expires_at > {}",
            COLUMNS.join(", "),
            self.inner.dialect.placeholder(1)
        );
        let mut connection = self.reader().await?;
        let mut rows = sqlx::query(&query).bind(unix_now()).fetch(&mut *connection);
        let mut count = 0;
        while let Some(row) = rows.try_next().await? {
            each(Binding::read(&row)?);
            count += 1;
        }
        Ok(count)
    }

    /// Removes the bindings that ended `age` seconds ago or earlier, as those that ended while no daemon
    /// ran. Says how many.
    pub async fn remove_expired_bindings(&self, age: u32) -> Result<u64, Error> {
        let query = format!(
            "DELETE FROM location WHERE expires_at <= {}",
            self.inner.dialect.placeholder(1)
        );
        let mut connection = self.reader().await?;
        let limit = unix_now() - i64::from(age);
        let done = sqlx::query(&query).bind(limit).execute(&mut *connection).await?;
        Ok(done.rows_affected())
    }
}

/// Whether a text has at most `limit` characters, and none that PostgreSQL cannot store.
pub(super) fn fits(text: &str, limit: usize) -> bool {
    // No more characters than bytes.
    let short = text.len() <= limit || text.len() <= limit * 4 && text.chars().count() <= limit;
    short && !text.contains('\0')
}

/// Takes out what cannot be stored, and cuts the rest at `limit` characters.
pub(super) fn cut(text: &mut String, limit: usize) {
    if fits(text, limit) {
        return;
    }
    *text = text.chars().filter(|c| *c != '\0').take(limit).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_where_bindings_do() {
        let new = |user, domain, contact| BindingKey::new(user, domain, contact, None, None);
        let key = new("anna", "example.org", "sip:anna@192.0.2.1");
        assert_eq!(key, new("anna", "EXAMPLE.org", "sip:anna@192.0.2.1"));
        assert_ne!(key, new("Anna", "example.org", "sip:anna@192.0.2.1"));
        assert_ne!(new("a", "bc", "d"), new("ab", "c", "d"));
        let flow = |instance, number| {
            BindingKey::new("anna", "example.org", "sip:anna@192.0.2.1", instance, number)
        };
        assert_eq!(key, flow(Some("<urn:uuid:1>"), None));
        assert_ne!(flow(Some("<urn:uuid:1>"), Some(1)), flow(Some("<urn:uuid:1>"), Some(2)));
        assert_ne!(flow(Some("<urn:uuid:1>"), Some(1)), flow(Some("<urn:uuid:2>"), Some(1)));
        let bytes: [u8; 32] = std::array::from_fn(|at| at as u8 + 0x9e);
        let hex = BindingKey(bytes).hex();
        assert_eq!((&hex[..6], hex.len()), ("9e9fa0", 64));
    }

    #[test]
    fn what_is_too_long_is_refused_or_cut() {
        let mut binding = Binding { user_agent: "é".repeat(300), ..Binding::default() };
        assert_eq!(binding.fit(), Ok(()));
        assert_eq!(binding.user_agent.chars().count(), 255);
        binding.contact = "x".repeat(2049);
        assert_eq!(binding.fit(), Err(Refused::Value { field: "contact" }));
        binding.contact = "sip:a\0b@example.org".into();
        assert_eq!(binding.fit(), Err(Refused::Value { field: "contact" }));
    }
}
