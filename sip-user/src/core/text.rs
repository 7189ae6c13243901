//! Texts that are short as a rule, and are kept in great numbers.

use std::fmt;
use std::ops::Deref;

/// The longest text, in bytes, that lies in the [`Text`] itself.
const WITHIN: usize = 22;

/// A text of which there are many. What is short lies in its 24 bytes; only a longer one has memory of its own,
/// which costs a pointer, what the allocator adds to it, and a hole in the heap when it goes.
#[derive(Clone, Eq, PartialEq)]
pub struct Text(Place);

#[derive(Clone, Eq, PartialEq)]
enum Place {
    Within { len: u8, bytes: [u8; WITHIN] },
    Apart(Box<str>),
}

impl Text {
    /// The text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Place::Within { len, bytes } => {
                // It was made from a text.
                str::from_utf8(bytes.get(..usize::from(*len)).unwrap_or_default())
                    .unwrap_or_default()
            }
            Place::Apart(text) => text,
        }
    }

    fn within(text: &str) -> Option<Place> {
        let mut bytes = [0; WITHIN];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Place::Within { len: u8::try_from(text.len()).ok()?, bytes })
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Self::within(text).unwrap_or_else(|| Place::Apart(text.into())))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Self::within(&text).unwrap_or_else(|| Place::Apart(text.into())))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_ones_are_the_same_texts() {
        assert_eq!(size_of::<Text>(), 24);
        for len in [0, 1, 21, 22, 23, 300] {
            let text: String = ('a'..='z').cycle().take(len).collect();
            let (one, other) = (Text::from(&*text), Text::from(text.clone()));
            assert_eq!((one.as_str(), &*other), (&*text, &*text));
            assert_eq!(one, other);
            assert_ne!(one, Text::from(format!("{text}x")));
            assert_eq!(matches!(one.0, Place::Within { .. }), len <= 22);
            assert_eq!(format!("{one:?}"), format!("{text:?}"));
        }
        assert_eq!(Text::from("zwölf Bücher, 3 €").as_str(), "zwölf Bücher, 3 €");
    }
}
