//! The database goes away while phones call and register.

use std::thread;
use std::time::Duration;

use sipline_tests::lab::{
    Database, Engine, Mode, Running, Scene, Settings, Sipp, Word, count, wait_until,
};
use sqlx::{AnyConnection, Connection, Executor, Row};

/// How many users there are: u1, u2, ... of example.com.
pub(crate) const USERS: u32 = 20;
/// How long what takes a moment may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// How long the database is away. What ages meanwhile is what is known of users, for which `auth.cache` is set to 2 s,
/// and the pause between attempts to reach it, 5 s at most: a minute would show nothing that this does not.
const AWAY: Duration = Duration::from_secs(12);

/// Calls and registrations of users who are known go on; what was to be written is written when it is back.
pub(crate) fn the_database_may_be_away(mode: Mode) {
    let mut phones = Phones::new(mode);
    phones.register();
    let (calls, registers) = (17 * 30, 17 * 10);
    let mut callers = phones.start_calls(30, calls);
    let mut registering = phones.start_registers(10, registers);
    thread::sleep(Duration::from_secs(2));
    phones.database.kill().unwrap();
    thread::sleep(AWAY);
    let stats = phones.scene.control.ask("stats").unwrap();
    assert_eq!(stats["registrar"]["connected"], false, "{stats}");
    assert!(stats["registrar"]["unwritten"].as_u64().unwrap() > 100, "{stats}");
    phones.database.start_again().unwrap();

    let events = callers.finish().unwrap();
    phones.scene.expect_all_ended(&events, calls as usize);
    let events = registering.finish().unwrap();
    phones.scene.expect_all_ended(&events, registers as usize);
    let control = &phones.scene.control;
    wait_until(LIMIT, || control.ask("stats").unwrap()["registrar"]["unwritten"] == 0);
    let stats = control.ask("stats").unwrap();
    let counters = &stats["registrar"]["counters"];
    let lost = (&counters["store_refused"], &counters["store_failed"]);
    assert_eq!(lost, (&0.into(), &0.into()), "{stats}");
    assert!(counters["store_reconnects"].as_u64().unwrap() >= 1, "{stats}");
    assert!(counters["secrets_not_fetched"].as_u64().unwrap() > 0, "nobody was too old: {stats}");
    // Each call has its record, and each contact its row.
    assert_eq!(phones.rows("cdr"), i64::from(calls));
    let contacts = control.command(&["registrations"]).unwrap()["total"].as_i64().unwrap();
    assert_eq!(contacts, 2 * i64::from(USERS));
    assert_eq!(phones.rows("location"), contacts);
    phones.scene.end();
}

/// Phones with a password, two PBXs, and MariaDB.
pub(crate) struct Phones {
    pub(crate) scene: Scene,
    pub(crate) database: Database,
    runtime: tokio::runtime::Runtime,
}

impl Phones {
    pub(crate) fn new(mode: Mode) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let database = Database::start(Engine::MariaDb).unwrap();
        runtime.block_on(async {
            let mut connection = connect(&database, None).await;
            connection.execute("CREATE DATABASE voip").await.unwrap();
        });
        let more = format!(
            "[registrar]\ndomains = [\"example.com\"]\n[store]\nurl = \"{}\"\n[auth]\ncache = \"2s\"\n",
            database.url(Some("voip"))
        );
        let settings = Settings { trusted: false, more, ..Settings::new(mode) };
        let scene = Scene::with(settings, "pbx");
        for number in 1..=USERS {
            let user = format!("u{number}@example.com");
            let added = scene.sipline(&["users", "add", &user], "secret\n");
            assert_eq!(added["added"], user, "{added}");
        }
        Self { scene, database, runtime }
    }

    /// All of them register, and it is written.
    pub(crate) fn register(&self) {
        let phones = Sipp::caller("phone-registers", 50, USERS).inject(lines(USERS));
        let events = phones.start(&self.scene.lab, "first").unwrap().finish().unwrap();
        assert_eq!(count(&events, Word::Ended), USERS as usize, "{events:?}");
        let control = &self.scene.control;
        wait_until(LIMIT, || control.ask("stats").unwrap()["registrar"]["unwritten"] == 0);
    }

    /// They call somebody behind the PBXs.
    pub(crate) fn start_calls(&self, rate: u32, calls: u32) -> Running {
        let phones = Sipp::caller("phone-calls", rate, calls).talk(Duration::from_secs(1));
        let phones = phones.auth_uri("200@10.10.0.1:5060").inject(lines(calls));
        phones.start(&self.scene.lab, "calls").unwrap()
    }

    /// They register from another port.
    fn start_registers(&self, rate: u32, count: u32) -> Running {
        let phones = Sipp::caller("phone-registers", rate, count).port(5070).inject(lines(count));
        phones.start(&self.scene.lab, "registers").unwrap()
    }

    fn rows(&self, table: &str) -> i64 {
        self.runtime.block_on(async {
            let mut connection = connect(&self.database, Some("voip")).await;
            let asked = format!("SELECT COUNT(*) FROM {table}");
            sqlx::query(&asked).fetch_one(&mut connection).await.unwrap().get(0)
        })
    }
}

async fn connect(database: &Database, name: Option<&str>) -> AnyConnection {
    sqlx::any::install_default_drivers();
    AnyConnection::connect(&database.url(name)).await.unwrap()
}

/// What SIPp is given for so many calls of the users, in turn.
fn lines(count: u32) -> Vec<String> {
    let line = |number: u32| {
        let user = number % USERS + 1;
        format!("u{user};[authentication username=u{user} password=secret]")
    };
    (0..count).map(line).collect()
}
