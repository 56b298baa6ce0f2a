//! The golden networks, built from the layers of theriac-nn, and their logits.

use candle_core::{DType, Device, Tensor};
use theriac::{Classifier, Pass, Pixels, Result, Run, predict};
use theriac_nn::{Conv, Layer, Layers, Linear, Params, Plain, Twin, VarBuilder};
use theriac_ops::{PoolConfig, avg_pool2d, max_pool2d, relu};

use crate::golden::{self, MANIFEST, MODELS, Vectors};
use crate::support::largest_difference;

/// Any of the golden networks.
pub(crate) type Net = Box<dyn Classifier>;

/// A golden network with initial parameters.
pub(crate) fn fresh(model: &str, dtype: DType) -> Result<Twin<Net>> {
    let params = Params::new(3, dtype, &Device::Cpu);
    Twin::build(&params, |vb| {
        Ok(match model {
            "bn" => Box::new(Residual::new(&Plain, vb)?) as Net,
            _ => Box::new(Lenet::new(&Plain, vb)?),
        })
    })
}

/// A golden network with its trained weights, which are f32 in the file.
pub(crate) fn load(model: &str, dtype: DType) -> Result<Twin<Net>> {
    let twin = fresh(model, dtype)?;
    twin.params
        .load(&golden::path(&format!("model_{model}.safetensors")))?;
    Ok(twin)
}

/// `std` and `rob`:
///
/// ```text
/// conv 1->8, 5x5, pad 2 - ReLU - max pool 2 - conv 8->16, 5x5 - ReLU - max pool 2
///   - flatten (400) - FC 64 - ReLU - FC 10
/// ```
struct Lenet {
    conv1: Box<dyn Layer>,
    conv2: Box<dyn Layer>,
    fc1: Box<dyn Layer>,
    fc2: Box<dyn Layer>,
}

impl Lenet {
    fn new(layers: &dyn Layers, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            conv1: layers.conv(&Conv::new(1, 8, 5).padding(2), vb.pp("conv1"))?,
            conv2: layers.conv(&Conv::new(8, 16, 5), vb.pp("conv2"))?,
            fc1: layers.linear(&Linear::new(400, 64), vb.pp("fc1"))?,
            fc2: layers.linear(&Linear::new(64, 10), vb.pp("fc2"))?,
        })
    }
}

impl Classifier for Lenet {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let pool = PoolConfig {
            kernel: 2,
            stride: 2,
            padding: 0,
        };
        let h = max_pool2d(&relu(&self.conv1.forward(x.tensor(), pass)?)?, pool)?;
        let h = max_pool2d(&relu(&self.conv2.forward(&h, pass)?)?, pool)?.flatten_from(1)?;
        self.fc2.forward(&relu(&self.fc1.forward(&h, pass)?)?, pass)
    }

    fn classes(&self) -> usize {
        10
    }
}

/// A convolution without bias and its batch norm.
struct Normed {
    conv: Box<dyn Layer>,
    norm: Box<dyn Layer>,
}

impl Normed {
    fn new(layers: &dyn Layers, conv: Conv, names: [&str; 2], vb: &VarBuilder) -> Result<Self> {
        let norm = layers.norm(conv.outputs, vb.pp(names[1]))?;
        Ok(Self {
            conv: layers.conv(&conv.no_bias(), vb.pp(names[0]))?,
            norm,
        })
    }

    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x, pass)?, pass)
    }
}

/// `bn`: a stem of stride 2, a block of 8 channels and a block of 16 with a projected shortcut.
struct Residual {
    stem: Normed,
    first: [Normed; 2],
    second: [Normed; 2],
    shortcut: Normed,
    fc: Box<dyn Layer>,
}

impl Residual {
    fn new(layers: &dyn Layers, vb: VarBuilder) -> Result<Self> {
        let normed = |conv, names| Normed::new(layers, conv, names, &vb);
        let three = |inputs, outputs| Conv::new(inputs, outputs, 3).padding(1);
        Ok(Self {
            stem: normed(three(1, 8).stride(2), ["conv1", "bn1"])?,
            first: [
                normed(three(8, 8), ["b1_conv1", "b1_bn1"])?,
                normed(three(8, 8), ["b1_conv2", "b1_bn2"])?,
            ],
            second: [
                normed(three(8, 16).stride(2), ["b2_conv1", "b2_bn1"])?,
                normed(three(16, 16), ["b2_conv2", "b2_bn2"])?,
            ],
            shortcut: normed(Conv::new(8, 16, 1).stride(2), ["b2_down", "b2_downbn"])?,
            fc: layers.linear(&Linear::new(16, 10), vb.pp("fc"))?,
        })
    }
}

impl Classifier for Residual {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let block =
            |[a, b]: &[Normed; 2], h: &Tensor| b.forward(&relu(&a.forward(h, pass)?)?, pass);
        let h = relu(&self.stem.forward(x.tensor(), pass)?)?;
        let h = relu(&(block(&self.first, &h)? + &h)?)?;
        let h = relu(&(block(&self.second, &h)? + self.shortcut.forward(&h, pass)?)?)?;
        let all = PoolConfig {
            kernel: 7,
            stride: 7,
            padding: 0,
        };
        self.fc
            .forward(&avg_pool2d(&h, all, true)?.flatten_from(1)?, pass)
    }

    fn classes(&self) -> usize {
        10
    }
}

#[test]
fn logits_agree_with_pytorch() -> Result<()> {
    let vectors = Vectors::read(&["gradients"])?;
    for model in MODELS {
        for (dtype, name) in [(DType::F64, "f64"), (DType::F32, "f32")] {
            let twin = load(model, dtype)?;
            let count: usize = twin
                .params
                .all()
                .iter()
                .map(|(_, var)| var.elem_count())
                .sum();
            assert_eq!(count, MANIFEST.models[model].values, "{model}");
            let expected = vectors.get(&format!("{model}.{name}.logits"));
            let batch = golden::images(expected.dims()[0], dtype)?;
            let run = Run::new(0, &Device::Cpu);
            let logits = twin
                .frozen
                .logits(&batch.pixels, &run.eval(&batch.samples))?;
            let difference = largest_difference(&logits, expected)?;
            let allowed = MANIFEST.gradients.logits_within.of(dtype);
            assert!(
                difference <= allowed,
                "{model} {name}: {difference:e}, allowed {allowed:e}"
            );
        }
    }
    Ok(())
}

#[test]
fn clean_accuracy_is_that_of_the_reference() -> Result<()> {
    let batch = golden::images(500, DType::F32)?;
    let labels = batch.target.to_vec()?;
    for model in MODELS {
        let twin = load(model, DType::F32)?;
        let run = Run::new(0, &Device::Cpu);
        let predicted = predict(&twin.live, &batch.pixels, &run.eval(&batch.samples))?.to_vec()?;
        let correct = predicted
            .iter()
            .zip(&labels)
            .filter(|(a, b)| a == b)
            .count();
        let accuracy = correct as f64 / labels.len() as f64;
        assert_eq!(accuracy, MANIFEST.models[model].clean_accuracy, "{model}");
    }
    Ok(())
}
