//! C&W, DDN and FMN: the smallest distance along a path from the clean image.

use candle_core::{DType, Device};
use theriac::{Aim, Attack, Eps, Pass, Pixels, Result, Run, scores};
use theriac_attacks::{CarliniWagner, Ddn, Fmn};

use crate::golden_models::Net;
use crate::reference::{ALL, Reference, all_agree};
use crate::trace::Trace;

/// Images that C&W is compared on by default.
const FEW: usize = 12;

fn ours(reference: &Reference) -> Result<Box<dyn Attack<Net>>> {
    let (steps, setting) = (reference.steps(), |name| reference.entry.setting(name));
    Ok(match reference.name.as_str() {
        "cw_l2_k0" | "cw_l2_k1" => Box::new(CarliniWagner {
            confidence: setting("kappa"),
            steps,
            search_steps: setting("binary_search_steps") as u32,
            learning_rate: setting("lr"),
            initial_c: setting("c0"),
            abort_early: false,
        }),
        "ddn_l2" => Box::new(Ddn {
            steps,
            gamma: setting("gamma"),
            epsilon: Eps::unit(setting("init_eps"))?,
        }),
        "fmn_linf" => Box::new(Fmn {
            steps,
            step: setting("max_stepsize"),
            gamma: setting("gamma"),
            ..Fmn::new(reference.norm())
        }),
        other => panic!("no implementation of {other}"),
    })
}

fn disagreements(reference: &Reference) -> Result<Vec<String>> {
    let attack = ours(reference)?;
    let trace = Trace::first(6);
    let run = Run::new(0, &Device::Cpu);
    let pass = Pass {
        watch: Some(&trace),
        ..run.eval(&reference.batch.samples)
    };
    let aim = Aim::Away(&reference.batch.target);
    let (model, clean) = (&reference.twin.frozen, &reference.batch.pixels);
    let mut moved = attack.perturb(model, clean, aim, &pass)?;
    let mut found = Vec::new();
    if reference.find("found").is_some() {
        let kappa = reference.entry.setting("kappa");
        let rows = scores(model, &moved, &run.eval(&reference.batch.samples))?;
        let labels = reference.batch.target.to_vec()?;
        let ours: Vec<bool> = rows
            .iter()
            .zip(labels)
            .map(|(row, label)| beaten_by(row, label as usize) >= kappa)
            .collect();
        let flags = reference.numbers("found")?;
        let expected: Vec<bool> = flags.iter().map(|flag| *flag == 1).collect();
        found.extend(reference.compare_flags("the successes", &ours, &expected));
        // The reference returns a black image where it found nothing.
        let black = Pixels::new(clean.tensor().zeros_like()?)?;
        moved = moved.select(&ours, &black)?;
    }
    found.extend(reference.differences(&moved, trace.iterates(reference, 1)?.as_ref())?);
    Ok(found)
}

/// By how much another class beats the label.
fn beaten_by(row: &[f64], label: usize) -> f64 {
    let others = row.iter().enumerate().filter(|(class, _)| *class != label);
    others.map(|(_, z)| *z).fold(f64::NEG_INFINITY, f64::max) - row[label]
}

#[test]
fn carlini_wagner_agrees_in_f64() -> Result<()> {
    all_agree(&["cw"], FEW, DType::F64, disagreements)
}

#[test]
fn carlini_wagner_agrees_in_f32() -> Result<()> {
    all_agree(&["cw"], FEW, DType::F32, disagreements)
}

#[test]
#[ignore = "minutes; run by `cargo test -p theriac-attacks --test golden -- --ignored`"]
fn carlini_wagner_agrees_on_all_images() -> Result<()> {
    all_agree(&["cw"], ALL, DType::F64, disagreements)?;
    all_agree(&["cw"], ALL, DType::F32, disagreements)
}

#[test]
fn ddn_and_fmn_agree_in_f64() -> Result<()> {
    all_agree(&["ddn", "fmn"], ALL, DType::F64, disagreements)
}

#[test]
fn ddn_and_fmn_agree_in_f32() -> Result<()> {
    all_agree(&["ddn", "fmn"], ALL, DType::F32, disagreements)
}
