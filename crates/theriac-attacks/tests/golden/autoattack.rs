//! AutoAttack, and what no attack may miss.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use serde::Deserialize;
use theriac::{Aim, Attack, Batch, Budget, Eps, Labels, Result, Run, craft, predict};
use theriac_attacks::{
    Apgd, ApgdT, AutoAttack, Fmn, Loss, Pgd, Restarts, Spec, Square, Within, WorstOf,
};

use crate::golden::{self, Vectors};
use crate::golden_models::{Net, load};

#[derive(Deserialize)]
struct Manifest {
    autoattack: Section,
}

#[derive(Deserialize)]
struct Section {
    within: f64,
    within_apgd: f64,
    above: f64,
    models: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    eps: f64,
    seeds: u32,
}

/// Which images an attack breaks.
fn broken(
    attack: &dyn Attack<Net>,
    model: &Net,
    batch: &Batch<Labels>,
    seed: u64,
) -> Result<Vec<bool>> {
    let run = Run::new(seed, &Device::Cpu);
    let pass = run.eval(&batch.samples);
    let moved = craft(
        attack,
        model,
        &batch.pixels,
        Aim::Away(&batch.target),
        &pass,
    )?;
    let predicted = predict(model, &moved, &pass)?.to_vec()?;
    let pairs = predicted.iter().zip(batch.target.to_vec()?);
    Ok(pairs
        .map(|(predicted, label)| *predicted != label)
        .collect())
}

/// Robust accuracy.
fn robust(broken: impl IntoIterator<Item = bool>) -> f64 {
    let broken: Vec<bool> = broken.into_iter().collect();
    broken.iter().filter(|broken| !**broken).count() as f64 / broken.len() as f64
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The first two attacks of the cascade.
fn apgd_pair(budget: Budget) -> WorstOf<Spec> {
    WorstOf {
        attacks: vec![
            Spec::Apgd(Apgd::new(budget, Loss::CrossEntropy)),
            Spec::ApgdT(ApgdT::new(budget)),
        ],
    }
}

/// Rounding of differences of shares.
const ROUNDING: f64 = 1e-9;

/// More attacks than any evaluation needs.
fn everything(budget: Budget) -> Result<WorstOf<Spec>> {
    let many = |attack| {
        let attack = Box::new(attack);
        Spec::Restarts(Restarts { attack, times: 10 })
    };
    let fmn = Fmn {
        steps: 500,
        ..Fmn::new(budget.norm())
    };
    Ok(WorstOf {
        attacks: vec![
            many(Spec::Apgd(Apgd::new(budget, Loss::CrossEntropy))),
            many(Spec::Apgd(Apgd::new(budget, Loss::Dlr))),
            many(Spec::Pgd(Pgd::new(budget, budget.eps().over(8)?, 50))),
            many(Spec::ApgdT(ApgdT::new(budget))),
            Spec::Within(Within {
                budget,
                attack: Box::new(Spec::Fmn(fmn)),
            }),
            Spec::Square(Square::new(budget)),
        ],
    })
}

/// Everything about one network on the first `n` images.
fn agrees(model: &str, n: usize) -> Result<()> {
    let Manifest { autoattack } = golden::manifest();
    let entry = &autoattack.models[model];
    let budget = Budget::linf(Eps::unit(entry.eps)?)?;
    let vectors = Vectors::read(&["autoattack", "facts"])?;
    let twin = load(model, DType::F32)?;
    let net = &twin.frozen;
    let batch = golden::images(n, DType::F32)?;
    // Of few images, one may differ.
    let one = 1.0 / n as f64;

    let after_pair = (0..entry.seeds).map(|seed| {
        let by = vectors.get(&format!("{model}.aa.broken_by.seed{seed}"));
        let by = by.narrow(0, 0, n)?.to_vec1::<i64>()?;
        Ok(robust(by.iter().map(|by| (0..=2).contains(by))))
    });
    let theirs = after_pair.collect::<Result<Vec<_>>>()?;
    let ours = robust(broken(&apgd_pair(budget), net, &batch, 0)?);
    let within = autoattack.within_apgd.max(one) + ROUNDING;
    let close = (ours - mean(&theirs)).abs() <= within;
    assert!(
        close,
        "{model}, APGD alone: {ours}, expected {theirs:?} within {within}"
    );

    let rows = vectors.get(&format!("{model}.aa.broken")).narrow(1, 0, n)?;
    let rows = rows.to_vec2::<u8>()?.into_iter();
    let theirs: Vec<f64> = rows
        .map(|row| robust(row.iter().map(|b| *b == 1)))
        .collect();
    let whole = broken(&AutoAttack::standard(budget), net, &batch, 0)?;
    let ours = robust(whole.iter().copied());
    let within = autoattack.within.max(one) + ROUNDING;
    let above = autoattack.above.max(one) + ROUNDING;
    let off = ours - mean(&theirs);
    let close = off.abs() <= within && off <= above;
    assert!(
        close,
        "{model}: {ours}, expected {theirs:?} within {within}, at most {above} above"
    );

    let known = vectors.numbers(&format!("{model}.broken_by_any"))?;
    let left = (0..n as u32).filter(|&i| known[i as usize] == 1 && !whole[i as usize]);
    let mut survivors: Vec<u32> = left.collect();
    if !survivors.is_empty() {
        let batch = golden::images_at(&survivors, DType::F32)?;
        let broken = broken(&everything(budget)?, net, &batch, 1)?;
        let left = survivors.iter().zip(broken).filter(|(_, broken)| !broken);
        survivors = left.map(|(i, _)| *i).collect();
    }
    assert!(
        survivors.is_empty(),
        "{model}: nothing of ours breaks {survivors:?}"
    );
    Ok(())
}

#[test]
fn autoattack_agrees_on_a_few_images() -> Result<()> {
    agrees("std", 8)?;
    agrees("rob", 8)
}

#[test]
#[ignore = "minutes; run by `cargo test -p theriac-attacks --test golden -- --ignored`"]
fn autoattack_agrees_on_all_images() -> Result<()> {
    agrees("std", 500)?;
    agrees("rob", 500)
}
