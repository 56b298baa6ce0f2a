//! What PixelDP promises.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use candle_core::{DType, Device, Tensor};
use theriac::{Batch, Classifier as _, Labels, Pixels, Result, Run};
use theriac_data::{Loader, Order, Partial, synthetic};
use theriac_models::{lenet, resnet_v1};
use theriac_nn::{Conv, Layers as _, Network, Params, Plain, Twin};
use theriac_pixeldp::{PixelDp, votes};
use theriac_train::{Clean, Group, Plan, Schedule, Sgd, fit};

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

/// Largest factor by which a linear map lengthens a vector, by power iteration with its gradient.
fn factor(net: &Network, shape: (usize, usize, usize)) -> f64 {
    let (c, h, w) = shape;
    let run = Run::new(0, &Device::Cpu);
    let pass = run.eval(&[0]);
    let length = |x: &Tensor| host(x).iter().map(|v| v * v).sum::<f64>().sqrt();
    let start = run.rng().normal("start", 0, c * h * w);
    let mut x = Tensor::from_vec(start, (1, c, h, w), &Device::Cpu).unwrap();
    let mut found = 0.0;
    for _ in 0..60 {
        x = (&x / length(&x)).unwrap();
        let var = candle_core::Var::from_tensor(&x).unwrap();
        let y = net.step_by_step(var.as_tensor(), &pass).unwrap();
        found = length(&y);
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        x = grads.get(var.as_tensor()).unwrap().detach();
    }
    found
}

/// After training, and before, the first convolution lengthens nothing; the bound holds for the
/// map itself, with windows that overlap and with a stride.
#[test]
fn the_first_convolution_lengthens_no_vector() -> Result<()> {
    for (kernel, stride) in [(3, 1), (1, 1), (5, 2), (4, 3)] {
        let method = PixelDp {
            stride,
            ..PixelDp::default()
        };
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let mut net = Network::new(1);
        let conv = Conv::new(3, 16, kernel)
            .stride(stride)
            .padding(kernel / 2)
            .no_bias();
        net.layer(net.image(), Plain.conv(&conv, params.live().pp("c"))?);
        let (_, weight) = params.all().remove(0);
        weight.set(&weight.as_tensor().affine(20.0, 0.0)?)?;
        let before = method.sensitivity(&params)?;
        assert!(factor(&net, (3, 12, 12)) <= before * 1.0001);
        assert!(before > 1.0);
        if kernel == 1 {
            // No windows overlap: the bound is the factor.
            assert!(factor(&net, (3, 12, 12)) > 0.99 * before);
        }
        method.objective(Clean, &params)?;
        let after = method.sensitivity(&params)?;
        assert!(after <= 1.0, "{after}");
        assert!(factor(&net, (3, 12, 12)) <= 1.0);
    }
    Ok(())
}

#[test]
fn training_keeps_the_sensitivity() -> Result<()> {
    let batch = batch(16, [3, 16, 16]);
    let run = Run::new(0, &Device::Cpu);
    let method = PixelDp::default();
    let params = Params::new(1, DType::F32, &Device::Cpu);
    let twin = Twin::build(&params, |vb| resnet_v1(&method.hook(), vb, 8, 8, 10))?;
    let mut objective = method.objective(Clean, &params)?;
    let first = host(method.first(&params)?.as_tensor());
    let rate = Schedule::Constant { rate: 0.5 };
    let mut groups = [Group::new(params.trainable(), Sgd::momentum(0.9), rate)?];
    let plan = Plan {
        epochs: 3,
        batches: 1,
        state: None,
        until: None,
    };
    let epoch = |_| std::iter::once(Ok(batch.clone()));
    let go_on = |_| std::ops::ControlFlow::Continue(());
    fit(&twin, &mut objective, &mut groups, plan, &run, epoch, go_on)?;
    assert!(method.sensitivity(&params)? <= 1.0);
    assert_ne!(host(method.first(&params)?.as_tensor()), first);
    Ok(())
}

/// A projection of Parseval networks leads all singular values to 1.
#[test]
fn parseval_steps_make_rows_orthonormal() -> Result<()> {
    let method = PixelDp {
        parseval_step: 0.1,
        parseval_loops: 300,
        ..PixelDp::default()
    };
    let params = Params::new(1, DType::F32, &Device::Cpu);
    let mut net = Network::new(1);
    let conv = Conv::new(3, 5, 3).no_bias();
    net.layer(net.image(), Plain.conv(&conv, params.live().pp("c"))?);
    method.objective(Clean, &params)?;
    let v = (method.first(&params)?.as_tensor().flatten_from(1)? * 3.0)?;
    let gram = host(&v.matmul(&v.t()?)?);
    for (i, g) in gram.iter().enumerate() {
        let expected = if i % 6 == 0 { 1.0 } else { 0.0 };
        // The rows are divided by a bound that is up to 0.1 % above 1.
        assert!((g - expected).abs() < 4e-3, "{gram:?}");
    }
    Ok(())
}

/// Noise of the mechanism's deviation stands behind the first convolution, and only there.
#[test]
fn noise_stands_behind_the_first_convolution() -> Result<()> {
    let method = PixelDp::default();
    let params = Params::new(1, DType::F32, &Device::Cpu);
    let conv = Conv::new(3, 4, 3).padding(1).no_bias();
    let mut noisy = Network::new(1);
    noisy.layer(
        noisy.image(),
        method.hook().conv(&conv, params.frozen().pp("c"))?,
    );
    let mut plain = Network::new(1);
    plain.layer(plain.image(), Plain.conv(&conv, params.frozen().pp("c"))?);
    let (x, ids) = (batch(20, [3, 16, 16]).pixels, (0..20).collect::<Vec<u32>>());
    let run = Run::new(3, &Device::Cpu);
    let pass = run.eval(&ids);
    let noise = (noisy.forward(x.tensor(), &pass)? - plain.forward(x.tensor(), &pass)?)?;
    let noise = host(&noise);
    let n = noise.len() as f64;
    let second = noise.iter().map(|v| v * v).sum::<f64>() / n;
    assert!((second.sqrt() / method.std() - 1.0).abs() < 4.0 / (2.0 * n).sqrt());

    let strided = PixelDp {
        stride: 2,
        ..PixelDp::default()
    };
    let error = strided
        .hook()
        .conv(&conv, params.frozen().pp("c"))
        .err()
        .unwrap();
    assert!(error.to_string().starts_with("stride"), "{error}");
    let other = Conv::new(4, 4, 3);
    assert!(strided.hook().conv(&other, params.frozen().pp("d")).is_ok());
    assert!(
        method
            .first(&Params::new(0, DType::F32, &Device::Cpu))
            .is_err()
    );
    Ok(())
}

/// The mean over draws of a network is private: votes are those of single passes.
#[test]
fn votes_count_predictions_of_single_draws() -> Result<()> {
    let batch = batch(6, [1, 28, 28]);
    let method = PixelDp {
        channels: 1,
        size: 1.0,
        ..PixelDp::default()
    };
    let params = Params::new(1, DType::F32, &Device::Cpu);
    let net = lenet(&method.hook(), params.frozen())?;
    let run = Run::new(3, &Device::Cpu);
    let count = |x: &Pixels, ids: &[u32]| votes(&net, x, 30, &run.eval(ids));
    let all = count(&batch.pixels, &batch.samples)?;
    assert!(all.iter().all(|votes| votes.iter().sum::<u32>() == 30));
    assert_eq!(
        count(&batch.pixels.narrow(2, 1)?, &batch.samples[2..3])?,
        all[2..3]
    );
    let mut expected = vec![0; 10];
    for draw in 0..30 {
        let logits = net.logits(&batch.pixels, &run.eval(&batch.samples).fork(draw))?;
        expected[Labels::most_likely(&logits)?.to_vec()?[0] as usize] += 1;
    }
    assert_eq!(all[0], expected);
    Ok(())
}
