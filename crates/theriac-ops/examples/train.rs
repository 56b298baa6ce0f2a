//! A plain candle model, trained with the operations of theriac-ops.
//!
//! The task: in which direction do the stripes of a noisy image run? Data and initial weights come
//! from a fixed formula, so that every run prints the same. On a CPU in f32 or f64 the kernels run;
//! with another device or element type the same code runs on candle's.

#![allow(clippy::print_stdout, reason = "a program")]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use theriac_ops::{
    Adam, ConvConfig, PoolConfig, adam_step, conv2d, cross_entropy, linear, max_pool2d, relu,
};

const SIDE: usize = 12;
const CLASSES: usize = 4;
const BATCH: usize = 32;

/// Numbers in [-1, 1) from a linear congruential generator: candle's generators cannot be seeded
/// on a CPU.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A weight (outputs, inputs...) with the variance 1 / inputs.
    fn weight(&mut self, shape: &[usize], device: &Device) -> Result<Var> {
        let bound = (3.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
        let values: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|_| bound * self.next())
            .collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, device)?)
    }

    /// `count` images (1, SIDE, SIDE) of stripes, across, down, and along the two diagonals, with
    /// their classes.
    fn stripes(&mut self, count: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let labels: Vec<u32> = (0..count).map(|i| (i % CLASSES) as u32).collect();
        let mut images = Vec::with_capacity(count * SIDE * SIDE);
        for label in &labels {
            let start = (3.0 + 2.0 * self.next()) as usize;
            for y in 0..SIDE {
                for x in 0..SIDE {
                    let place = [y, x, x + y, x + SIDE - y][*label as usize] + start;
                    let stripe = if place % 4 < 2 { 1.0 } else { 0.0 };
                    images.push(stripe + 1.5 * self.next());
                }
            }
        }
        Ok((
            Tensor::from_vec(images, (count, 1, SIDE, SIDE), device)?,
            Tensor::from_vec(labels, count, device)?,
        ))
    }
}

/// Two convolutions and a linear layer; weights and biases in turn.
struct Model {
    variables: Vec<Var>,
}

impl Model {
    fn new(numbers: &mut Numbers, device: &Device) -> Result<Self> {
        let mut variables = Vec::new();
        for shape in [&[8, 1, 3, 3][..], &[16, 8, 3, 3], &[CLASSES, 16 * 9]] {
            variables.push(numbers.weight(shape, device)?);
            variables.push(Var::zeros(shape[0], DType::F32, device)?);
        }
        Ok(Self { variables })
    }

    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let conv = ConvConfig {
            padding: 1,
            ..ConvConfig::default()
        };
        let pool = PoolConfig {
            kernel: 2,
            stride: 2,
            padding: 0,
        };
        let v = &self.variables;
        let x = relu(&conv2d(images, &v[0], Some(&v[1]), conv)?)?;
        let x = max_pool2d(&x, pool)?;
        let x = relu(&conv2d(&x, &v[2], Some(&v[3]), conv)?)?;
        let x = max_pool2d(&x, pool)?;
        linear(&x.flatten_from(1)?, &v[4], Some(&v[5]))
    }
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    let mut numbers = Numbers(1);
    let (train, labels) = numbers.stripes(512, &device)?;
    let (test, test_labels) = numbers.stripes(256, &device)?;
    let model = Model::new(&mut numbers, &device)?;

    let adam = Adam {
        lr: 5e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        decoupled: false,
    };
    // The two moments of each variable.
    let zeros = |v: &Var| Var::from_tensor(&v.zeros_like()?);
    let moments = model.variables.iter().map(|v| Ok((zeros(v)?, zeros(v)?)));
    let moments: Vec<(Var, Var)> = moments.collect::<Result<_>>()?;

    let mut step = 0;
    for epoch in 1..=8 {
        let mut total = 0f32;
        for first in (0..train.dim(0)?).step_by(BATCH) {
            let images = train.narrow(0, first, BATCH)?;
            let logits = model.logits(&images)?;
            let loss = cross_entropy(&logits, &labels.narrow(0, first, BATCH)?)?.mean_all()?;
            let grads = loss.backward()?;
            step += 1;
            for (variable, (m, v)) in model.variables.iter().zip(&moments) {
                if let Some(grad) = grads.get(variable) {
                    adam_step(&adam, variable, grad, m, v, step)?;
                }
            }
            total += loss.to_scalar::<f32>()? * BATCH as f32;
        }
        let guess = model.logits(&test)?.argmax(D::Minus1)?;
        let right = guess.eq(&test_labels)?.to_dtype(DType::F32)?.mean_all()?;
        println!(
            "epoch {epoch}: loss {:.4}, test accuracy {:.1} %",
            total / train.dim(0)? as f32,
            100.0 * right.to_scalar::<f32>()?
        );
    }
    Ok(())
}
