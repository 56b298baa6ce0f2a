//! The smallest distances known.

use candle_core::{DType, Device};
use serde::Deserialize;
use theriac::{Aim, Attack, Norm, Result, Run, craft, predict};
use theriac_attacks::{CarliniWagner, Ddn, DeepFool, Fab, Fmn};

use crate::golden::{self, Vectors, values};
use crate::golden_models::{Net, load};
use crate::reference::{ALL, median};

#[derive(Deserialize)]
struct Manifest {
    facts: Facts,
}

#[derive(Deserialize)]
struct Facts {
    median_ratio: f64,
}

/// Our attacks that look for the smallest distance, with about the work of the reference's.
fn attacks(norm: Norm) -> Vec<Box<dyn Attack<Net>>> {
    let fab = |targets| Fab {
        steps: 60,
        targets,
        ..Fab::new(norm)
    };
    let mut attacks: Vec<Box<dyn Attack<Net>>> = vec![
        Box::new(DeepFool::new(norm)),
        Box::new(fab(None)),
        Box::new(fab(Some(9))),
        Box::new(Fmn {
            steps: 200,
            ..Fmn::new(norm)
        }),
    ];
    if norm == Norm::L2 {
        attacks.push(Box::new(Ddn {
            steps: 300,
            ..Ddn::default()
        }));
        attacks.push(Box::new(CarliniWagner {
            confidence: 0.0,
            steps: 250,
            search_steps: 7,
            learning_rate: 0.02,
            initial_c: 0.1,
            abort_early: false,
        }));
    }
    attacks
}

/// Asserts that on the first `n` images the closest of our images are about as close as any known,
/// in the median.
fn agrees(model: &str, norm: Norm, n: usize) -> Result<()> {
    let vectors = Vectors::read(&["facts"])?;
    let known = values(vectors.get(&format!("{model}.{norm}.best")))?;
    let index = vectors.numbers(&format!("{model}.index"))?;
    let n = n.min(index.len());
    let batch = golden::images_at(&index[..n], DType::F32)?;
    let twin = load(model, DType::F32)?;
    let labels = batch.target.to_vec()?;
    let run = Run::new(0, &Device::Cpu);
    let pass = run.eval(&batch.samples);
    let mut best = vec![f64::INFINITY; n];
    for attack in attacks(norm) {
        let aim = Aim::Away(&batch.target);
        let moved = craft(&*attack, &twin.frozen, &batch.pixels, aim, &pass)?;
        let predicted = predict(&twin.live, &moved, &pass)?.to_vec()?;
        let away = norm.of(&(moved.tensor() - batch.pixels.tensor())?)?;
        for i in (0..n).filter(|&i| predicted[i] != labels[i]) {
            best[i] = best[i].min(away[i]);
        }
    }
    let ratios = best.iter().zip(&known).map(|(ours, best)| ours / best);
    let ratio = median(ratios.collect());
    let Manifest { facts } = golden::manifest();
    assert!(ratio <= facts.median_ratio, "{model} {norm}: {ratio}");
    Ok(())
}

#[test]
fn distances_of_a_few_images_are_about_the_smallest_known() -> Result<()> {
    for model in ["std", "rob"] {
        agrees(model, Norm::Linf, 5)?;
        agrees(model, Norm::L2, 5)?;
    }
    Ok(())
}

#[test]
#[ignore = "minutes; run by `cargo test -p theriac-attacks --test golden -- --ignored`"]
fn distances_of_all_images_are_about_the_smallest_known() -> Result<()> {
    for model in ["std", "rob"] {
        agrees(model, Norm::Linf, ALL)?;
        agrees(model, Norm::L2, ALL)?;
    }
    Ok(())
}
