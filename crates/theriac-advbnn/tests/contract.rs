//! What an adversarial Bayesian network promises.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use candle_core::{DType, Device, Tensor, Var};
use theriac::{
    Aim, Batch, Budget, Classifier as _, Labels, Mode, Pass, Pixels, Result, Run, craft,
};
use theriac_advbnn::AdvBnn;
use theriac_attacks::Pgd;
use theriac_data::{Loader, Order, Partial, synthetic};
use theriac_models::{lenet, resnet_v1};
use theriac_nn::{Layers, Linear, Network, Params, Plain, Twin};
use theriac_train::Objective as _;

fn batch(n: usize, shape: [usize; 3]) -> Batch<Labels> {
    let run = Run::new(0, &Device::Cpu);
    let images = synthetic(n, shape, 10, &run.rng()).unwrap();
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

fn pgd() -> Pgd {
    let budget = Budget::linf("8/255".parse().unwrap()).unwrap();
    Pgd::new(budget, "0.02".parse().unwrap(), 2)
}

/// A deviation for each parameter, and means where the plain network has its parameters.
#[test]
fn every_parameter_has_a_posterior() -> Result<()> {
    let plain = Params::new(0, DType::F32, &Device::Cpu);
    resnet_v1(&Plain, plain.live(), 20, 16, 10)?;
    let params = Params::new(0, DType::F32, &Device::Cpu);
    resnet_v1(&AdvBnn::default().hook(), params.live(), 20, 16, 10)?;
    assert_eq!(params.count(), 2 * plain.count());
    for (path, _) in plain.trainable() {
        let log_std = host(&find(&params, &format!("{path}_log_std")));
        assert!(log_std.iter().all(|s| (s - 0.1f64.ln()).abs() < 1e-6));
    }
    // Means are uniform in 1 / sqrt(fan_in), whatever the network asks for.
    let means = host(&find(&params, "layer1.0.conv1.weight"));
    let largest = means.iter().fold(0f64, |m, v| m.max(v.abs()));
    assert!((0.99 / 12.0..=1.0 / 12.0).contains(&largest), "{largest}");
    Ok(())
}

/// By quadrature: the integral of q log(q / p).
#[test]
fn the_divergence_is_that_of_two_normal_distributions() -> Result<()> {
    let method = AdvBnn {
        prior_std: 0.3,
        ..AdvBnn::default()
    };
    let params = Params::new(0, DType::F64, &Device::Cpu);
    let spec = Linear::new(1, 1);
    let _ = method.hook().linear(&spec, params.live().pp("fc"))?;
    let set = |path: &str, value: f64| {
        let var = find(&params, path);
        var.set(&Tensor::full(value, var.shape(), &Device::Cpu).unwrap())
    };
    let cases = [("weight", 0.4, 0.2f64), ("bias", -0.1, 0.5f64)];
    let mut expected = 0.0;
    for (name, mean, std) in cases {
        set(&format!("fc.{name}"), mean)?;
        set(&format!("fc.{name}_log_std"), std.ln())?;
        let log = |x: f64, m: f64, s: f64| {
            -0.5 * ((x - m) / s).powi(2) - s.ln() - 0.5 * std::f64::consts::TAU.ln()
        };
        let step = 1e-3 * std;
        let at = (-10_000..=10_000).map(|i| mean + f64::from(i) * step);
        let terms = at.map(|x| log(x, mean, std).exp() * (log(x, mean, std) - log(x, 0.0, 0.3)));
        expected += terms.sum::<f64>() * step;
    }
    let objective = method.objective(pgd(), &params, 10)?;
    let divergence = objective.divergence()?;
    let value = divergence.to_scalar::<f64>()?;
    assert!(
        (value - expected).abs() < 1e-6,
        "{value} against {expected}"
    );
    // d/dmu = mu / sigma0^2, d/ds = exp(2 s) / sigma0^2 - 1.
    let grads = divergence.backward()?;
    let slope = |path: &str| host(grads.get(&find(&params, path)).unwrap())[0];
    assert!((slope("fc.weight") - 0.4 / 0.09).abs() < 1e-9);
    assert!((slope("fc.bias_log_std") - (0.25 / 0.09 - 1.0)).abs() < 1e-9);
    Ok(())
}

/// With the divergence weighted by 0 the loss is that of adversarial images alone, made in evaluation
/// mode on the frozen twin.
#[test]
fn the_loss_is_that_of_adversarial_images() -> Result<()> {
    let batch = batch(12, [3, 16, 16]);
    let run = Run::new(3, &Device::Cpu);
    let pass = run.train(&batch.samples);
    let method = AdvBnn {
        kl_weight: 0.0,
        ..AdvBnn::default()
    };
    let build = || {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let twin = Twin::build(&params, |vb| resnet_v1(&method.hook(), vb, 8, 8, 10));
        twin.map(|twin| (params, twin))
    };
    let (params, twin) = build()?;
    let loss = method
        .objective(pgd(), &params, 100)?
        .loss(&twin, &batch, &pass)?;
    // By hand, on a network of its own: training mode moves statistics.
    let (_, twin) = build()?;
    let (x, aim) = (&batch.pixels, Aim::Away(&batch.target));
    let moved = craft(&pgd(), &twin.frozen, x, aim, &pass.eval().fork(0))?;
    let of = |x: &Pixels| {
        let losses = theriac::Model::loss(&twin.live, x, &batch.target, &pass)?;
        Ok::<_, theriac::Error>(host(&losses.mean_all()?)[0])
    };
    let (expected, clean) = (of(&moved)?, of(x)?);
    let loss = host(&loss)[0];
    assert!((loss - expected).abs() < 1e-6, "{loss} against {expected}");
    assert!((expected - clean).abs() > 1e-3);
    Ok(())
}

#[test]
fn the_loss_is_cross_entropy_and_weighted_divergence() -> Result<()> {
    let batch = batch(12, [3, 16, 16]);
    let run = Run::new(3, &Device::Cpu);
    let pass = run.train(&batch.samples);
    let loss = |kl_weight, images| -> Result<(f64, f64)> {
        let method = AdvBnn {
            kl_weight,
            ..AdvBnn::default()
        };
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let twin = Twin::build(&params, |vb| resnet_v1(&method.hook(), vb, 8, 8, 10))?;
        let mut objective = method.objective(pgd(), &params, images)?;
        let loss = objective.loss(&twin, &batch, &pass)?;
        let grads = loss.backward()?;
        for (path, var) in params.trainable() {
            assert!(kl_weight == 0.0 || grads.get(&var).is_some(), "{path}");
        }
        Ok((host(&loss)[0], host(&objective.divergence()?)[0]))
    };
    let (alone, divergence) = loss(0.0, 100)?;
    let (whole, _) = loss(0.5, 100_000)?;
    let expected = alone + 0.5 * divergence / 100_000.0;
    assert!(
        (whole - expected).abs() < 1e-4 * expected,
        "{whole} {expected}"
    );
    assert!(divergence > 1.0);
    Ok(())
}

/// Deviations of nothing are the network of the means, bit for bit; others scatter by their size.
#[test]
fn weights_scatter_by_their_deviation_and_a_pass_has_one_draw() -> Result<()> {
    let params = Params::new(3, DType::F64, &Device::Cpu);
    let hook = AdvBnn::default().hook();
    let mut net = Network::new(80);
    let h = net.flatten(net.image());
    net.layer(
        h,
        hook.linear(&Linear::new(100, 80), params.live().pp("fc"))?,
    );
    let x = Tensor::eye(100, DType::F64, &Device::Cpu)?.reshape((100, 1, 10, 10))?;
    let (ids, run) = ((0..100).collect::<Vec<u32>>(), Run::new(1, &Device::Cpu));
    let logits = |step| Ok::<_, theriac::Error>(net.forward(&x, &run.eval(&ids).at(step))?.t()?);
    // Rows share the bias, which the difference from the mean of a row takes away.
    let seen = (logits(0)? - find(&params, "fc.weight").as_tensor())?;
    let rows = seen.broadcast_sub(&seen.mean_keepdim(1)?)?;
    let second = host(&rows).iter().map(|n| n * n).sum::<f64>() / (80.0 * 99.0);
    assert!((second.sqrt() / 0.1 - 1.0).abs() < 4.0 / 15_840f64.sqrt());
    assert_ne!(host(&logits(0)?), host(&logits(1)?));

    let batch = batch(40, [1, 28, 28]);
    let params = Params::new(3, DType::F32, &Device::Cpu);
    let net = lenet(&hook, params.frozen())?;
    let logits = |net: &Network, x: &Pixels, ids: &[u32], mode| {
        let pass = Pass {
            mode,
            ..run.eval(ids)
        };
        Ok::<_, theriac::Error>(host(&net.logits(x, &pass)?))
    };
    let (x, ids) = (&batch.pixels, &batch.samples[..]);
    let whole = logits(&net, x, ids, Mode::Eval)?;
    let part = logits(&net, &x.narrow(13, 5)?, &ids[13..18], Mode::Eval)?;
    assert_eq!(part, whole[130..180]);
    let plain = lenet(&Plain, params.frozen())?;
    let means = logits(&plain, x, ids, Mode::Eval)?;
    assert_ne!(whole, means);
    for (path, var) in params.all() {
        if path.ends_with("_log_std") {
            var.set(&var.as_tensor().affine(0.0, -200.0)?)?;
        }
    }
    assert_eq!(logits(&net, x, ids, Mode::Eval)?, means);
    Ok(())
}

#[test]
fn refuses_what_cannot_be_meant() -> Result<()> {
    let params = Params::new(3, DType::F32, &Device::Cpu);
    lenet(&Plain, params.live())?;
    let text = |method: AdvBnn, params: &Params, images| {
        let made = method.objective(pgd(), params, images);
        made.err().unwrap().to_string()
    };
    assert!(text(AdvBnn::default(), &params, 10).contains("hook"));
    lenet(&AdvBnn::default().hook(), params.live())?;
    assert!(text(AdvBnn::default(), &params, 0).starts_with("images"));
    for (name, method) in [
        (
            "prior_std",
            AdvBnn {
                prior_std: 0.0,
                ..AdvBnn::default()
            },
        ),
        (
            "init_std",
            AdvBnn {
                init_std: -1.0,
                ..AdvBnn::default()
            },
        ),
        (
            "kl_weight",
            AdvBnn {
                kl_weight: f64::NAN,
                ..AdvBnn::default()
            },
        ),
    ] {
        assert!(text(method, &params, 10).starts_with(name));
    }
    Ok(())
}
