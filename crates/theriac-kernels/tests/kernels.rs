//! Every kernel on random shapes against its definition in double precision.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod common;

use common::{Conv, Numbers, Pool, assert_close, differences, dot, narrow, wide};
use proptest::prelude::*;
use proptest::sample::select;
use theriac_kernels as kernels;
use theriac_kernels::{Adam, BatchNorm, BatchNormGrads, Real, Result, Sgd, Statistics};

/// What a kernel writes into `len` elements that hold NaN.
fn written<T: Real>(len: usize, kernel: impl FnOnce(&mut [T]) -> Result<()>) -> Vec<f64> {
    let mut out = vec![T::from_f64(f64::NAN); len];
    kernel(&mut out).unwrap();
    out.into_iter().map(T::to_f64).collect()
}

fn cast<T: Real>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&v| T::from_f64(v)).collect()
}

fn conv() -> impl Strategy<Value = Conv> {
    let side = select(vec![1usize, 2, 3, 4, 5, 7]);
    let image = (1..=20usize, 1..=3usize, 1..=11usize, 1..=11usize);
    let steps = (1..=3usize, 0..=3usize, 1..=2usize);
    (image, 1..=4usize, (side.clone(), side), steps, 1..=3usize)
        .prop_map(|((n, c, h, w), outputs, kernel, steps, groups)| Conv {
            x: [n, c * groups, h, w],
            outputs: outputs * groups,
            kernel,
            stride: steps.0,
            padding: steps.1,
            dilation: steps.2,
            groups,
        })
        .prop_filter("the kernel does not fit", |conv| conv.out().is_some())
}

/// Whole numbers: every sum is exact in either precision, whatever its order.
fn conv_is_exact<T: Real>(case: &Conv, seed: u64) {
    let mut numbers = Numbers::new(seed);
    let len = |shape: [usize; 4]| shape.iter().product::<usize>();
    let x = numbers.whole(len(case.x), 4);
    let weight = numbers.whole(len(case.weight()), 4);
    let bias = numbers.whole(case.outputs, 4);
    let grad = numbers.whole(len(case.out().unwrap()), 4);
    let conv = kernels::Conv::new(
        case.x,
        case.weight(),
        case.stride,
        case.padding,
        case.dilation,
        case.groups,
    )
    .unwrap();
    assert_eq!(Some(conv.out_shape()), case.out());
    let [by_x, by_weight, by_bias] = case.backward(&x, &weight, &grad);
    let [xs, weights, biases, grads] = [&x, &weight, &bias, &grad].map(|v| cast::<T>(v));
    for bias in [None, Some(&bias[..])] {
        let biases = bias.map(|_| &biases[..]);
        let out = written(grad.len(), |out| {
            kernels::conv2d(&conv, &xs, &weights, biases, out)
        });
        assert_close(&out, &case.forward(&x, &weight, bias), 0.0, "conv2d");
    }
    let out = written(x.len(), |out| {
        kernels::conv2d_input_grad(&conv, &grads, &weights, out)
    });
    assert_close(&out, &by_x, 0.0, "conv2d_input_grad");
    let out = written(weight.len(), |out| {
        kernels::conv2d_weight_grad(&conv, &xs, &grads, out)
    });
    assert_close(&out, &by_weight, 0.0, "conv2d_weight_grad");
    let out = written(bias.len(), |out: &mut [T]| {
        kernels::conv2d_bias_grad(&conv, &grads, out)
    });
    assert_close(&out, &by_bias, 0.0, "conv2d_bias_grad");
}

fn pool() -> impl Strategy<Value = Pool> {
    let image = (1..=20usize, 1..=3usize, 1..=11usize, 1..=11usize);
    (image, 1..=7usize, 1..=3usize, 0..=3usize)
        .prop_map(|((n, c, h, w), kernel, stride, padding)| Pool {
            x: [n, c, h, w],
            kernel: (kernel, kernel),
            stride: (stride, stride),
            padding: padding.min(kernel / 2),
        })
        .prop_filter("the window does not fit", |pool| pool.out().is_some())
}

fn pool_equals_its_definition<T: Real>(case: &Pool, seed: u64, tolerance: f64) {
    let mut numbers = Numbers::new(seed);
    let pool = kernels::Pool::new(case.x, case.kernel.0, case.stride.0, case.padding).unwrap();
    assert_eq!(Some(pool.out_shape()), case.out());
    let len: usize = case.x.iter().product();
    // Of three values, so that most windows have ties.
    let x = numbers.whole(len, 1);
    let grad = numbers.whole(case.out().unwrap().iter().product(), 4);
    let (xs, grads) = (cast::<T>(&x), cast::<T>(&grad));
    let (largest, at) = case.max(&x);
    let mut winners = vec![u32::MAX; grad.len()];
    let out = written(grad.len(), |out| {
        kernels::max_pool2d(&pool, &xs, out, &mut winners)
    });
    assert_close(&out, &largest, 0.0, "max_pool2d");
    let plane = case.x[2] * case.x[3];
    let found: Vec<usize> = winners.iter().map(|&i| i as usize).collect();
    let expected: Vec<usize> = at.iter().map(|i| i % plane).collect();
    assert_eq!(found, expected, "the first maximum");
    let out = written(len, |out| {
        kernels::max_pool2d_grad(&pool, &winners, &grads, out)
    });
    assert_close(&out, &case.max_grad(&at, &grad), 0.0, "max_pool2d_grad");
    for padded in [true, false] {
        let out = written(grad.len(), |out| {
            kernels::avg_pool2d(&pool, padded, &xs, out)
        });
        assert_close(&out, &case.mean(&x, padded), tolerance, "avg_pool2d");
        let out = written(len, |out| {
            kernels::avg_pool2d_grad(&pool, padded, &grads, out)
        });
        let expected = case.mean_grad(&grad, padded);
        assert_close(&out, &expected, tolerance, "avg_pool2d_grad");
    }
}

proptest! {
    #![proptest_config(common::cases(64))]

    #[test]
    fn convolutions_equal_their_definition(case in conv(), seed in any::<u64>()) {
        conv_is_exact::<f64>(&case, seed);
        conv_is_exact::<f32>(&case, seed);
    }

    #[test]
    fn pools_equal_their_definition_with_ties(case in pool(), seed in any::<u64>()) {
        pool_equals_its_definition::<f64>(&case, seed, 1e-14);
        pool_equals_its_definition::<f32>(&case, seed, 1e-6);
    }

    #[test]
    fn linear_layers_equal_their_definition(
        rows in 1..=40usize,
        inputs in 1..=70usize,
        outputs in 1..=35usize,
        seed in any::<u64>(),
    ) {
        let dims = (rows, inputs, outputs);
        let mut numbers = Numbers::new(seed);
        let [x, weight, bias, grad] = [rows * inputs, outputs * inputs, outputs, rows * outputs]
            .map(|len| numbers.whole(len, 4));
        let [xs, weights, biases, grads] = [&x, &weight, &bias, &grad].map(|v| narrow(v));
        for bias in [None, Some(&bias[..])] {
            let biases = bias.map(|_| &biases[..]);
            let out = written(grad.len(), |out| {
                kernels::linear(dims, &xs, &weights, biases, out)
            });
            let expected = common::linear(outputs, &x, &weight, bias);
            assert_close(&out, &expected, 0.0, "linear");
        }
        let [by_x, by_weight, by_bias] = common::linear_grads(outputs, &x, &weight, &grad);
        let out = written(x.len(), |out| {
            kernels::linear_input_grad(dims, &grads, &weights, out)
        });
        assert_close(&out, &by_x, 0.0, "linear_input_grad");
        let out = written(weight.len(), |out| {
            kernels::linear_weight_grad(dims, &xs, &grads, out)
        });
        assert_close(&out, &by_weight, 0.0, "linear_weight_grad");
        let out = written(outputs, |out: &mut [f32]| {
            kernels::linear_bias_grad(rows, outputs, &grads, out)
        });
        assert_close(&out, &by_bias, 0.0, "linear_bias_grad");
    }

    #[test]
    fn relu_equals_its_definition(len in 0..=70usize, seed in any::<u64>()) {
        let mut numbers = Numbers::new(seed);
        let [x, grad] = [1, 4].map(|most| numbers.whole(len, most));
        let (xs, grads) = (narrow(&x), narrow(&grad));
        let positive: Vec<f64> = x.iter().map(|v| v.max(0.0)).collect();
        assert_close(&written(len, |out| kernels::relu(&xs, out)), &positive, 0.0, "relu");
        let open: Vec<f64> = x.iter().zip(&grad).map(|(&v, &g)| if v > 0.0 { g } else { 0.0 }).collect();
        let out = written(len, |out| kernels::relu_grad(&xs, &grads, out));
        assert_close(&out, &open, 0.0, "relu_grad");
    }

    #[test]
    fn batch_norm_equals_its_definition(
        (n, c, h, w) in (2..=20usize, 1..=4usize, 1..=7usize, 1..=7usize),
        seed in any::<u64>(),
    ) {
        let mut numbers = Numbers::new(seed);
        let (len, plane, eps) = (n * c * h * w, h * w, 1e-3);
        let [x, grad] = [3.0, 1.0].map(|far| {
            let values = numbers.reals(len).into_iter().map(|v| v + far);
            values.collect::<Vec<_>>()
        });
        let [gamma, beta, fixed] = [c; 3].map(|len| numbers.reals(len));
        let norm = BatchNorm::new([n, c, h, w], eps).unwrap();
        prop_assert_eq!(norm.count(), n * plane);
        let found = norm.statistics(&x).unwrap();
        let [mean, var] = common::moments(c, plane, &x);
        assert_close(&found.mean, &mean, 1e-14, "mean");
        assert_close(&found.var, &var, 1e-12, "variance");
        let out = written(len, |out| norm.forward(&x, &gamma, &beta, &found, out));
        let expected = common::norm(plane, &x, [&gamma, &beta, &mean, &var], eps);
        assert_close(&out, &expected, 1e-12, "forward");

        let mut out = [vec![f64::NAN; len], vec![f64::NAN; c], vec![f64::NAN; c]];
        let [by_x, by_gamma, by_beta] = &mut out;
        let grads = BatchNormGrads {
            x: Some(&mut by_x[..]),
            gamma: Some(&mut by_gamma[..]),
            beta: Some(&mut by_beta[..]),
        };
        norm.train_grad(&x, &grad, &gamma, &found, grads).unwrap();
        let expected = common::batch_norm_grads(plane, &x, &gamma, &grad, eps);
        for (name, (out, expected)) in ["x", "gamma", "beta"].iter().zip(out.iter().zip(&expected)) {
            assert_close(out, expected, 1e-10, name);
        }

        // Fixed statistics, in single precision.
        let var: Vec<f64> = fixed.iter().map(|v| v.abs() + 0.1).collect();
        let [xs, grads, gammas, betas] = [&x, &grad, &gamma, &beta].map(|v| narrow(v));
        let statistics = Statistics::fixed(&fixed, &var, eps).unwrap();
        let out = written(len, |out| norm.forward(&xs, &gammas, &betas, &statistics, out));
        let expected = common::norm(plane, &x, [&gamma, &beta, &fixed, &var], eps);
        assert_close(&out, &expected, 1e-6, "fixed");
        let out = written(len, |out| {
            let grads_to = BatchNormGrads { x: Some(out), gamma: None, beta: None };
            norm.eval_grad(&xs, &grads, &gammas, &statistics, grads_to)
        });
        let none = vec![0.0; c];
        let expected = common::norm(plane, &grad, [&gamma, &none, &none, &var], eps);
        assert_close(&out, &expected, 1e-6, "gradient with fixed statistics");
    }

    #[test]
    fn losses_equal_their_definition(
        samples in 1..=20usize,
        classes in 1..=12usize,
        seed in any::<u64>(),
    ) {
        let mut numbers = Numbers::new(seed);
        let logits: Vec<f64> = numbers.reals(samples * classes).iter().map(|v| 4.0 * v).collect();
        let target: Vec<f64> = numbers.reals(samples * classes).iter().map(|v| v.abs()).collect();
        let grad = numbers.reals(samples);
        let labels: Vec<u32> = (0..samples).map(|i| (i * 7 % classes) as u32).collect();
        let rows = || logits.chunks(classes).zip(target.chunks(classes)).enumerate();
        let log_sum = |row: &[f64]| row.iter().map(|z| z.exp()).sum::<f64>().ln();
        let hard: Vec<f64> = rows()
            .map(|(i, (row, _))| log_sum(row) - row[labels[i] as usize])
            .collect();
        let soft: Vec<f64> = rows()
            .map(|(_, (row, p))| row.iter().zip(p).map(|(z, p)| p * (log_sum(row) - z)).sum())
            .collect();
        let by = |target: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            rows()
                .flat_map(|(i, (row, _))| {
                    let mass: f64 = (0..classes).map(|j| target(i, j)).sum();
                    let (grad, row) = (grad[i], row.to_vec());
                    let total = log_sum(&row);
                    let each: Vec<f64> = (0..classes)
                        .map(|j| grad * ((row[j] - total).exp() * mass - target(i, j)))
                        .collect();
                    each
                })
                .collect()
        };
        let by_hard = by(&|i, j| f64::from(u8::from(labels[i] as usize == j)));
        let by_soft = by(&|i, j| target[i * classes + j]);
        let all = logits.len();
        let check = |out: Vec<f64>, expected: &[f64], tolerance: f64, what: &str| {
            // Of one class, loss and gradient are differences that cancel.
            common::assert_within(&out, expected, tolerance * 20.0, what);
        };
        let out = written(samples, |out| kernels::cross_entropy(classes, &logits, &labels, out));
        check(out, &hard, 1e-14, "hard");
        let out = written(all, |out| {
            kernels::cross_entropy_grad(classes, &logits, &labels, &grad, out)
        });
        check(out, &by_hard, 1e-14, "gradient of hard");
        let out = written(samples, |out| {
            kernels::cross_entropy_soft(classes, &logits, &target, out)
        });
        check(out, &soft, 1e-14, "soft");
        let out = written(all, |out| {
            kernels::cross_entropy_soft_grad(classes, &logits, &target, &grad, out)
        });
        check(out, &by_soft, 1e-14, "gradient of soft");
        let (logits, target, grad) = (narrow(&logits), narrow(&target), narrow(&grad));
        let out = written(samples, |out| kernels::cross_entropy(classes, &logits, &labels, out));
        check(out, &hard, 1e-6, "hard, f32");
        let out = written(all, |out| {
            kernels::cross_entropy_grad(classes, &logits, &labels, &grad, out)
        });
        check(out, &by_hard, 1e-6, "gradient of hard, f32");
        let out = written(all, |out| {
            kernels::cross_entropy_soft_grad(classes, &logits, &target, &grad, out)
        });
        check(out, &by_soft, 1e-6, "gradient of soft, f32");
    }

    #[test]
    fn optimisers_follow_their_formulas(
        len in 0..=40usize,
        (lr, momentum, dampening, decay) in (0.01..0.5f64, 0.0..0.99f64, 0.0..0.9f64, 0.0..0.5f64),
        (nesterov, decoupled) in any::<(bool, bool)>(),
        seed in any::<u64>(),
    ) {
        let mut numbers = Numbers::new(seed);
        let start = numbers.reals(len);
        let grads: Vec<Vec<f64>> = (0..4).map(|_| numbers.reals(len)).collect();
        let sgd = Sgd { lr, momentum, dampening, nesterov, weight_decay: decay };
        let adam = Adam {
            lr,
            beta1: momentum,
            beta2: 0.9,
            eps: 1e-3,
            weight_decay: decay,
            decoupled,
        };
        let (mut plain, mut heavy, mut moved) = (start.clone(), start.clone(), start.clone());
        let (mut buffer, mut m, mut v) = (vec![f64::NAN; len], vec![0.0; len], vec![0.0; len]);
        for (grad, step) in grads.iter().zip(1..) {
            kernels::sgd_step(&sgd, &mut plain, grad, None, step == 1).unwrap();
            kernels::sgd_step(&sgd, &mut heavy, grad, Some(&mut buffer), step == 1).unwrap();
            kernels::adam_step(&adam, &mut moved, grad, &mut m, &mut v, step).unwrap();
        }
        let mut expected = [vec![], vec![], vec![]];
        for (i, &start) in start.iter().enumerate() {
            let (mut p, mut q, mut r) = (start, start, start);
            let (mut b, mut first, mut second) = (0.0, 0.0, 0.0);
            for (grad, step) in grads.iter().zip(1..) {
                let g = grad[i];
                p -= lr * (g + decay * p);
                let d = g + decay * q;
                b = if step == 1 { d } else { momentum * b + (1.0 - dampening) * d };
                q -= lr * if nesterov { d + momentum * b } else { b };
                let d = if decoupled { g } else { g + decay * r };
                first = momentum * first + (1.0 - momentum) * d;
                second = 0.9 * second + 0.1 * d * d;
                let mean = first / (1.0 - momentum.powi(step));
                let square: f64 = second / (1.0 - 0.9f64.powi(step));
                let kept = if decoupled { r * (1.0 - lr * decay) } else { r };
                r = kept - lr * mean / (square.sqrt() + 1e-3);
            }
            expected[0].push(p);
            expected[1].push(q);
            expected[2].push(r);
        }
        for (actual, expected) in [plain, heavy, moved].iter().zip(&expected) {
            assert_close(actual, expected, 1e-12, "parameter");
        }
    }
}

/// The gradients that are more than products with constants, by central differences.
#[test]
fn gradients_are_those_of_finite_differences() {
    let mut numbers = Numbers::new(1);
    let shape = [3, 2, 3, 2];
    let [x, grad] = [36, 36].map(|len| numbers.reals(len));
    let [gamma, beta] = [2, 2].map(|len| numbers.reals(len));
    let norm = BatchNorm::new(shape, 1e-2).unwrap();
    let loss = |x: &[f64], gamma: &[f64], beta: &[f64]| {
        let statistics = norm.statistics(x).unwrap();
        let out = written(36, |out| norm.forward(x, gamma, beta, &statistics, out));
        dot(&out, &grad)
    };
    let statistics = norm.statistics(&x).unwrap();
    let mut out = [vec![0.0; 36], vec![0.0; 2], vec![0.0; 2]];
    let [by_x, by_gamma, by_beta] = &mut out;
    let grads = BatchNormGrads {
        x: Some(&mut by_x[..]),
        gamma: Some(&mut by_gamma[..]),
        beta: Some(&mut by_beta[..]),
    };
    norm.train_grad(&x, &grad, &gamma, &statistics, grads)
        .unwrap();
    let expected = [
        differences(&x, |x| loss(x, &gamma, &beta)),
        differences(&gamma, |gamma| loss(&x, gamma, &beta)),
        differences(&beta, |beta| loss(&x, &gamma, beta)),
    ];
    for (out, expected) in out.iter().zip(&expected) {
        assert_close(out, expected, 1e-8, "batch norm");
    }

    let (logits, labels) = (&x[..12], [2u32, 0, 3]);
    let target: Vec<f64> = x[12..24].iter().map(|v| v.abs()).collect();
    let hard = |logits: &[f64]| {
        let out = written(3, |out| kernels::cross_entropy(4, logits, &labels, out));
        dot(&out, &grad[..3])
    };
    let soft = |logits: &[f64]| {
        let out = written(3, |out| {
            kernels::cross_entropy_soft(4, logits, &target, out)
        });
        dot(&out, &grad[..3])
    };
    let out = written(12, |out| {
        kernels::cross_entropy_grad(4, logits, &labels, &grad[..3], out)
    });
    assert_close(&out, &differences(logits, hard), 1e-8, "cross_entropy");
    let out = written(12, |out| {
        kernels::cross_entropy_soft_grad(4, logits, &target, &grad[..3], out)
    });
    assert_close(&out, &differences(logits, soft), 1e-8, "cross_entropy_soft");

    // No two of these values are closer than a step.
    let pool = kernels::Pool::new([1, 2, 6, 3], 3, 2, 1).unwrap();
    let len = pool.out_shape().iter().product();
    let mut winners = vec![0; len];
    kernels::max_pool2d(&pool, &x, &mut vec![0.0; len], &mut winners).unwrap();
    let out = written(36, |out| {
        kernels::max_pool2d_grad(&pool, &winners, &grad[..len], out)
    });
    let largest = |x: &[f64]| {
        let mut winners = vec![0; len];
        let out = written(len, |out| kernels::max_pool2d(&pool, x, out, &mut winners));
        dot(&out, &grad[..len])
    };
    assert_close(&out, &differences(&x, largest), 1e-8, "max_pool2d");
    let average = |x: &[f64]| {
        let out = written(len, |out| kernels::avg_pool2d(&pool, false, x, out));
        dot(&out, &grad[..len])
    };
    let out = written(36, |out| {
        kernels::avg_pool2d_grad(&pool, false, &grad[..len], out)
    });
    assert_close(&out, &differences(&x, average), 1e-8, "avg_pool2d");
}

/// The running averages of a norm that is trained and then fixed, as PyTorch keeps them.
#[test]
fn running_statistics_follow_their_formula() {
    let norm = BatchNorm::new([4, 2, 1, 3], 1e-3).unwrap();
    let x = Numbers::new(3).reals(24);
    let found = norm.statistics(&x).unwrap();
    let [mean, var] = common::moments(2, 3, &x);
    let mut running = [vec![0.5f32; 2], vec![2.0; 2]];
    kernels::update_running(&mut running[0], &found.mean, 0.1).unwrap();
    let unbiased = found.unbiased_var(norm.count());
    kernels::update_running(&mut running[1], &unbiased, 0.1).unwrap();
    let expected = [
        mean.iter().map(|m| 0.9 * 0.5 + 0.1 * m).collect::<Vec<_>>(),
        var.iter()
            .map(|v| 0.9 * 2.0 + 0.1 * v * 12.0 / 11.0)
            .collect(),
    ];
    for (running, expected) in running.iter().zip(&expected) {
        assert_close(&wide(running), expected, 1e-6, "running average");
    }
}
