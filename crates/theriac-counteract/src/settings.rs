//! What the paper fixes and what it leaves open.

use serde::{Deserialize, Serialize};
use theriac::{Eps, Error, Result};

/// Which way a counter-perturbation leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Toward each drawn label, down its loss ("targeted", \[T\] in the tables).
    #[default]
    Targeted,
    /// Away, up the loss ("untargeted", \[U\]); from what, says [`Untargeted`].
    Untargeted,
}

/// What untargeted counter-perturbations lead away from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Untargeted {
    /// The drawn labels, as algorithm 1 says: that pushes toward the prediction.
    #[default]
    Drawn,
    /// The prediction: one step of FGSM away from it, whatever the number of labels.
    Predicted,
}

/// From which classes labels are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// All but the predicted one, each at most once (abstract and section 3). With ten classes and
    /// nine labels nothing is random.
    #[default]
    NonPredicted,
    /// All, each at most once.
    Any,
    /// All but the predicted one, with replacement.
    WithReplacement,
}

/// Where the one step of a label begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// At the image.
    #[default]
    Image,
    /// At a random place within the bound around it.
    Bound,
    /// At a random place within a step around it.
    Step,
}

/// Settings of the defence; the default is the paper's, each field a point that it fixes or leaves
/// open.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Toward or away.
    pub kind: Kind,
    /// Number of labels N.
    pub labels: usize,
    /// Step alpha of each label.
    pub step: Eps,
    /// Bound mu of the sum.
    pub bound: Eps,
    /// Where labels come from.
    pub pool: Pool,
    /// What \[U\] leads away from.
    pub untargeted: Untargeted,
    /// Where steps begin.
    pub start: Start,
    /// Take each gradient at the image moved so far, not all at the image.
    pub sequential: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let of_255 = |levels: f64| Eps::of_255(levels).expect("a number of levels from 0 to 255");
        Self {
            kind: Kind::Targeted,
            labels: 9,
            step: of_255(4.0),
            bound: of_255(8.0),
            pool: Pool::NonPredicted,
            untargeted: Untargeted::Drawn,
            start: Start::Image,
            sequential: false,
        }
    }
}

impl Settings {
    /// Looks at the settings, for a classifier of so many classes.
    ///
    /// # Errors
    /// [`Error::Setting`] for no labels, or more than can be drawn.
    pub fn check(&self, classes: usize) -> Result<()> {
        let most = match self.pool {
            Pool::NonPredicted => classes.saturating_sub(1),
            Pool::Any => classes,
            Pool::WithReplacement => usize::MAX,
        };
        if 0 < self.labels && self.labels <= most {
            return Ok(());
        }
        Err(Error::Setting {
            name: "labels",
            value: format!("{} of {classes} classes", self.labels),
            remedy: "use at least 1 and at most the classes that labels are drawn from, or \
                     pool = \"with-replacement\"",
        })
    }
}
