//! The grammar of credentials and challenges (RFC 3261 25.1): a scheme, then `name=value` between commas.
//!
//! rsip's types are not used for this: they read nc as decimal digits, end a quoted string at an escaped quote,
//! write URIs anew that must be hashed as they stand, and take the first of two parameters of one name.

use std::borrow::Cow;
use std::fmt;

/// How many parameters one value may have.
const MAX_PARAMS: usize = 64;

/// What is wrong with credentials or with a challenge.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// Bytes that are no UTF-8.
    NotUtf8,
    /// A character that may not stand there, or a name without its value.
    Syntax,
    /// A quoted string that does not end.
    Quote,
    /// More parameters than anybody needs.
    TooMany,
    /// This parameter stands there twice (7.3.1).
    Duplicate(&'static str),
    /// This parameter is not there.
    Missing(&'static str),
    /// This parameter has a value that it cannot have.
    Value(&'static str),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 => f.write_str("Not UTF-8"),
            Self::Syntax => f.write_str("Syntax"),
            Self::Quote => f.write_str("Unterminated Quote"),
            Self::TooMany => f.write_str("Too Many Parameters"),
            Self::Duplicate(name) => write!(f, "Duplicate {name}"),
            Self::Missing(name) => write!(f, "Missing {name}"),
            Self::Value(name) => write!(f, "Bad {name}"),
        }
    }
}

impl std::error::Error for Malformed {}

/// Reads the value of a header. `take` gets each parameter of the scheme Digest, its value without quotes and
/// escapes. Gives `false`, and reads no further, if it is of another scheme.
///
/// Values may be tokens or quoted whatever their name: phones mix these up, and no value reads differently
/// for it.
pub(super) fn read<'a>(
    value: &'a [u8],
    mut take: impl FnMut(&'a str, Cow<'a, str>) -> Result<(), Malformed>,
) -> Result<bool, Malformed> {
    let text = str::from_utf8(value).map_err(|_| Malformed::NotUtf8)?;
    let mut cursor = Cursor { rest: text };
    cursor.blanks();
    let scheme = cursor.token()?;
    if !scheme.eq_ignore_ascii_case("Digest") {
        return Ok(false);
    }
    if !cursor.blanks() {
        return Err(Malformed::Syntax);
    }
    for _ in 0..MAX_PARAMS {
        let name = cursor.token()?;
        if !cursor.separator('=') {
            return Err(Malformed::Syntax);
        }
        let value =
            if cursor.rest.starts_with('"') { cursor.quoted()? } else { cursor.token()?.into() };
        take(name, value)?;
        if !cursor.separator(',') {
            cursor.blanks();
            return if cursor.rest.is_empty() { Ok(true) } else { Err(Malformed::Syntax) };
        }
    }
    Err(Malformed::TooMany)
}

/// Keeps a parameter that may stand there once.
pub(super) fn once<T>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), Malformed> {
    if slot.replace(value).is_some() {
        return Err(Malformed::Duplicate(name));
    }
    Ok(())
}

/// Appends `, name="text"`, or without the comma right behind the scheme, with the escapes that text needs.
/// Control characters are left out: no quoted string can have them, and a line must not end here.
pub(super) fn put_quoted(out: &mut String, name: &str, text: &str) {
    put_name(out, name);
    out.push('"');
    if text.bytes().any(|byte| matches!(byte, b'"' | b'\\') || byte.is_ascii_control()) {
        for char in text.chars().filter(|char| !char.is_ascii_control()) {
            if matches!(char, '"' | '\\') {
                out.push('\\');
            }
            out.push(char);
        }
    } else {
        out.push_str(text);
    }
    out.push('"');
}

/// As [`put_quoted`], for a token.
pub(super) fn put_token(out: &mut String, name: &str, token: &str) {
    put_name(out, name);
    out.push_str(token);
}

fn put_name(out: &mut String, name: &str) {
    out.push_str(if out.ends_with("Digest") { " " } else { ", " });
    out.push_str(name);
    out.push('=');
}

/// What has not been read.
struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    /// Past white space; says whether there was any.
    fn blanks(&mut self) -> bool {
        let rest = self.rest.trim_start_matches([' ', '\t']);
        let any = rest.len() != self.rest.len();
        self.rest = rest;
        any
    }

    /// Past `char` and the white space around it, if it is the next one.
    fn separator(&mut self, char: char) -> bool {
        self.blanks();
        let Some(rest) = self.rest.strip_prefix(char) else {
            return false;
        };
        self.rest = rest;
        self.blanks();
        true
    }

    fn token(&mut self) -> Result<&'a str, Malformed> {
        // What is no ASCII is no token, so this ends where a character does.
        let end = self.rest.bytes().position(|byte| !is_token(byte)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        if token.is_empty() {
            return Err(Malformed::Syntax);
        }
        self.rest = rest;
        Ok(token)
    }

    /// A quoted string, whose first quote has been seen.
    fn quoted(&mut self) -> Result<Cow<'a, str>, Malformed> {
        let inner = self.rest.strip_prefix('"').ok_or(Malformed::Quote)?;
        // Nearly all are plain up to their end.
        let special = |byte: u8| matches!(byte, b'"' | b'\\') || byte.is_ascii_control();
        let plain = inner.bytes().position(special).and_then(|at| inner.split_at_checked(at));
        if let Some((text, rest)) = plain
            && let Some(rest) = rest.strip_prefix('"')
        {
            self.rest = rest;
            return Ok(text.into());
        }
        let mut unescaped: Option<String> = None;
        let mut chars = inner.char_indices();
        while let Some((at, char)) = chars.next() {
            let char = match char {
                '"' => {
                    let (text, rest) = inner.split_at(at);
                    self.rest = rest.strip_prefix('"').unwrap_or(rest);
                    return Ok(unescaped.map_or(text.into(), Cow::Owned));
                }
                '\\' => {
                    unescaped.get_or_insert_with(|| inner[..at].to_owned());
                    let (_, escaped) = chars.next().ok_or(Malformed::Quote)?;
                    escaped
                }
                char => char,
            };
            if char.is_ascii_control() && char != '\t' {
                return Err(Malformed::Syntax);
            }
            if let Some(text) = &mut unescaped {
                text.push(char);
            }
        }
        Err(Malformed::Quote)
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'.' | b'!' | b'%' | b'*' | b'_' | b'+' | b'`' | b'\'' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(value: &[u8]) -> Result<Option<Vec<(String, String)>>, Malformed> {
        let mut list = Vec::new();
        let digest = read(value, |name, value| {
            list.push((name.to_owned(), value.into_owned()));
            Ok(())
        })?;
        Ok(digest.then_some(list))
    }

    #[track_caller]
    fn reads(value: &str, want: &[(&str, &str)]) {
        let want = want.iter().map(|(name, value)| (String::from(*name), String::from(*value)));
        assert_eq!(all(value.as_bytes()), Ok(Some(want.collect())), "{value}");
    }

    #[test]
    fn what_is_read() {
        reads("Digest a=b", &[("a", "b")]);
        reads("digest\t a = b ,c=\"d\"", &[("a", "b"), ("c", "d")]);
        reads(r#"  DIGEST a="x, y=\"z\\\t" , b="" "#, &[("a", r#"x, y="z\t"#), ("b", "")]);
        reads("Digest a=\"J\u{e4}s\u{f8}n\"", &[("a", "J\u{e4}s\u{f8}n")]);
        reads("Digest a=1,a=2", &[("a", "1"), ("a", "2")]);
        for other in ["Basic YWxpY2U6c2VjcmV0", "Bearer a.b=c", "Digestive a=b", "Basic"] {
            assert_eq!(all(other.as_bytes()), Ok(None), "{other}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (value, why) in [
            ("", Malformed::Syntax),
            (" ", Malformed::Syntax),
            ("=", Malformed::Syntax),
            ("Digest", Malformed::Syntax),
            ("Digest ", Malformed::Syntax),
            ("Digest,a=b", Malformed::Syntax),
            ("Digest a", Malformed::Syntax),
            ("Digest a=", Malformed::Syntax),
            ("Digest =b", Malformed::Syntax),
            ("Digest a=b,", Malformed::Syntax),
            ("Digest a=b,,c=d", Malformed::Syntax),
            ("Digest a=b c=d", Malformed::Syntax),
            ("Digest a=b;c=d", Malformed::Syntax),
            ("Digest a=\"b\"c", Malformed::Syntax),
            ("Digest a=\"b\u{1}\"", Malformed::Syntax),
            ("Digest a=\"b\\\u{a}\"", Malformed::Syntax),
            ("Digest a=\"b\r\n \"", Malformed::Syntax),
            ("Digest a=sip:b", Malformed::Syntax),
            ("Digest a=\"b", Malformed::Quote),
            ("Digest a=\"b\\\"", Malformed::Quote),
            ("Digest a=\"b\\", Malformed::Quote),
        ] {
            assert_eq!(all(value.as_bytes()), Err(why), "{value:?}");
        }
        assert_eq!(all(b"Digest a=\"\xe4\""), Err(Malformed::NotUtf8));
        let many = |count: usize| format!("Digest {}", vec!["a=b"; count].join(","));
        assert_eq!(all(many(MAX_PARAMS).as_bytes()).unwrap().unwrap().len(), MAX_PARAMS);
        assert_eq!(all(many(MAX_PARAMS + 1).as_bytes()), Err(Malformed::TooMany));
    }

    proptest! {
        #[test]
        fn what_is_quoted_comes_back(text in "\\PC*", token in "[a-z.0-9]{1,8}") {
            let mut out = String::from("Digest");
            put_quoted(&mut out, "a", &text);
            put_token(&mut out, "b", &token);
            reads(&out, &[("a", &text), ("b", &token)]);
        }

        #[test]
        fn a_line_never_ends_in_quotes(text in any::<String>()) {
            let mut out = String::from("Digest");
            put_quoted(&mut out, "a", &text);
            prop_assert!(!out.contains(['\r', '\n']));
            prop_assert!(all(out.as_bytes()).is_ok());
        }

        #[test]
        fn nothing_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = all(&bytes);
            bytes.splice(0..0, *b"Digest a=\"");
            let _ = all(&bytes);
        }
    }
}
