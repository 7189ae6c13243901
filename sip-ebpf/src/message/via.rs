//! The Via header (RFC 3261 20.42).

use core::net::{IpAddr, Ipv6Addr};

use super::cursor::{Cursor, number, span};
use super::error::What;
use super::uri::{Host, Param, Params, host, port};
use crate::header::Span;

/// What branches start with whose makers keep to RFC 3261 (8.1.1.7).
pub const MAGIC_COOKIE: &str = "z9hG4bK";

/// One Via.
#[derive(Clone, Copy, Debug)]
pub struct Via<'a> {
    /// Where the value stands, from the protocol to the end of the last parameter.
    pub span: Span,
    /// Name of the protocol: `SIP`.
    pub protocol: &'a str,
    /// Version of the protocol: `2.0`.
    pub version: &'a str,
    /// Transport, in the case it was written: `UDP`.
    pub transport: &'a str,
    /// Host of the sender, in its own words.
    pub host: Host<'a>,
    /// Port of the sender, in its own words; none means 5060 over UDP.
    pub port: Option<u16>,
    /// Where host and port stand.
    pub sent_by: Span,
    /// `branch`
    pub branch: Option<&'a str>,
    /// Where the value of `branch` stands; empty without one.
    pub branch_span: Span,
    /// `received` (18.2.1)
    pub received: Option<IpAddr>,
    /// `rport` (RFC 3581)
    pub rport: Rport,
    /// Where the value of `rport` stands, or would; zero and zero without an `rport`.
    pub rport_span: Span,
    /// `ttl`
    pub ttl: Option<u8>,
    /// `maddr` (18.2.2)
    pub maddr: Option<Host<'a>>,
    /// All parameters.
    pub params: Params<'a>,
}

/// What a Via says in `rport` (RFC 3581).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Rport {
    /// It is not there.
    #[default]
    Absent,
    /// It is there without a value: whoever gets this fills it in.
    Empty,
    /// The port that the message came from.
    Value(u16),
}

impl<'a> Via<'a> {
    /// Whether the branch tells this transaction from all others (8.1.1.7): it starts with the
    /// magic cookie and goes on.
    pub fn is_unique(&self) -> bool {
        let cookie = MAGIC_COOKIE.len();
        let text = self.branch.unwrap_or_default();
        text.get(..cookie).is_some_and(|head| head.eq_ignore_ascii_case(MAGIC_COOKIE))
            && text.len() > cookie
    }

    /// Whether the transport is UDP.
    pub fn is_udp(&self) -> bool {
        self.transport.eq_ignore_ascii_case("UDP")
    }

    /// Whether the protocol is `SIP/2.0`.
    pub fn is_sip2(&self) -> bool {
        self.protocol.eq_ignore_ascii_case("SIP") && self.version == "2.0"
    }

    /// `sent-protocol LWS sent-by *( SEMI via-params )`
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, What> {
        let start = cursor.at();
        let protocol = cursor.token()?;
        let version = slash_token(cursor)?;
        let transport = slash_token(cursor)?;
        if !cursor.blanks() {
            return Err(What::Syntax);
        }
        let sent_by = cursor.at();
        let host = host(cursor)?;
        let mut sent_by_end = cursor.at();
        let mut sent_port = None;
        if cursor.separator(b':') {
            sent_port = Some(port(cursor.take(|byte| byte.is_ascii_digit()))?);
            sent_by_end = cursor.at();
        }
        let mut named = Named::default();
        let params = Params::header(cursor, |param| named.take(param))?;
        let Named { branch, received, rport, ttl, maddr } = named;
        Ok(Self {
            span: span(start, cursor.at()),
            protocol,
            version,
            transport,
            host,
            port: sent_port,
            sent_by: span(sent_by, sent_by_end),
            branch: branch.map(|(text, _)| text),
            branch_span: branch.map(|(_, span)| span).unwrap_or_default(),
            received,
            rport: rport.0,
            rport_span: rport.1,
            ttl,
            maddr,
            params,
        })
    }
}

/// The parameters that have a meaning here.
#[derive(Default)]
struct Named<'a> {
    branch: Option<(&'a str, Span)>,
    received: Option<IpAddr>,
    rport: (Rport, Span),
    ttl: Option<u8>,
    maddr: Option<Host<'a>>,
}

impl<'a> Named<'a> {
    fn take(&mut self, param: Param<'a>) -> Result<(), What> {
        if param.is("branch") {
            self.branch = Some((token(param)?, param.value_span));
        } else if param.is("received") {
            self.received = Some(received(token(param)?)?);
        } else if param.is("rport") {
            let rport = match param.value {
                None => Rport::Empty,
                Some(digits) => Rport::Value(port(digits)?),
            };
            self.rport = (rport, param.value_span);
        } else if param.is("ttl") {
            let digits = param.value.unwrap_or_default();
            self.ttl = Some(number(digits, 255).map_err(|_| What::Parameter)? as u8);
        } else if param.is("maddr") {
            self.maddr = Some(Host::parse(token(param)?)?);
        }
        Ok(())
    }
}

fn slash_token<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, What> {
    if !cursor.separator(b'/') {
        return Err(What::Syntax);
    }
    cursor.token()
}

/// The value of a parameter that must have one, and none in quotes.
fn token(param: Param<'_>) -> Result<&str, What> {
    param.text().ok_or(What::Parameter)
}

/// An address, IPv6 with or without brackets (RFC 5118 4.5).
fn received(text: &str) -> Result<IpAddr, What> {
    if let Ok(bare) = text.parse::<Ipv6Addr>() {
        return Ok(bare.into());
    }
    Host::parse(text)?.ip().ok_or(What::Host)
}
