//! A chart: two axes, lines, and a legend beside the plot, where it can cover nothing.

use super::{Axis, escaped};
use std::fmt::Write;

/// Left of the plot: the axis's label and its ticks' labels.
const LEFT_PX: f64 = 96.0;

/// Above it: half a line of a tick's label.
const TOP_PX: f64 = 12.0;

/// Below it: ticks' labels and the axis's.
const BOTTOM_PX: f64 = 52.0;

/// Between the plot and the legend, and from the legend to the edge.
const LEGEND_GAP_PX: f64 = 20.0;

/// A legend's line, and the sample of a stroke in it.
const LEGEND_LINE_PX: f64 = 20.0;
const SAMPLE_PX: f64 = 30.0;

/// Width of a character of the labels, which browsers' sans-serif fonts stay below on average.
const CHARACTER_PX: f64 = 7.0;

/// Least distance between the labels of two ticks.
const LABEL_GAP_PX: f64 = 10.0;

/// Colours that differ in lightness as well as in hue, all readable on white.
const COLOURS: [&str; 8] = ["#0060a8", "#d1490c", "#00805a", "#a8438f", "#3d9bd4", "#b07a00", "#6b4fc0", "#7a3b16"];

/// The floor's, and that of warnings.
const GREY: &str = "#606060";
const RED: &str = "#c00000";

/// How a line is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroke {
    /// One of a row of strokes that can be told apart.
    Numbered(usize),
    /// The device's floor; several are told apart by their dashes.
    Floor(usize),
    /// What has failed.
    Warning,
}

impl Stroke {
    fn colour(self) -> &'static str {
        match self {
            Stroke::Numbered(number) => COLOURS[number % COLOURS.len()],
            Stroke::Floor(_) => GREY,
            Stroke::Warning => RED,
        }
    }

    fn dashes(self) -> &'static str {
        const AFTER_ALL_COLOURS: [&str; 4] = ["", "9 4", "14 4 3 4", "4 4"];
        const FLOORS: [&str; 4] = ["2 3", "7 3 2 3", "10 5", "1 5"];
        match self {
            Stroke::Numbered(number) => AFTER_ALL_COLOURS[number / COLOURS.len() % AFTER_ALL_COLOURS.len()],
            Stroke::Floor(number) => FLOORS[number % FLOORS.len()],
            Stroke::Warning => "",
        }
    }
}

/// What is drawn of a line's points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Only the line between them.
    Line,
    /// A dot at each, with a line between them.
    Dots,
    /// A cross at each, without a line.
    Crosses,
}

/// Points with a name. Those that an axis does not span are left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub name: String,
    pub stroke: Stroke,
    pub mark: Mark,
    pub points: Vec<(f64, f64)>,
}

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
    /// Of the plot within the axes.
    pub width_px: f64,
    pub height_px: f64,
}

impl Chart {
    /// As an SVG element; `title` is for those who do not see it.
    pub fn draw(&self, title: &str) -> String {
        let longest = self.lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
        let legend_px = SAMPLE_PX + 10.0 + longest as f64 * CHARACTER_PX;
        let legend_height_px = self.lines.len() as f64 * LEGEND_LINE_PX;
        let width = LEFT_PX + self.width_px + LEGEND_GAP_PX + legend_px + LEGEND_GAP_PX;
        let height = TOP_PX + self.height_px.max(legend_height_px) + BOTTOM_PX;
        let mut svg = String::new();
        let mut put = |text: String| svg.push_str(&text);
        put(format!(
            "<svg role=\"img\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\">\n\
             <title>{}</title>\n",
            escaped(title)
        ));
        put(self.grid());
        for line in &self.lines {
            put(self.line(line));
        }
        for (number, line) in (0..).zip(&self.lines) {
            put(self.legend(number, line));
        }
        put("</svg>\n".to_owned());
        svg
    }

    fn x_px(&self, share: f64) -> f64 {
        LEFT_PX + share * self.width_px
    }

    fn y_px(&self, share: f64) -> f64 {
        TOP_PX + (1.0 - share) * self.height_px
    }

    /// The frame, the ticks with their lines, and the axes' labels.
    fn grid(&self) -> String {
        let (left, right, top, bottom) = (self.x_px(0.0), self.x_px(1.0), self.y_px(1.0), self.y_px(0.0));
        let mut svg = String::new();
        let mut taken_until = f64::NEG_INFINITY;
        for (share, label) in self.x.ticks() {
            let (x, half) = (self.x_px(share), label.chars().count() as f64 * CHARACTER_PX / 2.0);
            let _ = writeln!(svg, r#"<path class="grid" d="M{x:.1} {top:.1}V{bottom:.1}"/>"#);
            if x - half >= taken_until {
                let y = bottom + 18.0;
                let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="middle">{}</text>"#, escaped(label));
                taken_until = x + half + LABEL_GAP_PX;
            }
        }
        for (share, label) in self.y.ticks() {
            let y = self.y_px(share);
            let (text_x, text_y) = (left - 8.0, y + 4.0);
            let _ = writeln!(svg, r#"<path class="grid" d="M{left:.1} {y:.1}H{right:.1}"/>"#);
            let label = escaped(label);
            let _ = writeln!(svg, r#"<text x="{text_x:.1}" y="{text_y:.1}" text-anchor="end">{label}</text>"#);
        }
        let (width, height) = (self.width_px, self.height_px);
        let _ = writeln!(
            svg,
            r#"<rect class="frame" x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{height:.1}"/>"#
        );
        let (middle, below) = ((left + right) / 2.0, bottom + 42.0);
        let label = escaped(&self.x.label);
        let _ =
            writeln!(svg, r#"<text class="axis" x="{middle:.1}" y="{below:.1}" text-anchor="middle">{label}</text>"#);
        let middle = (top + bottom) / 2.0;
        let label = escaped(&self.y.label);
        let _ = writeln!(
            svg,
            r#"<text class="axis" transform="translate(16 {middle:.1}) rotate(-90)" text-anchor="middle">{label}</text>"#
        );
        svg
    }

    fn line(&self, line: &Line) -> String {
        let places: Vec<(f64, f64)> = line
            .points
            .iter()
            .filter_map(|(x, y)| Some((self.x_px(self.x.share(*x)?), self.y_px(self.y.share(*y)?))))
            .collect();
        let mut svg = String::new();
        if line.mark != Mark::Crosses && places.len() > 1 {
            let points: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(svg, r#"<polyline points="{}" {}/>"#, points.join(" "), stroke(line.stroke));
        }
        // A point without another to be drawn to is seen by its mark.
        let mark = if places.len() == 1 && line.mark == Mark::Line { Mark::Dots } else { line.mark };
        places.iter().for_each(|(x, y)| svg.push_str(&symbol(mark, line.stroke, *x, *y)));
        svg
    }

    fn legend(&self, number: u32, line: &Line) -> String {
        let from = LEFT_PX + self.width_px + LEGEND_GAP_PX;
        let (to, y) = (from + SAMPLE_PX, TOP_PX + (f64::from(number) + 0.5) * LEGEND_LINE_PX);
        let mut svg = String::new();
        if line.mark != Mark::Crosses {
            let _ = writeln!(svg, r#"<path d="M{from:.1} {y:.1}H{to:.1}" {}/>"#, stroke(line.stroke));
        }
        svg.push_str(&symbol(line.mark, line.stroke, (from + to) / 2.0, y));
        let (text_x, text_y) = (to + 8.0, y + 4.0);
        let _ = writeln!(svg, r#"<text x="{text_x:.1}" y="{text_y:.1}">{}</text>"#, escaped(&line.name));
        svg
    }
}

fn stroke(stroke: Stroke) -> String {
    let dashes = match stroke.dashes() {
        "" => String::new(),
        dashes => format!(r#" stroke-dasharray="{dashes}""#),
    };
    format!(r#"fill="none" stroke="{}" stroke-width="2" stroke-linejoin="round"{dashes}"#, stroke.colour())
}

fn symbol(mark: Mark, stroke: Stroke, x: f64, y: f64) -> String {
    let colour = stroke.colour();
    match mark {
        Mark::Line => String::new(),
        Mark::Dots => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>\n"),
        Mark::Crosses => {
            let (left, right, top, bottom) = (x - 5.0, x + 5.0, y - 5.0, y + 5.0);
            format!(
                "<path d=\"M{left:.1} {top:.1}L{right:.1} {bottom:.1}M{left:.1} {bottom:.1}L{right:.1} {top:.1}\" \
                 stroke=\"{colour}\" stroke-width=\"2.5\"/>\n"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let line = |name: &str, stroke, mark, points| Line { name: name.to_owned(), stroke, mark, points };
        Chart {
            x: Axis::percentiles(),
            y: Axis::logarithmic("latency, µs", points.iter().map(|point| point.1)),
            lines: vec![
                line("claims <1>", Stroke::Numbered(0), Mark::Line, points.clone()),
                line("a floor", Stroke::Floor(0), Mark::Dots, points.clone()),
                line("FAILED", Stroke::Warning, Mark::Crosses, points),
            ],
            width_px: 600.0,
            height_px: 300.0,
        }
    }

    /// All numbers of attributes that are coordinates.
    fn coordinates(svg: &str) -> Vec<f64> {
        svg.lines()
            .filter_map(|line| line.strip_prefix(r#"<polyline points=""#)?.split('"').next())
            .flat_map(|points| points.split([' ', ',']))
            .map(|number| number.parse().expect("a number"))
            .collect()
    }

    #[test]
    fn what_is_drawn_are_numbers_within_the_plot() {
        let points = vec![(0.0, 0.0), (50.0, 436.0), (99.0, f64::NAN), (99.9, 3328.0), (100.0, 8618.0)];
        let svg = chart(points).draw("Latency & share");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains("claims &lt;1&gt;") && svg.contains("Latency &amp; share"), "{svg}");
        let found = coordinates(&svg);
        assert_eq!(found.len(), 2 * 2 * 2, "two lines of the two points that have a place: {found:?}");
        for pair in found.chunks(2) {
            assert!((LEFT_PX..=LEFT_PX + 600.0).contains(&pair[0]), "{pair:?}");
            assert!((TOP_PX..=TOP_PX + 300.0).contains(&pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn nothing_and_single_points_are_charts_too() {
        let svg = chart(Vec::new()).draw("nothing");
        assert!(!svg.contains("NaN") && svg.ends_with("</svg>\n"), "{svg}");
        let svg = chart(vec![(90.0, 100.0)]).draw("a point");
        assert_eq!(svg.matches("<circle").count(), 1 + 1 + 1, "a point, a dot, and its sample: {svg}");
    }

    #[test]
    fn labels_of_ticks_do_not_touch() {
        let values = (1..=40).map(f64::from);
        let mut chart = chart(Vec::new());
        chart.x = Axis::logarithmic_at("outstanding", values);
        let svg = chart.draw("many ticks");
        let places: Vec<f64> = svg
            .lines()
            .filter(|line| line.contains(r#"y="330.0" text-anchor="middle""#))
            .map(|line| line.split('"').nth(1).expect("an x").parse().expect("a number"))
            .collect();
        assert!(places.len() > 5 && places.windows(2).all(|pair| pair[1] - pair[0] > 2.0 * CHARACTER_PX), "{places:?}");
    }

    #[test]
    fn strokes_differ() {
        let strokes: std::collections::HashSet<String> =
            (0..24).map(|number| stroke(Stroke::Numbered(number))).collect();
        assert_eq!(strokes.len(), 24);
    }
}
