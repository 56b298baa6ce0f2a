//! A network run as one operation computes what its steps compute one after the other.

use candle_core::{DType, Device, Tensor};
use theriac::{Batch, Classifier, Labels, Mode, Model, Pass, Pixels, Result, Run, gradient};
use theriac_models::resnet_v1;
use theriac_nn::{Network, Params, Plain, Twin};
use theriac_train::{Rule, Sgd};

use crate::support::{cifar, halved, largest_difference, pick, resnet, values, whole};

/// A network each of whose steps is an operation of its own.
struct StepByStep(Network);

impl Classifier for StepByStep {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        self.0.step_by_step(x.tensor(), pass)
    }

    fn classes(&self) -> usize {
        self.0.classes()
    }
}

/// The same network over the same parameters.
fn step_by_step(params: &Params, depth: usize) -> Result<Twin<StepByStep>> {
    Twin::build(params, |vb| {
        Ok(StepByStep(resnet_v1(&Plain, vb, depth, 16, 10)?))
    })
}

/// Disjoint batches: more than one group of sixteen, the last one not full.
fn batches(count: usize, size: usize) -> Result<Vec<Batch<Labels>>> {
    let all = whole(&cifar(count * size))?;
    let indices: Vec<u32> = (0..(count * size) as u32).collect();
    indices.chunks(size).map(|part| pick(&all, part)).collect()
}

/// The same in half the resolution.
fn small_batches(count: usize, size: usize) -> Result<Vec<Batch<Labels>>> {
    batches(count, size)?.into_iter().map(halved).collect()
}

/// The loss of a batch in training mode.
fn loss<C: Classifier>(twin: &Twin<C>, batch: &Batch<Labels>) -> Result<Tensor> {
    let run = Run::new(0, &Device::Cpu);
    let pass = run.train(&batch.samples);
    Ok(twin
        .live
        .loss(&batch.pixels, &batch.target, &pass)?
        .mean_all()?)
}

/// The losses of fifty steps of SGD with momentum.
fn fifty_steps<C: Classifier>(
    twin: &Twin<C>,
    batches: &[Batch<Labels>],
    rate: f64,
) -> Result<Vec<f64>> {
    let (mut sgd, variables) = (Sgd::momentum(0.9), twin.params.trainable());
    let steps = batches.iter().cycle().take(50).map(|batch| {
        let loss = loss(twin, batch)?;
        sgd.step(&variables, &loss.backward()?, rate)?;
        Ok(values(&loss)?[0])
    });
    steps.collect()
}

/// Length of the difference of two tensors, relative to the second.
fn apart(a: &Tensor, b: &Tensor) -> Result<f64> {
    let b = b.to_dtype(a.dtype())?;
    let length = |t: &Tensor| -> Result<f64> {
        let squares = values(t)?.into_iter().map(|v| v * v);
        Ok(squares.sum::<f64>().sqrt())
    };
    Ok(length(&(a - &b)?)? / length(&b)?)
}

/// Gradients differ by rounding; now and then a value at the edge of a ReLU falls on the other
/// side, and takes its part of the gradient with it.
fn assert_mostly(mut apart: Vec<f64>) {
    apart.sort_by(f64::total_cmp);
    assert!(apart[apart.len() / 2] <= 1e-5, "{apart:?}");
    assert!(apart[apart.len() - 1] <= 0.2, "{apart:?}");
}

fn largest(t: &Tensor) -> Result<f64> {
    Ok(values(t)?.into_iter().fold(0.0, |m, v| v.abs().max(m)))
}

/// Within `tolerance` of the largest value, or of 1.
fn assert_close(actual: &Tensor, expected: &Tensor, tolerance: f64, what: &str) -> Result<()> {
    let expected = expected.to_dtype(actual.dtype())?;
    let largest = largest(&expected)?.max(1.0);
    let off = largest_difference(actual, &expected)? / largest;
    assert!(off <= tolerance, "{what}: {off:e} of {largest}");
    Ok(())
}

/// Gives one network the parameters and statistics of another.
fn copy(from: &Params, to: &Params) -> Result<()> {
    for ((_, to), (_, from)) in to.all().iter().zip(from.all()) {
        to.set(&from.to_dtype(to.dtype())?)?;
    }
    Ok(())
}

/// Both from the same parameters at each step of a training run: losses, gradients and what batch
/// norm observed.
#[test]
fn each_of_fifty_steps_of_resnet_20_agrees() -> Result<()> {
    let batches = small_batches(5, 20)?;
    let joined = resnet(20, 1)?;
    let single = step_by_step(&resnet(20, 2)?.params, 20)?;
    let (mut sgd, variables) = (Sgd::momentum(0.9), joined.params.trainable());
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for (step, batch) in batches.iter().cycle().take(50).enumerate() {
        copy(&joined.params, &single.params)?;
        let (actual, expected) = (loss(&joined, batch)?, loss(&single, batch)?);
        assert_close(&actual, &expected, 1e-5, &format!("step {step}: loss"))?;
        for ((path, a), (_, b)) in joined.params.all().iter().zip(single.params.all()) {
            assert_close(a, b.as_tensor(), 1e-5, &format!("step {step}: {path}"))?;
        }
        let value = values(&actual)?[0];
        let (actual, expected) = (actual.backward()?, expected.backward()?);
        for ((_, a), (_, b)) in variables.iter().zip(single.params.trainable()) {
            gradients.push(apart(actual.get(a).unwrap(), expected.get(&b).unwrap())?);
        }
        sgd.step(&variables, &actual, 0.01)?;
        losses.push(value);
    }
    assert_mostly(gradients);
    assert!(losses[45] < 0.5 * losses[0], "nothing learnt: {losses:?}");
    Ok(())
}

/// Each from its own parameters. The rate is small because two runs part at usual rates, in f32
/// and f64 step by step no less than here: a value at the edge of a ReLU falls on the other side,
/// and what that changes grows with each step.
fn runs_agree(depth: usize, batches: &[Batch<Labels>], rate: f64) -> Result<()> {
    let joined = resnet(depth, 1)?;
    let single = step_by_step(&resnet(depth, 1)?.params, depth)?;
    let actual = fifty_steps(&joined, batches, rate)?;
    let expected = fifty_steps(&single, batches, rate)?;
    for (step, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        let off = (actual - expected).abs();
        assert!(off <= 1e-4, "step {step}: loss {actual} against {expected}");
    }
    // The same batch.
    let (first, last) = (actual[0], actual[45]);
    assert!(last < 0.98 * first, "nothing learnt: {first}, then {last}");
    for ((path, a), (_, b)) in joined.params.all().iter().zip(single.params.all()) {
        assert_close(a, b.as_tensor(), 1e-4, path)?;
    }
    let (batch, run) = (&batches[0], Run::new(0, &Device::Cpu));
    let pass = run.eval(&batch.samples);
    let logits = joined.frozen.logits(&batch.pixels, &pass)?;
    let expected = single.frozen.logits(&batch.pixels, &pass)?;
    assert_close(&logits, &expected, 1e-4, "logits")
}

#[test]
fn fifty_steps_of_resnet_8_agree() -> Result<()> {
    runs_agree(8, &small_batches(5, 20)?, 1e-4)
}

#[test]
fn fifty_steps_of_resnet_20_agree() -> Result<()> {
    runs_agree(20, &batches(5, 40)?, 3e-5)
}

/// Logits and the gradient of the loss by the pixels, image by image.
fn logits_and_gradients<C: Classifier>(
    net: &C,
    batch: &Batch<Labels>,
    mode: Mode,
) -> Result<(Tensor, Vec<Tensor>)> {
    let run = Run::new(0, &Device::Cpu);
    let pass = Pass {
        mode,
        ..run.eval(&batch.samples)
    };
    let logits = net.logits(&batch.pixels, &pass)?.detach();
    let (_, gradient) = gradient(&batch.pixels, &pass, |x| net.loss(x, &batch.target, &pass))?;
    let each = (0..batch.len()).map(|i| Ok(gradient.get(i)?));
    Ok((logits, each.collect::<Result<_>>()?))
}

/// The parameters' gradients in training mode.
fn parameter_gradients<C: Classifier>(
    twin: &Twin<C>,
    batch: &Batch<Labels>,
) -> Result<Vec<Tensor>> {
    let grads = loss(twin, batch)?.backward()?;
    let variables = twin.params.trainable().into_iter();
    Ok(variables
        .map(|(_, var)| grads.get(&var).unwrap().clone())
        .collect())
}

/// Logits to rounding, gradients as [`assert_mostly`].
fn assert_same_function<A: Classifier, B: Classifier>(
    (actual, batches): (&Twin<A>, &[Batch<Labels>]),
    (expected, references): (&Twin<B>, &[Batch<Labels>]),
) -> Result<()> {
    let mut parameters = Vec::new();
    let mut pixels = [const { Vec::new() }; 4];
    for (batch, reference) in batches.iter().zip(references) {
        for (errors, (mode, frozen)) in pixels.iter_mut().zip([
            (Mode::Eval, false),
            (Mode::Eval, true),
            (Mode::Train, false),
            (Mode::Train, true),
        ]) {
            let (a, b) = match frozen {
                true => (&actual.frozen, &expected.frozen),
                false => (&actual.live, &expected.live),
            };
            let (logits, a) = logits_and_gradients(a, batch, mode)?;
            let (expected, b) = logits_and_gradients(b, reference, mode)?;
            assert_close(&logits, &expected, 1e-5, "logits")?;
            errors.push((a, b));
        }
        parameters.push((
            parameter_gradients(actual, batch)?,
            parameter_gradients(expected, reference)?,
        ));
    }
    for pairs in pixels.iter().chain([&parameters]) {
        let pairs = pairs.iter().flat_map(|(a, b)| a.iter().zip(b));
        let apart = pairs.map(|(a, b)| apart(a, b));
        assert_mostly(apart.collect::<Result<_>>()?);
    }
    Ok(())
}

/// A ResNet-8 that fifty steps trained, and batches.
fn trained() -> Result<(Twin<Network>, Vec<Batch<Labels>>)> {
    let (twin, batches) = (resnet(8, 2)?, small_batches(5, 20)?);
    fifty_steps(&twin, &batches, 0.01)?;
    Ok((twin, batches))
}

#[test]
fn a_trained_network_is_the_function_of_its_steps() -> Result<()> {
    let (twin, batches) = trained()?;
    let single = step_by_step(&twin.params, 8)?;
    assert_same_function((&twin, &batches), (&single, &batches))
}

#[test]
fn a_trained_network_is_its_function_in_double_precision() -> Result<()> {
    let (twin, batches) = trained()?;
    let params = Params::new(0, DType::F64, &Device::Cpu);
    let double = Twin::build(&params, |vb| resnet_v1(&Plain, vb, 8, 16, 10))?;
    copy(&twin.params, &params)?;
    let wide = batches.iter().map(|batch| {
        let pixels = Pixels::new(batch.pixels.tensor().to_dtype(DType::F64)?)?;
        Ok(Batch {
            pixels,
            ..batch.clone()
        })
    });
    let wide = wide.collect::<Result<Vec<_>>>()?;
    assert_same_function((&twin, &batches), (&double, &wide))
}
