//! Who is believed and who is not.

use candle_core::DType;
use theriac::gallery::{Mask, Masked};
use theriac::{Classifier, Result};
use theriac_eval::evaluation::{Profile, Shard, Store};
use theriac_eval::{Evaluation, Finding, Verdict};

use crate::golden_models::load;
use crate::setup::{Golden, manifest, measure, plan};

const IMAGES: usize = 120;

fn evaluate<C: Classifier>(model: &C, random: bool) -> Result<Evaluation> {
    let plan = plan(Profile::Quick, random).with_active_test();
    let mut store = Store::in_memory(manifest(plan, IMAGES, Shard::WHOLE)).unwrap();
    measure(model, &Golden::new(IMAGES), &mut store, 64)
}

fn finding(evaluation: &Evaluation, name: &str) -> Finding {
    let found = evaluation.checks.iter().find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("no check {name}")).finding
}

#[test]
fn ordinary_and_adversarially_trained_models_are_believed() -> Result<()> {
    for model in ["std", "rob", "bn"] {
        let evaluation = evaluate(&load(model, DType::F32)?.frozen, false)?;
        println!("{model}: {evaluation}");
        assert_eq!(evaluation.verdict, Verdict::Reliable, "{model}: {evaluation}");
    }
    Ok(())
}

#[test]
fn masked_models_are_not() -> Result<()> {
    let robust = load("rob", DType::F32)?;
    for (mask, check) in [
        (Mask::Rounded(8), "zero gradients"),
        (Mask::Saturated(1e4), "zero gradients"),
        (Mask::ZeroGradient, "zero gradients"),
        (Mask::ZeroGradient, "finite differences"),
        (Mask::ZeroGradient, "parts without a gradient"),
        (Mask::Noisy(0.5), "determinism"),
        (Mask::BatchNorm, "model state"),
    ] {
        let masked = Masked {
            model: &robust.frozen,
            mask,
        };
        let evaluation = evaluate(&masked, false)?;
        println!("{mask:?}: {evaluation}");
        assert_ne!(evaluation.verdict, Verdict::Reliable, "{mask:?}: {evaluation}");
        assert!(
            finding(&evaluation, check) >= Finding::Questionable,
            "{mask:?}: {evaluation}"
        );
    }
    Ok(())
}

#[test]
fn a_randomised_model_is_judged_by_draws() -> Result<()> {
    let robust = load("rob", DType::F32)?;
    let masked = Masked {
        model: &robust.frozen,
        mask: Mask::Noisy(0.5),
    };
    let single = evaluate(&masked, false)?;
    assert_eq!(finding(&single, "randomised scoring"), Finding::Invalid);
    Ok(())
}
