//! The rows, as a table, as JSON, and in the documentation.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::chart;

/// One path or denominator.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Its name.
    pub(crate) name: String,
    /// Nanoseconds per packet by TEST_RUN.
    pub(crate) ns: f64,
    /// Packets per second over veth.
    pub(crate) pps: Option<f64>,
    /// Share of the reflector's packets per second.
    pub(crate) of_reflector: Option<f64>,
    /// Instructions that the verifier went through for its program.
    pub(crate) verified_instructions: u32,
    /// The share that was to be reached.
    #[serde(skip)]
    pub(crate) target: Option<f64>,
}

impl Row {
    pub(crate) fn new(name: &str, ns: f64, verified: u32, target: Option<f64>) -> Self {
        Self {
            name: name.to_owned(),
            ns,
            pps: None,
            of_reflector: None,
            verified_instructions: verified,
            target,
        }
    }
}

/// The middle one; of two, their mean.
pub(crate) fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    match samples.len() {
        0 => 0.0,
        n if n % 2 == 1 => samples[middle],
        _ => (samples[middle - 1] + samples[middle]) / 2.0,
    }
}

/// For people, and for Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    out.push_str("| path            |   ns |   Mpps | of reflector | target | verified |\n");
    out.push_str("| --------------- | ---: | -----: | -----------: | -----: | -------: |\n");
    for row in rows {
        let pps = row.pps.map_or("-".into(), |pps| format!("{:.2}", pps / 1e6));
        let share = row.of_reflector.map_or("-".into(), |share| format!("{:.0} %", share * 100.0));
        let target = row.target.map_or("-".into(), |share| format!("{:.0} %", share * 100.0));
        // Writing into a String cannot fail.
        let _ = writeln!(
            out,
            "| {:<15} | {:>4.0} | {pps:>6} | {share:>12} | {target:>6} | {:>8} |",
            row.name, row.ns, row.verified_instructions,
        );
    }
    out
}

pub(crate) fn write_json(file: &Path, rows: &[Row]) -> Result<()> {
    let text = serde_json::to_string_pretty(rows).context("cannot write the rows as JSON")?;
    fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
}

/// Replaces chart and table in the documentation.
pub(crate) fn write_docs(rows: &[Row], machine: &str, runs: u32) -> Result<()> {
    write_chart("performance.svg", &chart::svg(rows, machine))?;
    replace("measured", &format!("{machine}; medians of {runs} runs.\n\n{}", table(rows)))
}

/// Writes a chart of the documentation.
pub(crate) fn write_chart(name: &str, svg: &str) -> Result<()> {
    let file = docs().join(name);
    fs::write(&file, svg).with_context(|| format!("cannot write {}", file.display()))
}

/// Replaces what stands in docs/performance.md between the marks of that name.
pub(crate) fn replace(mark: &str, measured: &str) -> Result<()> {
    let (begin, end) = (format!("<!-- {mark}: begin -->"), format!("<!-- {mark}: end -->"));
    let page = docs().join("performance.md");
    let text =
        fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let (before, rest) = text.split_once(&begin).with_context(|| format!("no {begin}"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("no {end}"))?;
    fs::write(&page, format!("{before}{begin}\n{measured}{end}{after}"))
        .with_context(|| format!("cannot write {}", page.display()))
}

fn docs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }
}
