//! What parametric noise injection promises.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use candle_core::{DType, Device, Tensor, Var};
use theriac::{Batch, Classifier as _, Labels, Mode, Pixels, Result, Run};
use theriac_adversarial::AdversarialTraining;
use theriac_attacks::Pgd;
use theriac_data::{Loader, Order, Partial, synthetic};
use theriac_models::{lenet, resnet_v1};
use theriac_nn::{Layers as _, Linear, Network, Params, Plain, Twin};
use theriac_pni::{Granularity, Pni};
use theriac_train::{LabelSource, Objective as _, Schedule, Sgd};

fn batch(n: usize) -> Batch<Labels> {
    let run = Run::new(0, &Device::Cpu);
    let images = synthetic(n, [1, 28, 28], 10, &run.rng()).unwrap();
    let loader = Loader::new(&images, n, Order::Sequential, Partial::Keep).unwrap();
    loader.epoch(0).next().unwrap().unwrap()
}

fn host(x: &Tensor) -> Vec<f64> {
    let x = x.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    x.to_vec1().unwrap()
}

fn find(params: &Params, path: &str) -> Var {
    params.all().into_iter().find(|(p, _)| p == path).unwrap().1
}

#[test]
fn an_alpha_for_each_layer_channel_or_weight() {
    // ResNet-20: 19 convolutions and the last layer; 688 channels and 10; 268,336 weights and 640.
    for (granularity, count) in [
        (Granularity::Layer, 20),
        (Granularity::Channel, 688 + 10),
        (Granularity::Element, 267_696 + 640),
    ] {
        let pni = Pni {
            granularity,
            ..Pni::default()
        };
        let params = Params::new(0, DType::F32, &Device::Cpu);
        resnet_v1(&pni.hook(), params.live(), 20, 16, 10).unwrap();
        let alphas = pni.alphas(&params).unwrap();
        let values: Vec<f64> = alphas.iter().flat_map(|(_, alpha)| host(alpha)).collect();
        assert_eq!((values.len(), params.count()), (count, 269_722 + count));
        assert!(values.iter().all(|alpha| *alpha == 0.25));
    }
    let params = Params::new(0, DType::F32, &Device::Cpu);
    lenet(&Plain, params.live()).unwrap();
    assert!(Pni::default().alphas(&params).is_err());
}

/// A layer that reads unit vectors shows its weights.
#[test]
fn weights_scatter_by_alpha_times_their_deviation() -> Result<()> {
    let params = Params::new(3, DType::F64, &Device::Cpu);
    let pni = Pni::default();
    let spec = Linear::new(100, 80);
    let mut net = Network::new(80);
    let h = net.flatten(net.image());
    net.layer(h, pni.hook().linear(&spec, params.live().pp("fc"))?);
    let (weight, alpha) = (find(&params, "fc.weight"), find(&params, "fc.alpha"));
    let x = Tensor::eye(100, DType::F64, &Device::Cpu)?.reshape((100, 1, 10, 10))?;
    let (ids, run) = ((0..100).collect::<Vec<u32>>(), Run::new(1, &Device::Cpu));
    let shown = |step| {
        let logits = net.forward(&x, &run.eval(&ids).at(step))?;
        let rows = logits.broadcast_sub(find(&params, "fc.bias").as_tensor())?;
        Ok::<_, theriac::Error>(rows.t()?.contiguous()?)
    };
    let w = host(&weight);
    let mean = w.iter().sum::<f64>() / 8000.0;
    let std = (w.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / 7999.0).sqrt();
    let noise: Vec<f64> = host(&(shown(0)? - weight.as_tensor())?);
    let second = noise.iter().map(|n| n * n).sum::<f64>() / 8000.0;
    // Four standard errors of a variance from 8,000 draws.
    assert!((second.sqrt() / (0.25 * std) - 1.0).abs() < 4.0 / 16_000f64.sqrt());
    assert_eq!(host(&shown(0)?), host(&shown(0)?));
    assert_ne!(host(&shown(0)?), host(&shown(1)?));
    // The gradient by alpha is the sum of g std n; that by the weight is g.
    let grads = shown(0)?.sqr()?.sum_all()?.backward()?;
    let seen = host(&shown(0)?);
    let by_alpha: f64 = seen
        .iter()
        .zip(&noise)
        .map(|(y, n)| 2.0 * y * n / 0.25)
        .sum();
    let found = host(grads.get(&alpha).unwrap())[0];
    assert!((found / by_alpha - 1.0).abs() < 1e-9, "{found} {by_alpha}");
    for (g, y) in host(grads.get(&weight).unwrap()).iter().zip(&seen) {
        assert!((g - 2.0 * y).abs() < 1e-9);
    }
    Ok(())
}

/// One draw for a batch, cut or whole; f32 in one operation as f64 step by step.
#[test]
fn a_pass_has_one_draw_however_the_batch_is_cut() -> Result<()> {
    let batch = batch(40);
    let run = Run::new(5, &Device::Cpu);
    for granularity in [
        Granularity::Layer,
        Granularity::Channel,
        Granularity::Element,
    ] {
        let pni = Pni {
            granularity,
            ..Pni::default()
        };
        let logits = |dtype, x: &Pixels, ids: &[u32]| -> Result<Vec<f64>> {
            let params = Params::new(2, dtype, &Device::Cpu);
            let net = lenet(&pni.hook(), params.frozen())?;
            let x = Pixels::new(x.tensor().to_dtype(dtype)?)?;
            Ok(host(&net.logits(&x, &run.eval(ids))?))
        };
        let (x, ids) = (&batch.pixels, &batch.samples[..]);
        let whole = logits(DType::F32, x, ids)?;
        assert_eq!(
            logits(DType::F32, &x.narrow(13, 5)?, &ids[13..18])?,
            whole[130..180]
        );
        for (a, b) in whole.iter().zip(logits(DType::F64, x, ids)?) {
            assert!((a - b).abs() < 1e-5, "{a} against {b}");
        }
    }
    Ok(())
}

#[test]
fn training_moves_alpha_without_decay() -> Result<()> {
    let batch = batch(24);
    let run = Run::new(5, &Device::Cpu);
    let pni = Pni::default();
    let params = Params::new(2, DType::F32, &Device::Cpu);
    let twin = Twin::build(&params, |vb| lenet(&pni.hook(), vb))?;
    let budget = theriac::Budget::linf("8/255".parse()?)?;
    let mut objective = AdversarialTraining {
        attack: Pgd::new(budget, "0.02".parse()?, 2),
        clean_weight: 0.5,
        label: LabelSource::Predicted,
        mode: Mode::Eval,
    };
    let loss = objective.loss(&twin, &batch, &run.train(&batch.samples))?;
    let grads = loss.backward()?;
    for (path, alpha) in pni.alphas(&params)? {
        assert_ne!(host(grads.get(&alpha).unwrap()), [0.0], "{path}");
    }
    let mut rule = Sgd::momentum(0.9);
    rule.weight_decay = 10.0;
    let rate = Schedule::Constant { rate: 0.01 };
    let mut groups = pni.groups(&params, rule, rate)?;
    let plan = theriac_train::Plan {
        epochs: 1,
        batches: 1,
        state: None,
        until: None,
    };
    let before = host(&find(&params, "fc3.alpha"))[0];
    let weight = host(&find(&params, "fc3.weight"))[0];
    let epoch = |_| std::iter::once(Ok(batch.clone()));
    let go_on = |_| std::ops::ControlFlow::Continue(());
    theriac_train::fit(
        &twin,
        &mut theriac_train::Clean,
        &mut groups,
        plan,
        &run,
        epoch,
        go_on,
    )?;
    // A decay of 10 at rate 0.01 takes a tenth of a weight; alpha moves by its gradient alone.
    let after = host(&find(&params, "fc3.alpha"))[0];
    assert!(
        (after / before - 1.0).abs() < 0.05 && after != before,
        "{before} {after}"
    );
    assert!((host(&find(&params, "fc3.weight"))[0] / weight - 0.9).abs() < 0.05);
    Ok(())
}
