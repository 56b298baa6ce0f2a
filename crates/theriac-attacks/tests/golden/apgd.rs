//! APGD, one run from a given start over all its steps.

use candle_core::{DType, Device};
use theriac::{Aim, Pass, Pixels, Result, Run};
use theriac_attacks::{Apgd, ApgdT, Loss};

use crate::golden::{largest_difference, values};
use crate::reference::{ALL, Reference, all_agree};
use crate::trace::Trace;

/// Our images, and every iterate.
fn run(reference: &Reference, start: &Pixels) -> Result<(Pixels, Trace)> {
    let (clean, labels) = (&reference.batch.pixels, &reference.batch.target);
    let (model, budget) = (&reference.twin.frozen, reference.budget()?);
    let (steps, rho) = (reference.steps(), reference.entry.setting("rho"));
    let trace = Trace::whole();
    let run = Run::new(0, &Device::Cpu);
    let pass = Pass {
        watch: Some(&trace),
        ..run.eval(&reference.batch.samples)
    };
    let loss = match reference.name.as_str() {
        "apgd_t_linf" => {
            let attack = ApgdT {
                steps,
                rho,
                stop: false,
                ..ApgdT::new(budget)
            };
            let targets = reference.numbers("target")?;
            let images = attack.perturb_toward(&targets, start, model, clean, labels, &pass)?;
            return Ok((images, trace));
        }
        "apgd_dlr_linf" => Loss::Dlr,
        _ => Loss::CrossEntropy,
    };
    let attack = Apgd {
        steps,
        rho,
        stop: false,
        ..Apgd::new(budget, loss)
    };
    let images = attack.perturb_from(start, model, clean, Aim::Away(labels), &pass)?;
    Ok((images, trace))
}

fn disagreements(reference: &Reference) -> Result<Vec<String>> {
    let start = reference.start_at(&reference.noise_of_norm_one()?)?;
    let (returned, trace) = run(reference, &start)?;
    let fooled = trace.ever_fooled();
    // The reference returns the start where nothing fooled the model.
    let moved = returned.select(&fooled, &start)?;
    let mut found = reference.differences(&moved, trace.iterates(reference, 1)?.as_ref())?;
    let flags = reference.numbers("still_correct")?;
    let expected: Vec<bool> = flags.iter().map(|flag| *flag == 0).collect();
    found.extend(reference.compare_flags("the images ever fooled", &fooled, &expected));
    if reference.dtype == DType::F64 {
        let (best, images) = trace.best()?;
        let theirs = values(reference.get("best_loss"))?;
        for (i, (ours, theirs)) in best.iter().zip(&theirs).enumerate() {
            if (ours - theirs).abs() > reference.entry.tolerance.f64 {
                found.push(format!(
                    "the best loss of image {i} is {ours}, expected {theirs}"
                ));
            }
        }
        let first = images.narrow(0, 0, reference.get("best_loss_adv").dims()[0])?;
        found.extend(reference.compare("the best points", &first, "best_loss_adv", 1.0)?);
        // Where nothing fooled the model, ours returns the best point.
        let expected = returned.select(&fooled, &Pixels::new(images)?)?;
        if largest_difference(returned.tensor(), expected.tensor())? != 0.0 {
            found.push("an image that never fooled the model is not the best point".to_owned());
        }
    }
    Ok(found)
}

#[test]
fn apgd_agrees_in_f64() -> Result<()> {
    all_agree(&["apgd"], ALL, DType::F64, disagreements)
}

#[test]
fn apgd_agrees_in_f32() -> Result<()> {
    all_agree(&["apgd"], ALL, DType::F32, disagreements)
}
