//! Real database servers, each in a directory of its own and on a Unix socket there.

use std::{
    env,
    fs::{self, File},
    io::Read,
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixStream,
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{process::Process, remains};

/// Who runs the servers when we are root, which they refuse to be: Debian's `nobody`.
const NOBODY: u32 = 65534;
/// How long a server may take to come up, also after it was killed and while others keep the disk busy.
const START_LIMIT: Duration = Duration::from_secs(90);

/// A kind of server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    /// MariaDB.
    MariaDb,
    /// PostgreSQL.
    Postgres,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::MariaDb, Self::Postgres];

    /// The server's program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::MariaDb => "mariadbd",
            Self::Postgres => "postgres",
        }
    }

    /// The Debian packages that bring it, for apt-get. Those of MariaDB hold programs only, and no service;
    /// what makes its first tables wants `my_print_defaults`, which is among the client's.
    pub const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::MariaDb => &["mariadb-server-core", "mariadb-client-core"],
            Self::Postgres => &["postgresql"],
        }
    }

    /// Where the server's program is, if all that it needs is there. Debian keeps PostgreSQL's versions
    /// apart: the newest one.
    pub fn find(self) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut dirs: Vec<PathBuf> = match self {
            Self::MariaDb => Vec::new(),
            Self::Postgres => versions(Path::new("/usr/lib/postgresql")),
        };
        dirs.extend(env::split_paths(&path));
        dirs.extend(["/usr/sbin", "/usr/bin"].map(PathBuf::from));
        let find = |program: &str| dirs.iter().map(|dir| dir.join(program)).find(|f| f.is_file());
        let all = match self {
            Self::MariaDb => ["mariadb-install-db", "my_print_defaults"],
            Self::Postgres => ["initdb", "postgres"],
        };
        if all.iter().any(|program| find(program).is_none()) {
            return None;
        }
        find(self.program())
    }
}

/// The directories of programs below `dir/VERSION`, the highest version first.
fn versions(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut numbers: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers.iter().rev().map(|number| dir.join(number.to_string()).join("bin")).collect()
}

/// A server with an empty database. Dropping it removes everything.
#[derive(Debug)]
pub struct Database {
    engine: Engine,
    program: PathBuf,
    dir: PathBuf,
    process: Option<Process>,
    // Last: it removes what the process has used.
    _remains: remains::Guard,
}

impl Database {
    /// Makes a database and starts the server. It ends with the thread that calls this.
    ///
    /// # Errors
    /// Also when the server is not installed.
    pub fn start(engine: Engine) -> Result<Self> {
        let program = engine.find().with_context(|| {
            let (program, packages) = (engine.program(), engine.packages().join(", "));
            format!("`{program}` (of {packages}) is not there: run `cargo xtask setup`")
        })?;
        remains::remove_stale();
        let dir = env::temp_dir().join(remains::next_name());
        let guard = remains::Guard::new(remains::Remains {
            namespaces: Vec::new(),
            pins: dir.join("none"),
            dir: dir.clone(),
        });
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).context("cannot open it")?;
        let data = dir.join("data");
        fs::create_dir(&data).context("cannot make the directory of data")?;
        if is_root() {
            // The socket goes into the outer one.
            for dir in [&dir, &data] {
                chown(dir, Some(NOBODY), Some(NOBODY)).context("cannot give it away")?;
            }
        }
        fs::set_permissions(&data, PermissionsExt::from_mode(0o700)).context("cannot close it")?;
        let mut database = Self { engine, program, dir, process: None, _remains: guard };
        database.make().with_context(|| format!("cannot make a database of {engine:?}"))?;
        database.start_again()?;
        Ok(database)
    }

    /// The URL of a database of this server; `None` is the one that is there from the start.
    pub fn url(&self, database: Option<&str>) -> String {
        let dir = self.dir.display();
        match self.engine {
            Engine::MariaDb => {
                let database = database.unwrap_or("mysql");
                format!("mysql://root@localhost/{database}?socket={dir}/socket")
            }
            Engine::Postgres => {
                let database = database.unwrap_or("postgres");
                format!("postgres://nobody@localhost/{database}?host={dir}")
            }
        }
    }

    /// Kills the server at once, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Starts a server that was killed, with its data, and waits until it takes connections.
    pub fn start_again(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let mut process = self.launch()?;
            loop {
                if process.ended()?.is_some() {
                    break;
                }
                if self.is_ready(process.pid()) {
                    self.process = Some(process);
                    return Ok(());
                }
                self.check_time(start, &process)?;
                thread::sleep(Duration::from_millis(20));
            }
            // PostgreSQL does not start while children of one that was killed have not ended.
            self.check_time(start, &process)?;
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn check_time(&self, start: Instant, process: &Process) -> Result<()> {
        ensure!(
            start.elapsed() < START_LIMIT,
            "{:?} does not come up: {}",
            self.engine,
            process.last_words()
        );
        Ok(())
    }

    /// Makes the files that the server starts with.
    fn make(&self) -> Result<()> {
        let data = self.dir.join("data");
        let beside = |name: &str| self.program.with_file_name(name);
        let mut command = match self.engine {
            Engine::MariaDb => {
                let mut command = Command::new("mariadb-install-db");
                command.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
                command.args(["--skip-test-db", "--skip-name-resolve"]);
                command.arg(format!("--datadir={}", data.display()));
                command
            }
            Engine::Postgres => {
                // Beside the server, not what the PATH has: the versions must be the same.
                let program = fs::canonicalize(&self.program).context("where is the server")?;
                let initdb = program.with_file_name("initdb");
                let mut command =
                    Command::new(if initdb.is_file() { initdb } else { beside("initdb") });
                command.args(["--auth=trust", "--username=nobody", "--no-sync"]);
                command.args(["--encoding=UTF8", "--locale=C", "--pgdata"]).arg(&data);
                command
            }
        };
        let path = self.dir.join("make.log");
        let log = File::create(&path).context("cannot write a log")?;
        command.stdin(Stdio::null()).stdout(log.try_clone().context("cannot share a log")?);
        command.stderr(log);
        self.confine(&mut command);
        let status = command.status().with_context(|| {
            format!("cannot start {}: run `cargo xtask setup`", command.get_program().display())
        })?;
        if !status.success() {
            bail!("{status}: {}", fs::read_to_string(&path).unwrap_or_default());
        }
        Ok(())
    }

    fn launch(&self) -> Result<Process> {
        let dir = self.dir.display();
        let mut command = Command::new(&self.program);
        match self.engine {
            Engine::MariaDb => command.args([
                "--no-defaults".to_owned(),
                format!("--datadir={dir}/data"),
                format!("--socket={dir}/socket"),
                format!("--pid-file={dir}/pid"),
                "--skip-networking".to_owned(),
                "--innodb-buffer-pool-size=32M".to_owned(),
                // What a killed process has written the kernel still has.
                "--innodb-flush-log-at-trx-commit=2".to_owned(),
            ]),
            Engine::Postgres => command.args([
                "-D".to_owned(),
                format!("{dir}/data"),
                "-k".to_owned(),
                dir.to_string(),
                "-c".to_owned(),
                "listen_addresses=".to_owned(),
                "-c".to_owned(),
                "fsync=off".to_owned(),
            ]),
        };
        self.confine(&mut command);
        Process::start(self.engine.program(), &mut command, &self.dir.join("server.log"))
    }

    /// Runs in the server's directory and with its rights. Temporary files too: a MariaDB removes those that it finds when it
    /// starts, also if another one has just made them.
    fn confine(&self, command: &mut Command) {
        command.current_dir(&self.dir).env("TMPDIR", &self.dir);
        drop_rights(command);
    }

    fn is_ready(&self, pid: u32) -> bool {
        match self.engine {
            Engine::MariaDb => {
                // It greets whom it takes.
                let Ok(mut socket) = UnixStream::connect(self.dir.join("socket")) else {
                    return false;
                };
                socket.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
                    && socket.read_exact(&mut [0; 5]).is_ok()
            }
            Engine::Postgres => {
                // Its process number and its state, which the one that was killed may have left too.
                let file = self.dir.join("data/postmaster.pid");
                let text = fs::read_to_string(file).unwrap_or_default();
                let lines: Vec<&str> = text.lines().map(str::trim).collect();
                lines.first() == Some(&pid.to_string().as_str()) && lines.get(7) == Some(&"ready")
            }
        }
    }
}

fn drop_rights(command: &mut Command) {
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
