//! Images per second of a training step, an input gradient and PGD-10.
//!
//! `cargo bench -p theriac-tests`; docs/benchmarks.md says how to read it.

// A benchmark that cannot be set up should stop.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use theriac::{Aim, Batch, Budget, Labels, Model, Run, craft, gradient, over_chunks};
use theriac_attacks::Pgd;
use theriac_data::{Dataset, Images};
use theriac_models::Spec;
use theriac_nn::{Network, Params, Plain, Twin};
use theriac_train::{Adam, Rule};

const NETWORKS: [Spec; 2] = [Spec::AtdaCnn, Spec::Lenet];
const BATCHES: [usize; 2] = [64, 128];

fn main() {
    divan::main();
}

struct Bench {
    twin: Twin<Network>,
    batch: Batch<Labels>,
    run: Run,
}

impl Bench {
    fn new(network: Spec, batch: usize) -> Self {
        let sample = theriac_datasets::embedded("fashion-mnist").unwrap();
        let (bytes, labels) = (sample.train.images, sample.train.labels);
        let data =
            Images::new("fashion-mnist", bytes, labels, sample.shape, sample.classes).unwrap();
        let indices: Vec<u32> = (0..batch as u32).collect();
        let batch = data.batch(&indices, DType::F32, &Device::Cpu).unwrap();
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let twin = Twin::build(&params, |vb| network.build(&Plain, vb)).unwrap();
        Self {
            twin,
            batch,
            run: Run::new(0, &Device::Cpu),
        }
    }
}

fn cases() -> impl Iterator<Item = (Spec, usize)> {
    NETWORKS
        .into_iter()
        .flat_map(|network| BATCHES.map(|batch| (network, batch)))
}

/// Forward, backward by the parameters, one step of Adam.
#[divan::bench(args = cases())]
fn train_step(bencher: Bencher<'_, '_>, (network, n): (Spec, usize)) {
    let bench = Bench::new(network, n);
    let variables = bench.twin.params.trainable();
    let mut adam = Adam::default();
    bencher.counter(ItemsCount::new(n)).bench_local(|| {
        let pass = bench.run.train(&bench.batch.samples);
        let batch = &bench.batch;
        let loss = bench
            .twin
            .live
            .loss(&batch.pixels, &batch.target, &pass)
            .unwrap();
        let grads = loss.mean_all().unwrap().backward().unwrap();
        adam.step(&variables, &grads, 1e-3).unwrap();
    });
}

/// Forward and backward by the pixels, as attacks do it.
#[divan::bench(args = cases())]
fn input_gradient(bencher: Bencher<'_, '_>, (network, n): (Spec, usize)) {
    let bench = Bench::new(network, n);
    bencher.counter(ItemsCount::new(n)).bench_local(|| {
        let pass = bench.run.eval(&bench.batch.samples);
        let batch = &bench.batch;
        let moved = over_chunks(
            &[&batch.pixels],
            &batch.target,
            &pass,
            |images, labels, pass| {
                let loss = |x: &_| bench.twin.frozen.loss(x, labels, pass);
                black_box(gradient(&images[0], pass, loss)?);
                Ok(images[0].clone())
            },
        );
        moved.unwrap()
    });
}

/// Ten steps inside a Linf ball.
#[divan::bench(args = cases())]
fn pgd_10(bencher: Bencher<'_, '_>, (network, n): (Spec, usize)) {
    let bench = Bench::new(network, n);
    let budget = Budget::linf("0.1".parse().unwrap()).unwrap();
    let attack = Pgd::new(budget, "0.02".parse().unwrap(), 10);
    bencher.counter(ItemsCount::new(n)).bench_local(|| {
        let pass = bench.run.eval(&bench.batch.samples);
        let aim = Aim::Away(&bench.batch.target);
        craft(&attack, &bench.twin.frozen, &bench.batch.pixels, aim, &pass).unwrap()
    });
}
