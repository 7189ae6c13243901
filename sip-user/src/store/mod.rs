//! What must outlive the daemon: users, bindings (RFC 3261 10) and call detail records.
//!
//! A [`Store`] is one database: SQLite, MariaDB/MySQL or PostgreSQL, chosen by its URL. All three are spoken
//! to through one code path (sqlx's `Any`); what they do differently stands in one file per engine, behind
//! `dialect::Dialect`. Reads wait for the database; writes do not: they go through a [`Writer`], which
//! queues them and survives that the database is away.
//!
//! ```text
//!  core ── put_binding, delete_binding, insert_cdr ─► Writer ── batches ─► location, cdr
//!  core ◄─ users ──────────────────────────────────── Finder ◄─ batches ── users | sipusers | subscriber
//!  core ◄─ load_bindings ──────────────────────────── Store  ◄──────────── location
//! ```
//!
//! `users`, `location` and `cdr` are sipline's own tables, made by [`Store::prepare`]. Users may also be read
//! from a table that somebody else has made ([`Users::Table`]).

mod binding;
mod cdr;
mod dialect;
mod mysql;
mod postgres;
mod sql;
mod sqlite;
mod users;
mod writer;

use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::any::{AnyConnectOptions, AnyPoolOptions, AnyRow};
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, ConnectOptions, Connection, Executor, Row};

pub use binding::{Binding, BindingKey};
pub use cdr::{Cdr, CdrFilter, Disposition};
pub use sql::Name;
pub use users::{Credentials, Finder, MOST_USERS, NewUser, UserTable, Users};
pub use writer::{Counters, Left, Refused, Writer, WriterSettings};

use dialect::Dialect;

/// How long a connection may take to come up, and a reader waits for a free one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections for reading. They are made when they are needed.
const READERS: u32 = 4;

/// Which database, and where its users are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `sqlite:///var/lib/sipline/sipline.db`, `mysql://user:password@host/database` or
    /// `postgres://user:password@host/database`. Over a Unix socket: `mysql://user@localhost/database?socket=PATH`,
    /// `postgres://user@localhost/database?host=DIRECTORY`.
    pub url: String,
    /// Where the users are.
    pub users: Users,
}

/// Why the store did not do what it was asked to.
#[derive(Debug)]
pub enum Error {
    /// The URL is not one of a database that sipline knows.
    Url(String),
    /// The database cannot be reached, or does not do what it should; later it may.
    Unavailable(sqlx::Error),
    /// The tables were made by a newer sipline.
    Newer {
        /// The version of the tables.
        found: i64,
        /// The newest version that this sipline knows.
        known: i64,
    },
    /// There is a table with the name of one of ours, and it is not ours.
    Foreign {
        /// Its name.
        table: &'static str,
        /// What the database said when it was asked for our columns.
        fault: String,
    },
    /// There is such a user already.
    UserExists,
    /// A value that cannot be stored.
    Value {
        /// Which.
        field: &'static str,
        /// Why.
        fault: &'static str,
    },
    /// Users are read from a table of somebody else, so they are not sipline's to change.
    NotOurUsers,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(fault) => write!(f, "database URL: {fault}"),
            Self::Unavailable(error) => write!(f, "database: {error}"),
            Self::Newer { found, known } => write!(
                f,
                "the database has tables of version {found}, made by a newer sipline; this one knows \
                 versions up to {known}: install the newer one again, or use another database"
            ),
            Self::Foreign { table, fault } => write!(
                f,
                "table {table} is there and is not sipline's ({fault}): give sipline a database of its \
                 own; a table of users may be in another database and be named DATABASE.TABLE"
            ),
            Self::UserExists => f.write_str("there is such a user already"),
            Self::Value { field, fault } => write!(f, "{field} {fault}"),
            Self::NotOurUsers => f.write_str(
                "users are read from a table that is not sipline's: change them where they are kept",
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unavailable(error) => Some(error),
            _ => None,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(error)
    }
}

/// A database. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dialect: &'static dyn Dialect,
    options: AnyConnectOptions,
    readers: AnyPool,
    users: Users,
    queries: users::Queries,
}

impl Store {
    /// Takes the settings, and does not go to the database yet: it may be away. Wants a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Url`], also when the file of SQLite cannot be made.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        sqlx::any::install_default_drivers();
        let (scheme, _) = settings.url.split_once(':').ok_or_else(|| {
            Error::Url("it has to start with sqlite:, mysql: or postgres:".into())
        })?;
        let dialect: &'static dyn Dialect = match scheme {
            "sqlite" => &sqlite::Sqlite,
            "mysql" | "mariadb" => &mysql::MySql,
            "postgres" | "postgresql" => &postgres::Postgres,
            other => {
                return Err(Error::Url(format!(
                    "\"{other}\" is unknown, there are sqlite, mysql and postgres"
                )));
            }
        };
        let url = dialect.url(&settings.url).map_err(Error::Url)?;
        let options = AnyConnectOptions::from_str(&url)
            .map_err(|error| Error::Url(error.to_string()))?
            .disable_statement_logging();
        let readers = AnyPoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(CONNECT_TIMEOUT)
            .after_connect(move |connection, _| set_up(dialect, connection))
            .connect_lazy_with(options.clone());
        let users = settings.users.clone();
        let queries = users::Queries::new(dialect, users.table());
        Ok(Self { inner: Arc::new(Inner { dialect, options, readers, users, queries }) })
    }

    /// Makes the tables that are ours, or brings them up to date; when they are, nothing is written. Then
    /// looks at the table of users, and warns in the log when each look-up would read all of it.
    ///
    /// # Errors
    /// [`Error::Newer`] and [`Error::Foreign`] will not mend themselves; [`Error::Unavailable`] may.
    pub async fn prepare(&self) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        self.prepare_on(&mut connection).await?;
        // It has nothing left to say that could fail.
        let _ = connection.close().await;
        Ok(())
    }

    /// The engine's name, for people.
    pub fn engine(&self) -> &'static str {
        self.inner.dialect.name()
    }

    fn prepare_on<'a>(&'a self, connection: &'a mut AnyConnection) -> Boxed<'a, (), Error> {
        Box::pin(async move {
            migrate(self.inner.dialect, connection).await?;
            if let Some(advice) = self.missing_index(connection).await? {
                tracing::warn!(
                    "each look-up of a user reads the whole table of users; to mend that, run: {advice}"
                );
            }
            Ok(())
        })
    }

    /// A connection of the caller's own.
    async fn connect(&self) -> Result<AnyConnection, Error> {
        let dialect = self.inner.dialect;
        let connect = async {
            let mut connection = AnyConnection::connect_with(&self.inner.options).await?;
            set_up(dialect, &mut connection).await?;
            Ok(connection)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(connected) => connected.map_err(Error::Unavailable),
            Err(_) => Err(Error::Unavailable(sqlx::Error::PoolTimedOut)),
        }
    }

    async fn reader(&self) -> Result<PoolConnection<Any>, Error> {
        self.inner.readers.acquire().await.map_err(Error::Unavailable)
    }
}

fn set_up<'a>(dialect: &'static dyn Dialect, connection: &'a mut AnyConnection) -> Boxed<'a, ()> {
    Box::pin(async move {
        for statement in dialect.session() {
            connection.execute(*statement).await?;
        }
        Ok(())
    })
}

// ---- Versions of the tables ----------------------------------------------------------------------

const MAKE_VERSIONS: &str = "CREATE TABLE IF NOT EXISTS sipline_schema \
                             (version INTEGER NOT NULL PRIMARY KEY, applied_at BIGINT NOT NULL)";
const READ_VERSION: &str = "SELECT MAX(version) FROM sipline_schema";

async fn migrate(dialect: &dyn Dialect, connection: &mut AnyConnection) -> Result<(), Error> {
    let known = i64::try_from(dialect.migrations().len()).unwrap_or(i64::MAX);
    // Reading first: a user of the database who may not make tables can use those that are there.
    let found = match version(connection).await {
        Ok(version) => version,
        Err(sqlx::Error::Database(error)) if !dialect.is_away(error.as_ref()) => 0,
        Err(error) => return Err(error.into()),
    };
    if found < known {
        check_tables(dialect, connection, false).await?;
        let (lock, unlock) = dialect.migration_lock();
        connection.execute(lock).await?;
        let changed = migrate_locked(dialect, connection).await;
        if changed.is_ok() {
            connection.execute(unlock).await?;
        }
        // After a failure the caller drops the connection, and the lock goes with it.
        changed?;
    } else if found > known {
        return Err(Error::Newer { found, known });
    }
    check_tables(dialect, connection, true).await?;
    Ok(())
}

/// Nobody else migrates meanwhile. Each step may have been done in part by a run that was killed, where the
/// engine cannot take back a CREATE TABLE, so all of them say IF NOT EXISTS.
async fn migrate_locked(
    dialect: &dyn Dialect,
    connection: &mut AnyConnection,
) -> Result<(), Error> {
    connection.execute(MAKE_VERSIONS).await?;
    let found = version(connection).await?;
    let record = format!(
        "INSERT INTO sipline_schema (version, applied_at) VALUES ({}, {})",
        dialect.placeholder(1),
        dialect.placeholder(2)
    );
    for (version, migration) in (1i64..).zip(dialect.migrations()) {
        if version <= found {
            continue;
        }
        connection.execute(*migration).await?;
        // INTEGER in all three engines.
        let number = i32::try_from(version).unwrap_or(i32::MAX);
        sqlx::query(&record).bind(number).bind(unix_now()).execute(&mut *connection).await?;
        tracing::info!(engine = dialect.name(), version, "tables of the database are up to date");
    }
    Ok(())
}

/// Whether the tables with our names have our columns. Those that are not there are no fault unless they
/// `must_exist`.
async fn check_tables(
    dialect: &dyn Dialect,
    connection: &mut AnyConnection,
    must_exist: bool,
) -> Result<(), Error> {
    for (table, columns) in
        [("users", users::COLUMNS), ("location", binding::COLUMNS), ("cdr", cdr::COLUMNS)]
    {
        let ours = format!("SELECT {} FROM {table} WHERE 1 = 0", columns.join(", "));
        let fault = match connection.execute(ours.as_str()).await {
            Ok(_) => continue,
            Err(sqlx::Error::Database(error)) if !dialect.is_away(error.as_ref()) => error,
            Err(error) => return Err(error.into()),
        };
        let any = format!("SELECT 1 FROM {table} WHERE 1 = 0");
        let is_there = must_exist || connection.execute(any.as_str()).await.is_ok();
        // Once more: another daemon, or our own writer, may have made it in between.
        if is_there && connection.execute(ours.as_str()).await.is_err() {
            return Err(Error::Foreign { table, fault: fault.message().to_owned() });
        }
    }
    Ok(())
}

async fn version(connection: &mut AnyConnection) -> sqlx::Result<i64> {
    let row = sqlx::query(READ_VERSION).persistent(false).fetch_one(connection).await?;
    Ok(row.try_get::<Option<i64>, _>(0)?.unwrap_or(0))
}

// ---- Small things --------------------------------------------------------------------------------

/// Boxed where it is made: there the compiler still sees that it may move between threads.
type Boxed<'a, T, E = sqlx::Error> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// A column of text that may be null. MySQL hands long text over as bytes.
fn text(row: &AnyRow, index: usize) -> sqlx::Result<Option<String>> {
    match row.try_get::<Option<String>, _>(index) {
        Ok(text) => Ok(text),
        Err(_) => row
            .try_get::<Option<Vec<u8>>, _>(index)
            .map(|bytes| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())),
    }
}

fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// Makes a file if it is not there, readable by its owner alone.
fn make_file(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt;

    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|error| format!("cannot open {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(url: &str) -> Result<Store, Error> {
        Store::new(&Settings { url: url.into(), users: Users::Own })
    }

    #[test]
    fn urls_are_checked() {
        for bad in [
            "",
            "sipline.db",
            "oracle://x/y",
            "sqlite:",
            "sqlite::memory:",
            "sqlite:///no/such/x.db",
        ] {
            assert!(matches!(store(bad), Err(Error::Url(_))), "{bad}");
        }
    }

    /// Whoever has several threads may spawn them: this has only to compile.
    #[tokio::test]
    async fn futures_may_move_between_threads() {
        fn movable<T: Send>(_: T) {}

        let store = store("mysql://nobody@localhost/none").unwrap();
        movable(store.prepare());
        movable(store.user("anna", "example.org"));
        let mut finder = Finder::new(&store);
        movable(finder.users(&[("anna", "example.org")]));
        movable(store.load_users(|_| ()));
        movable(store.load_bindings(|_| ()));
        movable(store.remove_expired_bindings(0));
        movable(store.cdrs(&CdrFilter::default(), |_| ()));
        movable(store.remove_user("anna", "example.org"));
        let user = NewUser {
            username: "anna".into(),
            domain: "example.org".into(),
            ha1: String::new(),
            ha1_sha256: String::new(),
        };
        movable(store.add_user(&user));
        movable(store.change_user(&user));
        let writer = Writer::start(&store, WriterSettings::default());
        movable(writer.flush(Duration::ZERO));
        movable(writer.stop(Duration::ZERO));
    }
}
