//! FAB, one run without a random start.

use candle_core::{DType, Device};
use theriac::{Aim, Attack, Pass, Result, Run};
use theriac_attacks::Fab;

use crate::reference::{ALL, Reference, all_agree};
use crate::trace::Trace;

fn disagreements(reference: &Reference) -> Result<Vec<String>> {
    let setting = |name| reference.entry.setting(name);
    let targeted = reference.name.starts_with("fab_t");
    let attack = Fab {
        steps: reference.steps(),
        // Rank 1 is the label, rank 2 the most likely other class.
        targets: targeted.then(|| setting("target_rank") as u32 - 1),
        alpha_max: setting("alpha_max"),
        eta: setting("eta"),
        beta: setting("beta"),
        ..Fab::new(reference.norm())
    };
    let trace = Trace::first(5);
    let run = Run::new(0, &Device::Cpu);
    let pass = Pass {
        watch: Some(&trace),
        ..run.eval(&reference.batch.samples)
    };
    let aim = Aim::Away(&reference.batch.target);
    let moved = attack.perturb(&reference.twin.frozen, &reference.batch.pixels, aim, &pass)?;
    // The first iterate is the first step: the clean image is not scored again.
    reference.differences(&moved, trace.iterates(reference, 0)?.as_ref())
}

#[test]
fn fab_agrees_in_f64() -> Result<()> {
    all_agree(&["fab"], ALL, DType::F64, disagreements)
}

#[test]
fn fab_agrees_in_f32() -> Result<()> {
    all_agree(&["fab"], ALL, DType::F32, disagreements)
}
