//! What the objectives compute.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use candle_core::{DType, Device, Tensor};
use theriac::{Batch, Classifier as _, Labels, Run};
use theriac_data::{Loader, Order, Partial, synthetic};
use theriac_distillation::{Distillation, Tempered};
use theriac_models::lenet;
use theriac_nn::{Network, Params, Plain, Twin};
use theriac_train::{Clean, Objective};

fn batch() -> Batch<Labels> {
    let run = Run::new(0, &Device::Cpu);
    let images = synthetic(8, [1, 28, 28], 10, &run.rng()).unwrap();
    let loader = Loader::new(&images, 8, Order::Sequential, Partial::Keep).unwrap();
    loader.dtype(DType::F64).epoch(0).next().unwrap().unwrap()
}

fn network(seed: u64) -> Twin<Network> {
    let params = Params::new(seed, DType::F64, &Device::Cpu);
    Twin::build(&params, |vb| lenet(&Plain, vb)).unwrap()
}

fn value(loss: &Tensor) -> f64 {
    loss.to_scalar().unwrap()
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let parts: Vec<f64> = row.iter().map(|z| (z - top).exp()).collect();
    let sum: f64 = parts.iter().sum();
    parts.iter().map(|part| part / sum).collect()
}

/// In plain numbers, from the logits of both.
#[test]
fn the_student_learns_the_teachers_probabilities() {
    let (batch, run) = (batch(), Run::new(0, &Device::Cpu));
    let pass = run.train(&batch.samples);
    let (teacher, student) = (network(1), network(2));
    let rows = |twin: &Twin<Network>| {
        let logits = twin.frozen.logits(&batch.pixels, &pass).unwrap();
        logits.to_vec2::<f64>().unwrap()
    };
    let (taught, learnt) = (rows(&teacher), rows(&student));
    for temperature in [1.0, 20.0] {
        let cool = |row: &[f64]| -> Vec<f64> {
            softmax(&row.iter().map(|z| z / temperature).collect::<Vec<_>>())
        };
        let each = taught.iter().zip(&learnt).map(|(taught, learnt)| {
            let both = cool(taught).into_iter().zip(cool(learnt));
            -both.map(|(p, q)| p * q.ln()).sum::<f64>()
        });
        let expected = each.sum::<f64>() / 8.0;
        let mut objective = Distillation {
            teacher: &teacher.frozen,
            temperature,
        };
        let loss = value(&objective.loss(&student, &batch, &pass).unwrap());
        assert!((loss - expected).abs() < 1e-9, "{loss} against {expected}");
    }
}

#[test]
fn a_temperature_of_one_is_ordinary_training() {
    let (batch, run, twin) = (batch(), Run::new(0, &Device::Cpu), network(1));
    let pass = run.train(&batch.samples);
    let ordinary = value(&Clean.loss(&twin, &batch, &pass).unwrap());
    let at = |temperature| {
        let loss = Tempered { temperature }.loss(&twin, &batch, &pass);
        loss.map(|loss| value(&loss))
    };
    assert!((at(1.0).unwrap() - ordinary).abs() < 1e-12);
    // Infinitely hot, all classes are as likely.
    assert!((at(1e9).unwrap() - 10f64.ln()).abs() < 1e-6);
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let text = at(wrong).unwrap_err().to_string();
        assert!(text.contains("temperature"), "{text}");
    }
}

/// A student that is its teacher has nothing to learn.
#[test]
fn the_teacher_is_the_best_student() {
    let (batch, run, teacher) = (batch(), Run::new(0, &Device::Cpu), network(1));
    let pass = run.train(&batch.samples);
    let mut objective = Distillation {
        teacher: &teacher.frozen,
        temperature: 5.0,
    };
    let loss = objective.loss(&teacher, &batch, &pass).unwrap();
    let grads = loss.backward().unwrap();
    for (path, var) in teacher.params.trainable() {
        let size = grads.get(&var).unwrap().abs().unwrap().max_all().unwrap();
        let size = size.to_scalar::<f64>().unwrap();
        assert!(size < 1e-12, "{path}: {size}");
    }
}
