//! What only moves values, and shapes that are computed.

use candle_core::{DType, Device, Tensor};
use prost::Message as _;
use theriac::Run;
use theriac_onnx::{OnnxModel, Options};

use crate::support::{Graph, assert_close, int, ints, list, noise, text};

const DIMS: [i64; 3] = [2, 2, 3];

/// A graph whose logits are its pixels at these places of one image.
fn moves(graph: &Graph, places: &[usize]) {
    let (pixels, size) = (
        graph.pixels(),
        graph.image[1..].iter().product::<i64>() as usize,
    );
    let image = |n: usize| places.iter().map(move |i| n * size + i);
    let expected: Vec<f64> = (0..3).flat_map(image).map(|i| pixels[i]).collect();
    graph.check(&expected);
}

fn all() -> Vec<usize> {
    (0..12).collect()
}

#[test]
fn every_way_to_flatten_is_known() {
    let reshape = |target: &[i64]| {
        let graph = Graph::new(DIMS).ints("s", target);
        graph.node("Reshape", &["x", "s"], "y", &[])
    };
    for target in [[-1, 12], [0, -1], [0, 12], [1, -1], [1, 12]] {
        moves(&reshape(&target), &all());
    }
    moves(&Graph::new(DIMS).flat("x"), &all());
    moves(
        &Graph::new(DIMS).node("Flatten", &["x"], "y", &[int("axis", -3)]),
        &all(),
    );
    let through = |target: &[i64]| {
        let graph = Graph::new(DIMS).ints("s", target);
        graph.node("Reshape", &["x", "s"], "h", &[]).flat("h")
    };
    for target in [
        &[0, 0, -1][..],
        &[-1, 6, 2],
        &[0, 4, 3, 1],
        &[1, 2, 3, 2, 1],
    ] {
        moves(&through(target), &all());
    }
}

/// A file for one image at a time takes a batch.
#[test]
fn a_fixed_batch_is_any_batch() {
    for fixed in [1, 4] {
        let mut graph =
            Graph::new(DIMS)
                .ints("s", &[fixed, 12])
                .node("Reshape", &["x", "s"], "y", &[]);
        graph.image[0] = fixed;
        moves(&graph, &all());
    }
}

/// `x.view(x.size(0), -1)`, as exporters spell it.
#[test]
fn shapes_that_exporters_compute_are_constants() {
    let size = Graph::new(DIMS)
        .node("Shape", &["x"], "shape", &[])
        .ints("zero", &[0])
        .node("Gather", &["shape", "zero"], "n", &[int("axis", 0)])
        .ints("rest", &[-1])
        .node("Concat", &["n", "rest"], "s", &[int("axis", 0)])
        .node("Reshape", &["x", "s"], "y", &[]);
    moves(&size, &all());
    // The batch by slicing, the rest by multiplication.
    let product = Graph::new(DIMS)
        .node("Shape", &["x"], "shape", &[])
        .node("Constant", &[], "start", &[ints("value_ints", &[0])])
        .node("Constant", &[], "end", &[ints("value_ints", &[1])])
        .node("Slice", &["shape", "start", "end"], "n", &[])
        .node("Shape", &["x"], "c", &[int("start", 1), int("end", 2)])
        .node("Shape", &["x"], "hw", &[int("start", -2)])
        .ints("two", &[2])
        .node("Mul", &["c", "two"], "c2", &[])
        .node("Div", &["c2", "two"], "c1", &[])
        .node("Cast", &["c1"], "c0", &[int("to", 7)])
        .node("Constant", &[], "at", &[int("value_int", 0)])
        .node("Gather", &["hw", "at"], "h0", &[])
        .node("Unsqueeze", &["h0", "zero"], "h1", &[])
        .ints("zero", &[0])
        .ints("minus", &[-1])
        .node(
            "Concat",
            &["n", "c0", "h1", "minus"],
            "s",
            &[int("axis", 0)],
        )
        .node("Reshape", &["x", "s"], "z", &[])
        .flat("z");
    moves(&product, &all());
}

#[test]
fn axes_come_and_go() {
    let graph = Graph::new([12, 1, 1]);
    let axes = [ints("axes", &[2, 3])];
    moves(&graph.clone().node("Squeeze", &["x"], "y", &axes), &all());
    moves(&graph.clone().node("Squeeze", &["x"], "y", &[]), &all());
    let input = graph.clone().ints("a", &[-1, -2]);
    moves(&input.node("Squeeze", &["x", "a"], "y", &[]), &all());
    let through = graph
        .ints("a", &[3, 2])
        .ints("b", &[1, 4])
        .node("Squeeze", &["x", "a"], "f", &[])
        .node("Unsqueeze", &["f", "b"], "h", &[])
        .node("Relu", &["h"], "r", &[])
        .flat("r");
    // axes 1 and 4 of four dimensions do not exist.
    assert!(
        through.complaint().contains("axis 4"),
        "{}",
        through.complaint()
    );
    let through = Graph::new([12, 1, 1])
        .ints("a", &[3, 2])
        .ints("b", &[1, 2])
        .node("Squeeze", &["x", "a"], "f", &[])
        .node("Unsqueeze", &["f", "b"], "h", &[])
        .node("Relu", &["h"], "r", &[])
        .flat("r");
    moves(&through, &all());
}

#[test]
fn transposed_values_are_read_in_their_new_order() {
    let graph = Graph::new(DIMS)
        .node("Transpose", &["x"], "t", &[ints("perm", &[0, 2, 3, 1])])
        .flat("t");
    let places: Vec<usize> = (0..12).map(|i| i % 2 * 6 + i / 2).collect();
    moves(&graph, &places);
}

/// A file that takes (N, H, W, C) gets its images in that order; the model takes (N, C, H, W).
#[test]
fn channels_may_come_last() {
    let scaled = |image: [i64; 3]| {
        let graph = Graph::new(image).floats("two", &[], &[2.0]);
        graph.node("Mul", &["x", "two"], "s", &[])
    };
    let turned = scaled([3, 2, 4])
        .node("Transpose", &["s"], "t", &[ints("perm", &[0, 3, 1, 2])])
        .flat("t");
    // Of one channel, tools write a reshape instead.
    let reshaped = scaled([1, 2, 4])
        .ints("grey", &[-1, 1, 2, 4])
        .node("Reshape", &["s", "grey"], "t", &[])
        .flat("t");
    for (graph, channels) in [(turned, 3), (reshaped, 1)] {
        let mut file = graph.proto();
        let input = crate::support::image("x", &[-1, 2, 4, channels]);
        file.graph.as_mut().unwrap().input = vec![input];
        let bytes = file.encode_to_vec();
        let model = OnnxModel::from_bytes("last", &bytes, &Options::default()).unwrap();
        let channels = channels as usize;
        assert_eq!(model.image, [channels, 2, 4]);
        let pixels = graph.pixels();
        let expected: Vec<f64> = pixels.iter().map(|x| 2.0 * x).collect();
        let x = Tensor::from_vec(pixels, (3, channels, 2, 4), &Device::Cpu).unwrap();
        let (x, run) = (x.to_dtype(DType::F32).unwrap(), Run::new(0, &Device::Cpu));
        let logits = model.network.forward(&x, &run.eval(&[0, 1, 2])).unwrap();
        assert_close(&list(&logits), &expected, 1e-6);
    }
}

#[test]
fn parts_are_cut_out_and_put_together() {
    let halves = Graph::new(DIMS)
        .node(
            "Split",
            &["x"],
            "a b",
            &[int("axis", 1), ints("split", &[1, 1])],
        )
        .node("Concat", &["b", "a"], "h", &[int("axis", 1)])
        .flat("h");
    moves(&halves, &[6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]);
    let uneven = Graph::new(DIMS)
        .ints("sizes", &[1, 2])
        .node("Split", &["x", "sizes"], "a b", &[int("axis", 3)])
        .flat("b");
    moves(&uneven, &[1, 2, 4, 5, 7, 8, 10, 11]);
    let even = Graph::new(DIMS)
        .node(
            "Split",
            &["x"],
            "a b",
            &[int("axis", -1), int("num_outputs", 2)],
        )
        .flat("b");
    moves(&even, &[2, 5, 8, 11]);

    let slice = |starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64]| {
        Graph::new(DIMS)
            .ints("s", starts)
            .ints("e", ends)
            .ints("a", axes)
            .ints("t", steps)
            .node("Slice", &["x", "s", "e", "a", "t"], "h", &[])
            .flat("h")
    };
    moves(&slice(&[1], &[i64::MAX], &[1], &[1]), &[6, 7, 8, 9, 10, 11]);
    moves(&slice(&[0, -2], &[1, -1], &[1, 3], &[1, 1]), &[1, 4]);
    moves(&slice(&[0], &[3], &[3], &[2]), &[0, 2, 3, 5, 6, 8, 9, 11]);
    let old = [
        ints("starts", &[0, 1]),
        ints("ends", &[1, 2]),
        ints("axes", &[0, 1]),
    ];
    let mut old = Graph::new(DIMS).node("Slice", &["x"], "h", &old).flat("h");
    old.opset = 9;
    moves(&old, &[6, 7, 8, 9, 10, 11]);

    let picked = Graph::new(DIMS)
        .ints("i", &[2, 0])
        .node("Gather", &["x", "i"], "h", &[int("axis", 3)])
        .flat("h");
    moves(&picked, &[2, 0, 5, 3, 8, 6, 11, 9]);
    let one = Graph::new(DIMS)
        .node("Constant", &[], "i", &[int("value_int", -1)])
        .node("Gather", &["x", "i"], "h", &[int("axis", 2)])
        .flat("h");
    moves(&one, &[3, 4, 5, 9, 10, 11]);
}

#[test]
fn constants_join_every_image_of_a_batch() {
    let graph = Graph::new([1, 1, 2])
        .floats("c", &[1, 1, 1, 2], &[0.25, -3.0])
        .node("Concat", &["c", "x"], "h", &[int("axis", 1)])
        .flat("h");
    let pixels = graph.pixels();
    let image = |n: usize| [0.25, -3.0, pixels[2 * n], pixels[2 * n + 1]];
    let expected: Vec<f64> = (0..3).flat_map(image).collect();
    graph.check(&expected);

    // A token for each image, as an exporter stretches it.
    let stretched = Graph::new([1, 1, 2])
        .floats("c", &[1, 1, 1, 2], &[0.25, -3.0])
        .node("Shape", &["x"], "n", &[int("end", 1)])
        .ints("rest", &[1, 1, 2])
        .node("Concat", &["n", "rest"], "s", &[int("axis", 0)])
        .node("Expand", &["c", "s"], "e", &[])
        .node("Concat", &["e", "x"], "h", &[int("axis", 1)])
        .flat("h");
    stretched.check(&expected);
}

#[test]
fn padding_surrounds_a_value() {
    let expected = |pixels: &[f64], fill: f64| -> Vec<f64> {
        // One row above, one column to the right.
        let value = |n: usize, c: usize, row: usize, column: usize| match (row, column) {
            (0, _) | (_, 3) => fill,
            _ => pixels[((n * 2 + c) * 2 + row - 1) * 3 + column],
        };
        let place = |i: usize| (i / 24, i / 12 % 2, i / 4 % 3, i % 4);
        (0..72)
            .map(place)
            .map(|(n, c, row, column)| value(n, c, row, column))
            .collect()
    };
    let pads = [0, 0, 1, 0, 0, 0, 0, 1];
    let zeros = Graph::new(DIMS)
        .ints("p", &pads)
        .node("Pad", &["x", "p"], "h", &[])
        .flat("h");
    zeros.check(&expected(&zeros.pixels(), 0.0));
    let seven = Graph::new(DIMS)
        .ints("p", &[1, 0, 0, 1])
        .ints("a", &[2, 3])
        .floats("v", &[], &[7.0])
        .node(
            "Pad",
            &["x", "p", "v", "a"],
            "h",
            &[text("mode", "constant")],
        )
        .flat("h");
    seven.check(&expected(&seven.pixels(), 7.0));
}

/// Weights may be computed by nodes: they are constants too.
#[test]
fn what_follows_from_constants_is_a_constant() {
    let graph = Graph::new(DIMS)
        .ints("s", &[4])
        .node("ConstantOfShape", &["s"], "zeros", &[])
        .node("Exp", &["zeros"], "ones", &[])
        .ints("square", &[2, 2, 1, 1])
        .node("Reshape", &["ones", "square"], "w", &[])
        .ints("i", &[3])
        .node("Cast", &["i"], "three", &[int("to", 1)])
        .node("Mul", &["w", "three"], "w3", &[])
        .node("Transpose", &["w3"], "t", &[ints("perm", &[1, 0, 2, 3])])
        .node("Conv", &["x", "t"], "h", &[])
        .flat("h");
    let pixels = graph.pixels();
    let value = |i: usize| 3.0 * (pixels[i / 12 * 12 + i % 6] + pixels[i / 12 * 12 + 6 + i % 6]);
    let expected: Vec<f64> = (0..36).map(value).collect();
    graph.check(&expected);
}

/// Two branches, one of them on the way through a flattened image: all of it must be found again
/// when stretches run as one operation.
#[test]
fn branches_meet_again() {
    let w = noise("w", 2 * 2 * 9, -1.0, 1.0);
    let v = noise("v", 144, -1.0, 1.0);
    let pads = [ints("pads", &[1; 4])];
    let graph = |tail: bool| {
        let graph = Graph::new(DIMS)
            .floats("w", &[2, 2, 3, 3], &w)
            .floats("v", &[12, 12], &v)
            .node("Conv", &["x", "w"], "a", &pads)
            .node("Relu", &["a"], "r", &[])
            .node("Conv", &["r", "w"], "b", &pads)
            .node("Add", &["b", "r"], "s", &[])
            .node("Flatten", &["s"], "f", &[]);
        match tail {
            false => graph.node("Identity", &["f"], "y", &[]),
            // As many features as the image has values, added to the image flattened.
            true => graph
                .node("Gemm", &["f", "v"], "g", &[])
                .node("Relu", &["g"], "h", &[])
                .node("Add", &["h", "f"], "y", &[]),
        }
    };
    let base = graph(false).read(DType::F64).unwrap();
    let run = Run::new(0, &Device::Cpu);
    let x = Tensor::from_vec(graph(false).pixels(), (3, 2, 2, 3), &Device::Cpu).unwrap();
    let f = list(&base.network.forward(&x, &run.eval(&[0, 1, 2])).unwrap());
    let value = |i: usize| {
        let sum: f64 = (0..12)
            .map(|k| f[i / 12 * 12 + k] * v[k * 12 + i % 12])
            .sum();
        sum.max(0.0) + f[i]
    };
    let expected: Vec<f64> = (0..36).map(value).collect();
    graph(true).check(&expected);
    graph(false).check(&f);
}
