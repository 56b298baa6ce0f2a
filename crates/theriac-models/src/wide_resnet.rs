//! Wide residual networks for 32 x 32 images.
//!
//! ```text
//! conv 3->16, 3x3 - 3 stages of (depth - 4) / 6 blocks, widths 16 k, 32 k, 64 k - norm - ReLU
//!   - global average pool - FC
//! block: norm - ReLU - conv 3x3 - norm - ReLU - conv 3x3 - add the shortcut
//! ```
//!
//! Zagoruyko & Komodakis, "Wide residual networks", BMVC 2016, without dropout. Later stages begin
//! with stride 2; where a block changes the shape, the shortcut is a 1x1 convolution of the
//! activation behind the block's first ReLU, as in the authors' code. Parameters as in the PyTorch
//! port that robustness work uses (xternalz/WideResNet-pytorch): `conv1`,
//! `block{1..3}.layer.{0..}.bn1`, `.conv1`, `.bn2`, `.conv2`, `.convShortcut`, `bn1`, `fc`.
//! Convolutions start as in He et al. 2015, by fan out. Inputs lie in [0, 1]; normalise them in
//! front of the network.

use theriac::{Error, Result};
use theriac_nn::{BatchNorm, Conv, Init, Layers, Linear, Network, Site, VarBuilder};

use crate::resnet::positive;

/// WRN-`depth`-`widen` for images (N, 3, H, W): 36,479,194 parameters at depth 28, factor 10 and 10
/// classes.
///
/// # Errors
/// When `depth` is not 6 n + 4 with n > 0, `widen` or `classes` is 0, or a parameter exists with
/// another shape.
pub fn wide_resnet(
    layers: &dyn Layers,
    vb: VarBuilder,
    depth: usize,
    widen: usize,
    classes: usize,
) -> Result<Network> {
    if depth < 10 || !(depth - 4).is_multiple_of(6) {
        return Err(Error::Setting {
            name: "depth",
            value: depth.to_string(),
            remedy: "use 6 n + 4: 16, 22, 28, 34, 40, 70",
        });
    }
    positive("widen", widen)?;
    positive("classes", classes)?;
    let conv = |inputs, outputs| {
        Conv::new(inputs, outputs, 3)
            .padding(1)
            .no_bias()
            .init(Init::He)
    };
    let mut net = Network::new(classes);
    let (mut channels, mut side) = (16, 32);
    let image = net.image();
    let h = net.layer(image, layers.conv(&conv(3, channels), vb.pp("conv1"))?);
    let mut h = net.layer(
        h,
        layers.site(Site::Stem, (channels, side, side), vb.pp("site"))?,
    );
    for stage in 0..3 {
        let width = (16 * widen) << stage;
        for block in 0..(depth - 4) / 6 {
            let vb = vb.pp(format!("block{}.layer.{block}", stage + 1));
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let norm = layers.norm(&BatchNorm::new(channels), vb.pp("bn1"))?;
            let activated = net.layer(h, norm);
            let activated = net.relu(activated);
            let first = conv(channels, width).stride(stride);
            let branch = net.layer(activated, layers.conv(&first, vb.pp("conv1"))?);
            side /= stride;
            let shape = (width, side, side);
            let site = layers.site(Site::Conv, shape, vb.pp("site1"))?;
            let branch = net.layer(branch, site);
            let branch = net.layer(branch, layers.norm(&BatchNorm::new(width), vb.pp("bn2"))?);
            let branch = net.relu(branch);
            let branch = net.layer(branch, layers.conv(&conv(width, width), vb.pp("conv2"))?);
            let site = layers.site(Site::Conv, shape, vb.pp("site2"))?;
            let branch = net.layer(branch, site);
            let shortcut = match channels == width {
                true => h,
                false => {
                    let conv = Conv::new(channels, width, 1).stride(stride);
                    let conv = conv.no_bias().init(Init::He);
                    net.layer(activated, layers.conv(&conv, vb.pp("convShortcut"))?)
                }
            };
            h = net.add(branch, shortcut);
            h = net.layer(h, layers.site(Site::Block, shape, vb.pp("site"))?);
            channels = width;
        }
    }
    let h = net.layer(h, layers.norm(&BatchNorm::new(channels), vb.pp("bn1"))?);
    let h = net.relu(h);
    let h = net.global_avg_pool(h);
    let h = net.flatten(h);
    net.layer(
        h,
        layers.linear(&Linear::new(channels, classes), vb.pp("fc"))?,
    );
    Ok(net)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use theriac::{Labels, Pixels, Rng};
    use theriac_nn::{Params, Plain, Twin};

    use super::*;

    /// The counts that the port's users print (RobustBench: WRN-28-10 and WRN-34-10).
    #[test]
    fn has_its_published_size() -> Result<()> {
        for (depth, widen, count) in [(28, 10, 36_479_194), (34, 10, 46_160_474)] {
            let params = Params::new(0, DType::F32, &Device::Cpu);
            wide_resnet(&Plain, params.live(), depth, widen, 10)?;
            assert_eq!(params.count(), count, "WRN-{depth}-{widen}");
        }
        Ok(())
    }

    #[test]
    fn gradients_agree_with_differences() -> Result<()> {
        let params = Params::new(0, DType::F64, &Device::Cpu);
        let twin = Twin::build(&params, |vb| wide_resnet(&Plain, vb, 10, 1, 10))?;
        let values = Rng::new(3).uniform("x", 0, 3 * 3 * 8 * 8);
        let x = Tensor::from_vec(values, (3, 3, 8, 8), &Device::Cpu)?;
        let x = Pixels::new(x.to_dtype(DType::F64)?.affine(0.9, 0.05)?)?;
        let labels = Labels::new(&[1, 7, 3], 10, &Device::Cpu)?;
        theriac::contract::classifier(&twin.live, &x, &labels)?;
        theriac::contract::classifier(&twin.frozen, &x, &labels)
    }

    #[test]
    fn refuses_other_depths() {
        for depth in [0, 4, 9, 20, 29] {
            let params = Params::new(0, DType::F32, &Device::Cpu);
            let made = wide_resnet(&Plain, params.live(), depth, 1, 10);
            let text = made.err().map(|error| error.to_string()).unwrap();
            assert!(text.contains("depth") && text.contains("6 n + 4"), "{text}");
        }
    }
}
