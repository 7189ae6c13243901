//! The command's end of the control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::protocol::{Request, Response};

/// How long the daemon may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer: far beyond what the largest configuration makes.
const LONGEST_ANSWER: u64 = 16 * 1024 * 1024;

/// Asks the daemon that listens on `socket`.
pub fn ask(socket: &Path, request: &Request) -> Result<Response> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!("no daemon answers on {}: is it running, is --socket right?", socket.display())
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text).context("the daemon does not listen")?;
    let mut line = Vec::new();
    BufReader::new(stream)
        .take(LONGEST_ANSWER)
        .read_until(b'\n', &mut line)
        .context("the daemon does not answer")?;
    if line.is_empty() {
        bail!("the daemon has closed the connection without an answer");
    }
    serde_json::from_slice(&line).context("the daemon's answer is not understood")
}
