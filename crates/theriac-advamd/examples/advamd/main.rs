//! Computes the cells of figures 2 and 3, of table 2 carried over to classification, and what the
//! paper leaves out.
//!
//! `cargo xtask reproduce advamd` runs it; alone it takes the same options as every paper's example,
//! see `--help`.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use theriac_experiment::use_threads;
use theriac_tables::{BoxError, Cell, Experiment, Lab, Measured};

use crate::method::{Method, Recipe};

mod crafted;
mod detection;
mod method;
mod scoring;

// Attacks allocate and free the same sizes over and over.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    theriac_tables::main(Experiments, concat!(env!("CARGO_MANIFEST_DIR"), "/tables"))
}

/// What a cell's settings may say.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    recipe: Recipe,
    /// Take test images from the samples in the repository.
    #[serde(default)]
    samples: bool,
    test: usize,
    /// No more test images than this under attacks.
    #[serde(default)]
    most: Option<usize>,
    /// What the test images go through, if not what the network was trained with.
    #[serde(default)]
    attack: Option<theriac_attacks::Spec>,
    /// Where adversarial images come from.
    #[serde(default)]
    crafted_on: CraftedOn,
    /// Test through the auxiliary norms.
    #[serde(default)]
    auxiliary: bool,
    /// What a rejected adversarial image counts as.
    #[serde(default)]
    rejected: Rejected,
    /// Share of clean images that the detector of a cell may refuse.
    #[serde(default)]
    refused: Option<f64>,
    /// The detector of a cell.
    #[serde(default)]
    detector: Option<detection::Kind>,
}

/// The network that an attacker sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CraftedOn {
    /// The defended one, through the ordinary norms.
    #[default]
    Itself,
    /// The network before its amendment: one set of images for all.
    Vanilla,
    /// MagNet with its detectors.
    Evasion,
}

/// How a rejected adversarial image counts; a rejected clean image is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Rejected {
    #[default]
    Wrong,
    Defended,
}

impl Settings {
    fn images(&self, attacked: bool) -> usize {
        match self.most.filter(|_| attacked) {
            Some(most) => most.min(self.test),
            None => self.test,
        }
    }

    /// The attack of the evaluation.
    fn attack(&self) -> Result<&theriac_attacks::Spec, BoxError> {
        let attack = self.attack.as_ref().or(self.recipe.attack.as_ref());
        attack.ok_or_else(|| "attack: name one".into())
    }

    fn check(&self, measure: &str) -> Result<(), BoxError> {
        self.recipe.check()?;
        let magnet = self.recipe.method == Method::Magnet;
        match measure {
            "accuracy" | "benign" | "over-control" => Ok(()),
            "adversarial" | "robust" if self.crafted_on == CraftedOn::Evasion && !magnet => {
                Err("crafted_on: only MagNet has detectors to evade".into())
            }
            "adversarial" | "robust" => self.attack().map(|_| ()),
            "caught" if self.refused.is_none() || self.detector.is_none() => {
                Err("refused, detector: give both".into())
            }
            "caught" => self.attack().map(|_| ()),
            other => Err(format!("unknown measure {other:?}").into()),
        }
    }
}

struct Experiments;

impl Experiment for Experiments {
    fn check(&self, cell: &Cell<'_>) -> Result<(), BoxError> {
        cell.settings::<Settings>()?.check(&cell.column.measure)
    }

    fn measure(&self, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, BoxError> {
        use_threads(lab);
        let settings = cell.settings::<Settings>()?;
        match cell.column.measure.as_str() {
            "caught" => detection::caught(&settings, cell, lab),
            "accuracy" => Ok(scoring::clean(&settings, cell, lab)?.measured()),
            "robust" => Ok(scoring::robust(&settings, cell, lab)?.measured()),
            measure => {
                let scored = match measure {
                    "adversarial" => scoring::robust(&settings, cell, lab)?,
                    _ => scoring::clean(&settings, cell, lab)?,
                };
                let other = match measure {
                    "over-control" => Method::Control,
                    _ => Method::None,
                };
                let other = Settings {
                    recipe: settings.recipe.of(other),
                    test: scored.right.len(),
                    most: None,
                    auxiliary: false,
                    ..settings
                };
                scored.less(&scoring::clean(&other, cell, lab)?)
            }
        }
    }
}
