//! A small convolutional network trained on slices alone: `network`, `cross_entropy`, `sgd_step`.
//!
//! The task: in which direction do the stripes of a noisy image run? Data and initial weights come
//! from a fixed formula, so that every run prints the same.

#![allow(clippy::print_stdout, reason = "a program")]

use theriac_kernels::network::{Network, Op, Output, Parameters, Step, Want};
use theriac_kernels::{Result, Sgd, cross_entropy, cross_entropy_grad, sgd_step};

const SIDE: usize = 12;
const CLASSES: usize = 4;
const BATCH: usize = 32;

/// Numbers in [-1, 1) from a linear congruential generator.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// `count` images (1, SIDE, SIDE) of stripes: across, down, and along the two diagonals.
fn stripes(numbers: &mut Numbers, count: usize) -> (Vec<f32>, Vec<u32>) {
    let mut images = Vec::with_capacity(count * SIDE * SIDE);
    let labels: Vec<u32> = (0..count).map(|i| (i % CLASSES) as u32).collect();
    for label in &labels {
        let start = (3.0 + 2.0 * numbers.next()) as usize;
        for y in 0..SIDE {
            for x in 0..SIDE {
                let place = [y, x, x + y, x + SIDE - y][*label as usize] + start;
                let stripe = if place % 4 < 2 { 1.0 } else { 0.0 };
                images.push(stripe + 1.5 * numbers.next());
            }
        }
    }
    (images, labels)
}

fn steps() -> [Step; 6] {
    let conv = |outputs| Op::Conv {
        outputs,
        kernel: (3, 3),
        stride: 1,
        padding: 1,
        dilation: 1,
    };
    let pool = Op::MaxPool {
        kernel: 2,
        stride: 2,
        padding: 0,
    };
    let ops = [
        conv(8),
        Op::Relu,
        pool,
        conv(16),
        Op::Relu,
        Op::Linear { outputs: CLASSES },
    ];
    // Value 0 is the image, value i + 1 the result of step i.
    std::array::from_fn(|i| Step {
        op: ops[i],
        input: i,
    })
}

fn accuracy(logits: &[f32], labels: &[u32]) -> f64 {
    let right = logits.chunks(CLASSES).zip(labels).filter(|(row, label)| {
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row[**label as usize] == best
    });
    right.count() as f64 / labels.len() as f64
}

fn main() -> Result<()> {
    let mut numbers = Numbers(1);
    let (train, labels) = stripes(&mut numbers, 512);
    let (test, test_labels) = stripes(&mut numbers, 256);

    let network = Network::new([1, SIDE, SIDE], &steps())?;
    // For each step weight and bias with their momentum; empty where a step has none.
    let mut weights: Vec<[Vec<f32>; 2]> = vec![Default::default(); 6];
    for (step, outputs, inputs) in [(0, 8, 9), (3, 16, 72), (5, CLASSES, 16 * 36)] {
        let bound = (3.0 / inputs as f32).sqrt();
        let weight = (0..outputs * inputs).map(|_| bound * numbers.next());
        weights[step] = [weight.collect(), vec![0.0; outputs]];
    }
    let mut momentum = weights.clone();
    let sgd = Sgd {
        lr: 0.02,
        momentum: 0.9,
        dampening: 0.0,
        nesterov: false,
        weight_decay: 1e-4,
    };
    let want = Want {
        images: false,
        parameters: weights.iter().map(|w| !w[0].is_empty()).collect(),
    };

    let mut first = true;
    for epoch in 1..=8 {
        let mut total = 0f32;
        let batches = train.chunks(BATCH * SIDE * SIDE).zip(labels.chunks(BATCH));
        for (images, labels) in batches {
            // Arranged anew because the last step changed the weights.
            let prepared = network.prepare(&given(&weights), true)?;
            let Output { values, trace, .. } = network.forward(&prepared, images, true)?;
            let Some(trace) = trace else { continue };
            let mut losses = vec![0f32; labels.len()];
            cross_entropy(CLASSES, &values, labels, &mut losses)?;
            total += losses.iter().sum::<f32>();
            // Of the mean over the batch.
            let share = vec![1.0 / labels.len() as f32; labels.len()];
            let mut grad = vec![0f32; values.len()];
            cross_entropy_grad(CLASSES, &values, labels, &share, &mut grad)?;
            let gradients = network.backward(&prepared, &trace, &grad, &want)?;
            for (step, found) in gradients.parameters.iter().enumerate() {
                for (which, grad) in found.iter().enumerate() {
                    if let Some(grad) = grad {
                        let buffer = Some(&mut momentum[step][which][..]);
                        sgd_step(&sgd, &mut weights[step][which], grad, buffer, first)?;
                    }
                }
            }
            first = false;
        }
        let prepared = network.prepare(&given(&weights), false)?;
        let logits = network.forward(&prepared, &test, false)?.values;
        println!(
            "epoch {epoch}: loss {:.4}, test accuracy {:.1} %",
            total / labels.len() as f32,
            100.0 * accuracy(&logits, &test_labels)
        );
    }
    Ok(())
}

/// Weight and bias of each step as the network takes them.
fn given(weights: &[[Vec<f32>; 2]]) -> Vec<Parameters<'_>> {
    let each = weights.iter().map(|[weight, bias]| {
        let weight = (!weight.is_empty()).then_some(&weight[..]);
        let bias = (!bias.is_empty()).then_some(&bias[..]);
        [weight, bias, None, None]
    });
    each.collect()
}
