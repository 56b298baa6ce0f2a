//! A file as a classifier.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use prost::Message as _;
use theriac::{Classifier, Pass, Pixels, Result, Rng, Run};
use theriac_nn::Network;

use crate::constant::Place;
use crate::error::{Error, Said, require};
use crate::graph::{Built, Plan};
use crate::proto::{Dimension, ModelProto, ValueInfoProto, data_type};

/// How a file is read.
#[derive(Clone, Debug)]
pub struct Options {
    /// The size of images, (C, H, W), where the file leaves it open.
    pub image: Option<[usize; 3]>,
    /// The value that holds the logits, if the file has more than one output.
    pub output: Option<String>,
    /// Element type of all computations.
    pub dtype: DType,
    /// Where they run.
    pub device: Device,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            image: None,
            output: None,
            dtype: DType::F32,
            device: Device::Cpu,
        }
    }
}

/// A classifier from an ONNX file, for images (N, C, H, W).
///
/// Its weights are constants, and it is in evaluation mode whatever the pass says.
///
/// ```no_run
/// use std::path::Path;
/// use theriac::Classifier;
/// use theriac_onnx::{OnnxModel, Options};
///
/// let model = OnnxModel::open(Path::new("model.onnx"), &Options::default())?;
/// println!("{:?} to {} classes", model.image, model.classes());
/// # Ok::<(), theriac_onnx::Error>(())
/// ```
pub struct OnnxModel {
    /// The network: to put it behind its normalisation, or into another program.
    pub network: Network,
    /// The images that it takes: (C, H, W).
    pub image: [usize; 3],
    /// What was left out of the file.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for OnnxModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxModel")
            .field("image", &self.image)
            .field("classes", &self.network.classes())
            .field("notes", &self.notes)
            .finish_non_exhaustive()
    }
}

impl OnnxModel {
    /// Reads a file, and files beside it that hold its weights.
    ///
    /// # Errors
    /// Names the file, the node, the value and the remedy.
    pub fn open(path: &Path, options: &Options) -> Result<Self, Error> {
        let file = path.display().to_string();
        let bytes = read(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::build(&file, &bytes, Some(folder), options)
    }

    /// Reads the bytes of a file, called `file` in errors.
    ///
    /// # Errors
    /// Those of [`OnnxModel::open`].
    pub fn from_bytes(file: &str, bytes: &[u8], options: &Options) -> Result<Self, Error> {
        Self::build(file, bytes, None, options)
    }

    fn build(
        file: &str,
        bytes: &[u8],
        folder: Option<&Path>,
        options: &Options,
    ) -> Result<Self, Error> {
        let model = decode(file, bytes)?;
        let plan = Plan::new(file, &model, options.output.as_deref())?;
        let place = Place {
            dtype: options.dtype,
            device: options.device.clone(),
            folder,
        };
        let built = plan.build(options.image, place)?;
        check(&built).map_err(|reason| Error::Graph {
            file: file.to_owned(),
            reason: reason.0,
        })?;
        Ok(Self {
            network: built.net,
            image: built.image,
            notes: built.notes,
        })
    }
}

impl Classifier for OnnxModel {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        self.network.logits(x, pass)
    }

    fn classes(&self) -> usize {
        self.network.classes()
    }
}

/// Largest difference between the network and its nodes one by one, by the largest logit.
const ALIKE: f64 = 1e-2;

/// An image's logits must be those that its nodes gave one by one, beside another image too.
fn check(built: &Built) -> Said<()> {
    let (image, logits) = &built.probe;
    let noise = Rng::new(1).uniform("onnx", 1, image.elem_count());
    let other = Tensor::from_vec(noise, image.shape(), image.device())?;
    let both = Tensor::cat(&[&other.to_dtype(image.dtype())?, image], 0)?;
    let run = Run::new(0, image.device());
    let together = built.net.forward(&both, &run.eval(&[0, 1]))?;
    let values = |t: &Tensor| t.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
    let (alone, together) = (values(logits)?, values(&together.narrow(0, 1, 1)?)?);
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0f64, |m, v| m.max(v.abs()));
    let scale = largest(&mut alone.iter().copied());
    let apart = largest(&mut alone.iter().zip(&together).map(|(a, b)| a - b));
    // What is not finite is refused where it is used, with the images named.
    require!(
        !scale.is_finite() || apart <= ALIKE * scale,
        "the logits of an image change by {apart} with another image beside it: the graph mixes the \
         images of a batch"
    );
    Ok(())
}

/// What a file holds, whether or not it can be attacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The program that wrote it.
    pub producer: String,
    /// Version of ONNX's operators.
    pub opset: Option<i64>,
    /// Name, element type and shape of what it reads.
    pub inputs: Vec<String>,
    /// Name, element type and shape of what it gives.
    pub outputs: Vec<String>,
    /// How often each operation stands in it.
    pub operations: BTreeMap<String, usize>,
    /// Constants with their shapes.
    pub constants: Vec<(String, Vec<i64>)>,
}

impl Summary {
    /// Of a file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let model = decode(&path.display().to_string(), &read(path)?)?;
        let graph = model.graph.unwrap_or_default();
        let constants: Vec<(String, Vec<i64>)> = graph
            .initializer
            .into_iter()
            .map(|t| (t.name, t.dims))
            .collect();
        let is_constant = |name: &str| constants.iter().any(|(constant, _)| constant == name);
        let inputs = graph.input.iter().filter(|value| !is_constant(&value.name));
        let mut operations = BTreeMap::new();
        for node in &graph.node {
            let domain = match &node.domain[..] {
                "" | "ai.onnx" => String::new(),
                domain => format!("{domain}."),
            };
            *operations.entry(domain + &node.op_type).or_default() += 1;
        }
        let ours = |domain: &str| ["", "ai.onnx"].contains(&domain);
        let opset = model.opset_import.iter().find(|set| ours(&set.domain));
        let producer = format!("{} {}", model.producer_name, model.producer_version);
        Ok(Self {
            producer: producer.trim().to_owned(),
            opset: opset.map(|set| set.version),
            inputs: inputs.map(spelt).collect(),
            outputs: graph.output.iter().map(spelt).collect(),
            operations,
            constants,
        })
    }
}

/// `name: float32 (N, 3, 224, 224)`.
fn spelt(value: &ValueInfoProto) -> String {
    let Some(tensor) = value.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()) else {
        return format!("{}: no tensor", value.name);
    };
    let size = |dim: &crate::proto::DimensionProto| match &dim.value {
        Some(Dimension::Value(v)) => v.to_string(),
        Some(Dimension::Param(name)) => name.clone(),
        None => "?".to_owned(),
    };
    let shape = match &tensor.shape {
        Some(shape) => shape.dim.iter().map(size).collect::<Vec<_>>().join(", "),
        None => "...".to_owned(),
    };
    format!(
        "{}: {} ({shape})",
        value.name,
        data_type::name(tensor.elem_type)
    )
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Io {
        file: path.display().to_string(),
        source,
    })
}

fn decode(file: &str, bytes: &[u8]) -> Result<ModelProto, Error> {
    ModelProto::decode(bytes).map_err(|error| Error::Format {
        file: file.to_owned(),
        reason: error.to_string(),
    })
}
