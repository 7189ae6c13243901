//! MariaDB and MySQL.

use sqlx::error::DatabaseError;
use sqlx::mysql::MySqlDatabaseError;

use super::dialect::Dialect;
use super::sql::Table;

#[derive(Debug)]
pub(super) struct MySql;

impl Dialect for MySql {
    fn name(&self) -> &'static str {
        "MariaDB/MySQL"
    }

    fn url(&self, url: &str) -> Result<String, String> {
        Ok(url.to_owned())
    }

    fn session(&self) -> &'static [&'static str] {
        // sqlx has set the time zone to UTC and the character set to utf8mb4.
        &["SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_TRANS_TABLES'), \
           SESSION innodb_lock_wait_timeout = 5"]
    }

    fn migrations(&self) -> &'static [&'static str] {
        &[include_str!("migrations/mysql/1.sql")]
    }

    fn migration_lock(&self) -> (&'static str, &'static str) {
        ("DO GET_LOCK('sipline_schema', 30)", "DO RELEASE_LOCK('sipline_schema')")
    }

    fn placeholder(&self, _number: usize) -> String {
        "?".into()
    }

    fn quote(&self, name: &str) -> String {
        format!("`{name}`")
    }

    fn text(&self, expression: &str) -> String {
        format!("CAST({expression} AS CHAR)")
    }

    fn or_update(&self, key: &str, columns: &[&str]) -> String {
        let set: Vec<String> = columns
            .iter()
            .filter(|column| **column != key)
            .map(|column| format!("{column} = VALUES({column})"))
            .collect();
        format!(" ON DUPLICATE KEY UPDATE {}", set.join(", "))
    }

    fn or_ignore(&self, key: &str) -> String {
        // INSERT IGNORE would swallow other errors too.
        format!(" ON DUPLICATE KEY UPDATE {key} = {key}")
    }

    fn index_on(&self, table: &Table, column: &str) -> (&'static str, Vec<Option<String>>) {
        let schema = table.schema().map(str::to_owned);
        let name = Some(table.name().to_owned());
        (
            "SELECT (SELECT COUNT(*) FROM information_schema.statistics \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND column_name = ? \
             AND seq_in_index = 1) \
             + (SELECT COUNT(*) FROM information_schema.views \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?)",
            vec![schema.clone(), name.clone(), Some(column.to_owned()), schema, name],
        )
    }

    fn is_about_values(&self, error: &dyn DatabaseError) -> bool {
        // Incorrect string value: has no SQLSTATE of its own in MySQL.
        number(error) == Some(1366)
            || error.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
    }

    fn is_beyond_column(&self, error: &dyn DatabaseError) -> bool {
        // Illegal mix of collations, of two, three or more texts; in newer versions also: cannot convert.
        matches!(number(error), Some(1267 | 1270 | 1271 | 3854 | 3988))
    }

    fn is_away(&self, error: &dyn DatabaseError) -> bool {
        // No such table, no such column.
        !matches!(number(error), Some(1146 | 1054))
    }
}

fn number(error: &dyn DatabaseError) -> Option<u16> {
    error.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}
