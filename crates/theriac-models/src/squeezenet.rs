//! SqueezeNet 1.1.
//!
//! ```text
//! conv 3x3, stride 2, 64 - ReLU - pool - fire 16, 64 (2 times) - pool - fire 32, 128 (2 times)
//!   - pool - fire 48, 192 (2 times) - fire 64, 256 (2 times) - conv 1x1 to the classes - ReLU
//!   - global average pool
//! fire s, e:  conv 1x1 to s - ReLU - (conv 1x1 to e - ReLU) beside (conv 3x3 to e - ReLU)
//! pool:       maximum, 3x3, stride 2, the last window beyond the edge where it does not end there
//! ```
//!
//! Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and < 0.5 MB model
//! size", 2016, in the version 1.1 of its authors, which has fewer filters and earlier pools. No
//! dropout in front of the last convolution. Parameters have torchvision's paths: `features.0`,
//! `features.{3..}.squeeze`, `.expand1x1`, `.expand3x3`, `classifier.1`. Inputs lie in [0, 1];
//! normalise them in front of the network.

use candle_core::Tensor;
use theriac::Result;
use theriac_nn::{Conv, Layers, Network, Site, Value, VarBuilder};
use theriac_ops::PoolConfig;

use crate::pad::{Pad, Rule};
use crate::resnet::positive;

/// Path, channels of the squeeze and of each half of the expansion; whether a pool stands in front.
const FIRES: [(usize, usize, usize, bool); 8] = [
    (3, 16, 64, true),
    (4, 16, 64, false),
    (6, 32, 128, true),
    (7, 32, 128, false),
    (9, 48, 192, true),
    (10, 48, 192, false),
    (11, 64, 256, false),
    (12, 64, 256, false),
];

/// SqueezeNet 1.1 for images (N, 3, H, W) of at least 17 pixels a side, 224 in its training:
/// 1,235,496 parameters at 1,000 classes.
///
/// # Errors
/// When `classes` is 0, or a parameter exists with another shape.
pub fn squeezenet(layers: &dyn Layers, vb: VarBuilder, classes: usize) -> Result<Network> {
    positive("classes", classes)?;
    let mut net = Network::new(classes);
    let conv = |net: &mut Network, x: Value, conv: Conv, at: &str| -> Result<Value> {
        let h = net.layer(x, layers.conv(&conv, vb.pp(at))?);
        Ok(net.relu(h))
    };
    let (image, mut side, mut inputs) = (net.image(), 111, 64);
    let stem = Conv::new(3, inputs, 3).stride(2);
    let mut h = conv(&mut net, image, stem, "features.0")?;
    h = net.layer(
        h,
        layers.site(Site::Stem, (inputs, side, side), vb.pp("site"))?,
    );
    for (number, squeeze, expand, pooled) in FIRES {
        if pooled {
            h = pool(&mut net, h);
            side = (side - 1) / 2;
        }
        let at = format!("features.{number}");
        let shape = |channels| (channels, side, side);
        let site = |name: &str| vb.pp(format!("{at}.{name}"));
        let s = Conv::new(inputs, squeeze, 1);
        let s = conv(&mut net, h, s, &format!("{at}.squeeze"))?;
        let s = net.layer(s, layers.site(Site::Conv, shape(squeeze), site("site1"))?);
        let one = Conv::new(squeeze, expand, 1);
        let one = conv(&mut net, s, one, &format!("{at}.expand1x1"))?;
        let three = Conv::new(squeeze, expand, 3).padding(1);
        let three = conv(&mut net, s, three, &format!("{at}.expand3x3"))?;
        h = net.join(one, &[three], |halves| Ok(Tensor::cat(halves, 1)?));
        inputs = 2 * expand;
        h = net.layer(h, layers.site(Site::Block, shape(inputs), site("site"))?);
    }
    let last = Conv::new(inputs, classes, 1);
    let h = conv(&mut net, h, last, "classifier.1")?;
    let h = net.global_avg_pool(h);
    net.flatten(h);
    Ok(net)
}

fn pool(net: &mut Network, x: Value) -> Value {
    let (kernel, stride) = (3, 2);
    let rule = Rule::Ceil;
    let h = net.layer(
        x,
        Box::new(Pad {
            kernel,
            stride,
            rule,
        }),
    );
    net.max_pool(
        h,
        PoolConfig {
            kernel,
            stride,
            padding: 0,
        },
    )
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use theriac::{Labels, Pixels, Rng};
    use theriac_nn::{Params, Plain, Twin};

    use super::*;

    /// As torchvision prints.
    #[test]
    fn has_its_published_size() -> Result<()> {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        squeezenet(&Plain, params.live(), 1000)?;
        assert_eq!(params.count(), 1_235_496);
        assert!(squeezenet(&Plain, params.live(), 0).is_err());
        Ok(())
    }

    #[test]
    fn gradients_agree_with_differences() -> Result<()> {
        let params = Params::new(0, DType::F64, &Device::Cpu);
        let twin = Twin::build(&params, |vb| squeezenet(&Plain, vb, 10))?;
        let values = Rng::new(3).uniform("x", 0, 3 * 3 * 18 * 18);
        let x = Tensor::from_vec(values, (3, 3, 18, 18), &Device::Cpu)?;
        let x = Pixels::new(x.to_dtype(DType::F64)?.affine(0.9, 0.05)?)?;
        let labels = Labels::new(&[1, 7, 3], 10, &Device::Cpu)?;
        theriac::contract::classifier(&twin.live, &x, &labels)?;
        theriac::contract::classifier(&twin.frozen, &x, &labels)?;
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let twin = Twin::build(&params, |vb| squeezenet(&Plain, vb, 10))?;
        theriac::contract::prepared(&twin.frozen, &x.to_dtype(DType::F32)?)
    }
}
