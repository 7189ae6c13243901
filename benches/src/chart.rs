//! The chart: a bar for each row, as long as its packets per second.

use std::fmt::Write as _;

use crate::report::Row;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 130.0;
const RIGHT: f64 = 130.0;
const BAR: f64 = 22.0;
const STEP: f64 = 32.0;
const TOP: f64 = 54.0;

/// The rows that have packets per second, as SVG.
pub(crate) fn svg(rows: &[Row], machine: &str) -> String {
    let rows: Vec<(&Row, f64)> = rows.iter().filter_map(|row| Some((row, row.pps?))).collect();
    let most = rows.iter().map(|(_, pps)| *pps).fold(1.0, f64::max);
    let height = TOP + STEP * rows.len() as f64 + 30.0;
    let scale = (WIDTH - LEFT - RIGHT) / most;
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" fill=\"#222222\">Packets per second, one CPU, \
         veth, native XDP</text>\n\
         <text x=\"12\" y=\"40\" font-size=\"11\" fill=\"#666666\">{}</text>",
        escape(machine)
    );
    for (i, (row, pps)) in rows.iter().enumerate() {
        let y = TOP + STEP * i as f64;
        let middle = y + BAR / 2.0 + 4.5;
        let ours = row.target.is_some() || !matches!(row.name.as_str(), "drop" | "reflect" | "l4");
        let colour = if ours { "#2f6db5" } else { "#b8bec6" };
        let share = row.of_reflector.map_or(String::new(), |s| format!(" ({:.0} %)", s * 100.0));
        let width = pps * scale;
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\" fill=\"#222222\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{middle}\" fill=\"#222222\">{:.2} M/s{share}</text>",
            LEFT - 8.0,
            escape(&row.name),
            LEFT + width + 8.0,
            pps / 1e6,
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"12\" y=\"{}\" font-size=\"11\" fill=\"#666666\">In brackets: share of a plain \
         reflector that is fed the same frames.</text>\n</svg>",
        height - 10.0
    );
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_packets_have_no_bar() {
        let mut row = Row::new("a<b", 1.0, 1, None);
        let bare = svg(std::slice::from_ref(&row), "m");
        row.pps = Some(1e6);
        let full = svg(&[row], "m & n");
        assert_eq!(full.matches("<rect").count(), bare.matches("<rect").count() + 1);
        assert!(full.contains("a&lt;b") && full.contains("m &amp; n"));
    }
}
