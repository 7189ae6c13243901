//! SQLite: in the daemon itself, a file, the default.

use std::str::FromStr;

use sqlx::error::DatabaseError;
use sqlx::sqlite::SqliteConnectOptions;

use super::dialect::Dialect;
use super::sql::Table;

#[derive(Debug)]
pub(super) struct Sqlite;

impl Dialect for Sqlite {
    fn name(&self) -> &'static str {
        "SQLite"
    }

    fn url(&self, url: &str) -> Result<String, String> {
        let (url, _) = url.split_once('?').unwrap_or((url, ""));
        let options = SqliteConnectOptions::from_str(url).map_err(|error| error.to_string())?;
        let path = options.get_filename();
        if url.contains(":memory:") || path.file_name().is_none() {
            return Err("sqlite wants a file, as in sqlite:///var/lib/sipline/sipline.db".into());
        }
        // Made here and not by SQLite, so that nobody else can read the users' secrets. Its other files
        // get the same rights.
        super::make_file(path)?;
        Ok(format!("{url}?mode=rw"))
    }

    fn session(&self) -> &'static [&'static str] {
        // With a write-ahead log readers do not wait for the writer. NORMAL: a commit may be lost with the
        // power, but not with the process.
        &["PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL"]
    }

    fn migrations(&self) -> &'static [&'static str] {
        &[include_str!("migrations/sqlite/1.sql")]
    }

    fn migration_lock(&self) -> (&'static str, &'static str) {
        ("BEGIN IMMEDIATE", "COMMIT")
    }

    fn placeholder(&self, number: usize) -> String {
        format!("?{number}")
    }

    fn quote(&self, name: &str) -> String {
        // Not double quotes: with those SQLite takes a column that is not there for a string, and the name
        // of the column would be everybody's password.
        format!("[{name}]")
    }

    fn index_on(&self, table: &Table, column: &str) -> (&'static str, Vec<Option<String>>) {
        (
            "SELECT (SELECT COUNT(*) FROM pragma_index_list(?2, ?1) AS l \
             JOIN pragma_index_info(l.name, ?1) AS i \
             WHERE l.partial = 0 AND i.seqno = 0 AND i.name = ?3 COLLATE NOCASE) \
             + (SELECT COUNT(*) FROM sqlite_master WHERE type = 'view' AND name = ?2 COLLATE NOCASE)",
            vec![
                Some(table.schema().unwrap_or("main").to_owned()),
                Some(table.name().to_owned()),
                Some(column.to_owned()),
            ],
        )
    }

    fn create_index(&self, index: &str, table: &Table, column: &str) -> String {
        // Here the schema stands before the index, and the table has none.
        let schema = table.schema().map(|schema| format!("{}.", self.quote(schema)));
        format!(
            "CREATE INDEX {}{} ON {} ({});",
            schema.unwrap_or_default(),
            self.quote(index),
            self.quote(table.name()),
            self.quote(column)
        )
    }

    fn is_about_values(&self, error: &dyn DatabaseError) -> bool {
        // SQLITE_TOOBIG, SQLITE_CONSTRAINT, SQLITE_MISMATCH
        matches!(primary_code(error), Some(18..=20))
    }

    fn is_away(&self, error: &dyn DatabaseError) -> bool {
        // SQLITE_ERROR is what a missing table or column gives.
        primary_code(error) != Some(1)
    }
}

/// SQLite's result code, without what extends it.
fn primary_code(error: &dyn DatabaseError) -> Option<i32> {
    error.code()?.parse::<i32>().ok().map(|code| code & 0xff)
}
