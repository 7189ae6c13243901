//! `sipline cdr`: records of calls that are over, from the store itself.

use std::time::SystemTime;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{ConfigFile, print, say};
use crate::control::human;
use crate::control::protocol::SHOWN;
use crate::store::{Cdr, CdrFilter, Store};

/// Which records, and how they are shown.
#[derive(Args, Debug)]
pub(super) struct Records {
    #[command(flatten)]
    pub(super) file: ConfigFile,
    /// Calls that came then or later: 2026-01-31, 2026-01-31T12:00:00 (both UTC), or 2h, which is two hours ago.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<SystemTime>,
    /// Calls that came before that.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<SystemTime>,
    /// Calls of this number.
    #[arg(long, value_name = "NUMBER")]
    src: Option<String>,
    /// Calls to this number.
    #[arg(long, value_name = "NUMBER")]
    dst: Option<String>,
    /// The latest ones, so many at most. Without it 1000, and all with --csv.
    #[arg(long, value_name = "COUNT")]
    limit: Option<u32>,
    /// Answer with comma separated values (RFC 4180), the first line names the columns.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// Says whether it was done.
pub(super) fn main(records: Records, json: bool) -> Result<bool> {
    let file = &records.file.config;
    let Some((_, settings)) = super::with_store(file, "records", json)? else { return Ok(false) };
    let shown = u32::try_from(SHOWN).unwrap_or(u32::MAX);
    let limit = records.limit.or((!records.csv).then_some(shown));
    let Records { from, to, src, dst, csv, .. } = records;
    let filter = CdrFilter { from, to, src, dst, limit };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = Store::new(&settings)?;
        store.prepare().await?;
        if csv {
            say(&line(COLUMNS.map(|(name, _)| name.to_owned())));
            store.cdrs(&filter, |cdr| say(&line(COLUMNS.map(|(_, of)| plain(&of(&cdr)))))).await?;
            return Ok(true);
        }
        let mut all = Vec::new();
        store.cdrs(&filter, |cdr| all.push(cdr)).await?;
        if json {
            let list = all.iter().map(|cdr| {
                let fields = COLUMNS.map(|(name, of)| (name.to_owned(), of(cdr)));
                Value::Object(fields.into_iter().collect())
            });
            print(&json!({ "cdrs": list.collect::<Vec<_>>() }));
        } else {
            say(&table(&all));
            if limit.is_some_and(|limit| all.len() == limit as usize) {
                say(&format!("the latest {}: --limit shows more\n", all.len()));
            }
        }
        Ok(true)
    })
}

/// A column of the table `cdr`: its name, and what a record has there.
type Column = (&'static str, fn(&Cdr) -> Value);

const COLUMNS: [Column; 19] = [
    ("calldate", |cdr| time(cdr.calldate).into()),
    ("clid", |cdr| cdr.clid.clone().into()),
    ("src", |cdr| cdr.src.clone().into()),
    ("dst", |cdr| cdr.dst.clone().into()),
    ("dcontext", |cdr| cdr.dcontext.clone().into()),
    ("channel", |cdr| cdr.channel.clone().into()),
    ("dstchannel", |cdr| cdr.dstchannel.clone().into()),
    ("lastapp", |cdr| cdr.lastapp.clone().into()),
    ("lastdata", |cdr| cdr.lastdata.clone().into()),
    ("duration", |cdr| cdr.duration.into()),
    ("billsec", |cdr| cdr.billsec.into()),
    ("disposition", |cdr| cdr.disposition.as_str().into()),
    ("accountcode", |cdr| cdr.accountcode.clone().into()),
    ("uniqueid", |cdr| cdr.uniqueid.clone().into()),
    ("answerdate", |cdr| cdr.answerdate.map(time).into()),
    ("enddate", |cdr| time(cdr.enddate).into()),
    ("call_id", |cdr| cdr.call_id.clone().into()),
    ("sip_code", |cdr| cdr.sip_code.into()),
    ("ending", |cdr| cdr.ending.clone().into()),
];

fn table(all: &[Cdr]) -> String {
    let rows = all.iter().map(|cdr| {
        let started = humantime::format_rfc3339_seconds(cdr.calldate).to_string();
        let code = cdr.sip_code.to_string();
        let (duration, billsec) = (cdr.duration.to_string(), cdr.billsec.to_string());
        [&*started, &cdr.src, &cdr.dst, &cdr.channel, &cdr.dstchannel, cdr.disposition.as_str()]
            .into_iter()
            .chain([&*code, &*duration, &*billsec, &*cdr.ending])
            .map(str::to_owned)
            .collect()
    });
    let head = [
        "STARTED",
        "SRC",
        "DST",
        "FROM",
        "TO",
        "DISPOSITION",
        "CODE",
        "SECONDS",
        "TALKED",
        "ENDED BY",
    ];
    let head = head.map(str::to_owned).to_vec();
    human::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_micros(at).to_string()
}

/// A value without the quotes of JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One record of RFC 4180: quoted is what would be taken for something else.
fn line<const N: usize>(fields: [String; N]) -> String {
    let quoted = fields.map(|field| match field.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field,
    });
    quoted.join(",") + "\r\n"
}

/// A time of day in UTC, a day, or how long ago.
fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        let now = SystemTime::now();
        let then = now.checked_sub(ago).filter(|then| *then >= SystemTime::UNIX_EPOCH);
        return then.ok_or_else(|| "that is before 1970".to_owned());
    }
    let whole = if text.len() == 10 { format!("{text} 00:00:00") } else { text.to_owned() };
    humantime::parse_rfc3339_weak(&whole).map_err(|_| {
        "write 2026-01-31, 2026-01-31T12:00:00 (UTC), or 2h for two hours ago".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments() {
        let at = |text| moment(text).unwrap();
        assert_eq!(time(at("2026-01-31")), "2026-01-31T00:00:00.000000Z");
        assert_eq!(at("2026-01-31T12:30:00"), at("2026-01-31 12:30:00Z"));
        let then = at("2h");
        assert_eq!(then.elapsed().unwrap().as_secs() / 60, 120);
        for bad in ["", "yesterday", "31.1.2026", "2026-13-01", "9999999999y"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_caller_writes_stays_in_its_field() {
        let texts = ["a,b", "say \"hi\"", "two\r\nlines", "plain", ""];
        let want = "\"a,b\",\"say \"\"hi\"\"\",\"two\r\nlines\",plain,\r\n";
        assert_eq!(line(texts.map(str::to_owned)), want);
    }

    #[test]
    fn a_record_in_each_form() {
        let cdr = Cdr {
            calldate: SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001),
            src: "101".into(),
            dst: "200".into(),
            channel: "10.10.1.2:5062".into(),
            dstchannel: "pbx1".into(),
            duration: 12,
            billsec: 10,
            sip_code: 200,
            ending: "caller".into(),
            ..Cdr::default()
        };
        let fields = COLUMNS.map(|(_, of)| plain(&of(&cdr)));
        assert_eq!(fields[0], "2023-11-14T22:13:20.000001Z");
        assert_eq!((&*fields[10], &*fields[14]), ("10", ""));
        let text = table(std::slice::from_ref(&cdr));
        assert!(text.contains("10.10.1.2:5062  pbx1  NO ANSWER    200   12"), "{text}");
    }
}
