//! `test`: everything, from the scanner's unit tests to calls through the kernel.

use std::{
    io::{BufRead, BufReader, Write},
    process::Stdio,
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    process::{self, is_root},
    setup,
};

/// Suites of `tests/tests` that go by their names alone.
const SUITES: [&str; 1] = ["chaos"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `chaos` for that suite alone, else passed on to `cargo test`, such as `--package sip-ebpf` or a test's name
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    if !is_root() {
        bail!(
            "the tests need root: they load programs into the kernel and make network namespaces"
        );
    }
    setup::run(&setup::Args::default())?;
    build::run(&build::Args::default())?;

    let mut command = process::cargo();
    command.arg("test").env("SIPLINE_BIN", build::sipline());
    if args.cargo.is_empty() {
        command.args(["--workspace", "--no-fail-fast"]);
    } else if let [first, rest @ ..] = &args.cargo[..]
        && SUITES.contains(&first.as_str())
    {
        command.args(["--package", "sipline-tests", "--no-fail-fast", "--test", first]).args(rest);
    } else {
        command.args(&args.cargo);
    }
    eprintln!("  $ {}", process::line(&command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;

    // Everything is passed on as it comes; the closing lines are added up.
    let mut total = Total::default();
    let output = child.stdout.take().context("no output of cargo")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what cargo prints")?;
        total.add(&line);
        // A closed pipe at our output is no reason to stop testing.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
    let status = child.wait().context("cannot wait for cargo")?;

    println!(
        "\ntest: {} passed, {} failed, {} ignored in {} suites, {:.0} s",
        total.passed,
        total.failed,
        total.ignored,
        total.suites,
        start.elapsed().as_secs_f32(),
    );
    for name in &total.failures {
        println!("  failed: {name}");
    }
    if !status.success() {
        bail!("tests failed");
    }
    if total.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// The closing lines of all suites, added up.
#[derive(Debug, Default, Eq, PartialEq)]
struct Total {
    suites: u32,
    passed: u32,
    failed: u32,
    ignored: u32,
    failures: Vec<String>,
}

impl Total {
    fn add(&mut self, line: &str) {
        if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        self.suites += 1;
        // "ok. 5 passed; 0 failed; 1 ignored; 0 measured; ..."
        for part in rest.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<u32>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Total;

    #[test]
    fn closing_lines_are_added_up() {
        let mut total = Total::default();
        for line in [
            "test scan::one ... ok",
            "test scan::two ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 4 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ] {
            total.add(line);
        }
        let failures = vec!["scan::two".to_owned()];
        assert_eq!(total, Total { suites: 2, passed: 5, failed: 1, ignored: 2, failures });
    }
}
