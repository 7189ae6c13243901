//! What the engines do differently.

use std::fmt::Debug;

use sqlx::error::DatabaseError;

use super::sql::Table;

/// One engine.
pub(super) trait Dialect: Debug + Send + Sync {
    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// The URL as sqlx wants it, or what is wrong with it.
    fn url(&self, url: &str) -> Result<String, String>;

    /// What each new connection runs first.
    fn session(&self) -> &'static [&'static str];

    /// The steps that make our tables, oldest first. They never change; new ones are added at the end.
    fn migrations(&self) -> &'static [&'static str];

    /// What is run before and after the steps, so that two daemons do not run them at once.
    fn migration_lock(&self) -> (&'static str, &'static str);

    /// The `number`th parameter, from 1.
    fn placeholder(&self, number: usize) -> String;

    /// A parameter of text that becomes a time.
    fn time_placeholder(&self, number: usize) -> String {
        self.placeholder(number)
    }

    /// A name in quotes. It holds no quotes of its own, [`super::Name`] sees to that.
    fn quote(&self, name: &str) -> String;

    /// An expression as text.
    fn text(&self, expression: &str) -> String {
        format!("CAST({expression} AS TEXT)")
    }

    /// A time as text: `YYYY-MM-DD HH:MM:SS.ffffff`.
    fn time_text(&self, expression: &str) -> String {
        self.text(expression)
    }

    /// What follows an INSERT so that a row with the same `key` is replaced.
    fn or_update(&self, key: &str, columns: &[&str]) -> String {
        let set: Vec<String> = columns
            .iter()
            .filter(|column| **column != key)
            .map(|column| format!("{column} = excluded.{column}"))
            .collect();
        format!(" ON CONFLICT ({key}) DO UPDATE SET {}", set.join(", "))
    }

    /// What follows an INSERT so that a row with the same `key` stays as it is.
    fn or_ignore(&self, key: &str) -> String {
        format!(" ON CONFLICT ({key}) DO NOTHING")
    }

    /// A query and its parameters that counts the indexes that begin with a column. A view counts as one:
    /// what is below it cannot be told.
    fn index_on(&self, table: &Table, column: &str) -> (&'static str, Vec<Option<String>>);

    /// The statement that makes an index.
    fn create_index(&self, index: &str, table: &Table, column: &str) -> String {
        let (index, column) = (self.quote(index), self.quote(column));
        format!("CREATE INDEX {index} ON {} ({column});", self.quoted(table))
    }

    /// A table's name in quotes, with its schema if it has one.
    fn quoted(&self, table: &Table) -> String {
        let name = self.quote(table.name());
        table
            .schema()
            .map_or_else(|| name.clone(), |schema| format!("{}.{name}", self.quote(schema)))
    }

    /// Whether an error is about the values, so that the same change would fail again for ever.
    fn is_about_values(&self, error: &dyn DatabaseError) -> bool {
        // SQLSTATE: data exception, integrity constraint violation, program limit exceeded.
        error
            .code()
            .is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
    }

    /// Whether an error says that a value is in letters that a column cannot hold, so that no row has it.
    fn is_beyond_column(&self, _error: &dyn DatabaseError) -> bool {
        false
    }

    /// Whether an error of the database means that it is going, overloaded or locked, and not that a table
    /// is another than was asked for.
    fn is_away(&self, error: &dyn DatabaseError) -> bool;
}
