//! Accuracy under attack.

use std::path::Path;

use candle_core::Device;
use serde::Deserialize;
use theriac::{Budget, Run};
use theriac_attacks::{Fgsm, Pgd, Restarts, Spec, bim};
use theriac_data::{Dataset, Loader, Order, Partial};
use theriac_datasets::Split;
use theriac_eval::{Checks, Declared, Evaluator, clean_accuracy};
use theriac_experiment::{images, into_theriac, measured, share};
use theriac_tables::{BoxError, Cell, Lab, Measured};

use crate::{Settings, network};

/// What the test images go through.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Attack {
    /// Nothing.
    None,
    /// One step of eps.
    Fgsm,
    /// `steps` steps of eps / steps, scored after `scored_after` of them (all by default).
    Bim {
        /// N of the paper's BIM(N).
        steps: u32,
        /// Steps that are taken.
        scored_after: Option<u32>,
    },
    /// Random starts and steps of 2.5 eps / steps: stronger than anything in the paper.
    Pgd {
        /// Steps from each start.
        steps: u32,
    },
}

/// Test accuracy of a trained network, with its checks.
pub(crate) fn accuracy(
    settings: &Settings,
    model: &Path,
    cell: &Cell<'_>,
    lab: &Lab,
    device: &Device,
) -> Result<Measured, BoxError> {
    const BATCH: usize = 256;
    let twin = network(cell.seed, device)?;
    twin.params.load(model)?;
    let run = Run::new(cell.seed, device);
    let (name, n) = (&settings.data, settings.test);
    let data = images(name, settings.embedded, Split::Test, n, lab)?;
    let loader = Loader::new(&data, BATCH, Order::Sequential, Partial::Keep)?.device(device);
    let batches = || loader.epoch(0).map(|batch| batch.map_err(into_theriac));
    let label = format!("{}, {}", cell.row.name, cell.column.name);
    let observe = |done: usize| lab.progress(&label, done as u64, data.len() as u64);

    let mut evaluator = Evaluator::new(&twin.frozen, &run);
    if cell.column.x.is_some() {
        // A figure has a cell for every point of a line; the table's cells run every check.
        evaluator.checks = Checks::cheap();
    }
    let (eps, budget) = (settings.eps, Budget::linf(settings.eps)?);
    let robust = match settings.attack {
        Attack::None => {
            let (accuracy, _) = clean_accuracy(&twin.frozen, batches(), &run, observe)?;
            return Ok(share(accuracy));
        }
        Attack::Fgsm => evaluator.spec(Spec::Fgsm(Fgsm { budget }), batches(), observe)?,
        Attack::Bim {
            steps,
            scored_after: None,
        } => evaluator.spec(
            Spec::Pgd(bim(eps, eps.over(steps)?, steps)?),
            batches(),
            observe,
        )?,
        Attack::Bim {
            steps,
            scored_after: Some(taken),
        } => {
            // An intermediate point is not meant to reach eps.
            let attack = Pgd {
                short_reach: true,
                ..bim(eps, eps.over(steps)?, taken)?
            };
            let name = format!("BIM({steps}) after iteration {taken}");
            let declared = Declared {
                iterative: false,
                ..Declared::gradients(&name, Some(budget))
            };
            evaluator.attack(&attack, &declared, batches(), observe)?
        }
        Attack::Pgd { steps } => {
            let step = eps.times(2.5)?.over(steps)?;
            let attack = Restarts {
                attack: Pgd::new(budget, step, steps),
                times: settings.restarts,
            };
            let name = format!(
                "PGD, {} starts uniform in the ball, {steps} steps of {step}",
                settings.restarts
            );
            let reach = Some(step.get() * f64::from(steps));
            let declared = Declared {
                reach,
                ..Declared::gradients(&name, Some(budget))
            };
            evaluator.attack(&attack, &declared, batches(), observe)?
        }
    };
    Ok(measured(&robust))
}
