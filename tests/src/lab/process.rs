//! A child process that ends with its owner.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::remains;

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Set when it has been waited for.
    status: Option<ExitStatus>,
    log: PathBuf,
}

impl Process {
    /// Starts a program; what it prints goes to `log`.
    ///
    /// It is killed when the thread that started it ends, so start what is to live long from a thread
    /// that does.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let err = out.try_clone().context("cannot share a log")?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        // A group of its own, so that Ctrl-C at the terminal reaches us alone and we end it in order.
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe and touches no memory; nothing else is called between fork
        // and exec.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let child = remains::spawn(command).with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, status: None, log: log.to_owned() })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none()
            && let Some(status) = self.child.try_wait().context("cannot wait")?
        {
            remains::forget(self.child.id());
            self.status = Some(status);
        }
        Ok(self.status)
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{} still runs after {:.0} s", self.name, limit.as_secs_f32());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        if self.ended()?.is_none() {
            // SAFETY: kill touches no memory; the child has not been waited for, so the number is its.
            unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        }
        Ok(())
    }

    /// Kills it at once, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(libc::SIGKILL)?;
        self.wait(Duration::from_secs(5)).map(drop)
    }

    /// The end of what it printed.
    pub fn last_words(&self) -> String {
        tail(&self.log, 4096)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let running = self.ended().ok().flatten().is_none();
        if thread::panicking() {
            eprintln!("--- last words of {}:\n{}\n---", self.name, self.last_words().trim_end());
        }
        if running {
            let _ = self.kill();
        }
    }
}

/// The last bytes of a file, or why they cannot be read.
fn tail(path: &Path, bytes: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_else(|error| format!("cannot read {}: {error}", path.display()))
}
