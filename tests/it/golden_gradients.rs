//! Logits, cross entropy and its gradient by the pixels.

use candle_core::{DType, Device};
use theriac::{Classifier, Model, Result, Run, gradient, predict};

use crate::golden::{self, MANIFEST, MODELS, Vectors};
use crate::golden_models::load;
use crate::support::{largest_difference, values};

/// What rounding may do to the gradient of an image in f32, relative to its largest entry. The
/// gradient is `1 - p` times a vector, p the probability of the label, and p itself is rounded to
/// an epsilon in every f32 run.
fn rounding(loss: f64, runs_in_f32: u32) -> f64 {
    f64::from(runs_in_f32) * f64::from(f32::EPSILON) / -(-loss).exp_m1()
}

/// Our run in `ours` against PyTorch's in `theirs`.
fn agree(ours: DType, theirs: DType) -> Result<()> {
    let vectors = Vectors::read(&["gradients"])?;
    let runs_in_f32 = [ours, theirs]
        .iter()
        .filter(|&&dtype| dtype == DType::F32)
        .count() as u32;
    let name = if theirs == DType::F64 { "f64" } else { "f32" };
    for model in MODELS {
        let twin = load(model, ours)?;
        let losses = values(vectors.get(&format!("{model}.{name}.ce")))?;
        let gradients = values(vectors.get(&format!("{model}.{name}.grad_ce")))?;
        let batch = golden::images(losses.len(), ours)?;
        let run = Run::new(0, &Device::Cpu);
        let pass = run.eval(&batch.samples);
        let (loss, g) = gradient(&batch.pixels, &pass, |x| {
            twin.frozen.loss(x, &batch.target, &pass)
        })?;
        let within = MANIFEST.gradients.gradient_within.of(ours);
        let (loss, g) = (values(&loss)?, values(&g)?);
        let each = g.len() / losses.len();
        assert_eq!(g.len(), gradients.len());
        for (i, (got, expected)) in g.chunks(each).zip(gradients.chunks(each)).enumerate() {
            let place = format!("{model} in {ours:?}, image {i}");
            let allowed = within + rounding(losses[i], runs_in_f32);
            let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
            for (got, expected) in got.iter().zip(expected) {
                let off = (got - expected).abs() / largest;
                assert!(
                    off <= allowed,
                    "{place}: {off:e} of the largest, allowed {allowed:e}"
                );
            }
            let off = (loss[i] - losses[i]).abs();
            assert!(
                off <= within * losses[i].max(1.0),
                "{place}: loss off by {off:e}"
            );
        }
    }
    Ok(())
}

#[test]
fn losses_and_gradients_in_f64_agree_with_pytorch() -> Result<()> {
    agree(DType::F64, DType::F64)
}

#[test]
fn losses_and_gradients_in_f32_agree_with_pytorch() -> Result<()> {
    agree(DType::F32, DType::F32)?;
    agree(DType::F32, DType::F64)
}

#[test]
fn logits_agree_with_pytorch() -> Result<()> {
    let vectors = Vectors::read(&["gradients"])?;
    for model in MODELS {
        for (dtype, name) in [(DType::F64, "f64"), (DType::F32, "f32")] {
            let twin = load(model, dtype)?;
            let count: usize = twin
                .params
                .all()
                .iter()
                .map(|(_, var)| var.elem_count())
                .sum();
            assert_eq!(count, MANIFEST.models[model].values, "{model}");
            let expected = vectors.get(&format!("{model}.{name}.logits"));
            let batch = golden::images(expected.dims()[0], dtype)?;
            let run = Run::new(0, &Device::Cpu);
            let logits = twin
                .frozen
                .logits(&batch.pixels, &run.eval(&batch.samples))?;
            let difference = largest_difference(&logits, expected)?;
            let allowed = MANIFEST.gradients.logits_within.of(dtype);
            assert!(
                difference <= allowed,
                "{model} {name}: {difference:e}, allowed {allowed:e}"
            );
        }
    }
    Ok(())
}

#[test]
fn clean_accuracy_is_that_of_the_reference() -> Result<()> {
    let batch = golden::images(500, DType::F32)?;
    let labels = batch.target.to_vec()?;
    for model in MODELS {
        let twin = load(model, DType::F32)?;
        let run = Run::new(0, &Device::Cpu);
        let predicted = predict(&twin.live, &batch.pixels, &run.eval(&batch.samples))?.to_vec()?;
        let correct = predicted
            .iter()
            .zip(&labels)
            .filter(|(a, b)| a == b)
            .count();
        let accuracy = correct as f64 / labels.len() as f64;
        assert_eq!(accuracy, MANIFEST.models[model].clean_accuracy, "{model}");
    }
    Ok(())
}
