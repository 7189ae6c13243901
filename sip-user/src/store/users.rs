//! Users and their secrets: in sipline's own table, or in one that somebody else keeps.

use std::fmt;

use futures_util::TryStreamExt;
use serde::Deserialize;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Executor, Row};

use super::binding::fits;
use super::dialect::Dialect;
use super::sql::{Name, Table};
use super::{Error, Store, text};

/// The columns of our own table.
pub(super) const COLUMNS: &[&str] = &["username", "domain", "ha1", "ha1_sha256"];

/// Where the users are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Users {
    /// In the table `users`, which is ours.
    #[default]
    Own,
    /// In a table of somebody else, which is only read.
    Table(UserTable),
}

impl Users {
    pub(super) fn table(&self) -> UserTable {
        match self {
            Self::Own => UserTable {
                domain: Some(known("domain")),
                ha1: Some(known("ha1")),
                ha1_sha256: Some(known("ha1_sha256")),
                ..UserTable::new("users")
            },
            Self::Table(table) => table.clone(),
        }
    }
}

/// A table of users and what its columns are called. What is `None` is not there.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct UserTable {
    /// The table.
    pub table: Name,
    /// The user's name, as in digest credentials.
    pub username: Name,
    /// The user's domain. Without it users are those of any domain of ours.
    pub domain: Option<Name>,
    /// The password in clear text.
    pub password: Option<Name>,
    /// MD5 of `username:realm:password`, in hex.
    pub ha1: Option<Name>,
    /// MD5 of `username@domain:realm:password`, for phones that put the domain into the username.
    pub ha1b: Option<Name>,
    /// SHA-256 of `username:realm:password`, in hex (RFC 8760).
    pub ha1_sha256: Option<Name>,
}

impl UserTable {
    /// Asterisk Realtime's `sipusers` with a clear-text `sippasswd`, as Kamailio shares it.
    pub fn asterisk() -> Self {
        Self { password: Some(known("sippasswd")), ..Self::new("sipusers") }
    }

    /// Kamailio's `subscriber`.
    pub fn kamailio() -> Self {
        Self {
            domain: Some(known("domain")),
            ha1: Some(known("ha1")),
            ha1b: Some(known("ha1b")),
            ..Self::new("subscriber")
        }
    }

    fn new(table: &str) -> Self {
        Self {
            table: known(table),
            username: known("username"),
            domain: None,
            password: None,
            ha1: None,
            ha1b: None,
            ha1_sha256: None,
        }
    }
}

/// A name that stands in this file.
fn known(name: &str) -> Name {
    // They are letters, digits and underscores.
    name.parse().unwrap_or_else(|_| unreachable!("{name} is a good name"))
}

/// What is known of a user. Its secrets are not shown when it is printed.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The user's domain, in lower case, if the table has one.
    pub domain: Option<String>,
    /// The password in clear text.
    pub password: Option<String>,
    /// MD5 of `username:realm:password`, in hex.
    pub ha1: Option<String>,
    /// MD5 of `username@domain:realm:password`, in hex.
    pub ha1b: Option<String>,
    /// SHA-256 of `username:realm:password`, in hex.
    pub ha1_sha256: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("domain", &self.domain)
            .field("password", &self.password.is_some())
            .field("ha1", &self.ha1.is_some())
            .field("ha1b", &self.ha1b.is_some())
            .field("ha1_sha256", &self.ha1_sha256.is_some())
            .finish()
    }
}

/// A user of our own table. Its realm is its domain.
#[derive(Clone)]
pub struct NewUser {
    /// The name: 1 to 255 characters, no blanks around it.
    pub username: String,
    /// The domain, likewise.
    pub domain: String,
    /// MD5 of `username:domain:password`: 32 hex digits.
    pub ha1: String,
    /// SHA-256 of the same: 64 hex digits.
    pub ha1_sha256: String,
}

impl fmt::Debug for NewUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewUser")
            .field("username", &self.username)
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

impl NewUser {
    fn check(&self) -> Result<(), Error> {
        for (field, text) in [("user name", &self.username), ("domain", &self.domain)] {
            // Blanks at the end are no difference for MySQL.
            if text.is_empty() || text.trim() != text || !fits(text, 255) {
                let fault = "has to have 1 to 255 characters, and no blanks around it";
                return Err(Error::Value { field, fault });
            }
        }
        for (field, text, digits) in
            [("HA1", &self.ha1, 32), ("HA1 of SHA-256", &self.ha1_sha256, 64)]
        {
            if text.len() != digits || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(Error::Value { field, fault: "has to be hex digits of its length" });
            }
        }
        Ok(())
    }
}

/// The queries for one table of users.
#[derive(Debug)]
pub(super) struct Queries {
    all: String,
    one: String,
    has_domain: bool,
}

impl Queries {
    pub(super) fn new(dialect: &dyn Dialect, table: UserTable) -> Self {
        // Each column with the table in front, so that one that is not there is an error in every engine.
        let column = |name: &Name| format!("u.{}", dialect.quote(name.as_str()));
        let columns = [
            Some(&table.username),
            table.domain.as_ref(),
            table.password.as_ref(),
            table.ha1.as_ref(),
            table.ha1b.as_ref(),
            table.ha1_sha256.as_ref(),
        ];
        let list: Vec<String> = columns
            .iter()
            .map(|name| dialect.text(&name.map_or_else(|| "NULL".to_owned(), column)))
            .collect();
        let all = format!(
            "SELECT {} FROM {} AS u",
            list.join(", "),
            dialect.quoted(&Table(&table.table))
        );
        let mut one =
            format!("{all} WHERE {} = {}", column(&table.username), dialect.placeholder(1));
        if let Some(domain) = &table.domain {
            // The name finds the row by its index; what other tables hold as domain may be in any case.
            one += &format!(" AND LOWER({}) = {}", column(domain), dialect.placeholder(2));
        }
        Self { all, one, has_domain: table.domain.is_some() }
    }
}

impl Store {
    /// The user with this name, of this domain if the table has domains.
    pub async fn user(&self, username: &str, domain: &str) -> Result<Option<Credentials>, Error> {
        let queries = &self.inner.queries;
        // No table has such a user, and PostgreSQL would refuse the question.
        if username.contains('\0') || domain.contains('\0') {
            return Ok(None);
        }
        let domain = domain.to_ascii_lowercase();
        let mut query = sqlx::query(&queries.one).bind(username);
        if queries.has_domain {
            query = query.bind(domain.as_str());
        }
        let mut connection = self.reader().await?;
        let mut rows = query.fetch(&mut *connection);
        loop {
            let row = match rows.try_next().await {
                Ok(Some(row)) => row,
                Ok(None) => return Ok(None),
                Err(sqlx::Error::Database(error))
                    if self.inner.dialect.is_beyond_column(error.as_ref()) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            };
            let found = read(&row)?;
            // MySQL's usual rules take "Anna" and "anna " for "anna"; SIP does not (RFC 3261 19.1.4).
            if found.username == username
                && found.domain.as_ref().is_none_or(|found| *found == domain)
            {
                return Ok(Some(found));
            }
        }
    }

    /// Reads all users, one after another, in no order. Says how many.
    pub async fn load_users(&self, each: impl FnMut(Credentials)) -> Result<u64, Error> {
        self.read_users(&self.inner.queries.all, each).await
    }

    /// Reads all users by name and domain, for people. Says how many.
    pub async fn list_users(&self, each: impl FnMut(Credentials)) -> Result<u64, Error> {
        let query = format!("{} ORDER BY 1, 2", self.inner.queries.all);
        self.read_users(&query, each).await
    }

    /// Adds a user to our own table.
    ///
    /// # Errors
    /// [`Error::UserExists`], [`Error::Value`], [`Error::NotOurUsers`]
    pub async fn add_user(&self, user: &NewUser) -> Result<(), Error> {
        self.check_own(user)?;
        let dialect = self.inner.dialect;
        let values: Vec<String> = (1..=COLUMNS.len()).map(|n| dialect.placeholder(n)).collect();
        let query =
            format!("INSERT INTO users ({}) VALUES ({})", COLUMNS.join(", "), values.join(", "));
        let mut connection = self.reader().await?;
        let done = sqlx::query(&query)
            .bind(user.username.as_str())
            .bind(user.domain.to_ascii_lowercase())
            .bind(user.ha1.to_ascii_lowercase())
            .bind(user.ha1_sha256.to_ascii_lowercase())
            .execute(&mut *connection)
            .await;
        match done {
            Ok(_) => Ok(()),
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                Err(Error::UserExists)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a user of our own table other secrets. Says whether there is such a user.
    ///
    /// # Errors
    /// [`Error::Value`], [`Error::NotOurUsers`]
    pub async fn change_user(&self, user: &NewUser) -> Result<bool, Error> {
        self.check_own(user)?;
        // MySQL does not count a row that is changed into what it was.
        if self.user(&user.username, &user.domain).await?.is_none() {
            return Ok(false);
        }
        let p = |number| self.inner.dialect.placeholder(number);
        let query = format!(
            "UPDATE users SET ha1 = {}, ha1_sha256 = {} WHERE username = {} AND domain = {}",
            p(1),
            p(2),
            p(3),
            p(4)
        );
        let mut connection = self.reader().await?;
        sqlx::query(&query)
            .bind(user.ha1.to_ascii_lowercase())
            .bind(user.ha1_sha256.to_ascii_lowercase())
            .bind(user.username.as_str())
            .bind(user.domain.to_ascii_lowercase())
            .execute(&mut *connection)
            .await?;
        Ok(true)
    }

    /// Removes a user from our own table. Says whether there was one.
    ///
    /// # Errors
    /// [`Error::NotOurUsers`]
    pub async fn remove_user(&self, username: &str, domain: &str) -> Result<bool, Error> {
        self.own()?;
        if self.user(username, domain).await?.is_none() {
            return Ok(false);
        }
        let p = |number| self.inner.dialect.placeholder(number);
        let query = format!("DELETE FROM users WHERE username = {} AND domain = {}", p(1), p(2));
        let mut connection = self.reader().await?;
        let done = sqlx::query(&query)
            .bind(username)
            .bind(domain.to_ascii_lowercase())
            .execute(&mut *connection)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// The statement that makes the index that the table of users lacks, if it does. Also fails when the
    /// table lacks a column.
    pub(super) async fn missing_index(
        &self,
        connection: &mut AnyConnection,
    ) -> Result<Option<String>, Error> {
        let dialect = self.inner.dialect;
        let table = self.inner.users.table();
        let name = Table(&table.table);
        let probe = format!("{} WHERE 1 = 0", self.inner.queries.all);
        connection.execute(probe.as_str()).await?;

        let (query, values) = dialect.index_on(&name, table.username.as_str());
        let mut query = sqlx::query(query).persistent(false);
        for value in values {
            query = query.bind(value);
        }
        let found: i64 = query.fetch_one(connection).await?.try_get(0)?;
        let index = format!("{}_username", name.name());
        Ok((found == 0).then(|| dialect.create_index(&index, &name, table.username.as_str())))
    }

    async fn read_users(
        &self,
        query: &str,
        mut each: impl FnMut(Credentials),
    ) -> Result<u64, Error> {
        let mut connection = self.reader().await?;
        let mut rows = sqlx::query(query).persistent(false).fetch(&mut *connection);
        let mut count = 0;
        while let Some(row) = rows.try_next().await? {
            each(read(&row)?);
            count += 1;
        }
        Ok(count)
    }

    fn own(&self) -> Result<(), Error> {
        match self.inner.users {
            Users::Own => Ok(()),
            Users::Table(_) => Err(Error::NotOurUsers),
        }
    }

    fn check_own(&self, user: &NewUser) -> Result<(), Error> {
        self.own()?;
        user.check()
    }
}

fn read(row: &AnyRow) -> sqlx::Result<Credentials> {
    // An empty secret is none: in Kamailio's table that is the default.
    let optional = |index| text(row, index).map(|text| text.filter(|text| !text.is_empty()));
    Ok(Credentials {
        username: text(row, 0)?.unwrap_or_default(),
        domain: text(row, 1)?.map(|domain| domain.to_ascii_lowercase()),
        password: optional(2)?,
        ha1: optional(3)?,
        ha1b: optional(4)?,
        ha1_sha256: optional(5)?,
    })
}
