//! The chart: a bar for each row, as long as its share of the reflector's packets per second, and a
//! mark where the target is.

use std::fmt::Write as _;

use crate::report::Row;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 120.0;
const RIGHT: f64 = 190.0;
const BAR: f64 = 22.0;
const STEP: f64 = 32.0;
const TOP: f64 = 54.0;

/// The rows that have packets per second, as SVG. The drop is left out: it sends nothing.
pub(crate) fn svg(rows: &[Row], machine: &str) -> String {
    let rows: Vec<(&Row, f64, f64)> = rows
        .iter()
        .filter(|row| row.name != "drop")
        .filter_map(|row| Some((row, row.of_reflector?, row.pps?)))
        .collect();
    let most = rows.iter().map(|(_, share, _)| *share).fold(1.0, f64::max);
    let height = TOP + STEP * rows.len() as f64 + 30.0;
    let scale = (WIDTH - LEFT - RIGHT) / most;
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" fill=\"#222222\">Packets per second, as a share of \
         a plain reflector</text>\n\
         <text x=\"12\" y=\"40\" font-size=\"11\" fill=\"#666666\">{}; veth, native XDP</text>",
        escape(machine)
    );
    for (i, (row, share, pps)) in rows.iter().enumerate() {
        let y = TOP + STEP * i as f64;
        let middle = y + BAR / 2.0 + 4.5;
        let denominator = matches!(row.name.as_str(), "reflect" | "l4");
        let colour = if denominator { "#b8bec6" } else { "#2f6db5" };
        let width = share * scale;
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\" fill=\"#222222\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>",
            LEFT - 8.0,
            escape(&row.name),
        );
        let mut end = LEFT + width;
        if let Some(target) = row.target {
            let x = LEFT + target * scale;
            end = end.max(x);
            let _ = writeln!(
                out,
                "<line x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{}\" stroke=\"#c0392b\" \
                 stroke-width=\"2\"/>",
                y - 4.0,
                y + BAR + 4.0,
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{middle}\" fill=\"#222222\">{:.0} %, {:.2} M/s, {:.0} ns</text>",
            end + 8.0,
            share * 100.0,
            pps / 1e6,
            row.ns,
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"12\" y=\"{}\" font-size=\"11\" fill=\"#666666\">Red: what is to be reached at \
         least. Each row's reflector is fed the same frames.</text>\n</svg>",
        height - 10.0
    );
    out
}

/// Text as it may stand in SVG.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_packets_have_no_bar() {
        let mut row = Row::new("a<b", 1.0, 1, None);
        let bare = svg(std::slice::from_ref(&row), "m");
        (row.pps, row.of_reflector) = (Some(1e6), Some(0.5));
        let full = svg(&[row], "m & n");
        assert_eq!(full.matches("<rect").count(), bare.matches("<rect").count() + 1);
        assert!(full.contains("a&lt;b") && full.contains("m &amp; n"));
    }
}
