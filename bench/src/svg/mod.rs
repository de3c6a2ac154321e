//! Line charts as SVG text, for a page without scripts.

mod axis;
mod chart;

pub use axis::Axis;
pub use chart::{Chart, Line, Mark, Stroke};

/// Text as it stands in HTML and SVG.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
