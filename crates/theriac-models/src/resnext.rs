//! ResNeXt-29 for 32 x 32 images.
//!
//! ```text
//! conv 1x1, 64 - norm - ReLU - 3 stages of 3 blocks - average over 8 x 8 - FC
//! block: conv 1x1, g w - norm - ReLU - conv 3x3 in g groups - norm - ReLU - conv 1x1, 2 g w - norm
//!        - add the shortcut - ReLU;   w doubles from stage to stage
//! ```
//!
//! Xie, Girshick, Dollar, Tu & He, "Aggregated residual transformations for deep neural networks",
//! CVPR 2017, in the form of pytorch-cifar and of RSE's code: the first convolution is 1x1, and the
//! output of a block twice as wide as its middle; the paper's have a 3x3 convolution and a factor of
//! four. Stages 2 and 3 begin with stride 2 in the 3x3 convolution; where a block changes the shape,
//! the shortcut is a 1x1 convolution with a norm.
//! Parameters as there: `conv1`, `bn1`, `layer{1..3}.{0..2}.conv{1..3}`, `.bn{1..3}`, `.shortcut.0`,
//! `.shortcut.1`, `linear`. PyTorch's initial values. Inputs lie in [0, 1].

use theriac::Result;
use theriac_nn::{BatchNorm, Conv, Layers, Linear, Network, Site, Value, VarBuilder};

use crate::resnet::positive;

/// ResNeXt-29 (`groups` x `width` d) for images (N, 3, 32, 32): 9,128,778 parameters for 2 x 64d at
/// 10 classes.
///
/// # Errors
/// When `groups`, `width` or `classes` is 0, or a parameter exists with another shape.
pub fn resnext29(
    layers: &dyn Layers,
    vb: VarBuilder,
    groups: usize,
    width: usize,
    classes: usize,
) -> Result<Network> {
    positive("groups", groups)?;
    positive("width", width)?;
    positive("classes", classes)?;
    let net = Network::new(classes);
    let mut build = Build { layers, net };
    let image = build.net.image();
    let stem = Conv::new(3, 64, 1);
    let h = build.conv_norm(image, stem, vb.pp("conv1"), vb.pp("bn1"))?;
    let site = layers.site(Site::Stem, (64, 32, 32), vb.pp("site"))?;
    let h = build.net.layer(h, site);
    let mut h = build.net.relu(h);
    let (mut inputs, mut side) = (64, 32);
    for stage in 0..3 {
        let middle = (groups * width) << stage;
        for block in 0..3 {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            side /= stride;
            let vb = vb.pp(format!("layer{}.{block}", stage + 1));
            let mut grouped = Conv::new(middle, middle, 3).padding(1).stride(stride);
            grouped.config.groups = groups;
            let convs = [
                Conv::new(inputs, middle, 1),
                grouped,
                Conv::new(middle, 2 * middle, 1),
            ];
            let mut branch = h;
            for (i, conv) in convs.into_iter().enumerate() {
                let at = |name: &str| vb.pp(format!("{name}{}", i + 1));
                // The first convolution of a block still has the size of its input.
                let side = if i == 0 { side * stride } else { side };
                let shape = (conv.outputs, side, side);
                branch = build.conv_norm(branch, conv, at("conv"), at("bn"))?;
                branch = build
                    .net
                    .layer(branch, layers.site(Site::Conv, shape, at("site"))?);
                if i < 2 {
                    branch = build.net.relu(branch);
                }
            }
            let outputs = 2 * middle;
            let shortcut = match stride == 1 && inputs == outputs {
                true => h,
                false => {
                    let conv = Conv::new(inputs, outputs, 1).stride(stride);
                    build.conv_norm(h, conv, vb.pp("shortcut.0"), vb.pp("shortcut.1"))?
                }
            };
            h = build.net.add(branch, shortcut);
            let site = layers.site(Site::Block, (outputs, side, side), vb.pp("site"))?;
            h = build.net.layer(h, site);
            h = build.net.relu(h);
            inputs = outputs;
        }
    }
    let mut net = build.net;
    let h = net.global_avg_pool(h);
    let h = net.flatten(h);
    let fc = Linear::new(inputs, classes);
    net.layer(h, layers.linear(&fc, vb.pp("linear"))?);
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
        let outputs = conv.outputs;
        let h = self
            .net
            .layer(x, self.layers.conv(&conv.no_bias(), conv_at)?);
        Ok(self
            .net
            .layer(h, self.layers.norm(&BatchNorm::new(outputs), norm_at)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use theriac::{Labels, Pixels, Rng};
    use theriac_nn::{Params, Plain, Twin};

    use super::*;

    /// By hand for g = 1, w = 1 (three stages of middles 1, 2, 4) and as counted by pytorch-cifar's
    /// users for 2 x 64d.
    #[test]
    fn has_its_published_size() -> Result<()> {
        let count = |groups, width| {
            let params = Params::new(0, DType::F32, &Device::Cpu);
            resnext29(&Plain, params.live(), groups, width, 10)?;
            Ok::<_, theriac::Error>(params.count())
        };
        assert_eq!(count(2, 64)?, 9_128_778);
        // Each block: in m + 9 m^2 + 2 m^2 weights, 8 m of norms; a shortcut: 2 in m + 4 m.
        let block = |inputs: usize, m: usize, shortcut: bool| {
            let own = inputs * m + 11 * m * m + 8 * m;
            own + if shortcut { 2 * inputs * m + 4 * m } else { 0 }
        };
        let stages = [(64, 1), (2, 2), (4, 4)].map(|(inputs, m)| {
            let first = inputs != 2 * m || m > 1;
            block(inputs, m, first) + 2 * block(2 * m, m, false)
        });
        let expected = 3 * 64 + 128 + stages.iter().sum::<usize>() + 8 * 10 + 10;
        assert_eq!(count(1, 1)?, expected);
        let params = Params::new(0, DType::F32, &Device::Cpu);
        assert!(resnext29(&Plain, params.live(), 0, 64, 10).is_err());
        Ok(())
    }

    #[test]
    fn gradients_agree_with_differences() -> Result<()> {
        let params = Params::new(0, DType::F64, &Device::Cpu);
        let twin = Twin::build(&params, |vb| resnext29(&Plain, vb, 2, 2, 10))?;
        let values = Rng::new(3).uniform("x", 0, 3 * 3 * 8 * 8);
        let x = Tensor::from_vec(values, (3, 3, 8, 8), &Device::Cpu)?;
        let x = Pixels::new(x.to_dtype(DType::F64)?.affine(0.9, 0.05)?)?;
        let labels = Labels::new(&[1, 7, 3], 10, &Device::Cpu)?;
        theriac::contract::classifier(&twin.live, &x, &labels)?;
        theriac::contract::classifier(&twin.frozen, &x, &labels)
    }
}
