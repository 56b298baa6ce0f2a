//! Sentences of a paper that its numbers should bear out.

use std::fmt;

use serde::Deserialize;

use crate::{Results, Scale, Unit};

/// `left op times * right + plus`, or `left op plus` where there is no right side.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The claim, as a sentence.
    pub says: String,
    /// The cell that the sentence is about.
    pub left: Place,
    /// How it compares.
    pub op: Comparison,
    /// The cell it is compared with.
    pub right: Option<Place>,
    /// Factor of the right cell.
    #[serde(default = "one")]
    pub times: f64,
    /// Added to the right side, in the unit of the left cell.
    #[serde(default)]
    pub plus: f64,
    /// The scales at which the claim is judged; empty means all.
    #[serde(default)]
    pub scales: Vec<Scale>,
}

fn one() -> f64 {
    1.0
}

/// A row and a column.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The row's name.
    pub row: String,
    /// The column's name.
    pub column: String,
}

/// The two comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Comparison {
    /// At most.
    #[serde(rename = "<=")]
    AtMost,
    /// At least.
    #[serde(rename = ">=")]
    AtLeast,
}

/// Whether a claim holds for the measured means over the seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Judgement {
    /// The numbers bear it out.
    Holds {
        /// The left cell.
        left: f64,
        /// The right side, computed.
        bound: f64,
    },
    /// They do not.
    Fails {
        /// The left cell.
        left: f64,
        /// The right side, computed.
        bound: f64,
    },
    /// A cell it needs was not measured.
    NotRun,
    /// The claim is not meant for this scale.
    NotJudged,
}

impl Claim {
    /// Compares the means of the default reading.
    pub fn judge(&self, results: &Results<'_>) -> Judgement {
        if !self.scales.is_empty() && !self.scales.contains(&results.scale) {
            return Judgement::NotJudged;
        }
        let mean = |place: &Place| results.mean(&place.row, &place.column);
        let right = match &self.right {
            Some(place) => mean(place).map(|right| self.times * right),
            None => Some(0.0),
        };
        let (Some(left), Some(right)) = (mean(&self.left), right) else {
            return Judgement::NotRun;
        };
        let bound = right + self.plus;
        let holds = match self.op {
            Comparison::AtMost => left <= bound,
            Comparison::AtLeast => left >= bound,
        };
        if holds {
            Judgement::Holds { left, bound }
        } else {
            Judgement::Fails { left, bound }
        }
    }

    /// The right side in words: "1.25 x (FGSM-Adv, Time)" or "10".
    pub fn right_side(&self) -> String {
        let Some(right) = &self.right else {
            return self.plus.to_string();
        };
        let mut text = format!("({}, {})", right.row, right.column);
        if self.times != 1.0 {
            text = format!("{} x {text}", Unit::Number.format(self.times));
        }
        match self.plus {
            plus if plus > 0.0 => text += &format!(" + {plus}"),
            plus if plus < 0.0 => text += &format!(" - {}", -plus),
            _ => {}
        }
        text
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtMost => "<=",
            Self::AtLeast => ">=",
        })
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds { left, bound } => write!(f, "holds ({left:.2} against {bound:.2})"),
            Self::Fails { left, bound } => write!(f, "fails ({left:.2} against {bound:.2})"),
            Self::NotRun => f.write_str("not run"),
            Self::NotJudged => f.write_str("not judged at this scale"),
        }
    }
}
