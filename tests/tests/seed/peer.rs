//! A phone or a PBX that says exactly what a test wants said: SIP as text, over a socket of its own.

use std::{
    collections::HashSet,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use sipline_tests::{
    kernel,
    lab::{Lab, PORT, PROXY, Place},
};

use crate::text::{reply, what};

/// How long somebody waits for what has to come at once.
const LIMIT: Duration = Duration::from_secs(5);

/// One that listens. Dropping it closes its port.
pub(crate) struct Peer {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    socket: Arc<UdpSocket>,
    heard: Receiver<String>,
    known: HashSet<String>,
    aside: Arc<Aside>,
    thread: Option<JoinHandle<()>>,
}

/// What a PBX does by itself.
#[derive(Default)]
struct Aside {
    stop: AtomicBool,
    /// Whether it answers nothing by itself.
    deaf: AtomicBool,
    /// The REGISTERs and OPTIONS that it has heard, each with its time.
    heard: Mutex<Vec<(Instant, String)>>,
}

impl Peer {
    /// A phone, which does nothing by itself.
    pub(crate) fn phone(lab: &Lab, port: u16) -> Self {
        Self::new(lab, Place::Phones, port, false)
    }

    /// A PBX, which answers OPTIONS and takes registrations.
    pub(crate) fn pbx(lab: &Lab, place: Place) -> Self {
        Self::pbx_at(lab, place, PORT)
    }

    /// One on another port.
    pub(crate) fn pbx_at(lab: &Lab, place: Place, port: u16) -> Self {
        Self::new(lab, place, port, true)
    }

    fn new(lab: &Lab, place: Place, port: u16, is_pbx: bool) -> Self {
        let address = SocketAddr::new(place.address().parse().unwrap(), port);
        let bind = || Ok(UdpSocket::bind(address)?);
        let socket = kernel::in_namespace(&lab.namespace_file(place), bind).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (socket, aside) = (Arc::new(socket), Arc::new(Aside::default()));
        let (sender, heard) = channel();
        let (ears, shared) = (Arc::clone(&socket), Arc::clone(&aside));
        let thread = thread::spawn(move || {
            let mut datagram = vec![0; 65_535];
            while !shared.stop.load(Ordering::Relaxed) {
                // An ICMP error of what was sent before is an error too, and nothing to stop for.
                let Ok((length, from)) = ears.recv_from(&mut datagram) else { continue };
                let text = String::from_utf8_lossy(&datagram[..length]).into_owned();
                if is_pbx && matches!(what(&text), "OPTIONS" | "REGISTER") {
                    if !shared.deaf.load(Ordering::Relaxed) {
                        let _ = ears.send_to(reply(&text, "200 OK", "").as_bytes(), from);
                    }
                    shared.lock().push((Instant::now(), text));
                } else if sender.send(text).is_err() {
                    return;
                }
            }
        });
        Self { address, socket, heard, known: HashSet::new(), aside, thread: Some(thread) }
    }

    /// Sends a datagram to the proxy.
    pub(crate) fn send(&self, text: impl AsRef<[u8]>) {
        self.socket.send_to(text.as_ref(), (PROXY, PORT)).unwrap();
    }

    /// What comes next, repetitions of what came before left out. It must be this method or status code.
    #[track_caller]
    pub(crate) fn expect(&mut self, what: &str) -> String {
        self.expect_within(what, LIMIT)
    }

    /// The same, for what takes its time.
    #[track_caller]
    pub(crate) fn expect_within(&mut self, wanted: &str, limit: Duration) -> String {
        match self.next_new(limit) {
            Some(text) if what(&text) == wanted => text,
            Some(text) => panic!("{} has not heard {wanted} but:\n{text}", self.address),
            None => panic!("{} has not heard {wanted} in {limit:?}", self.address),
        }
    }

    /// What comes next, if anything, repetitions left out.
    pub(crate) fn next_new(&mut self, limit: Duration) -> Option<String> {
        let end = Instant::now() + limit;
        loop {
            let text = self.next(end.saturating_duration_since(Instant::now()))?;
            if self.known.insert(text.clone()) {
                return Some(text);
            }
        }
    }

    /// What comes next, if anything, also if it came before.
    pub(crate) fn next(&mut self, limit: Duration) -> Option<String> {
        match self.heard.recv_timeout(limit) {
            Ok(text) => Some(text),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("{} does not listen", self.address),
        }
    }

    /// Nothing new comes for a while.
    #[track_caller]
    pub(crate) fn hears_nothing(&mut self) {
        if let Some(text) = self.next_new(Duration::from_millis(300)) {
            panic!("{} has heard:\n{text}", self.address);
        }
    }

    /// Forgets what has come.
    pub(crate) fn forget(&mut self) {
        while self.heard.try_recv().is_ok() {}
        self.aside.lock().clear();
    }

    /// Whether it answers nothing by itself from now on.
    pub(crate) fn set_deaf(&self, deaf: bool) {
        self.aside.deaf.store(deaf, Ordering::Relaxed);
    }

    /// The OPTIONS that a PBX has heard, or the REGISTERs, each with its time.
    pub(crate) fn aside(&self, method: &str) -> Vec<(Instant, String)> {
        let all = self.aside.lock();
        all.iter().filter(|(_, text)| what(text) == method).cloned().collect()
    }

    /// The REGISTER for a user that a PBX has or will have heard, of those that `holds` is true for.
    #[track_caller]
    pub(crate) fn registered(&self, user: &str, holds: impl Fn(&str) -> bool) -> String {
        let to = format!("<sip:{user}@");
        let start = Instant::now();
        loop {
            let all = self.aside("REGISTER");
            let fits = |text: &&String| text.contains(&to) && holds(text);
            if let Some(text) = all.iter().map(|(_, text)| text).rev().find(fits) {
                return text.clone();
            }
            assert!(start.elapsed() < LIMIT, "{} was told only {all:#?}", self.address);
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.aside.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Aside {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, String)>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
