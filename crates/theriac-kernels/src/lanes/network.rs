//! A whole network, forward and backward, on sixteen images at a time.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::LANES;
use super::conv::{Backward, Conv, Forward};
use super::dense::{Dense, Pair, weight_grad};
use super::elementwise::{
    Slopes, channel_sums, combine, fold, gate, grad_sums, pointwise, squares, sums,
};
use super::normal::{Key, Keys, perturb, perturb_sums};
use super::plane::{Buffer, Plane, Room, Shelf};
use super::pool::Windows;
use super::products::{Finish, Packed};
use super::simd::Level;
use crate::Statistics;
use crate::conv::MAX_STEP;
use crate::error::{Error, Result, check_len, elements, geometry};

/// What a step of a network computes from one value, or from two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// Convolution; parameters: weight (outputs, channels, kernel), maybe a bias (outputs).
    Conv {
        /// Output channels.
        outputs: usize,
        /// Height and width of the kernel.
        kernel: (usize, usize),
        /// Step between windows.
        stride: usize,
        /// Zeros on each side.
        padding: usize,
        /// Distance between the pixels of a window.
        dilation: usize,
    },
    /// Fully connected on the flattened image; parameters: weight (outputs, pixels), maybe a bias.
    Linear {
        /// Output features.
        outputs: usize,
    },
    /// Batch normalisation with fixed statistics; parameters: gamma, beta, mean, variance.
    Norm {
        /// Added to the variance.
        eps: f64,
    },
    /// Batch normalisation with the statistics of the batch, through which gradients flow;
    /// parameters: gamma, beta.
    BatchNorm {
        /// Added to the variance.
        eps: f64,
    },
    /// `max(x, 0)`, derivative 0 at 0.
    Relu,
    /// Max pooling, the first maximum of a window takes its gradient.
    MaxPool {
        /// Side of the window.
        kernel: usize,
        /// Step between windows.
        stride: usize,
        /// Padding on each side, which never wins.
        padding: usize,
    },
    /// Average pooling over windows; padding counts as zeros.
    AvgPool {
        /// Side of the window.
        kernel: usize,
        /// Step between windows.
        stride: usize,
        /// Zeros on each side.
        padding: usize,
    },
    /// The mean over all pixels of each channel.
    GlobalAvgPool,
    /// The sum of two values of one shape.
    Add {
        /// The other value.
        other: usize,
    },
    /// `x + theta n`, n from N(0, 1) for each value: image i draws [`crate::normal`] of its key, in
    /// the order of (channel, row, column). Parameter: theta, for each value, for each channel, or
    /// one for all.
    Noise,
}

/// One step: `op` on the value `input`. Value 0 is the image, value i + 1 is that of step i.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// What is computed.
    pub op: Op,
    /// Which value it is computed from.
    pub input: usize,
}

/// Parameters of a step, in the order that its [`Op`] names; `None` for those it has not.
pub type Parameters<'a> = [Option<&'a [f32]>; 4];

/// Which gradients a backward pass computes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// That of the images.
    pub images: bool,
    /// Those of the parameters of each step.
    pub parameters: Vec<bool>,
}

/// What a backward pass computed.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Of the images, (N, C, H, W).
    pub images: Option<Vec<f32>>,
    /// Of the weight and the bias of each step.
    pub parameters: Vec<[Option<Vec<f32>>; 2]>,
}

/// Bytes of sums that stay in cache.
const FOLDED: usize = 512 * 1024;

/// A network of fixed geometry.
///
/// Activations live in groups of sixteen images that stay in a core's cache from layer to layer;
/// groups run in parallel. The geometry holds no parameters: [`Network::prepare`] arranges them
/// once for as many passes as use the same.
#[derive(Debug)]
pub struct Network {
    steps: Vec<Step>,
    nodes: Vec<Node>,
    /// The node that computes each value, 0 for the image, i + 1 for node i.
    value: Vec<usize>,
    /// Planes of the image and of each node's result.
    planes: Arc<[Plane]>,
    /// Values that no node after node k reads.
    spent: Vec<Vec<usize>>,
    shelf: Arc<Shelf>,
    level: Level,
}

/// A step with the steps that are done on its result before it is stored.
#[derive(Debug)]
struct Node {
    step: usize,
    kind: Kind,
    /// Plane and value it reads.
    input: usize,
    /// Step of a norm.
    norm: Option<usize>,
    /// Value that is added.
    residual: Option<usize>,
    relu: bool,
    /// Places of a sum's terms in the input's plane.
    offsets: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Conv(Conv),
    Linear,
    MaxPool(Windows),
    AvgPool(Windows),
    Noise,
    /// Its own values are `scale x + shift`; both follow from the batch.
    BatchNorm(f64),
    /// Norm, addition, ReLU of their own.
    Pointwise,
}

/// Parameters arranged for the kernels.
#[derive(Debug)]
pub struct Prepared {
    nodes: Vec<Arranged>,
    shelf: Arc<Shelf>,
    alone: bool,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        for node in self.nodes.drain(..) {
            match node.forward {
                Some(Ahead::Conv(forward)) => forward.give(&self.shelf),
                Some(Ahead::Linear(packed)) => packed.give(&self.shelf),
                None => {}
            }
            match node.backward {
                Some(Back::Conv(backward)) => backward.give(&self.shelf),
                Some(Back::Linear(packed)) => packed.give(&self.shelf),
                None => {}
            }
        }
    }
}

#[derive(Debug, Default)]
struct Arranged {
    forward: Option<Ahead>,
    backward: Option<Back>,
    bias: Option<Vec<f32>>,
    affine: Option<(Vec<f32>, Vec<f32>)>,
    /// Gamma and beta of a norm over the batch.
    norm: Option<(Vec<f32>, Vec<f32>)>,
    /// Of noise: theta of each value, and how many there were.
    theta: (Vec<f32>, usize),
}

#[derive(Debug)]
enum Ahead {
    Conv(Forward),
    Linear(Packed),
}

#[derive(Debug)]
enum Back {
    Conv(Backward),
    Linear(Packed),
}

/// What a forward pass keeps for backward passes.
#[derive(Debug)]
pub struct Trace {
    images: usize,
    groups: Vec<Group>,
    /// Of the input of each node that normalises over the batch.
    moments: Vec<Option<Moments>>,
    planes: Arc<[Plane]>,
    shelf: Arc<Shelf>,
}

impl Drop for Trace {
    fn drop(&mut self) {
        for group in &mut self.groups {
            for (plane, buffer) in self.planes.iter().zip(&mut group.values) {
                self.shelf.give(*plane, buffer.take());
            }
        }
    }
}

/// What a forward pass computes.
#[derive(Debug)]
pub struct Output {
    /// (N, output).
    pub values: Vec<f32>,
    /// What backward passes need, if it was to be kept.
    pub trace: Option<Trace>,
    /// For each step that normalises over the batch: the number of values of a channel, and their
    /// statistics.
    pub statistics: Vec<Option<(usize, Statistics)>>,
}

/// The values of sixteen images.
#[derive(Default)]
struct Group {
    images: usize,
    values: Vec<Option<Buffer>>,
    winners: Vec<Vec<[u8; LANES]>>,
    /// Of each node that adds noise.
    keys: Vec<Option<Box<Keys>>>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("images", &self.images)
            .finish_non_exhaustive()
    }
}

impl Network {
    /// Checks the steps for images of shape (C, H, W).
    ///
    /// # Errors
    ///
    /// If a step reads a value that is not there, or its shapes do not fit.
    pub fn new(image: [usize; 3], steps: &[Step]) -> Result<Self> {
        let shapes = shapes(image, steps)?;
        let uses = uses(steps);
        let mut nodes: Vec<Node> = Vec::new();
        let mut value = vec![0];
        for (step, Step { op, input }) in steps.iter().enumerate() {
            let source = value[*input];
            // The step can be done on the result of the node that feeds it alone.
            let alone = source > 0 && uses[*input] == 1 && !nodes[source - 1].relu;
            let sums = |source: usize, nodes: &[Node]| {
                source > 0 && matches!(nodes[source - 1].kind, Kind::Conv(_))
            };
            let mut node = Node {
                step,
                kind: Kind::Pointwise,
                input: source,
                norm: None,
                residual: None,
                relu: false,
                offsets: Vec::new(),
            };
            match *op {
                Op::Relu => {
                    let kind = source.checked_sub(1).map(|n| nodes[n].kind);
                    if alone && !matches!(kind, Some(Kind::MaxPool(_) | Kind::AvgPool(_))) {
                        nodes[source - 1].relu = true;
                        value.push(source);
                        continue;
                    }
                    node.relu = true;
                }
                Op::Norm { .. } => {
                    let free = |n: &Node| n.norm.is_none() && n.residual.is_none();
                    if alone && sums(source, &nodes) && free(&nodes[source - 1]) {
                        nodes[source - 1].norm = Some(step);
                        value.push(source);
                        continue;
                    }
                    node.norm = Some(step);
                }
                Op::BatchNorm { eps } => node.kind = Kind::BatchNorm(eps),
                Op::Add { other } => {
                    let sums = |source: usize, nodes: &[Node]| {
                        let norm = |n: usize| matches!(nodes[n].kind, Kind::BatchNorm(_));
                        sums(source, nodes) || source.checked_sub(1).is_some_and(norm)
                    };
                    let (a, b) = (source, value[other]);
                    let fits = |late: usize, early: usize, of: usize| {
                        late > early
                            && uses[of] == 1
                            && sums(late, &nodes)
                            && !nodes[late - 1].relu
                            && nodes[late - 1].residual.is_none()
                    };
                    let (late, early) = match (fits(a, b, *input), fits(b, a, other)) {
                        (true, _) => (a, b),
                        (_, true) => (b, a),
                        _ => {
                            node.residual = Some(b);
                            nodes.push(node);
                            value.push(nodes.len());
                            continue;
                        }
                    };
                    nodes[late - 1].residual = Some(early);
                    value.push(late);
                    continue;
                }
                Op::Conv {
                    kernel,
                    stride,
                    padding,
                    dilation,
                    ..
                } => {
                    node.kind = Kind::Conv(Conv {
                        kernel,
                        stride,
                        padding,
                        dilation,
                    });
                }
                Op::Linear { .. } => node.kind = Kind::Linear,
                Op::Noise => node.kind = Kind::Noise,
                Op::GlobalAvgPool => {
                    let [_, rows, columns] = shapes[*input];
                    node.kind = Kind::AvgPool(Windows {
                        kernel: (rows, columns),
                        stride: (rows, columns),
                        padding: 0,
                    });
                }
                Op::MaxPool {
                    kernel,
                    stride,
                    padding,
                } => node.kind = Kind::MaxPool(Windows::square(kernel, stride, padding)),
                Op::AvgPool {
                    kernel,
                    stride,
                    padding,
                } => node.kind = Kind::AvgPool(Windows::square(kernel, stride, padding)),
            }
            nodes.push(node);
            value.push(nodes.len());
        }
        let mut planes = vec![plane(shapes[0])];
        planes.extend(nodes.iter().map(|node| plane(shapes[node.step + 1])));
        widen(&mut planes, &nodes);
        for plane in &planes {
            let border = 2 * plane.border;
            let shape = [plane.channels, plane.rows + border, plane.columns + border];
            check_size("network: the shape of a value with its border", shape)?;
        }
        for node in &mut nodes {
            node.offsets = match node.kind {
                Kind::Conv(conv) => conv.offsets(&planes[node.input]),
                Kind::Linear => planes[node.input].places().collect(),
                _ => Vec::new(),
            };
        }
        Ok(Self {
            steps: steps.to_vec(),
            spent: spent(&nodes, value[steps.len()]),
            nodes,
            value,
            planes: planes.into(),
            shelf: Arc::default(),
            level: Level::best(),
        })
    }

    /// Shape (C, H, W) of the result; a fully connected layer gives (outputs, 1, 1).
    pub fn output(&self) -> [usize; 3] {
        let plane = self.planes[self.last()];
        [plane.channels, plane.rows, plane.columns]
    }

    /// Whether gradients of the parameters of every step can be computed: those of a norm, and of
    /// the layer before it, cannot.
    pub fn has_parameter_gradients(&self) -> bool {
        self.nodes.iter().all(|node| node.norm.is_none())
    }

    fn last(&self) -> usize {
        self.value[self.value.len() - 1]
    }

    /// Arranges the parameters of all steps for forward passes and, on request, backward ones.
    ///
    /// # Errors
    ///
    /// If a parameter is missing or has the wrong length.
    pub fn prepare(&self, parameters: &[Parameters<'_>], backward: bool) -> Result<Prepared> {
        self.arrange(parameters, backward, false)
    }

    /// [`Self::prepare`] on the calling thread, which passes with the result do not leave either:
    /// for tasks that run beside each other on parts of a batch.
    ///
    /// # Errors
    ///
    /// Those of [`Self::prepare`].
    pub fn prepare_alone(&self, parameters: &[Parameters<'_>], backward: bool) -> Result<Prepared> {
        self.arrange(parameters, backward, true)
    }

    fn arrange(
        &self,
        parameters: &[Parameters<'_>],
        backward: bool,
        alone: bool,
    ) -> Result<Prepared> {
        let room = self.room(alone);
        check_len("network: parameters", parameters, self.steps.len())?;
        let nodes = self.nodes.iter().enumerate().map(|(k, node)| {
            let (x, out) = (self.planes[node.input], self.planes[k + 1]);
            let [weight, bias, ..] = parameters[node.step];
            let mut arranged = Arranged::default();
            if let Some(step) = node.norm {
                arranged.affine = Some(self.affine(step, &parameters[step], out.channels)?);
            }
            if let Kind::BatchNorm(_) = node.kind {
                let gamma = given("network: gamma", weight, out.channels)?;
                let beta = given("network: beta", bias, out.channels)?;
                arranged.norm = Some((gamma.to_vec(), beta.to_vec()));
            }
            if let Kind::Noise = node.kind {
                arranged.theta = spread_theta(weight.unwrap_or_default(), &out)?;
            }
            let scale = arranged.affine.as_ref().map(|(scale, _)| &scale[..]);
            let terms = node.offsets.len();
            if let Kind::Conv(_) | Kind::Linear = node.kind {
                let weight = given("network: weight", weight, out.channels * terms)?;
                if let Some(bias) = bias {
                    check_len("network: bias", bias, out.channels)?;
                    arranged.bias = Some(bias.to_vec());
                }
                arranged.forward = Some(match node.kind {
                    Kind::Conv(conv) => Ahead::Conv(Forward::new(room, &conv, &x, &out, weight)),
                    _ => Ahead::Linear(Packed::new(room, out.channels, terms, |row, to| {
                        to.copy_from_slice(&weight[row * terms..][..terms]);
                    })),
                });
                if backward {
                    arranged.backward = Some(match node.kind {
                        Kind::Conv(conv) => {
                            Back::Conv(Backward::new(room, &conv, &x, &out, weight, scale))
                        }
                        _ => Back::Linear(Packed::transposed(room, weight, terms, scale)),
                    });
                }
            }
            Ok(arranged)
        });
        Ok(Prepared {
            nodes: nodes.collect::<Result<_>>()?,
            shelf: self.shelf.clone(),
            alone,
        })
    }

    fn room(&self, alone: bool) -> Room<'_> {
        Room {
            shelf: &self.shelf,
            alone,
        }
    }

    /// Scale and shift of a norm.
    fn affine(
        &self,
        step: usize,
        parameters: &Parameters<'_>,
        channels: usize,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let Op::Norm { eps } = self.steps[step].op else {
            return Err(geometry(
                "a norm's step",
                step,
                "this is a defect of the kernels",
            ));
        };
        let [gamma, beta, mean, var] = *parameters;
        let gamma = given("network: gamma", gamma, channels)?;
        let beta = given("network: beta", beta, channels)?;
        let mean = given("network: mean", mean, channels)?;
        let var = given("network: variance", var, channels)?;
        let scale: Vec<f64> = gamma
            .iter()
            .zip(var)
            .map(|(&g, &v)| f64::from(g) / (f64::from(v) + eps).sqrt())
            .collect();
        let shift = beta.iter().zip(mean).zip(&scale);
        Ok((
            scale.iter().map(|&s| s as f32).collect(),
            shift
                .map(|((&b, &m), s)| (f64::from(b) - f64::from(m) * s) as f32)
                .collect(),
        ))
    }

    /// The result for images (N, C, H, W), with what backward passes need if `keep`.
    ///
    /// # Errors
    ///
    /// If `prepared` is another network's, `images` is empty or no whole number of images, or a norm
    /// over the batch meets a single value in a channel.
    pub fn forward(&self, prepared: &Prepared, images: &[f32], keep: bool) -> Result<Output> {
        self.forward_noisy(prepared, images, &[], keep)
    }

    /// [`Self::forward`] of a network with noise: `keys` has an entry for each step, and that of
    /// [`Op::Noise`] one key for each image.
    ///
    /// # Errors
    ///
    /// Those of [`Self::forward`]; if a step with noise lacks a key.
    pub fn forward_noisy(
        &self,
        prepared: &Prepared,
        images: &[f32],
        keys: &[Option<&[Key]>],
        keep: bool,
    ) -> Result<Output> {
        self.own("network: the prepared parameters", &prepared.shelf)?;
        let pixels = self.planes[0].pixels();
        let count = images.len() / pixels;
        check_len("network: images", images, count.max(1) * pixels)?;
        let mut groups: Vec<Group> = images
            .chunks(LANES * pixels)
            .map(|images| Group::new(images.len() / pixels, self.nodes.len()))
            .collect();
        for (k, node) in self.nodes.iter().enumerate() {
            if let Kind::Noise = node.kind {
                let keys = keys.get(node.step).copied().flatten().unwrap_or_default();
                check_len("network: keys of noise", keys, count)?;
                for (group, keys) in groups.iter_mut().zip(keys.chunks(LANES)) {
                    group.keys[k] = Some(Box::new(Keys::new(keys)));
                }
            }
        }
        let mut moments: Vec<Option<Moments>> = vec![None; self.nodes.len()];
        // A norm over the batch and a fully connected layer wait for all groups; between two of them
        // each group runs alone.
        for stage in self.stages() {
            let next = stage.end;
            if self.is_linear(stage.start) && !stage.is_empty() {
                self.linear(stage.start, prepared, &mut groups);
            }
            let parts = each(
                prepared.alone,
                groups.iter_mut().enumerate(),
                |(i, group)| {
                    if stage.start == 0 {
                        let first = i * LANES * pixels;
                        self.begin(&images[first..][..group.images * pixels], group);
                    }
                    for k in stage.clone() {
                        if !self.is_linear(k) {
                            self.run(k, prepared, &moments, group);
                        }
                        let spent = if keep { &[][..] } else { &self.spent[k] };
                        for &v in spent {
                            self.shelf.give(self.planes[v], group.values[v].take());
                        }
                    }
                    self.is_batch_norm(next).then(|| {
                        let v = self.nodes[next].input;
                        let x = group.values[v].as_deref().unwrap_or_default();
                        Moments::of(self.level, &self.planes[v], x, group.images)
                    })
                },
            );
            if self.is_batch_norm(next) {
                let whole = Moments::joined(parts.into_iter().flatten());
                let values = whole.count;
                if values < 2.0 {
                    return Err(geometry(
                        "values of a channel in a norm over the batch",
                        values,
                        "pass more images, or use fixed statistics",
                    ));
                }
                moments[next] = Some(whole);
            }
        }
        let last = self.last();
        let out_pixels = self.planes[last].pixels();
        let mut values = vec![0f32; count * out_pixels];
        let parts = values.chunks_mut(LANES * out_pixels);
        each(
            prepared.alone,
            groups.iter_mut().zip(parts),
            |(group, out)| {
                if let Some(value) = &group.values[last] {
                    self.planes[last].gather(value, out);
                }
                if !keep {
                    self.shelf
                        .give(self.planes[last], group.values[last].take());
                }
            },
        );
        let mut statistics = vec![None; self.steps.len()];
        for (k, node) in self.nodes.iter().enumerate() {
            if let (Kind::BatchNorm(eps), Some(moments)) = (node.kind, &moments[k]) {
                // Exact: a count of values in memory.
                statistics[node.step] = Some((moments.count as usize, moments.statistics(eps)));
            }
        }
        let trace = keep.then(|| Trace {
            images: count,
            groups,
            moments,
            planes: self.planes.clone(),
            shelf: self.shelf.clone(),
        });
        Ok(Output {
            values,
            trace,
            statistics,
        })
    }

    /// Refuses what another network made.
    fn own(&self, what: &'static str, shelf: &Arc<Shelf>) -> Result<()> {
        if Arc::ptr_eq(shelf, &self.shelf) {
            return Ok(());
        }
        Err(geometry(
            what,
            "another network's",
            "pass what this one made",
        ))
    }

    /// The nodes in stretches that start at norms over the batch and at fully connected layers.
    fn stages(&self) -> Vec<Range<usize>> {
        let waits = |k: &usize| self.is_batch_norm(*k) || self.is_linear(*k);
        let mut cuts = vec![0];
        cuts.extend((1..self.nodes.len()).filter(waits));
        cuts.push(self.nodes.len());
        let mut stages: Vec<Range<usize>> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
        if waits(&0) {
            // Nothing runs before it, but its input has to be there.
            stages.insert(0, 0..0);
        }
        stages
    }

    fn begin(&self, images: &[f32], group: &mut Group) {
        if group.values[0].is_none() {
            let mut input = self.shelf.take(self.planes[0]);
            self.planes[0].spread(images, &mut input);
            group.values[0] = Some(input);
        }
    }

    /// Computes the value of node k.
    fn run(&self, k: usize, prepared: &Prepared, moments: &[Option<Moments>], group: &mut Group) {
        let (node, arranged) = (&self.nodes[k], &prepared.nodes[k]);
        let (plane, out_plane) = (self.planes[node.input], self.planes[k + 1]);
        let mut out = self.shelf.take(out_plane);
        {
            let value = |v: usize| group.values[v].as_deref().unwrap_or_default();
            let x = value(node.input);
            let batch = match (node.kind, &arranged.norm, &moments[k]) {
                (Kind::BatchNorm(eps), Some(norm), Some(moments)) => {
                    Some(moments.affine(norm, eps))
                }
                _ => None,
            };
            let affine = batch.as_ref().or(arranged.affine.as_ref());
            let finish = Finish {
                bias: arranged.bias.as_deref(),
                affine: affine.map(|(a, b)| (&a[..], &b[..])),
                residual: node.residual.map(value),
                relu: node.relu,
                ..Finish::default()
            };
            match node.kind {
                Kind::Conv(conv) => {
                    if let Some(Ahead::Conv(forward)) = &arranged.forward {
                        forward.run(
                            self.level,
                            &conv,
                            (&plane, x),
                            &node.offsets,
                            finish,
                            &self.shelf,
                            (&out_plane, &mut out),
                        );
                    }
                }
                Kind::MaxPool(windows) => {
                    let winners = &mut group.winners[k];
                    windows.max(self.level, (&plane, x), (&out_plane, &mut out), winners);
                }
                Kind::AvgPool(windows) => {
                    windows.mean(self.level, (&plane, x), (&out_plane, &mut out));
                }
                Kind::Noise => {
                    if let Some(keys) = &group.keys[k] {
                        let theta = &arranged.theta.0;
                        perturb(self.level, &out_plane, x, theta, keys, node.relu, &mut out);
                    }
                }
                // A fully connected layer runs on all groups at once.
                Kind::Linear | Kind::Pointwise | Kind::BatchNorm(_) => {
                    pointwise(self.level, &out_plane, x, &finish, &mut out);
                }
            }
        }
        group.values[k + 1] = Some(out);
    }

    /// Computes the value of the fully connected node k in all groups.
    fn linear(&self, k: usize, prepared: &Prepared, groups: &mut [Group]) {
        let (node, arranged) = (&self.nodes[k], &prepared.nodes[k]);
        let out_plane = self.planes[k + 1];
        let Some(Ahead::Linear(weights)) = &arranged.forward else {
            return;
        };
        let dense = Dense {
            level: self.level,
            room: self.room(prepared.alone),
            weights,
            bias: arranged.bias.as_deref(),
            relu: node.relu,
            from: &node.offsets,
            to: &out_plane.places().collect::<Vec<_>>(),
            accumulate: false,
        };
        let inputs: Vec<&[f32]> = groups
            .iter()
            .map(|group| group.values[node.input].as_deref().unwrap_or_default())
            .collect();
        let mut results: Vec<Buffer> =
            (groups.iter().map(|_| self.shelf.take(out_plane))).collect();
        let mut slices: Vec<&mut [f32]> = results.iter_mut().map(|out| &mut out[..]).collect();
        dense.run(&inputs, &mut slices);
        for (group, result) in groups.iter_mut().zip(results) {
            group.values[k + 1] = Some(result);
        }
    }

    /// Gradients of a loss whose gradient by the result is `grad_out`, shape (N, output).
    ///
    /// # Errors
    ///
    /// If `prepared` or `trace` is another network's or not for backward passes, `grad_out` has the
    /// wrong length, or a gradient is wanted that [`Self::has_parameter_gradients`] excludes.
    pub fn backward(
        &self,
        prepared: &Prepared,
        trace: &Trace,
        grad_out: &[f32],
        want: &Want,
    ) -> Result<Gradients> {
        let out_pixels = self.planes[self.last()].pixels();
        let pixels = self.planes[0].pixels();
        check_len("network: grad_out", grad_out, trace.images * out_pixels)?;
        check_len("network: wanted", &want.parameters, self.steps.len())?;
        if want.parameters.contains(&true) && !self.has_parameter_gradients() {
            return Err(geometry(
                "wanted gradients",
                "those of parameters",
                "a norm with fixed statistics has none here",
            ));
        }
        self.own("network: the prepared parameters", &prepared.shelf)?;
        self.own("network: the trace", &trace.shelf)?;
        let needs = self.needs(want);
        let lacks = |(k, node): (usize, &Node)| {
            let sums = matches!(node.kind, Kind::Conv(_) | Kind::Linear);
            sums && needs[node.input] && prepared.nodes[k].backward.is_none()
        };
        if self.nodes.iter().enumerate().any(lacks) {
            return Err(geometry(
                "network: the prepared parameters",
                "for forward passes alone",
                "prepare them for backward passes",
            ));
        }
        let mut images = vec![
            0f32;
            if want.images {
                trace.images * pixels
            } else {
                0
            }
        ];
        let mut parts: Vec<&mut [f32]> = images.chunks_mut(LANES * pixels).collect();
        parts.resize_with(trace.groups.len(), Default::default);
        let mut done: Vec<Done> = trace.groups.iter().map(|_| Done::new(self)).collect();
        let mut products: Vec<Option<NormSums>> = vec![None; self.nodes.len()];
        for stage in self.stages().into_iter().rev() {
            let work = trace.groups.iter().zip(&mut done).enumerate();
            let sums = each(prepared.alone, work, |(i, (group, done))| {
                if stage.end == self.nodes.len() {
                    let first = i * LANES * out_pixels;
                    self.end(&grad_out[first..][..group.images * out_pixels], done);
                }
                // The norm that ended this stretch on the way forward: its sums are complete now.
                let norm = products.get(stage.end).and_then(Option::as_ref);
                if let Some(sums) = norm {
                    self.norm_backward(stage.end, prepared, trace, sums, (group, done), &needs);
                }
                for k in stage.clone().rev() {
                    if self.is_batch_norm(k) {
                        return self.norm_sums(k, trace, (group, done), &needs);
                    }
                    if self.is_linear(k) {
                        let grad = done.grads[k + 1].take();
                        done.grads[k + 1] =
                            grad.map(|grad| self.open(k, group, grad, &mut done.grads, &needs));
                        return None;
                    }
                    self.node_done(k, prepared, group, done, want, &needs);
                }
                None
            });
            if self.is_batch_norm(stage.start) && !stage.is_empty() {
                products[stage.start] = NormSums::joined(sums.into_iter().flatten());
            }
            if self.is_linear(stage.start) && !stage.is_empty() {
                self.linear_backward(stage.start, prepared, &mut done, &needs);
            }
        }
        each(
            prepared.alone,
            done.iter_mut().zip(parts),
            |(done, grad_x)| {
                if let Some(grad) = done.grads[0].take() {
                    self.planes[0].gather(&grad, grad_x);
                    self.shelf.give(self.planes[0], Some(grad));
                }
            },
        );
        let nodes = self.nodes.iter().enumerate();
        let wanted = nodes.filter(|(_, node)| want.parameters[node.step]);
        let computed = each(prepared.alone, wanted, |(k, node)| match node.kind {
            Kind::Conv(_) => total(done.iter().map(|done| &done.sums[k])),
            Kind::Linear => self.linear_grads(k, trace, &done),
            Kind::Noise => {
                let [whole, _] = total(done.iter().map(|done| &done.sums[k]));
                [
                    whole.map(|whole| gather_theta(&whole, prepared.nodes[k].theta.1)),
                    None,
                ]
            }
            Kind::BatchNorm(_) => products[k].as_ref().map_or([None, None], NormSums::grads),
            _ => [None, None],
        });
        let mut parameters: Vec<[Option<Vec<f32>>; 2]> = vec![[None, None]; self.steps.len()];
        let wanted = self.nodes.iter().filter(|node| want.parameters[node.step]);
        for (node, computed) in wanted.zip(computed) {
            parameters[node.step] = computed;
        }
        for done in done {
            for (plane, buffer) in self.planes.iter().zip(done.grads) {
                self.shelf.give(*plane, buffer);
            }
        }
        Ok(Gradients {
            images: want.images.then_some(images),
            parameters,
        })
    }

    /// Which values need a gradient.
    fn needs(&self, want: &Want) -> Vec<bool> {
        let mut needs = vec![want.images];
        for node in &self.nodes {
            let inputs = [Some(node.input), node.residual];
            let below = inputs.into_iter().flatten().any(|v| needs[v]);
            needs.push(below || want.parameters[node.step]);
        }
        needs
    }

    fn is_batch_norm(&self, k: usize) -> bool {
        let kind = self.nodes.get(k).map(|node| node.kind);
        matches!(kind, Some(Kind::BatchNorm(_)))
    }

    fn is_linear(&self, k: usize) -> bool {
        let kind = self.nodes.get(k).map(|node| node.kind);
        matches!(kind, Some(Kind::Linear))
    }

    /// Places the gradient of the result.
    fn end(&self, grad_out: &[f32], done: &mut Done) {
        let last = self.last();
        let mut grad = self.shelf.take(self.planes[last]);
        self.planes[last].spread(grad_out, &mut grad);
        done.grads[last] = Some(grad);
    }

    /// The backward pass of node k in one group.
    fn node_done(
        &self,
        k: usize,
        prepared: &Prepared,
        group: &Group,
        done: &mut Done,
        want: &Want,
        needs: &[bool],
    ) {
        let Some(grad) = done.grads[k + 1].take() else {
            return;
        };
        let grad = self.node_backward(k, prepared, group, grad, &mut done.grads, needs);
        let node = &self.nodes[k];
        if let (Kind::Conv(conv), true) = (node.kind, want.parameters[node.step]) {
            done.sums[k] = self.conv_sums(k, conv, group, &grad);
        }
        if let (Kind::Noise, true, Some(keys)) =
            (node.kind, want.parameters[node.step], &group.keys[k])
        {
            let plane = &self.planes[k + 1];
            let mut sums = vec![0f32; plane.pixels()];
            perturb_sums(self.level, plane, &grad, keys, &mut sums);
            done.sums[k].weight = sums;
        }
        self.shelf.give(self.planes[k + 1], Some(grad));
    }

    /// This group's part of the sums that the gradient of a norm over the batch needs.
    fn norm_sums(
        &self,
        k: usize,
        trace: &Trace,
        (group, done): (&Group, &mut Done),
        needs: &[bool],
    ) -> Option<NormSums> {
        let (node, plane) = (&self.nodes[k], &self.planes[k + 1]);
        let grad = done.grads[k + 1].take()?;
        let grad = self.open(k, group, grad, &mut done.grads, needs);
        let x = group.values[node.input].as_deref().unwrap_or_default();
        let sums = trace.moments[k].as_ref().map(|moments| {
            let mut sums = NormSums::zeros(plane.channels);
            let (g, gx) = (&mut sums.g, &mut sums.gz);
            grad_sums(self.level, plane, x, &grad, &moments.mean, g, gx);
            for (c, gz) in sums.gz.iter_mut().enumerate() {
                *gz *= moments.inv_std(c, node.eps());
            }
            sums
        });
        done.grads[k + 1] = Some(grad);
        sums
    }

    /// `grad_x = gamma inv_std (g - mean(g) - z mean(g z))` with `z = (x - mean) inv_std`.
    fn norm_backward(
        &self,
        k: usize,
        prepared: &Prepared,
        trace: &Trace,
        sums: &NormSums,
        (group, done): (&Group, &mut Done),
        needs: &[bool],
    ) {
        let (node, plane) = (&self.nodes[k], &self.planes[k + 1]);
        let grad = done.grads[k + 1].take();
        let parts = (&grad, &trace.moments[k], &prepared.nodes[k].norm);
        if let ((Some(grad), Some(moments), Some((gamma, _))), true) = (parts, needs[node.input]) {
            let x = group.values[node.input].as_deref().unwrap_or_default();
            let (mut to, accumulate) = self.target(node.input, &mut done.grads);
            let mut slopes = Slopes {
                images: group.images,
                ..Slopes::default()
            };
            for (c, gamma) in gamma.iter().enumerate() {
                let inv_std = moments.inv_std(c, node.eps());
                let scale = f64::from(*gamma) * inv_std;
                slopes.scale.push(scale as f32);
                slopes.g_mean.push((sums.g[c] / moments.count) as f32);
                let slope = -scale * sums.gz[c] / moments.count * inv_std;
                slopes.slope.push(slope as f32);
                slopes.x_mean.push(moments.mean[c] as f32);
            }
            combine(self.level, plane, x, grad, &slopes, accumulate, &mut to);
            done.grads[node.input] = Some(to);
        }
        self.shelf.give(*plane, grad);
    }

    /// Hands the gradient of node k's value on to what it was computed from; returns the gradient
    /// by the sum itself, before norm, addition and ReLU.
    fn node_backward(
        &self,
        k: usize,
        prepared: &Prepared,
        group: &Group,
        mut grad: Buffer,
        grads: &mut [Option<Buffer>],
        needs: &[bool],
    ) -> Buffer {
        grad = self.open(k, group, grad, grads, needs);
        let (node, arranged) = (&self.nodes[k], &prepared.nodes[k]);
        let (plane, out_plane) = (self.planes[node.input], self.planes[k + 1]);
        if !needs[node.input] {
            return grad;
        }
        let (mut to, accumulate) = self.target(node.input, grads);
        let finish = Finish {
            accumulate,
            ..Finish::default()
        };
        if let (Kind::MaxPool(windows) | Kind::AvgPool(windows), false) = (node.kind, accumulate)
            && !windows.tiles(&plane)
        {
            plane.lines().for_each(|(_, line)| to[line].fill(0.0));
        }
        match (node.kind, &arranged.backward) {
            (Kind::Conv(_), Some(Back::Conv(backward))) => {
                backward.run(self.level, &grad, finish, &self.shelf, &mut to);
            }
            (Kind::MaxPool(windows), _) => {
                let winners = &group.winners[k];
                let input = (&plane, &mut to[..]);
                windows.max_grad(self.level, (&out_plane, &grad), winners, input, accumulate);
            }
            (Kind::AvgPool(windows), _) => {
                let input = (&plane, &mut to[..]);
                windows.mean_grad(self.level, (&out_plane, &grad), input, accumulate);
            }
            _ => {
                let zeros = vec![0.0; plane.channels];
                let affine = arranged.affine.as_ref();
                let finish = Finish {
                    affine: affine.map(|(scale, _)| (&scale[..], &zeros[..])),
                    ..finish
                };
                pointwise(self.level, &plane, &grad, &finish, &mut to);
            }
        }
        grads[node.input] = Some(to);
        grad
    }

    /// The gradient before the ReLU of node k; what the node adds to its sum gets it as well.
    fn open(
        &self,
        k: usize,
        group: &Group,
        mut grad: Buffer,
        grads: &mut [Option<Buffer>],
        needs: &[bool],
    ) -> Buffer {
        let (node, out_plane) = (&self.nodes[k], self.planes[k + 1]);
        if node.relu
            && let Some(value) = &group.values[k + 1]
        {
            gate(self.level, &out_plane, value, &mut grad);
        }
        if let Some(residual) = node.residual
            && needs[residual]
        {
            let (mut to, accumulate) = self.target(residual, grads);
            let finish = Finish {
                accumulate,
                ..Finish::default()
            };
            pointwise(self.level, &out_plane, &grad, &finish, &mut to);
            grads[residual] = Some(to);
        }
        grad
    }

    /// The buffer for the gradient of a value, and whether it holds a part of it already.
    fn target(&self, value: usize, grads: &mut [Option<Buffer>]) -> (Buffer, bool) {
        match grads[value].take() {
            Some(buffer) => (buffer, true),
            None => (self.shelf.take(self.planes[value]), false),
        }
    }

    /// Hands the gradient of the fully connected node k on in all groups.
    fn linear_backward(&self, k: usize, prepared: &Prepared, done: &mut [Done], needs: &[bool]) {
        let (node, out_plane) = (&self.nodes[k], self.planes[k + 1]);
        let (Some(Back::Linear(packed)), true) = (&prepared.nodes[k].backward, needs[node.input])
        else {
            return;
        };
        // Nothing reads its result.
        if done.iter().any(|done| done.grads[k + 1].is_none()) {
            return;
        }
        let take = |done: &mut Done| self.target(node.input, &mut done.grads);
        let (mut results, accumulate): (Vec<Buffer>, Vec<bool>) = done.iter_mut().map(take).unzip();
        let dense = Dense {
            level: self.level,
            room: self.room(prepared.alone),
            weights: packed,
            bias: None,
            relu: false,
            from: &out_plane.places().collect::<Vec<_>>(),
            to: &node.offsets,
            // The same in all groups.
            accumulate: accumulate.contains(&true),
        };
        let grads: Vec<&[f32]> = done
            .iter()
            .map(|done| done.grads[k + 1].as_deref().unwrap_or_default())
            .collect();
        let mut slices: Vec<&mut [f32]> = results.iter_mut().map(|out| &mut out[..]).collect();
        dense.run(&grads, &mut slices);
        for (done, result) in done.iter_mut().zip(results) {
            done.grads[node.input] = Some(result);
        }
    }

    fn conv_sums(&self, k: usize, conv: Conv, group: &Group, grad: &Buffer) -> Sums {
        let node = &self.nodes[k];
        let (plane, out_plane) = (self.planes[node.input], self.planes[k + 1]);
        let x = group.values[node.input].as_deref().unwrap_or_default();
        let terms = node.offsets.len();
        // Output channels whose sums, sixteen lanes each, stay in cache until they are folded.
        let block = (FOLDED / (terms * size_of::<[f32; LANES]>())).max(4);
        let mut weight = Vec::with_capacity(out_plane.channels * terms);
        for first in (0..out_plane.channels).step_by(block) {
            let channels = first..(first + block).min(out_plane.channels);
            let mut lanes = self.shelf.take_len(channels.len() * terms * LANES);
            conv.weight_grad(
                self.level,
                (&plane, x),
                &node.offsets,
                (&out_plane, grad, channels),
                &mut lanes,
            );
            weight.extend(lanes.as_chunks().0.iter().map(fold));
            self.shelf.give_len(lanes);
        }
        Sums {
            weight,
            bias: channel_sums(self.level, &out_plane, grad),
        }
    }

    /// Gradients of a fully connected layer: one product over all images.
    fn linear_grads(&self, k: usize, trace: &Trace, done: &[Done]) -> [Option<Vec<f32>>; 2] {
        let input = self.nodes[k].input;
        let pairs = trace.groups.iter().zip(done).map(|(group, done)| {
            let x = group.values[input].as_deref()?;
            Some((group.images, x, done.grads[k + 1].as_deref()?))
        });
        let Some(pairs) = pairs.collect::<Option<Vec<Pair<'_>>>>() else {
            return [None, None];
        };
        let planes = (&self.planes[input], &self.planes[k + 1]);
        weight_grad(self.level, &self.shelf, planes, &pairs).map(Some)
    }
}

impl Group {
    fn new(images: usize, nodes: usize) -> Self {
        let mut values = Vec::new();
        values.resize_with(nodes + 1, || None);
        Self {
            images,
            values,
            winners: vec![Vec::new(); nodes],
            keys: vec![None; nodes],
        }
    }
}

impl Node {
    fn eps(&self) -> f64 {
        match self.kind {
            Kind::BatchNorm(eps) => eps,
            _ => 0.0,
        }
    }
}

/// Mean and sum of squares around it for each channel, in double precision.
#[derive(Clone, Debug)]
struct Moments {
    count: f64,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    /// Of one group, in two passes.
    fn of(level: Level, plane: &Plane, x: &[f32], images: usize) -> Self {
        let count = (images * plane.rows * plane.columns) as f64;
        let mut mean = vec![0f64; plane.channels];
        sums(level, plane, x, images, &mut mean);
        mean.iter_mut().for_each(|sum| *sum /= count);
        let mut all = vec![0f64; plane.channels];
        squares(level, plane, x, images, &mean, &mut all);
        Self {
            count,
            mean,
            squares: all,
        }
    }

    /// Of all groups, in their order (Chan, Golub & LeVeque 1983).
    fn joined(parts: impl Iterator<Item = Self>) -> Self {
        let join = |mut a: Self, b: Self| {
            let count = a.count + b.count;
            for c in 0..a.mean.len() {
                let apart = b.mean[c] - a.mean[c];
                a.mean[c] += apart * b.count / count;
                a.squares[c] += b.squares[c] + apart * apart * a.count * b.count / count;
            }
            a.count = count;
            a
        };
        let empty = Self {
            count: 0.0,
            mean: Vec::new(),
            squares: Vec::new(),
        };
        parts.reduce(join).unwrap_or(empty)
    }

    fn inv_std(&self, channel: usize, eps: f64) -> f64 {
        1.0 / (self.squares[channel] / self.count + eps).sqrt()
    }

    /// Scale and shift of the norm.
    fn affine(&self, (gamma, beta): &(Vec<f32>, Vec<f32>), eps: f64) -> (Vec<f32>, Vec<f32>) {
        let scale = |c: usize| f64::from(gamma[c]) * self.inv_std(c, eps);
        (0..self.mean.len())
            .map(|c| {
                let shift = f64::from(beta[c]) - self.mean[c] * scale(c);
                (scale(c) as f32, shift as f32)
            })
            .unzip()
    }

    fn statistics(&self, eps: f64) -> Statistics {
        let channels = 0..self.mean.len();
        Statistics {
            mean: self.mean.clone(),
            var: self.squares.iter().map(|s| s / self.count).collect(),
            inv_std: channels.map(|c| self.inv_std(c, eps)).collect(),
        }
    }
}

/// Sums over the batch of the gradient g and of g z, z being the normalised value.
#[derive(Clone, Debug)]
struct NormSums {
    g: Vec<f64>,
    gz: Vec<f64>,
}

impl NormSums {
    fn zeros(channels: usize) -> Self {
        Self {
            g: vec![0.0; channels],
            gz: vec![0.0; channels],
        }
    }

    /// Of all groups, in their order.
    fn joined(parts: impl Iterator<Item = Self>) -> Option<Self> {
        parts.reduce(|mut a, b| {
            a.g.iter_mut().zip(&b.g).for_each(|(a, b)| *a += b);
            a.gz.iter_mut().zip(&b.gz).for_each(|(a, b)| *a += b);
            a
        })
    }

    /// Of gamma and beta.
    fn grads(&self) -> [Option<Vec<f32>>; 2] {
        let narrow = |values: &[f64]| Some(values.iter().map(|&v| v as f32).collect());
        [narrow(&self.gz), narrow(&self.g)]
    }
}

/// `f` of every item: in parallel if there are several and others may help.
fn each<T: Send, R: Send>(
    alone: bool,
    items: impl Iterator<Item = T>,
    f: impl Fn(T) -> R + Sync + Send,
) -> Vec<R> {
    let items: Vec<T> = items.collect();
    match alone || items.len() == 1 {
        true => items.into_iter().map(f).collect(),
        false => items.into_par_iter().map(f).collect(),
    }
}

/// What the backward pass of a group left.
struct Done {
    grads: Vec<Option<Buffer>>,
    sums: Vec<Sums>,
}

impl Done {
    fn new(network: &Network) -> Self {
        let mut grads = Vec::new();
        grads.resize_with(network.planes.len(), || None);
        Self {
            grads,
            sums: vec![Sums::default(); network.nodes.len()],
        }
    }
}

/// A group's share of a convolution's gradients.
#[derive(Clone, Default)]
struct Sums {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// Shares added in the order of the groups.
fn total<'a>(mut shares: impl Iterator<Item = &'a Sums>) -> [Option<Vec<f32>>; 2] {
    // Empty where nothing read the convolution's result.
    let Some(first) = shares.next().filter(|first| !first.weight.is_empty()) else {
        return [None, None];
    };
    let Sums {
        mut weight,
        mut bias,
    } = first.clone();
    for share in shares {
        weight
            .iter_mut()
            .zip(&share.weight)
            .for_each(|(a, b)| *a += b);
        bias.iter_mut().zip(&share.bias).for_each(|(a, b)| *a += b);
    }
    [Some(weight), Some(bias)]
}

fn plane([channels, rows, columns]: [usize; 3]) -> Plane {
    Plane {
        channels,
        rows,
        columns,
        border: 0,
    }
}

/// Gives all planes of one size the widest border that a convolution asks for on that size, so
/// that a value, its gradient and what is added to it are laid out alike.
fn widen(planes: &mut [Plane], nodes: &[Node]) {
    let size = |plane: &Plane| (plane.rows, plane.columns);
    let mut asked: Vec<((usize, usize), usize)> = Vec::new();
    for (k, node) in nodes.iter().enumerate() {
        if let Kind::Conv(conv) = node.kind {
            let (x, out) = (&planes[node.input], &planes[k + 1]);
            asked.push((size(x), conv.padding));
            asked.push((size(out), conv.grad_border(x, out)));
        }
    }
    for plane in planes {
        let borders = asked.iter().filter(|(s, _)| *s == size(plane));
        plane.border = borders.map(|(_, border)| *border).max().unwrap_or(0);
    }
}

/// The values that each node is the last to read.
fn spent(nodes: &[Node], result: usize) -> Vec<Vec<usize>> {
    let reads = |node: &Node, v: usize| node.input == v || node.residual == Some(v);
    let mut spent = vec![Vec::new(); nodes.len()];
    for v in (0..=nodes.len()).filter(|&v| v != result) {
        // A value that nothing reads is spent where it is computed.
        let last = nodes.iter().rposition(|node| reads(node, v));
        spent[last.unwrap_or(v.saturating_sub(1))].push(v);
    }
    spent
}

/// How often each value is read; the result counts as read.
fn uses(steps: &[Step]) -> Vec<usize> {
    let mut uses = vec![0; steps.len() + 1];
    uses[steps.len()] = 1;
    for step in steps {
        uses[step.input] += 1;
        if let Op::Add { other } = step.op {
            uses[other] += 1;
        }
    }
    uses
}

fn given<'a>(what: &'static str, slice: Option<&'a [f32]>, len: usize) -> Result<&'a [f32]> {
    let slice = slice.unwrap_or_default();
    check_len(what, slice, len)?;
    Ok(slice)
}

/// Theta of each value, from as many, one for each channel, or one; and how many there were.
fn spread_theta(theta: &[f32], plane: &Plane) -> Result<(Vec<f32>, usize)> {
    let pixels = plane.pixels();
    let each = pixels / plane.channels;
    let of = |i: usize| match theta.len() {
        1 => theta[0],
        count if count == pixels => theta[i],
        _ => theta[i / each],
    };
    if ![1, plane.channels].contains(&theta.len()) {
        check_len("network: theta", theta, pixels)?;
    }
    Ok(((0..pixels).map(of).collect(), theta.len()))
}

/// The gradient by `count` thetas from that by the theta of each value.
fn gather_theta(whole: &[f32], count: usize) -> Vec<f32> {
    let sum = |part: &[f32]| part.iter().map(|&g| f64::from(g)).sum::<f64>() as f32;
    whole.chunks(whole.len() / count.max(1)).map(sum).collect()
}

/// Refuses values of which sixteen are more than a core's work should be.
fn check_size(what: &'static str, shape: [usize; 3]) -> Result<()> {
    const MOST: usize = u32::MAX as usize / LANES;
    if elements(what, &shape)? > MOST {
        let fix = "use smaller images or fewer channels";
        return Err(geometry(what, format!("{shape:?}"), fix));
    }
    Ok(())
}

/// Shapes of all values.
fn shapes(image: [usize; 3], steps: &[Step]) -> Result<Vec<[usize; 3]>> {
    if image.contains(&0) || steps.is_empty() {
        return Err(geometry(
            "network",
            format!("{} steps on an image of shape {image:?}", steps.len()),
            "give it at least one step and a non-empty image",
        ));
    }
    check_size("network: the image's shape", image)?;
    let mut shapes = vec![image];
    for (i, step) in steps.iter().enumerate() {
        let refuse = |fix: &str| -> Error {
            let shape = shapes.get(step.input);
            geometry(
                "a network's step",
                format!("{step:?} on {shape:?} (step {i})"),
                fix,
            )
        };
        let Some(&[c, h, w]) = shapes.get(step.input) else {
            return Err(refuse("it must read an earlier value"));
        };
        let shape = match step.op {
            Op::Conv {
                outputs,
                kernel,
                stride,
                padding,
                dilation,
            } => {
                if [outputs, kernel.0, kernel.1, stride, dilation].contains(&0) {
                    return Err(refuse(
                        "outputs, kernel, stride and dilation must be at least 1",
                    ));
                }
                if [stride, padding, dilation].iter().any(|&v| v > MAX_STEP) {
                    return Err(refuse("stride, padding and dilation may be at most 65536"));
                }
                let conv = Conv {
                    kernel,
                    stride,
                    padding,
                    dilation,
                };
                match (conv.out(h, kernel.0), conv.out(w, kernel.1)) {
                    (Some(h), Some(w)) => [outputs, h, w],
                    _ => return Err(refuse("the kernel must fit in the padded image")),
                }
            }
            Op::Linear { outputs: 0 } => return Err(refuse("outputs must be at least 1")),
            Op::Linear { outputs } => [outputs, 1, 1],
            Op::Norm { eps } | Op::BatchNorm { eps } if !(eps > 0.0 && eps.is_finite()) => {
                return Err(refuse("eps must be a positive number"));
            }
            Op::Norm { .. } | Op::BatchNorm { .. } | Op::Relu | Op::Noise => [c, h, w],
            Op::GlobalAvgPool => [c, 1, 1],
            Op::Add { other } => {
                if shapes.get(other) != Some(&[c, h, w]) {
                    return Err(refuse("both values must have one shape"));
                }
                [c, h, w]
            }
            Op::MaxPool {
                kernel,
                stride,
                padding,
            }
            | Op::AvgPool {
                kernel,
                stride,
                padding,
            } => {
                let windows = Windows::square(kernel, stride, padding);
                if kernel == 0 || stride == 0 || padding > kernel / 2 || stride > MAX_STEP {
                    return Err(refuse(
                        "kernel and stride must be at least 1, padding at most half the kernel, \
                         stride at most 65536",
                    ));
                }
                match windows.out(h, w) {
                    Some((h, w)) => [c, h, w],
                    None => return Err(refuse("the window must fit in the padded image")),
                }
            }
        };
        check_size("network: the shape of a step's value", shape)?;
        let what = "network: the shape of a step's weight";
        match step.op {
            Op::Conv {
                outputs, kernel, ..
            } => elements(what, &[outputs, c, kernel.0, kernel.1])?,
            Op::Linear { outputs } => elements(what, &[outputs, c, h, w])?,
            _ => 0,
        };
        if let Op::MaxPool { kernel, .. } = step.op
            && kernel > 15
        {
            return Err(refuse(
                "a window of max pooling may have at most 15 x 15 pixels here",
            ));
        }
        shapes.push(shape);
    }
    Ok(shapes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same_bits, data, same_for_threads};
    use crate::{BatchNorm, BatchNormGrads, Pool, Statistics};

    fn conv(outputs: usize, kernel: usize, stride: usize, padding: usize, input: usize) -> Step {
        let op = Op::Conv {
            outputs,
            kernel: (kernel, kernel),
            stride,
            padding,
            dilation: 1,
        };
        Step { op, input }
    }

    fn step(op: Op, input: usize) -> Step {
        Step { op, input }
    }

    fn max_pool(kernel: usize, stride: usize, padding: usize, input: usize) -> Step {
        let op = Op::MaxPool {
            kernel,
            stride,
            padding,
        };
        step(op, input)
    }

    const BATCH_NORM: Op = Op::BatchNorm { eps: 1e-3 };
    const NORM: Op = Op::Norm { eps: 1e-3 };

    /// Image shape and steps.
    fn networks(norms: bool) -> Vec<([usize; 3], Vec<Step>)> {
        let mut networks = vec![
            // The ATDA CNN.
            (
                [1, 28, 28],
                vec![
                    conv(16, 4, 2, 1, 0),
                    step(Op::Relu, 1),
                    conv(32, 4, 2, 1, 2),
                    step(Op::Relu, 3),
                    step(Op::Linear { outputs: 100 }, 4),
                    step(Op::Relu, 5),
                    step(Op::Linear { outputs: 10 }, 6),
                ],
            ),
            // LeNet-5, smaller.
            (
                [2, 13, 11],
                vec![
                    conv(6, 5, 1, 2, 0),
                    step(Op::Relu, 1),
                    max_pool(2, 2, 0, 2),
                    conv(7, 3, 1, 0, 3),
                    step(Op::Relu, 4),
                    max_pool(3, 2, 1, 5),
                    step(Op::Linear { outputs: 3 }, 6),
                ],
            ),
            // Odd kernels, strides that cut rows off, a stride beyond the kernel, dilation.
            (
                [3, 10, 9],
                vec![
                    step(
                        Op::Conv {
                            outputs: 5,
                            kernel: (2, 3),
                            stride: 1,
                            padding: 2,
                            dilation: 2,
                        },
                        0,
                    ),
                    conv(9, 3, 3, 1, 1),
                    step(Op::Relu, 2),
                    conv(2, 1, 2, 0, 3),
                ],
            ),
            // Values read twice: before and after a ReLU, by a skip connection and a pool.
            (
                [4, 8, 8],
                vec![
                    conv(4, 3, 1, 1, 0),
                    step(Op::Relu, 1),
                    step(Op::Add { other: 1 }, 2),
                    conv(4, 3, 1, 1, 3),
                    step(Op::Add { other: 3 }, 4),
                    step(Op::Relu, 5),
                    step(
                        Op::AvgPool {
                            kernel: 4,
                            stride: 4,
                            padding: 0,
                        },
                        6,
                    ),
                    max_pool(2, 2, 0, 6),
                    step(Op::Relu, 8),
                    step(Op::Linear { outputs: 4 }, 9),
                    step(Op::Linear { outputs: 4 }, 7),
                    step(Op::Add { other: 10 }, 11),
                ],
            ),
        ];
        // Enough terms that sums wait in memory, enough columns for two spans.
        networks.push((
            [64, 5, 11],
            vec![
                conv(12, 3, 1, 1, 0),
                step(Op::Relu, 1),
                conv(60, 3, 2, 1, 2),
                conv(9, 3, 1, 1, 3),
            ],
        ));
        // Enough channels for tiles: whole ones and not, several rows of tiles at once and not, sums
        // that are added to; one channel too few.
        networks.push((
            [16, 10, 12],
            vec![
                conv(18, 3, 1, 1, 0),
                step(Op::Relu, 1),
                conv(18, 3, 1, 1, 2),
                step(Op::Add { other: 2 }, 3),
                step(Op::Relu, 4),
                conv(15, 3, 1, 0, 5),
                conv(33, 3, 1, 2, 6),
                conv(16, 3, 1, 0, 7),
                conv(17, 3, 1, 1, 8),
                max_pool(2, 2, 0, 9),
                conv(16, 3, 1, 1, 10),
            ],
        ));
        networks.push((
            [100, 2, 20],
            vec![conv(20, 3, 1, 1, 0), conv(100, 3, 1, 1, 1)],
        ));
        // Residual blocks in training mode.
        networks.push((
            [3, 12, 12],
            vec![
                step(BATCH_NORM, 0),
                conv(8, 3, 1, 1, 1),
                step(BATCH_NORM, 2),
                step(Op::Relu, 3),
                conv(8, 3, 1, 1, 4),
                step(BATCH_NORM, 5),
                step(Op::Add { other: 4 }, 6),
                step(Op::Relu, 7),
                conv(16, 3, 2, 1, 8),
                step(BATCH_NORM, 9),
                conv(16, 1, 2, 0, 8),
                step(BATCH_NORM, 11),
                step(Op::Add { other: 12 }, 10),
                step(Op::Relu, 13),
                step(Op::GlobalAvgPool, 14),
                step(Op::Linear { outputs: 10 }, 15),
            ],
        ));
        // Noise on the image, before a ReLU behind a sum, on a value that is read twice, and last;
        // thetas for all, for channels and for each value.
        networks.push((
            [3, 9, 7],
            vec![
                step(Op::Noise, 0),
                conv(6, 3, 1, 1, 1),
                step(BATCH_NORM, 2),
                step(Op::Noise, 3),
                step(Op::Relu, 4),
                conv(6, 3, 1, 1, 5),
                step(BATCH_NORM, 6),
                step(Op::Add { other: 5 }, 7),
                step(Op::Noise, 8),
                step(Op::Relu, 9),
                step(Op::Linear { outputs: 5 }, 10),
                step(Op::Noise, 11),
            ],
        ));
        networks.push((
            [2, 6, 6],
            vec![
                conv(4, 3, 1, 1, 0),
                step(Op::Noise, 1),
                conv(4, 3, 1, 1, 2),
                step(Op::Noise, 3),
                step(Op::Add { other: 2 }, 4),
                step(Op::Relu, 5),
                max_pool(2, 2, 0, 6),
                step(Op::Linear { outputs: 4 }, 7),
            ],
        ));
        if norms {
            // Residual blocks, one with a stride and a projection.
            networks.push((
                [3, 12, 12],
                vec![
                    conv(16, 3, 1, 1, 0),
                    step(NORM, 1),
                    step(Op::Relu, 2),
                    conv(16, 3, 1, 1, 3),
                    step(NORM, 4),
                    step(Op::Relu, 5),
                    conv(16, 3, 1, 1, 6),
                    step(NORM, 7),
                    step(Op::Add { other: 3 }, 8),
                    step(Op::Relu, 9),
                    conv(16, 3, 2, 1, 10),
                    step(NORM, 11),
                    conv(16, 1, 2, 0, 10),
                    step(NORM, 13),
                    step(Op::Add { other: 14 }, 12),
                    step(Op::Relu, 15),
                    step(NORM, 16),
                    step(Op::GlobalAvgPool, 17),
                    step(Op::Linear { outputs: 10 }, 18),
                ],
            ));
        }
        networks
    }

    type Owned = [Option<Vec<f32>>; 4];

    /// Parameters for each step, from the shapes.
    fn parameters(image: [usize; 3], steps: &[Step]) -> Vec<Owned> {
        let shapes = shapes(image, steps).unwrap();
        let small = |seed, n: usize, fan: usize| -> Vec<f32> {
            let scale = 1.0 / (fan as f32).sqrt();
            data::<f32>(seed, n)
                .into_iter()
                .map(|v| v * scale)
                .collect()
        };
        let each = steps.iter().enumerate().map(|(i, step)| {
            let ([c, h, w], seed) = (shapes[step.input], 10 * i as u64);
            match step.op {
                Op::Conv {
                    outputs, kernel, ..
                } => {
                    let fan = c * kernel.0 * kernel.1;
                    // Before a norm over the batch a bias has no effect, and its gradient is noise.
                    let normed = matches!(steps.get(i + 1), Some(s) if s.op == BATCH_NORM);
                    let bias = (i % 2 == 0 && !normed).then(|| small(seed + 1, outputs, 4));
                    [Some(small(seed, outputs * fan, fan)), bias, None, None]
                }
                Op::Linear { outputs } => {
                    let fan = c * h * w;
                    let bias = Some(small(seed + 1, outputs, 4));
                    [Some(small(seed, outputs * fan, fan)), bias, None, None]
                }
                Op::BatchNorm { .. } => {
                    let [gamma, beta] = [seed, seed + 1].map(|s| Some(small(s, c, 1)));
                    [gamma, beta, None, None]
                }
                Op::Norm { .. } => {
                    let var = data::<f32>(seed + 3, c)
                        .iter()
                        .map(|v| v.abs() + 0.2)
                        .collect();
                    let all = [seed, seed + 1, seed + 2].map(|s| Some(small(s, c, 1)));
                    let [gamma, beta, mean] = all;
                    [gamma, beta, mean, Some(var)]
                }
                Op::Noise => {
                    let sizes = [1, c, c * h * w];
                    [Some(small(seed, sizes[i % 3], 1)), None, None, None]
                }
                _ => [None, None, None, None],
            }
        });
        each.collect()
    }

    /// A key for each step and image, the first image having this number.
    fn keys(steps: &[Step], first: usize, n: usize) -> Vec<Vec<Key>> {
        let key =
            |step: usize, image: usize| [step as u32, (first + image) as u32, 7, 0, 0, 1, 0, 2];
        let of = |step: usize| (0..n).map(|image| key(step, image)).collect();
        (0..steps.len()).map(of).collect()
    }

    fn forward(
        network: &Network,
        prepared: &Prepared,
        x: &[f32],
        first: usize,
        keep: bool,
    ) -> Output {
        let n = x.len() / network.planes[0].pixels();
        let keys = keys(&network.steps, first, n);
        let keys: Vec<Option<&[Key]>> = keys.iter().map(|keys| Some(&keys[..])).collect();
        network.forward_noisy(prepared, x, &keys, keep).unwrap()
    }

    fn borrowed(parameters: &[Owned]) -> Vec<Parameters<'_>> {
        parameters
            .iter()
            .map(|owned| std::array::from_fn(|i| owned[i].as_deref()))
            .collect()
    }

    struct Reference {
        out: Vec<f64>,
        images: Vec<f64>,
        parameters: Vec<[Option<Vec<f64>>; 2]>,
    }

    /// The same in double precision, step by step with the other kernels of this crate.
    fn reference(
        (image, steps): (&[usize; 3], &[Step]),
        parameters: &[Owned],
        x: &[f32],
        grad_out: &[f32],
    ) -> Reference {
        let wide = |v: &[f32]| -> Vec<f64> { v.iter().map(|&v| f64::from(v)).collect() };
        let shapes = shapes(*image, steps).unwrap();
        let n = x.len() / image.iter().product::<usize>();
        let size = |value: usize| n * shapes[value].iter().product::<usize>();
        let full = |value: usize| [n, shapes[value][0], shapes[value][1], shapes[value][2]];
        let of = |i: usize, which: usize| parameters[i][which].as_deref().map(wide);
        let geometry = |i: usize, s: &Step| match s.op {
            Op::Conv {
                outputs,
                kernel,
                stride,
                padding,
                dilation,
            } => {
                let weight = [outputs, shapes[s.input][0], kernel.0, kernel.1];
                crate::Conv::new(full(s.input), weight, stride, padding, dilation, 1).unwrap()
            }
            _ => panic!("step {i} is no convolution"),
        };
        let pool = |s: &Step| match s.op {
            Op::MaxPool {
                kernel,
                stride,
                padding,
            }
            | Op::AvgPool {
                kernel,
                stride,
                padding,
            } => Pool::new(full(s.input), kernel, stride, padding).unwrap(),
            Op::GlobalAvgPool => {
                let side = shapes[s.input][1];
                Pool::new(full(s.input), side, side, 0).unwrap()
            }
            _ => panic!("no pool"),
        };
        let batch_norm = |i: usize, eps: f64, s: &Step, x: &[f64]| {
            let norm = BatchNorm::new(full(s.input), eps).unwrap();
            let statistics = norm.statistics(x).unwrap();
            (norm, statistics, of(i, 0).unwrap(), of(i, 1).unwrap())
        };
        let norm = |i: usize, eps: f64, s: &Step| {
            let statistics =
                Statistics::fixed(&of(i, 2).unwrap(), &of(i, 3).unwrap(), eps).unwrap();
            (BatchNorm::new(full(s.input), eps).unwrap(), statistics)
        };
        let noise = |i: usize| -> Vec<Vec<f64>> {
            let pixels = shapes[steps[i].input].iter().product();
            let draw = |key: &Key| {
                let mut values = vec![0f32; pixels];
                crate::normal(key, &mut values);
                wide(&values)
            };
            keys(steps, 0, n)[i].iter().map(draw).collect()
        };
        let mut values = vec![wide(x)];
        let mut winners = vec![Vec::new(); steps.len()];
        for (i, s) in steps.iter().enumerate() {
            let input = &values[s.input];
            let mut out = vec![0f64; size(i + 1)];
            match s.op {
                Op::Conv { .. } => {
                    let (w, b) = (of(i, 0).unwrap(), of(i, 1));
                    crate::conv2d(&geometry(i, s), input, &w, b.as_deref(), &mut out).unwrap();
                }
                Op::Linear { outputs } => {
                    let (w, b) = (of(i, 0).unwrap(), of(i, 1).unwrap());
                    for (x, out) in input.chunks(input.len() / n).zip(out.chunks_mut(outputs)) {
                        for (o, out) in out.iter_mut().enumerate() {
                            let row = &w[o * x.len()..][..x.len()];
                            *out = b[o] + row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                        }
                    }
                }
                Op::Norm { eps } => {
                    let (norm, statistics) = norm(i, eps, s);
                    let (g, b) = (of(i, 0).unwrap(), of(i, 1).unwrap());
                    norm.forward(input, &g, &b, &statistics, &mut out).unwrap();
                }
                Op::BatchNorm { eps } => {
                    let (norm, statistics, g, b) = batch_norm(i, eps, s, input);
                    norm.forward(input, &g, &b, &statistics, &mut out).unwrap();
                }
                Op::Noise => {
                    let (theta, n) = (of(i, 0).unwrap(), noise(i));
                    let each = n[0].len() / theta.len();
                    for (e, out) in out.iter_mut().enumerate() {
                        let (image, pixel) = (e / n[0].len(), e % n[0].len());
                        *out = input[e] + theta[pixel / each] * n[image][pixel];
                    }
                }
                Op::Relu => crate::relu(input, &mut out).unwrap(),
                Op::Add { other } => {
                    let other = &values[other];
                    for ((out, a), b) in out.iter_mut().zip(input).zip(other) {
                        *out = a + b;
                    }
                }
                Op::MaxPool { .. } => {
                    winners[i] = vec![0; out.len()];
                    crate::max_pool2d(&pool(s), input, &mut out, &mut winners[i]).unwrap();
                }
                Op::AvgPool { .. } | Op::GlobalAvgPool => {
                    crate::avg_pool2d(&pool(s), true, input, &mut out).unwrap()
                }
            }
            values.push(out);
        }
        let mut grads: Vec<Vec<f64>> = (0..values.len()).map(|v| vec![0.0; size(v)]).collect();
        grads[steps.len()] = wide(grad_out);
        let mut result = vec![[None, None]; steps.len()];
        for (i, s) in steps.iter().enumerate().rev() {
            let (g, x) = (grads[i + 1].clone(), &values[s.input]);
            let mut gx = vec![0f64; x.len()];
            match s.op {
                Op::Conv { outputs, .. } => {
                    let (conv, w) = (geometry(i, s), of(i, 0).unwrap());
                    crate::conv2d_input_grad(&conv, &g, &w, &mut gx).unwrap();
                    let (mut gw, mut gb) = (vec![0.0; w.len()], vec![0.0; outputs]);
                    crate::conv2d_weight_grad(&conv, x, &g, &mut gw).unwrap();
                    crate::conv2d_bias_grad(&conv, &g, &mut gb).unwrap();
                    result[i] = [Some(gw), Some(gb)];
                }
                Op::Linear { outputs } => {
                    let w = of(i, 0).unwrap();
                    let width = x.len() / n;
                    let (mut gw, mut gb) = (vec![0.0; w.len()], vec![0.0; outputs]);
                    for ((g, x), gx) in g
                        .chunks(outputs)
                        .zip(x.chunks(width))
                        .zip(gx.chunks_mut(width))
                    {
                        for (o, g) in g.iter().enumerate() {
                            gb[o] += g;
                            for k in 0..width {
                                gx[k] += g * w[o * width + k];
                                gw[o * width + k] += g * x[k];
                            }
                        }
                    }
                    result[i] = [Some(gw), Some(gb)];
                }
                Op::Norm { eps } => {
                    let (norm, statistics) = norm(i, eps, s);
                    let grads = BatchNormGrads {
                        x: Some(&mut gx[..]),
                        gamma: None,
                        beta: None,
                    };
                    norm.eval_grad(x, &g, &of(i, 0).unwrap(), &statistics, grads)
                        .unwrap();
                }
                Op::BatchNorm { eps } => {
                    let (norm, statistics, gamma, _) = batch_norm(i, eps, s, x);
                    let (mut gg, mut gb) = (vec![0.0; gamma.len()], vec![0.0; gamma.len()]);
                    let grads = BatchNormGrads {
                        x: Some(&mut gx[..]),
                        gamma: Some(&mut gg[..]),
                        beta: Some(&mut gb[..]),
                    };
                    norm.train_grad(x, &g, &gamma, &statistics, grads).unwrap();
                    result[i] = [Some(gg), Some(gb)];
                }
                Op::Noise => {
                    gx.copy_from_slice(&g);
                    let (mut gt, n) = (vec![0.0; of(i, 0).unwrap().len()], noise(i));
                    let each = n[0].len() / gt.len();
                    for (e, g) in g.iter().enumerate() {
                        let (image, pixel) = (e / n[0].len(), e % n[0].len());
                        gt[pixel / each] += g * n[image][pixel];
                    }
                    result[i] = [Some(gt), None];
                }
                Op::Relu => crate::relu_grad(x, &g, &mut gx).unwrap(),
                Op::Add { other } => {
                    gx.copy_from_slice(&g);
                    grads[other].iter_mut().zip(&g).for_each(|(a, b)| *a += b);
                }
                Op::MaxPool { .. } => {
                    crate::max_pool2d_grad(&pool(s), &winners[i], &g, &mut gx).unwrap();
                }
                Op::AvgPool { .. } | Op::GlobalAvgPool => {
                    crate::avg_pool2d_grad(&pool(s), true, &g, &mut gx).unwrap();
                }
            }
            grads[s.input]
                .iter_mut()
                .zip(&gx)
                .for_each(|(a, b)| *a += b);
        }
        Reference {
            out: values.swap_remove(steps.len()),
            images: grads.swap_remove(0),
            parameters: result,
        }
    }

    fn everything(network: &Network, images: bool) -> Want {
        let parameters = vec![network.has_parameter_gradients(); network.steps.len()];
        Want { images, parameters }
    }

    /// Result, gradient by the images, gradients by the parameters.
    fn run(network: &Network, parameters: &[Owned], x: &[f32], grad: &[f32]) -> Vec<Vec<f32>> {
        run_from(0, network, parameters, x, grad)
    }

    /// [`run`] of images that are numbered from `first` on.
    fn run_from(
        first: usize,
        network: &Network,
        parameters: &[Owned],
        x: &[f32],
        grad: &[f32],
    ) -> Vec<Vec<f32>> {
        let prepared = network.prepare(&borrowed(parameters), true).unwrap();
        let Output {
            values: out, trace, ..
        } = forward(network, &prepared, x, first, true);
        let want = everything(network, true);
        let grads = network
            .backward(&prepared, &trace.unwrap(), grad, &want)
            .unwrap();
        let mut all = vec![out, grads.images.unwrap()];
        all.extend(
            grads
                .parameters
                .into_iter()
                .flatten()
                .map(Option::unwrap_or_default),
        );
        all
    }

    fn inputs(network: &Network, n: usize) -> [Vec<f32>; 2] {
        let out = network.planes[network.last()].pixels();
        [data(1, n * network.planes[0].pixels()), data(2, n * out)]
    }

    #[test]
    fn equals_step_by_step_kernels_in_double_precision() {
        for (image, steps) in networks(true) {
            let parameters = parameters(image, &steps);
            let network = Network::new(image, &steps).unwrap();
            for n in [1, 5, 16, 19, 35] {
                if n == 1 && steps.iter().any(|s| s.op == BATCH_NORM) {
                    // One image: a value at the edge of a ReLU decides in either precision.
                    continue;
                }
                let [x, grad] = inputs(&network, n);
                // Norms over the batch take most of a gradient away; its rounding stays.
                let trained = steps.iter().any(|s| s.op == BATCH_NORM);
                let tolerance = if trained { 1e-4 } else { 3e-6 };
                let expected = reference((&image, &steps), &parameters, &x, &grad);
                // Twice: the second time on used buffers.
                for _ in 0..2 {
                    let actual = run(&network, &parameters, &x, &grad);
                    let case = (image, steps.len(), n);
                    assert_close(&actual[0], &expected.out, 3e-6, &case);
                    assert_close(&actual[1], &expected.images, tolerance, &case);
                    if !network.has_parameter_gradients() {
                        continue;
                    }
                    let given = parameters.iter().flat_map(|owned| &owned[..2]);
                    let pairs = actual[2..].iter().zip(expected.parameters.as_flattened());
                    for ((actual, expected), given) in pairs.zip(given) {
                        if let (Some(expected), Some(_)) = (expected, given) {
                            assert_close(actual, expected, tolerance, &case);
                        }
                    }
                }
                let prepared = network.prepare(&borrowed(&parameters), false).unwrap();
                let Output {
                    values: out, trace, ..
                } = forward(&network, &prepared, &x, 0, false);
                assert!(trace.is_none());
                assert_same_bits(&out, &run(&network, &parameters, &x, &grad)[0]);
            }
        }
    }

    #[test]
    fn all_instruction_sets_give_the_same_bits() {
        for (image, steps) in networks(true) {
            let parameters = parameters(image, &steps);
            let mut network = Network::new(image, &steps).unwrap();
            let [x, grad] = inputs(&network, 18);
            let mut results = Vec::new();
            for level in Level::available() {
                network.level = level;
                results.push(run(&network, &parameters, &x, &grad).concat());
            }
            for other in &results[1..] {
                assert_same_bits(other, &results[0]);
            }
        }
    }

    #[test]
    fn thread_count_changes_nothing_and_neighbours_change_no_image() {
        for (image, steps) in networks(true) {
            let parameters = parameters(image, &steps);
            let network = Network::new(image, &steps).unwrap();
            let [x, grad] = inputs(&network, 40);
            same_for_threads(|| run(&network, &parameters, &x, &grad).concat());
            let all = run(&network, &parameters, &x, &grad);
            let alone = network.prepare_alone(&borrowed(&parameters), true).unwrap();
            let out = forward(&network, &alone, &x, 0, true);
            let (trace, want) = (out.trace.unwrap(), everything(&network, true));
            let grads = network.backward(&alone, &trace, &grad, &want).unwrap();
            assert_same_bits(&out.values, &all[0]);
            assert_same_bits(&grads.images.unwrap(), &all[1]);
            if steps.iter().any(|s| matches!(s.op, Op::BatchNorm { .. })) {
                continue;
            }
            for (first, count) in [(0, 1), (3, 17), (39, 1)] {
                let cut = |v: &[f32]| v[first * v.len() / 40..][..count * v.len() / 40].to_vec();
                let part = run_from(first, &network, &parameters, &cut(&x), &cut(&grad));
                assert_same_bits(&part[0], &cut(&all[0]));
                assert_same_bits(&part[1], &cut(&all[1]));
            }
        }
    }

    #[test]
    fn computes_what_is_wanted() {
        let (image, steps) = networks(false).swap_remove(0);
        let parameters = parameters(image, &steps);
        let network = Network::new(image, &steps).unwrap();
        let [x, grad] = inputs(&network, 3);
        let prepared = network.prepare(&borrowed(&parameters), true).unwrap();
        let gradients = |want: &Want| {
            let trace = network.forward(&prepared, &x, true).unwrap().trace.unwrap();
            network.backward(&prepared, &trace, &grad, want).unwrap()
        };
        let all = gradients(&everything(&network, true));
        let mut want = everything(&network, false);
        want.parameters[2] = false;
        let some = gradients(&want);
        assert!(some.images.is_none() && some.parameters[2][0].is_none());
        assert_eq!(some.parameters[0], all.parameters[0]);
        assert_eq!(some.parameters[6], all.parameters[6]);
        want.images = true;
        want.parameters.fill(false);
        let images = gradients(&want);
        assert_eq!(images.images, all.images);
        assert!(images.parameters.as_flattened().iter().all(Option::is_none));
    }

    #[test]
    fn a_relu_is_shut_at_zero_and_lets_nan_through() {
        let network = Network::new([1, 2, 2], &[step(Op::Relu, 0)]).unwrap();
        let prepared = network.prepare(&[[None; 4]], true).unwrap();
        let x = [-1.0, 0.0, 2.0, f32::NAN];
        let out = network.forward(&prepared, &x, true).unwrap();
        assert_eq!(out.values[..3], [0.0, 0.0, 2.0]);
        assert!(out.values[3].is_nan());
        let want = everything(&network, true);
        let grads = network.backward(&prepared, &out.trace.unwrap(), &[5.0; 4], &want);
        let mut expected = [0f32; 4];
        crate::relu_grad(&x, &[5.0; 4], &mut expected).unwrap();
        assert_eq!(grads.unwrap().images.unwrap(), expected);
        assert_eq!(expected, [0.0, 0.0, 5.0, 5.0]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let text = |steps: &[Step]| Network::new([1, 4, 4], steps).unwrap_err().to_string();
        assert!(text(&[]).contains("0 steps"));
        assert!(text(&[conv(2, 7, 1, 1, 0)]).contains("padded image"));
        assert!(text(&[step(Op::Relu, 1)]).contains("earlier value"));
        assert!(text(&[step(Op::Add { other: 3 }, 0)]).contains("one shape"));
        assert!(text(&[max_pool(2, 0, 0, 0)]).contains("at least 1"));
        assert!(text(&[step(Op::Linear { outputs: 0 }, 0)]).contains("outputs"));
        let network = Network::new([1, 4, 4], &[conv(2, 3, 1, 1, 0)]).unwrap();
        assert!(network.prepare(&[], true).is_err());
        let short = [Some(&[0f32; 3][..]), None, None, None];
        let error = network.prepare(&[short], true).unwrap_err().to_string();
        assert!(error.contains("18"), "{error}");
        let weight = [Some(&[0f32; 18][..]), None, None, None];
        let prepared = network.prepare(&[weight], true).unwrap();
        assert!(network.forward(&prepared, &[], false).is_err());
        assert!(network.forward(&prepared, &[0.0; 20], false).is_err());
        let network = Network::new([2, 4, 4], &[step(Op::Noise, 0)]).unwrap();
        let theta = |n| vec![[Some(vec![0f32; n]), None, None, None]];
        let prepared = |n| network.prepare(&borrowed(&theta(n)), true);
        assert!(prepared(3).unwrap_err().to_string().contains("theta"));
        let text = |keys: &[Option<&[Key]>]| {
            let prepared = prepared(2).unwrap();
            let out = network.forward_noisy(&prepared, &[0.0; 64], keys, false);
            out.unwrap_err().to_string()
        };
        assert!(text(&[]).contains("keys"));
        assert!(text(&[Some(&[[0; 8]])]).contains("keys"));
    }
}
