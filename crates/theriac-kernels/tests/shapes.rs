//! Shapes that describe no computation, or none that memory holds, are refused by name.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use theriac_kernels::{
    Adam, BatchNorm, Conv, Error, Pool, Sgd, Statistics, adam_step, avg_pool2d, conv2d,
    conv2d_bias_grad, conv2d_input_grad, conv2d_weight_grad, cross_entropy, cross_entropy_grad,
    cross_entropy_soft, cross_entropy_soft_grad, linear, linear_bias_grad, linear_input_grad,
    linear_weight_grad, max_pool2d, max_pool2d_grad, relu, relu_grad, sgd_step, update_running,
};

/// Sizes that no array has, or whose products wrap around to something small.
const HUGE: [usize; 4] = [
    usize::MAX,
    usize::MAX / 2,
    1 << (usize::BITS - 4),
    (1 << (usize::BITS - 1)) + 1,
];

/// Asserts that the result is an error whose text holds each part.
fn refused<T>(result: Result<T, Error>, parts: &[&str]) {
    let error = match result {
        Ok(_) => panic!("accepted, expected an error with {parts:?}"),
        Err(error) => error.to_string(),
    };
    for part in parts {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

/// `shape` with `size` at each place in turn.
fn with<const N: usize>(shape: [usize; N], size: usize) -> impl Iterator<Item = [usize; N]> {
    (0..N).map(move |place| {
        let mut shape = shape;
        shape[place] = size;
        shape
    })
}

#[test]
fn empty_shapes_are_refused_by_name() {
    for x in with([2, 1, 4, 4], 0) {
        let text = format!("{x:?}");
        let weight = [1, 1, 2, 2];
        refused(Conv::new(x, weight, 1, 0, 1, 1), &["conv2d", &text]);
        refused(Pool::new(x, 2, 2, 0), &["pooling", &text]);
        refused(BatchNorm::new(x, 1e-5), &["batch_norm", &text]);
    }
    for weight in with([1, 1, 2, 2], 0) {
        let text = format!("{weight:?}");
        let conv = Conv::new([2, 1, 4, 4], weight, 1, 0, 1, 1);
        refused(conv, &["conv2d", &text]);
    }
    for [rows, inputs, outputs] in with([1, 1, 1], 0) {
        let dims = (rows, inputs, outputs);
        let (x, weight) = (vec![0f32; rows * inputs], vec![0f32; outputs * inputs]);
        let mut out = vec![0f32; rows * outputs];
        let text = format!("{dims:?}");
        let parts = ["linear", &text];
        refused(linear(dims, &x, &weight, None, &mut out), &parts);
        let grad = out;
        let (mut to_x, mut to_weight) = (x.clone(), weight.clone());
        refused(linear_input_grad(dims, &grad, &weight, &mut to_x), &parts);
        refused(linear_weight_grad(dims, &x, &grad, &mut to_weight), &parts);
    }
    let none: &mut [f32] = &mut [];
    refused(linear_bias_grad(0, 1, &[], &mut [0f32]), &["linear"]);
    refused(
        cross_entropy(0, &[], &[1], none),
        &["cross_entropy", "[1, 0]"],
    );
    refused(
        cross_entropy_soft(0, &[], &[], &mut [0f32; 3]),
        &["cross_entropy", "[3, 0]"],
    );
}

/// Elementwise kernels and losses of nothing are nothing.
#[test]
fn empty_batches_are_fine_where_a_sample_stands_alone() {
    let none: &mut [f32] = &mut [];
    relu(&[], none).unwrap();
    relu_grad(&[], &[], none).unwrap();
    cross_entropy(3, &[], &[], none).unwrap();
    cross_entropy_grad(3, &[], &[], &[], none).unwrap();
    cross_entropy_soft(3, &[], &[], none).unwrap();
    cross_entropy_soft_grad(3, &[], &[], &[], none).unwrap();
    update_running(none, &[], 0.1).unwrap();
    let sgd = Sgd {
        lr: 0.1,
        momentum: 0.9,
        dampening: 0.0,
        nesterov: false,
        weight_decay: 0.0,
    };
    sgd_step(&sgd, none, &[], Some(&mut []), true).unwrap();
    let adam = Adam {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        decoupled: false,
    };
    adam_step(&adam, none, &[], &mut [], &mut [], 1).unwrap();
    refused(
        adam_step(&adam, none, &[], &mut [], &mut [], 0),
        &["adam_step"],
    );
}

#[test]
fn huge_shapes_are_refused_by_name() {
    for huge in HUGE {
        let text = huge.to_string();
        for x in with([1, 1, 4, 4], huge) {
            let conv = Conv::new(x, [1, x[1], 2, 2], 1, 0, 1, 1);
            refused(conv, &["conv2d", &text]);
            refused(BatchNorm::new(x, 1e-5), &["batch_norm", &text]);
            refused(Pool::new(x, 2, 2, 0), &["pooling", &text]);
        }
        for weight in with([1, 1, 2, 2], huge) {
            let conv = Conv::new([1, 1, 4, 4], weight, 1, 0, 1, 1);
            refused(conv, &["conv2d", &text]);
        }
        let conv = |stride, padding, dilation, groups| {
            let weight = [1, 1, 2, 2];
            Conv::new([1, 1, 4, 4], weight, stride, padding, dilation, groups)
        };
        refused(conv(huge, 0, 1, 1), &["conv2d: stride", &text]);
        refused(conv(1, huge, 1, 1), &["conv2d: padding", &text]);
        refused(conv(1, 0, huge, 1), &["conv2d: dilation", &text]);
        refused(conv(1, 0, 1, huge), &["conv2d", &text]);
        let pool = |kernel, stride, padding| Pool::new([1, 1, 4, 4], kernel, stride, padding);
        refused(pool(huge, 1, 0), &["pooling: kernel", &text]);
        refused(pool(2, huge, 0), &["pooling: stride", &text]);
        refused(pool(2, 1, huge), &["pooling: padding", &text]);
    }
    // The padded image is as large as the kernel only if its size wraps around.
    let most = usize::MAX;
    refused(
        Pool::new([1, 1, 4, 4], most, 1, most / 2),
        &["pooling: kernel"],
    );
}

/// Slices that fit a product which wraps around are not taken for the shape.
#[test]
fn products_that_wrap_around_are_refused() {
    let half = 1 << (usize::BITS / 2);
    for x in with([1, 1, 4, 4], half).flat_map(|x| with(x, half)) {
        if x.iter().filter(|&&size| size == half).count() == 2 {
            refused(Conv::new(x, [1, x[1], 2, 2], 1, 0, 1, 1), &["conv2d"]);
            refused(BatchNorm::new(x, 1e-5), &["batch_norm"]);
            refused(Pool::new(x, 2, 2, 0), &["pooling"]);
        }
    }
    let none: &mut [f32] = &mut [];
    for dims in [(half, half, 1), (1, half, half), (half, 1, half)] {
        refused(linear(dims, &[], &[], None, none), &["linear"]);
        refused(linear_input_grad(dims, &[], &[], none), &["linear"]);
        refused(linear_weight_grad(dims, &[], &[], none), &["linear"]);
    }
    refused(linear_bias_grad(half, half, &[], none), &["linear"]);
    let huge = usize::MAX / 2 + 1;
    for result in [
        cross_entropy(huge, &[], &[0, 0], &mut [0f32; 2]),
        cross_entropy_grad(huge, &[], &[0, 0], &[0f32; 2], &mut []),
        cross_entropy_soft(huge, &[], &[], &mut [0f32; 2]),
        cross_entropy_soft_grad(huge, &[], &[], &[0f32; 2], &mut []),
        cross_entropy(huge, &[], &[], none),
    ] {
        refused(result, &["cross_entropy", &huge.to_string()]);
    }
    // Columns of weights and outputs that could both exist.
    let (tall, long) = (1 << 29, 1 << 31);
    let conv = Conv::new([1, 1, tall, long], [1, 1, tall, 1], 1, 0, 1, 1);
    refused(conv, &["conv2d"]);
}

#[test]
fn slices_of_another_length_are_refused_by_name() {
    let conv = Conv::new([2, 1, 3, 3], [2, 1, 2, 2], 1, 0, 1, 1).unwrap();
    let (x, weight, bias, grad) = ([0f32; 18], [0f32; 8], [0f32; 2], [0f32; 16]);
    let (mut to_x, mut to_weight, mut to_bias, mut out) = (x, weight, bias, grad);
    refused(
        conv2d(&conv, &x[1..], &weight, None, &mut out),
        &["conv2d: x", "17", "18"],
    );
    refused(
        conv2d(&conv, &x, &weight[1..], None, &mut out),
        &["conv2d: weight"],
    );
    refused(
        conv2d(&conv, &x, &weight, Some(&bias[1..]), &mut out),
        &["conv2d: bias"],
    );
    refused(
        conv2d(&conv, &x, &weight, None, &mut out[1..]),
        &["conv2d: out"],
    );
    refused(
        conv2d_input_grad(&conv, &grad[1..], &weight, &mut to_x),
        &["grad_out"],
    );
    refused(
        conv2d_weight_grad(&conv, &x, &grad, &mut to_weight[1..]),
        &["grad_w"],
    );
    refused(
        conv2d_bias_grad(&conv, &grad, &mut to_bias[1..]),
        &["grad_bias"],
    );
    let pool = Pool::new([2, 1, 3, 3], 2, 1, 0).unwrap();
    let (mut out, mut winners) = ([0f32; 8], [0u32; 8]);
    refused(
        max_pool2d(&pool, &x, &mut out, &mut winners[1..]),
        &["max_pool2d: argmax", "7", "8"],
    );
    refused(
        max_pool2d_grad(&pool, &[9; 8], &out, &mut to_x),
        &["max_pool2d", "9"],
    );
    refused(
        avg_pool2d(&pool, true, &x[1..], &mut out),
        &["avg_pool2d: x"],
    );
    let norm = BatchNorm::new([2, 1, 3, 3], 1e-5).unwrap();
    refused(norm.statistics(&x[1..]), &["batch_norm: x"]);
    let two = Statistics::fixed(&[0f32; 2], &[1.0; 2], 1e-5).unwrap();
    let mut out = [0f32; 18];
    refused(
        norm.forward(&x, &[1.0], &[0.0], &two, &mut out),
        &["batch_norm: mean", "2", "1"],
    );
    refused(relu(&x, &mut out[1..]), &["relu: out"]);
    refused(
        update_running(&mut out, &[0.0; 17], 0.1),
        &["update_running"],
    );
}
