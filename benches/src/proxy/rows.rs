//! What was measured, as a table and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::server::Proxy;

/// A quantity, of one proxy or of both.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) sipline: Option<f64>,
    pub(super) kamailio: Option<f64>,
    /// Of whom the generator could not ask more: theirs is a lower bound.
    pub(super) lower_bounds: Vec<Proxy>,
}

impl Row {
    /// sipline's share of what Kamailio has.
    fn ratio(&self) -> Option<f64> {
        self.sipline.zip(self.kamailio).map(|(ours, theirs)| ours / theirs)
    }
}

/// Puts a value into the row of that name, which is made when it is not there.
pub(super) fn put<'a>(
    rows: &'a mut Vec<Row>,
    name: &str,
    unit: &'static str,
    proxy: Proxy,
    measured: f64,
) -> &'a mut Row {
    let at = rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
        rows.push(Row {
            name: name.to_owned(),
            unit,
            sipline: None,
            kamailio: None,
            lower_bounds: Vec::new(),
        });
        rows.len() - 1
    });
    match proxy {
        Proxy::Sipline => rows[at].sipline = Some(measured),
        Proxy::Kamailio => rows[at].kamailio = Some(measured),
    }
    &mut rows[at]
}

/// For people, and for Markdown.
pub(super) fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(4).max(4);
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = writeln!(out, "| {:<width$} | unit  |  sipline | Kamailio | ratio |", "what");
    let _ = writeln!(out, "| {:-<width$} | ----- | -------: | -------: | ----: |", "");
    for row in rows {
        let number = |proxy, value: Option<f64>| {
            let bound = if row.lower_bounds.contains(&proxy) { "> " } else { "" };
            match value {
                Some(value) if value < 100.0 => format!("{bound}{value:.1}"),
                Some(value) => format!("{bound}{value:.0}"),
                None => "-".to_owned(),
            }
        };
        let ratio = row.ratio().map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let _ = writeln!(
            out,
            "| {:<width$} | {:<5} | {:>8} | {:>8} | {ratio:>5} |",
            row.name,
            row.unit,
            number(Proxy::Sipline, row.sipline),
            number(Proxy::Kamailio, row.kamailio),
        );
    }
    out
}

/// Rows of `name`, `sipline_UNIT`, `kamailio_UNIT` and `ratio`; what was not measured is null.
pub(super) fn write_json(file: &Path, rows: &[Row]) -> Result<()> {
    let rows: Vec<Value> = rows.iter().map(json).collect();
    let text = serde_json::to_string_pretty(&rows).context("cannot write the rows as JSON")?;
    fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
}

fn json(row: &Row) -> Value {
    let unit = match row.unit {
        "us" => "us",
        "bytes" => "bytes",
        _ => "rate",
    };
    let mut map = Map::new();
    map.insert("name".into(), json!(row.name));
    map.insert(format!("sipline_{unit}"), json!(row.sipline));
    map.insert(format!("kamailio_{unit}"), json!(row.kamailio));
    map.insert("ratio".into(), json!(row.ratio()));
    if !row.lower_bounds.is_empty() {
        let names = row.lower_bounds.iter().map(|proxy| format!("{proxy:?}").to_lowercase());
        map.insert("lower_bounds".into(), names.collect());
    }
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_proxies_share_a_row() {
        let mut rows = Vec::new();
        put(&mut rows, "a", "us", Proxy::Kamailio, 200.0);
        put(&mut rows, "b", "1/s", Proxy::Kamailio, 7.0);
        put(&mut rows, "a", "us", Proxy::Sipline, 50.0);
        assert_eq!(
            json(&rows[0]),
            json!({ "name": "a", "sipline_us": 50.0, "kamailio_us": 200.0, "ratio": 0.25 })
        );
        assert_eq!(json(&rows[1])["sipline_rate"], Value::Null);
        assert!(table(&rows).contains("| a    | us    |     50.0 |      200 |  0.25 |"));
    }
}
