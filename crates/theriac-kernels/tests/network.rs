//! Random networks against the definitions in double precision.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod common;

use common::{Conv, Numbers, Pool, assert_within, largest, narrow, wide};
use proptest::prelude::*;
use proptest::sample::select;
use theriac_kernels::network::{Network, Op, Parameters, Step, Want};

/// With the variances below this makes `1 / sqrt(var + eps)` a power of two.
const EPS: f64 = 0.25;
const VARIANCES: [f64; 3] = [0.0, 0.75, 3.75];

/// Fewest values of a channel in a norm over the batch: of two values it takes everything away.
const COUNT: usize = 8;

#[derive(Clone, Debug)]
struct Wish {
    op: Op,
    /// How far back the value that it reads lies.
    back: usize,
    /// Which of the values of its shape an addition takes, modulo their number.
    other: usize,
}

fn op() -> impl Strategy<Value = Op> {
    let side = select(vec![1usize, 2, 3, 4, 5, 7]);
    let conv = (
        1..=6usize,
        (side.clone(), side),
        1..=3usize,
        0..=3usize,
        1..=2usize,
    )
        .prop_map(|(outputs, kernel, stride, padding, dilation)| Op::Conv {
            outputs,
            kernel,
            stride,
            padding,
            dilation,
        });
    let window = || (1..=4usize, 1..=3usize, 0..=2usize);
    let max = window().prop_map(|(kernel, stride, padding)| Op::MaxPool {
        kernel,
        stride,
        padding: padding.min(kernel / 2),
    });
    let mean = window().prop_map(|(kernel, stride, padding)| Op::AvgPool {
        kernel,
        stride,
        padding: padding.min(kernel / 2),
    });
    prop_oneof![
        4 => conv,
        2 => (1..=7usize).prop_map(|outputs| Op::Linear { outputs }),
        2 => max,
        1 => mean,
        3 => Just(Op::Relu),
        2 => Just(Op::Norm { eps: EPS }),
        1 => Just(Op::BatchNorm { eps: EPS }),
        1 => Just(Op::GlobalAvgPool),
        2 => Just(Op::Add { other: 0 }),
    ]
}

fn wish() -> impl Strategy<Value = Wish> {
    let back = prop_oneof![4 => Just(0usize), 1 => 0..3usize];
    (op(), back, any::<usize>()).prop_map(|(op, back, other)| Wish { op, back, other })
}

/// A network with its input and parameters.
#[derive(Debug)]
struct Case {
    image: [usize; 3],
    n: usize,
    steps: Vec<Step>,
    /// Shapes (C, H, W) of all values.
    shapes: Vec<[usize; 3]>,
    /// Whether everything is exact in `f32` too, and binary places after the point.
    exact: bool,
    places: u32,
    parameters: Vec<[Option<Vec<f64>>; 4]>,
    x: Vec<f64>,
    grad: Vec<f64>,
}

impl Case {
    /// The wishes that fit, one after the other.
    fn new(seed: u64, n: usize, image: [usize; 3], wishes: &[Wish]) -> Self {
        let mut case = Self {
            image,
            n,
            steps: Vec::new(),
            shapes: vec![image],
            exact: true,
            places: 0,
            parameters: Vec::new(),
            x: Vec::new(),
            grad: Vec::new(),
        };
        for wish in wishes {
            case.push(wish);
        }
        if case.steps.is_empty() {
            let relu = Step {
                op: Op::Relu,
                input: 0,
            };
            case.steps.push(relu);
            case.shapes.push(image);
        }
        case.fill(&mut Numbers::new(seed));
        case
    }

    fn push(&mut self, wish: &Wish) {
        let input = self.shapes.len() - 1 - wish.back.min(self.shapes.len() - 1);
        let [c, h, w] = self.shapes[input];
        let mut op = wish.op;
        let power = |size: usize| size.is_power_of_two().then(|| size.trailing_zeros());
        let (shape, places) = match &mut op {
            Op::Conv { .. } => match self.conv(&op, input).out() {
                Some([_, c, h, w]) => ([c, h, w], Some(0)),
                None => return,
            },
            Op::Linear { outputs } => ([*outputs, 1, 1], Some(0)),
            Op::MaxPool { .. } => match self.pool(&op, input).out() {
                Some([_, c, h, w]) => ([c, h, w], Some(0)),
                None => return,
            },
            Op::AvgPool { kernel, .. } => {
                let places = power(*kernel * *kernel);
                match self.pool(&op, input).out() {
                    Some([_, c, h, w]) => ([c, h, w], places),
                    None => return,
                }
            }
            Op::GlobalAvgPool => ([c, 1, 1], power(h * w)),
            Op::Norm { .. } => ([c, h, w], Some(1)),
            Op::BatchNorm { .. } if self.n * h * w < COUNT => return,
            Op::BatchNorm { .. } => ([c, h, w], None),
            Op::Relu => ([c, h, w], Some(0)),
            // Its numbers have too many digits for sums without rounding.
            Op::Noise => return,
            Op::Add { other } => {
                let alike = (0..self.shapes.len()).filter(|&v| self.shapes[v] == [c, h, w]);
                let alike: Vec<usize> = alike.collect();
                *other = alike[wish.other % alike.len()];
                ([c, h, w], Some(0))
            }
        };
        self.exact &= places.is_some();
        self.places += places.unwrap_or(0);
        self.steps.push(Step { op, input });
        self.shapes.push(shape);
    }

    fn fill(&mut self, numbers: &mut Numbers) {
        let exact = self.exact;
        let mut draw = |len: usize, most: u64| match exact {
            true => numbers.whole(len, most),
            false => numbers.reals(len),
        };
        self.x = draw(self.n * self.image.iter().product::<usize>(), 3);
        let last = self.shapes[self.steps.len()];
        self.grad = draw(self.n * last.iter().product::<usize>(), 2);
        for (i, step) in self.steps.iter().enumerate() {
            let [c, h, w] = self.shapes[step.input];
            let mut bias = |len| (i % 2 == 0).then(|| draw(len, 2));
            self.parameters.push(match step.op {
                Op::Conv {
                    outputs, kernel, ..
                } => {
                    let bias = bias(outputs);
                    let weight = draw(outputs * c * kernel.0 * kernel.1, 1);
                    [Some(weight), bias, None, None]
                }
                Op::Linear { outputs } => {
                    let bias = bias(outputs);
                    [Some(draw(outputs * c * h * w, 1)), bias, None, None]
                }
                Op::Norm { .. } => {
                    let var = (0..c).map(|c| VARIANCES[(c + i) % VARIANCES.len()]);
                    let [gamma, beta, mean] = [1, 2, 3].map(|most| Some(draw(c, most)));
                    [gamma, beta, mean, Some(var.collect())]
                }
                Op::BatchNorm { .. } => {
                    let [gamma, beta] = [1, 2].map(|most| Some(draw(c, most)));
                    [gamma, beta, None, None]
                }
                _ => [None, None, None, None],
            });
        }
        for parameter in self.parameters.as_flattened_mut().iter_mut().flatten() {
            *parameter = wide(&narrow(parameter));
        }
    }

    /// Whether the result depends on each value.
    fn alive(&self) -> Vec<bool> {
        let mut alive = vec![false; self.shapes.len()];
        alive[self.steps.len()] = true;
        for (i, Step { op, input }) in self.steps.iter().enumerate().rev() {
            if alive[i + 1] {
                alive[*input] = true;
                if let Op::Add { other } = op {
                    alive[*other] = true;
                }
            }
        }
        alive
    }

    fn full(&self, value: usize) -> [usize; 4] {
        let [c, h, w] = self.shapes[value];
        [self.n, c, h, w]
    }

    fn conv(&self, op: &Op, input: usize) -> Conv {
        match *op {
            Op::Conv {
                outputs,
                kernel,
                stride,
                padding,
                dilation,
            } => Conv {
                x: self.full(input),
                outputs,
                kernel,
                stride,
                padding,
                dilation,
                groups: 1,
            },
            _ => unreachable!("{op:?} is no convolution"),
        }
    }

    fn pool(&self, op: &Op, input: usize) -> Pool {
        let x = self.full(input);
        let (kernel, stride, padding) = match *op {
            Op::MaxPool {
                kernel,
                stride,
                padding,
            }
            | Op::AvgPool {
                kernel,
                stride,
                padding,
            } => ((kernel, kernel), (stride, stride), padding),
            Op::GlobalAvgPool => ((x[2], x[3]), (x[2], x[3]), 0),
            _ => unreachable!("{op:?} is no pool"),
        };
        Pool {
            x,
            kernel,
            stride,
            padding,
        }
    }

    fn parameter(&self, step: usize, which: usize) -> &[f64] {
        self.parameters[step][which].as_deref().unwrap()
    }

    fn values(&self) -> Values {
        let mut values = vec![self.x.clone()];
        let mut at = vec![Vec::new(); self.steps.len()];
        let mut edge = f64::INFINITY;
        for (i, Step { op, input }) in self.steps.iter().enumerate() {
            let x = &values[*input];
            let [_, h, w] = self.shapes[*input];
            let bias = self.parameters[i][1].as_deref();
            let largest = x.iter().fold(0f64, |m, v| m.max(v.abs()));
            let out = match *op {
                Op::Conv { .. } => self.conv(op, *input).forward(x, self.parameter(i, 0), bias),
                Op::Linear { outputs } => common::linear(outputs, x, self.parameter(i, 0), bias),
                Op::Norm { eps } => {
                    let parameters = [0, 1, 2, 3].map(|which| self.parameter(i, which));
                    common::norm(h * w, x, parameters, eps)
                }
                Op::BatchNorm { eps } => {
                    let [mean, var] = common::moments(self.shapes[*input][0], h * w, x);
                    let [gamma, beta] = [0, 1].map(|which| self.parameter(i, which));
                    common::norm(h * w, x, [gamma, beta, &mean, &var], eps)
                }
                Op::Relu => {
                    let least = x.iter().fold(f64::INFINITY, |m, v| m.min(v.abs()));
                    edge = edge.min(least / largest);
                    x.iter().map(|v| v.max(0.0)).collect()
                }
                Op::Add { other } => x.iter().zip(&values[other]).map(|(a, b)| a + b).collect(),
                Op::MaxPool { .. } => {
                    let pool = self.pool(op, *input);
                    let (out, winners) = pool.max(x);
                    pool.each(|o, window| {
                        for &pixel in window.iter().filter(|&&pixel| pixel != winners[o]) {
                            edge = edge.min((out[o] - x[pixel]) / largest);
                        }
                    });
                    at[i] = winners;
                    out
                }
                Op::AvgPool { .. } | Op::GlobalAvgPool => self.pool(op, *input).mean(x, true),
                Op::Noise => unreachable!("no case has noise"),
            };
            values.push(out);
        }
        Values { values, at, edge }
    }

    /// Gradients by the images and by the first two parameters of each step.
    fn grads(&self, Values { values, at, .. }: &Values) -> Gradients {
        let mut grads: Vec<Vec<f64>> = values.iter().map(|v| vec![0.0; v.len()]).collect();
        grads[self.steps.len()] = self.grad.clone();
        let mut parameters = vec![[None, None]; self.steps.len()];
        for (i, Step { op, input }) in self.steps.iter().enumerate().rev() {
            let (g, x) = (grads[i + 1].clone(), &values[*input]);
            let [_, h, w] = self.shapes[*input];
            let by_x = match *op {
                Op::Conv { .. } => {
                    let conv = self.conv(op, *input);
                    let [by_x, weight, bias] = conv.backward(x, self.parameter(i, 0), &g);
                    parameters[i] = [Some(weight), Some(bias)];
                    by_x
                }
                Op::Linear { outputs } => {
                    let weight = self.parameter(i, 0);
                    let [by_x, weight, bias] = common::linear_grads(outputs, x, weight, &g);
                    parameters[i] = [Some(weight), Some(bias)];
                    by_x
                }
                Op::Norm { eps } => {
                    let [gamma, var] = [0, 3].map(|which| self.parameter(i, which));
                    let none = vec![0.0; gamma.len()];
                    common::norm(h * w, &g, [gamma, &none, &none, var], eps)
                }
                Op::BatchNorm { eps } => {
                    let gamma = self.parameter(i, 0);
                    let [by_x, gamma, beta] = common::batch_norm_grads(h * w, x, gamma, &g, eps);
                    parameters[i] = [Some(gamma), Some(beta)];
                    by_x
                }
                Op::Relu => {
                    let open = |(&g, &v): (&f64, &f64)| if v > 0.0 { g } else { 0.0 };
                    g.iter().zip(x).map(open).collect()
                }
                Op::Add { other } => {
                    grads[other].iter_mut().zip(&g).for_each(|(a, b)| *a += b);
                    g
                }
                Op::MaxPool { .. } => self.pool(op, *input).max_grad(&at[i], &g),
                Op::AvgPool { .. } | Op::GlobalAvgPool => self.pool(op, *input).mean_grad(&g, true),
                Op::Noise => unreachable!("no case has noise"),
            };
            let sum = grads[*input].iter_mut().zip(&by_x);
            sum.for_each(|(a, b)| *a += b);
        }
        Gradients {
            images: grads.swap_remove(0),
            parameters,
        }
    }
}

struct Values {
    values: Vec<Vec<f64>>,
    /// The winners of each max pooling.
    at: Vec<Vec<usize>>,
    /// How near, relative to the largest value, a ReLU is to 0 or a second to a maximum.
    edge: f64,
}

struct Gradients {
    images: Vec<f64>,
    parameters: Vec<[Option<Vec<f64>>; 2]>,
}

fn check(case: &Case) -> std::result::Result<(), TestCaseError> {
    let reference = case.values();
    let expected = case.grads(&reference);
    let gradients = || {
        let parameters = expected.parameters.as_flattened().iter().flatten();
        expected.images.iter().chain(parameters.flatten())
    };
    if case.exact {
        // Products of a value and a gradient have twice the binary places.
        let scale = f64::from(1u32 << (2 * case.places).min(30));
        let values = reference.values.iter().flatten();
        let most = largest(values).max(largest(gradients()));
        prop_assume!(most * scale < f64::from(1u32 << 20));
    } else {
        prop_assume!(reference.edge > 1e-4);
    }

    let weights: Vec<[Option<Vec<f32>>; 4]> = case
        .parameters
        .iter()
        .map(|step| std::array::from_fn(|i| step[i].as_deref().map(narrow)))
        .collect();
    let weights: Vec<Parameters<'_>> = weights
        .iter()
        .map(|step| std::array::from_fn(|i| step[i].as_deref()))
        .collect();
    let network = Network::new(case.image, &case.steps).unwrap();
    prop_assert_eq!(network.output(), case.shapes[case.steps.len()]);
    let prepared = network.prepare(&weights, true).unwrap();
    let (x, grad) = (narrow(&case.x), narrow(&case.grad));
    let (some, alive) = (network.has_parameter_gradients(), case.alive());
    let want = Want {
        images: true,
        parameters: vec![some; case.steps.len()],
    };
    // The second time on used buffers.
    for _ in 0..2 {
        let output = network.forward(&prepared, &x, true).unwrap();
        let trace = output.trace.unwrap();
        let actual = network.backward(&prepared, &trace, &grad, &want).unwrap();
        let compare = |actual: &[f32], expected: &[f64], all: f64, what: &str| {
            // Norms over the batch cancel most of a value or gradient; what rounding leaves is as
            // large as the others make it.
            let most = match case.exact {
                true => 0.0,
                false => 3e-5 * (largest(expected) + all),
            };
            assert_within(&wide(actual), expected, most, what);
        };
        let out = &reference.values[case.steps.len()];
        let all = largest(reference.values.iter().flatten());
        compare(&output.values, out, all, "values");
        let all = largest(gradients());
        compare(&actual.images.unwrap(), &expected.images, all, "images");
        for (i, (actual, expected)) in actual
            .parameters
            .iter()
            .zip(&expected.parameters)
            .enumerate()
        {
            for which in 0..2 {
                if let (true, Some(expected), Some(_)) = (
                    want.parameters[i],
                    &expected[which],
                    &case.parameters[i][which],
                ) {
                    if !alive[i + 1] {
                        let zero = actual[which].iter().flatten().all(|&v| v == 0.0);
                        prop_assert!(zero, "step {} has no part in the result", i);
                        continue;
                    }
                    let actual = actual[which].as_deref().unwrap();
                    compare(
                        actual,
                        expected,
                        all,
                        &format!("step {i}, parameter {which}"),
                    );
                }
            }
        }
        for (i, step) in case.steps.iter().enumerate() {
            let is_norm = matches!(step.op, Op::BatchNorm { .. });
            prop_assert_eq!(output.statistics[i].is_some(), is_norm);
            if let Some((count, statistics)) = &output.statistics[i] {
                let [c, h, w] = case.shapes[step.input];
                let [mean, var] = common::moments(c, h * w, &reference.values[step.input]);
                prop_assert_eq!(*count, case.n * h * w);
                let scale = largest(&reference.values[step.input]);
                assert_within(&statistics.mean, &mean, 1e-5 * scale, "mean");
                assert_within(&statistics.var, &var, 1e-5 * scale * scale, "variance");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(common::cases(160))]
    #[test]
    fn a_step_equals_its_definition(
        seed in any::<u64>(),
        n in 1..=20usize,
        image in (1..=5usize, 1..=11usize, 1..=11usize),
        wish in wish(),
    ) {
        check(&Case::new(seed, n, image.into(), &[wish]))?;
    }

    #[test]
    fn steps_after_and_beside_each_other_equal_their_definitions(
        seed in any::<u64>(),
        n in 1..=20usize,
        image in (1..=4usize, 1..=11usize, 1..=11usize),
        wishes in prop::collection::vec(wish(), 2..=6),
    ) {
        check(&Case::new(seed, n, image.into(), &wishes))?;
    }
}

/// More channels, positions and terms than one tile or block of any instruction set has.
#[test]
fn sizes_beyond_a_tile_are_exact() {
    let conv = |outputs, side, stride, padding| Op::Conv {
        outputs,
        kernel: (side, side),
        stride,
        padding,
        dilation: 1,
    };
    let max = Op::MaxPool {
        kernel: 7,
        stride: 5,
        padding: 3,
    };
    for (seed, (image, ops)) in [
        ([3, 29, 23], vec![conv(17, 3, 1, 1), Op::Relu, max]),
        ([19, 9, 31], vec![conv(9, 4, 2, 1), conv(11, 1, 1, 0)]),
        (
            [1, 28, 28],
            vec![conv(33, 5, 1, 2), Op::Linear { outputs: 21 }],
        ),
        ([40, 5, 5], vec![Op::Linear { outputs: 37 }, Op::Relu]),
    ]
    .into_iter()
    .enumerate()
    {
        let wish = |op| Wish {
            op,
            back: 0,
            other: 0,
        };
        let wishes: Vec<Wish> = ops.into_iter().map(wish).collect();
        let case = Case::new(seed as u64, 18, image, &wishes);
        assert!(case.exact && case.steps.len() == wishes.len());
        check(&case).unwrap();
    }
}

const HUGE: [usize; 4] = [
    usize::MAX,
    usize::MAX / 2,
    1 << (usize::BITS - 4),
    (1 << (usize::BITS - 1)) + 1,
];

fn refused<T>(result: theriac_kernels::Result<T>, part: &str) {
    let error = match result {
        Ok(_) => panic!("accepted, expected an error with {part:?}"),
        Err(error) => error.to_string(),
    };
    assert!(
        error.contains("network") && error.contains(part),
        "{error:?} lacks {part:?}"
    );
}

#[test]
fn empty_and_huge_shapes_are_refused_by_name() {
    let step = |op| [Step { op, input: 0 }];
    let relu = step(Op::Relu);
    let half = 1 << (usize::BITS / 2);
    for image in [[0, 4, 4], [1, 0, 4], [1, 4, 0]] {
        refused(Network::new(image, &relu), &format!("{image:?}"));
    }
    for huge in HUGE {
        for image in [[huge, 1, 1], [1, huge, 1], [1, 1, huge], [1, half, half]] {
            refused(Network::new(image, &relu), &format!("{image:?}"));
            let linear = step(Op::Linear { outputs: 1 });
            refused(Network::new(image, &linear), &format!("{image:?}"));
        }
        let conv = |outputs, kernel, stride, padding, dilation| {
            let op = Op::Conv {
                outputs,
                kernel,
                stride,
                padding,
                dilation,
            };
            Network::new([1, 4, 4], &step(op))
        };
        let text = huge.to_string();
        refused(conv(huge, (2, 2), 1, 0, 1), &text);
        refused(conv(1, (huge, 2), 1, 0, 1), &text);
        refused(conv(1, (2, huge), 1, huge / 2, 1), &text);
        refused(conv(1, (2, 2), huge, 0, 1), &text);
        refused(conv(1, (2, 2), 1, huge, 1), &text);
        refused(conv(1, (2, 2), 1, 0, huge), &text);
        refused(
            Network::new([1, 4, 4], &step(Op::Linear { outputs: huge })),
            &text,
        );
        for (kernel, stride, padding) in [(huge, 1, 0), (2, huge, 0), (2, 1, huge)] {
            let max = Op::MaxPool {
                kernel,
                stride,
                padding,
            };
            let mean = Op::AvgPool {
                kernel,
                stride,
                padding,
            };
            refused(Network::new([1, 4, 4], &step(max)), &text);
            refused(Network::new([1, 4, 4], &step(mean)), &text);
        }
    }
    let network = Network::new([1, 2, 2], &relu).unwrap();
    let prepared = network.prepare(&[[None; 4]], true).unwrap();
    refused(network.forward(&prepared, &[], false), "images");
}

/// Parameters and traces belong to one network.
#[test]
fn what_another_network_made_is_refused() {
    let conv = |outputs, side| Step {
        op: Op::Conv {
            outputs,
            kernel: (side, side),
            stride: 1,
            padding: side / 2,
            dilation: 1,
        },
        input: 0,
    };
    let one = Network::new([1, 3, 3], &[conv(1, 3)]).unwrap();
    let other = Network::new([1, 3, 3], &[conv(1, 1)]).unwrap();
    let weight = |len| [[Some(&[1f32; 9][..len]), None, None, None]];
    let of_one = one.prepare(&weight(9), true).unwrap();
    let of_other = other.prepare(&weight(1), true).unwrap();
    let x = [1f32; 9];
    let want = Want {
        images: true,
        parameters: vec![false],
    };
    refused(one.forward(&of_other, &x, false), "another");
    let trace = |network: &Network, prepared| network.forward(prepared, &x, true).unwrap().trace;
    let (trace_one, trace_other) = (
        trace(&one, &of_one).unwrap(),
        trace(&other, &of_other).unwrap(),
    );
    refused(one.backward(&of_one, &trace_other, &x, &want), "another");
    refused(one.backward(&of_other, &trace_one, &x, &want), "another");
    // Without them the gradient by the images would be something else.
    let forward_only = one.prepare(&weight(9), false).unwrap();
    refused(
        one.backward(&forward_only, &trace_one, &x, &want),
        "backward",
    );
    let weights = Want {
        images: false,
        parameters: vec![true],
    };
    one.backward(&forward_only, &trace_one, &x, &weights)
        .unwrap();
}
