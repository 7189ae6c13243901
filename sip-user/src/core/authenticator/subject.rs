//! Who has to prove what: which requests are asked for credentials, as whose, and in which realm.

use sip_ebpf::message::{Message, Uri, unescape};
use sip_ebpf::scan::Method;

use super::super::digest::Role;
use super::super::registrar::{Domains, domain_of};
use super::super::reply::Response;

/// Who has sent a request, by its source.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// The PBX in this slot: it is believed.
    Pbx(u32),
    /// A network that is believed.
    Trusted,
    /// Anybody.
    Other,
}

/// In which realm credentials are asked for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Realm {
    /// The domain of the user who is asked.
    #[default]
    Domain,
    /// Always this one.
    Fixed(Box<str>),
}

/// What a request has to prove.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Demand {
    /// Nothing: its source is believed, or it cannot be asked (ACK and CANCEL, RFC 3261 22.1).
    Nothing,
    /// That it is from this user.
    Identity(Subject),
    /// Nothing that we could examine: it says that it is from a domain that is not ours.
    Stranger {
        /// Whether it is for a domain of ours.
        to_us: bool,
    },
}

/// Who a request is from, by its own words, and how he is asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subject {
    /// 401 or 407.
    pub role: Role,
    /// The user, escapes resolved.
    pub user: String,
    /// The domain, in small letters.
    pub domain: String,
    /// The realm.
    pub realm: String,
}

impl Demand {
    /// What `message` has to prove. A REGISTER and a PUBLISH are from the user in their To (10.2, RFC 3903 4),
    /// others from the one in their From. A REGISTER is asked as by a registrar (22.2), all others as by a
    /// proxy (22.3).
    ///
    /// The error is how it is answered without any question: a user who does not exist needs none.
    pub fn of(
        message: &Message<'_>,
        source: Source,
        domains: &Domains,
        realm: &Realm,
    ) -> Result<Self, Response> {
        let method = message.method();
        if source != Source::Other || matches!(method, Method::Ack | Method::Cancel) {
            return Ok(Self::Nothing);
        }
        let is_register = method == Method::Register;
        let asked = message.request_uri()?;
        let to_us = is_ours(&asked, domains);
        if is_register && !to_us {
            // 10.3 step 1. Nobody registers elsewhere by us.
            return Err(Response::new(403, "Not relaying"));
        }
        let by_to = is_register || method == Method::Publish;
        let uri = if by_to { message.to()?.uri } else { message.from()?.uri };
        if !is_ours(&uri, domains) {
            return match by_to {
                true if is_register => Err(Response::new(404, "Not Found")),
                _ => Ok(Self::Stranger { to_us }),
            };
        }
        // Whoever names our domain and no user is none of ours.
        let Some((host, user)) = uri.host.zip(uri.user) else {
            return Err(match is_register {
                true => Response::new(404, "Not Found"),
                false => Response::new(403, FORBIDDEN),
            });
        };
        let user = match user.contains('%') {
            true => String::from_utf8(unescape(user).collect()),
            false => Ok(user.to_owned()),
        };
        let Ok(user) = user else { return Err(Response::new(403, FORBIDDEN)) };
        let domain = domain_of(host).into_owned();
        let realm = match realm {
            Realm::Domain => domain.clone(),
            Realm::Fixed(realm) => realm.to_string(),
        };
        let role = if is_register { Role::UserAgent } else { Role::Proxy };
        Ok(Self::Identity(Subject { role, user, domain, realm }))
    }
}

/// Reason phrase of a 403: the password is right, but of another user.
pub(super) const FORBIDDEN: &str = "Forbidden auth ID";

fn is_ours(uri: &Uri<'_>, domains: &Domains) -> bool {
    uri.is_sip() && uri.host.is_some_and(|host| domains.has(host))
}
