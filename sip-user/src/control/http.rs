//! Three pages over HTTP, for who watches the daemon from afar.
//!
//! One request on each connection, and seconds for all of it: who asks four times a minute loses nothing,
//! and nobody holds a connection for longer.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Connections at the same time. More wait in the system's queue.
const CONNECTIONS: usize = 16;
/// How long one may take, from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a request's head, and the least that the library keeps for it: more gets 431.
const LONGEST_HEAD: usize = 8192;
/// Headers of a request: more get 431.
const MOST_HEADERS: usize = 64;

/// What can be asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Page {
    /// `/metrics`: every number, for Prometheus.
    Metrics,
    /// `/health`: whether the daemon works at all.
    Health,
    /// `/ready`: whether it takes calls.
    Ready,
}

impl Page {
    fn at(path: &str) -> Option<Self> {
        match path {
            "/metrics" => Some(Self::Metrics),
            "/health" => Some(Self::Health),
            "/ready" => Some(Self::Ready),
            _ => None,
        }
    }
}

/// Makes the answer to who asks for a page.
pub type Answer = dyn Fn(Page) -> LocalBoxFuture<'static, Response<String>>;

/// An answer with plain text.
pub fn plain(status: StatusCode, text: impl Into<String>) -> Response<String> {
    typed(status, "text/plain; charset=utf-8", text.into())
}

/// An answer with text of a certain type.
pub fn typed(status: StatusCode, content_type: &'static str, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The listening socket.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    patience: Duration,
}

impl Server {
    /// Binds an address. Call it inside the runtime.
    ///
    /// # Errors
    /// When the address is not ours, or taken.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, patience: PATIENCE })
    }

    /// Serves until the task is dropped, on the thread that asks.
    pub async fn serve(&self, answer: Rc<Answer>) {
        // Whatever is still connected ends with this.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                // One has ended, which makes room.
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => {
                    match accepted {
                        Ok((stream, _)) => {
                            let served = serve_one(stream, answer.clone());
                            connections.spawn_local(timeout(self.patience, served));
                        }
                        Err(error) => {
                            // Out of file descriptors, mostly: that may pass.
                            tracing::warn!(%error, "cannot accept an HTTP client");
                            sleep(Duration::from_millis(200)).await;
                        }
                    }
                }
            }
        }
    }
}

async fn serve_one(stream: TcpStream, answer: Rc<Answer>) {
    let service = service_fn(move |request| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(respond(&request, &*answer).await) }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(LONGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "an HTTP client has gone");
    }
}

async fn respond<B>(request: &Request<B>, answer: &Answer) -> Response<String> {
    let Some(page) = Page::at(request.uri().path()) else {
        return plain(StatusCode::NOT_FOUND, "there is /metrics, /health and /ready\n");
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "pages are read by GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    // HEAD too: the library keeps the text back.
    answer(page).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::{LocalSet, spawn_local};

    fn answer() -> Rc<Answer> {
        Rc::new(|page| {
            let response = match page {
                Page::Metrics => typed(StatusCode::OK, "text/x", "numbers\n".to_owned()),
                Page::Health => plain(StatusCode::OK, "well\n"),
                Page::Ready => plain(StatusCode::SERVICE_UNAVAILABLE, "not yet\n"),
            };
            Box::pin(async { response })
        })
    }

    async fn with_server<T>(test: impl AsyncFnOnce(SocketAddr) -> T) -> T {
        LocalSet::new()
            .run_until(async {
                let mut server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
                server.patience = Duration::from_millis(200);
                let address = server.listener.local_addr().unwrap();
                let task = spawn_local(async move { server.serve(answer()).await });
                let result = test(address).await;
                task.abort();
                let _ = task.await;
                result
            })
            .await
    }

    /// Everything that comes back for some bytes, until the daemon's end of the connection is closed.
    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut text = Vec::new();
        // A reset after the answer is as good as an end: what was not read of the request causes it.
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn pages() {
        with_server(async |address| {
            let text = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
            assert!(text.contains("\r\ncontent-type: text/x\r\n"), "{text}");
            assert!(text.contains("\r\nconnection: close\r\n"), "{text}");
            assert!(text.ends_with("\r\n\r\nnumbers\n"), "{text}");
            let text = ask(address, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(text.contains("\r\ncontent-length: 8\r\n"), "{text}");
            assert!(text.ends_with("\r\n\r\n"), "{text}");
            let text = ask(address, b"GET /ready?why HTTP/1.0\r\n\r\n").await;
            assert!(text.starts_with("HTTP/1.0 503 Service Unavailable\r\n"), "{text}");
            assert!(text.ends_with("\r\n\r\nnot yet\n"), "{text}");
        })
        .await;
    }

    #[tokio::test]
    async fn other_pages_and_methods() {
        with_server(async |address| {
            for path in ["/", "/metrics/", "/Health", "*"] {
                let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
                let text = ask(address, request.as_bytes()).await;
                assert!(text.starts_with("HTTP/1.1 404 "), "{path}: {text}");
            }
            for method in ["POST", "DELETE", "OPTIONS"] {
                let request =
                    format!("{method} /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi");
                let text = ask(address, request.as_bytes()).await;
                assert!(text.starts_with("HTTP/1.1 405 "), "{method}: {text}");
                assert!(text.contains("\r\nallow: GET, HEAD\r\n"), "{method}: {text}");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_no_request_or_too_much() {
        with_server(async |address| {
            let text = ask(address, b"INVITE sip:x SIP/2.0\r\n\r\n").await;
            assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
            let mut long = b"GET /health HTTP/1.1\r\nHost: x\r\nX: ".to_vec();
            long.resize(2 * LONGEST_HEAD, b'x');
            let text = ask(address, &long).await;
            assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
            let many = "X: y\r\n".repeat(MOST_HEADERS + 1);
            let text = ask(address, format!("GET /health HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
            assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
            // Nobody is hurt by it.
            let text = ask(address, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(text.ends_with("well\n"), "{text}");
        })
        .await;
    }

    /// Silent clients take all the room there is, and lose it again.
    #[tokio::test]
    async fn silence_ends() {
        with_server(async |address| {
            let mut silent = Vec::new();
            for _ in 0..CONNECTIONS {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            let text = ask(address, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(text.ends_with("well\n"), "{text}");
            for mut stream in silent {
                assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), 0, "closed");
            }
        })
        .await;
    }
}
