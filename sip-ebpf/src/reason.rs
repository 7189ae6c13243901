//! Why a packet left the program the way it did: one name, one counter, for every way out.

/// What happens to the packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// Goes up the stack unchanged (`XDP_PASS`); the daemon serves it if it is ours.
    Up,
    /// Ends here (`XDP_DROP`).
    Drop,
    /// Sent back or on by the program (`XDP_TX` or `XDP_REDIRECT`).
    Sent,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $way:ident;)+) => {
        /// Every way a packet can leave the program. The number is the slot in the counter table.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All reasons, in the order of their slots.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The counter's name, stable for operators (`sipline stats`).
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What happens to a packet that leaves for this reason.
            pub const fn way(self) -> Way {
                match self { $(Self::$name => Way::$way,)+ }
            }
        }
    };
}

reasons! {
    /// An OPTIONS for us was answered with its 200.
    OptionsAnswered = "options_answered", Sent;
    /// A keepalive of CRLF CRLF was answered with CRLF (RFC 5626 4.4.1).
    CrlfAnswered = "crlf_answered", Sent;
    /// An initial INVITE was steered to a PBX.
    InviteSteered = "invite_steered", Sent;
    /// A retransmitted INVITE followed its first copy.
    InviteRepeated = "invite_repeated", Sent;
    /// A CANCEL followed its INVITE.
    CancelSteered = "cancel_steered", Sent;
    /// The ACK of a failure followed its INVITE.
    AckSteered = "ack_steered", Sent;
    /// A request inside a dialog went to the PBX by our Record-Route cookie.
    DialogToPbx = "dialog_to_pbx", Sent;
    /// A request inside a dialog went from a PBX to the other side by our Record-Route cookie.
    DialogToPhone = "dialog_to_phone", Sent;
    /// A response went one Via further (RFC 3261 16.11).
    ResponseForwarded = "response_forwarded", Sent;
    /// A request without credentials was asked for them, by 401 or 407.
    Challenged = "challenged", Sent;
    /// An OPTIONS of a PBX for a user of ours was answered: 200 if he is registered, else 404.
    QualifyAnswered = "qualify_answered", Sent;

    /// The ACK of such an answer, which nobody remembers.
    ChallengeAcked = "challenge_acked", Drop;
    /// The source is in a denied network.
    Denied = "denied", Drop;
    /// The source is banned.
    Banned = "banned", Drop;
    /// A stranger has sent more than strangers may.
    RateStranger = "rate_stranger", Drop;
    /// A source that somebody has registered from has sent more than such sources may.
    RateRegistered = "rate_registered", Drop;
    /// No SIP at all: the first line is neither a request line nor a status line.
    Junk = "junk", Drop;
    /// A datagram of ours that holds nothing, or only NUL, CR or LF that asks for no answer.
    EmptyDatagram = "empty_datagram", Drop;

    /// Not IPv4 (ARP and others), nor IPv6 where the programs for it are loaded; or too short for UDP, or more than two
    /// VLAN tags.
    NotIpv4 = "not_ipv4", Up;
    /// Not UDP.
    NotUdp = "not_udp", Up;
    /// UDP, but not to an address and port of ours.
    NotOurs = "not_ours", Up;
    /// The IPv4 header has options, or IPv6 has extension headers.
    IpOptions = "ip_options", Up;
    /// A fragment.
    Fragment = "fragment", Up;
    /// The lengths in the frame, in IP and in UDP do not agree.
    BadLength = "bad_length", Up;
    /// UDP over IPv6 without a checksum, which the stack drops (RFC 8200 8.1).
    NoChecksum = "no_checksum", Up;
    /// Longer than the program reads.
    TooLong = "too_long", Up;
    /// The tables are not filled yet, or belong to another layout.
    NotConfigured = "not_configured", Up;

    /// Not a SIP message that the scanner accepts (see `sipline stats` of the daemon for which rule).
    Malformed = "malformed", Up;
    /// A header is folded over several lines (RFC 3261 7.3.1).
    Folded = "folded", Up;
    /// A method that the program leaves to the daemon, or one in a place where it does.
    Method = "method", Up;
    /// OPTIONS for somebody else, or with a user.
    OptionsNotForUs = "options_not_for_us", Up;
    /// The daemon's heartbeat is stale, so nobody may speak for it.
    HeartbeatStale = "heartbeat_stale", Up;
    /// The top Via is not one that the program edits (several in a line, no magic cookie, `received`
    /// already there, not UDP).
    OddVia = "odd_via", Up;
    /// Max-Forwards is missing, zero or no small number.
    MaxForwards = "max_forwards", Up;
    /// Proxy-Require or Require asks for something the daemon must judge.
    Required = "required", Up;
    /// Content-Length does not agree with the datagram.
    ContentLength = "content_length", Up;
    /// From, To, Call-ID or CSeq is not one that the program reads.
    OddHeader = "odd_header", Up;
    /// The source of an initial INVITE is not in a trusted network.
    Untrusted = "untrusted", Up;
    /// A request from a PBX that is not inside a dialog of ours.
    FromPbx = "from_pbx", Up;
    /// An initial request that already has a Route.
    Preloaded = "preloaded_route", Up;
    /// No PBX takes calls.
    NoPbx = "no_pbx", Up;
    /// A CANCEL or ACK whose INVITE the call table does not know.
    UnknownCall = "unknown_call", Up;
    /// Inside a dialog, but the top Route is not ours alone.
    OddRoute = "odd_route", Up;
    /// The cookie in our Route is missing or its signature is wrong.
    BadCookie = "bad_cookie", Up;
    /// The cookie is right, but the request does not come from where the cookie says.
    WrongSide = "wrong_side", Up;
    /// A response whose top Via is not ours.
    NotOurResponse = "not_our_response", Up;
    /// A response that belongs to the daemon, by its branch.
    DaemonResponse = "daemon_response", Up;
    /// A response whose branch is not signed by us, or that has no way on.
    BadBranch = "bad_branch", Up;
    /// Neither route nor neighbour is known for the next hop; the stack finds them.
    NoNeighbour = "no_neighbour", Up;
    /// The way to the next hop leaves by an interface that the program is not attached to.
    OtherPort = "other_port", Up;
    /// What would leave is longer than the MTU of the way out.
    Mtu = "mtu", Up;
    /// The frame's buffer has no room for the longer head.
    Headroom = "headroom", Up;
    /// A message of a call that the daemon has taken over.
    TakenOver = "taken_over", Up;
    /// A 5xx to an INVITE that was steered: the daemon may place the call anew.
    SteeredFailed = "steered_failed", Up;
    /// A BYE in a call that the daemon keeps a record of: while it is there, it carries it.
    ByeRecorded = "bye_recorded", Up;
}

/// How many reasons there are: the length of the counter table.
pub const REASONS: u32 = Reason::ALL.len() as u32;
