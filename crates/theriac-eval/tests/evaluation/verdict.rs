//! Who is believed and who is not.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use theriac::gallery::{Mask, Masked};
use theriac::{Budget, Classifier, Eps, Norm, Pass, Pixels, Result, Run};
use theriac_attacks::Spec;
use theriac_eval::evaluation::{Models, Plan, Profile, Role, Shard, Store};
use theriac_eval::{Detector, Evaluation, Finding, Measure, Verdict};

use crate::golden::{self, Vectors};
use crate::golden_models::load;
use crate::setup::{Golden, manifest, measure, plan};

const IMAGES: usize = 120;

fn evaluate<C: Classifier>(model: &C) -> Result<Evaluation> {
    follow(model, plan(Profile::Quick, false).with_active_test())
}

fn follow<C: Classifier>(model: &C, plan: Plan) -> Result<Evaluation> {
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
        let evaluation = evaluate(&load(model, DType::F32)?.frozen)?;
        println!("{model}: {evaluation}");
        assert_eq!(
            evaluation.verdict,
            Verdict::Reliable,
            "{model}: {evaluation}"
        );
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
        let evaluation = evaluate(&masked)?;
        println!("{mask:?}: {evaluation}");
        assert_ne!(
            evaluation.verdict,
            Verdict::Reliable,
            "{mask:?}: {evaluation}"
        );
        assert!(
            finding(&evaluation, check) >= Finding::Questionable,
            "{mask:?}: {evaluation}"
        );
    }
    Ok(())
}

/// A model whose classes are numbered otherwise than the labels.
struct Renumbered<C>(C);

impl<C: Classifier> Classifier for Renumbered<C> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let logits = self.0.logits(x, pass)?;
        let (first, rest) = (logits.narrow(1, 0, 1)?, logits.narrow(1, 1, 9)?);
        Ok(Tensor::cat(&[rest, first], 1)?)
    }

    fn classes(&self) -> usize {
        self.0.classes()
    }
}

#[test]
fn a_model_that_guesses_is_not_believed() -> Result<()> {
    let evaluation = evaluate(&Renumbered(load("std", DType::F32)?.frozen))?;
    assert_eq!(finding(&evaluation, "input range"), Finding::Questionable);
    assert_eq!(evaluation.verdict, Verdict::Questionable, "{evaluation}");
    Ok(())
}

#[test]
fn a_randomised_model_is_judged_by_draws() -> Result<()> {
    let robust = load("rob", DType::F32)?;
    let masked = Masked {
        model: &robust.frozen,
        mask: Mask::Noisy(0.5),
    };
    let single = evaluate(&masked)?;
    assert_eq!(finding(&single, "randomised scoring"), Finding::Invalid);

    // A plan for randomised models, with less work.
    let mut plan = plan(Profile::Quick, true);
    plan.draws = 5;
    plan.few = 8;
    for stage in &mut plan.stages {
        if let Some(Spec::Eot(eot)) = &mut stage.attack {
            eot.draws = 3;
            if let Spec::Apgd(apgd) = &mut *eot.attack {
                apgd.steps = 5;
            }
        }
        if let Some(Spec::Square(square)) = &mut stage.attack {
            square.queries = 20;
        }
    }
    let several = follow(&masked, plan)?;
    println!("{several}");
    assert_eq!(finding(&several, "randomised scoring"), Finding::Passed);
    assert_eq!(finding(&several, "determinism"), Finding::Questionable);
    assert_ne!(several.verdict, Verdict::Reliable);
    let shares = several.table.images.iter().map(|image| image.robust);
    let between = shares.filter(|share| *share > 0.0 && *share < 1.0);
    assert!(between.count() > 0);
    Ok(())
}

/// A detector that measures what no clean image of these has: values between two grey levels.
struct OffGrid;

impl Detector for OffGrid {
    fn suspicion(&self, x: &Pixels, _: &Pass<'_>) -> Result<Vec<f64>> {
        let levels = (x.tensor().to_dtype(DType::F64)? * 255.0)?;
        Norm::L2.of(&(&levels - levels.round()?)?)
    }
}

#[test]
fn a_detector_gets_its_curve() -> Result<()> {
    let twin = load("std", DType::F32)?;
    let mut plan = plan(Profile::Quick, false);
    plan.stages
        .retain(|stage| matches!(stage.role, Role::Clean | Role::Shadow | Role::Cascade));
    let mut store = Store::in_memory(manifest(plan, 30, Shard::WHOLE)).unwrap();
    let (data, run) = (Golden::new(30), Run::new(0, &Device::Cpu));
    let work = Measure {
        models: Models {
            detector: Some(&OffGrid),
            ..Models::of(&twin.frozen)
        },
        data: &data,
        run: &run,
        dtype: DType::F32,
        batch: 16,
    };
    let _ = work.run(&mut store, |_| ControlFlow::Continue(()))?;
    let evaluation = Evaluation::of(&store)?;
    let roc = evaluation.roc.as_ref().unwrap();
    assert!(roc.area > 0.99, "{}", roc.area);
    let aim = evaluation.checks.last().unwrap();
    assert!(aim.detail.contains("area under the curve"), "{aim}");
    Ok(())
}

#[derive(Deserialize)]
struct Reference {
    autoattack: Section,
}

#[derive(Deserialize)]
struct Section {
    models: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    eps: f64,
}

/// Robust accuracy beside AutoAttack's, distances beside the smallest known, on the first images.
fn agrees(profile: Profile, n: usize) -> Result<()> {
    let Reference { autoattack } = golden::manifest();
    let vectors = Vectors::read(&["autoattack", "facts"])?;
    for model in ["std", "rob"] {
        let budget = Budget::linf(Eps::unit(autoattack.models[model].eps)?)?;
        let plan = Plan::new(profile, budget, 10, false)?;
        let mut store = Store::in_memory(manifest(plan, n, Shard::WHOLE)).unwrap();
        let twin = load(model, DType::F32)?;
        let evaluation = measure(&twin.frozen, &Golden::new(n), &mut store, 64)?;
        println!("{model}: {evaluation}");
        assert_eq!(evaluation.verdict, Verdict::Reliable, "{evaluation}");

        let rows = vectors.get(&format!("{model}.aa.broken")).narrow(1, 0, n)?;
        let rows = rows.to_vec2::<u8>()?;
        let resist = |row: &Vec<u8>| row.iter().filter(|broken| **broken == 0).count();
        let theirs = rows.iter().map(resist).sum::<usize>() as f64 / rows.len() as f64;
        let off = evaluation.robust.sum - theirs;
        // The quick profile is no AutoAttack: two images in a hundred may hold out longer.
        let above = match profile {
            Profile::Quick => 0.02 * n as f64,
            _ => (0.002 * n as f64).max(1.0),
        };
        assert!(
            off.abs() <= above.max(2.0) && off <= above,
            "{model}: {off} images off {theirs}"
        );

        let known = golden::values(vectors.get(&format!("{model}.{}.best", Norm::Linf)))?;
        let index = vectors.numbers(&format!("{model}.index"))?;
        let mut ratios = Vec::new();
        for (position, best) in index.into_iter().zip(known) {
            let image = evaluation.table.at(position);
            if let Some(near) = image.and_then(|image| image.nearest) {
                ratios.push(near / best);
            }
        }
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ratios.len() / 2];
        println!(
            "{model}: distances {median:.4} times the smallest known, {}",
            ratios.len()
        );
        assert!((0.99..1.05).contains(&median), "{model}: {median}");
    }
    Ok(())
}

#[test]
fn quick_evaluations_agree_with_the_references() -> Result<()> {
    agrees(Profile::Quick, IMAGES)
}

#[test]
#[ignore = "minutes; run by `cargo test -p theriac-eval --test evaluation -- --ignored`"]
fn standard_evaluations_agree_with_the_references() -> Result<()> {
    agrees(Profile::Standard, 500)
}
