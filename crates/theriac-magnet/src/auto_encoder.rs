//! Auto-encoders that take noise out of images.
//!
//! ```text
//! parts:    conv 3x3 to c channels, sigmoid  |  average or max pooling 2x2
//! encoder:  the parts in order
//! decoder:  the parts in reverse, each pooling an enlargement by 2 - conv 3x3 to the image, sigmoid
//! ```
//!
//! Meng & Chen, "MagNet: a two-pronged defense against adversarial examples", CCS 2017, as in their
//! code, which also adds 1e-9 times the squares of all activations to the loss; we do not.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{Batch, Classifier as _, Error, Labels, Model, Pass, Pixels, Result, Rng, Transform};
use theriac_nn::{Conv, Init, Layers, Network, Twin, Value, VarBuilder};
use theriac_ops::PoolConfig;
use theriac_train::Objective;

/// One part of an encoder; the decoder mirrors it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// A 3x3 convolution to so many channels, and a sigmoid.
    Conv(usize),
    /// Average pooling over 2x2 pixels; enlarged again by repetition.
    AveragePool,
    /// Max pooling over 2x2 pixels; enlarged again by repetition.
    MaxPool,
}

impl Part {
    /// The paper's first auto-encoder for MNIST.
    pub const ONE: [Self; 3] = [Self::Conv(3), Self::AveragePool, Self::Conv(3)];
    /// Its second one, and that for CIFAR-10.
    pub const TWO: [Self; 1] = [Self::Conv(3)];
}

/// An auto-encoder for images (N, `channels`, H, W), whose sides every pooling must halve.
/// Parameters `encoder.{0..}`, `decoder.{0..}`, `output`.
///
/// # Errors
/// [`Error::Setting`] without channels; when a parameter exists with another shape.
pub fn auto_encoder(
    layers: &dyn Layers,
    vb: VarBuilder,
    channels: usize,
    parts: &[Part],
) -> Result<AutoEncoder> {
    if channels == 0 || parts.contains(&Part::Conv(0)) {
        return Err(Error::Setting {
            name: "channels",
            value: "0".to_owned(),
            remedy: "use at least 1",
        });
    }
    let mut net = Network::new(0);
    let mut h = net.image();
    let mut width = channels;
    let pool = PoolConfig {
        kernel: 2,
        stride: 2,
        padding: 0,
    };
    for (i, part) in parts.iter().enumerate() {
        h = match *part {
            Part::Conv(to) => {
                let vb = vb.pp(format!("encoder.{i}"));
                let h = conv(&mut net, h, width, to, layers, vb)?;
                width = to;
                h
            }
            Part::AveragePool => net.avg_pool(h, pool),
            Part::MaxPool => net.max_pool(h, pool),
        };
    }
    for (i, part) in parts.iter().rev().enumerate() {
        h = match *part {
            Part::Conv(to) => {
                let vb = vb.pp(format!("decoder.{i}"));
                let h = conv(&mut net, h, width, to, layers, vb)?;
                width = to;
                h
            }
            Part::AveragePool | Part::MaxPool => net.join(h, &[], |v| enlarged(&v[0])),
        };
    }
    conv(&mut net, h, width, channels, layers, vb.pp("output"))?;
    Ok(AutoEncoder { network: net })
}

/// A 3x3 convolution and a sigmoid.
fn conv(
    net: &mut Network,
    h: Value,
    from: usize,
    to: usize,
    layers: &dyn Layers,
    vb: VarBuilder,
) -> Result<Value> {
    let conv = Conv::new(from, to, 3).padding(1).init(Init::Glorot);
    let h = net.layer(h, layers.conv(&conv, vb)?);
    // By tanh, which neither overflows nor loses the tails.
    Ok(net.join(h, &[], |v| {
        Ok(v[0].affine(0.5, 0.0)?.tanh()?.affine(0.5, 0.5)?)
    }))
}

/// Every pixel twice in both directions.
fn enlarged(x: &Tensor) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let x = x.reshape((n, c, h, 1, w, 1))?;
    Ok(x.broadcast_as((n, c, h, 2, w, 2))?
        .reshape((n, c, 2 * h, 2 * w))?)
}

/// A network from images to images of the same shape.
///
/// As a [`Transform`] it reforms images; as a [`Model`] its loss is the mean squared error of an
/// image, whatever the label.
pub struct AutoEncoder {
    network: Network,
}

impl AutoEncoder {
    /// What it makes of images, values in (0, 1).
    ///
    /// # Errors
    /// When shapes do not fit, such as an odd side in front of a pooling.
    pub fn reconstruct(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let y = self.network.logits(x, pass)?;
        if y.dims() != x.tensor().dims() {
            return Err(Error::Shape {
                what: "image",
                got: x.tensor().dims().to_vec(),
                expected: "sides that every pooling of the auto-encoder halves".to_owned(),
            });
        }
        Ok(y)
    }
}

impl Transform for AutoEncoder {
    fn apply(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Pixels> {
        let y = self.reconstruct(x, pass)?;
        x.through(|_| Ok(y))
    }
}

impl Model for AutoEncoder {
    type Target = Labels;

    fn loss(&self, x: &Pixels, _: &Labels, pass: &Pass<'_>) -> Result<Tensor> {
        error(&self.reconstruct(x, pass)?, x.tensor(), 2)
    }
}

/// `mean |a - b|^p` of each image, p = 1 or 2.
pub(crate) fn error(a: &Tensor, b: &Tensor, power: u32) -> Result<Tensor> {
    let gap = (a - b)?;
    let each = match power {
        // candle's own absolute value has slope 1 at 0; PyTorch's, and this, have 0.
        1 => (&gap * gap.detach().sign()?)?,
        2 => gap.sqr()?,
        other => {
            return Err(Error::Setting {
                name: "power",
                value: other.to_string(),
                remedy: "use 1 or 2",
            });
        }
    };
    Ok(each.flatten_from(1)?.mean(1)?)
}

/// Learns to take noise out: the mean squared error between the image and what the auto-encoder makes
/// of the image with noise, `mean (AE(clip(x + sigma n)) - x)^2`.
#[derive(Clone, Copy, Debug)]
pub struct Denoise {
    /// Deviation of the noise, in pixels of [0, 1]; the paper has 0.1 for MNIST.
    pub sigma: f64,
    /// Draws the noise of each image once for the whole training, as the published code does; without
    /// it noise is new in every epoch.
    pub once: Option<Rng>,
}

impl Objective<AutoEncoder> for Denoise {
    fn loss(
        &mut self,
        twin: &Twin<AutoEncoder>,
        batch: &Batch<Labels>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let drawing = Pass {
            rng: self.once.unwrap_or(pass.rng),
            ..*pass
        };
        let noise = drawing.normal("magnet noise", batch.pixels.tensor())?;
        let noisy = Pixels::clamp(&(batch.pixels.tensor() + (noise * self.sigma)?)?)?;
        let made = twin.live.reconstruct(&noisy, pass)?;
        Ok(error(&made, batch.pixels.tensor(), 2)?.mean_all()?)
    }
}
