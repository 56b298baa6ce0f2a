//! What the random self-ensemble promises.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use candle_core::{DType, Device, Tensor};
use theriac::{Batch, Classifier as _, Ensemble, Labels, Mode, Pass, Pixels, Result, Run};
use theriac_data::{Loader, Order, Partial, synthetic};
use theriac_models::{lenet, resnet_v1, resnet18_cifar};
use theriac_nn::{Conv, Layer, Layers, Network, Params, Plain, VarBuilder};
use theriac_rse::Rse;

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

/// A convolution with the identity shows its noise: the deviations of the paper, independent of
/// each other, on in both modes.
#[test]
fn convolutions_read_noise_of_the_given_size() -> Result<()> {
    let run = Run::new(2, &Device::Cpu);
    for (channels, std) in [(3, 0.2), (5, 0.1)] {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let conv = Conv::new(channels, channels, 1).no_bias();
        let mut net = Network::new(1);
        let layer = Rse::default().hook().conv(&conv, params.frozen().pp("c"))?;
        net.layer(net.image(), layer);
        let eye = Tensor::eye(channels, DType::F32, &Device::Cpu)?;
        params.all()[0]
            .1
            .set(&eye.reshape((channels, channels, 1, 1))?)?;
        let x = Tensor::zeros((20, channels, 20, 20), DType::F32, &Device::Cpu)?;
        let ids: Vec<u32> = (0..20).collect();
        let n = (20 * channels * 400) as f64;
        let mut seen = Vec::new();
        for mode in [Mode::Train, Mode::Eval] {
            let pass = Pass {
                mode,
                ..run.eval(&ids)
            };
            let noise = host(&net.forward(&x, &pass)?);
            let mean = noise.iter().sum::<f64>() / n;
            let second = noise.iter().map(|v| v * v).sum::<f64>() / n;
            assert!(mean.abs() < 4.0 * std / n.sqrt(), "{mean}");
            assert!((second.sqrt() / std - 1.0).abs() < 4.0 / (2.0 * n).sqrt());
            seen.push(noise);
        }
        assert_eq!(seen[0], seen[1]);
        let half = seen[0].len() / 2;
        let (first, last) = seen[0].split_at(half);
        let product: f64 = first.iter().zip(last).map(|(a, b)| a * b).sum();
        assert!(product.abs() < 4.0 * std * std * (half as f64).sqrt());
    }
    Ok(())
}

/// No parameter is added, and without noise it is the plain network, bit for bit.
#[test]
fn without_noise_it_is_the_plain_network() -> Result<()> {
    let batch = batch(20, [3, 32, 32]);
    let run = Run::new(2, &Device::Cpu);
    let pass = run.eval(&batch.samples);
    let params = Params::new(0, DType::F32, &Device::Cpu);
    let still = Rse {
        init: 0.0,
        inner: 0.0,
        ..Rse::default()
    };
    let noiseless = resnet_v1(&still.hook(), params.frozen(), 8, 16, 10)?;
    let plain = resnet_v1(&Plain, params.frozen(), 8, 16, 10)?;
    let count = params.count();
    let noisy = resnet_v1(&Rse::default().hook(), params.frozen(), 8, 16, 10)?;
    assert_eq!(params.count(), count);
    let logits = |net: &Network| Ok::<_, theriac::Error>(host(&net.logits(&batch.pixels, &pass)?));
    assert_eq!(logits(&noiseless)?, logits(&plain)?);
    assert_ne!(logits(&noisy)?, logits(&plain)?);
    let wrong = Rse {
        inner: -1.0,
        ..Rse::default()
    };
    let error = resnet_v1(&wrong.hook(), params.frozen(), 8, 16, 10)
        .err()
        .unwrap();
    assert!(error.to_string().starts_with("inner"), "{error}");
    Ok(())
}

/// Lets a hook build its layers and counts the convolutions that carry noise of their own.
struct Counting<'a> {
    hook: &'a dyn Layers,
    seen: std::cell::RefCell<Vec<Vec<f64>>>,
}

impl Layers for Counting<'_> {
    fn conv(&self, conv: &Conv, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        let layer = self.hook.conv(conv, vb)?;
        let x = Tensor::zeros((1, conv.inputs, 8, 8), DType::F32, &Device::Cpu)?;
        let run = Run::new(2, &Device::Cpu);
        // What comes out of black images is the noise through the convolution.
        let mut out = host(&layer.forward(&x, &run.eval(&[0]))?);
        out.truncate(16);
        self.seen.borrow_mut().push(out);
        Ok(layer)
    }
}

/// All convolutions of a network, those of shortcuts among them, read noise, each its own.
#[test]
fn every_convolution_of_a_network_has_noise_of_its_own() -> Result<()> {
    let rse = Rse::default();
    let counting = Counting {
        hook: &rse.hook(),
        seen: std::cell::RefCell::default(),
    };
    let params = Params::new(0, DType::F32, &Device::Cpu);
    resnet18_cifar(&counting, params.frozen(), 10)?;
    let seen = counting.seen.into_inner();
    // A stem, eight blocks of two, three shortcuts.
    assert_eq!(seen.len(), 20);
    for (i, noise) in seen.iter().enumerate() {
        assert!(
            noise.iter().any(|value| value.abs() > 1e-3),
            "convolution {i}"
        );
    }
    // Purposes differ: the same weights under two paths give other noise.
    let at = |path: &str| -> Result<Vec<f64>> {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let conv = Conv::new(4, 4, 1).no_bias();
        let layer = rse.hook().conv(&conv, params.frozen().pp(path))?;
        let eye = Tensor::eye(4, DType::F32, &Device::Cpu)?;
        params.all()[0].1.set(&eye.reshape((4, 4, 1, 1))?)?;
        let x = Tensor::zeros((1, 4, 8, 8), DType::F32, &Device::Cpu)?;
        Ok(host(
            &layer.forward(&x, &Run::new(2, &Device::Cpu).eval(&[0]))?,
        ))
    };
    assert_ne!(at("a")?, at("b")?);
    assert_eq!(at("a")?, at("a")?);
    Ok(())
}

#[test]
fn an_ensemble_varies_less_than_a_member_and_does_not_depend_on_the_batch() -> Result<()> {
    let batch = batch(24, [1, 28, 28]);
    let run = Run::new(2, &Device::Cpu);
    let params = Params::new(0, DType::F32, &Device::Cpu);
    let rse = Rse {
        channels: 1,
        inner: 0.5,
        ..Rse::default()
    };
    let net = lenet(&rse.hook(), params.frozen())?;
    let spread = |members| -> Result<f64> {
        let model = Ensemble::new(&net, members);
        let draws = (0..12).map(|k| {
            let pass = run.eval(&batch.samples).at(k);
            Ok(host(&model.logits(&batch.pixels, &pass)?.exp()?))
        });
        let draws = draws.collect::<Result<Vec<_>>>()?;
        let mean = |i: usize| draws.iter().map(|d| d[i]).sum::<f64>() / 12.0;
        let of = |i: usize| draws.iter().map(|d| (d[i] - mean(i)).powi(2)).sum::<f64>();
        Ok((0..draws[0].len()).map(of).sum())
    };
    // The variance of a mean of 16 is a sixteenth.
    let ratio = spread(1)? / spread(16)?;
    assert!((8.0..32.0).contains(&ratio), "{ratio}");
    let model = Ensemble::new(&net, 5);
    let logits =
        |x: &Pixels, ids: &[u32]| Ok::<_, theriac::Error>(host(&model.logits(x, &run.eval(ids))?));
    let whole = logits(&batch.pixels, &batch.samples)?;
    let part = logits(&batch.pixels.narrow(9, 4)?, &batch.samples[9..13])?;
    assert_eq!(part, whole[90..130]);
    Ok(())
}
