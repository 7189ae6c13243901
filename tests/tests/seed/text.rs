//! SIP messages as text.

/// The method of a request, or the status code of a response.
pub(crate) fn what(text: &str) -> &str {
    let text = text.strip_prefix("SIP/2.0 ").unwrap_or(text);
    text.split(' ').next().unwrap_or_default()
}

/// Status code and reason phrase.
pub(crate) fn status(text: &str) -> &str {
    text.lines().next().and_then(|line| line.strip_prefix("SIP/2.0 ")).unwrap_or_default()
}

/// The values of all lines with this name.
pub(crate) fn headers<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let head = text.split("\r\n\r\n").next().unwrap_or_default();
    let value = |line: &'a str| {
        let (found, value) = line.split_once(':')?;
        found.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    };
    head.split("\r\n").skip(1).filter_map(value).collect()
}

/// The value of the line with this name, of which there is one.
#[track_caller]
pub(crate) fn header<'a>(text: &'a str, name: &str) -> &'a str {
    match headers(text, name)[..] {
        [value] => value,
        ref other => panic!("{name}: {other:?} in\n{text}"),
    }
}

/// A response to a request, with more lines, each with its end.
pub(crate) fn reply(request: &str, status: &str, more: &str) -> String {
    let mut text = format!("SIP/2.0 {status}\r\n");
    for name in ["Via", "Record-Route", "From", "To", "Call-ID", "CSeq"] {
        for value in headers(request, name) {
            let tagged = name != "To" || value.contains(";tag=") || status.starts_with("100");
            let tag = if tagged { "" } else { ";tag=answer" };
            text += &format!("{name}: {value}{tag}\r\n");
        }
    }
    text + more + "Content-Length: 0\r\n\r\n"
}

/// The ACK of a failure: of the same transaction as its INVITE (RFC 3261 17.1.1.3).
pub(crate) fn ack_of(invite: &str, failure: &str) -> String {
    let uri = invite.split(' ').nth(1).unwrap();
    format!(
        "ACK {uri} SIP/2.0\r\nVia: {}\r\nMax-Forwards: 70\r\nFrom: {}\r\nTo: {}\r\nCall-ID: {}\r\n\
         CSeq: {}\r\nContent-Length: 0\r\n\r\n",
        headers(invite, "Via")[0],
        header(invite, "From"),
        header(failure, "To"),
        header(invite, "Call-ID"),
        header(invite, "CSeq").replace("INVITE", "ACK"),
    )
}

/// The CANCEL of an INVITE (9.1).
pub(crate) fn cancel_of(invite: &str) -> String {
    let uri = invite.split(' ').nth(1).unwrap();
    format!(
        "CANCEL {uri} SIP/2.0\r\nVia: {}\r\nMax-Forwards: 70\r\nFrom: {}\r\nTo: {}\r\n\
         Call-ID: {}\r\nCSeq: {}\r\nContent-Length: 0\r\n\r\n",
        headers(invite, "Via")[0],
        header(invite, "From"),
        header(invite, "To"),
        header(invite, "Call-ID"),
        header(invite, "CSeq").replace("INVITE", "CANCEL"),
    )
}

/// The same message with one line less.
pub(crate) fn without(text: &str, name: &str) -> String {
    let start = format!("{name}:");
    text.split_inclusive("\r\n").filter(|line| !line.starts_with(&start)).collect()
}
