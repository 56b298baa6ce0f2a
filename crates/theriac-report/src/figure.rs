//! Figures as data.

use serde::{Deserialize, Serialize};

/// Lines and single points over two axes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// What the figure shows, in prose.
    pub caption: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The lines.
    #[serde(default)]
    pub lines: Vec<Line>,
    /// Points of their own over the lines: measurements at a fixed epsilon. Those of several labels
    /// at one x are drawn side by side.
    #[serde(default)]
    pub points: Vec<Mark>,
}

/// An axis.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// What is measured; plain text.
    pub label: String,
    /// Its unit, as "%" or "1/255"; plain text, empty for none.
    #[serde(default)]
    pub unit: String,
    /// How values are spaced.
    #[serde(default)]
    pub scale: Scale,
    /// Both ends; those of the data where there is none.
    #[serde(default)]
    pub range: Option<(f64, f64)>,
}

impl Axis {
    /// A linear axis that reaches over the data.
    pub fn new(label: impl Into<String>, unit: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            unit: unit.into(),
            ..Self::default()
        }
    }

    /// The same axis between two ends. Lines are cut there.
    #[must_use]
    pub fn between(mut self, low: f64, high: f64) -> Self {
        self.range = Some((low, high));
        self
    }

    /// The same axis with logarithmic spacing.
    #[must_use]
    pub fn log(mut self) -> Self {
        self.scale = Scale::Log;
        self
    }
}

/// How the values of an axis are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Equal differences at equal distances.
    #[default]
    Linear,
    /// Equal ratios at equal distances; values are above 0.
    Log,
}

/// A line through points whose x never falls.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// What it is; plain text.
    pub name: String,
    /// (x, y).
    pub points: Vec<(f64, f64)>,
    /// How the points are joined.
    #[serde(default)]
    pub style: Stroke,
    /// (x, low, high) around the line; empty for none.
    #[serde(default)]
    pub band: Vec<(f64, f64, f64)>,
}

impl Line {
    /// Points joined by straight lines.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points,
            ..Self::default()
        }
    }

    /// A step function: each value holds until the next point.
    pub fn step(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self {
            style: Stroke::Step,
            ..Self::new(name, points)
        }
    }
}

/// How the points of a line are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stroke {
    /// Straight.
    #[default]
    Line,
    /// Each value holds until the next point: a share of images beyond a distance.
    Step,
}

/// A point of its own, with its interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Where.
    pub x: f64,
    /// Its value.
    pub y: f64,
    /// The ends of its interval in y.
    #[serde(default)]
    pub interval: Option<(f64, f64)>,
    /// What it is; plain text. Points of one label share a sign and a line of the legend.
    pub label: String,
}

impl Mark {
    /// A point without interval.
    pub fn new(label: impl Into<String>, x: f64, y: f64) -> Self {
        Self {
            x,
            y,
            interval: None,
            label: label.into(),
        }
    }

    /// The same point with its interval.
    #[must_use]
    pub fn within(mut self, low: f64, high: f64) -> Self {
        self.interval = Some((low, high));
        self
    }
}

/// Bars of one unit, from zero on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bars {
    /// What the bars show, in prose.
    pub caption: String,
    /// The unit of every value; plain text, empty for none.
    #[serde(default)]
    pub unit: String,
    /// The bars, in the order in which they are shown.
    pub bars: Vec<Bar>,
    /// The value of a bar of full length, as 100 for per cent; the largest where there is none.
    #[serde(default)]
    pub full: Option<f64>,
}

/// A bar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bar {
    /// What it is, in prose.
    pub name: String,
    /// Its length, at least 0.
    pub value: f64,
}

impl Bar {
    /// A bar.
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Self {
            name: name.into(),
            value,
        }
    }
}
