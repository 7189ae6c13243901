//! The best of the final responses that are no success (RFC 3261 16.7 steps 6 and 7).

use sip_ebpf::message::Message;

/// Challenges of other responses that are kept, in bytes.
const CHALLENGES: usize = 8 * 1024;

/// The best response so far.
#[derive(Debug, Default)]
pub(super) struct Best {
    kept: Option<Kept>,
    /// The lines with challenges of all 401 and 407 so far.
    challenges: Vec<u8>,
    /// The least Retry-After of the 503s.
    retry_after: Option<u32>,
}

#[derive(Debug)]
struct Kept {
    status: u16,
    tag: Option<u32>,
    /// None for one that we have to make.
    bytes: Option<Box<[u8]>>,
}

/// What is the best answer.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Choice {
    pub(super) status: u16,
    /// Tag of the target that has given it.
    pub(super) tag: Option<u32>,
    /// The response without our Via; none if it is to be made.
    pub(super) bytes: Option<Box<[u8]>>,
    /// See [`Best`].
    pub(super) retry_after: Option<u32>,
}

impl Best {
    /// A response, forwarded as `bytes`.
    pub(super) fn response(&mut self, message: &Message<'_>, bytes: Option<Vec<u8>>, tag: u32) {
        let Some(status) = message.status() else { return };
        let challenges = matches!(status, 401 | 407);
        for header in message.headers().filter(|header| challenges && is_challenge(header.name)) {
            let line = message.slice(header.span);
            if self.challenges.len() + line.len() <= CHALLENGES {
                self.challenges.extend_from_slice(line);
            }
        }
        if let (503, Some(seconds)) = (status, retry_after(message)) {
            self.retry_after = Some(self.retry_after.map_or(seconds, |least| least.min(seconds)));
        }
        let tag = bytes.is_some().then_some(tag);
        self.offer(Kept { status, tag, bytes: bytes.map(Vec::into_boxed_slice) });
    }

    /// A status that stands for the silence of a target.
    pub(super) fn local(&mut self, status: u16) {
        self.offer(Kept { status, tag: None, bytes: None });
    }

    /// The best one, if there was any. Of a request that was taken back a 487 is.
    pub(super) fn choose(&mut self, cancelled: bool) -> Option<Choice> {
        let kept = self.kept.take();
        let kept = match cancelled {
            true => {
                let canceled = Kept { status: 487, tag: None, bytes: None };
                kept.filter(|kept| kept.status == 487).unwrap_or(canceled)
            }
            false => kept?,
        };
        let challenged = matches!(kept.status, 401 | 407);
        let bytes = match kept.bytes {
            Some(bytes) if challenged => Some(self.with_challenges(&bytes)),
            bytes => bytes,
        };
        let retry_after = self.retry_after;
        Some(Choice { status: kept.status, tag: kept.tag, bytes, retry_after })
    }

    fn offer(&mut self, new: Kept) {
        if self.kept.as_ref().is_none_or(|kept| rank(&new) < rank(kept)) {
            self.kept = Some(new);
        }
    }

    /// The response with the challenges of all (16.7 step 7), in place of its own.
    fn with_challenges(&self, bytes: &[u8]) -> Box<[u8]> {
        let mut out = Vec::with_capacity(bytes.len() + self.challenges.len());
        let mut rest = bytes;
        while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
            let (line, behind) = rest.split_at(end + 2);
            if line == b"\r\n" {
                out.extend_from_slice(&self.challenges);
                break;
            }
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            if !is_challenge(name.trim_ascii_end()) {
                out.extend_from_slice(line);
            }
            rest = behind;
        }
        out.extend_from_slice(rest);
        out.into()
    }
}

/// Its Retry-After (20.33), in seconds.
pub(in crate::core) fn retry_after(message: &Message<'_>) -> Option<u32> {
    let header = message.headers().find(|has| has.name.eq_ignore_ascii_case(b"Retry-After"))?;
    let digits = header.value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    str::from_utf8(header.value.get(..digits)?).ok()?.parse().ok()
}

/// Lower is better: first what declines for all, then by class; in a class what the caller can do something
/// about, and last what says that somebody said nothing.
fn rank(kept: &Kept) -> (u8, u8) {
    let class = match kept.status {
        600.. => 0,
        status => (status / 100) as u8,
    };
    let within = match kept.status {
        401 | 407 | 415 | 420 | 484 => 0,
        408 | 487 if kept.bytes.is_some() => 2,
        408 | 487 => 3,
        503 => 2,
        _ => 1,
    };
    (class, within)
}

fn is_challenge(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"WWW-Authenticate")
        || name.eq_ignore_ascii_case(b"Proxy-Authenticate")
}
