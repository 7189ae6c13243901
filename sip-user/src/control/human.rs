//! Answers of the daemon as tables for people.

use std::fmt::Write;
use std::time::Duration;

use super::protocol::{Backend, Bans, Calls, Outcome, RegistrarStats, Registrations, Stats};

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
        Outcome::Registrations(list) => registrations(list),
        Outcome::Calls(list) => calls(list),
        Outcome::Bans(list) => bans(list),
        Outcome::Forgotten(user) => format!("{} is looked up anew\n", user.forgotten),
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

fn registrations(list: &Registrations) -> String {
    let mut text = match list.removed {
        Some(count) => format!("removed {count}\n"),
        None => String::new(),
    };
    let mut rows = vec![row(["USER", "CONTACT", "RECEIVED", "EXPIRES IN", "Q", "USER AGENT"])];
    for r in &list.registrations {
        let q = r.q.map_or("-".to_owned(), |q| format!("{:.3}", f64::from(q) / 1000.0));
        rows.push(row([
            &r.user,
            &r.contact,
            &r.received.map_or("-".to_owned(), |received| received.to_string()),
            &age(r.expires_in.saturating_mul(1000)),
            &q,
            r.user_agent.as_deref().unwrap_or("-"),
        ]));
    }
    text += &table(&rows);
    let shown = list.registrations.len();
    if shown < list.total {
        let _ = writeln!(text, "{shown} of {}: --limit shows more", list.total);
    }
    // They are the user's, so the same for each of his contacts.
    let legs = list.registrations.first().map_or(&[][..], |r| &r.pbxs);
    if !legs.is_empty() {
        let mut rows = vec![row(["PBX", "HAS HIM FOR", "LAST ANSWER", "FAILURES"])];
        for leg in legs {
            rows.push(row([
                &leg.id,
                &leg.registered_for.map_or("-".to_owned(), |s| age(s.saturating_mul(1000))),
                &leg.last.map_or("-".to_owned(), |code| code.to_string()),
                &leg.failures.to_string(),
            ]));
        }
        text.push('\n');
        text += &table(&rows);
    }
    text
}

fn calls(list: &Calls) -> String {
    let head = ["ID", "FROM", "TO", "STATE", "FOR", "CALLER", "PBX", "CALLEE", "CALL-ID"];
    let mut rows = vec![row(head)];
    for call in &list.calls {
        rows.push(row([
            &call.id,
            &call.from,
            &call.to,
            &call.state,
            &age(call.state_for_ms),
            &call.caller.to_string(),
            call.pbx.as_deref().unwrap_or("-"),
            &call.callee.map_or("-".to_owned(), |callee| callee.to_string()),
            &call.call_id,
        ]));
    }
    let mut text = table(&rows);
    if list.calls.len() < list.total {
        let _ = writeln!(text, "{} of {}: --limit shows more", list.calls.len(), list.total);
    }
    text
}

fn bans(list: &Bans) -> String {
    let mut rows = vec![row(["NETWORK", "REASON", "ENDS IN", "NOTE"])];
    for ban in &list.bans {
        let whole = ban.network.prefix_len() == ban.network.max_prefix_len();
        let network = match whole {
            true => ban.network.addr().to_string(),
            false => ban.network.to_string(),
        };
        let ends = ban.expires_in.map_or("-".to_owned(), |s| age(s.saturating_mul(1000)));
        rows.push(row([&network, &ban.reason, &ends, &ban.note]));
    }
    let mut text = table(&rows);
    if list.bans.len() < list.total {
        let _ = writeln!(text, "{} of {}: --limit shows more", list.bans.len(), list.total);
    }
    text
}

fn registrar(all: &RegistrarStats) -> String {
    let store = match all.connected {
        true => all.store.clone(),
        false => format!("{}, away", all.store),
    };
    let mut text = format!(
        "registrar: {} users, {} contacts, {} transactions; {} waiting for the store ({store}), {} \
         changes unwritten\n\n",
        all.users, all.contacts, all.transactions, all.waiting, all.unwritten
    );
    let mut rows = vec![row(["COUNTER", "REGISTRAR"])];
    let counted = all.counters.iter().filter(|(_, count)| **count > 0);
    rows.extend(counted.map(|(name, count)| row([name, &count.to_string()])));
    text += &table(&rows);
    text
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
    let banned: Vec<_> = all.bans.iter().filter(|(_, count)| **count > 0).collect();
    if !banned.is_empty() {
        let counts = banned.iter().map(|(reason, count)| format!("{count} {reason}"));
        let _ = writeln!(text, "bans so far: {}", counts.collect::<Vec<_>>().join(", "));
    }
    if let Some(all) = &all.registrar {
        text.push('\n');
        text += &registrar(all);
    }
    for socket in all.sockets.iter().filter(|socket| socket.dropped > 0) {
        let _ = writeln!(text, "{}: {} datagrams lost, too slow", socket.address, socket.dropped);
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Rows with their columns in line; the first has the heads.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
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
    use crate::control::protocol::{Backends, Ban, CallInProgress, Leg, Registration};

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
    fn registrations_of_one_user() {
        let one = Registration {
            user: "anna@example.com".into(),
            contact: "sip:anna@10.10.1.2:5062".into(),
            received: Some("198.51.100.7:4000".parse().unwrap()),
            local: "10.10.0.1:5060".parse().unwrap(),
            expires_in: 3600,
            q: Some(500),
            path: None,
            instance: None,
            reg_id: None,
            user_agent: Some("phone".into()),
            call_id: "c".into(),
            cseq: 1,
            pbxs: vec![
                Leg { id: "pbx1".into(), registered_for: Some(60), last: Some(200), failures: 0 },
                Leg { id: "pbx2".into(), registered_for: None, last: None, failures: 3 },
            ],
        };
        let list = Registrations { registrations: vec![one], total: 7, removed: Some(2) };
        let want = "\
removed 2
USER              CONTACT                  RECEIVED           EXPIRES IN  Q      USER AGENT
anna@example.com  sip:anna@10.10.1.2:5062  198.51.100.7:4000  60 min      0.500  phone
1 of 7: --limit shows more

PBX   HAS HIM FOR  LAST ANSWER  FAILURES
pbx1  60 s         200          0
pbx2  -            -            3
";
        assert_eq!(outcome(&Outcome::Registrations(list)), want);
    }

    #[test]
    fn calls_that_go_on() {
        let one = CallInProgress {
            id: "1700000000.1-00c0ffee".into(),
            from: "anna".into(),
            to: "200".into(),
            state: "ringing".into(),
            state_for_ms: 3_500,
            started: 1_700_000_000,
            for_ms: 4_000,
            pbx: Some("pbx1".into()),
            caller: "10.10.1.2:5062".parse().unwrap(),
            callee: None,
            call_id: "c1".into(),
        };
        let want = "\
ID                     FROM  TO   STATE    FOR  CALLER          PBX   CALLEE  CALL-ID
1700000000.1-00c0ffee  anna  200  ringing  3 s  10.10.1.2:5062  pbx1  -       c1
1 of 2: --limit shows more
";
        assert_eq!(outcome(&Outcome::Calls(Calls { calls: vec![one], total: 2 })), want);
    }

    #[test]
    fn who_is_banned() {
        let ban = Ban {
            network: "203.0.113.5/32".parse().unwrap(),
            reason: "scanner".into(),
            note: "friendly-scanner".into(),
            since: 0,
            expires_in: Some(3600),
        };
        let hand = Ban {
            network: "2001:db8::/32".parse().unwrap(),
            reason: "hand".into(),
            note: String::new(),
            expires_in: None,
            ..ban.clone()
        };
        let want = "\
NETWORK        REASON   ENDS IN  NOTE
203.0.113.5    scanner  60 min   friendly-scanner
2001:db8::/32  hand     -
2 of 3: --limit shows more
";
        assert_eq!(outcome(&Outcome::Bans(Bans { bans: vec![ban, hand], total: 3 })), want);
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
