//! What can be wrong with a message, by name.

use core::fmt;

use crate::scan::{self, Kind};

/// Why a message is not one that RFC 3261 allows.
///
/// [`fmt::Display`] says it in a few words, fit for the reason phrase of a 400.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Error {
    /// The datagram is no message: lines, start line or header names are wrong (7).
    Scan(scan::Error),
    /// Some header goes on in another line (7.3.1): see [`super::unfold`].
    Folded,
    /// The method of the request line is no token (7.1).
    Method,
    /// The Request-URI (7.1, 19.1.1).
    RequestUri(What),
    /// The reason phrase is no UTF-8 (7.2, 25.1).
    ReasonPhrase,
    /// A header that must be there is not (8.1.1, 8.2.6.2).
    Missing(Kind),
    /// A header that may stand there once stands there again (7.3.1).
    Duplicate(Kind),
    /// The value of a header (20).
    Bad(Kind, What),
    /// CSeq names another method than the request line (8.1.1.5).
    CSeqMethod,
    /// Content-Length promises more than the datagram holds (18.3).
    Truncated,
}

/// What is wrong with a Request-URI or with the value of a header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    /// Nothing stands where a value must, between two commas for example.
    Empty,
    /// A character that may not stand there.
    Syntax,
    /// A quoted string does not end (25.1).
    Quote,
    /// A `<` without its `>`, or a URI that needs both and has none (20.10).
    Bracket,
    /// A `%` that two hexadecimal digits do not follow (19.1.2).
    Escape,
    /// A display name that is neither tokens nor quoted (20.10).
    DisplayName,
    /// A URI without a scheme (19.1.1).
    Scheme,
    /// User or password of a URI (19.1.1).
    User,
    /// Neither a name, nor an IPv4 address, nor an IPv6 address in brackets (25.1).
    Host,
    /// A port that is no number from 1 to 65535.
    Port,
    /// A parameter that is malformed, or whose value is none that its name allows.
    Parameter,
    /// A parameter that stands there twice (7.3.1).
    DuplicateParameter,
    /// Headers in a URI where they may not be (19.1.1, table 1), or malformed ones.
    UriHeaders,
    /// No number, a negative one, or one that is too large for its header.
    Number,
    /// Another protocol than `SIP/2.0` in the top Via (20.42).
    Protocol,
}

/// Who must do something about an [`Error`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Who sent the message: it breaks a rule of RFC 3261.
    Sender,
    /// We: the message may be right, but is more than we take.
    Limit,
}

impl Error {
    /// Whose fault it is.
    pub const fn fault(self) -> Fault {
        match self {
            Self::Scan(scan::Error::TooManyHeaders | scan::Error::TooLong) => Fault::Limit,
            Self::Folded => Fault::Limit,
            _ => Fault::Sender,
        }
    }

    /// The status code that answers a request with this error (21.4, 21.5).
    pub const fn status(self) -> u16 {
        match self {
            Self::Scan(scan::Error::Version) => 505,
            Self::Scan(scan::Error::TooManyHeaders | scan::Error::TooLong) => 513,
            _ => 400,
        }
    }
}

impl What {
    /// In words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Empty => "Empty Value",
            Self::Syntax => "Syntax",
            Self::Quote => "Unterminated Quote",
            Self::Bracket => "Angle Brackets",
            Self::Escape => "Escape",
            Self::DisplayName => "Display Name",
            Self::Scheme => "URI Scheme",
            Self::User => "User",
            Self::Host => "Host",
            Self::Port => "Port",
            Self::Parameter => "Parameter",
            Self::DuplicateParameter => "Duplicate Parameter",
            Self::UriHeaders => "URI Headers",
            Self::Number => "Number",
            Self::Protocol => "Protocol",
        }
    }
}

/// The name of a header as RFC 3261 writes it.
pub const fn header_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Other => "Header",
        Kind::Via => "Via",
        Kind::From => "From",
        Kind::To => "To",
        Kind::CallId => "Call-ID",
        Kind::CSeq => "CSeq",
        Kind::MaxForwards => "Max-Forwards",
        Kind::Route => "Route",
        Kind::RecordRoute => "Record-Route",
        Kind::Contact => "Contact",
        Kind::Expires => "Expires",
        Kind::ContentLength => "Content-Length",
        Kind::Require => "Require",
        Kind::ProxyRequire => "Proxy-Require",
        Kind::Authorization => "Authorization",
        Kind::ProxyAuthorization => "Proxy-Authorization",
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Scan(error) => f.write_str(error.text()),
            Self::Folded => f.write_str("Folded Header"),
            Self::Method => f.write_str("Bad Method"),
            Self::RequestUri(what) => write!(f, "Bad Request-URI ({})", what.text()),
            Self::ReasonPhrase => f.write_str("Bad Reason Phrase"),
            Self::Missing(kind) => write!(f, "Missing {}", header_name(kind)),
            Self::Duplicate(kind) => write!(f, "Duplicate {}", header_name(kind)),
            Self::Bad(kind, what) => write!(f, "Bad {} ({})", header_name(kind), what.text()),
            Self::CSeqMethod => f.write_str("CSeq Method Differs"),
            Self::Truncated => f.write_str("Body Shorter Than Content-Length"),
        }
    }
}

impl core::error::Error for Error {}

impl From<scan::Error> for Error {
    fn from(error: scan::Error) -> Self {
        Self::Scan(error)
    }
}
