//! Users and their secrets: in sipline's own table, or in one that somebody else keeps.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::time::Duration;

use futures_util::TryStreamExt;
use serde::Deserialize;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Executor, Row};
use tokio::time::timeout;

use super::binding::fits;
use super::dialect::Dialect;
use super::sql::{Name, Table};
use super::{Boxed, Error, Inner, Store, text};

/// The columns of our own table.
pub(super) const COLUMNS: &[&str] = &["username", "domain", "ha1", "ha1_sha256"];

/// How many users one query looks for. Few sizes, so that each connection prepares few statements: what is left
/// of a size asks for the last user again.
const SIZES: [usize; 4] = [1, 8, 32, MOST_USERS];
/// How many users are looked for at once.
pub const MOST_USERS: usize = 128;
/// How long the database may take to find them, which includes making a connection.
const FIND_TIMEOUT: Duration = Duration::from_secs(3);

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
    /// Those that look for users, by how many they take: the first of a pair in one domain, or where there are
    /// none, the other one in as many domains as there are names.
    find: Vec<(usize, [String; 2])>,
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
        let list = |from, number| {
            let each = (from + 1..=from + number).map(|number| dialect.placeholder(number));
            each.collect::<Vec<_>>().join(", ")
        };
        let find = |names: usize, domains: usize| {
            let username = column(&table.username);
            let mut query = format!("{all} WHERE {username} IN ({})", list(0, names));
            if let Some(domain) = &table.domain {
                // The name finds the row by its index; what other tables hold as domain may be in any case.
                let domain = column(domain);
                query += &format!(" AND LOWER({domain}) IN ({})", list(names, domains));
            }
            query
        };
        let find = SIZES.map(|size| (size, [find(size, 1), find(size, size)])).into();
        Self { all, find, has_domain: table.domain.is_some() }
    }

    /// The users with these names, each of a domain in small letters, in the order of the question.
    async fn find(
        &self,
        dialect: &dyn Dialect,
        connection: &mut AnyConnection,
        wanted: &[Wanted<'_>],
    ) -> sqlx::Result<Vec<Option<Credentials>>> {
        let mut found = vec![None; wanted.len()];
        // No table has such a user, and PostgreSQL would refuse the question.
        let sane =
            |wanted: &Wanted<'_>| !wanted.user.contains('\0') && !wanted.domain.contains('\0');
        let mut places: Vec<usize> = (0..wanted.len()).filter(|at| sane(&wanted[*at])).collect();
        for places in places.chunks_mut(MOST_USERS) {
            match self.find_some(connection, wanted, places, &mut found).await {
                Err(error) if is_beyond(dialect, &error) => {}
                done => {
                    done?;
                    continue;
                }
            }
            // One of them is in letters that the table cannot hold. Every table can hold ASCII, so the others
            // need not suffer from a name that somebody has made up.
            let is_odd =
                |at: &usize| !wanted[*at].user.is_ascii() || !wanted[*at].domain.is_ascii();
            places.sort_unstable_by_key(is_odd);
            let (plain, odd) = places.split_at_mut(places.partition_point(|at| !is_odd(at)));
            self.find_some(connection, wanted, plain, &mut found).await?;
            for one in odd.chunks_mut(1) {
                match self.find_some(connection, wanted, one, &mut found).await {
                    Err(error) if is_beyond(dialect, &error) => {}
                    done => done?,
                }
            }
        }
        Ok(found)
    }

    /// One question, for the users at these places.
    fn find_some<'a>(
        &'a self,
        connection: &'a mut AnyConnection,
        wanted: &'a [Wanted<'a>],
        places: &'a mut [usize],
        found: &'a mut [Option<Credentials>],
    ) -> Boxed<'a, ()> {
        Box::pin(async move {
            places.sort_unstable_by_key(|at| wanted[*at].user);
            let mut names: Vec<&str> = places.iter().map(|at| wanted[*at].user).collect();
            names.dedup();
            let mut domains: Vec<&str> = match self.has_domain {
                true => places.iter().map(|at| wanted[*at].domain).collect(),
                false => Vec::new(),
            };
            domains.sort_unstable();
            domains.dedup();
            let many = domains.len() > 1;
            let most = if many { names.len().max(domains.len()) } else { names.len() };
            let Some((size, texts)) =
                self.find.iter().find(|(size, _)| (1..=*size).contains(&most))
            else {
                return Ok(());
            };
            let mut query = sqlx::query(&texts[usize::from(many)]);
            for name in filled(&names, *size) {
                query = query.bind(name);
            }
            for domain in filled(&domains, if many { *size } else { 1 }) {
                query = query.bind(domain);
            }
            let mut rows = query.fetch(connection);
            while let Some(row) = rows.try_next().await? {
                let row = read(&row)?;
                // MySQL's usual rules take "Anna" and "anna " for "anna"; SIP does not (RFC 3261 19.1.4).
                let from = places.partition_point(|at| wanted[*at].user < row.username.as_str());
                let of = |at: &&usize| wanted[**at].user == row.username;
                for at in places[from..].iter().take_while(of) {
                    let domain = wanted[*at].domain;
                    if row.domain.as_ref().is_none_or(|of| of == domain) {
                        found[*at].get_or_insert_with(|| row.clone());
                    }
                }
            }
            Ok(())
        })
    }
}

/// A user who is looked for.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    user: &'a str,
    /// In small letters.
    domain: &'a str,
}

/// A list, filled up with its last item.
fn filled<'a>(list: &'a [&'a str], size: usize) -> impl Iterator<Item = &'a str> {
    let last = list.last().copied();
    list.iter()
        .copied()
        .chain(std::iter::repeat_with(move || last).map_while(|last| last))
        .take(size)
}

/// Whether no row can have what was asked for.
fn is_beyond(dialect: &dyn Dialect, error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if dialect.is_beyond_column(error.as_ref()))
}

/// Looks for users, many at once, over a connection of its own: it waits for no other reader.
#[derive(Debug)]
pub struct Finder {
    store: Store,
    connection: Option<AnyConnection>,
}

impl Finder {
    /// Does not go to the database yet.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone(), connection: None }
    }

    /// The users with these names, of these domains if the table has domains, in the order of the question.
    /// What [`Store::user`] says of each; up to [`MOST_USERS`] are one query.
    ///
    /// # Errors
    /// [`Error::Unavailable`], also when the database takes too long. Nothing is known of any of them then.
    pub async fn users(
        &mut self,
        wanted: &[(&str, &str)],
    ) -> Result<Vec<Option<Credentials>>, Error> {
        // Taken out: no connection is left in the middle of an answer when nobody waits for that any more.
        let connection = self.connection.take();
        let find = async {
            if let Some(mut connection) = connection {
                match self.store.find(&mut connection, wanted).await {
                    Ok(found) => return Ok((connection, found)),
                    // The database may have closed it long ago, when nobody asked anything.
                    Err(error) => tracing::debug!(%error, "users are looked for once more"),
                }
            }
            let mut connection = self.store.connect().await?;
            let found = self.store.find(&mut connection, wanted).await?;
            Ok((connection, found))
        };
        let found = timeout(FIND_TIMEOUT, find).await;
        let (connection, found) = found.unwrap_or_else(|_| Err(too_slow()))?;
        self.connection = Some(connection);
        Ok(found)
    }
}

fn too_slow() -> Error {
    Error::Unavailable(sqlx::Error::Io(io::ErrorKind::TimedOut.into()))
}

impl Store {
    /// The user with this name, of this domain if the table has domains.
    pub async fn user(&self, username: &str, domain: &str) -> Result<Option<Credentials>, Error> {
        let mut connection = self.reader().await?;
        let found = self.find(&mut connection, &[(username, domain)]).await?;
        Ok(found.into_iter().next().flatten())
    }

    async fn find(
        &self,
        connection: &mut AnyConnection,
        wanted: &[(&str, &str)],
    ) -> Result<Vec<Option<Credentials>>, Error> {
        let Inner { queries, dialect, .. } = &*self.inner;
        let domains: Vec<Cow<'_, str>> = wanted.iter().map(|(_, domain)| small(domain)).collect();
        let wanted: Vec<Wanted<'_>> = wanted
            .iter()
            .zip(&domains)
            .map(|((user, _), domain)| Wanted { user, domain })
            .collect();
        queries.find(*dialect, connection, &wanted).await.map_err(Error::Unavailable)
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

/// In small letters; nearly always it is already.
fn small(text: &str) -> Cow<'_, str> {
    match text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(text.to_ascii_lowercase()),
        false => Cow::Borrowed(text),
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
