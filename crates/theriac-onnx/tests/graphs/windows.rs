//! Convolutions and pooling of any geometry, against their sums.

use crate::support::{Graph, int, ints, noise, text};

const IMAGE: [usize; 3] = [4, 7, 6];
const DIMS: [i64; 3] = [4, 7, 6];

/// Kernel, strides, dilations; padding top, left, bottom, right.
#[derive(Clone, Copy, Debug)]
struct Window {
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    pads: [usize; 4],
}

impl Window {
    fn outputs(&self) -> [usize; 2] {
        [0, 1].map(|side| {
            let span = (self.kernel[side] - 1) * self.dilation[side] + 1;
            (IMAGE[side + 1] + self.pads[side] + self.pads[side + 2] - span) / self.stride[side] + 1
        })
    }

    /// The pixels of a window that lie in the image, each with its place in the kernel.
    fn pixels(&self, row: usize, column: usize) -> Vec<([usize; 2], [usize; 2])> {
        let mut all = Vec::new();
        for u in 0..self.kernel[0] {
            for v in 0..self.kernel[1] {
                let y = (row * self.stride[0] + u * self.dilation[0]).checked_sub(self.pads[0]);
                let x = (column * self.stride[1] + v * self.dilation[1]).checked_sub(self.pads[1]);
                if let (Some(y), Some(x)) = (y, x)
                    && y < IMAGE[1]
                    && x < IMAGE[2]
                {
                    all.push(([u, v], [y, x]));
                }
            }
        }
        all
    }

    fn attributes(&self) -> Vec<theriac_onnx::proto::AttributeProto> {
        let list = |name, values: &[usize]| {
            let values: Vec<i64> = values.iter().map(|v| *v as i64).collect();
            ints(name, &values)
        };
        vec![
            list("kernel_shape", &self.kernel),
            list("strides", &self.stride),
            list("dilations", &self.dilation),
            list("pads", &self.pads),
        ]
    }
}

fn window(
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    pads: [usize; 4],
) -> Window {
    Window {
        kernel,
        stride,
        dilation,
        pads,
    }
}

/// `f(image, channel, output row, output column)` for all of the batch, in order.
fn each(
    channels: usize,
    outputs: [usize; 2],
    f: impl Fn(usize, usize, usize, usize) -> f64,
) -> Vec<f64> {
    let mut all = Vec::new();
    for n in 0..3 {
        for c in 0..channels {
            for row in 0..outputs[0] {
                for column in 0..outputs[1] {
                    all.push(f(n, c, row, column));
                }
            }
        }
    }
    all
}

fn at(pixels: &[f64], n: usize, c: usize, [y, x]: [usize; 2]) -> f64 {
    pixels[((n * IMAGE[0] + c) * IMAGE[1] + y) * IMAGE[2] + x]
}

#[test]
fn convolutions_are_their_sums() {
    let cases = [
        (window([3, 3], [1, 1], [1, 1], [1; 4]), 1),
        (window([3, 3], [2, 2], [1, 1], [0; 4]), 1),
        (window([3, 2], [1, 1], [1, 1], [0, 0, 2, 1]), 2),
        (window([3, 3], [2, 1], [1, 1], [1; 4]), 4),
        (window([3, 3], [4, 2], [1, 1], [1, 0, 1, 0]), 1),
        (window([2, 3], [1, 1], [3, 2], [1; 4]), 2),
        (window([1, 3], [1, 1], [1, 2], [0, 1, 0, 1]), 1),
        (window([3, 3], [1, 1], [2, 2], [2; 4]), 1),
        (window([1, 1], [2, 2], [1, 1], [0; 4]), 1),
    ];
    for (window, groups) in cases {
        let (outputs, inputs) = (4, IMAGE[0] / groups);
        let [kh, kw] = window.kernel;
        let weight = noise("weight", outputs * inputs * kh * kw, -1.0, 1.0);
        let bias = noise("bias", outputs, -1.0, 1.0);
        let dims = [outputs, inputs, kh, kw].map(|d| d as i64);
        let attributes = [window.attributes(), vec![int("group", groups as i64)]].concat();
        let graph = Graph::new(DIMS)
            .floats("w", &dims, &weight)
            .floats("b", &[outputs as i64], &bias)
            .node("Conv", &["x", "w", "b"], "h", &attributes)
            .flat("h");
        let pixels = graph.pixels();
        let expected = each(outputs, window.outputs(), |n, o, row, column| {
            let mut sum = bias[o];
            for c in 0..inputs {
                for ([u, v], place) in window.pixels(row, column) {
                    let channel = o / (outputs / groups) * inputs + c;
                    sum += weight[((o * inputs + c) * kh + u) * kw + v]
                        * at(&pixels, n, channel, place);
                }
            }
            sum
        });
        graph.check(&expected);
    }
}

/// Same size divided by the stride, the odd pixel of padding behind or in front.
#[test]
fn automatic_padding_is_what_onnx_says() {
    let weight = noise("weight", 4 * 4 * 9, -1.0, 1.0);
    for (name, pads) in [
        ("SAME_UPPER", [1, 0, 1, 1]),
        ("SAME_LOWER", [1, 1, 1, 0]),
        ("VALID", [0; 4]),
    ] {
        // 7 rows to 4: two rows of padding. 6 columns to 3: one.
        let attributes = [ints("strides", &[2, 2]), text("auto_pad", name)];
        let automatic = Graph::new(DIMS)
            .floats("w", &[4, 4, 3, 3], &weight)
            .node("Conv", &["x", "w"], "h", &attributes)
            .flat("h");
        let window = window([3, 3], [2, 2], [1, 1], pads);
        let pixels = automatic.pixels();
        let expected = each(4, window.outputs(), |n, o, row, column| {
            let mut sum = 0.0;
            for c in 0..4 {
                for ([u, v], place) in window.pixels(row, column) {
                    sum += weight[((o * 4 + c) * 3 + u) * 3 + v] * at(&pixels, n, c, place);
                }
            }
            sum
        });
        automatic.check(&expected);
    }
}

#[test]
fn pools_are_their_windows() {
    let cases = [
        window([2, 2], [2, 2], [1, 1], [0; 4]),
        window([3, 3], [2, 2], [1, 1], [1; 4]),
        window([3, 3], [2, 2], [1, 1], [0, 0, 1, 1]),
        window([2, 3], [2, 1], [1, 1], [1, 0, 0, 1]),
        window([2, 2], [1, 2], [1, 1], [0; 4]),
    ];
    for window in cases {
        let outputs = window.outputs();
        let attributes = window.attributes();
        let graph = Graph::new(DIMS);
        let pixels = graph.pixels();
        let values = |n, c, row, column| -> Vec<f64> {
            let pixels = window.pixels(row, column).into_iter();
            pixels
                .map(|(_, place)| at(&graph.pixels(), n, c, place))
                .collect()
        };
        assert_eq!(pixels.len(), 3 * 4 * 7 * 6);
        let largest = each(4, outputs, |n, c, row, column| {
            values(n, c, row, column)
                .into_iter()
                .fold(f64::MIN, f64::max)
        });
        let max = graph
            .clone()
            .node("MaxPool", &["x"], "h", &attributes)
            .flat("h");
        max.check(&largest);
        for padding in [false, true] {
            let mean = each(4, outputs, |n, c, row, column| {
                let values = values(n, c, row, column);
                let whole = window.kernel[0] * window.kernel[1];
                let count = if padding { whole } else { values.len() };
                values.iter().sum::<f64>() / count as f64
            });
            let counts = [int("count_include_pad", i64::from(padding))];
            // An average pool has no dilation.
            let attributes = [&attributes[..2], &attributes[3..], &counts].concat();
            let average = graph.clone().node("AveragePool", &["x"], "h", &attributes);
            average.flat("h").check(&mean);
        }
    }
}

#[test]
fn a_dilated_max_pool_takes_each_second_pixel() {
    let window = window([2, 2], [1, 1], [2, 2], [0; 4]);
    let graph = Graph::new(DIMS)
        .node("MaxPool", &["x"], "h", &window.attributes())
        .flat("h");
    let pixels = graph.pixels();
    let expected = each(4, window.outputs(), |n, c, row, column| {
        let values = window.pixels(row, column).into_iter();
        values.fold(f64::MIN, |m, (_, place)| m.max(at(&pixels, n, c, place)))
    });
    graph.check(&expected);
}

/// Rounded up, the last window has fewer pixels; a window that would begin behind the image is
/// dropped.
#[test]
fn windows_that_reach_beyond_the_image_count_its_pixels_alone() {
    for (pads, sizes) in [([0; 4], [4, 3]), ([1; 4], [4, 4])] {
        let exact = window([2, 2], [2, 2], [1, 1], pads);
        let attributes = [exact.attributes(), vec![int("ceil_mode", 1)]].concat();
        let graph = Graph::new(DIMS);
        let pixels = graph.pixels();
        let values = |n, c, row, column| -> Vec<f64> {
            let window = exact.pixels(row, column).into_iter();
            window.map(|(_, place)| at(&pixels, n, c, place)).collect()
        };
        let largest = each(4, sizes, |n, c, row, column| {
            values(n, c, row, column)
                .into_iter()
                .fold(f64::MIN, f64::max)
        });
        let max = graph.clone().node("MaxPool", &["x"], "h", &attributes);
        max.flat("h").check(&largest);
        let mean = each(4, sizes, |n, c, row, column| {
            let values = values(n, c, row, column);
            values.iter().sum::<f64>() / values.len() as f64
        });
        let attributes = [&attributes[..2], &attributes[3..]].concat();
        let average = graph.clone().node("AveragePool", &["x"], "h", &attributes);
        average.flat("h").check(&mean);
    }
}

#[test]
fn global_pools_take_all_pixels() {
    let graph = Graph::new(DIMS);
    let pixels = graph.pixels();
    let channel =
        |n, c| -> Vec<f64> { (0..42).map(|i| at(&pixels, n, c, [i / 6, i % 6])).collect() };
    let mean = each(4, [1, 1], |n, c, _, _| {
        channel(n, c).iter().sum::<f64>() / 42.0
    });
    let largest = each(4, [1, 1], |n, c, _, _| {
        channel(n, c).into_iter().fold(f64::MIN, f64::max)
    });
    let global = |op| graph.clone().node(op, &["x"], "h", &[]).flat("h");
    global("GlobalAveragePool").check(&mean);
    global("GlobalMaxPool").check(&largest);
    let axes = [ints("axes", &[2, 3]), int("keepdims", 0)];
    graph
        .clone()
        .node("ReduceMean", &["x"], "y", &axes)
        .check(&mean);
    let axes = [ints("axes", &[-1, 2])];
    graph
        .clone()
        .node("ReduceMean", &["x"], "h", &axes)
        .flat("h")
        .check(&mean);
    let rows = each(4, [1, 6], |n, c, _, column| {
        (0..7).map(|row| at(&pixels, n, c, [row, column])).sum()
    });
    let graph = graph.ints("axes", &[2]);
    let graph = graph.node("ReduceSum", &["x", "axes"], "h", &[int("keepdims", 0)]);
    graph.flat("h").check(&rows);
}
