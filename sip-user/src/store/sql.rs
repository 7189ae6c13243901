//! Pieces of SQL text that depend on the engine: names and statements for many rows.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::dialect::Dialect;

/// The longest name that every engine takes (PostgreSQL's limit), in bytes.
const LONGEST: usize = 63;

/// The name of a table or column, as somebody has configured it: letters, digits, `_`, `-`, `$` and blanks
/// within. A table may have a database (MySQL) or schema (PostgreSQL) in front, with a dot. It is always
/// written in quotes, so that keywords may be names too.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct Name(String);

impl Name {
    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a name was refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BadName(String);

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} cannot be the name of a table or column: use 1 to {LONGEST} letters, digits, _, -, $ and \
             blanks within; a table may be DATABASE.TABLE",
            self.0
        )
    }
}

impl std::error::Error for BadName {}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(name: &str) -> Result<Self, BadName> {
        let fits = |part: &str| {
            (1..=LONGEST).contains(&part.len())
                && part.trim() == part
                && part.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '$' | ' '))
        };
        if name.split('.').count() <= 2 && name.split('.').all(fits) {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadName(name.to_owned()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = BadName;

    fn try_from(name: String) -> Result<Self, BadName> {
        name.parse()
    }
}

/// A table's name in its parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a>(pub(super) &'a Name);

impl<'a> Table<'a> {
    pub(super) fn schema(self) -> Option<&'a str> {
        self.0.0.split_once('.').map(|(schema, _)| schema)
    }

    pub(super) fn name(self) -> &'a str {
        self.0.0.split_once('.').map_or(self.0.as_str(), |(_, name)| name)
    }
}

/// How many rows a statement may have. Few sizes, so that each connection prepares few statements, and near
/// enough to each other that a batch is few statements too. Larger ones would save little, and keep a CPU that SIP
/// wants for as long as it takes to write one down; SQLite takes 32,766 parameters.
const SIZES: [usize; 3] = [16, 4, 1];

/// One statement in each of the sizes.
#[derive(Debug)]
pub(super) struct Sized {
    texts: BTreeMap<usize, String>,
}

impl Sized {
    /// `INSERT` into a table; the columns in `times` are times. `tail` follows the values.
    pub(super) fn insert(
        dialect: &dyn Dialect,
        table: &str,
        columns: &[&str],
        times: &[&str],
        tail: &str,
    ) -> Self {
        Self::new(|rows| {
            let mut number = 0;
            let mut row = || {
                let values: Vec<String> = columns
                    .iter()
                    .map(|column| {
                        number += 1;
                        if times.contains(column) {
                            dialect.time_placeholder(number)
                        } else {
                            dialect.placeholder(number)
                        }
                    })
                    .collect();
                format!("({})", values.join(", "))
            };
            let values: Vec<String> = (0..rows).map(|_| row()).collect();
            let (columns, values) = (columns.join(", "), values.join(", "));
            format!("INSERT INTO {table} ({columns}) VALUES {values}{tail}")
        })
    }

    /// `DELETE` by a key.
    pub(super) fn delete(dialect: &dyn Dialect, table: &str, key: &str) -> Self {
        Self::new(|rows| {
            let keys: Vec<String> = (1..=rows).map(|n| dialect.placeholder(n)).collect();
            format!("DELETE FROM {table} WHERE {key} IN ({})", keys.join(", "))
        })
    }

    fn new(text: impl Fn(usize) -> String) -> Self {
        Self { texts: SIZES.iter().map(|size| (*size, text(*size))).collect() }
    }

    /// Cuts a list into pieces that have a statement.
    pub(super) fn pieces<'a, T>(
        &'a self,
        mut rows: &'a [T],
    ) -> impl Iterator<Item = (&'a str, &'a [T])> {
        std::iter::from_fn(move || {
            let (size, text) = self.texts.iter().rev().find(|(size, _)| **size <= rows.len())?;
            let (piece, rest) = rows.split_at(*size);
            rows = rest;
            Some((text.as_str(), piece))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{mysql::MySql, postgres::Postgres, sqlite::Sqlite};
    use super::*;

    #[test]
    fn names_are_checked_and_quoted() {
        for good in ["sipusers", "sip-users", "pass word", "select", "asterisk.sipusers", "usuário"]
        {
            assert_eq!(good.parse::<Name>().map(|name| name.0), Ok(good.to_owned()));
        }
        let long = "x".repeat(LONGEST + 1);
        for bad in
            ["", ".", "a.", ".a", "a.b.c", " a", "a\"b", "a`b", "a]b", "a;b", "a'b", "a\0", &long]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        let name: Name = "asterisk.sip users".parse().unwrap();
        assert_eq!(Sqlite.quoted(&Table(&name)), "[asterisk].[sip users]");
        assert_eq!(MySql.quoted(&Table(&name)), "`asterisk`.`sip users`");
        assert_eq!(Postgres.quoted(&Table(&name)), "\"asterisk\".\"sip users\"");
    }

    #[test]
    fn lists_are_cut_into_few_sizes() {
        let statement = Sized::delete(&Postgres, "t", "id");
        let rows: Vec<u32> = (0..47).collect();
        let pieces: Vec<usize> = statement.pieces(&rows).map(|(_, piece)| piece.len()).collect();
        assert_eq!(pieces, [16, 16, 4, 4, 4, 1, 1, 1]);
        let insert = Sized::insert(&Postgres, "t", &["a", "at"], &["at"], "");
        assert_eq!(
            insert.pieces(&[0]).next().unwrap().0,
            "INSERT INTO t (a, at) VALUES ($1, CAST($2 AS TIMESTAMP))"
        );
    }
}
