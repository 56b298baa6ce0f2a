//! EfficientNet-Lite0.
//!
//! ```text
//! conv 3x3, stride 2, 32 - norm - ReLU6 - 16 blocks - conv 1x1, 1280 - norm - ReLU6
//!   - global average pool - FC
//! block:  [conv 1x1 to 6 times the channels - norm - ReLU6] - depthwise conv k x k - norm - ReLU6
//!           - conv 1x1 - norm - add the input where the shape is kept
//! ```
//!
//! The first block has no expansion in brackets. Convolutions of stride 2 pad as TensorFlow's "same",
//! norms have momentum 0.01 and eps 0.001: Tan & Le, "EfficientNet: rethinking model scaling for
//! convolutional neural networks", ICML 2019; "Lite" is its authors' variant for phones, 2020, without
//! squeeze-and-excitation, with ReLU6 (`min(max(x, 0), 6)`) for swish, stem and head unscaled. No
//! dropout or stochastic depth. Parameters have the paths of the public PyTorch weights:
//! `_conv_stem`, `_bn0`, `_blocks.{0..15}._expand_conv`, `._bn0`, `._depthwise_conv`, `._bn1`,
//! `._project_conv`, `._bn2`, `_conv_head`, `_bn1`, `_fc`. Inputs lie in [0, 1]; normalise them in
//! front of the network: mean 127 / 255, deviation 128 / 255 in the authors' training.

use theriac::Result;
use theriac_nn::{BatchNorm, Conv, Init, Layers, Linear, Network, Site, Value, VarBuilder};

use crate::pad::{Pad, Rule};
use crate::resnet::positive;

/// Repeats, kernel, stride of the first, expansion, output channels.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

/// EfficientNet-Lite0 for images (N, 3, H, W), of 224 x 224 in its training: 4,652,008 parameters at
/// 1,000 classes.
///
/// # Errors
/// When `classes` is 0, or a parameter exists with another shape.
pub fn efficientnet_lite0(layers: &dyn Layers, vb: VarBuilder, classes: usize) -> Result<Network> {
    positive("classes", classes)?;
    let net = Network::new(classes);
    let mut build = Build { layers, net };
    let image = build.net.image();
    let (mut inputs, mut side) = (32, 112);
    let stem = Conv::new(3, inputs, 3).stride(2);
    let h = build.conv_norm(image, stem, vb.pp("_conv_stem"), vb.pp("_bn0"))?;
    let h = build.site(Site::Stem, h, (inputs, side, side), vb.pp("site"))?;
    let mut h = build.relu6(h);
    let mut block = 0;
    for (repeats, kernel, stride, expansion, outputs) in STAGES {
        for repeat in 0..repeats {
            let stride = if repeat == 0 { stride } else { 1 };
            let vb = vb.pp(format!("_blocks.{block}"));
            let (x, middle) = (h, expansion * inputs);
            if expansion > 1 {
                let expand = Conv::new(inputs, middle, 1);
                h = build.conv_norm(h, expand, vb.pp("_expand_conv"), vb.pp("_bn0"))?;
                h = build.site(Site::Conv, h, (middle, side, side), vb.pp("site1"))?;
                h = build.relu6(h);
            }
            side = side.div_ceil(stride);
            let mut depthwise = Conv::new(middle, middle, kernel).stride(stride);
            depthwise.config.groups = middle;
            h = build.conv_norm(h, depthwise, vb.pp("_depthwise_conv"), vb.pp("_bn1"))?;
            h = build.site(Site::Conv, h, (middle, side, side), vb.pp("site2"))?;
            h = build.relu6(h);
            let project = Conv::new(middle, outputs, 1);
            h = build.conv_norm(h, project, vb.pp("_project_conv"), vb.pp("_bn2"))?;
            if stride == 1 && inputs == outputs {
                h = build.net.add(h, x);
            }
            h = build.site(Site::Block, h, (outputs, side, side), vb.pp("site"))?;
            inputs = outputs;
            block += 1;
        }
    }
    let head = Conv::new(inputs, 1280, 1);
    let h = build.conv_norm(h, head, vb.pp("_conv_head"), vb.pp("_bn1"))?;
    let h = build.relu6(h);
    let mut net = build.net;
    let h = net.global_avg_pool(h);
    let h = net.flatten(h);
    net.layer(h, layers.linear(&Linear::new(1280, classes), vb.pp("_fc"))?);
    Ok(net)
}

struct Build<'a> {
    layers: &'a dyn Layers,
    net: Network,
}

impl Build<'_> {
    fn conv_norm(
        &mut self,
        x: Value,
        conv: Conv,
        conv_at: VarBuilder,
        norm_at: VarBuilder,
    ) -> Result<Value> {
        let (kernel, stride) = (conv.kernel, conv.config.stride);
        let norm = BatchNorm::new(conv.outputs).momentum(0.01).eps(1e-3);
        let (x, conv) = match stride {
            1 => (x, conv.padding(kernel / 2)),
            _ => {
                let rule = Rule::Same;
                let pad = Pad {
                    kernel,
                    stride,
                    rule,
                };
                (self.net.layer(x, Box::new(pad)), conv)
            }
        };
        let conv = conv.no_bias().init(Init::He);
        let h = self.net.layer(x, self.layers.conv(&conv, conv_at)?);
        Ok(self.net.layer(h, self.layers.norm(&norm, norm_at)?))
    }

    /// `min(max(x, 0), 6)`, whose gradient is 0 from 6 on, as PyTorch's.
    fn relu6(&mut self, x: Value) -> Value {
        let h = self.net.relu(x);
        self.net.join(h, &[], |v| {
            let six = v[0].ones_like()?.affine(6.0, 0.0)?;
            Ok(v[0].lt(&six)?.where_cond(&v[0], &six)?)
        })
    }

    fn site(
        &mut self,
        site: Site,
        h: Value,
        shape: (usize, usize, usize),
        vb: VarBuilder,
    ) -> Result<Value> {
        Ok(self.net.layer(h, self.layers.site(site, shape, vb)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use theriac::{Labels, Pixels, Rng, Run};
    use theriac_nn::{Params, Plain, Twin};

    use super::*;

    #[test]
    fn has_its_published_size() -> Result<()> {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        efficientnet_lite0(&Plain, params.live(), 1000)?;
        assert_eq!(params.count(), 4_652_008);
        assert!(efficientnet_lite0(&Plain, params.live(), 0).is_err());
        Ok(())
    }

    #[test]
    fn gradients_agree_with_differences() -> Result<()> {
        let params = Params::new(0, DType::F64, &Device::Cpu);
        let twin = Twin::build(&params, |vb| efficientnet_lite0(&Plain, vb, 10))?;
        let values = Rng::new(3).uniform("x", 0, 3 * 3 * 34 * 34);
        let x = Tensor::from_vec(values, (3, 3, 34, 34), &Device::Cpu)?;
        let x = Pixels::new(x.to_dtype(DType::F64)?.affine(0.9, 0.05)?)?;
        let labels = Labels::new(&[1, 7, 3], 10, &Device::Cpu)?;
        theriac::contract::classifier(&twin.live, &x, &labels)?;
        theriac::contract::classifier(&twin.frozen, &x, &labels)?;
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let twin = Twin::build(&params, |vb| efficientnet_lite0(&Plain, vb, 10))?;
        theriac::contract::prepared(&twin.frozen, &x.to_dtype(DType::F32)?)
    }

    #[test]
    fn relu6_has_a_slope_between_0_and_6_alone() -> Result<()> {
        let net = Network::new(1);
        let layers = &Plain;
        let mut build = Build { layers, net };
        let image = build.net.image();
        build.relu6(image);
        let x = Tensor::new(&[-1f64, 0.0, 0.5, 5.0, 6.0, 7.0], &Device::Cpu)?;
        let x = candle_core::Var::from_tensor(&x.reshape((1, 1, 2, 3))?)?;
        let y = build
            .net
            .forward(&x, &Run::new(0, &Device::Cpu).eval(&[0]))?;
        let gradients = y.backward()?;
        let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f64>();
        assert_eq!(flat(&y)?, [0.0, 0.0, 0.5, 5.0, 6.0, 6.0]);
        let slopes = gradients.get(&x).unwrap();
        assert_eq!(flat(slopes)?, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
        Ok(())
    }
}
