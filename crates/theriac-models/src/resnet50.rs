//! ResNet-50 for large images.
//!
//! ```text
//! conv 3->64, 7x7, stride 2 - norm - ReLU - max pool 3x3, stride 2
//!   - 4 stages of 3, 4, 6, 3 blocks, widths 64, 128, 256, 512 - global average pool - FC
//! block: conv 1x1 - norm - ReLU - conv 3x3 - norm - ReLU - conv 1x1 to 4 times the width - norm
//!   - add the shortcut - ReLU
//! ```
//!
//! He et al., "Deep residual learning for image recognition", CVPR 2016, table 1. Later stages begin
//! with stride 2, in the 3x3 convolution as in fb.resnet.torch and torchvision (the paper has it in
//! the first 1x1); where a block changes the shape, the shortcut is a 1x1 convolution with a norm.
//! Initial values are PyTorch's.

use theriac::Result;
use theriac_nn::{Conv, Layers, Linear, Network, Site, Value, VarBuilder};
use theriac_ops::PoolConfig;

/// The network for images (N, 3, H, W), made for 224 x 224: 25,557,032 parameters at 1,000 classes.
/// Parameters `stem.conv`, `stem.norm`, `stage{1..4}.{0..}.conv{1..3}`, `.norm{1..3}`,
/// `.shortcut.conv`, `.shortcut.norm`, `fc`.
///
/// # Errors
/// When `classes` is 0, or a parameter exists with another shape.
pub fn resnet50(layers: &dyn Layers, vb: VarBuilder, classes: usize) -> Result<Network> {
    crate::resnet::positive("classes", classes)?;
    let mut net = Bottlenecks {
        layers,
        net: Network::new(classes),
    };
    let image = net.net.image();
    let conv = Conv::new(3, 64, 7).stride(2).padding(3);
    let h = net.conv_norm(image, conv, &vb.pp("stem"), "")?;
    let h = net.net.relu(h);
    let h = net.net.layer(
        h,
        layers.site(Site::Stem, (64, 112, 112), vb.pp("stem.site"))?,
    );
    let pool = PoolConfig {
        kernel: 3,
        stride: 2,
        padding: 1,
    };
    let mut h = net.net.max_pool(h, pool);
    let mut channels = 64;
    for (stage, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
        let (width, side) = (64 << stage, 56 >> stage);
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let vb = vb.pp(format!("stage{}.{block}", stage + 1));
            h = net.block(h, channels, width, stride, side, &vb)?;
            channels = 4 * width;
        }
    }
    let h = net.net.global_avg_pool(h);
    let h = net.net.flatten(h);
    let fc = layers.linear(&Linear::new(channels, classes), vb.pp("fc"))?;
    net.net.layer(h, fc);
    Ok(net.net)
}

struct Bottlenecks<'a> {
    layers: &'a dyn Layers,
    net: Network,
}

impl Bottlenecks<'_> {
    fn block(
        &mut self,
        x: Value,
        inputs: usize,
        width: usize,
        stride: usize,
        side: usize,
        vb: &VarBuilder,
    ) -> Result<Value> {
        let outputs = 4 * width;
        let h = self.conv_norm(x, Conv::new(inputs, width, 1), vb, "1")?;
        let h = self.net.relu(h);
        let conv = Conv::new(width, width, 3).stride(stride).padding(1);
        let h = self.conv_norm(h, conv, vb, "2")?;
        let h = self.net.relu(h);
        let h = self.site(Site::Conv, h, (width, side, side), vb.pp("site1"))?;
        let h = self.conv_norm(h, Conv::new(width, outputs, 1), vb, "3")?;
        let shortcut = match inputs == outputs {
            true => x,
            false => {
                let conv = Conv::new(inputs, outputs, 1).stride(stride);
                self.conv_norm(x, conv, &vb.pp("shortcut"), "")?
            }
        };
        let h = self.net.add(h, shortcut);
        let h = self.net.relu(h);
        self.site(Site::Block, h, (outputs, side, side), vb.pp("site2"))
    }

    /// Parameters `conv{number}`, `norm{number}`.
    fn conv_norm(&mut self, x: Value, conv: Conv, vb: &VarBuilder, number: &str) -> Result<Value> {
        let outputs = conv.outputs;
        let conv = self
            .layers
            .conv(&conv.no_bias(), vb.pp(format!("conv{number}")))?;
        let norm = self.layers.norm(outputs, vb.pp(format!("norm{number}")))?;
        let h = self.net.layer(x, conv);
        Ok(self.net.layer(h, norm))
    }

    fn site(
        &mut self,
        site: Site,
        h: Value,
        shape: (usize, usize, usize),
        vb: VarBuilder,
    ) -> Result<Value> {
        let layer = self.layers.site(site, shape, vb)?;
        Ok(self.net.layer(h, layer))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use theriac::Run;
    use theriac_nn::{Params, Plain};

    use super::*;

    /// torchvision's count, and 4.1e9 multiplications with an addition for a forward pass, as
    /// torchvision prints.
    #[test]
    fn has_its_published_size_and_cost() -> Result<()> {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let net = resnet50(&Plain, params.frozen(), 1000)?;
        assert_eq!(params.count(), 25_557_032);
        let image = Tensor::zeros((1, 3, 224, 224), DType::F32, &Device::Cpu)?;
        let run = Run::new(0, &Device::Cpu);
        let count = net.operations(&image, &run.eval(&[0]))?;
        let pairs = count.forward as f64 / 2e9;
        assert!((4.09..4.2).contains(&pairs), "{pairs}");
        assert!(count.backward > 19 * count.forward / 10, "{count:?}");
        Ok(())
    }
}
