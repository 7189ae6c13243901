//! What a REGISTER asks for (RFC 3261 10.2).

use std::num::NonZeroU32;

use sip_ebpf::message::{self, Contact, Header, Message, Param, Uri};
use sip_ebpf::scan::{Kind, Method};

use super::binding::Methods;
use super::{Aor, Domains, Response, Rules};

/// How many Contacts one REGISTER may have: each is compared with all that are there.
const MAX_ASKED: usize = 32;
/// The longest user, in bytes.
pub(super) const MAX_USER: usize = 128;
/// The longest Contact URI.
pub(super) const MAX_CONTACT: usize = 512;
/// The longest Call-ID.
pub(super) const MAX_CALL_ID: usize = 256;
/// The longest `+sip.instance`.
pub(super) const MAX_INSTANCE: usize = 128;
/// The longest Path, all its values together.
pub(super) const MAX_PATH: usize = 1024;
/// How much of a User-Agent is kept.
pub(super) const MAX_USER_AGENT: usize = 64;
/// The extension of RFC 3327.
const PATH: &str = "path";

/// A REGISTER that may be carried out.
pub(super) struct Asked<'a> {
    pub(super) aor: Aor,
    pub(super) call_id: &'a str,
    pub(super) cseq: u32,
    pub(super) wish: Wish<'a>,
    /// The values of Path with `, ` between them; empty if there are none.
    pub(super) path: String,
    /// Whether the phone wants to hear of the Path.
    pub(super) echo_path: bool,
    pub(super) user_agent: &'a str,
    pub(super) methods: Methods,
}

/// What is to become of the bindings.
pub(super) enum Wish<'a> {
    /// Nothing: which are there?
    Fetch,
    /// `Contact: *`
    RemoveAll,
    /// These.
    Change(Vec<Asking<'a>>),
}

/// One Contact of it.
pub(super) struct Asking<'a> {
    pub(super) uri: Uri<'a>,
    /// Seconds, within the limits; 0 removes.
    pub(super) expires: u32,
    pub(super) q: Option<u16>,
    /// Without its quotes; empty if there is none.
    pub(super) instance: &'a str,
    pub(super) reg_id: Option<NonZeroU32>,
}

impl<'a> Asked<'a> {
    /// Reads it, or says what answers it.
    pub(super) fn read(
        message: &Message<'a>,
        rules: &Rules,
        domains: &Domains,
    ) -> Result<Self, Response> {
        if message.method() != Method::Register {
            return Err(Response::new(405, "Method Not Allowed").with("Allow: REGISTER\r\n"));
        }
        requires(message)?;
        let uri = message.to()?.uri;
        if !uri.is_sip() {
            return Err(Response::new(416, "Unsupported URI Scheme"));
        }
        // 10.3 step 5.
        let aor = Aor::of(&uri).filter(|aor| domains.get(aor.domain()).is_some());
        let Some(aor) = aor else { return Err(Response::new(404, "Not Found")) };
        within("User", aor.user(), MAX_USER)?;
        let call_id = message.call_id()?;
        within("Call-ID", call_id, MAX_CALL_ID)?;
        let path = path(message)?;
        let echo_path = others(message, &["Supported", "k"]).any(|tags| lists(tags, PATH));
        if !path.is_empty() && !echo_path && rules.path_needs_support {
            return Err(Response::new(421, "Extension Required").with("Require: path\r\n"));
        }
        let mut methods = Methods::default();
        for value in others(message, &["Allow"]) {
            text(value).split(',').for_each(|name| methods.add(name.trim()));
        }
        Ok(Self {
            aor,
            call_id,
            cseq: message.cseq()?.number,
            wish: wish(message, rules)?,
            path,
            echo_path,
            user_agent: cut(others(message, &["User-Agent"]).next().map_or("", text)),
            methods,
        })
    }
}

/// 10.3 step 2: `path` is all that may be required of us.
fn requires(message: &Message<'_>) -> Result<(), Response> {
    let mut unknown = String::new();
    for tag in message.requires() {
        let tag = tag?;
        if !tag.eq_ignore_ascii_case(PATH) && unknown.len() < MAX_PATH {
            unknown.push_str(if unknown.is_empty() { "" } else { ", " });
            unknown.push_str(tag);
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    Err(Response::new(420, "Bad Extension").with(&format!("Unsupported: {unknown}\r\n")))
}

/// 10.3 steps 6 and 7, as far as they do not need what is there.
fn wish<'a>(message: &Message<'a>, rules: &Rules) -> Result<Wish<'a>, Response> {
    let all = message.expires()?;
    let mut askings = Vec::new();
    let mut star = false;
    let mut flows = 0;
    for (count, contact) in message.contacts().enumerate() {
        if count == MAX_ASKED {
            return Err(too_many());
        }
        let binding = match contact? {
            Contact::Star => {
                star = true;
                continue;
            }
            Contact::Address(binding) => binding,
        };
        let uri = binding.address.uri;
        if !uri.is_sip() {
            return Err(Response::new(416, "Unsupported Contact URI Scheme"));
        }
        within("Contact", uri.text, MAX_CONTACT)?;
        let instance = binding.instance.map_or(Ok(""), unquoted)?;
        within("Instance", instance, MAX_INSTANCE)?;
        let reg_id = binding.address.params.get("reg-id").map(reg_id).transpose()?;
        let expires = binding.expires.or(all).unwrap_or(rules.default_expires);
        if expires != 0 && expires < rules.min_expires {
            return Err(Response::new(423, "Interval Too Brief")
                .with(&format!("Min-Expires: {}\r\n", rules.min_expires)));
        }
        // RFC 5626 6: a flow is named alone, and without an instance it is no name.
        let reg_id = reg_id.filter(|_| !instance.is_empty());
        flows += usize::from(reg_id.is_some() && expires != 0);
        if flows > 1 {
            return Err(Response::new(400, "Several Contacts With reg-id"));
        }
        let expires = expires.min(rules.max_expires);
        askings.push(Asking { uri, expires, q: binding.q, instance, reg_id });
    }
    match (star, askings.is_empty()) {
        (true, true) if all == Some(0) && message.contacts().count() == 1 => Ok(Wish::RemoveAll),
        (true, true) => Err(Response::new(400, "Contact * Without Expires: 0")),
        (true, false) => Err(Response::new(400, "Contact * Beside Others")),
        (false, true) => Ok(Wish::Fetch),
        (false, false) => Ok(Wish::Change(askings)),
    }
}

pub(super) fn too_many() -> Response {
    Response::new(403, "Too Many Contacts")
}

fn within(name: &str, text: &str, longest: usize) -> Result<(), Response> {
    if text.len() <= longest {
        return Ok(());
    }
    Err(Response::new(513, format!("{name} Too Long")))
}

/// A quoted string of printable characters without its quotes. A backslash has no place in a URN.
fn unquoted(value: &[u8]) -> Result<&str, Response> {
    let inner = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    let inner = inner.and_then(|inner| str::from_utf8(inner).ok()).filter(|text| is_instance(text));
    inner.ok_or_else(|| Response::new(400, "Bad Contact (+sip.instance)"))
}

/// Whether it can stand between quotes as it is.
pub(super) fn is_instance(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
}

/// A number from 1 to 2^31 - 1 (RFC 5626 4.2).
fn reg_id(param: Param<'_>) -> Result<NonZeroU32, Response> {
    let digits = param.text().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|digits| digits.parse().ok());
    let number = number.filter(|number: &NonZeroU32| number.get() < 1 << 31);
    number.ok_or_else(|| Response::new(400, "Bad Contact (reg-id)"))
}

/// All values of Path (RFC 3327 5.3), checked.
fn path(message: &Message<'_>) -> Result<String, Response> {
    let mut path = String::new();
    for value in others(message, &["Path"]) {
        path.push_str(if path.is_empty() { "" } else { ", " });
        path.push_str(text(value));
        if path.len() > MAX_PATH {
            return Err(Response::new(513, "Path Too Long"));
        }
    }
    if path.is_empty() || is_path(&path) {
        return Ok(path);
    }
    Err(Response::new(400, "Bad Path"))
}

/// Whether it is a list of `sip:` or `sips:` addresses in angle brackets.
pub(super) fn is_path(path: &str) -> bool {
    path.bytes().all(|byte| (0x20..0x7f).contains(&byte)) && values(path).all(is_hop)
}

fn is_hop(value: &str) -> bool {
    let uri = outside_quotes(value, '<')
        .and_then(|at| value.get(at + 1..))
        .and_then(|rest| rest.split_once('>'))
        .and_then(|(uri, _)| Uri::parse(uri).ok());
    uri.is_some_and(|uri| uri.is_sip())
}

/// The values of a list: between commas that stand neither in quotes nor in angle brackets.
fn values(list: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(list);
    std::iter::from_fn(move || {
        let text = rest?;
        let (value, behind) = match outside_quotes(text, ',') {
            Some(at) => (text.get(..at)?, text.get(at + 1..)),
            None => (text, None),
        };
        rest = behind;
        Some(value.trim())
    })
}

/// Where a character stands first outside of quotes, and, if it is a comma, of angle brackets.
fn outside_quotes(text: &str, wanted: char) -> Option<usize> {
    let (mut quoted, mut escaped, mut bracket) = (false, false, false);
    text.char_indices().find_map(|(at, char)| {
        let here = char == wanted && !quoted && !bracket;
        match char {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '<' if !quoted => bracket = true,
            '>' if !quoted => bracket = false,
            _ => {}
        }
        here.then_some(at)
    })
}

/// The values of the headers of these names, which the scanner does not tell apart.
fn others<'a, 'n>(
    message: &Message<'a>,
    names: &'n [&'n str],
) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
    let named = |header: &Header<'a>| {
        names.iter().any(|name| header.name.eq_ignore_ascii_case(name.as_bytes()))
    };
    message.headers_of(Kind::Other).filter(named).map(|header| header.value)
}

fn lists(tags: &[u8], tag: &str) -> bool {
    text(tags).split(',').any(|other| other.trim().eq_ignore_ascii_case(tag))
}

/// As text; what is none counts as empty.
fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap_or_default()
}

/// As much of a User-Agent as is kept.
pub(super) fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_USER_AGENT)).unwrap_or(text)
}

impl From<message::Error> for Response {
    fn from(error: message::Error) -> Self {
        Self::new(error.status(), error.to_string())
    }
}
