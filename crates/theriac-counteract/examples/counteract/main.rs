//! Computes the cells of the paper's tables 1 to 6 and of figures 2 and 3, and what they leave out.
//!
//! `cargo xtask reproduce counteract` runs it; alone it takes the same options as every paper's
//! example, see `--help`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use theriac::{Average, Eps};
use theriac_counteract::{Kind, Settings as Ours};
use theriac_experiment::use_threads;
use theriac_tables::{BoxError, Cell, Experiment, Lab, Measured};

use crate::training::{Method, Recipe};

mod attacked;
mod cost;
mod defended;
mod scoring;
mod training;

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
    /// Take test images and partners from the samples in the repository.
    #[serde(default)]
    samples: bool,
    /// Test images.
    test: usize,
    /// No more than these for defences of many executions and attackers who know the defence, on
    /// the networks of each method.
    #[serde(default)]
    most: BTreeMap<Method, usize>,
    /// No more than these under attacks of more than ten steps.
    #[serde(default)]
    long: BTreeMap<Method, usize>,
    #[serde(default)]
    defence: Defence,
    #[serde(default)]
    attack: Attack,
    /// Row of tables 5 and 6: which setting to show.
    #[serde(default)]
    show: Option<Show>,
}

/// What stands in front of the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Defence {
    /// Counter-perturbation first.
    #[serde(skip_serializing_if = "Option::is_none")]
    ours: Option<Ours>,
    /// Then these, in turn, in each execution.
    each: Vec<Part>,
    /// Least and largest side of the squares of Xie et al.
    xie: [u32; 2],
    /// And of Guo et al.
    guo: [u32; 2],
    /// Weight of the image in MI-OL.
    lambda: f64,
    /// Training images that MI-OL takes partners from.
    pool: usize,
    /// Take them from the test split, as the published code does.
    pool_of_test: bool,
    /// Deviation of the noise, in pixels of [0, 1].
    sigma: f64,
    /// Largest angle of the rotation.
    degrees: f64,
    executions: u32,
    /// Executions of MI-OL.
    mixtures: u32,
    average: Average,
    quantise: bool,
    /// Take the counter-perturbation anew in each execution, behind the transforms.
    recompute: bool,
    /// MI-OL's partners avoid the label predicted before the counter-perturbation.
    label_on_x: bool,
}

impl Default for Defence {
    fn default() -> Self {
        Self {
            ours: None,
            each: Vec::new(),
            xie: [22, 30],
            guo: [22, 30],
            lambda: 0.5,
            pool: 10_000,
            pool_of_test: false,
            sigma: 0.025,
            degrees: 20.0,
            executions: 50,
            mixtures: 30,
            average: Average::Softmax,
            quantise: true,
            recompute: false,
            label_on_x: false,
        }
    }
}

impl Defence {
    /// Nothing stands in front of the network.
    fn bare(&self) -> bool {
        self.ours.is_none() && self.each.is_empty()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Part {
    Xie,
    Guo,
    Noise,
    Rotation,
    MiOl,
}

/// What the test images go through.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Attack {
    aim: Aiming,
    steps: u32,
    eps: Eps,
    step: Eps,
    knows: Knows,
    /// Executions that an attacker who knows the defence averages over.
    executions: u32,
}

impl Default for Attack {
    fn default() -> Self {
        let of_255 = |levels: f64| Eps::of_255(levels).expect("a number of levels from 0 to 255");
        Self {
            aim: Aiming::None,
            steps: 10,
            eps: of_255(8.0),
            step: of_255(2.0),
            knows: Knows::Nothing,
            executions: 10,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Aiming {
    /// No attack.
    None,
    /// Away from the network's own prediction on the clean image.
    Untargeted,
    /// Away from the true label.
    UntargetedTrue,
    /// Toward a class other than the true one, drawn once for each image.
    Targeted,
}

/// What the attacker knows of the defence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Knows {
    /// Nothing: the images are crafted on the bare network.
    Nothing,
    /// All: PGD through the defence.
    Pgd,
    /// All: APGD on the cross entropy through the defence.
    Apgd,
    /// All: crafts on the bare network and takes the counter-perturbation off in advance.
    AddBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Show {
    /// 1 for targeted counter-perturbations, -1 for untargeted ones.
    Kind,
    XieLow,
    XieHigh,
    GuoLow,
    GuoHigh,
    Lambda,
    Executions,
    Mixtures,
}

impl Settings {
    /// Images of this cell.
    fn images(&self) -> usize {
        let Attack {
            aim, steps, knows, ..
        } = self.attack;
        let many = !self.defence.each.is_empty() || knows != Knows::Nothing;
        let long = aim != Aiming::None && steps > 10;
        let limits = [(many, &self.most), (long, &self.long)];
        let limits = limits.into_iter().filter(|(holds, _)| *holds);
        let limits = limits.filter_map(|(_, limits)| limits.get(&self.recipe.method));
        limits.copied().fold(self.test, usize::min)
    }

    fn check(&self, measure: &str) -> Result<(), BoxError> {
        let Defence { ours, each, .. } = &self.defence;
        if let Some(ours) = ours {
            ours.check(usize::MAX)?;
        }
        let after = each.iter().skip(1).any(|part| *part == Part::MiOl);
        if after {
            return Err("each: mi-ol stands first, because its label is that of its input".into());
        }
        if self.attack.knows == Knows::AddBack && ours.is_none() {
            return Err(
                "attack: add-back takes off a counter-perturbation: set defence.ours".into(),
            );
        }
        match (measure, self.show) {
            ("setting", None) => Err("show: name the setting".into()),
            (
                "accuracy" | "gradients" | "forwards" | "milliseconds" | "gradient-milliseconds",
                _,
            )
            | ("setting", _) => Ok(()),
            (other, _) => Err(format!("unknown measure {other:?}").into()),
        }
    }

    fn shown(&self, show: Show) -> f64 {
        let Defence {
            ours,
            xie,
            guo,
            lambda,
            executions,
            mixtures,
            ..
        } = &self.defence;
        match show {
            Show::Kind => match ours.unwrap_or_default().kind {
                Kind::Targeted => 1.0,
                Kind::Untargeted => -1.0,
            },
            Show::XieLow => f64::from(xie[0]),
            Show::XieHigh => f64::from(xie[1]),
            Show::GuoLow => f64::from(guo[0]),
            Show::GuoHigh => f64::from(guo[1]),
            Show::Lambda => *lambda,
            Show::Executions => f64::from(*executions),
            Show::Mixtures => f64::from(*mixtures),
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
        match (cell.column.measure.as_str(), settings.show) {
            ("setting", Some(show)) => Ok(Measured {
                value: settings.shown(show),
                n: 1,
                ..Measured::default()
            }),
            ("accuracy", _) => scoring::score(&settings, cell, lab),
            _ => cost::cost(&settings, cell, lab),
        }
    }
}
