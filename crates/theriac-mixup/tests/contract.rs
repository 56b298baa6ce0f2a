//! What training on mixtures promises.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use candle_core::{DType, Device, Tensor};
use theriac::{
    Aim, Attack, Batch, Budget, Classifier as _, Eps, Labels, Model, Pass, Pixels, Result, Run,
};
use theriac_attacks::Pgd;
use theriac_data::{Loader, Order, Partial, synthetic};
use theriac_mixup::{InterpolatedAdversarial, Lambda, Mix, Mixup, Pair};
use theriac_models::{lenet, resnet_v1};
use theriac_nn::{Network, Params, Plain, Twin};
use theriac_train::{LabelSource, Objective};

fn batch(n: usize, shape: [usize; 3]) -> Batch<Labels> {
    let run = Run::new(0, &Device::Cpu);
    let images = synthetic(n, shape, 10, &run.rng()).unwrap();
    let loader = Loader::new(&images, n, Order::Sequential, Partial::Keep).unwrap();
    loader.epoch(0).next().unwrap().unwrap()
}

fn network() -> Twin<Network> {
    let params = Params::new(0, DType::F32, &Device::Cpu);
    Twin::build(&params, |vb| lenet(&Plain, vb)).unwrap()
}

fn host(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// The loss of a mixture is the cross entropy with its mixed labels; images mix as their labels.
#[test]
fn images_mix_as_their_labels() {
    let (batch, run, twin) = (batch(12, [1, 28, 28]), Run::new(3, &Device::Cpu), network());
    let pass = run.train(&batch.samples);
    for mix in [
        Mix::default(),
        Mix {
            lambda: Lambda::PerBatch,
            ..Mix::default()
        },
        Mix {
            pair: Pair::Identity,
            alpha: 0.3,
            ..Mix::default()
        },
    ] {
        let mixed = mix.batch(&batch, "clean", &pass).unwrap();
        let (x, y) = (host(batch.pixels.tensor()), batch.target.to_vec().unwrap());
        let (first, second) = (
            mixed.first.to_vec().unwrap(),
            mixed.second.to_vec().unwrap(),
        );
        let weights = host(&mixed.weights);
        assert!(weights.iter().all(|l| (0.0..=1.0).contains(l)));
        let one = weights.iter().all(|l| *l == weights[0]);
        assert_eq!(one, mix.lambda == Lambda::PerBatch);
        // Every image comes once as the first and once as the second.
        for labels in [&first, &second] {
            let (mut labels, mut all) = (labels.clone(), y.clone());
            labels.sort_unstable();
            all.sort_unstable();
            assert_eq!(labels, all);
        }
        assert_eq!(first == y, mix.pair == Pair::Identity);
        let image = |i: usize| &x[i * 784..(i + 1) * 784];
        for (i, mixture) in host(mixed.pixels.tensor()).chunks(784).enumerate() {
            let fits = |a: usize, b: usize| {
                let both = image(a).iter().zip(image(b)).zip(mixture);
                let mut gaps = both.map(|((a, b), m)| weights[i] * a + (1.0 - weights[i]) * b - m);
                gaps.all(|gap| gap.abs() < 1e-5)
            };
            let pairs = (0..12).flat_map(|a| (0..12).map(move |b| (a, b)));
            let (a, b) = pairs.into_iter().find(|&(a, b)| fits(a, b)).unwrap();
            assert_eq!((y[a], y[b]), (first[i], second[i]));
        }
        let logits = twin.live.logits(&mixed.pixels, &pass).unwrap();
        let mut soft = vec![0f32; 120];
        for i in 0..12 {
            soft[i * 10 + first[i] as usize] += weights[i];
            soft[i * 10 + second[i] as usize] += 1.0 - weights[i];
        }
        let soft = Tensor::from_vec(soft, (12, 10), &Device::Cpu).unwrap();
        let expected = theriac_ops::cross_entropy_soft(&logits, &soft).unwrap();
        for (a, e) in host(&mixed.losses(&logits).unwrap())
            .iter()
            .zip(host(&expected))
        {
            assert!((a - e).abs() < 1e-5, "{a} against {e}");
        }
        let loss = Mixup { mix }.loss(&twin, &batch, &pass).unwrap();
        let expected = expected.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((loss.to_scalar::<f32>().unwrap() - expected).abs() < 1e-5);
    }
    let wrong = Mix {
        alpha: 0.0,
        ..Mix::default()
    };
    let error = wrong.batch(&batch, "clean", &pass).unwrap_err().to_string();
    assert!(error.contains("alpha"), "{error}");
}

#[test]
fn a_step_mixes_as_it_did_and_the_next_one_differs() {
    let (batch, run) = (batch(12, [1, 28, 28]), Run::new(3, &Device::Cpu));
    let mixed = |pass: Pass<'_>, purpose| {
        let mixed = Mix::default().batch(&batch, purpose, &pass).unwrap();
        host(mixed.pixels.tensor())
    };
    let pass = run.train(&batch.samples);
    assert_eq!(mixed(pass.at(4), "clean"), mixed(pass.at(4), "clean"));
    assert_ne!(mixed(pass.at(4), "clean"), mixed(pass.at(5), "clean"));
    assert_ne!(mixed(pass.at(4), "clean"), mixed(pass.at(4), "adversarial"));
}

/// Sees what it is asked, and moves nothing.
struct Spy(std::sync::Mutex<Vec<(theriac::Mode, Vec<u32>)>>);

impl<M: Model<Target = Labels> + ?Sized> Attack<M> for Spy {
    fn perturb(
        &self,
        _: &M,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        assert!(matches!(aim, Aim::Away(_)));
        let seen = (pass.mode, aim.target().to_vec()?);
        self.0.lock().unwrap().push(seen);
        Ok(clean.clone())
    }
}

#[test]
fn iat_attacks_unmixed_images_in_evaluation_mode_away_from_the_prediction() {
    let (batch, run, twin) = (batch(12, [1, 28, 28]), Run::new(3, &Device::Cpu), network());
    let pass = run.train(&batch.samples);
    let spy = Spy(std::sync::Mutex::default());
    let predicted = theriac::predict(&twin.frozen, &batch.pixels, &pass.eval()).unwrap();
    let (predicted, truth) = (predicted.to_vec().unwrap(), batch.target.to_vec().unwrap());
    assert_ne!(predicted, truth);
    for (label, expected) in [
        (LabelSource::Predicted, predicted),
        (LabelSource::True, truth),
    ] {
        let mut objective = InterpolatedAdversarial {
            label,
            ..InterpolatedAdversarial::new(&spy)
        };
        objective.loss(&twin, &batch, &pass).unwrap();
        let seen = spy.0.lock().unwrap().pop().unwrap();
        assert_eq!(seen, (theriac::Mode::Eval, expected));
    }
}

/// Without batch norm the two halves of one pass are two passes; with the weights at 0 or 1 each
/// loss is one of them.
#[test]
fn iat_weighs_two_mixtures() {
    let (batch, run, twin) = (batch(12, [1, 28, 28]), Run::new(3, &Device::Cpu), network());
    let pass = run.train(&batch.samples);
    let budget = Budget::linf("8/255".parse().unwrap()).unwrap();
    let attack = Pgd::new(budget, Eps::of_255(2.0).unwrap(), 4);
    let with = |clean_weight| {
        let mut objective = InterpolatedAdversarial {
            clean_weight,
            ..InterpolatedAdversarial::new(attack)
        };
        let loss = objective.loss(&twin, &batch, &pass).unwrap();
        f64::from(loss.to_scalar::<f32>().unwrap())
    };
    let (adversarial, half, clean) = (with(0.0), with(0.5), with(1.0));
    let plain = Mixup::default().loss(&twin, &batch, &pass).unwrap();
    assert!((clean - f64::from(plain.to_scalar::<f32>().unwrap())).abs() < 1e-6);
    assert!((half - (clean + adversarial) / 2.0).abs() < 1e-6);
    assert!((adversarial - clean).abs() > 1e-4);
}

/// With batch norm both halves share statistics: the loss is not the mean of two passes.
#[test]
fn iat_halves_share_the_statistics_of_batch_norm() {
    let (batch, run) = (batch(12, [3, 16, 16]), Run::new(3, &Device::Cpu));
    let pass = run.train(&batch.samples);
    let twin = || {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        Twin::build(&params, |vb| resnet_v1(&Plain, vb, 8, 16, 10)).unwrap()
    };
    let spy = Spy(std::sync::Mutex::default());
    let mut objective = InterpolatedAdversarial::new(&spy);
    let joint = twin();
    let loss = objective.loss(&joint, &batch, &pass).unwrap();
    let mix = Mix::default();
    let apart = ["clean", "adversarial"].map(|half| {
        let mixed = mix.batch(&batch, half, &pass).unwrap();
        let logits = twin().live.logits(&mixed.pixels, &pass).unwrap();
        mixed
            .losses(&logits)
            .unwrap()
            .mean_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
    });
    let loss = loss.to_scalar::<f32>().unwrap();
    assert!(
        (loss - (apart[0] + apart[1]) / 2.0).abs() > 1e-5,
        "{loss}, {apart:?}"
    );
    // One update of the running statistics, not two.
    let moved = |twin: &Twin<Network>| {
        let all = twin.params.all();
        let (_, mean) = all
            .iter()
            .find(|(path, _)| path == "bn1.running_mean")
            .unwrap();
        host(mean.as_tensor())
    };
    let both = |half: &str| mix.batch(&batch, half, &pass).unwrap().pixels;
    let fresh = twin();
    let pixels = Pixels::cat(&[both("clean"), both("adversarial")]).unwrap();
    let samples = batch.samples.repeat(2);
    fresh.live.logits(&pixels, &pass.over(&samples)).unwrap();
    assert_eq!(moved(&joint), moved(&fresh));
}
