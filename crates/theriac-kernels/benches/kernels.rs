//! Time, GFLOP/s and share of the machine's peak of every kernel.
//!
//! `cargo bench -p theriac-kernels --bench kernels -- [--threads N] [--only TEXT]`
//!
//! The peak is what all threads do together when they only multiply and add in registers, measured
//! at the start of the same run. Operations are those of the definition: two for each product of an
//! output with a weight, positions in the padding included. Bytes are those of the arguments, each
//! read or written once. A row of `network` includes what a single layer pays and a layer within a
//! network does not: laying images side by side and back, and allocating the result. Rates are
//! those of the median; where it is far from the best, other work was in the way.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot be set up should stop"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use theriac_kernels::network::{Network, Op, Parameters, Step, Want};
use theriac_kernels::{
    Adam, BatchNorm, BatchNormGrads, Conv, Pool, Sgd, adam_step, avg_pool2d, avg_pool2d_grad,
    conv2d, conv2d_input_grad, conv2d_weight_grad, cross_entropy, cross_entropy_grad,
    fused_multiply_adds, linear, linear_input_grad, linear_weight_grad, max_pool2d,
    max_pool2d_grad, relu, sgd_step,
};

/// For each row; the median is over at least five runs.
const TIME: Duration = Duration::from_millis(200);

/// What a kernel does in one run.
#[derive(Clone, Copy)]
enum Work {
    /// Floating-point operations.
    Operations(f64),
    /// Bytes read and written.
    Bytes(f64),
}

struct Table {
    only: String,
    /// GFLOP/s of all threads.
    peak: f64,
}

impl Table {
    /// Times what `setup` returns and prints a row, if it is asked for.
    fn row<F: FnMut()>(&self, kernel: &str, shape: &str, work: Work, setup: impl FnOnce() -> F) {
        if !format!("{kernel} {shape}").contains(&self.only) {
            return;
        }
        let (seconds, best) = times(setup());
        let (gflops, share, gbytes) = match work {
            Work::Operations(n) => {
                let rate = n / seconds / 1e9;
                let share = format!("{:.0} %", 100.0 * rate / self.peak);
                (format!("{rate:.1}"), share, String::new())
            }
            Work::Bytes(n) => {
                let rate = n / seconds / 1e9;
                (String::new(), String::new(), format!("{rate:.2}"))
            }
        };
        print(&[
            kernel,
            shape,
            &format!("{:.3}", 1e3 * seconds),
            &format!("{:.3}", 1e3 * best),
            &gflops,
            &share,
            &gbytes,
        ]);
    }
}

fn print([kernel, shape, median, best, gflops, share, gbytes]: &[&str; 7]) {
    println!("{kernel:35} {shape:28} {median:>9} {best:>9} {gflops:>8} {share:>6} {gbytes:>6}");
}

/// Seconds of a run, the median and the least, after one that does not count.
fn times(mut run: impl FnMut()) -> (f64, f64) {
    run();
    let began = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || (began.elapsed() < TIME && times.len() < 1000) {
        let start = Instant::now();
        run();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}

/// GFLOP/s of all threads in registers: the best of many runs, each long enough for the scheduler
/// to give every thread a core of its own.
fn peak() -> f64 {
    let run = || {
        let start = Instant::now();
        let done = rayon::broadcast(|_| black_box(fused_multiply_adds(black_box(2_000_000))).0);
        done.iter().sum::<f64>() / start.elapsed().as_secs_f64() / 1e9
    };
    (0..50).map(|_| run()).fold(0.0, f64::max)
}

/// Values in [-1, 1) that do not repeat.
fn data(len: usize) -> Vec<f32> {
    let mut state = len as u64;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

fn bytes(numbers: usize) -> Work {
    Work::Bytes(4.0 * numbers as f64)
}

/// A network of one step: forward, gradient of the images, gradient of the parameters.
fn network(table: &Table, name: &str, shape: &str, image: [usize; 3], n: usize, layer: &Layer) {
    let make = || {
        let step = Step {
            op: layer.op,
            input: 0,
        };
        let network = Network::new(image, &[step]).unwrap();
        let values: Vec<Vec<f32>> = layer.parameters.iter().map(|&len| data(len)).collect();
        let mut parameters: Parameters<'_> = [None; 4];
        for (to, values) in parameters.iter_mut().zip(&values) {
            *to = Some(values);
        }
        let prepared = network.prepare(&[parameters], true).unwrap();
        let x = data(n * image.iter().product::<usize>());
        (network, prepared, x)
    };
    let work = layer.work;
    table.row(&format!("network {name}"), shape, work[0], || {
        let (network, prepared, x) = make();
        move || {
            black_box(network.forward(&prepared, &x, false).unwrap());
        }
    });
    let backward = |images: bool| {
        let (network, prepared, x) = make();
        let trace = network.forward(&prepared, &x, true).unwrap().trace.unwrap();
        let grad = data(n * network.output().iter().product::<usize>());
        let want = Want {
            images,
            parameters: vec![!images],
        };
        move || {
            black_box(network.backward(&prepared, &trace, &grad, &want).unwrap());
        }
    };
    let by_input = format!("network {name}, input gradient");
    table.row(&by_input, shape, work[1], || backward(true));
    if !layer.parameters.is_empty() {
        let by_weight = format!("network {name}, weight gradient");
        table.row(&by_weight, shape, work[1], || backward(false));
    }
}

struct Layer {
    op: Op,
    /// Lengths.
    parameters: Vec<usize>,
    /// Of the forward pass, and of each gradient.
    work: [Work; 2],
}

/// Images, channels, outputs, side, kernel, stride, padding.
const CONVOLUTIONS: [[usize; 7]; 12] = [
    [128, 16, 16, 32, 3, 1, 1],
    [128, 32, 32, 16, 3, 1, 1],
    [128, 64, 64, 8, 3, 1, 1],
    [128, 1, 32, 28, 5, 1, 2],
    [128, 32, 64, 14, 5, 1, 2],
    [32, 64, 64, 32, 3, 1, 1],
    [32, 128, 128, 16, 3, 1, 1],
    [32, 256, 256, 8, 3, 1, 1],
    [32, 512, 512, 4, 3, 1, 1],
    [128, 16, 32, 32, 3, 2, 1],
    [128, 1, 16, 28, 4, 2, 1],
    [128, 16, 32, 14, 4, 2, 1],
];

/// What every row of a network includes: a layer that computes next to nothing.
fn sides(table: &Table) {
    for [n, c, side] in [[128, 16, 32], [32, 64, 32], [128, 32, 14]] {
        let len = n * c * side * side;
        let layer = Layer {
            op: Op::Relu,
            parameters: Vec::new(),
            work: [bytes(2 * len), bytes(3 * len)],
        };
        let shape = format!("b{n} c{c} {side}x{side}");
        network(table, "relu", &shape, [c, side, side], n, &layer);
    }
}

fn convolutions(table: &Table) {
    let shape = |[n, c, o, side, k, s, p]: [usize; 7]| {
        format!("b{n} {c}->{o} {side}x{side} k{k} s{s} p{p}")
    };
    let geometry = |[n, c, o, side, k, s, p]: [usize; 7]| {
        Conv::new([n, c, side, side], [o, c, k, k], s, p, 1, 1).unwrap()
    };
    let work = |case: [usize; 7]| {
        let [_, c, _, _, k, ..] = case;
        let outputs: usize = geometry(case).out_shape().iter().product();
        Work::Operations(2.0 * (outputs * c * k * k) as f64)
    };
    for case @ [n, c, o, side, k, s, p] in CONVOLUTIONS {
        let layer = Layer {
            op: Op::Conv {
                outputs: o,
                kernel: (k, k),
                stride: s,
                padding: p,
                dilation: 1,
            },
            parameters: vec![o * c * k * k, o],
            work: [work(case); 2],
        };
        network(table, "conv", &shape(case), [c, side, side], n, &layer);
    }
    for case @ [n, c, o, side, k, ..] in CONVOLUTIONS {
        let (text, work, conv) = (shape(case), work(case), geometry(case));
        let x = || data(n * c * side * side);
        let weight = || data(o * c * k * k);
        let grad = || data(conv.out_shape().iter().product());
        table.row("conv2d", &text, work, || {
            let (x, weight, mut out) = (x(), weight(), grad());
            move || conv2d(&conv, &x, &weight, None, black_box(&mut out)).unwrap()
        });
        table.row("conv2d_input_grad", &text, work, || {
            let (mut x, weight, grad) = (x(), weight(), grad());
            move || conv2d_input_grad(&conv, &grad, &weight, black_box(&mut x)).unwrap()
        });
        table.row("conv2d_weight_grad", &text, work, || {
            let (x, mut weight, grad) = (x(), weight(), grad());
            move || conv2d_weight_grad(&conv, &x, &grad, black_box(&mut weight)).unwrap()
        });
    }
}

fn linears(table: &Table) {
    for (rows, inputs, outputs) in [(128, 3136, 1024), (128, 1568, 100)] {
        let shape = format!("b{rows} {inputs}->{outputs}");
        let work = Work::Operations(2.0 * (rows * inputs * outputs) as f64);
        let layer = Layer {
            op: Op::Linear { outputs },
            parameters: vec![inputs * outputs, outputs],
            work: [work; 2],
        };
        network(table, "linear", &shape, [inputs, 1, 1], rows, &layer);
        let dims = (rows, inputs, outputs);
        let x = || data(rows * inputs);
        let weight = || data(outputs * inputs);
        let grad = || data(rows * outputs);
        table.row("linear", &shape, work, || {
            let (x, weight, mut out) = (x(), weight(), grad());
            move || linear(dims, &x, &weight, None, black_box(&mut out)).unwrap()
        });
        table.row("linear_input_grad", &shape, work, || {
            let (mut x, weight, grad) = (x(), weight(), grad());
            move || linear_input_grad(dims, &grad, &weight, black_box(&mut x)).unwrap()
        });
        table.row("linear_weight_grad", &shape, work, || {
            let (x, mut weight, grad) = (x(), weight(), grad());
            move || linear_weight_grad(dims, &x, &grad, black_box(&mut weight)).unwrap()
        });
    }
}

fn pools(table: &Table) {
    for (n, c, side) in [(128, 32, 28), (128, 64, 14)] {
        let (kernel, stride, padding) = (2, 2, 0);
        let shape = format!("b{n} c{c} {side}x{side} k{kernel} s{stride}");
        let pool = Pool::new([n, c, side, side], kernel, stride, padding).unwrap();
        let (len, out) = (n * c * side * side, pool.out_shape().iter().product());
        let max = Layer {
            op: Op::MaxPool {
                kernel,
                stride,
                padding,
            },
            parameters: Vec::new(),
            work: [bytes(len + out); 2],
        };
        network(table, "max pool", &shape, [c, side, side], n, &max);
        table.row("max_pool2d", &shape, bytes(len + 2 * out), || {
            let (x, mut y, mut at) = (data(len), data(out), vec![0; out]);
            move || max_pool2d(&pool, &x, black_box(&mut y), &mut at).unwrap()
        });
        table.row("max_pool2d_grad", &shape, bytes(len + 2 * out), || {
            let (mut x, mut y, mut at) = (data(len), data(out), vec![0; out]);
            max_pool2d(&pool, &x, &mut y, &mut at).unwrap();
            move || max_pool2d_grad(&pool, &at, &y, black_box(&mut x)).unwrap()
        });
        table.row("avg_pool2d", &shape, bytes(len + out), || {
            let (x, mut y) = (data(len), data(out));
            move || avg_pool2d(&pool, true, &x, black_box(&mut y)).unwrap()
        });
        table.row("avg_pool2d_grad", &shape, bytes(len + out), || {
            let (mut x, y) = (data(len), data(out));
            move || avg_pool2d_grad(&pool, true, &y, black_box(&mut x)).unwrap()
        });
    }
}

fn norms(table: &Table) {
    for (n, c, side) in [(128, 16, 32), (128, 64, 8)] {
        let (shape, len) = (format!("b{n} c{c} {side}x{side}"), n * c * side * side);
        let layer = Layer {
            op: Op::BatchNorm { eps: 1e-5 },
            parameters: vec![c, c],
            // Statistics and values; sums and gradients.
            work: [bytes(3 * len), bytes(5 * len)],
        };
        network(table, "batch norm", &shape, [c, side, side], n, &layer);
        let norm = BatchNorm::new([n, c, side, side], 1e-5).unwrap();
        let gamma = data(c);
        table.row("BatchNorm::statistics", &shape, bytes(len), || {
            let x = data(len);
            move || {
                black_box(norm.statistics(&x).unwrap());
            }
        });
        table.row("BatchNorm::forward", &shape, bytes(2 * len), || {
            let (x, mut out, gamma) = (data(len), data(len), gamma.clone());
            let statistics = norm.statistics(&x).unwrap();
            move || {
                norm.forward(&x, &gamma, &gamma, &statistics, black_box(&mut out))
                    .unwrap();
            }
        });
        table.row("BatchNorm::train_grad", &shape, bytes(5 * len), || {
            let (x, grad, mut out) = (data(len), data(len), data(len));
            let (mut by_gamma, mut by_beta, gamma) = (data(c), data(c), gamma.clone());
            let statistics = norm.statistics(&x).unwrap();
            move || {
                let grads = BatchNormGrads {
                    x: Some(black_box(&mut out[..])),
                    gamma: Some(&mut by_gamma[..]),
                    beta: Some(&mut by_beta[..]),
                };
                norm.train_grad(&x, &grad, &gamma, &statistics, grads)
                    .unwrap();
            }
        });
    }
}

fn losses(table: &Table) {
    for (samples, classes) in [(128, 10), (128, 1000)] {
        let (shape, len) = (format!("b{samples} {classes} classes"), samples * classes);
        let labels: Vec<u32> = (0..samples).map(|i| (i % classes) as u32).collect();
        table.row("cross_entropy", &shape, bytes(len), || {
            let (logits, mut out, labels) = (data(len), data(samples), labels.clone());
            move || cross_entropy(classes, &logits, &labels, black_box(&mut out)).unwrap()
        });
        table.row("cross_entropy_grad", &shape, bytes(2 * len), || {
            let (logits, grad, mut out) = (data(len), data(samples), data(len));
            let labels = labels.clone();
            move || {
                let out = black_box(&mut out);
                cross_entropy_grad(classes, &logits, &labels, &grad, out).unwrap();
            }
        });
    }
}

fn elementwise(table: &Table) {
    let len = 1 << 22;
    let shape = "4194304 values";
    table.row("copy, for comparison", shape, bytes(2 * len), || {
        let (x, mut out) = (data(len), data(len));
        move || {
            let blocks = black_box(&mut out).par_chunks_mut(1 << 15);
            blocks
                .zip(x.par_chunks(1 << 15))
                .for_each(|(to, from)| to.copy_from_slice(from));
        }
    });
    table.row("relu", shape, bytes(2 * len), || {
        let (x, mut out) = (data(len), data(len));
        move || relu(&x, black_box(&mut out)).unwrap()
    });
    table.row("sgd_step with momentum", shape, bytes(5 * len), || {
        let (mut param, grad, mut buffer) = (data(len), data(len), data(len));
        let sgd = Sgd {
            lr: 1e-3,
            momentum: 0.9,
            dampening: 0.0,
            nesterov: false,
            weight_decay: 1e-4,
        };
        move || sgd_step(&sgd, &mut param, &grad, Some(&mut buffer), false).unwrap()
    });
    table.row("adam_step", shape, bytes(7 * len), || {
        let (mut param, grad) = (data(len), data(len));
        let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
        let adam = Adam {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decoupled: false,
        };
        move || adam_step(&adam, &mut param, &grad, &mut m, &mut v, 1).unwrap()
    });
}

fn main() {
    let mut threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut only = String::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = match argument.as_str() {
            // cargo's own.
            "--bench" => continue,
            "--threads" | "--only" => arguments.next(),
            _ => None,
        };
        match (argument.as_str(), value) {
            ("--threads", Some(n)) if n.parse::<usize>().is_ok_and(|n| n > 0) => {
                threads = n.parse().unwrap();
            }
            ("--only", Some(text)) => only = text,
            _ => {
                eprintln!("usage: kernels [--threads N] [--only TEXT]");
                std::process::exit(2);
            }
        }
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap().install(|| {
        let table = Table { only, peak: peak() };
        println!(
            "{threads} threads; peak of fused multiply-adds in registers: {:.0} GFLOP/s\n",
            table.peak
        );
        print(&[
            "kernel",
            "shape",
            "median ms",
            "best ms",
            "GFLOP/s",
            "peak",
            "GB/s",
        ]);
        sides(&table);
        convolutions(&table);
        linears(&table);
        pools(&table);
        norms(&table);
        losses(&table);
        elementwise(&table);
    });
}
