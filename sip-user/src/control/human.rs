//! Answers of the daemon as tables for people.

use std::fmt::Write;
use std::time::Duration;

use super::protocol::{Backend, Outcome, Stats};

/// The outcome as text that ends with a new line.
pub fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Backends(list) => backends(&list.backends),
        Outcome::Reloaded(reloaded) => {
            let mut text = format!("reloaded {}\n", reloaded.file);
            for key in &reloaded.restart_needed {
                let _ = writeln!(text, "{key} has changed: it counts after a restart");
            }
            text + &backends(&reloaded.backends)
        }
        Outcome::Stats(all) => stats(all),
    }
}

fn backends(list: &[Backend]) -> String {
    let mut rows =
        vec![row(["ID", "ADDRESS", "WEIGHT", "STATE", "FOR", "CALLS", "LAST PROBE", "REASON"])];
    for b in list {
        let probe = match (&b.last_probe, b.round_trip_us) {
            (Some(probe), Some(us)) if probe.bytes().all(|b| b.is_ascii_digit()) => {
                format!("{probe}, {:.1} ms", us as f64 / 1000.0)
            }
            (Some(probe), _) => probe.clone(),
            (None, _) => "-".to_owned(),
        };
        rows.push(row([
            &b.id,
            &b.address.to_string(),
            &b.weight.to_string(),
            &b.state,
            &age(b.for_ms),
            &(b.kernel_calls + b.daemon_calls).to_string(),
            &probe,
            b.reason.as_deref().unwrap_or("-"),
        ]));
    }
    table(&rows)
}

fn stats(all: &Stats) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "sipline {}, up for {}", all.version, age(all.uptime_ms));
    if all.stopping {
        let _ = writeln!(text, "stopping: new calls are refused");
    }
    let _ = writeln!(text, "XDP {}: {}", all.xdp.mode, all.xdp.description);
    for interface in &all.xdp.interfaces {
        let _ = writeln!(text, "  {} {}", interface.interface, interface.mode);
    }
    let _ = writeln!(
        text,
        "messages: {} by the kernel, {} by the daemon ({:.1} % by the kernel)\n",
        all.share.kernel_messages,
        all.share.daemon_messages,
        all.share.kernel * 100.0
    );
    let mut rows = vec![row(["PBX", "STATE", "CALLS BY KERNEL", "CALLS BY DAEMON"])];
    for b in &all.backends {
        rows.push(row([&b.id, &b.state, &b.kernel_calls.to_string(), &b.daemon_calls.to_string()]));
    }
    text += &table(&rows);
    text.push('\n');
    let mut rows = vec![row(["COUNTER", "KERNEL", "DAEMON"])];
    let names: std::collections::BTreeSet<_> = all.kernel.keys().chain(all.daemon.keys()).collect();
    for name in names {
        let (kernel, daemon) = (all.kernel.get(name), all.daemon.get(name));
        if kernel.copied().unwrap_or(0) + daemon.copied().unwrap_or(0) > 0 {
            let show = |n: Option<&u64>| n.map_or("-".to_owned(), u64::to_string);
            rows.push(row([name, &show(kernel), &show(daemon)]));
        }
    }
    text += &table(&rows);
    for socket in all.sockets.iter().filter(|socket| socket.dropped > 0) {
        let _ = writeln!(text, "{}: {} datagrams lost, too slow", socket.address, socket.dropped);
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A time in the largest unit that leaves a number to read.
fn age(milliseconds: u64) -> String {
    let seconds = Duration::from_millis(milliseconds).as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AdminState;
    use crate::control::protocol::Backends;

    #[test]
    fn a_table_lines_up() {
        let backend = Backend {
            id: "pbx1".into(),
            slot: 3,
            address: "10.10.2.2:5060".parse().unwrap(),
            weight: 1,
            state: "inactive".into(),
            reason: Some("port unreachable".into()),
            since: 0,
            for_ms: 12_345,
            admin: AdminState::Active,
            origin: "file".into(),
            last_probe: Some("port unreachable".into()),
            round_trip_us: Some(1_234),
            failures: 5,
            kernel_calls: 7,
            daemon_calls: 1,
        };
        let well = Backend {
            id: "pbx2".into(),
            state: "active".into(),
            reason: None,
            last_probe: Some("200".into()),
            ..backend.clone()
        };
        let text = outcome(&Outcome::Backends(Backends { backends: vec![backend, well] }));
        let want = "\
ID    ADDRESS         WEIGHT  STATE     FOR   CALLS  LAST PROBE        REASON
pbx1  10.10.2.2:5060  1       inactive  12 s  8      port unreachable  port unreachable
pbx2  10.10.2.2:5060  1       active    12 s  8      200, 1.2 ms       -
";
        assert_eq!(text, want);
    }

    #[test]
    fn ages() {
        for (ms, text) in [(999, "0 s"), (119_000, "119 s"), (120_000, "2 min"), (7_200_000, "2 h")]
        {
            assert_eq!(age(ms), text);
        }
        assert_eq!(age(3 * 86_400_000), "3 d");
    }
}
