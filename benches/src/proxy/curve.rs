//! The chart of a flood: a line for each contender, the share of calls that went well by what strangers send.

use std::fmt::Write as _;

use super::contender::Contender;
use super::flood::Point;
use crate::chart::escape;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 78.0;
const BOTTOM: f64 = 56.0;
/// What stands where the logarithm has no place for zero.
const LEAST: f64 = 1000.0;

const fn colour(contender: Contender) -> &'static str {
    match contender {
        Contender::Native | Contender::NativeUnwatched => "#2f6db5",
        Contender::Generic => "#2a9d6f",
        Contender::Off => "#e09f1f",
        Contender::Kamailio | Contender::KamailioStateless => "#c0392b",
    }
}

/// All points as SVG.
pub(super) fn svg(points: &[Point], machine: &str) -> String {
    let most = points.iter().map(|point| point.pps).fold(LEAST * 10.0, f64::max);
    let decades = (most / LEAST).log10();
    let x = |pps: f64| {
        let at = (pps.max(LEAST) / LEAST).log10() / decades;
        LEFT + at * (WIDTH - LEFT - RIGHT)
    };
    let y = |share: f64| TOP + (1.0 - share) * (HEIGHT - TOP - BOTTOM);
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" fill=\"#222222\">Calls that go well while strangers send</text>\n\
         <text x=\"12\" y=\"40\" font-size=\"11\" fill=\"#666666\">{}</text>",
        escape(machine)
    );
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{0:.1}\" x2=\"{1}\" y2=\"{0:.1}\" stroke=\"#e3e6ea\"/>\n\
             <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\" fill=\"#222222\">{4:.0} %</text>",
            y(share),
            WIDTH - RIGHT,
            LEFT - 6.0,
            y(share) + 4.5,
            share * 100.0
        );
    }
    let mut tick = LEAST;
    while tick <= most {
        let text = match tick {
            t if t <= LEAST => "none".to_owned(),
            t if t < 1e6 => format!("{:.0} k/s", t / 1e3),
            t => format!("{:.0} M/s", t / 1e6),
        };
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#222222\">{text}</text>",
            x(tick),
            HEIGHT - BOTTOM + 20.0
        );
        tick *= 10.0;
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666666\">Packets a second that strangers have sent</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 14.0
    );
    let mut seen: Vec<Contender> = Vec::new();
    for point in points {
        if seen.contains(&point.contender) {
            continue;
        }
        let (colour, at) = (colour(point.contender), LEFT + 180.0 * seen.len() as f64);
        let mut line = String::new();
        for point in points.iter().filter(|other| other.contender == point.contender) {
            let (x, y) = (x(point.pps), y(point.share()));
            let _ = write!(line, "{x:.1},{y:.1} ");
            let _ =
                writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
        }
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <rect x=\"{at}\" y=\"52\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\n\
             <text x=\"{}\" y=\"63\" fill=\"#222222\">{}</text>",
            line.trim_end(),
            at + 18.0,
            escape(point.contender.name())
        );
        seen.push(point.contender);
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_further_right_and_worse_is_lower() {
        let point = |pps, succeeded| Point {
            contender: Contender::Off,
            asked: pps,
            pps,
            calls: 100,
            succeeded,
        };
        let text = svg(&[point(0.0, 100), point(1e5, 0)], "a & b");
        let line = format!("{LEFT:.1},{TOP:.1} {:.1},{:.1}\"", WIDTH - RIGHT, HEIGHT - BOTTOM);
        assert!(text.contains(&line), "{text}");
        assert!(text.contains("a &amp; b"), "{text}");
        assert_eq!(text.matches("<polyline").count(), 1);
    }
}
