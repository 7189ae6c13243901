//! As much of SIP as the generator's phones and PBXs speak: they get well-formed messages from a proxy, and
//! look for a few things in them.

use std::io::Write as _;

/// A session description as phones send it.
pub(super) const SDP: &str = "v=0\r\no=- 3724394400 3724394400 IN IP4 10.10.1.2\r\ns=-\r\nc=IN IP4 \
    10.10.1.2\r\nt=0 0\r\nm=audio 40000 RTP/AVP 9 8 0 101\r\na=rtpmap:9 G722/8000\r\na=rtpmap:8 \
    PCMA/8000\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\n\
    a=ptime:20\r\na=sendrecv\r\n";

/// The status of a response; `None` for a request.
pub(super) fn status(message: &[u8]) -> Option<u16> {
    let code = message.strip_prefix(b"SIP/2.0 ")?.get(..3)?;
    std::str::from_utf8(code).ok()?.parse().ok()
}

/// The method of a request.
pub(super) fn method(message: &[u8]) -> &[u8] {
    let end = message.iter().position(|byte| *byte == b' ').unwrap_or(0);
    &message[..end]
}

/// The header fields, a line each, without the line's end.
pub(super) fn fields(message: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = message.split(|byte| *byte == b'\n');
    lines.skip(1).map(|line| line.strip_suffix(b"\r").unwrap_or(line)).take_while(|l| !l.is_empty())
}

/// The value of a line if it is of the header `name`; the compact form is "" where there is none.
pub(super) fn value<'a>(line: &'a [u8], name: &str, compact: &str) -> Option<&'a [u8]> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let is = line[..colon].trim_ascii_end();
    let holds = is.eq_ignore_ascii_case(name.as_bytes())
        || (!compact.is_empty() && is.eq_ignore_ascii_case(compact.as_bytes()));
    holds.then(|| line[colon + 1..].trim_ascii())
}

/// The value of the first header field of that name.
pub(super) fn header<'a>(message: &'a [u8], name: &str, compact: &str) -> Option<&'a [u8]> {
    fields(message).find_map(|line| value(line, name, compact))
}

/// Where `what` is found first.
pub(super) fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// What stands between the angle brackets, or all of it up to a parameter.
pub(super) fn uri(value: &[u8]) -> &[u8] {
    match value.iter().position(|byte| *byte == b'<') {
        Some(open) => {
            let rest = &value[open + 1..];
            &rest[..rest.iter().position(|byte| *byte == b'>').unwrap_or(rest.len())]
        }
        None => &value[..value.iter().position(|byte| *byte == b';').unwrap_or(value.len())],
    }
}

/// Two numbers written as `1.2` behind a mark.
pub(super) fn numbers(text: &[u8], mark: &[u8]) -> Option<(u32, u32)> {
    let rest = &text[find(text, mark)? + mark.len()..];
    let (first, rest) = number(rest)?;
    let (second, _) = number(rest.strip_prefix(b".")?)?;
    Some((first, second))
}

fn number(text: &[u8]) -> Option<(u32, &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let digits = std::str::from_utf8(&text[..end]).ok()?;
    Some((digits.parse().ok()?, &text[end..]))
}

/// Writes a response to a request (RFC 3261 8.2.6.2): what must be the same is. `more` are whole lines.
pub(super) fn respond(
    out: &mut Vec<u8>,
    request: &[u8],
    status: &str,
    tag: Option<std::fmt::Arguments<'_>>,
    more: std::fmt::Arguments<'_>,
    body: &str,
) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "SIP/2.0 {status}\r\n");
    for line in fields(request) {
        let to = value(line, "To", "t").is_some();
        let same = to
            || value(line, "Via", "v").is_some()
            || value(line, "Record-Route", "").is_some()
            || value(line, "From", "f").is_some()
            || value(line, "Call-ID", "i").is_some()
            || value(line, "CSeq", "").is_some();
        if same {
            out.extend_from_slice(line);
            if let Some(tag) = tag.filter(|_| to && find(line, b";tag=").is_none()) {
                let _ = write!(out, ";tag={tag}");
            }
            out.extend_from_slice(b"\r\n");
        }
    }
    let _ = out.write_fmt(more);
    if !body.is_empty() {
        out.extend_from_slice(b"Content-Type: application/sdp\r\n");
    }
    let _ = write!(out, "Content-Length: {}\r\n\r\n{body}", body.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    const INVITE: &[u8] = b"INVITE sip:9@10.10.2.2 SIP/2.0\r\nVia: SIP/2.0/UDP 10.10.0.1;branch=z9hG4bKx\r\n\
        v: SIP/2.0/UDP 10.10.1.2;branch=z9hG4bKb3.41.1\r\nRecord-Route: <sip:10.10.0.1;lr>\r\nMax-Forwards: 69\r\n\
        From: <sip:u1@h>;tag=a\r\nTo: <sip:9@h>\r\nCall-ID: c3.41@h\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n";

    #[test]
    fn a_response_has_what_the_request_had() {
        let mut out = Vec::new();
        respond(
            &mut out,
            INVITE,
            "200 OK",
            Some(format_args!("p1")),
            format_args!("X: y\r\n"),
            "v",
        );
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.starts_with("SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 10.10.0.1;branch=z9hG4bKx\r\nv: ")
        );
        assert!(text.contains("Record-Route: <sip:10.10.0.1;lr>\r\n") && !text.contains("Max-Fo"));
        assert!(text.contains("To: <sip:9@h>;tag=p1\r\n") && text.contains(";tag=a\r\n"));
        assert!(
            text.ends_with("X: y\r\nContent-Type: application/sdp\r\nContent-Length: 1\r\n\r\nv")
        );
        assert_eq!(status(text.as_bytes()), Some(200));
    }

    #[test]
    fn what_is_looked_for_is_found() {
        assert_eq!((status(INVITE), method(INVITE)), (None, &b"INVITE"[..]));
        assert_eq!(numbers(INVITE, b"branch=z9hG4bKb"), Some((3, 41)));
        assert_eq!(header(INVITE, "call-id", "i"), Some(&b"c3.41@h"[..]));
        assert_eq!(numbers(header(INVITE, "Call-ID", "i").unwrap(), b"c"), Some((3, 41)));
        assert_eq!(uri(b"\"x\" <sip:a@b;c>;d=e"), b"sip:a@b;c");
        assert_eq!(uri(b"sip:a@b;d=e"), b"sip:a@b");
        assert_eq!(numbers(b"branch=z9hG4bKbx", b"branch=z9hG4bKb"), None);
    }
}
