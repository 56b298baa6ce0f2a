//! The definitions as plain loops in double precision, and what the tests share.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test uses a part; helpers of tests may panic like tests"
)]

use proptest::test_runner::{Config, RngSeed};

/// Always the same cases, so that a run can be repeated.
pub(crate) fn cases(cases: u32) -> Config {
    Config {
        cases,
        rng_seed: RngSeed::Fixed(0),
        failure_persistence: None,
        ..Config::default()
    }
}

/// Pseudo-random numbers (a linear congruential generator).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.0 >> 40
    }

    /// In [-1, 1).
    pub(crate) fn reals(&mut self, len: usize) -> Vec<f64> {
        (0..len)
            .map(|_| self.next() as f64 / (1u64 << 23) as f64 - 1.0)
            .collect()
    }

    /// Whole numbers from -most to most: sums and products of few of them are exact in `f32`, and
    /// ties are common.
    pub(crate) fn whole(&mut self, len: usize, most: u64) -> Vec<f64> {
        (0..len)
            .map(|_| (self.next() % (2 * most + 1)) as f64 - most as f64)
            .collect()
    }
}

pub(crate) fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Asserts agreement within `tolerance` of the largest entry; 0 asks for equality.
pub(crate) fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_within(actual, expected, tolerance * largest(expected), what);
}

/// Asserts that no entry is off by more than `most`.
pub(crate) fn assert_within(actual: &[f64], expected: &[f64], most: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= most, "{what}[{i}]: {a}, expected {e}");
    }
}

pub(crate) fn largest<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    values.into_iter().fold(0f64, |m, v| m.max(v.abs()))
}

/// A step size of central differences for values around 1.
pub(crate) const STEP: f64 = 1e-5;

/// Central differences of `f` at `x`, one for each entry.
pub(crate) fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut moved = x.to_vec();
    (0..x.len())
        .map(|i| {
            moved[i] = x[i] + STEP;
            let above = f(&moved);
            moved[i] = x[i] - STEP;
            let below = f(&moved);
            moved[i] = x[i];
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A convolution: x (N, C, H, W), outputs, kernel, stride, padding, dilation, groups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conv {
    pub(crate) x: [usize; 4],
    pub(crate) outputs: usize,
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    pub(crate) dilation: usize,
    pub(crate) groups: usize,
}

impl Conv {
    pub(crate) fn weight(&self) -> [usize; 4] {
        let channels = self.x[1] / self.groups;
        [self.outputs, channels, self.kernel.0, self.kernel.1]
    }

    /// Shape of the result, if the kernel fits.
    pub(crate) fn out(&self) -> Option<[usize; 4]> {
        let axis = |size: usize, kernel: usize| {
            let room = size + 2 * self.padding;
            let room = room.checked_sub(self.dilation * (kernel - 1) + 1)?;
            Some(room / self.stride + 1)
        };
        let [n, _, h, w] = self.x;
        let (oh, ow) = (axis(h, self.kernel.0)?, axis(w, self.kernel.1)?);
        Some([n, self.outputs, oh, ow])
    }

    /// Every product of the defining sum: `f(output, input, weight)`, flat indices.
    pub(crate) fn each(&self, mut f: impl FnMut(usize, usize, usize)) {
        let ([n, c_in, h, w], [_, _, oh, ow]) = (self.x, self.out().unwrap());
        let [c_out, c_group, kh, kw] = self.weight();
        let reach = |out: usize, tap: usize, size: usize| {
            let place = (out * self.stride + tap * self.dilation).checked_sub(self.padding)?;
            (place < size).then_some(place)
        };
        for image in 0..n {
            for o in 0..c_out {
                let first = o / (c_out / self.groups) * c_group;
                for (i, j) in grid(oh, ow) {
                    let out = ((image * c_out + o) * oh + i) * ow + j;
                    for c in 0..c_group {
                        for (u, v) in grid(kh, kw) {
                            if let (Some(y), Some(x)) = (reach(i, u, h), reach(j, v, w)) {
                                let input = ((image * c_in + first + c) * h + y) * w + x;
                                f(out, input, ((o * c_group + c) * kh + u) * kw + v);
                            }
                        }
                    }
                }
            }
        }
    }

    pub(crate) fn forward(&self, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
        let [n, c, oh, ow] = self.out().unwrap();
        let bias = |i: usize| bias.map_or(0.0, |bias| bias[i / (oh * ow) % c]);
        let mut out: Vec<f64> = (0..n * c * oh * ow).map(bias).collect();
        self.each(|o, i, w| out[o] += x[i] * weight[w]);
        out
    }

    /// Gradients by x, weight and bias.
    pub(crate) fn backward(&self, x: &[f64], weight: &[f64], grad: &[f64]) -> [Vec<f64>; 3] {
        let [_, c, oh, ow] = self.out().unwrap();
        let mut grads = [x.len(), weight.len(), c].map(|len| vec![0.0; len]);
        let [by_x, by_weight, by_bias] = &mut grads;
        self.each(|o, i, w| {
            by_x[i] += grad[o] * weight[w];
            by_weight[w] += grad[o] * x[i];
        });
        for (i, g) in grad.iter().enumerate() {
            by_bias[i / (oh * ow) % c] += g;
        }
        grads
    }
}

pub(crate) fn grid(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |i| (0..columns).map(move |j| (i, j)))
}

/// Pooling of x (N, C, H, W).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    pub(crate) x: [usize; 4],
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: (usize, usize),
    pub(crate) padding: usize,
}

impl Pool {
    pub(crate) fn out(&self) -> Option<[usize; 4]> {
        let axis = |size: usize, kernel: usize, stride: usize| {
            Some((size + 2 * self.padding).checked_sub(kernel)? / stride + 1)
        };
        let [n, c, h, w] = self.x;
        let oh = axis(h, self.kernel.0, self.stride.0)?;
        Some([n, c, oh, axis(w, self.kernel.1, self.stride.1)?])
    }

    /// The pixels of each window, row by row: `f(output, inputs)`, flat indices.
    pub(crate) fn each(&self, mut f: impl FnMut(usize, &[usize])) {
        let ([n, c, h, w], [_, _, oh, ow]) = (self.x, self.out().unwrap());
        for plane in 0..n * c {
            for (i, j) in grid(oh, ow) {
                let window: Vec<usize> = grid(self.kernel.0, self.kernel.1)
                    .filter_map(|(u, v)| {
                        let y = (i * self.stride.0 + u).checked_sub(self.padding)?;
                        let x = (j * self.stride.1 + v).checked_sub(self.padding)?;
                        (y < h && x < w).then_some((plane * h + y) * w + x)
                    })
                    .collect();
                f((plane * oh + i) * ow + j, &window);
            }
        }
    }

    fn len(&self) -> usize {
        self.out().unwrap().iter().product()
    }

    /// The first maximum of each window: its value and flat index.
    pub(crate) fn max(&self, x: &[f64]) -> (Vec<f64>, Vec<usize>) {
        let (mut out, mut at) = (vec![0.0; self.len()], vec![0; self.len()]);
        self.each(|o, window| {
            let first = |best: usize, &i: &usize| if x[i] > x[best] { i } else { best };
            at[o] = window.iter().fold(window[0], first);
            out[o] = x[at[o]];
        });
        (out, at)
    }

    pub(crate) fn max_grad(&self, at: &[usize], grad: &[f64]) -> Vec<f64> {
        let mut by_x = vec![0.0; self.x.iter().product()];
        at.iter().zip(grad).for_each(|(&i, g)| by_x[i] += g);
        by_x
    }

    fn divisor(&self, window: &[usize], count_padding: bool) -> f64 {
        let whole = self.kernel.0 * self.kernel.1;
        (if count_padding { whole } else { window.len() }) as f64
    }

    pub(crate) fn mean(&self, x: &[f64], count_padding: bool) -> Vec<f64> {
        let mut out = vec![0.0; self.len()];
        self.each(|o, window| {
            let total: f64 = window.iter().map(|&i| x[i]).sum();
            out[o] = total / self.divisor(window, count_padding);
        });
        out
    }

    pub(crate) fn mean_grad(&self, grad: &[f64], count_padding: bool) -> Vec<f64> {
        let mut by_x = vec![0.0; self.x.iter().product()];
        self.each(|o, window| {
            let share = grad[o] / self.divisor(window, count_padding);
            window.iter().for_each(|&i| by_x[i] += share);
        });
        by_x
    }
}

/// `x w^T + bias` for x (rows, inputs) and w (outputs, inputs).
pub(crate) fn linear(outputs: usize, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let inputs = weight.len() / outputs;
    x.chunks(inputs)
        .flat_map(|x| {
            weight.chunks(inputs).enumerate().map(|(o, row)| {
                let bias = bias.map_or(0.0, |bias| bias[o]);
                bias + dot(row, x)
            })
        })
        .collect()
}

/// Gradients by x, weight and bias.
pub(crate) fn linear_grads(
    outputs: usize,
    x: &[f64],
    weight: &[f64],
    grad: &[f64],
) -> [Vec<f64>; 3] {
    let inputs = weight.len() / outputs;
    let mut by_x = vec![0.0; x.len()];
    let mut by_weight = vec![0.0; weight.len()];
    let mut by_bias = vec![0.0; outputs];
    for (row, grad) in grad.chunks(outputs).enumerate() {
        for (o, g) in grad.iter().enumerate() {
            by_bias[o] += g;
            for i in 0..inputs {
                by_x[row * inputs + i] += g * weight[o * inputs + i];
                by_weight[o * inputs + i] += g * x[row * inputs + i];
            }
        }
    }
    [by_x, by_weight, by_bias]
}

/// Mean and biased variance of each channel of x (N, C, plane).
pub(crate) fn moments(channels: usize, plane: usize, x: &[f64]) -> [Vec<f64>; 2] {
    let of = |c: usize| -> Vec<f64> {
        let planes = x.chunks(plane).skip(c).step_by(channels);
        planes.flatten().copied().collect()
    };
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let means: Vec<f64> = (0..channels).map(|c| mean(&of(c))).collect();
    let square = |c: usize| -> Vec<f64> {
        let apart = of(c).into_iter().map(|v| v - means[c]);
        apart.map(|d| d * d).collect()
    };
    let vars = (0..channels).map(|c| mean(&square(c))).collect();
    [means, vars]
}

/// `gamma (x - mean) / sqrt(var + eps) + beta`.
pub(crate) fn norm(
    plane: usize,
    x: &[f64],
    [gamma, beta, mean, var]: [&[f64]; 4],
    eps: f64,
) -> Vec<f64> {
    let value = |(i, v): (usize, &f64)| {
        let c = i / plane % gamma.len();
        gamma[c] * (v - mean[c]) / (var[c] + eps).sqrt() + beta[c]
    };
    x.iter().enumerate().map(value).collect()
}

/// Gradients of [`norm`] by x, gamma and beta with the statistics of the batch.
///
/// By the chain rule through mean and variance, one after the other, unlike the kernels' closed
/// form.
pub(crate) fn batch_norm_grads(
    plane: usize,
    x: &[f64],
    gamma: &[f64],
    grad: &[f64],
    eps: f64,
) -> [Vec<f64>; 3] {
    let channels = gamma.len();
    let [mean, var] = moments(channels, plane, x);
    let count = (x.len() / channels) as f64;
    let channel = |i: usize| i / plane % channels;
    let mut by = [vec![0.0; channels], vec![0.0; channels]];
    let (mut by_var, mut by_mean) = (vec![0.0; channels], vec![0.0; channels]);
    for (i, (&v, &g)) in x.iter().zip(grad).enumerate() {
        let c = channel(i);
        let (d, s) = (v - mean[c], var[c] + eps);
        by[0][c] += g * d / s.sqrt();
        by[1][c] += g;
        by_var[c] -= 0.5 * g * gamma[c] * d * s.powf(-1.5);
        by_mean[c] -= g * gamma[c] / s.sqrt();
    }
    let by_x = x.iter().zip(grad).enumerate().map(|(i, (&v, &g))| {
        let c = channel(i);
        let own = g * gamma[c] / (var[c] + eps).sqrt();
        own + by_var[c] * 2.0 * (v - mean[c]) / count + by_mean[c] / count
    });
    let by_x = by_x.collect();
    let [by_gamma, by_beta] = by;
    [by_x, by_gamma, by_beta]
}
