//! Where an axis ends and what is written beside it.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::{Axis, Scale};

/// More would be a fault of this file.
const MOST: usize = 60;

/// An axis with its ends and ticks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ruler {
    low: f64,
    high: f64,
    scale: Scale,
    ticks: Vec<f64>,
    /// Digits after the point that tell the ticks apart.
    decimals: usize,
}

impl Ruler {
    /// The ruler of `axis` over `values`, with about `most` spaces between its ticks.
    pub(super) fn new(axis: &Axis, values: impl IntoIterator<Item = f64>, most: usize) -> Self {
        let ends = |ends: Option<(f64, f64)>, it: f64| match ends {
            None => Some((it, it)),
            Some((low, high)) => Some((low.min(it), high.max(it))),
        };
        let (low, high) = values
            .into_iter()
            .fold(axis.range, ends)
            .unwrap_or(match axis.scale {
                Scale::Linear => (0.0, 1.0),
                Scale::Log => (1.0, 10.0),
            });
        // Ends that were asked for stay unless a value lies beyond them.
        let exact = axis.range == Some((low, high));
        match axis.scale {
            Scale::Linear => Self::linear(low, high, exact, most),
            Scale::Log => Self::log(low, high, exact, most),
        }
    }

    fn linear(low: f64, high: f64, exact: bool, most: usize) -> Self {
        let size = low.abs().max(high.abs());
        let (low, high) = if high - low > 1e-9 * size {
            (low, high)
        } else {
            let half = if size > 0.0 { 0.1 * size } else { 0.5 };
            (low - half, high + half)
        };
        let (step, decimals) = step(high - low, most);
        let (mut first, mut last) = (low / step, high / step);
        if exact {
            (first, last) = ((first - 1e-9).ceil(), (last + 1e-9).floor());
        } else {
            (first, last) = ((first + 1e-9).floor(), (last - 1e-9).ceil());
        }
        let count = (last - first).max(0.0) as usize;
        let ticks: Vec<f64> = (0..=count.min(MOST))
            .map(|index| (first + index as f64) * step)
            .collect();
        let (low, high) = if exact { (low, high) } else { ends(&ticks) };
        Self {
            low,
            high,
            scale: Scale::Linear,
            ticks,
            decimals,
        }
    }

    fn log(low: f64, high: f64, exact: bool, most: usize) -> Self {
        let (from, to) = (exponent(low), exponent(high) + 1);
        let decades = (to - from).unsigned_abs() as usize;
        let factors: &[f64] = if 3 * decades <= most + 1 {
            &[1.0, 2.0, 5.0]
        } else {
            &[1.0]
        };
        let stride = decades.div_ceil(most.max(1)).max(1);
        let mut ticks: Vec<f64> = (from..=to)
            .step_by(stride)
            .flat_map(|exponent| factors.iter().map(move |it| it * power(exponent)))
            .collect();
        if exact {
            ticks.retain(|it| (low..=high).contains(it));
        } else {
            let first = ticks.iter().rposition(|it| *it <= low).unwrap_or(0);
            let last = ticks.iter().position(|it| *it >= high && *it > low);
            ticks.truncate(last.map_or(ticks.len(), |it| it + 1));
            ticks.drain(..first);
        }
        let (low, high) = if exact {
            (low, high)
        } else {
            // The last tick of a wide stride may lie below the last value.
            let (first, last) = ends(&ticks);
            (first.min(low), last.max(high))
        };
        Self {
            low,
            high,
            scale: Scale::Log,
            ticks,
            decimals: 0,
        }
    }

    /// A tick as text.
    pub(super) fn label(&self, tick: f64) -> String {
        let size = self.low.abs().max(self.high.abs());
        if self.scale == Scale::Log || size >= 1e7 || self.decimals > 6 {
            return short(tick);
        }
        format!("{tick:.*}", self.decimals)
    }

    /// The number of letters of the longest label.
    pub(super) fn widest(&self) -> usize {
        let widths = self.ticks.iter().map(|it| self.label(*it).chars().count());
        widths.max().unwrap_or(1)
    }

    /// Where on the axis a value lies, 0 for its low and 1 for its high end.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        }
    }
}

fn ends(ticks: &[f64]) -> (f64, f64) {
    match ticks {
        [first, .., last] => (*first, *last),
        _ => (0.0, 1.0),
    }
}

/// The distance of ticks that cuts `extent` into at most `most` parts, and its decimals.
fn step(extent: f64, most: usize) -> (f64, usize) {
    let least = extent / most.max(1) as f64;
    let exponent = exponent(least);
    let unit = power(exponent);
    let decimals = usize::try_from(-exponent).unwrap_or(0);
    let even = |factor: f64| {
        let parts = extent / (factor * unit);
        (parts - parts.round()).abs() < 1e-9
    };
    [1.0, 2.0, 2.5, 4.0, 5.0]
        .into_iter()
        .filter(|it| *it * unit >= least * (1.0 - 1e-9))
        // Quarters only where they meet both ends.
        .find(|it| ![2.5, 4.0].contains(it) || even(*it))
        .map_or((10.0 * unit, decimals.saturating_sub(1)), |factor| {
            let half = factor == 2.5 && exponent <= 0;
            (factor * unit, decimals + usize::from(half))
        })
}

/// The decimal exponent of a number above 0. Logarithms are not the same on every machine.
fn exponent(value: f64) -> i32 {
    let text = format!("{value:e}");
    text.split_once('e')
        .and_then(|it| it.1.parse().ok())
        .unwrap_or(0)
}

fn power(exponent: i32) -> f64 {
    format!("1e{exponent}").parse().unwrap_or(1.0)
}

/// A number in four digits.
pub(crate) fn short(value: f64) -> String {
    let rounded: f64 = format!("{value:.3e}").parse().unwrap_or(value);
    if rounded == 0.0 || (1e-4..1e6).contains(&rounded.abs()) {
        format!("{}", rounded + 0.0)
    } else {
        format!("{rounded:e}")
    }
}

impl Ranged for Ruler {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let (low, high) = (f64::from(limit.0), f64::from(limit.1));
        (low + self.place(*value) * (high - low)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Ruler {
    fn format_ext(&self, value: &f64) -> String {
        self.label(*value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(axis: &Axis, values: &[f64], most: usize) -> Vec<String> {
        let ruler = Ruler::new(axis, values.iter().copied(), most);
        ruler.ticks.iter().map(|it| ruler.label(*it)).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        let axis = Axis::default();
        let per_cent = axis.clone().between(0.0, 100.0);
        assert_eq!(
            labels(&per_cent, &[], 5),
            ["0", "20", "40", "60", "80", "100"]
        );
        assert_eq!(labels(&per_cent, &[], 4), ["0", "25", "50", "75", "100"]);
        let eps = axis.clone().between(0.0, 16.0);
        assert_eq!(labels(&eps, &[], 5), ["0", "4", "8", "12", "16"]);
        assert_eq!(
            labels(&axis, &[0.03, 0.29], 5),
            ["0.0", "0.1", "0.2", "0.3"]
        );
        assert_eq!(labels(&axis, &[0.0, 0.25], 4), ["0.0", "0.1", "0.2", "0.3"]);
        assert_eq!(labels(&axis, &[-3.0, 3.0], 4), ["-4", "-2", "0", "2", "4"]);
        assert_eq!(labels(&axis, &[7.0], 2), ["6", "7", "8"]);
        assert_eq!(
            labels(&axis, &[], 5),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
    }

    #[test]
    fn logarithmic_ticks_are_decades_or_their_parts() {
        let axis = Axis::default().log();
        assert_eq!(
            labels(&axis, &[1.0, 90_000.0], 8),
            ["1", "10", "100", "1000", "10000", "100000"]
        );
        assert_eq!(labels(&axis, &[3.0, 40.0], 8), ["2", "5", "10", "20", "50"]);
        assert_eq!(labels(&axis, &[0.001], 8), ["0.001", "0.002"]);
        let exact = axis.between(100.0, 10_000.0);
        assert_eq!(labels(&exact, &[], 4), ["100", "1000", "10000"]);
    }

    #[test]
    fn ends_that_were_asked_for_give_way_to_values_beyond_them() {
        let axis = Axis::default().between(0.0, 1.0);
        assert_eq!(Ruler::new(&axis, [0.3], 5).range(), 0.0..1.0);
        assert_eq!(Ruler::new(&axis, [1.7], 5).range(), 0.0..2.0);
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, -0.0, 47.2, 12_345.6, 1e-7, 99_999_999.0, 1.0 / 3.0].map(short);
        assert_eq!(texts, ["0", "0", "47.2", "12350", "1e-7", "1e8", "0.3333"]);
    }

    proptest! {
        #[test]
        fn every_value_lies_on_its_axis(
            values in prop::collection::vec(-1e100..1e100f64, 1..5),
            shrink in -120..0i32,
            offset in -1.0..1.0f64,
            log: bool,
            most in 1..12usize,
        ) {
            let values: Vec<f64> = values
                .iter()
                .map(|it| offset + it * 10f64.powi(shrink))
                .map(|it| if log { it.abs().max(1e-100) } else { it })
                .collect();
            let axis = if log { Axis::default().log() } else { Axis::default() };
            let ruler = Ruler::new(&axis, values.iter().copied(), most);
            for value in values {
                let place = ruler.place(value);
                prop_assert!((-1e-6..=1.0 + 1e-6).contains(&place), "{value} at {place}: {ruler:?}");
            }
            prop_assert!(ruler.low < ruler.high);
            prop_assert!(ruler.ticks.len() <= 3 * most + 12, "{ruler:?}");
            prop_assert!(ruler.ticks.is_sorted());
        }
    }
}
