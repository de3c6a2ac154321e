//! Axes: which values they span, and where their ticks are.

use crate::outcome::thousands;

/// Decades of a logarithmic axis up to which 2 and 5 have ticks too.
const FINE_DECADES_MAX: f64 = 3.0;

/// Percentiles with a tick.
const PERCENTILES: [(f64, &str); 7] =
    [(0.0, "0"), (50.0, "50"), (90.0, "90"), (99.0, "99"), (99.9, "99.9"), (99.99, "99.99"), (99.999, "99.999")];

/// How values lie along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    Logarithmic,
    /// By the logarithm of what is left up to 100, so that 90, 99 and 99.9 are at even distances.
    Percentile,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Logarithmic => value.log10(),
            Scale::Percentile => -(1.0 - value / 100.0).log10(),
        }
    }
}

/// One axis of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What it shows, and its unit.
    pub label: String,
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From 0 to at least `high`.
    pub fn linear(label: &str, high: f64) -> Self {
        let high = if high.is_finite() && high > 0.0 { high } else { 1.0 };
        let step = nice_step(high / 5.0);
        let steps = (high / step).ceil();
        let ticks = (0..=steps as u32).map(|number| f64::from(number) * step);
        let ticks = ticks.map(|value| (value, if step < 1.0 { format!("{value:.1}") } else { thousands(value) }));
        Axis { label: label.to_owned(), scale: Scale::Linear, low: 0.0, high: steps * step, ticks: ticks.collect() }
    }

    /// Logarithmic, over all of `values` that are more than 0.
    pub fn logarithmic(label: &str, values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = bounds(values);
        let is_fine = (high / low).log10() <= FINE_DECADES_MAX;
        let (below, above) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let steps: &[f64] = if is_fine { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let all: Vec<f64> =
            (below..=above).flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade))).collect();
        // The nearest ticks around all values are the ends; rounding must not leave a value outside.
        let first = all.iter().rposition(|tick| *tick <= low * 1.000_001).unwrap_or(0);
        let last = all.iter().position(|tick| *tick >= high * 0.999_999).unwrap_or(all.len() - 1).max(first + 1);
        let ticks = &all[first..=last];
        let label_of = |value: &f64| if *value < 1.0 { format!("{value}") } else { thousands(*value) };
        Axis {
            label: label.to_owned(),
            scale: Scale::Logarithmic,
            low: ticks[0].min(low),
            high: ticks[ticks.len() - 1].max(high),
            ticks: ticks.iter().map(|value| (*value, label_of(value))).collect(),
        }
    }

    /// Logarithmic, with a tick at each of `values`.
    pub fn logarithmic_at(label: &str, values: impl Iterator<Item = f64> + Clone) -> Self {
        let (low, high) = bounds(values.clone());
        let mut ticks: Vec<f64> = values.filter(|value| *value > 0.0).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        Axis {
            label: label.to_owned(),
            scale: Scale::Logarithmic,
            // Some room at both sides, so that no mark lies on the frame.
            low: low / 1.3,
            high: high * 1.3,
            ticks: ticks.into_iter().map(|value| (value, thousands(value))).collect(),
        }
    }

    /// Percentiles from 0 to 99.999.
    pub fn percentiles() -> Self {
        let ticks = PERCENTILES.map(|(value, label)| (value, label.to_owned()));
        let label = "share of requests, %".to_owned();
        Axis { label, scale: Scale::Percentile, low: 0.0, high: 99.999, ticks: ticks.to_vec() }
    }

    /// Where a value lies, from 0 to 1; `None` beyond the ends.
    pub fn share(&self, value: f64) -> Option<f64> {
        let (low, high) = (self.scale.place(self.low), self.scale.place(self.high));
        let share = (self.scale.place(value) - low) / (high - low);
        // What a sum rounds off is not beyond.
        (-1e-9..=1.0 + 1e-9).contains(&share).then(|| share.clamp(0.0, 1.0))
    }

    /// The places and labels of the ticks.
    pub fn ticks(&self) -> impl Iterator<Item = (f64, &str)> {
        self.ticks.iter().filter_map(|(value, label)| Some((self.share(*value)?, label.as_str())))
    }
}

/// The least and the greatest of those above 0; something to draw an axis for where there are none.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let positive = values.filter(|value| value.is_finite() && *value > 0.0);
    let (low, high) = positive.fold((f64::MAX, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    if low <= high { (low, high) } else { (1.0, 10.0) }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn nice_step(least: f64) -> f64 {
    let decade = 10_f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().find(|step| step * decade >= least * 0.999_999).unwrap_or(10.0);
    step * decade
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks().map(|(_, label)| label).collect()
    }

    #[test]
    fn every_value_has_its_place() {
        let values = [436.0, 8618.0, 21_037.0];
        let axis = Axis::logarithmic("latency, µs", values.into_iter());
        assert_eq!(labels(&axis), ["200", "500", "1,000", "2,000", "5,000", "10,000", "20,000", "50,000"]);
        let shares: Vec<f64> = values.iter().map(|value| axis.share(*value).expect("it is spanned")).collect();
        assert!(shares.windows(2).all(|pair| pair[0] < pair[1]), "{shares:?}");
        assert_eq!((axis.share(100.0), axis.share(0.0), axis.share(f64::NAN)), (None, None, None));
    }

    #[test]
    fn axes_have_ticks_that_are_round() {
        assert_eq!(labels(&Axis::linear("s", 10.0)), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels(&Axis::linear("s", 1.0)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        let wide = Axis::logarithmic("x", [3.0, 400_000.0].into_iter());
        assert_eq!(labels(&wide), ["1", "10", "100", "1,000", "10,000", "100,000", "1,000,000"]);
        assert_eq!(labels(&Axis::logarithmic_at("x", [64.0, 1.0, 64.0].into_iter())), ["1", "64"]);
    }

    #[test]
    fn axes_of_nothing_are_axes() {
        for axis in [
            Axis::logarithmic("x", std::iter::empty()),
            Axis::logarithmic("x", [0.0, f64::NAN].into_iter()),
            Axis::logarithmic("x", [100.0].into_iter()),
            Axis::logarithmic_at("x", std::iter::empty()),
            Axis::linear("x", 0.0),
            Axis::percentiles(),
        ] {
            assert!(axis.low < axis.high, "{axis:?}");
            assert!(axis.ticks().all(|(share, _)| (0.0..=1.0).contains(&share)), "{axis:?}");
        }
    }

    #[test]
    fn nines_are_at_even_distances() {
        let axis = Axis::percentiles();
        for (percentile, expected) in [(0.0, 0.0), (90.0, 0.2), (99.0, 0.4), (99.9, 0.6), (99.999, 1.0)] {
            assert!((axis.share(percentile).expect("it is spanned") - expected).abs() < 1e-6, "{percentile}");
        }
        assert_eq!(axis.share(100.0), None);
    }
}
