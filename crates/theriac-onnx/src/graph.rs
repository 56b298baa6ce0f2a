//! From the nodes of a file to the steps of a network.

use std::collections::{BTreeSet, HashMap, HashSet};

use candle_core::Tensor;
use theriac::{Result, Rng, Run};
use theriac_nn::{Layer, Network};

use crate::constant::{Constant, Ints, Place, constant, room};
use crate::error::{Error, Reason, Said, refuse, require};
use crate::node::{Node, called};
use crate::ops;
use crate::proto::{Dimension, GraphProto, ModelProto, NodeProto, ValueInfoProto, data_type};

/// A value of the graph.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Flow(Flow),
    Float(Tensor),
    Ints(Ints),
}

impl From<Constant> for Value {
    fn from(constant: Constant) -> Self {
        match constant {
            Constant::Float(tensor) => Self::Float(tensor),
            Constant::Ints(ints) => Self::Ints(ints),
        }
    }
}

/// A value that follows from the image.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// Where the network computes it.
    pub(crate) at: theriac_nn::Value,
    /// Its value for one image: (1, ...).
    pub(crate) sample: Tensor,
    /// Whether it is (N, features), flattened from channels of more than one pixel: a network that
    /// runs as one operation still keeps it as (N, C, H, W).
    pub(crate) folded: bool,
}

impl Flow {
    pub(crate) fn dims(&self) -> &[usize] {
        self.sample.dims()
    }

    /// Whether layers of a network run on it: images, or features.
    pub(crate) fn is_plain(&self) -> bool {
        [2, 4].contains(&self.dims().len())
    }
}

/// The network so far.
pub(crate) struct Builder<'a> {
    pub(crate) net: Network,
    pub(crate) place: Place<'a>,
    run: Run,
}

impl Builder<'_> {
    /// A step with its value for one image.
    pub(crate) fn step(
        &mut self,
        sample: Tensor,
        folded: bool,
        add: impl FnOnce(&mut Network) -> theriac_nn::Value,
    ) -> Said<Value> {
        let dims = sample.dims();
        require!(
            dims.first() == Some(&1) && !dims.contains(&0),
            "one image gives a value of shape {dims:?}; the first dimension must stay that of the \
             batch"
        );
        let at = add(&mut self.net);
        // The sample is a value of its own, whatever it was computed from.
        let sample = sample.detach();
        Ok(Value::Flow(Flow { at, sample, folded }))
    }

    /// A layer on a value.
    pub(crate) fn layer(&mut self, x: &Flow, layer: impl Layer + 'static) -> Said<Value> {
        let y = layer.forward(&x.sample, &self.run.eval(&[0]))?;
        // A fully connected layer is the end of folded values.
        let folded = x.folded && y.dims() == x.dims();
        self.step(y, folded, |net| net.layer(x.at, Box::new(layer)))
    }

    /// A function of values, whose gradients must be right. Of constants it is a constant.
    pub(crate) fn join(
        &mut self,
        inputs: &[&Value],
        f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Said<Value> {
        let mut samples = Vec::new();
        let mut constants = Vec::new();
        let mut flows = Vec::new();
        for input in inputs {
            match input {
                Value::Flow(flow) => {
                    flows.push(flow.at);
                    constants.push(None);
                    samples.push(flow.sample.clone());
                }
                Value::Float(tensor) => {
                    constants.push(Some(tensor.clone()));
                    samples.push(tensor.clone());
                }
                Value::Ints(_) => refuse!("it computes with whole numbers, which is not supported"),
            }
        }
        let y = f(&samples)?;
        let Some((&first, more)) = flows.split_first() else {
            return Ok(Value::Float(y.detach()));
        };
        self.step(y, false, |net| {
            net.join(first, more, move |values| {
                let mut values = values.iter();
                let all: Option<Vec<Tensor>> = constants
                    .iter()
                    .map(|constant| constant.as_ref().or_else(|| values.next()).cloned())
                    .collect();
                let all = all.ok_or(theriac::Error::Empty {
                    what: "the inputs of a node",
                })?;
                f(&all)
            })
        })
    }

    /// A function of one value.
    pub(crate) fn map(
        &mut self,
        x: &Value,
        f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Said<Value> {
        self.join(&[x], move |x| f(&x[0]))
    }
}

/// What came of a graph.
pub(crate) struct Built {
    pub(crate) net: Network,
    pub(crate) image: [usize; 3],
    pub(crate) notes: Vec<String>,
    /// One image (1, ...) and its logits (1, classes).
    pub(crate) probe: (Tensor, Tensor),
}

/// What a file says of itself, looked up before anything is computed.
pub(crate) struct Plan<'a> {
    pub(crate) file: &'a str,
    pub(crate) graph: &'a GraphProto,
    pub(crate) opset: i64,
    pub(crate) input: &'a ValueInfoProto,
    pub(crate) output: String,
    /// The nodes on the way to the output.
    pub(crate) nodes: Vec<&'a NodeProto>,
}

/// Oldest version of the operators: the first whose broadcasting is numpy's.
const OLDEST: i64 = 7;

impl<'a> Plan<'a> {
    pub(crate) fn new(
        file: &'a str,
        model: &'a ModelProto,
        output: Option<&str>,
    ) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Graph {
            file: file.to_owned(),
            reason,
        };
        let graph = model.graph.as_ref();
        let Some(graph) = graph.filter(|graph| !graph.node.is_empty()) else {
            let reason = "it holds no graph".to_owned();
            let file = file.to_owned();
            return Err(Error::Format { file, reason });
        };
        let ours = |domain: &str| ["", "ai.onnx"].contains(&domain);
        let opset = model.opset_import.iter().find(|set| ours(&set.domain));
        let opset = opset.map_or(1, |set| set.version);
        if opset < OLDEST {
            return Err(wrong(format!(
                "it is written for version {opset} of ONNX's operators; {OLDEST} is the oldest \
                 here: convert it with onnx.version_converter"
            )));
        }
        let output = choose_output(graph, output).map_err(|reason| wrong(reason.0))?;
        let nodes = needed(graph, &output);
        check_operations(file, &nodes)?;
        // Older files list their constants among the inputs.
        let constants: HashSet<&str> = graph.initializer.iter().map(|t| &t.name[..]).collect();
        let read: HashSet<&str> = nodes
            .iter()
            .flat_map(|node| &node.input)
            .map(|s| &s[..])
            .collect();
        let free =
            |v: &&ValueInfoProto| !constants.contains(&v.name[..]) && read.contains(&v.name[..]);
        let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(free).collect();
        let [input] = inputs[..] else {
            let names: Vec<&String> = inputs.iter().map(|v| &v.name).collect();
            return Err(wrong(format!(
                "it reads {} inputs, {names:?}; a classifier reads one, the image",
                names.len()
            )));
        };
        Ok(Self {
            file,
            graph,
            opset,
            input,
            output,
            nodes,
        })
    }

    /// The network. `image` is (C, H, W) where the file leaves it open.
    pub(crate) fn build(
        &self,
        image: Option<[usize; 3]>,
        place: Place<'_>,
    ) -> Result<Built, Error> {
        let wrong = |reason: Reason| Error::Graph {
            file: self.file.to_owned(),
            reason: reason.0,
        };
        let turned = self.turns_image(&place);
        let input = Input::of(self.input, turned, image).map_err(wrong)?;
        let run = Run::new(0, &place.device);
        let mut builder = Builder {
            net: Network::new(0), // how many follows at the end
            place,
            run,
        };
        let (probe, value) = input.enter(&mut builder).map_err(wrong)?;
        let mut values: HashMap<&str, Value> = HashMap::new();
        values.insert(&self.input.name, value);
        let mut notes = Vec::new();
        for proto in &self.nodes {
            let at = |reason: Reason| Error::Node {
                file: self.file.to_owned(),
                node: called(proto),
                reason: reason.0,
            };
            let inputs = proto.input.iter().map(|name| {
                if name.is_empty() {
                    return Ok(None);
                }
                if !values.contains_key(&name[..]) {
                    let value = self.constant(name, &builder.place)?;
                    values.insert(name, value);
                }
                Ok(values.get(&name[..]).cloned())
            });
            let inputs: Said<Vec<Option<Value>>> = inputs.collect();
            let node = Node {
                proto,
                opset: self.opset,
                inputs: inputs.map_err(at)?,
                batch: input.batch,
            };
            let results = if self.is_last_softmax(proto) {
                let note = format!("{} is left out: logits come before it", called(proto));
                tracing::info!("{}: {note}", self.file);
                notes.push(note);
                node.input(0).map(|x| vec![x.clone()])
            } else {
                ops::run(&mut builder, &node)
            };
            for (name, value) in proto.output.iter().zip(results.map_err(at)?) {
                values.insert(name, value);
            }
        }
        let (net, logits) = logits(builder, values.get(&self.output[..])).map_err(wrong)?;
        let classes = logits.dims()[1];
        Ok(Built {
            net: net.with_classes(classes),
            image: input.image,
            notes,
            probe: (probe, logits),
        })
    }

    /// A value that no node has given: a constant of the file.
    fn constant(&self, name: &str, place: &Place<'_>) -> Said<Value> {
        match self.graph.initializer.iter().find(|t| t.name == name) {
            Some(tensor) => Ok(constant(tensor, place)?.into()),
            None => {
                refuse!("it reads {name:?}, which no node before it gives; export the model again")
            }
        }
    }

    /// Whether the first thing that happens to an image is that its channels are moved from the
    /// last place to the first, maybe after arithmetic.
    fn turns_image(&self, place: &Place<'_>) -> bool {
        const ARITHMETIC: [&str; 6] = ["Add", "Sub", "Mul", "Div", "Cast", "Identity"];
        let mut name = &self.input.name;
        for node in &self.nodes {
            if !node.input.contains(name) {
                continue;
            }
            let ints = |name: &str| node.attribute.iter().find(|a| a.name == name);
            match (&node.op_type[..], node.output.first()) {
                ("Transpose", _) => return ints("perm").is_some_and(|a| a.ints == [0, 3, 1, 2]),
                // Of one channel, this does the same.
                ("Reshape", _) => {
                    let target = node.input.get(1).map(|name| self.constant(name, place));
                    let one = |values: &[Option<i64>]| values.len() == 4 && values[1] == Some(1);
                    return match target {
                        Some(Ok(Value::Ints(target))) => one(&target.values),
                        _ => false,
                    };
                }
                (op, Some(next)) if ARITHMETIC.contains(&op) => name = next,
                _ => return false,
            }
        }
        false
    }

    /// Whether a node turns logits into probabilities, and nothing but their shape changes after.
    fn is_last_softmax(&self, node: &NodeProto) -> bool {
        const SHAPES: [&str; 6] = [
            "Identity", "Reshape", "Flatten", "Squeeze", "Cast", "Dropout",
        ];
        let mut name = match (&node.op_type[..], node.output.first()) {
            ("Softmax", Some(name)) => name,
            _ => return false,
        };
        // Each turn goes one node further, so there are no more turns than nodes.
        for _ in 0..=self.nodes.len() {
            let mut readers = self.nodes.iter().filter(|node| node.input.contains(name));
            match (*name == self.output, readers.next(), readers.next()) {
                (true, None, _) => return true,
                (false, Some(only), None) if SHAPES.contains(&&only.op_type[..]) => {
                    let Some(next) = only.output.first() else {
                        return false;
                    };
                    name = next;
                }
                _ => return false,
            }
        }
        false
    }
}

/// The output that was asked for, or the only one.
fn choose_output(graph: &GraphProto, wanted: Option<&str>) -> Said<String> {
    let names: Vec<&str> = graph.output.iter().map(|output| &output.name[..]).collect();
    let chosen = match (wanted, &names[..]) {
        (Some(wanted), _) => wanted,
        (None, [only]) => only,
        (None, _) => refuse!("it has the outputs {names:?}; say which one holds the logits"),
    };
    let given = graph
        .node
        .iter()
        .any(|node| node.output.iter().any(|name| name == chosen));
    require!(given, "no node gives {chosen:?}; its outputs are {names:?}");
    Ok(chosen.to_owned())
}

/// The nodes on the way to a value, in the file's order.
fn needed<'a>(graph: &'a GraphProto, output: &str) -> Vec<&'a NodeProto> {
    let mut wanted: HashSet<&str> = HashSet::from([output]);
    let mut nodes = Vec::new();
    for node in graph.node.iter().rev() {
        if node
            .output
            .iter()
            .any(|name| !name.is_empty() && wanted.contains(&name[..]))
        {
            wanted.extend(node.input.iter().map(|name| &name[..]));
            nodes.push(node);
        }
    }
    nodes.reverse();
    nodes
}

fn check_operations(file: &str, nodes: &[&NodeProto]) -> Result<(), Error> {
    let file = || file.to_owned();
    if let Some(node) = nodes.iter().find(|node| ops::is_quantised(&node.op_type)) {
        return Err(Error::Quantised {
            file: file(),
            node: called(node),
        });
    }
    let known = |node: &NodeProto| {
        ["", "ai.onnx"].contains(&&node.domain[..]) && ops::is_known(&node.op_type)
    };
    let mut unknown = nodes.iter().filter(|node| !known(node));
    let Some(first) = unknown.next() else {
        return Ok(());
    };
    let more: BTreeSet<&String> = unknown.map(|node| &node.op_type).collect();
    let more = more.into_iter().filter(|op| **op != first.op_type);
    Err(Error::Operation {
        file: file(),
        node: called(first),
        more: more.cloned().collect(),
    })
}

/// The image, as the file takes it.
struct Input {
    image: [usize; 3],
    batch: Option<usize>,
    channels_last: bool,
}

impl Input {
    fn of(input: &ValueInfoProto, turned: bool, given: Option<[usize; 3]>) -> Said<Self> {
        let name = &input.name;
        let tensor = input.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
        let Some(tensor) = tensor else {
            refuse!("its input {name:?} is no tensor; a classifier reads images (N, C, H, W)");
        };
        require!(
            data_type::is_float(tensor.elem_type),
            "its input {name:?} is {}; a classifier to attack reads floats: export it without the \
             conversion from bytes",
            data_type::name(tensor.elem_type)
        );
        let size = |dim: &crate::proto::DimensionProto| match &dim.value {
            Some(Dimension::Value(v)) if *v > 0 => Some(*v as usize),
            _ => None,
        };
        let shape = tensor.shape.as_ref();
        let dims: Vec<Option<usize>> = match shape {
            Some(shape) => shape.dim.iter().map(size).collect(),
            None => vec![None; 4],
        };
        let [batch, a, b, c] = dims[..] else {
            refuse!(
                "its input {name:?} has {} dimensions; a classifier reads images (N, C, H, W)",
                dims.len()
            );
        };
        let colours = |n: Option<usize>| matches!(n, Some(1 | 3));
        let channels_last = turned && colours(c) && !colours(a);
        let stated = if channels_last { [c, a, b] } else { [a, b, c] };
        let mut image = [0; 3];
        for (i, stated) in stated.into_iter().enumerate() {
            image[i] = match (stated, given.map(|given| given[i])) {
                (Some(n), None) | (None, Some(n)) => n,
                (Some(n), Some(m)) if n == m => n,
                (Some(_), Some(_)) => refuse!(
                    "its input {name:?} takes images of (C, H, W) = {}, not {:?}: choose images of \
                     that size",
                    spelt(&stated_of(&dims, channels_last)),
                    given.unwrap_or_default()
                ),
                (None, None) => refuse!(
                    "its input {name:?} leaves the size of images open, {}: give (C, H, W)",
                    spelt(&stated_of(&dims, channels_last))
                ),
            };
        }
        require!(!image.contains(&0), "images of shape {image:?} are empty");
        room(&image)?;
        Ok(Self {
            image,
            batch,
            channels_last,
        })
    }

    /// The image as the first value of the graph, and one image of noise.
    fn enter(&self, builder: &mut Builder<'_>) -> Said<(Tensor, Value)> {
        let [c, h, w] = self.image;
        let noise = Rng::new(0).uniform("onnx", 0, c * h * w);
        let place = &builder.place;
        let probe = Tensor::from_vec(noise, (1, c, h, w), &place.device)?.to_dtype(place.dtype)?;
        let image = Value::Flow(Flow {
            at: builder.net.image(),
            sample: probe.clone(),
            folded: false,
        });
        let (expected, last) = (self.image, self.channels_last);
        // Sizes that follow from the image are fixed from here on.
        let entered = builder.map(&image, move |x| {
            if x.rank() != 4 || x.dims()[1..] != expected {
                return Err(theriac::Error::Shape {
                    what: "image",
                    got: x.dims().to_vec(),
                    expected: format!("(N, C, H, W) with (C, H, W) = {expected:?}"),
                });
            }
            Ok(match last {
                true => x.permute((0, 2, 3, 1))?,
                false => x.clone(),
            })
        })?;
        Ok((probe, entered))
    }
}

fn stated_of(dims: &[Option<usize>], channels_last: bool) -> Vec<Option<usize>> {
    match (channels_last, dims) {
        (true, [_, h, w, c]) => vec![*c, *h, *w],
        (_, [_, rest @ ..]) => rest.to_vec(),
        _ => Vec::new(),
    }
}

fn spelt(dims: &[Option<usize>]) -> String {
    let spelt = dims
        .iter()
        .map(|d| d.map_or("?".to_owned(), |d| d.to_string()));
    format!("({})", spelt.collect::<Vec<_>>().join(", "))
}

/// The network with (N, classes) as its last value, and the logits of the probe.
fn logits(mut builder: Builder<'_>, output: Option<&Value>) -> Said<(Network, Tensor)> {
    let Some(Value::Flow(flow)) = output else {
        refuse!("its output does not follow from the image: it is no classifier");
    };
    let (dims, value) = (flow.dims().to_vec(), Value::Flow(flow.clone()));
    let flat = match dims[..] {
        [_, classes, ref ones @ ..] if classes > 1 && ones.iter().all(|d| *d == 1) => {
            builder.map(&value, |x| Ok(x.flatten_from(1)?))?
        }
        _ => refuse!(
            "its output has shape {} for N images; a classifier gives (N, classes) with at least 2 \
             classes, before any argmax",
            dims.iter()
                .skip(1)
                .fold("(N".to_owned(), |s, d| format!("{s}, {d}"))
                + ")"
        ),
    };
    match flat {
        Value::Flow(flow) => Ok((builder.net, flow.sample)),
        _ => refuse!("its output does not follow from the image: it is no classifier"),
    }
}
