//! What several modules need: embedded images, a network, values to compare.

use std::ops::ControlFlow;
use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor};
use theriac::{Batch, Budget, Eps, Labels, Model, Pixels, Result, Rng, Run};
use theriac_data::{Dataset, Images, Loader, Order, Partial};
use theriac_models::{atda_cnn, resnet_v1};
use theriac_nn::{Network, Params, Plain, Twin};
use theriac_ops::{PoolConfig, avg_pool2d};
use theriac_train::{Adam, Epoch, Group, Objective, Outcome, Plan, Schedule, fit};

pub(crate) use crate::golden::{largest_difference, values};

static FASHION: LazyLock<Images> = LazyLock::new(|| embedded("fashion-mnist"));
static CIFAR: LazyLock<Images> = LazyLock::new(|| embedded("cifar10"));

fn embedded(name: &str) -> Images {
    let sample = theriac_datasets::embedded(name).unwrap();
    let (shape, classes, split) = (sample.shape, sample.classes, sample.train);
    Images::new(name, split.images, split.labels, shape, classes).unwrap()
}

/// The first `n` embedded Fashion-MNIST training images; ids are positions.
pub(crate) fn fashion(n: usize) -> Images {
    FASHION.take(n).unwrap()
}

/// The first `n` embedded CIFAR-10 training images; ids are positions.
pub(crate) fn cifar(n: usize) -> Images {
    CIFAR.take(n).unwrap()
}

/// The same images in half the resolution, at a quarter of the work.
pub(crate) fn halved(batch: Batch<Labels>) -> Result<Batch<Labels>> {
    let window = PoolConfig {
        kernel: 2,
        stride: 2,
        padding: 0,
    };
    let pixels = Pixels::new(avg_pool2d(batch.pixels.tensor(), window, true)?)?;
    Ok(Batch { pixels, ..batch })
}

/// All images of a data set in one batch.
pub(crate) fn whole(images: &Images) -> Result<Batch<Labels>> {
    let indices: Vec<u32> = (0..images.len() as u32).collect();
    Ok(images.batch(&indices, DType::F32, &Device::Cpu)?)
}

/// The images of a batch at `indices`, with their labels and ids.
pub(crate) fn pick(batch: &Batch<Labels>, indices: &[u32]) -> Result<Batch<Labels>> {
    let at = Tensor::new(indices, &Device::Cpu)?;
    let labels = batch
        .target
        .tensor()
        .index_select(&at, 0)?
        .to_vec1::<u32>()?;
    Ok(Batch {
        pixels: Pixels::new(batch.pixels.tensor().index_select(&at, 0)?)?,
        target: Labels::new(&labels, 10, &Device::Cpu)?,
        samples: indices.iter().map(|&i| batch.samples[i as usize]).collect(),
    })
}

/// An untrained [`atda_cnn`] in f32.
pub(crate) fn network(seed: u64) -> Result<Twin<Network>> {
    let params = Params::new(seed, DType::F32, &Device::Cpu);
    Twin::build(&params, |vb| atda_cnn(&Plain, vb))
}

/// An untrained residual network in f32: [`resnet_v1`] for 10 classes.
pub(crate) fn resnet(depth: usize, seed: u64) -> Result<Twin<Network>> {
    let params = Params::new(seed, DType::F32, &Device::Cpu);
    Twin::build(&params, |vb| resnet_v1(&Plain, vb, depth, 16, 10))
}

/// Trains with Adam at 0.001 on shuffled batches of 32.
pub(crate) fn train<C: Model<Target = Labels>>(
    twin: &Twin<C>,
    objective: &mut impl Objective<C>,
    images: &Images,
    epochs: usize,
) -> Result<Vec<Epoch>> {
    let run = Run::new(5, &Device::Cpu);
    let rate = Schedule::Constant { rate: 1e-3 };
    let mut groups = [Group::new(twin.params.trainable(), Adam::default(), rate)?];
    let loader = Loader::new(images, 32, Order::Shuffled(Rng::new(6)), Partial::Keep)?;
    let plan = Plan {
        epochs,
        batches: loader.batches(),
        state: None,
        until: None,
    };
    let epoch = |e| loader.epoch(e).map(|batch| Ok(batch?));
    match fit(twin, objective, &mut groups, plan, &run, epoch, |_| {
        ControlFlow::Continue(())
    })? {
        Outcome::Done(history) => Ok(history),
        Outcome::Stopped(_) => panic!("nobody stopped it"),
    }
}

pub(crate) fn eps(size: f64) -> Eps {
    Eps::unit(size).unwrap()
}

pub(crate) fn linf(size: f64) -> Budget {
    Budget::linf(eps(size)).unwrap()
}

/// The bits of a tensor: unlike values they tell 0 from -0, and NaN is equal to itself.
pub(crate) fn bits(tensor: &Tensor) -> Result<Vec<u64>> {
    Ok(values(tensor)?.into_iter().map(f64::to_bits).collect())
}

/// The bits of every parameter and every running statistic, by path.
pub(crate) fn snapshot(params: &Params) -> Result<Vec<(String, Vec<u64>)>> {
    params
        .all()
        .iter()
        .map(|(path, var)| Ok((path.clone(), bits(var)?)))
        .collect()
}
