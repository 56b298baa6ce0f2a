//! Residual networks for 32 x 32 images.
//!
//! ```text
//! v1 (He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2):
//!   conv 3->16, 3x3 - norm - ReLU - 3 stages of (depth - 2) / 6 blocks, widths 16, 32, 64
//!   - global average pool - FC
//! 18 (the same section 3.3 with a stem for small images):
//!   conv 3->64, 3x3 - norm - ReLU - 4 stages of 2 blocks, widths 64, 128, 256, 512
//!   - global average pool - FC
//! block: conv 3x3 - norm - ReLU - conv 3x3 - norm - add the shortcut - ReLU
//! ```
//!
//! Later stages begin with stride 2. Where a block changes the shape, the shortcut of v1 takes every
//! second pixel and appends channels of zeros ("option A"), that of ResNet-18 is a 1x1 convolution
//! with a norm ("option B"). Inputs in [0, 1]; normalise them in front of the network.

use candle_core::{DType, Tensor};
use theriac::{Pass, Result};
use theriac_nn::{Conv, Form, Init, Layer, Layers, Linear, Network, Site, Value, VarBuilder};
use theriac_ops::network::Op;
use theriac_ops::{ConvConfig, conv2d};

/// ResNet-v1 of `depth` 6 n + 2 for images (N, 3, H, W), widths times `widen`: 269,722 parameters
/// at depth 20 and 10 classes. Parameters `stem.conv`, `stem.norm`, `stage{1..3}.{0..}.conv1`,
/// `.norm1`, `.conv2`, `.norm2`, `fc`.
///
/// # Errors
/// When `depth` is not 6 n + 2, or a parameter exists with another shape.
pub fn resnet_v1(
    layers: &dyn Layers,
    vb: VarBuilder,
    depth: usize,
    widen: usize,
    classes: usize,
) -> Result<Network> {
    if depth < 8 || !(depth - 2).is_multiple_of(6) {
        return Err(theriac::Error::Setting {
            name: "depth",
            value: depth.to_string(),
            remedy: "use 6 n + 2: 20, 32, 44, 56, 110",
        });
    }
    let widths = [16, 32, 64].map(|width| width * widen);
    Residual::new(layers, classes, Init::He).build(vb, &widths, (depth - 2) / 6, false)
}

/// ResNet-18 for images (N, 3, H, W): 11,173,962 parameters at 10 classes. Parameters as in
/// [`resnet_v1`], and `.shortcut.conv`, `.shortcut.norm`.
///
/// # Errors
/// When a parameter exists with another shape.
pub fn resnet18(layers: &dyn Layers, vb: VarBuilder, classes: usize) -> Result<Network> {
    Residual::new(layers, classes, Init::Torch).build(vb, &[64, 128, 256, 512], 2, true)
}

struct Residual<'a> {
    layers: &'a dyn Layers,
    net: Network,
    classes: usize,
    init: Init,
}

/// Channels and side of a square activation.
#[derive(Clone, Copy)]
struct Shape {
    channels: usize,
    side: usize,
}

impl<'a> Residual<'a> {
    fn new(layers: &'a dyn Layers, classes: usize, init: Init) -> Self {
        Self {
            layers,
            net: Network::new(classes),
            classes,
            init,
        }
    }

    fn build(
        mut self,
        vb: VarBuilder,
        widths: &[usize],
        blocks: usize,
        projection: bool,
    ) -> Result<Network> {
        let mut shape = Shape {
            channels: widths[0],
            side: 32,
        };
        let image = self.net.image();
        let h = self.conv_norm(image, 3, shape.channels, 3, 1, &vb.pp("stem"), "")?;
        let h = self.net.relu(h);
        let mut h = self.site(Site::Stem, h, shape, vb.pp("stem.site"))?;
        for (stage, &width) in widths.iter().enumerate() {
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let vb = vb.pp(format!("stage{}.{block}", stage + 1));
                (h, shape) = self.block(h, shape, width, stride, projection, &vb)?;
            }
        }
        let h = self.net.global_avg_pool(h);
        let h = self.net.flatten(h);
        let fc = Linear::new(shape.channels, self.classes).init(self.init);
        let fc = self.layers.linear(&fc, vb.pp("fc"))?;
        self.net.layer(h, fc);
        Ok(self.net)
    }

    fn block(
        &mut self,
        x: Value,
        from: Shape,
        width: usize,
        stride: usize,
        projection: bool,
        vb: &VarBuilder,
    ) -> Result<(Value, Shape)> {
        let to = Shape {
            channels: width,
            side: from.side / stride,
        };
        let h = self.conv_norm(x, from.channels, width, 3, stride, vb, "1")?;
        let h = self.net.relu(h);
        let h = self.site(Site::Conv, h, to, vb.pp("site1"))?;
        let h = self.conv_norm(h, width, width, 3, 1, vb, "2")?;
        let shortcut = match (stride, projection) {
            (1, _) => x,
            (_, true) => {
                self.conv_norm(x, from.channels, width, 1, stride, &vb.pp("shortcut"), "")?
            }
            (_, false) => {
                let layer = Subsample::new(from.channels, width, stride, vb)?;
                self.net.layer(x, Box::new(layer))
            }
        };
        let h = self.net.add(h, shortcut);
        let h = self.net.relu(h);
        Ok((self.site(Site::Block, h, to, vb.pp("site2"))?, to))
    }

    /// Parameters `conv{number}`, `norm{number}`.
    #[allow(clippy::too_many_arguments)]
    fn conv_norm(
        &mut self,
        x: Value,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        stride: usize,
        vb: &VarBuilder,
        number: &str,
    ) -> Result<Value> {
        let conv = Conv::new(inputs, outputs, kernel)
            .stride(stride)
            .padding(kernel / 2)
            .no_bias()
            .init(self.init);
        let conv = self.layers.conv(&conv, vb.pp(format!("conv{number}")))?;
        let norm = self.layers.norm(outputs, vb.pp(format!("norm{number}")))?;
        let h = self.net.layer(x, conv);
        Ok(self.net.layer(h, norm))
    }

    fn site(&mut self, site: Site, h: Value, shape: Shape, vb: VarBuilder) -> Result<Value> {
        let shape = (shape.channels, shape.side, shape.side);
        let layer = self.layers.site(site, shape, vb)?;
        Ok(self.net.layer(h, layer))
    }
}

/// Every `stride`-th pixel, with channels of zeros appended: a 1x1 convolution with the identity.
struct Subsample {
    identity: Tensor,
    stride: usize,
}

impl Subsample {
    fn new(inputs: usize, outputs: usize, stride: usize, vb: &VarBuilder) -> Result<Self> {
        let identity: Vec<f32> = (0..outputs)
            .flat_map(|o| (0..inputs).map(move |i| f32::from(u8::from(o == i))))
            .collect();
        let identity = Tensor::from_vec(identity, (outputs, inputs, 1, 1), vb.device())?;
        Ok(Self {
            identity: identity.to_dtype(vb.dtype())?,
            stride,
        })
    }
}

impl Layer for Subsample {
    fn forward(&self, x: &Tensor, _: &Pass<'_>) -> Result<Tensor> {
        let config = ConvConfig {
            stride: self.stride,
            ..ConvConfig::default()
        };
        Ok(conv2d(x, &self.identity, None, config)?)
    }

    fn form(&self, _: &Pass<'_>) -> Result<Option<Form>> {
        let op = Op::Conv {
            outputs: self.identity.dim(0)?,
            kernel: (1, 1),
            stride: self.stride,
            padding: 0,
            dilation: 1,
        };
        let parameters = [Some(self.identity.clone()), None, None, None];
        Ok((self.identity.dtype() == DType::F32).then(|| Form::stored(Some(op), parameters)))
    }
}
