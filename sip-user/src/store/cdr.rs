//! Call detail records: what `cdr` holds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::TryStreamExt;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, Row};

use super::binding::cut;
use super::dialect::Dialect;
use super::writer::Refused;
use super::{Error, Store, text};

/// The columns of `cdr`, in the order in which they are bound and read. The database numbers the rows itself,
/// in `id_ha`.
pub(super) const COLUMNS: &[&str] = &[
    "calldate",
    "clid",
    "src",
    "dst",
    "dcontext",
    "channel",
    "dstchannel",
    "lastapp",
    "lastdata",
    "duration",
    "billsec",
    "disposition",
    "amaflags",
    "accountcode",
    "uniqueid",
    "userfield",
    "answerdate",
    "enddate",
    "call_id",
    "sip_code",
    "ending",
];
/// Those that are times.
pub(super) const TIMES: &[&str] = &["calldate", "answerdate", "enddate"];

/// One call, in the columns that Asterisk's users know and a few of SIP's. Texts that are too long are cut.
/// Times are stored in UTC with microseconds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cdr {
    /// When the INVITE came.
    pub calldate: SystemTime,
    /// The caller's name and number, as in From. 80 characters, as the other texts without a number.
    pub clid: String,
    /// The caller's number.
    pub src: String,
    /// The called number.
    pub dst: String,
    /// Asterisk's context; for us the domain that was called.
    pub dcontext: String,
    /// Asterisk's channel; for us the caller's address.
    pub channel: String,
    /// The channel on the other side; for us the PBX or the phone.
    pub dstchannel: String,
    /// Asterisk's last application.
    pub lastapp: String,
    /// Its arguments.
    pub lastdata: String,
    /// Seconds from the INVITE to the end.
    pub duration: u32,
    /// Seconds from the answer to the end.
    pub billsec: u32,
    /// What became of it.
    pub disposition: Disposition,
    /// Asterisk's flags for accounting; 3 is "documentation".
    pub amaflags: i32,
    /// The account. 20 characters.
    pub accountcode: String,
    /// What makes this record one of its kind, over all nodes: 1 to 32 visible ASCII characters. A record
    /// that comes a second time is not stored a second time.
    pub uniqueid: String,
    /// For the user. 255 characters.
    pub userfield: String,
    /// When it was answered.
    pub answerdate: Option<SystemTime>,
    /// When it ended.
    pub enddate: SystemTime,
    /// The Call-ID. 255 characters.
    pub call_id: String,
    /// The final status that the caller got.
    pub sip_code: u16,
    /// Who or what ended it. 45 characters.
    pub ending: String,
}

impl Default for Cdr {
    fn default() -> Self {
        Self {
            calldate: UNIX_EPOCH,
            clid: String::new(),
            src: String::new(),
            dst: String::new(),
            dcontext: String::new(),
            channel: String::new(),
            dstchannel: String::new(),
            lastapp: String::new(),
            lastdata: String::new(),
            duration: 0,
            billsec: 0,
            disposition: Disposition::default(),
            amaflags: 3,
            accountcode: String::new(),
            uniqueid: String::new(),
            userfield: String::new(),
            answerdate: None,
            enddate: UNIX_EPOCH,
            call_id: String::new(),
            sip_code: 0,
            ending: String::new(),
        }
    }
}

/// What became of a call, in Asterisk's words.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Disposition {
    /// It was answered.
    Answered,
    /// It rang, or the caller gave up.
    #[default]
    NoAnswer,
    /// The callee was busy.
    Busy,
    /// It could not be set up.
    Failed,
}

impl Disposition {
    /// As it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "ANSWERED",
            Self::NoAnswer => "NO ANSWER",
            Self::Busy => "BUSY",
            Self::Failed => "FAILED",
        }
    }

    fn read(text: &str) -> Self {
        [Self::Answered, Self::NoAnswer, Self::Busy]
            .into_iter()
            .find(|disposition| disposition.as_str() == text)
            .unwrap_or(Self::Failed)
    }
}

/// Which records are wanted. All conditions hold at once.
#[derive(Clone, Debug, Default)]
pub struct CdrFilter {
    /// Calls that came then or later.
    pub from: Option<SystemTime>,
    /// Calls that came before.
    pub to: Option<SystemTime>,
    /// The caller's number.
    pub src: Option<String>,
    /// The called number.
    pub dst: Option<String>,
    /// At most so many, the latest ones. `None`: all.
    pub limit: Option<u32>,
}

/// A record on its way to the database: its times are text already.
#[derive(Clone, Debug)]
pub(super) struct Record {
    cdr: Box<Cdr>,
    calldate: String,
    answerdate: Option<String>,
    enddate: String,
}

impl Record {
    pub(super) fn new(mut cdr: Cdr) -> Result<Self, Refused> {
        if !(1..=32).contains(&cdr.uniqueid.len())
            || !cdr.uniqueid.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(Refused::Value { field: "uniqueid" });
        }
        for (text, limit) in [
            (&mut cdr.clid, 80),
            (&mut cdr.src, 80),
            (&mut cdr.dst, 80),
            (&mut cdr.dcontext, 80),
            (&mut cdr.channel, 80),
            (&mut cdr.dstchannel, 80),
            (&mut cdr.lastapp, 80),
            (&mut cdr.lastdata, 80),
            (&mut cdr.accountcode, 20),
            (&mut cdr.userfield, 255),
            (&mut cdr.call_id, 255),
            (&mut cdr.ending, 45),
        ] {
            cut(text, limit);
        }
        Ok(Self {
            calldate: time_text(cdr.calldate),
            answerdate: cdr.answerdate.map(time_text),
            enddate: time_text(cdr.enddate),
            cdr: Box::new(cdr),
        })
    }

    pub(super) fn into_cdr(self) -> Cdr {
        *self.cdr
    }

    pub(super) fn uniqueid(&self) -> &str {
        &self.cdr.uniqueid
    }

    pub(super) fn bind<'q>(
        &'q self,
        query: Query<'q, Any, AnyArguments<'q>>,
    ) -> Query<'q, Any, AnyArguments<'q>> {
        let cdr = &self.cdr;
        let seconds = |seconds| i32::try_from(seconds).unwrap_or(i32::MAX);
        query
            .bind(self.calldate.as_str())
            .bind(cdr.clid.as_str())
            .bind(cdr.src.as_str())
            .bind(cdr.dst.as_str())
            .bind(cdr.dcontext.as_str())
            .bind(cdr.channel.as_str())
            .bind(cdr.dstchannel.as_str())
            .bind(cdr.lastapp.as_str())
            .bind(cdr.lastdata.as_str())
            .bind(seconds(cdr.duration))
            .bind(seconds(cdr.billsec))
            .bind(cdr.disposition.as_str())
            .bind(cdr.amaflags)
            .bind(cdr.accountcode.as_str())
            .bind(cdr.uniqueid.as_str())
            .bind(cdr.userfield.as_str())
            .bind(self.answerdate.as_deref())
            .bind(self.enddate.as_str())
            .bind(cdr.call_id.as_str())
            .bind(i32::from(cdr.sip_code))
            .bind(cdr.ending.as_str())
    }
}

impl Store {
    /// Reads records, the earliest call first, one after another. Says how many.
    pub async fn cdrs(&self, filter: &CdrFilter, mut each: impl FnMut(Cdr)) -> Result<u64, Error> {
        let (query, values) = select(self.inner.dialect, filter);
        let mut query = sqlx::query(&query).persistent(false);
        for value in values {
            query = query.bind(value);
        }
        let mut connection = self.reader().await?;
        let mut rows = query.fetch(&mut *connection);
        let mut count = 0;
        while let Some(row) = rows.try_next().await? {
            each(read(&row)?);
            count += 1;
        }
        Ok(count)
    }
}

fn select(dialect: &dyn Dialect, filter: &CdrFilter) -> (String, Vec<String>) {
    let mut values = Vec::new();
    let mut conditions = vec!["1 = 1".to_owned()];
    for (operator, time) in [(">=", filter.from), ("<", filter.to)] {
        if let Some(time) = time {
            values.push(time_text(time));
            let value = dialect.time_placeholder(values.len());
            conditions.push(format!("calldate {operator} {value}"));
        }
    }
    for (column, text) in [("src", &filter.src), ("dst", &filter.dst)] {
        if let Some(text) = text {
            values.push(text.clone());
            conditions.push(format!("{column} = {}", dialect.placeholder(values.len())));
        }
    }
    let list: Vec<String> = COLUMNS
        .iter()
        .map(|column| {
            let column_of = format!("c.{column}");
            if TIMES.contains(column) { dialect.time_text(&column_of) } else { column_of }
        })
        .collect();
    let (list, conditions) = (list.join(", "), conditions.join(" AND "));
    let rows = match filter.limit {
        None => format!("(SELECT * FROM cdr WHERE {conditions})"),
        Some(limit) => format!(
            "(SELECT * FROM cdr WHERE {conditions} ORDER BY calldate DESC, id_ha DESC LIMIT {limit})"
        ),
    };
    (format!("SELECT {list} FROM {rows} AS c ORDER BY c.calldate, c.id_ha"), values)
}

fn read(row: &AnyRow) -> sqlx::Result<Cdr> {
    let needed = |index| text(row, index).map(Option::unwrap_or_default);
    let number = |index| row.try_get::<i32, _>(index);
    let seconds = |index| number(index).map(|n| u32::try_from(n).unwrap_or_default());
    Ok(Cdr {
        calldate: time(&needed(0)?)?,
        clid: needed(1)?,
        src: needed(2)?,
        dst: needed(3)?,
        dcontext: needed(4)?,
        channel: needed(5)?,
        dstchannel: needed(6)?,
        lastapp: needed(7)?,
        lastdata: needed(8)?,
        duration: seconds(9)?,
        billsec: seconds(10)?,
        disposition: Disposition::read(&needed(11)?),
        amaflags: number(12)?,
        accountcode: needed(13)?,
        uniqueid: needed(14)?,
        userfield: needed(15)?,
        answerdate: text(row, 16)?.as_deref().map(time).transpose()?,
        enddate: time(&needed(17)?)?,
        call_id: needed(18)?,
        sip_code: u16::try_from(number(19)?).unwrap_or_default(),
        ending: needed(20)?,
    })
}

/// `YYYY-MM-DD HH:MM:SS.ffffff`, which all engines read. Times outside of 1970 to 9999 become the nearest one.
fn time_text(at: SystemTime) -> String {
    const LAST_SECOND: u64 = 253_402_300_799;
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = UNIX_EPOCH + since.min(Duration::from_secs(LAST_SECOND));
    let text = humantime::format_rfc3339_micros(at).to_string();
    text.trim_end_matches('Z').replace('T', " ")
}

fn time(text: &str) -> sqlx::Result<SystemTime> {
    humantime::parse_rfc3339_weak(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_microseconds() {
        let at = UNIX_EPOCH + Duration::from_micros(1_335_830_400_000_001);
        assert_eq!(time_text(at), "2012-05-01 00:00:00.000001");
        assert_eq!(time(&time_text(at)).unwrap(), at);
        assert_eq!(time_text(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01 00:00:00.000000");
        let late = UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(time_text(late), "9999-12-31 23:59:59.000000");
    }

    #[test]
    fn texts_are_cut_and_ids_refused() {
        let cdr = Cdr { uniqueid: "1".into(), clid: "ñ".repeat(100), ..Cdr::default() };
        let row = Record::new(cdr).unwrap();
        assert_eq!(row.cdr.clid.chars().count(), 80);
        for bad in ["", "with blank", "ñ", &"x".repeat(33)] {
            let cdr = Cdr { uniqueid: bad.to_owned(), ..Cdr::default() };
            assert_eq!(Record::new(cdr).err(), Some(Refused::Value { field: "uniqueid" }));
        }
    }
}
