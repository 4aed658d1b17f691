//! A percentile plot as SVG: percentiles on the x axis, each further nine as wide as the one before, latency on the y
//! axis.

use std::fmt::Write;

use crate::latency::Latencies;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 46.0;
/// Title, and each line of the subtitle.
const HEAD: f64 = 46.0;
const SUBTITLE_ROW: f64 = 17.0;
/// The plot itself; the legend is between it and the head, where it hides no curve.
const PLOT: f64 = 400.0;
const BOTTOM: f64 = 64.0;
const LEGEND_ROW: f64 = 20.0;
/// The sample of a curve and the space around it, and what a letter takes at most.
const LEGEND_SAMPLE: f64 = 66.0;
const LETTER: f64 = 7.6;
/// Points of a curve between two nines.
const STEPS_PER_DECADE: usize = 100;
/// Nines shown at most: 99.99999 %.
const MOST_DECADES: u32 = 7;
/// With values further apart than this, a linear axis would press the low ones into a line.
const LINEAR_SPAN: f64 = 20.0;
/// Colours that people who see few colours can tell apart.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9", "#7f5539"];
/// For those who see none, and for print.
const DASHES: [&str; 4] = ["none", "8 3", "2 3", "10 3 2 3"];
/// Letters of a line of the subtitle.
const SUBTITLE_LETTERS: usize = 118;

/// Colour and dashes of a curve: the same pair comes again after 32 curves.
fn stroke(number: usize) -> (&'static str, &'static str) {
    let colour = COLOURS.get(number % COLOURS.len()).copied().unwrap_or("#000000");
    let dashes = (number + number / COLOURS.len()) % DASHES.len();
    (colour, DASHES.get(dashes).copied().unwrap_or("none"))
}

/// One curve with the name that the legend gives it.
pub struct Curve<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it shows.
    pub latencies: &'a Latencies,
}

/// The plot as a whole SVG file, or `None` when no curve has a value.
pub fn percentiles(title: &str, subtitle: &str, curves: &[Curve<'_>]) -> Option<String> {
    let curves: Vec<&Curve<'_>> = curves.iter().filter(|curve| curve.latencies.count() > 0).collect();
    let most = curves.iter().map(|curve| curve.latencies.count()).max()?;
    let x = XAxis::for_count(most);
    let points: Vec<Vec<(f64, f64)>> = curves.iter().map(|curve| points(curve.latencies, &x)).collect();
    let values = || points.iter().flatten().map(|point| point.1);
    let y = YAxis::for_values(values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    let names: Vec<&str> = curves.iter().map(|curve| curve.name).collect();
    let lines = wrapped(subtitle, SUBTITLE_LETTERS);
    let legend_top = HEAD + SUBTITLE_ROW * lines.len() as f64;
    let (legend, rows) = legend(&names, legend_top);
    let top = legend_top + rows as f64 * LEGEND_ROW + 12.0;
    let mut svg = String::new();
    head(&mut svg, title, &lines, top + PLOT + BOTTOM);
    svg.push_str(&legend);
    // Writing to a String can't fail, here and below.
    let _ = writeln!(svg, r#"<g transform="translate(0 {top})">"#);
    grid(&mut svg, &x, &y);
    for (number, curve) in points.iter().enumerate() {
        path(&mut svg, curve, &x, &y, stroke(number));
    }
    svg.push_str("</g>\n</svg>\n");
    Some(svg)
}

/// Distance from 100 %, logarithmic: 0 % is at 0, 90 % at 1, 99 % at 2.
struct XAxis {
    decades: u32,
}

impl XAxis {
    /// Wide enough that the longest of `count` values is on it.
    fn for_count(count: u64) -> Self {
        Self { decades: ((count.max(1) as f64).log10().ceil() as u32).clamp(2, MOST_DECADES) }
    }

    fn at(&self, decade: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * decade / f64::from(self.decades)
    }

    /// Where the lines are, in decades, with what is written there.
    fn ticks(&self) -> Vec<(f64, String)> {
        let mut ticks = vec![(0.0, "0 %".to_owned()), (quantile_to_decade(0.5), "50 %".to_owned())];
        for decade in 1..=self.decades {
            let digits = decade.saturating_sub(2) as usize;
            let percent = 100.0 * decade_to_quantile(f64::from(decade));
            ticks.push((f64::from(decade), format!("{percent:.digits$} %")));
        }
        ticks
    }
}

fn quantile_to_decade(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

fn decade_to_quantile(decade: f64) -> f64 {
    1.0 - 10f64.powf(-decade)
}

/// Latency in microseconds.
struct YAxis {
    low_us: f64,
    high_us: f64,
    is_log: bool,
    ticks_us: Vec<f64>,
}

impl YAxis {
    fn for_values(least_us: f64, most_us: f64) -> Self {
        let (least_us, most_us) = (least_us.max(0.001), most_us.max(0.001));
        if most_us / least_us > LINEAR_SPAN {
            Self::logarithmic(least_us, most_us)
        } else {
            Self::linear(most_us)
        }
    }

    fn linear(most_us: f64) -> Self {
        let step = round_step(most_us / 6.0);
        let steps = (most_us / step).ceil().max(1.0);
        let ticks_us = (0..=steps as u32).map(|number| f64::from(number) * step).collect();
        Self { low_us: 0.0, high_us: steps * step, is_log: false, ticks_us }
    }

    fn logarithmic(least_us: f64, most_us: f64) -> Self {
        let all = (-3..=10).flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(decade)));
        let all: Vec<f64> = all.collect();
        let low_us = all.iter().copied().filter(|tick| *tick <= least_us).fold(0.001, f64::max);
        let high_us = all.iter().copied().find(|tick| *tick >= most_us).unwrap_or(most_us);
        let ticks_us = all.into_iter().filter(|tick| (low_us..=high_us).contains(tick)).collect();
        Self { low_us, high_us, is_log: true, ticks_us }
    }

    /// From the top of the plot.
    fn at(&self, value_us: f64) -> f64 {
        let share = if self.is_log {
            (value_us.max(self.low_us) / self.low_us).ln() / (self.high_us / self.low_us).ln()
        } else {
            value_us / self.high_us
        };
        PLOT * (1.0 - share)
    }
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|round| *round >= step)
        .unwrap_or(10.0 * power)
}

/// A latency as people read it.
fn latency(value_us: f64) -> String {
    let (value, unit) = match value_us {
        us if us >= 1e6 => (us / 1e6, "s"),
        us if us >= 1e3 => (us / 1e3, "ms"),
        us => (us, "µs"),
    };
    // Steps are 1, 2 and 5 times powers of ten: their multiples need no more.
    let text = format!("{value:.3}");
    format!("{} {unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// (decades, microseconds), ending with the longest value at the place of its own percentile.
fn points(latencies: &Latencies, x: &XAxis) -> Vec<(f64, f64)> {
    let last = (latencies.count() as f64).log10().min(f64::from(x.decades));
    let steps = (last * STEPS_PER_DECADE as f64) as usize;
    let decades = (0..=steps).map(|step| step as f64 / STEPS_PER_DECADE as f64);
    let mut points: Vec<(f64, f64)> =
        decades.map(|decade| (decade, latencies.quantile_us(decade_to_quantile(decade)))).collect();
    points.push((last, latencies.summary().max_us));
    points
}

fn head(svg: &mut String, title: &str, subtitle: &[String], height: f64) {
    let _ = write!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="{LEFT}" y="30" font-size="18" font-weight="bold">{}</text>
"##,
        escaped(title)
    );
    for (number, line) in subtitle.iter().enumerate() {
        let y = HEAD + 5.0 + SUBTITLE_ROW * number as f64;
        let _ = writeln!(svg, r##"<text x="{LEFT}" y="{y}" fill="#555555">{}</text>"##, escaped(line));
    }
}

fn grid(svg: &mut String, x: &XAxis, y: &YAxis) {
    let right = WIDTH - RIGHT;
    for (decade, label) in x.ticks() {
        let at = x.at(decade);
        let _ = writeln!(
            svg,
            r##"<line x1="{at:.1}" y1="0" x2="{at:.1}" y2="{PLOT}" stroke="#dddddd"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{label}</text>"##,
            PLOT + 19.0
        );
    }
    for tick_us in &y.ticks_us {
        let at = y.at(*tick_us);
        let _ = writeln!(
            svg,
            r##"<line x1="{LEFT}" y1="{at:.1}" x2="{right}" y2="{at:.1}" stroke="#dddddd"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"##,
            LEFT - 7.0,
            at + 4.5,
            latency(*tick_us)
        );
    }
    let scale = if y.is_log { "latency, logarithmic" } else { "latency" };
    let (middle_x, middle_y) = ((LEFT + right) / 2.0, PLOT / 2.0);
    let _ = writeln!(
        svg,
        r##"<rect x="{LEFT}" y="0" width="{:.1}" height="{PLOT}" fill="none" stroke="#777777"/>
<text x="{middle_x:.1}" y="{:.1}" text-anchor="middle">percentile: share of the requests that took no longer</text>
<text transform="translate(18 {middle_y:.1}) rotate(-90)" text-anchor="middle">{scale}</text>"##,
        right - LEFT,
        PLOT + 46.0
    );
}

fn path(svg: &mut String, points: &[(f64, f64)], x: &XAxis, y: &YAxis, (colour, dashes): (&str, &str)) {
    svg.push_str(r#"<path d=""#);
    for (number, (decade, value_us)) in points.iter().enumerate() {
        let command = if number == 0 { 'M' } else { 'L' };
        let _ = write!(svg, "{command}{:.1} {:.1}", x.at(*decade), y.at(*value_us));
    }
    let _ = writeln!(
        svg,
        r#"" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round" stroke-dasharray="{}"/>"#,
        dashes
    );
}

/// Samples with names, in as many rows as they need; how many rows that is.
fn legend(names: &[&str], top: f64) -> (String, usize) {
    let mut svg = String::new();
    let (mut x, mut row) = (LEFT, 0);
    for (number, name) in names.iter().enumerate() {
        let (colour, dashes) = stroke(number);
        let width = LEGEND_SAMPLE + LETTER * name.chars().count() as f64;
        if x > LEFT && x + width > WIDTH - RIGHT {
            (x, row) = (LEFT, row + 1);
        }
        let y = top + LEGEND_ROW * (row as f64 + 0.5);
        let _ = writeln!(
            svg,
            r#"<line x1="{x:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}" stroke="{colour}" stroke-width="3" stroke-dasharray="{}"/><text x="{:.1}" y="{:.1}">{}</text>"#,
            x + 34.0,
            dashes,
            x + 42.0,
            y + 4.5,
            escaped(name)
        );
        x += width;
    }
    (svg, row + 1)
}

/// The text in lines of at most so many letters, broken between words.
fn wrapped(text: &str, letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= letters => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-6
    }

    #[test]
    fn each_nine_is_as_wide_as_the_one_before() {
        let x = XAxis::for_count(100_000);
        assert_eq!(x.decades, 5);
        let widths: Vec<f64> = (1..=5).map(|d| x.at(f64::from(d)) - x.at(f64::from(d) - 1.0)).collect();
        assert!(widths.iter().all(|width| near(*width, widths[0])), "{widths:?}");
        assert!(near(x.at(0.0), LEFT) && near(x.at(5.0), WIDTH - RIGHT));
        let labels: Vec<String> = x.ticks().into_iter().map(|tick| tick.1).collect();
        assert_eq!(labels, ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"]);
        for quantile in [0.0, 0.5, 0.9, 0.999] {
            assert!(near(decade_to_quantile(quantile_to_decade(quantile)), quantile));
        }
        assert_eq!(XAxis::for_count(1).decades, 2);
        assert_eq!(XAxis::for_count(u64::MAX).decades, MOST_DECADES);
    }

    #[test]
    fn the_y_axis_holds_all_values_between_round_ticks() {
        let linear = YAxis::for_values(200.0, 1234.0);
        assert!(!linear.is_log && near(linear.high_us, 1500.0), "{}", linear.high_us);
        assert!(near(linear.at(0.0), PLOT) && near(linear.at(1500.0), 0.0));
        assert!(near(linear.at(750.0), PLOT / 2.0));
        let log = YAxis::for_values(130.0, 90_000.0);
        assert!(log.is_log && near(log.low_us, 100.0) && near(log.high_us, 100_000.0));
        assert!(near(log.at(100.0), PLOT) && near(log.at(100_000.0), 0.0));
        let decade = log.at(100.0) - log.at(1000.0);
        assert!(near(decade, log.at(1000.0) - log.at(10_000.0)));
        assert!(log.ticks_us.iter().any(|tick| near(*tick, 5_000.0)));
    }

    #[test]
    fn latencies_are_labelled_in_the_unit_that_fits() {
        let cases = [(0.0, "0 µs"), (50.0, "50 µs"), (1500.0, "1.5 ms"), (20_000.0, "20 ms"), (2e6, "2 s")];
        for (us, label) in cases {
            assert_eq!(latency(us), label);
        }
        assert!(near(round_step(0.3), 0.5) && near(round_step(6.0), 10.0) && near(round_step(20.0), 20.0));
    }

    #[test]
    fn long_subtitles_are_wrapped_and_strokes_do_not_repeat_soon() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("unbreakable a", 4), ["unbreakable", "a"]);
        let all: std::collections::BTreeSet<_> = (0..32).map(stroke).collect();
        assert_eq!(all.len(), 32);
    }

    #[test]
    fn the_legend_takes_the_rows_that_it_needs() {
        assert_eq!(legend(&["node", "floor"], 0.0).1, 1);
        let long = "a name that is forty letters long, about";
        let (svg, rows) = legend(&[long; 6], 0.0);
        assert_eq!((rows, svg.matches("<line").count()), (3, 6));
    }

    #[test]
    fn a_curve_ends_with_its_longest_value_and_the_text_is_escaped() {
        let (mut fast, mut slow) = (Latencies::new().unwrap(), Latencies::new().unwrap());
        for us in 1..=1000u64 {
            fast.record_ns(us * 1000);
            slow.record_ns(us * 100_000);
        }
        let x = XAxis::for_count(1000);
        let points = points(&fast, &x);
        let last = points.last().unwrap();
        assert!(near(last.0, 3.0) && (last.1 - 1000.0).abs() < 2.0, "{last:?}");
        assert!(points.windows(2).all(|pair| pair[0].1 <= pair[1].1), "percentiles never fall");
        let curves =
            [Curve { name: "a <b> & c", latencies: &fast }, Curve { name: "slow", latencies: &slow }];
        let svg = percentiles("title \"x\"", "below", &curves).unwrap();
        assert_eq!(svg.matches("<path").count(), 2);
        assert!(svg.contains("a &lt;b&gt; &amp; c") && svg.contains("title &quot;x&quot;"), "{svg}");
        assert!(svg.contains("latency, logarithmic") && svg.contains("99.9 %"), "{svg}");
        let empty = Latencies::new().unwrap();
        assert!(percentiles("", "", &[Curve { name: "", latencies: &empty }]).is_none());
    }
}
