//! PostgreSQL.

use sqlx::error::DatabaseError;

use super::dialect::Dialect;
use super::sql::Table;

#[derive(Debug)]
pub(super) struct Postgres;

impl Dialect for Postgres {
    fn name(&self) -> &'static str {
        "PostgreSQL"
    }

    fn url(&self, url: &str) -> Result<String, String> {
        Ok(url.to_owned())
    }

    fn session(&self) -> &'static [&'static str] {
        &["SET lock_timeout = '5s'; SET client_min_messages = warning"]
    }

    fn migrations(&self) -> &'static [&'static str] {
        &[include_str!("migrations/postgres/1.sql")]
    }

    fn migration_lock(&self) -> (&'static str, &'static str) {
        // Any number will do that everybody who migrates uses: "sipline" in ASCII.
        ("BEGIN; SELECT pg_advisory_xact_lock(32486997287693925)", "COMMIT")
    }

    fn placeholder(&self, number: usize) -> String {
        format!("${number}")
    }

    fn time_placeholder(&self, number: usize) -> String {
        format!("CAST(${number} AS TIMESTAMP)")
    }

    fn quote(&self, name: &str) -> String {
        format!("\"{name}\"")
    }

    fn time_text(&self, expression: &str) -> String {
        format!("to_char({expression}, 'YYYY-MM-DD HH24:MI:SS.US')")
    }

    fn index_on(&self, table: &Table, column: &str) -> (&'static str, Vec<Option<String>>) {
        (
            "SELECT COUNT(*) FROM pg_class c \
             LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL \
             LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0] \
             WHERE c.oid = to_regclass($1) AND (c.relkind IN ('v', 'f') OR a.attname = $2)",
            vec![Some(self.quoted(table)), Some(column.to_owned())],
        )
    }

    fn is_beyond_column(&self, error: &dyn DatabaseError) -> bool {
        // A database that is not in UTF-8: it has no such character.
        matches!(error.code().as_deref(), Some("22P05" | "22021"))
    }

    fn is_away(&self, error: &dyn DatabaseError) -> bool {
        // No such table, no such column.
        !matches!(error.code().as_deref(), Some("42P01" | "42703"))
    }
}
