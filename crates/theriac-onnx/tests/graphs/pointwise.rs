//! Functions of single values and arithmetic.

use candle_core::{DType, Device, Tensor};
use theriac::{Pixels, Run, gradient};
use theriac_onnx::proto::AttributeProto;

use crate::support::{Graph, assert_close, float, int, ints, list, noise, text};

const DIMS: [i64; 3] = [2, 2, 3];

/// The image stretched to [-4, 4], through a node, flat.
fn stretched(op: &str, inputs: &[&str], attributes: &[AttributeProto]) -> Graph {
    Graph::new(DIMS)
        .floats("eight", &[], &[8.0])
        .floats("half", &[1], &[0.5])
        .node("Sub", &["x", "half"], "centred", &[])
        .node("Mul", &["centred", "eight"], "h", &[])
        .node(op, inputs, "z", attributes)
        .flat("z")
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// By its power series.
fn erf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for n in 1..80 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn functions_of_each_value_are_their_formulas() {
    type Case = (&'static str, Vec<AttributeProto>, fn(f64) -> f64);
    let alpha = |a| vec![float("alpha", a)];
    let cases: Vec<Case> = vec![
        ("Relu", vec![], |x| x.max(0.0)),
        ("LeakyRelu", vec![], |x| {
            if x > 0.0 { x } else { f64::from(0.01f32) * x }
        }),
        (
            "LeakyRelu",
            alpha(0.25),
            |x| if x > 0.0 { x } else { 0.25 * x },
        ),
        ("Elu", alpha(0.5), |x| {
            if x > 0.0 { x } else { 0.5 * (x.exp() - 1.0) }
        }),
        (
            "Selu",
            vec![float("alpha", 2.0), float("gamma", 0.5)],
            |x| 0.5 * if x > 0.0 { x } else { 2.0 * (x.exp() - 1.0) },
        ),
        ("Sigmoid", vec![], sigmoid),
        ("Tanh", vec![], f64::tanh),
        ("HardSigmoid", vec![float("alpha", 0.25)], |x| {
            (0.25 * x + 0.5).clamp(0.0, 1.0)
        }),
        ("HardSwish", vec![], |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        ("Softplus", vec![], |x| x.exp().ln_1p()),
        ("Abs", vec![], f64::abs),
        ("Neg", vec![], |x| -x),
        ("Exp", vec![], f64::exp),
        ("Erf", vec![], erf),
        ("Gelu", vec![], |x| x * 0.5 * (1.0 + erf(x / 2f64.sqrt()))),
        ("Gelu", vec![text("approximate", "tanh")], |x| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x * 0.5 * (1.0 + inner.tanh())
        }),
        ("Reciprocal", vec![], f64::recip),
        ("Identity", vec![], |x| x),
        ("Dropout", vec![], |x| x),
    ];
    for (op, attributes, formula) in cases {
        let graph = stretched(op, &["h"], &attributes);
        let expected: Vec<f64> = graph
            .pixels()
            .iter()
            .map(|x| formula((x - 0.5) * 8.0))
            .collect();
        graph.check(&expected);
    }
    for (op, formula) in [("Log", f64::ln as fn(f64) -> f64), ("Sqrt", f64::sqrt)] {
        let graph = Graph::new(DIMS).node(op, &["x"], "h", &[]).flat("h");
        let expected: Vec<f64> = graph.pixels().into_iter().map(formula).collect();
        graph.check(&expected);
    }
}

#[test]
fn functions_with_constants_are_their_formulas() {
    let check = |graph: Graph, formula: &dyn Fn(f64) -> f64| {
        let expected: Vec<f64> = graph
            .pixels()
            .iter()
            .map(|x| formula((x - 0.5) * 8.0))
            .collect();
        graph.check(&expected);
    };
    let clip = stretched("Clip", &["h", "low", "high"], &[]);
    check(
        clip.floats("low", &[], &[-1.0]).floats("high", &[], &[2.0]),
        &|x| x.clamp(-1.0, 2.0),
    );
    let old = stretched("Clip", &["h"], &[float("min", 0.0), float("max", 6.0)]);
    check(old, &|x| x.clamp(0.0, 6.0));
    let half = stretched("Clip", &["h", "", "high"], &[]).floats("high", &[], &[1.0]);
    check(half, &|x| x.min(1.0));
    let max = stretched("Max", &["h", "bound"], &[]).floats("bound", &[], &[0.5]);
    check(max, &|x| x.max(0.5));
    let min = stretched("Min", &["bound", "h"], &[]).floats("bound", &[], &[0.5]);
    check(min, &|x| x.min(0.5));
    let cube = stretched("Pow", &["h", "three"], &[]).floats("three", &[], &[3.0]);
    check(cube, &|x| x.powi(3));
    let square = stretched("Pow", &["h", "two"], &[]).floats("two", &[], &[2.0]);
    check(square, &|x| x * x);
}

#[test]
fn prelu_has_a_slope_for_each_channel() {
    let graph = stretched("PRelu", &["h", "slopes"], &[]).floats("slopes", &[2, 1, 1], &[0.1, 0.7]);
    let formula = |(i, x): (usize, &f64)| {
        let x = (x - 0.5) * 8.0;
        if x > 0.0 {
            x
        } else {
            [0.1, 0.7][i / 6 % 2] * x
        }
    };
    let expected: Vec<f64> = graph.pixels().iter().enumerate().map(formula).collect();
    graph.check(&expected);
}

/// Derivatives where a function bends, as PyTorch has them.
#[test]
fn derivatives_where_a_function_bends_are_those_of_pytorch() {
    // Node, its attributes, pixels, derivatives at 8 (pixel - 1 / 2).
    let bounds = |low, high| vec![float("min", low), float("max", high)];
    let cases: [(&str, Vec<AttributeProto>, Vec<f64>); 7] = [
        ("Relu", vec![], vec![0.0, 0.0, 1.0]),
        (
            "LeakyRelu",
            vec![float("alpha", 0.25)],
            vec![0.25, 0.25, 1.0],
        ),
        ("Abs", vec![], vec![-1.0, 0.0, 1.0]),
        // torch.clamp: 1 at its bounds. -4 is a bound, 4 is outside.
        ("Clip", bounds(-4.0, 0.0), vec![1.0, 1.0, 0.0]),
        // ReLU6: 0 at its bounds.
        ("Clip", bounds(0.0, 6.0), vec![0.0, 0.0, 1.0]),
        (
            "HardSigmoid",
            vec![float("alpha", 0.125)],
            vec![0.0, 0.125, 0.0],
        ),
        ("HardSwish", vec![], vec![0.0, 0.5, 1.0]),
    ];
    for (op, attributes, expected) in cases {
        let mut graph = stretched(op, &["h"], &attributes);
        graph.image = vec![-1, 1, 1, 3];
        for dtype in [DType::F32, DType::F64] {
            let (model, run) = (graph.read(dtype).unwrap(), Run::new(0, &Device::Cpu));
            let x = Tensor::new(&[0f32, 0.5, 1.0], &Device::Cpu).unwrap();
            let x = x.reshape((1, 1, 1, 3)).unwrap().to_dtype(dtype).unwrap();
            let (x, pass) = (Pixels::new(x).unwrap(), run.eval(&[0]));
            let sum = |x: &Pixels| Ok(model.network.forward(x.tensor(), &pass)?.sum(1)?);
            let (_, slopes) = gradient(&x, &pass, sum).unwrap();
            let expected: Vec<f64> = expected.iter().map(|d| 8.0 * d).collect();
            assert_close(&list(&slopes), &expected, 1e-6);
        }
    }
}

/// Nothing overflows on the way to a finite value or derivative.
#[test]
fn large_arguments_give_finite_derivatives() {
    for op in [
        "Sigmoid",
        "Tanh",
        "Softplus",
        "Elu",
        "Selu",
        "Gelu",
        "HardSwish",
        "LogSoftmax",
    ] {
        let graph = Graph::new([1, 1, 2])
            .floats("large", &[], &[400.0])
            .floats("half", &[], &[0.5])
            .node("Sub", &["x", "half"], "centred", &[])
            .node("Mul", &["centred", "large"], "h", &[])
            .node(op, &["h"], "z", &[])
            .flat("z");
        let (model, run) = (graph.read(DType::F32).unwrap(), Run::new(0, &Device::Cpu));
        let x = Tensor::new(&[0f32, 1.0], &Device::Cpu).unwrap();
        let x = Pixels::new(x.reshape((1, 1, 1, 2)).unwrap()).unwrap();
        let pass = run.eval(&[0]);
        let sum = |x: &Pixels| Ok(model.network.forward(x.tensor(), &pass)?.sum(1)?);
        let (value, slopes) = gradient(&x, &pass, sum).unwrap();
        let all = [list(&value), list(&slopes)].concat();
        assert!(all.iter().all(|v| v.is_finite()), "{op}: {all:?}");
    }
}

#[test]
fn arithmetic_with_constants_broadcasts() {
    type Formula = fn(f64, f64) -> f64;
    let formulas: [(&str, Formula); 4] = [
        ("Add", |x, c| x + c),
        ("Sub", |x, c| x - c),
        ("Mul", |x, c| x * c),
        ("Div", |x, c| x / c),
    ];
    // A number, a channel's, a column's, a pixel's, of another rank.
    let shapes: [&[i64]; 6] = [&[], &[1], &[2, 1, 1], &[3], &[1, 2, 2, 3], &[1, 1, 2, 1]];
    for (op, formula) in formulas {
        for shape in shapes {
            let count = shape.iter().product::<i64>() as usize;
            let c = noise("constant", count, 0.5, 1.5);
            let place = |i: usize| match *shape {
                [2, 1, 1] => i / 6 % 2,
                [3] => i % 3,
                [1, 2, 2, 3] => i % 12,
                [1, 1, 2, 1] => i / 3 % 2,
                _ => 0,
            };
            for turned in [false, true] {
                let inputs = if turned { ["c", "x"] } else { ["x", "c"] };
                let graph = Graph::new(DIMS).floats("c", shape, &c);
                let graph = graph.node(op, &inputs, "h", &[]).flat("h");
                let value = |(i, x): (usize, &f64)| match turned {
                    false => formula(*x, c[place(i)]),
                    true => formula(c[place(i)], *x),
                };
                let expected: Vec<f64> = graph.pixels().iter().enumerate().map(value).collect();
                graph.check(&expected);
            }
        }
    }
}

/// A constant that is larger than the value stretches it.
#[test]
fn a_value_broadcasts_to_a_constant() {
    let c = [0.5, 1.5, 2.0, 3.0, 0.1, 0.2];
    let graph = Graph::new([2, 1, 1])
        .floats("c", &[2, 3], &c)
        .node("Mul", &["x", "c"], "h", &[])
        .flat("h");
    let pixels = graph.pixels();
    let expected: Vec<f64> = pixels.iter().flat_map(|x| c.map(|c| x * c)).collect();
    graph.check(&expected);
}

/// Values of the graph with each other, among them a channel's mean with its pixels.
#[test]
fn arithmetic_of_values_broadcasts() {
    type Formula = fn(f64, f64) -> f64;
    let formulas: [(&str, Formula); 4] = [
        ("Add", |x, y| x + y),
        ("Sub", |x, y| x - y),
        ("Mul", |x, y| x * y),
        ("Div", |x, y| x / y),
    ];
    for (op, formula) in formulas {
        let graph = Graph::new(DIMS)
            .node("Exp", &["x"], "e", &[])
            .node("GlobalAveragePool", &["e"], "m", &[])
            .node(op, &["x", "e"], "a", &[])
            .node(op, &["x", "m"], "b", &[])
            .node("Sum", &["a", "b", "x"], "h", &[])
            .flat("h");
        let pixels = graph.pixels();
        let mean = |i: usize| {
            let channel = &pixels[i / 6 * 6..i / 6 * 6 + 6];
            channel.iter().map(|x| x.exp()).sum::<f64>() / 6.0
        };
        let value = |(i, x): (usize, &f64)| formula(*x, x.exp()) + formula(*x, mean(i)) + x;
        let expected: Vec<f64> = pixels.iter().enumerate().map(value).collect();
        graph.check(&expected);
    }
}

#[test]
fn batch_norm_uses_the_running_statistics() {
    let constants = |graph: Graph, n: i64| {
        graph
            .floats("gamma", &[n], &noise("gamma", n as usize, 0.5, 1.5))
            .floats("beta", &[n], &noise("beta", n as usize, -1.0, 1.0))
            .floats("mean", &[n], &noise("mean", n as usize, -1.0, 1.0))
            .floats("var", &[n], &noise("var", n as usize, 0.5, 1.5))
    };
    let formula = |x: f64, c: usize, n: usize| {
        let [gamma, beta, mean, var] = [
            ("gamma", 0.5, 1.5),
            ("beta", -1.0, 1.0),
            ("mean", -1.0, 1.0),
            ("var", 0.5, 1.5),
        ]
        .map(|(name, low, high)| noise(name, n, low, high)[c]);
        gamma * (x - mean) / (var + 0.125).sqrt() + beta
    };
    let inputs = ["x", "gamma", "beta", "mean", "var"];
    let eps = [float("epsilon", 0.125)];
    // Of images; and of features that were images, which a network keeps as images.
    let graph = constants(Graph::new(DIMS), 2).node("BatchNormalization", &inputs, "h", &eps);
    let value = |(i, x): (usize, &f64)| formula(*x, i / 6 % 2, 2);
    let graph = graph.flat("h");
    let expected: Vec<f64> = graph.pixels().iter().enumerate().map(value).collect();
    graph.check(&expected);

    let inputs = ["r", "gamma", "beta", "mean", "var"];
    let graph = constants(Graph::new(DIMS), 12)
        .node("Flatten", &["x"], "f", &[])
        .node("Relu", &["f"], "r", &[])
        .node("BatchNormalization", &inputs, "b", &eps)
        .floats("w", &[12, 3], &noise("w", 36, -1.0, 1.0))
        .node("Gemm", &["b", "w"], "y", &[]);
    let pixels = graph.pixels();
    let w = noise("w", 36, -1.0, 1.0);
    let out = |n: usize, k: usize| -> f64 {
        (0..12)
            .map(|i| formula(pixels[n * 12 + i], i, 12) * w[i * 3 + k])
            .sum()
    };
    let expected: Vec<f64> = (0..9).map(|i| out(i / 3, i % 3)).collect();
    graph.check(&expected);
}

#[test]
fn fully_connected_layers_are_their_sums() {
    let (w, c) = (noise("w", 36, -1.0, 1.0), noise("c", 3, -1.0, 1.0));
    let turned: Vec<f64> = (0..36).map(|i| w[i % 12 * 3 + i / 12]).collect();
    let flat = || Graph::new(DIMS).node("Flatten", &["x"], "f", &[]);
    let sums = |alpha: f64, beta: f64| -> Vec<f64> {
        let pixels = flat().pixels();
        let sum = |n: usize, k: usize| -> f64 {
            let products = (0..12).map(|i| pixels[n * 12 + i] * w[i * 3 + k]);
            alpha * products.sum::<f64>() + beta * c[k]
        };
        (0..9).map(|i| sum(i / 3, i % 3)).collect()
    };
    let gemm = flat().floats("w", &[12, 3], &w).floats("c", &[3], &c);
    gemm.node("Gemm", &["f", "w", "c"], "y", &[])
        .check(&sums(1.0, 1.0));
    let attributes = [int("transB", 1), float("alpha", 0.5), float("beta", 2.0)];
    let gemm = flat()
        .floats("w", &[3, 12], &turned)
        .floats("c", &[1, 3], &c);
    gemm.node("Gemm", &["f", "w", "c"], "y", &attributes)
        .check(&sums(0.5, 2.0));
    let matmul = flat().floats("w", &[12, 3], &w).floats("c", &[3], &c);
    matmul
        .node("MatMul", &["f", "w"], "h", &[])
        .node("Add", &["c", "h"], "y", &[])
        .check(&sums(1.0, 1.0));
}

/// Attention without its softmax: products of values, and of a value of three dimensions with a
/// matrix.
#[test]
fn matrices_multiply() {
    let w = noise("w", 9, -1.0, 1.0);
    let graph = Graph::new([2, 3, 3])
        .floats("w", &[3, 3], &w)
        .node("MatMul", &["x", "w"], "a", &[])
        .node("Transpose", &["x"], "t", &[ints("perm", &[0, 1, 3, 2])])
        .node("MatMul", &["a", "t"], "h", &[])
        .flat("h");
    let pixels = graph.pixels();
    let value = |i: usize| -> f64 {
        let (m, row, column) = (i / 9, i / 3 % 3, i % 3);
        let x = |r: usize, c: usize| pixels[m * 9 + r * 3 + c];
        let a = |c: usize| -> f64 { (0..3).map(|k| x(row, k) * w[k * 3 + c]).sum() };
        (0..3).map(|c| a(c) * x(column, c)).sum()
    };
    let expected: Vec<f64> = (0..54).map(value).collect();
    graph.check(&expected);
}

#[test]
fn softmax_is_left_out_at_the_end_and_computed_elsewhere() {
    let last = Graph::new([3, 1, 1])
        .node("Softmax", &["x"], "p", &[int("axis", 1)])
        .flat("p");
    let pixels = last.pixels();
    last.check(&pixels);
    let notes = last.read(DType::F32).unwrap().notes;
    assert!(
        notes.len() == 1 && notes[0].contains("Softmax"),
        "{notes:?}"
    );

    let log = Graph::new([3, 1, 1])
        .node("LogSoftmax", &["x"], "p", &[int("axis", 1)])
        .flat("p");
    let total = |i: usize| {
        pixels[i / 3 * 3..i / 3 * 3 + 3]
            .iter()
            .map(|x| x.exp())
            .sum::<f64>()
    };
    let expected: Vec<f64> = (0..9).map(|i| pixels[i] - total(i).ln()).collect();
    log.check(&expected);

    let inner = Graph::new([3, 1, 1])
        .node("Softmax", &["x"], "p", &[int("axis", 1)])
        .node("Mul", &["p", "p"], "h", &[])
        .flat("h");
    let expected: Vec<f64> = (0..9)
        .map(|i| (pixels[i].exp() / total(i)).powi(2))
        .collect();
    inner.check(&expected);

    // Before version 13: over the axis and all behind it.
    let mut old = Graph::new([1, 1, 3])
        .node("Softmax", &["x"], "p", &[])
        .node("Mul", &["p", "p"], "h", &[])
        .flat("h");
    old.opset = 11;
    old.check(&expected);
}

#[test]
fn local_and_layer_norm_are_their_formulas() {
    let attributes = [
        int("size", 3),
        float("alpha", 0.5),
        float("beta", 0.75),
        float("bias", 2.0),
    ];
    let graph = Graph::new([4, 1, 2])
        .node("LRN", &["x"], "h", &attributes)
        .flat("h");
    let pixels = graph.pixels();
    let at = |n: usize, c: usize, p: usize| pixels[(n * 4 + c) * 2 + p];
    let value = |i: usize| {
        let (n, c, p) = (i / 8, i / 2 % 4, i % 2);
        let around = c.saturating_sub(1)..(c + 2).min(4);
        let squares: f64 = around.map(|c| at(n, c, p).powi(2)).sum();
        at(n, c, p) / (2.0 + 0.5 / 3.0 * squares).powf(0.75)
    };
    let expected: Vec<f64> = (0..24).map(value).collect();
    graph.check(&expected);

    let (scale, bias) = (noise("scale", 3, 0.5, 1.5), noise("bias", 3, -1.0, 1.0));
    let graph = Graph::new([2, 1, 3])
        .floats("scale", &[3], &scale)
        .floats("bias", &[3], &bias)
        .node(
            "LayerNormalization",
            &["x", "scale", "bias"],
            "h",
            &[float("epsilon", 0.125)],
        )
        .flat("h");
    let pixels = graph.pixels();
    let value = |i: usize| {
        let row = &pixels[i / 3 * 3..i / 3 * 3 + 3];
        let mean = row.iter().sum::<f64>() / 3.0;
        let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 3.0;
        (pixels[i] - mean) / (var + 0.125).sqrt() * scale[i % 3] + bias[i % 3]
    };
    let expected: Vec<f64> = (0..18).map(value).collect();
    graph.check(&expected);
}
