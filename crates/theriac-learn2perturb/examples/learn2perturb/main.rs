//! Computes the cells of the paper's tables 1 to 4, of figures 2 and 3 and of section 4.5, and what
//! they leave out.
//!
//! `cargo xtask reproduce learn2perturb` runs it; alone it takes the same options as every paper's
//! example, see `--help`.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use theriac_attacks::Declare as _;
use theriac_experiment::use_threads;
use theriac_tables::{BoxError, Cell, Experiment, Lab, Measured};

use crate::method::Recipe;

mod cost;
mod method;
mod noise;
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
    /// No more test images than this: for attacks that take long.
    #[serde(default)]
    most: Option<usize>,
    /// What the test images go through.
    #[serde(default)]
    attack: Option<theriac_attacks::Spec>,
    /// Craft on a network trained by this method.
    #[serde(default)]
    source: Option<method::Method>,
    /// Evaluations of a randomised network, each with other draws.
    #[serde(default = "one")]
    repeats: u64,
    /// Draws whose probabilities are averaged in each classification.
    #[serde(default = "one_draw")]
    members: u32,
    /// And in each that the attack makes.
    #[serde(default = "one_draw")]
    attack_members: u32,
    /// Gradients from so many copies of each image in one batch that shares its noise: the released
    /// code's EOT, which has no effect.
    #[serde(default)]
    copies: Option<u32>,
    /// Statistic of the noise, and the number of epochs after which it is taken.
    #[serde(default)]
    statistic: Option<noise::Statistic>,
    #[serde(default)]
    after: Option<usize>,
    /// L2 radius of certified accuracy, and draws of the vote.
    #[serde(default)]
    radius: Option<f64>,
    #[serde(default = "votes")]
    votes: u32,
}

fn one() -> u64 {
    1
}

fn one_draw() -> u32 {
    1
}

fn votes() -> u32 {
    200
}

impl Settings {
    fn images(&self) -> usize {
        self.most.unwrap_or(usize::MAX).min(self.test)
    }
}

struct Experiments;

impl Experiment for Experiments {
    fn check(&self, cell: &Cell<'_>) -> Result<(), BoxError> {
        let settings = cell.settings::<Settings>()?;
        settings.recipe.check()?;
        if let Some(attack) = &settings.attack {
            attack.check()?;
            attack.declared().ball()?;
        }
        match (
            cell.column.measure.as_str(),
            settings.statistic,
            settings.radius,
        ) {
            ("noise", None, _) => Err("statistic: name one of the noise".into()),
            ("certified", _, None) => Err("radius: name one".into()),
            (
                "accuracy" | "success" | "parameters" | "noise" | "certified" | "spread"
                | "step-milliseconds" | "step-ratio",
                ..,
            ) => Ok(()),
            (other, ..) => Err(format!("unknown measure {other:?}").into()),
        }
    }

    fn measure(&self, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, BoxError> {
        use_threads(lab);
        let settings = cell.settings::<Settings>()?;
        match cell.column.measure.as_str() {
            "parameters" => settings.recipe.parameters(),
            "noise" => noise::noise(&settings, cell, lab),
            "step-milliseconds" | "step-ratio" => cost::cost(&settings, cell, lab),
            _ => scoring::score(&settings, cell, lab),
        }
    }
}
