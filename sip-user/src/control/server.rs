//! The daemon's end of the control socket.

use std::cell::Cell;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::protocol::{LONGEST_REQUEST, Request, Response};

/// Clients at the same time. More wait in the system's queue.
const CLIENTS: usize = 16;
/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers a request.
pub type Answer = dyn Fn(Request) -> LocalBoxFuture<'static, Response>;

/// The socket; its file goes when this does.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Binds `path` for owner and group. A file that a dead daemon left is removed; that of a living one
    /// is an error. Call it inside the runtime, while nobody else makes files in this process.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        remove_stale(path)?;
        // Only owner and group may speak, from the first moment on. The mask is the whole process's: who changes
        // it meanwhile, as tests do beside each other, would be given back a wrong one.
        static MASK: Mutex<()> = Mutex::new(());
        let mask = MASK.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: changes a number of the process and nothing in memory.
        let before = unsafe { libc::umask(0o117) };
        let bound = UnixListener::bind(path);
        // SAFETY: as above.
        unsafe { libc::umask(before) };
        drop(mask);
        Ok(Self { listener: bound?, path: path.to_owned() })
    }

    /// Serves clients until the task is dropped.
    pub async fn serve(&self, answer: Rc<Answer>) {
        let clients = Rc::new(Cell::new(0));
        loop {
            // A client that leaves makes room; nobody needs to be woken for that sooner.
            if clients.get() >= CLIENTS {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    clients.set(clients.get() + 1);
                    let (clients, answer) = (clients.clone(), answer.clone());
                    tokio::task::spawn_local(async move {
                        if let Err(error) = client(stream, &*answer).await {
                            tracing::debug!(%error, "a control client has gone");
                        }
                        clients.set(clients.get() - 1);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, mostly: that may pass.
                    tracing::warn!(%error, "cannot accept a control client");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove the control socket");
        }
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        let message = format!("{} exists and is no socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let message = format!("another daemon answers on {}", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, message))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
    }
}

async fn client(stream: UnixStream, answer: &Answer) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(LONGEST_REQUEST as u64 + 1);
        let read = limited.read_until(b'\n', &mut line);
        match tokio::time::timeout(PATIENCE, read).await {
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(read) => {
                if read? == 0 {
                    return Ok(());
                }
            }
        }
        let too_long = line.len() > LONGEST_REQUEST;
        let response = if too_long {
            Response::failed(format!("a request is at most {LONGEST_REQUEST} bytes long"))
        } else {
            match serde_json::from_slice(&line) {
                Ok(request) => answer(request).await,
                Err(error) => Response::failed(format!("not a request: {error}")),
            }
        };
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        tokio::time::timeout(PATIENCE, writer.write_all(&text)).await??;
        if too_long {
            // Where the next request starts is not known any more.
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{Backends, Outcome};
    use std::os::unix::fs::PermissionsExt;
    use tokio::task::LocalSet;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("sipline-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    async fn with_server<T>(path: &Path, test: impl AsyncFnOnce(UnixStream) -> T) -> T {
        LocalSet::new()
            .run_until(async {
                let server = Server::bind(path).unwrap();
                let answer: Rc<Answer> = Rc::new(|request| {
                    let response = match request {
                        Request::Backends => {
                            Response::done(Outcome::Backends(Backends { backends: Vec::new() }))
                        }
                        _ => Response::failed("not here"),
                    };
                    Box::pin(async { response })
                });
                let task = tokio::task::spawn_local(async move { server.serve(answer).await });
                let result = test(UnixStream::connect(path).await.unwrap()).await;
                task.abort();
                let _ = task.await;
                result
            })
            .await
    }

    async fn ask(stream: &mut BufReader<UnixStream>, text: &[u8]) -> String {
        stream.get_mut().write_all(text).await.unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        line
    }

    #[tokio::test]
    async fn lines_in_lines_out() {
        let dir = Dir::new("lines");
        let path = dir.0.join("deep/control.sock");
        with_server(&path, async |stream| {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o660);
            let mut stream = BufReader::new(stream);
            let line = ask(&mut stream, b"{\"verb\":\"backends\"}\n").await;
            assert_eq!(line, "{\"ok\":true,\"result\":{\"backends\":[]}}\n");
            let line = ask(&mut stream, b"{\"verb\":\"nonsense\"}\n").await;
            assert!(
                line.starts_with("{\"ok\":false,\"error\":{\"message\":\"not a request"),
                "{line}"
            );
            let line = ask(&mut stream, b"{\"verb\":\"stats\"}\n").await;
            assert!(line.contains("not here"), "{line}");
        })
        .await;
        assert!(!path.exists(), "the file goes with the server");
    }

    #[tokio::test]
    async fn a_request_without_end_is_refused() {
        let dir = Dir::new("endless");
        let path = dir.0.join("control.sock");
        with_server(&path, async |stream| {
            let mut stream = BufReader::new(stream);
            let line = ask(&mut stream, &vec![b' '; LONGEST_REQUEST + 1]).await;
            assert!(line.contains("at most 65536 bytes"), "{line}");
            let mut rest = String::new();
            assert_eq!(stream.read_line(&mut rest).await.unwrap(), 0, "closed");
        })
        .await;
    }

    #[tokio::test]
    async fn stale_files_go_and_living_daemons_stay() {
        let dir = Dir::new("stale");
        let path = dir.0.join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let server = Server::bind(&path).unwrap();
        let error = Server::bind(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        drop(server);
        std::fs::write(&path, "text").unwrap();
        let error = Server::bind(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
    }
}
