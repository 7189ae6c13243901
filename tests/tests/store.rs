//! The stores: one suite, run over SQLite and over real servers of MariaDB and PostgreSQL.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sip_user::store::{
    Binding, Cdr, CdrFilter, Counters, Credentials, Disposition, Error, Finder, MOST_USERS,
    NewUser, Refused, Settings, Store, UserTable, Users, Writer, WriterSettings,
};
use sipline_tests::lab::{Database, Engine};
use sqlx::{AnyConnection, Connection, Executor, Row};

/// How long anything may take that takes a moment.
const LIMIT: Duration = Duration::from_secs(30);

type Case = (&'static str, fn(&tokio::runtime::Runtime, &mut World));

/// Each case gets a database of its own.
const CASES: &[Case] = &[
    ("tables are made once", |rt, w| rt.block_on(tables_are_made_once(w))),
    ("newer tables are refused", |rt, w| rt.block_on(newer_tables_are_refused(w))),
    ("foreign tables are refused", |rt, w| rt.block_on(foreign_tables_are_refused(w))),
    ("own users", |rt, w| rt.block_on(own_users(w))),
    ("sipusers of Asterisk", |rt, w| rt.block_on(sipusers_of_asterisk(w))),
    ("subscriber of Kamailio", |rt, w| rt.block_on(subscriber_of_kamailio(w))),
    ("odd names and values", |rt, w| rt.block_on(odd_names_and_values(w))),
    ("many users at once", |rt, w| rt.block_on(many_users_at_once(w))),
    ("a burst of questions", |rt, w| rt.block_on(a_burst_of_questions(w))),
    ("away between questions", |rt, w| rt.block_on(away_between_questions(w))),
    ("bindings come back as they were", |rt, w| rt.block_on(bindings_come_back(w))),
    ("changes of a binding coalesce", |rt, w| rt.block_on(changes_coalesce(w))),
    ("many changes", |rt, w| rt.block_on(many_changes(w))),
    ("records come back as they were", |rt, w| rt.block_on(records_come_back(w))),
    ("records are found", |rt, w| rt.block_on(records_are_found(w))),
    ("one bad change harms no other", |rt, w| rt.block_on(one_bad_change(w))),
    ("away at start", |rt, w| rt.block_on(away_at_start(w))),
    ("a full queue", |rt, w| rt.block_on(a_full_queue(w))),
    ("killed in the middle", |rt, w| rt.block_on(killed_in_the_middle(w))),
];

#[test]
fn sqlite() {
    run(Server::Sqlite { file: PathBuf::new(), lock: None });
}

#[test]
fn mariadb() {
    run(Server::Real(Database::start(Engine::MariaDb).unwrap()));
}

#[test]
fn postgresql() {
    run(Server::Real(Database::start(Engine::Postgres).unwrap()));
}

/// A server that takes connections and says nothing.
#[test]
fn a_database_that_does_not_answer() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("mysql://nobody@{}/none", silent.local_addr().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::new(&Settings { url, users: Users::Own }).unwrap();
        let start = SystemTime::now();
        let found = Finder::new(&store).users(&[("anna", "example.org"), ("otto", "d")]).await;
        assert!(matches!(found, Err(Error::Unavailable(_))), "{found:?}");
        // Before those who asked have given up.
        assert!(start.elapsed().unwrap() < Duration::from_secs(5));
    });
}

fn run(server: Server) {
    sqlx::any::install_default_drivers();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = TempDir::new();
    let mut world = World { server, dir, database: String::new(), kind: Kind::Sqlite };
    world.kind = world.kind();
    let mut failed = Vec::new();
    for (number, (name, case)) in CASES.iter().enumerate() {
        let start = SystemTime::now();
        let done: Result<(), Box<dyn Any + Send>> = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(world.fresh(number));
            case(&runtime, &mut world);
        }));
        let took = start.elapsed().unwrap_or_default().as_secs_f32();
        println!("{name}: {} ({took:.1} s)", if done.is_ok() { "ok" } else { "FAILED" });
        if done.is_err() {
            failed.push(name);
            runtime.block_on(world.bring_back());
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

// ---- The world -----------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Sqlite,
    MariaDb,
    Postgres,
}

enum Server {
    /// It has no server that could be killed: away is when somebody else holds its lock.
    Sqlite {
        file: PathBuf,
        lock: Option<AnyConnection>,
    },
    Real(Database),
}

struct World {
    server: Server,
    dir: TempDir,
    database: String,
    kind: Kind,
}

/// A directory that goes with its owner.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        let name =
            format!("sipline-store-{}-{:?}", std::process::id(), std::thread::current().id());
        let dir = std::env::temp_dir().join(name.replace(['(', ')'], ""));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl World {
    fn kind(&self) -> Kind {
        match &self.server {
            Server::Sqlite { .. } => Kind::Sqlite,
            Server::Real(database) if database.url(None).starts_with("mysql") => Kind::MariaDb,
            Server::Real(_) => Kind::Postgres,
        }
    }

    /// Makes an empty database.
    async fn fresh(&mut self, number: usize) {
        self.database = format!("case{number}");
        let name = self.database.clone();
        match &mut self.server {
            Server::Sqlite { file, .. } => *file = self.dir.0.join(format!("{name}.db")),
            Server::Real(server) => {
                let mut admin = AnyConnection::connect(&server.url(None)).await.unwrap();
                admin.execute(format!("CREATE DATABASE {name}").as_str()).await.unwrap();
            }
        }
    }

    fn url(&self) -> String {
        match &self.server {
            Server::Sqlite { file, .. } => format!("sqlite://{}", file.display()),
            Server::Real(server) => server.url(Some(&self.database)),
        }
    }

    fn store_of(&self, users: Users) -> Store {
        Store::new(&Settings { url: self.url(), users }).unwrap()
    }

    async fn store(&self) -> Store {
        let store = self.store_of(Users::Own);
        store.prepare().await.unwrap();
        store
    }

    /// A connection beside the store's.
    async fn admin(&self) -> AnyConnection {
        let url = match &self.server {
            Server::Sqlite { .. } => format!("{}?mode=rwc", self.url()),
            Server::Real(_) => self.url(),
        };
        AnyConnection::connect(&url).await.unwrap()
    }

    async fn execute(&self, statement: &str) {
        let mut admin = self.admin().await;
        admin.execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    async fn number(&self, query: &str) -> i64 {
        let mut admin = self.admin().await;
        sqlx::query(query).fetch_one(&mut admin).await.unwrap().try_get(0).unwrap()
    }

    /// As the engine quotes a name.
    fn quote(&self, name: &str) -> String {
        match self.kind {
            Kind::MariaDb => format!("`{name}`"),
            Kind::Sqlite | Kind::Postgres => format!("\"{name}\""),
        }
    }

    async fn take_away(&mut self) {
        if let Server::Sqlite { .. } = self.server {
            let mut admin = self.admin().await;
            admin.execute("BEGIN EXCLUSIVE").await.unwrap();
            let Server::Sqlite { lock, .. } = &mut self.server else { return };
            *lock = Some(admin);
        } else if let Server::Real(server) = &mut self.server {
            server.kill().unwrap();
        }
    }

    async fn bring_back(&mut self) {
        match &mut self.server {
            Server::Sqlite { lock, .. } => {
                if let Some(mut lock) = lock.take() {
                    lock.execute("ROLLBACK").await.unwrap();
                }
            }
            Server::Real(server) => {
                server.kill().unwrap();
                server.start_again().unwrap();
            }
        }
    }
}

fn writer(store: &Store) -> Writer {
    let interval = Duration::from_millis(10);
    Writer::start(store, WriterSettings { batch: 300, interval, ..WriterSettings::default() })
}

async fn all_bindings(store: &Store) -> BTreeMap<String, Binding> {
    let mut all = BTreeMap::new();
    let count = store
        .load_bindings(|binding| {
            all.insert(format!("{} {}", binding.user, binding.contact), binding);
        })
        .await
        .unwrap();
    assert_eq!(count, all.len() as u64, "no binding is there twice");
    all
}

async fn all_cdrs(store: &Store, filter: &CdrFilter) -> Vec<Cdr> {
    let mut all = Vec::new();
    store.cdrs(filter, |cdr| all.push(cdr)).await.unwrap();
    all
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed()
}

fn binding(number: u32) -> Binding {
    Binding {
        user: format!("{number}"),
        domain: "example.org".into(),
        contact: format!("sip:{number}@192.0.2.7:5060"),
        local_address: "192.0.2.1:5060".into(),
        q: 1000,
        expires_at: now() + 3600,
        call_id: format!("call-{number}"),
        cseq: number,
        updated_at: now(),
        ..Binding::default()
    }
}

fn cdr(number: u32) -> Cdr {
    let at =
        UNIX_EPOCH + Duration::from_micros(1_335_830_400_000_000 + u64::from(number) * 1_000_001);
    Cdr {
        calldate: at,
        enddate: at + Duration::from_micros(90_000_007),
        src: format!("{}", 100 + number % 10),
        dst: format!("{}", 200 + number % 7),
        uniqueid: format!("{number:032x}"),
        ..Cdr::default()
    }
}

fn user(username: &str, domain: &str, digit: char) -> NewUser {
    let of = |times| std::iter::repeat_n(digit, times).collect();
    let (username, domain) = (username.to_owned(), domain.to_owned());
    NewUser { username, domain, ha1: of(32), ha1_sha256: of(64) }
}

// ---- Tables --------------------------------------------------------------------------------------

async fn tables_are_made_once(world: &mut World) {
    world.store().await;
    let applied = "SELECT applied_at FROM sipline_schema WHERE version = 1";
    let first = world.number(applied).await;
    world.store().await;
    assert_eq!(world.number(applied).await, first);
    assert_eq!(world.number("SELECT COUNT(*) FROM sipline_schema").await, 1);

    // Two that start at once.
    let (a, b) = (world.store_of(Users::Own), world.store_of(Users::Own));
    world.execute("DROP TABLE sipline_schema").await;
    let (a, b) = tokio::join!(a.prepare(), b.prepare());
    a.unwrap();
    b.unwrap();
    assert_eq!(world.number("SELECT COUNT(*) FROM sipline_schema").await, 1);
    // And there is nothing yet.
    for _ in 0..15 {
        for table in ["sipline_schema", "users", "location", "cdr"] {
            world.execute(&format!("DROP TABLE {table}")).await;
        }
        let (a, b) = (world.store_of(Users::Own), world.store_of(Users::Own));
        let (a, b) = tokio::join!(a.prepare(), b.prepare());
        a.unwrap();
        b.unwrap();
    }

    if world.kind == Kind::Sqlite {
        use std::os::unix::fs::PermissionsExt;
        let file = world.url().strip_prefix("sqlite://").map(PathBuf::from).unwrap();
        let mode = std::fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it holds the users' secrets");
    }
}

async fn newer_tables_are_refused(world: &mut World) {
    let store = world.store().await;
    world.execute("INSERT INTO sipline_schema (version, applied_at) VALUES (99, 0)").await;
    let error = store.prepare().await.unwrap_err();
    assert!(matches!(error, Error::Newer { found: 99, known: 1 }), "{error}");
    assert!(error.to_string().contains("newer sipline"), "{error}");
}

async fn foreign_tables_are_refused(world: &mut World) {
    // What Asterisk and Kamailio make.
    world.execute("CREATE TABLE cdr (calldate VARCHAR(30), src VARCHAR(80))").await;
    let store = world.store_of(Users::Own);
    let error = store.prepare().await.unwrap_err();
    assert!(matches!(error, Error::Foreign { table: "cdr", .. }), "{error}");
    world.execute("DROP TABLE cdr").await;
    world.execute("CREATE TABLE location (id INTEGER, contact VARCHAR(255))").await;
    let error = store.prepare().await.unwrap_err();
    assert!(matches!(error, Error::Foreign { table: "location", .. }), "{error}");
    world.execute("DROP TABLE location").await;
    store.prepare().await.unwrap();
}

// ---- Users ---------------------------------------------------------------------------------------

async fn own_users(world: &mut World) {
    let store = world.store().await;
    let names = ["anna", "Anna", "o'neil", "\" OR 1=1 --", "josé", "話す", "50%", "a\\b", "ann_"];
    for name in names {
        store.add_user(&user(name, "Example.ORG", 'a')).await.unwrap();
    }
    let again = store.add_user(&user("anna", "example.org", 'b')).await;
    assert!(matches!(again, Err(Error::UserExists)), "{again:?}");
    store.add_user(&user("anna", "example.net", 'c')).await.unwrap();

    for name in names {
        let found = store.user(name, "EXAMPLE.org").await.unwrap().unwrap();
        assert_eq!(found.username, name);
        assert_eq!(found.domain.as_deref(), Some("example.org"));
        assert_eq!(found.ha1, Some("a".repeat(32)));
        assert_eq!(found.ha1_sha256, Some("a".repeat(64)));
        assert_eq!(found.password, None);
        assert!(!format!("{found:?}").contains("aaaa"), "secrets are not printed");
    }
    for nobody in ["ANNA", "anna ", "", "x' OR 'a'='a", "ann%", "a\0b", "jose"] {
        assert_eq!(store.user(nobody, "example.org").await.unwrap(), None, "{nobody:?}");
    }

    assert!(store.change_user(&user("anna", "example.net", 'd')).await.unwrap());
    assert!(store.change_user(&user("anna", "example.net", 'd')).await.unwrap());
    assert!(!store.change_user(&user("anna", "example.com", 'd')).await.unwrap());
    let found = store.user("anna", "example.net").await.unwrap().unwrap();
    assert_eq!(found.ha1, Some("d".repeat(32)));

    let mut listed = BTreeSet::new();
    let count = store
        .list_users(|user| {
            listed.insert(format!("{}@{}", user.username, user.domain.unwrap_or_default()));
        })
        .await
        .unwrap();
    assert_eq!((count, listed.len()), (10, 10));
    assert!(store.remove_user("anna", "example.net").await.unwrap());
    assert!(!store.remove_user("anna", "example.net").await.unwrap());
    assert_eq!(store.load_users(|_| ()).await.unwrap(), 9);

    for bad in [
        user("", "d", 'a'),
        user("a ", "d", 'a'),
        user(&"x".repeat(256), "d", 'a'),
        user("a", "d", 'g'),
    ] {
        assert!(matches!(store.add_user(&bad).await, Err(Error::Value { .. })), "{bad:?}");
    }
}

async fn sipusers_of_asterisk(world: &mut World) {
    let charset =
        if world.kind == Kind::MariaDb { "ENGINE=MyISAM DEFAULT CHARSET=latin1" } else { "" };
    world
        .execute(&format!(
            "CREATE TABLE sipusers (id INTEGER NOT NULL PRIMARY KEY, name VARCHAR(80) NOT NULL, \
             username VARCHAR(80) NOT NULL DEFAULT '', sippasswd VARCHAR(80) DEFAULT NULL) {charset}"
        ))
        .await;
    world
        .execute(
            "INSERT INTO sipusers (id, name, username, sippasswd) VALUES (1, '101', '101', 's3cr3t'), \
             (2, '102', '102', NULL), (3, '103', '103', ''), (4, 'ana', 'aña', 'contraseña')",
        )
        .await;
    let log = Log::start();
    let store = world.store_of(Users::Table(UserTable::asterisk()));
    store.prepare().await.unwrap();
    let advice = log.line("CREATE INDEX");
    let statement = advice.split_once("run: ").unwrap().1.trim();
    let quoted = match world.kind {
        Kind::Sqlite => "CREATE INDEX [sipusers_username] ON [sipusers] ([username]);",
        Kind::MariaDb => "CREATE INDEX `sipusers_username` ON `sipusers` (`username`);",
        Kind::Postgres => "CREATE INDEX \"sipusers_username\" ON \"sipusers\" (\"username\");",
    };
    assert_eq!(statement, quoted);
    // It is what it claims to be.
    world.execute(statement).await;
    log.clear();
    store.prepare().await.unwrap();
    assert_eq!(log.find("CREATE INDEX"), None);

    let found = store.user("101", "any.example.org").await.unwrap().unwrap();
    let wanted = Credentials {
        username: "101".into(),
        password: Some("s3cr3t".into()),
        ..Credentials::default()
    };
    assert_eq!(found, wanted);
    assert_eq!(store.user("102", "d").await.unwrap().unwrap().password, None);
    assert_eq!(store.user("103", "d").await.unwrap().unwrap().password, None);
    let found = store.user("aña", "d").await.unwrap().unwrap();
    assert_eq!(found.password.as_deref(), Some("contraseña"));
    for nobody in ["104", "101 ", "話す", "AÑA", "101' OR '1'='1"] {
        assert_eq!(store.user(nobody, "d").await.unwrap(), None, "{nobody:?}");
    }
    assert_eq!(store.load_users(|_| ()).await.unwrap(), 4);
    let change = store.add_user(&user("a", "d", 'a')).await;
    assert!(matches!(change, Err(Error::NotOurUsers)), "{change:?}");
    assert!(matches!(store.remove_user("101", "d").await, Err(Error::NotOurUsers)));
}

async fn subscriber_of_kamailio(world: &mut World) {
    world
        .execute(
            "CREATE TABLE subscriber (id INTEGER NOT NULL PRIMARY KEY, username VARCHAR(64) NOT NULL \
             DEFAULT '', domain VARCHAR(64) NOT NULL DEFAULT '', password VARCHAR(64) NOT NULL DEFAULT '', \
             ha1 VARCHAR(128) NOT NULL DEFAULT '', ha1b VARCHAR(128) NOT NULL DEFAULT '', \
             CONSTRAINT account UNIQUE (username, domain))",
        )
        .await;
    world
        .execute(
            "INSERT INTO subscriber (id, username, domain, password, ha1, ha1b) VALUES \
             (1, 'anna', 'example.org', '', 'h1', 'h1b'), (2, 'anna', 'Example.NET', 'clear', 'h2', '')",
        )
        .await;
    let log = Log::start();
    let mut table = UserTable::kamailio();
    let store = world.store_of(Users::Table(table.clone()));
    store.prepare().await.unwrap();
    assert_eq!(log.find("CREATE INDEX"), None, "the constraint has an index");

    let found = store.user("anna", "example.org").await.unwrap().unwrap();
    assert_eq!((found.ha1.as_deref(), found.ha1b.as_deref()), (Some("h1"), Some("h1b")));
    let found = store.user("anna", "example.net").await.unwrap().unwrap();
    assert_eq!((found.ha1.as_deref(), found.ha1b.as_deref()), (Some("h2"), None));
    assert_eq!(found.domain.as_deref(), Some("example.net"));
    assert_eq!(store.user("anna", "example.com").await.unwrap(), None);

    table.password = Some("password".parse().unwrap());
    let store = world.store_of(Users::Table(table.clone()));
    let found = store.user("anna", "example.net").await.unwrap().unwrap();
    assert_eq!(found.password.as_deref(), Some("clear"));

    // A column that is not there is an error, and not a string in SQLite.
    table.password = Some("sippasswd".parse().unwrap());
    let store = world.store_of(Users::Table(table));
    assert!(store.user("anna", "example.net").await.is_err());
    assert!(store.prepare().await.is_err());
}

async fn odd_names_and_values(world: &mut World) {
    let q = |name: &str| world.quote(name);
    let (table, name, secret) = (q("sip-users $1"), q("select"), q("pass word"));
    let (long, charset) = match world.kind {
        Kind::MariaDb => ("LONGTEXT", "CHARACTER SET utf8mb4"),
        Kind::Sqlite | Kind::Postgres => ("TEXT", ""),
    };
    world
        .execute(&format!(
            "CREATE TABLE {table} ({name} VARCHAR(80), {secret} {long}, n INTEGER) {charset}"
        ))
        .await;
    let mut admin = world.admin().await;
    let values = ["'; DROP TABLE users; --", "\\' OR 1=1", "%", "a\"b`c]d", "ünï 話す 🎉"];
    let p = |n: u32| if world.kind == Kind::Postgres { format!("${n}") } else { "?".into() };
    let insert = format!("INSERT INTO {table} VALUES ({}, {}, 7)", p(1), p(2));
    for value in values {
        sqlx::query(&insert)
            .bind(value)
            .bind(format!("pw {value}"))
            .execute(&mut admin)
            .await
            .unwrap();
    }
    let schema = match world.kind {
        Kind::Sqlite => "main",
        Kind::MariaDb => &world.database,
        Kind::Postgres => "public",
    };
    let users = UserTable {
        table: format!("{schema}.sip-users $1").parse().unwrap(),
        username: "select".parse().unwrap(),
        domain: None,
        password: Some("pass word".parse().unwrap()),
        // A number reads as text.
        ha1: Some("n".parse().unwrap()),
        ha1b: None,
        ha1_sha256: None,
    };
    let log = Log::start();
    let store = world.store_of(Users::Table(users));
    store.prepare().await.unwrap();
    let advice = log.line("CREATE INDEX");
    world.execute(advice.split_once("run: ").unwrap().1.trim()).await;
    for value in values {
        let found = store.user(value, "d").await.unwrap().unwrap();
        assert_eq!(found.password, Some(format!("pw {value}")));
        assert_eq!(found.ha1.as_deref(), Some("7"));
    }
    assert_eq!(store.user("' OR '1' = '1", "d").await.unwrap(), None);
    assert_eq!(store.load_users(|_| ()).await.unwrap(), values.len() as u64);
}

/// Asks for all of them at once, and each alone.
async fn find(store: &Store, wanted: &[(&str, &str)]) -> Vec<Option<Credentials>> {
    let found = Finder::new(store).users(wanted).await.unwrap();
    assert_eq!(found.len(), wanted.len());
    for ((user, domain), found) in wanted.iter().zip(&found) {
        assert_eq!(store.user(user, domain).await.unwrap(), *found, "{user:?} {domain:?}");
    }
    found
}

async fn many_users_at_once(world: &mut World) {
    let store = world.store().await;
    assert_eq!(find(&store, &[]).await, []);
    let odd =
        ["anna", "Anna", "o'neil", "\" OR 1=1 --", "josé", "話す", "50%", "a\\b", "ann_", "?1"];
    for name in odd {
        store.add_user(&user(name, "example.org", 'a')).await.unwrap();
    }
    for number in 0..150 {
        let domain = if number % 3 == 0 { "example.net" } else { "example.org" };
        store.add_user(&user(&format!("u{number}"), domain, 'b')).await.unwrap();
    }
    // One name in two domains.
    store.add_user(&user("anna", "example.net", 'c')).await.unwrap();

    let names: Vec<String> = (0..150).map(|number| format!("u{number}")).collect();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for name in odd.into_iter().chain(names.iter().map(String::as_str)) {
        wanted.push((name, "example.org"));
        if wanted.len().is_multiple_of(5) {
            wanted.push((name, "Example.NET"));
            wanted.push(wanted[wanted.len() / 2]);
        }
    }
    for nobody in ["ANNA", "anna ", "", "x' OR 'a'='a", "ann%", "a\0b", "jose", "U1", "u151", "話"]
    {
        wanted.push((nobody, "example.org"));
        wanted.push((nobody, "a\0"));
    }
    wanted.push(("anna", "example.com"));
    for (number, found) in find(&store, &wanted).await.into_iter().enumerate() {
        let (name, domain) = wanted[number];
        let domain = domain.to_ascii_lowercase();
        let number = name.strip_prefix('u').and_then(|number| number.parse::<u32>().ok());
        let digit = match (name, domain.as_str(), number.filter(|number| *number < 150)) {
            (_, "example.net", Some(number)) if number % 3 == 0 => Some('b'),
            (_, "example.org", Some(number)) if number % 3 != 0 => Some('b'),
            ("anna", "example.net", _) => Some('c'),
            (name, "example.org", _) if odd.contains(&name) => Some('a'),
            _ => None,
        };
        let wanted = digit.map(|digit| Credentials {
            username: name.to_owned(),
            domain: Some(domain),
            ha1: Some(String::from_iter([digit; 32])),
            ha1_sha256: Some(String::from_iter([digit; 64])),
            ..Credentials::default()
        });
        assert_eq!(found, wanted, "{name:?}");
    }

    // Somebody else's table, in letters that hold less and without rules for what is unique.
    let charset = if world.kind == Kind::MariaDb { "DEFAULT CHARSET=latin1" } else { "" };
    world
        .execute(&format!(
            "CREATE TABLE sipusers (username VARCHAR(80), sippasswd VARCHAR(80)) {charset}"
        ))
        .await;
    let values: Vec<String> =
        (100..300).map(|number| format!("('{number}', 'pw{number}')")).collect();
    world
        .execute(&format!(
            "INSERT INTO sipusers VALUES ('aña', 'x'), ('200', 'pw200'), (NULL, 'y'), {}",
            values.join(", ")
        ))
        .await;
    let store = world.store_of(Users::Table(UserTable::asterisk()));
    let names: Vec<String> = (90..240).map(|number| number.to_string()).collect();
    let mut wanted: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "d")).collect();
    for (at, odd) in ["話す", "aña", "AÑA", "200 ", "ж", "200"].into_iter().enumerate() {
        wanted.insert(at * 30, (odd, "any.example.org"));
    }
    for (found, (name, _)) in find(&store, &wanted).await.into_iter().zip(&wanted) {
        let password = match name.parse::<u32>() {
            Ok(100..300) => Some(format!("pw{name}")),
            _ if *name == "aña" => Some("x".to_owned()),
            _ => None,
        };
        assert_eq!(found.and_then(|found| found.password), password, "{name:?}");
    }
    // Nothing but such letters.
    let wanted = ["話す", "ж", "話す"].map(|name| (name, "d"));
    assert_eq!(find(&store, &wanted).await, [None, None, None]);

    // Domains as somebody else has written them.
    world
        .execute(
            "CREATE TABLE subscriber (username VARCHAR(64) NOT NULL, domain VARCHAR(64), \
             ha1 VARCHAR(128) NOT NULL, ha1b VARCHAR(128) NOT NULL)",
        )
        .await;
    world
        .execute(
            "INSERT INTO subscriber VALUES ('anna', 'Example.ORG', 'h1', ''), \
             ('anna', 'example.net', 'h2', 'b'), ('otto', NULL, 'h3', ''), ('otto', '', 'h4', '')",
        )
        .await;
    let store = world.store_of(Users::Table(UserTable::kamailio()));
    let wanted = [
        ("anna", "example.net"),
        ("anna", "EXAMPLE.org"),
        ("otto", "example.org"),
        ("anna", "example.com"),
        ("otto", ""),
    ];
    let found: Vec<Option<String>> =
        find(&store, &wanted).await.into_iter().map(|found| found?.ha1).collect();
    let ha1 = |ha1: &str| Some(ha1.to_owned());
    assert_eq!(found, [ha1("h2"), ha1("h1"), None, None, ha1("h4")]);
}

async fn a_burst_of_questions(world: &mut World) {
    let store = world.store().await;
    let mut admin = world.admin().await;
    for from in (0..5000).step_by(500) {
        let values: Vec<String> =
            (from..from + 500).map(|number| format!("('u{number}', 'd', '', '')")).collect();
        let insert = format!(
            "INSERT INTO users (username, domain, ha1, ha1_sha256) VALUES {}",
            values.join(", ")
        );
        admin.execute(insert.as_str()).await.unwrap();
    }
    // Every fourth is not there.
    let names: Vec<String> = (0..8000).map(|number| format!("u{}", number * 5 / 6)).collect();
    let wanted: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "d")).collect();
    let mut finder = Finder::new(&store);
    let start = SystemTime::now();
    let mut all = Vec::new();
    // As they come: one, a few, as many as may.
    for size in [1, 7, 8, 9, 33, MOST_USERS].into_iter().chain(std::iter::repeat(1000)) {
        let from = all.len();
        let some = &wanted[from..wanted.len().min(from + size)];
        if some.is_empty() {
            break;
        }
        all.extend(finder.users(some).await.unwrap());
    }
    println!("8000 questions: {:.3} s", start.elapsed().unwrap().as_secs_f32());
    assert_eq!(all.len(), wanted.len());
    for (found, name) in all.into_iter().zip(&names) {
        let number: u32 = name[1..].parse().unwrap();
        let found = found.map(|found| found.username);
        assert_eq!(found.as_ref(), Some(name).filter(|_| number < 5000));
    }
}

async fn away_between_questions(world: &mut World) {
    let store = world.store().await;
    store.add_user(&user("anna", "example.org", 'a')).await.unwrap();
    let wanted = [("anna", "example.org"), ("otto", "example.org")];
    let mut finder = Finder::new(&store);
    for _ in 0..2 {
        let found = finder.users(&wanted).await.unwrap();
        assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false]);
        world.take_away().await;
        // SQLite's readers do not wait for who writes.
        if world.kind != Kind::Sqlite {
            let found = finder.users(&wanted).await;
            assert!(matches!(found, Err(Error::Unavailable(_))), "{found:?}");
        }
        world.bring_back().await;
    }
    assert!(finder.users(&wanted).await.is_ok());
    // A connection that has died meanwhile is nobody's misfortune.
    if let Server::Real(server) = &mut world.server {
        server.kill().unwrap();
        server.start_again().unwrap();
    }
    assert!(finder.users(&wanted).await.unwrap()[0].is_some());
}

// ---- Bindings ------------------------------------------------------------------------------------

async fn bindings_come_back(world: &mut World) {
    let store = world.store().await;
    let writer = writer(&store);
    let full = Binding {
        user: "josé 話す 🎉".into(),
        contact: "sip:josé@[2001:db8::1]:5060;transport=udp;x=\"'\\%".into(),
        received: Some("198.51.100.7:40000".into()),
        path: Some("<sip:edge.example.org;lr>".into()),
        q: 500,
        cseq: u32::MAX,
        user_agent: "Linksys/SPA922-5.2.8 'ü'".into(),
        instance: Some("<urn:uuid:00000000-0000-1000-8000-000A95A0E128>".into()),
        reg_id: Some(1),
        methods: 0x3fff,
        ..binding(1)
    };
    let long = Binding { contact: format!("sip:{}", "é".repeat(2044)), ..binding(2) };
    let gone = Binding { expires_at: now() - 100, ..binding(3) };
    // Contacts compare by case in the user part, whatever the engine's rules say.
    let cases = [
        Binding { contact: "sip:A@192.0.2.7".into(), ..binding(4) },
        Binding { contact: "sip:a@192.0.2.7".into(), ..binding(4) },
        Binding { contact: "sip:a@192.0.2.7 ".into(), ..binding(4) },
    ];
    for binding in [&full, &long, &gone].into_iter().chain(&cases) {
        writer.put_binding(binding.clone()).unwrap();
    }
    assert!(writer.flush(LIMIT).await);
    let all = all_bindings(&store).await;
    assert_eq!(all.len(), 5);
    for wanted in [&full, &long].into_iter().chain(&cases) {
        assert_eq!(all.get(&format!("{} {}", wanted.user, wanted.contact)), Some(wanted));
    }
    assert_eq!(store.remove_expired_bindings(1000).await.unwrap(), 0);
    assert_eq!(store.remove_expired_bindings(10).await.unwrap(), 1);

    let newer = Binding { received: None, methods: 0, cseq: 7, path: None, ..full.clone() };
    writer.put_binding(newer.clone()).unwrap();
    writer.delete_binding(long.key()).unwrap();
    writer.delete_binding(binding(77).key()).unwrap();
    assert!(writer.flush(LIMIT).await);
    let all = all_bindings(&store).await;
    assert_eq!(all.len(), 4);
    assert_eq!(all.get(&format!("{} {}", newer.user, newer.contact)), Some(&newer));

    let too_long = Binding { call_id: "x".repeat(1025), ..binding(5) };
    assert_eq!(writer.put_binding(too_long), Err(Refused::Value { field: "Call-ID" }));
    assert_eq!(writer.counters().refused, 1);
}

async fn changes_coalesce(world: &mut World) {
    let store = world.store().await;
    let settings =
        WriterSettings { interval: Duration::from_secs(60), ..WriterSettings::default() };
    let writer = Writer::start(&store, settings);
    for cseq in 1..=100 {
        writer.put_binding(Binding { cseq, ..binding(1) }).unwrap();
        writer.put_binding(Binding { cseq, ..binding(2) }).unwrap();
    }
    writer.delete_binding(binding(2).key()).unwrap();
    let Counters { queued, coalesced, waiting_bindings, .. } = writer.counters();
    assert_eq!((queued, coalesced, waiting_bindings), (201, 199, 2));
    assert!(writer.flush(LIMIT).await);
    let counters = writer.counters();
    assert_eq!((counters.written, counters.batches, counters.waiting_bindings), (2, 1, 0));
    let all = all_bindings(&store).await;
    assert_eq!(all.values().map(|binding| binding.cseq).collect::<Vec<_>>(), [100]);
    // Nobody waits for a stopped writer, and it takes nothing more.
    assert_eq!(writer.stop(LIMIT).await.bindings, 0);
    assert_eq!(writer.put_binding(binding(1)), Err(Refused::Stopped));
}

async fn many_changes(world: &mut World) {
    let store = world.store().await;
    let writer = writer(&store);
    for number in 0..3000 {
        writer.put_binding(binding(number)).unwrap();
        if number % 2 == 0 {
            writer.insert_cdr(cdr(number)).unwrap();
        }
        if number % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for number in 0..1000 {
        writer.delete_binding(binding(number).key()).unwrap();
    }
    assert!(writer.flush(LIMIT).await);
    assert_eq!(all_bindings(&store).await.len(), 2000);
    assert_eq!(all_cdrs(&store, &CdrFilter::default()).await.len(), 1500);
    let counters = writer.counters();
    assert_eq!(counters.failed, 0);
    assert_eq!(counters.reconnects, 0);
    assert_eq!(counters.written, counters.queued - counters.coalesced);
}

// ---- Records -------------------------------------------------------------------------------------

async fn records_come_back(world: &mut World) {
    let store = world.store().await;
    let writer = writer(&store);
    let at = UNIX_EPOCH + Duration::from_micros(1_335_830_400_123_456);
    let full = Cdr {
        calldate: at,
        clid: "\"José 'Pepe' 話す 🎉\" <101>".into(),
        src: "101".into(),
        dst: "+34900\\%_".into(),
        dcontext: "example.org".into(),
        channel: "192.0.2.7:5060".into(),
        dstchannel: "pbx1".into(),
        lastapp: "Dial".into(),
        lastdata: "SIP/102".into(),
        duration: 95,
        billsec: 90,
        disposition: Disposition::Answered,
        amaflags: 3,
        accountcode: "acc".into(),
        uniqueid: "0123456789abcdef0123456789abcdef".into(),
        userfield: "ü".repeat(255),
        answerdate: Some(at + Duration::from_micros(5_000_001)),
        enddate: at + Duration::from_micros(95_000_002),
        call_id: "a84b4c76e66710@pc33.atlanta.example.com".into(),
        sip_code: 200,
        ending: "bye of the caller".into(),
    };
    // A summer's night in which clocks are put back or forward: UTC knows none of that.
    let missed = Cdr { disposition: Disposition::NoAnswer, sip_code: 487, ..cdr(2) };
    let night = UNIX_EPOCH + Duration::from_micros(1_332_637_200_000_001);
    let busy = Cdr { disposition: Disposition::Busy, calldate: night, ..cdr(3) };
    let failed = Cdr { disposition: Disposition::Failed, ..cdr(4) };
    for cdr in [&full, &missed, &busy, &failed] {
        writer.insert_cdr(cdr.clone()).unwrap();
    }
    assert!(writer.flush(LIMIT).await);
    // A second time: the first one stays.
    writer.insert_cdr(Cdr { src: "other".into(), ..full.clone() }).unwrap();
    assert!(writer.flush(LIMIT).await);
    assert_eq!(all_cdrs(&store, &CdrFilter::default()).await, [busy, full.clone(), missed, failed]);
    assert_eq!(writer.counters().failed, 0);

    // The seed's queries find its columns.
    let seed = "SELECT COUNT(*) FROM cdr WHERE disposition = 'ANSWERED' AND billsec > 60 AND \
                calldate >= '2012-05-01 00:00:00' AND calldate < '2012-05-01 00:00:01'";
    assert_eq!(world.number(seed).await, 1);
    let no_id = Cdr { uniqueid: String::new(), ..full };
    assert_eq!(writer.insert_cdr(no_id), Err(Refused::Value { field: "uniqueid" }));
}

async fn records_are_found(world: &mut World) {
    let store = world.store().await;
    let writer = writer(&store);
    for number in 0..100 {
        writer.insert_cdr(cdr(number)).unwrap();
    }
    assert!(writer.flush(LIMIT).await);
    let (from, to) = (cdr(10).calldate, cdr(20).calldate);
    let filter = CdrFilter { from: Some(from), to: Some(to), ..CdrFilter::default() };
    let wanted: Vec<Cdr> = (10..20).map(cdr).collect();
    assert_eq!(all_cdrs(&store, &filter).await, wanted);
    let filter = CdrFilter { src: Some("103".into()), ..filter };
    assert_eq!(all_cdrs(&store, &filter).await, [cdr(13)]);
    let filter = CdrFilter { dst: Some("x' OR '1'='1".into()), ..CdrFilter::default() };
    assert_eq!(all_cdrs(&store, &filter).await, []);
    let filter = CdrFilter { limit: Some(3), dst: Some("200".into()), ..CdrFilter::default() };
    assert_eq!(all_cdrs(&store, &filter).await, [cdr(84), cdr(91), cdr(98)]);
}

// ---- Trouble -------------------------------------------------------------------------------------

async fn one_bad_change(world: &mut World) {
    let store = world.store().await;
    world
        .execute(match world.kind {
            Kind::Sqlite => {
                "CREATE TRIGGER no BEFORE INSERT ON cdr WHEN NEW.src = '105' \
                 BEGIN SELECT RAISE(ABORT, 'no'); END"
            }
            Kind::MariaDb | Kind::Postgres => {
                "ALTER TABLE cdr ADD CONSTRAINT no CHECK (src <> '105')"
            }
        })
        .await;
    let writer = writer(&store);
    for number in 0..50 {
        writer.insert_cdr(cdr(number)).unwrap();
        writer.put_binding(binding(number)).unwrap();
    }
    assert!(writer.flush(LIMIT).await);
    let counters = writer.counters();
    assert_eq!((counters.written, counters.failed, counters.reconnects), (95, 5, 0));
    assert_eq!(all_bindings(&store).await.len(), 50);
    assert_eq!(all_cdrs(&store, &CdrFilter::default()).await.len(), 45);
}

async fn away_at_start(world: &mut World) {
    // SQLite's file is made when the store is.
    let store = world.store_of(Users::Own);
    world.take_away().await;
    let error = store.prepare().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    if world.kind != Kind::Sqlite {
        assert!(matches!(store.user("anna", "example.org").await, Err(Error::Unavailable(_))));
    }
    let writer = writer(&store);
    for number in 0..500 {
        writer.put_binding(binding(number)).unwrap();
        writer.insert_cdr(cdr(number)).unwrap();
    }
    assert!(!writer.flush(Duration::from_millis(500)).await);
    assert!(!writer.counters().connected);
    world.bring_back().await;
    assert!(writer.flush(LIMIT).await, "{:?}", writer.counters());
    assert_eq!(all_bindings(&store).await.len(), 500);
    assert_eq!(all_cdrs(&store, &CdrFilter::default()).await.len(), 500);
    assert!(writer.counters().connected);
}

async fn a_full_queue(world: &mut World) {
    let store = world.store().await;
    world.take_away().await;
    let settings = WriterSettings { max_bindings: 3, max_cdrs: 2, ..WriterSettings::default() };
    let writer = Writer::start(&store, settings);
    for number in 0..3 {
        writer.put_binding(binding(number)).unwrap();
    }
    assert_eq!(writer.put_binding(binding(3)), Err(Refused::Full));
    assert_eq!(writer.delete_binding(binding(4).key()), Err(Refused::Full));
    // The state of one that waits may still change.
    writer.put_binding(Binding { cseq: 99, ..binding(1) }).unwrap();
    writer.insert_cdr(cdr(0)).unwrap();
    writer.insert_cdr(cdr(1)).unwrap();
    assert_eq!(writer.insert_cdr(cdr(2)), Err(Refused::Full));
    let counters = writer.counters();
    assert_eq!((counters.queued, counters.refused), (6, 3));
    assert_eq!((counters.waiting_bindings, counters.waiting_cdrs), (3, 2));
    // What is left of it when it is stopped now, its owner gets back.
    let left = writer.stop(Duration::from_millis(100)).await;
    assert_eq!(left.bindings, 3);
    assert_eq!(left.cdrs, [cdr(0), cdr(1)]);
    drop(writer);

    let writer = Writer::start(&store, settings);
    for cdr in left.cdrs {
        writer.insert_cdr(cdr).unwrap();
    }
    world.bring_back().await;
    assert!(writer.flush(LIMIT).await);
    assert_eq!(all_cdrs(&store, &CdrFilter::default()).await.len(), 2);
}

async fn killed_in_the_middle(world: &mut World) {
    let store = world.store().await;
    let writer = writer(&store);
    let mut taken = 0;
    for round in 0..3 {
        // Under way while it dies: at another point of a batch each time.
        for _ in 0..40 {
            for _ in 0..25 {
                writer.insert_cdr(cdr(taken)).unwrap();
                let (number, cseq) = (taken % 500, taken);
                if taken % 11 == 0 {
                    writer.delete_binding(binding(number).key()).unwrap();
                } else {
                    writer.put_binding(Binding { cseq, ..binding(number) }).unwrap();
                }
                taken += 1;
            }
            tokio::time::sleep(Duration::from_millis(1 + round)).await;
        }
        world.take_away().await;
        for _ in 0..500 {
            writer.insert_cdr(cdr(taken)).unwrap();
            writer.put_binding(Binding { cseq: taken, ..binding(taken % 500) }).unwrap();
            taken += 1;
        }
        assert!(!writer.flush(Duration::from_millis(300)).await);
        world.bring_back().await;
    }
    assert!(writer.flush(LIMIT).await, "{:?}", writer.counters());
    let counters = writer.counters();
    assert_eq!(counters.failed, 0);
    assert!(world.kind == Kind::Sqlite || counters.reconnects >= 3, "{counters:?}");

    let ids: Vec<String> =
        all_cdrs(&store, &CdrFilter::default()).await.into_iter().map(|cdr| cdr.uniqueid).collect();
    assert_eq!(ids.len(), taken as usize, "each record once");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), taken as usize);
    let all = all_bindings(&store).await;
    assert_eq!(all.len(), 500);
    let newest: BTreeSet<u32> = all.values().map(|binding| binding.cseq).collect();
    assert_eq!(newest, (taken - 500..taken).collect(), "the newest state of each");

    // Readers get connections that work, too.
    assert_eq!(store.user("nobody", "example.org").await.unwrap(), None);
}

// ---- The log -------------------------------------------------------------------------------------

/// What this thread logs while it lives.
struct Log {
    lines: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    fn start() -> Self {
        let lines = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let out = Out(lines.clone());
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || Out(out.0.clone()))
            .finish();
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    fn find(&self, what: &str) -> Option<String> {
        let text = String::from_utf8(self.lines.lock().unwrap().clone()).unwrap();
        text.lines().find(|line| line.contains(what)).map(str::to_owned)
    }

    fn line(&self, what: &str) -> String {
        self.find(what).unwrap_or_else(|| panic!("nothing of {what} in the log"))
    }

    fn clear(&self) {
        self.lines.lock().unwrap().clear();
    }
}

struct Out(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
