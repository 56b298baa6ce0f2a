//! Gradients of every operation: against finite differences, and under the conditions in which
//! candle hands tensors over.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use candle_core::{DType, Device, Result, Tensor, Var};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use theriac_ops::{
    Adam, ConvConfig, PoolConfig, Sgd, adam_step, avg_pool2d, batch_norm_eval, batch_norm_train,
    conv2d, cross_entropy, cross_entropy_soft, linear, max_pool2d, portable, relu, sgd_step, vjp,
};

/// Values in [-1, 1) without ties or zeros, different for each `seed`.
fn data(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0 + 1e-9
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn assert_close(actual: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let (actual, expected) = (values(actual), values(expected));
    let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
    for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
        assert!(
            (a - e).abs() <= tolerance * largest,
            "{what}[{i}]: {a}, expected {e}"
        );
    }
}

type Function = fn(&[Tensor]) -> Result<Tensor>;

const CONV: ConvConfig = ConvConfig {
    stride: 2,
    padding: 1,
    dilation: 1,
    groups: 2,
};
const POOL: PoolConfig = PoolConfig {
    kernel: 3,
    stride: 2,
    padding: 1,
};

fn labels() -> Tensor {
    Tensor::new(&[2u32, 0, 3], &Device::Cpu).unwrap()
}

fn probabilities() -> Tensor {
    data(9, &[3, 4]).sqr().unwrap()
}

/// Name, kernel version, composed version, shapes of the arguments.
fn operations() -> Vec<(&'static str, Function, Function, Vec<Vec<usize>>)> {
    let image = vec![3, 4, 6, 5];
    let channels = vec![4];
    vec![
        (
            "conv2d",
            |t| conv2d(&t[0], &t[1], None, CONV),
            |t| portable::conv2d(&t[0], &t[1], None, CONV),
            vec![image.clone(), vec![6, 2, 3, 2]],
        ),
        (
            "conv2d with bias",
            |t| conv2d(&t[0], &t[1], Some(&t[2]), CONV),
            |t| portable::conv2d(&t[0], &t[1], Some(&t[2]), CONV),
            vec![image.clone(), vec![6, 2, 3, 2], vec![6]],
        ),
        (
            "linear",
            |t| linear(&t[0], &t[1], None),
            |t| portable::linear(&t[0], &t[1], None),
            vec![vec![3, 5], vec![4, 5]],
        ),
        (
            "linear with bias",
            |t| linear(&t[0], &t[1], Some(&t[2])),
            |t| portable::linear(&t[0], &t[1], Some(&t[2])),
            vec![vec![3, 5], vec![4, 5], vec![4]],
        ),
        (
            "relu",
            |t| relu(&t[0]),
            |t| portable::relu(&t[0]),
            vec![image.clone()],
        ),
        (
            "max_pool2d",
            |t| max_pool2d(&t[0], POOL),
            |t| portable::max_pool2d(&t[0], POOL),
            vec![image.clone()],
        ),
        (
            "avg_pool2d",
            |t| avg_pool2d(&t[0], POOL, true),
            |t| portable::avg_pool2d(&t[0], POOL, true),
            vec![image.clone()],
        ),
        (
            "avg_pool2d without padding",
            |t| avg_pool2d(&t[0], POOL, false),
            |t| portable::avg_pool2d(&t[0], POOL, false),
            vec![image.clone()],
        ),
        (
            "batch_norm_train",
            |t| Ok(batch_norm_train(&t[0], &t[1], &t[2], 1e-3)?.0),
            |t| Ok(portable::batch_norm_train(&t[0], &t[1], &t[2], 1e-3)?.0),
            vec![image.clone(), channels.clone(), channels.clone()],
        ),
        (
            "batch_norm_eval",
            |t| {
                let (mean, var) = (data(7, &[4]), data(8, &[4]).sqr()?);
                batch_norm_eval(&t[0], &t[1], &t[2], &mean, &var, 1e-3)
            },
            |t| {
                let (mean, var) = (data(7, &[4]), data(8, &[4]).sqr()?);
                portable::batch_norm_eval(&t[0], &t[1], &t[2], &mean, &var, 1e-3)
            },
            vec![image, channels.clone(), channels],
        ),
        (
            "cross_entropy",
            |t| cross_entropy(&t[0], &labels()),
            |t| portable::cross_entropy(&t[0], &labels()),
            vec![vec![3, 4]],
        ),
        (
            "cross_entropy_soft",
            |t| cross_entropy_soft(&t[0], &probabilities()),
            |t| portable::cross_entropy_soft(&t[0], &probabilities()),
            vec![vec![3, 4]],
        ),
    ]
}

fn arguments(shapes: &[Vec<usize>]) -> Vec<Tensor> {
    shapes
        .iter()
        .zip(1..)
        .map(|(shape, seed)| data(seed, shape))
        .collect()
}

/// A fixed linear function of the result, and its gradient to each argument.
fn loss_and_grads(f: Function, args: &[Tensor]) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Var> = args.iter().map(|a| Var::from_tensor(a).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors).unwrap();
    let weights = data(99, y.dims()).to_dtype(y.dtype()).unwrap();
    let loss = (y * weights).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    (
        loss,
        vars.iter()
            .map(|v| grads.get(v).expect("a gradient").clone())
            .collect(),
    )
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for (name, kernels, composed, shapes) in operations() {
        let args = arguments(&shapes);
        for (version, f) in [("kernels", kernels), ("composed", composed)] {
            let (_, grads) = loss_and_grads(f, &args);
            for (which, grad) in grads.iter().enumerate() {
                let start = values(&args[which]);
                let numerical: Vec<f64> = (0..start.len())
                    .map(|i| {
                        let at = |h: f64| {
                            let mut moved = start.clone();
                            moved[i] += h;
                            let mut args = args.clone();
                            args[which] =
                                Tensor::from_vec(moved, args[which].dims(), &Device::Cpu).unwrap();
                            let y = f(&args).unwrap();
                            let weights = data(99, y.dims());
                            values(&(y * weights).unwrap()).iter().sum::<f64>()
                        };
                        (at(1e-5) - at(-1e-5)) / 2e-5
                    })
                    .collect();
                let numerical = Tensor::from_vec(numerical, grad.dims(), &Device::Cpu).unwrap();
                assert_close(
                    grad,
                    &numerical,
                    1e-7,
                    &format!("{name}, {version}, {which}"),
                );
            }
        }
    }
}

#[test]
fn kernels_and_compositions_agree() {
    for (name, kernels, composed, shapes) in operations() {
        let args = arguments(&shapes);
        let (a, b) = (kernels(&args).unwrap(), composed(&args).unwrap());
        assert_close(&a, &b, 1e-13, name);
        let ((_, a), (_, b)) = (
            loss_and_grads(kernels, &args),
            loss_and_grads(composed, &args),
        );
        for (a, b) in a.iter().zip(&b) {
            assert_close(a, b, 1e-12, name);
        }
    }
}

/// The same values, laid out as a transposed, offset and enlarged tensor.
fn strided(t: &Tensor) -> Tensor {
    let last = t.rank() - 1;
    let filler = Tensor::full(f64::NAN, t.dims(), t.device()).unwrap();
    let wide = Tensor::cat(&[&filler, t, &filler], 0).unwrap();
    let turned = wide
        .transpose(0, last)
        .unwrap()
        .contiguous()
        .unwrap()
        .transpose(0, last)
        .unwrap();
    let part = turned
        .narrow(0, t.dim(0).unwrap(), t.dim(0).unwrap())
        .unwrap();
    assert!(part.rank() == 1 || !part.is_contiguous());
    assert_ne!(part.layout().start_offset(), 0);
    part
}

#[test]
fn layout_of_arguments_does_not_matter() {
    for (name, f, _, shapes) in operations() {
        let args = arguments(&shapes);
        let turned: Vec<Tensor> = args.iter().map(strided).collect();
        assert_eq!(
            values(&f(&args).unwrap()),
            values(&f(&turned).unwrap()),
            "{name}"
        );
        // Through the graph as well: the variable is the contiguous tensor behind the view.
        for (which, arg) in args.iter().enumerate() {
            let var = Var::from_tensor(arg).unwrap();
            let mut views = args.clone();
            let swapped = var.transpose(0, arg.rank() - 1).unwrap();
            views[which] = swapped
                .contiguous()
                .unwrap()
                .transpose(0, arg.rank() - 1)
                .unwrap();
            let grads = f(&views).unwrap().sum_all().unwrap().backward().unwrap();
            views[which] = var.as_tensor().clone();
            let direct = f(&views).unwrap().sum_all().unwrap().backward().unwrap();
            let (a, b) = (grads.get(&var).unwrap(), direct.get(&var).unwrap());
            assert_eq!(values(a), values(b), "{name}, argument {which}");
        }
    }
}

#[test]
fn broadcast_arguments_and_gradients_are_accepted() {
    for (name, f, _, shapes) in operations() {
        let mut args = arguments(&shapes);
        let row = args[0].narrow(0, 0, 1).unwrap();
        let repeated = row.broadcast_as(args[0].dims()).unwrap();
        args[0] = repeated.contiguous().unwrap();
        let expected = f(&args).unwrap();
        args[0] = repeated;
        assert_eq!(values(&f(&args).unwrap()), values(&expected), "{name}");

        // The gradient of a sum has stride 0, that of a transposed result is strided.
        let var = Var::from_tensor(&arguments(&shapes)[0]).unwrap();
        args[0] = var.as_tensor().clone();
        let y = f(&args).unwrap();
        let last = y.rank() - 1;
        let ones = y.ones_like().unwrap();
        let plain = (&y * &ones).unwrap().sum_all().unwrap().backward().unwrap();
        let broadcast = y.sum_all().unwrap().backward().unwrap();
        let turned = (y.transpose(0, last).unwrap() * ones.transpose(0, last).unwrap()).unwrap();
        let turned = turned.sum_all().unwrap().backward().unwrap();
        let expected = values(plain.get(&var).unwrap());
        assert_eq!(values(broadcast.get(&var).unwrap()), expected, "{name}");
        assert_eq!(values(turned.get(&var).unwrap()), expected, "{name}");
    }
}

#[test]
fn constants_get_no_gradient() {
    for (name, f, _, shapes) in operations() {
        for tracked in 0..shapes.len() {
            let vars: Vec<Var> = arguments(&shapes)
                .iter()
                .map(|a| Var::from_tensor(a).unwrap())
                .collect();
            let args: Vec<Tensor> = vars
                .iter()
                .enumerate()
                .map(|(i, v)| {
                    if i == tracked {
                        v.as_tensor().clone()
                    } else {
                        v.detach()
                    }
                })
                .collect();
            let grads = f(&args).unwrap().sum_all().unwrap().backward().unwrap();
            for (i, arg) in args.iter().enumerate() {
                assert_eq!(
                    grads.get(arg).is_some(),
                    i == tracked,
                    "{name}, argument {i}"
                );
            }
        }
    }
}

#[test]
fn vjp_calls_its_map_for_tracked_arguments_only() {
    let calls = Arc::new(AtomicUsize::new(0));
    let run = |x: &Tensor, y: Tensor| {
        let calls = calls.clone();
        vjp(x, y, move |grad| {
            calls.fetch_add(1, Ordering::SeqCst);
            grad.sum_keepdim(1)? * 10.0
        })
    };
    let x = Var::from_tensor(&data(1, &[3, 1])).unwrap();
    let other = Var::from_tensor(&data(2, &[3, 1])).unwrap();
    // An offset view: the value must not be read from the start of its storage.
    let y = data(3, &[5, 2]).narrow(0, 2, 3).unwrap();
    let out = run(&x.detach(), y.clone()).unwrap();
    assert_eq!(values(&out), values(&y));
    let loss = (out.sum_all().unwrap() + other.sum_all().unwrap()).unwrap();
    assert!(loss.backward().unwrap().get(&other).is_some());
    assert_eq!(calls.load(Ordering::SeqCst), 0);

    let out = run(&x, strided(&y)).unwrap();
    assert_eq!(values(&out), values(&y));
    let grads = out.sum_all().unwrap().backward().unwrap();
    assert_eq!(values(grads.get(&x).unwrap()), [20.0, 20.0, 20.0]);
    assert_eq!(calls.load(Ordering::SeqCst), 1);

    let wrong = vjp(&x, y, |grad| Ok(grad.clone())).unwrap();
    let error = wrong.sum_all().unwrap().backward().unwrap_err().to_string();
    assert!(
        error.contains("[3, 2]") && error.contains("[3, 1]"),
        "{error}"
    );
}

#[test]
fn max_pool_ties_go_to_the_first() {
    let config = PoolConfig {
        kernel: 2,
        stride: 2,
        padding: 0,
    };
    for f in [max_pool2d, portable::max_pool2d] {
        let x = Var::zeros((1, 1, 2, 4), DType::F32, &Device::Cpu).unwrap();
        let grads = f(&x, config)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        let expected = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(values(grads.get(&x).unwrap()), expected);
    }
}

#[test]
fn relu_is_flat_at_zero() {
    for f in [relu, portable::relu] {
        let x = Var::new(&[-1f32, -0.0, 0.0, 2.0, f32::NAN], &Device::Cpu).unwrap();
        let y = f(&x).unwrap();
        let out = values(&y);
        assert_eq!(out[..4], [0.0, 0.0, 0.0, 2.0]);
        assert!(out[4].is_nan());
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(grads.get(&x).unwrap())[..4], [0.0, 0.0, 0.0, 1.0]);
    }
}

#[test]
fn other_element_types_take_the_composed_version() {
    for (name, f, composed, shapes) in operations() {
        if name.starts_with("batch_norm_eval") || name == "cross_entropy_soft" {
            continue; // These capture f64 constants.
        }
        let half = |t: &Tensor| t.to_dtype(DType::F16).unwrap();
        let args: Vec<Tensor> = arguments(&shapes).iter().map(half).collect();
        let (actual, expected) = (f(&args).unwrap(), composed(&args).unwrap());
        assert_eq!(actual.dtype(), DType::F16, "{name}");
        assert_eq!(values(&actual), values(&expected), "{name}");
    }
}

#[test]
fn thread_count_changes_nothing() {
    let args: Vec<Tensor> = [
        vec![40, 4, 6, 5],
        vec![6, 2, 3, 2],
        vec![6],
        vec![6],
        vec![6],
    ]
    .iter()
    .zip(1..)
    .map(|(shape, seed)| data(seed, shape).to_dtype(DType::F32).unwrap())
    .collect();
    let f: Function = |t| {
        let y = conv2d(&t[0], &t[1], Some(&t[2]), CONV)?;
        let y = relu(&batch_norm_train(&y, &t[3], &t[4], 1e-3)?.0)?;
        max_pool2d(
            &y,
            PoolConfig {
                kernel: 2,
                stride: 1,
                padding: 0,
            },
        )?
        .flatten_from(1)
    };
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let (loss, grads) = loss_and_grads(f, &args);
            [vec![loss], grads]
                .concat()
                .iter()
                .map(values)
                .collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert_eq!(run(3), one);
}

#[test]
fn optimisers_refuse_shared_storage() {
    let var = |seed| Var::from_tensor(&data(seed, &[3])).unwrap();
    let (param, m, v) = (var(1), var(2), var(3));
    let sgd = Sgd {
        lr: 0.1,
        momentum: 0.9,
        dampening: 0.0,
        nesterov: false,
        weight_decay: 0.0,
    };
    let adam = Adam {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        decoupled: false,
    };
    let before = values(&param);
    assert!(sgd_step(&sgd, &param, &param.detach(), None, true).is_err());
    assert!(sgd_step(&sgd, &param, &data(4, &[3]), Some(&param), true).is_err());
    assert!(adam_step(&adam, &param, &data(4, &[3]), &m, &m, 1).is_err());
    assert!(adam_step(&adam, &param, &m.detach(), &m, &v, 1).is_err());
    assert!(adam_step(&adam, &param, &data(4, &[3]), &m, &v, 0).is_err());
    assert!(adam_step(&adam, &param, &data(4, &[4]), &m, &v, 1).is_err());
    assert_eq!(values(&param), before);
}

#[test]
fn bad_input_is_an_error_that_says_what_to_do() {
    let image = data(1, &[2, 1, 4, 4]);
    let vector = data(1, &[1]);
    let config = ConvConfig::default();
    let narrow = |len| image.narrow(0, 0, len).unwrap();
    let errors = [
        (conv2d(&vector, &image, None, config), "rank 4"),
        (conv2d(&narrow(0), &image, None, config), "at least one"),
        (
            conv2d(&image, &data(1, &[1, 2, 2, 2]), None, config),
            "weight",
        ),
        (
            conv2d(&image, &image.to_dtype(DType::F32).unwrap(), None, config),
            "convert",
        ),
        (conv2d(&image, &image, Some(&vector), config), "bias"),
        (linear(&data(1, &[2, 3]), &data(1, &[4, 2]), None), "[4, 3]"),
        (
            linear(
                &data(1, &[1, 3]).narrow(0, 0, 0).unwrap(),
                &data(1, &[4, 3]),
                None,
            ),
            "at least 1",
        ),
        (
            max_pool2d(
                &image,
                PoolConfig {
                    kernel: 9,
                    stride: 1,
                    padding: 0,
                },
            ),
            "kernel is 9",
        ),
        (
            avg_pool2d(
                &image,
                PoolConfig {
                    kernel: 2,
                    stride: 0,
                    padding: 0,
                },
                true,
            ),
            "stride is 0",
        ),
        (
            cross_entropy(&data(1, &[3, 3]), &labels()),
            "label 3 of sample 2",
        ),
        (cross_entropy(&data(1, &[2, 4]), &labels()), "[2]"),
        (cross_entropy(&data(1, &[3, 4]), &data(1, &[3])), "U32"),
        (
            cross_entropy_soft(&data(1, &[3, 4]), &data(1, &[3, 3])),
            "[3, 4]",
        ),
        (
            batch_norm_train(&image, &data(1, &[2]), &vector, 1e-5).map(|t| t.0),
            "gamma",
        ),
        (
            batch_norm_train(&data(1, &[1, 1, 1, 1]), &vector, &vector, 1e-5).map(|t| t.0),
            "larger batch",
        ),
        (
            batch_norm_eval(&image, &vector, &vector, &vector, &vector, 0.0),
            "eps",
        ),
        (max_pool2d(&narrow(0), POOL), "pooling: the input's shape"),
        (avg_pool2d(&narrow(0), POOL, true), "[0, 1, 4, 4]"),
        (
            batch_norm_eval(&narrow(0), &vector, &vector, &vector, &vector, 1e-5),
            "batch_norm: the input's shape is [0, 1, 4, 4]",
        ),
        (
            cross_entropy(&narrow(0).flatten_from(1).unwrap(), &labels()),
            "at least one sample",
        ),
        (
            conv2d(
                &image,
                &data(1, &[1, 1, 2, 2]),
                None,
                ConvConfig {
                    padding: usize::MAX,
                    ..config
                },
            ),
            "conv2d: padding is",
        ),
    ];
    for (i, (result, part)) in errors.into_iter().enumerate() {
        let error = result.expect_err(part).to_string();
        assert!(
            error.contains(part),
            "case {i}: {error:?} does not contain {part:?}"
        );
    }
}
