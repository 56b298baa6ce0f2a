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
//! with a norm ("option B"). Convolutions of v1 start as in He et al. 2015, by fan out; all else
//! as in PyTorch. These are the choices of fb.resnet.torch and of pytorch-cifar. Inputs in [0, 1];
//! normalise them in front of the network.

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
/// When `depth` is not 6 n + 2 with n > 0, `widen` or `classes` is 0, or a parameter exists with
/// another shape.
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
    positive("widen", widen)?;
    let widths = [16, 32, 64].map(|width| width * widen);
    let blocks = (depth - 2) / 6;
    Residual::new(layers, classes, Init::He).build(vb, 32, &widths, blocks, false, &[])
}

/// ResNet-18 for images (N, 3, H, W): 11,173,962 parameters at 10 classes. Parameters as in
/// [`resnet_v1`], and `.shortcut.conv`, `.shortcut.norm`.
///
/// # Errors
/// When `classes` is 0, or a parameter exists with another shape.
pub fn resnet18(layers: &dyn Layers, vb: VarBuilder, classes: usize) -> Result<Network> {
    Residual::new(layers, classes, Init::Torch).build(vb, 32, &WIDTHS_18, 2, true, &[])
}

/// The convolutions of [`resnet18`] for images (N, 3, side, side), then three fully connected
/// layers `fc1`, `fc2`, `fc3` with `hidden` units and ReLUs between them: the network of Wen, Rios &
/// Itti (2020, section 4.2) with side 64, 1,028 units and 200 classes.
///
/// # Errors
/// When `side` is below 8, `hidden` or `classes` is 0, or a parameter exists with another shape.
pub fn resnet18_fc3(
    layers: &dyn Layers,
    vb: VarBuilder,
    side: usize,
    hidden: usize,
    classes: usize,
) -> Result<Network> {
    positive("hidden", hidden)?;
    if side < 8 {
        return Err(theriac::Error::Setting {
            name: "side",
            value: side.to_string(),
            remedy: "three stages halve the image: use at least 8 pixels",
        });
    }
    let head = [hidden, hidden];
    Residual::new(layers, classes, Init::Torch).build(vb, side, &WIDTHS_18, 2, true, &head)
}

const WIDTHS_18: [usize; 4] = [64, 128, 256, 512];

pub(crate) fn positive(name: &'static str, value: usize) -> Result<()> {
    if value == 0 {
        let (value, remedy) = (value.to_string(), "use at least 1");
        return Err(theriac::Error::Setting {
            name,
            value,
            remedy,
        });
    }
    Ok(())
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
        side: usize,
        widths: &[usize],
        blocks: usize,
        projection: bool,
        head: &[usize],
    ) -> Result<Network> {
        positive("classes", self.classes)?;
        let mut shape = Shape {
            channels: widths[0],
            side,
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
        let mut h = self.net.flatten(h);
        let mut inputs = shape.channels;
        for (i, &hidden) in head.iter().enumerate() {
            let fc = Linear::new(inputs, hidden);
            let fc = self.layers.linear(&fc, vb.pp(format!("fc{}", i + 1)))?;
            h = self.net.layer(h, fc);
            h = self.net.relu(h);
            inputs = hidden;
        }
        let name = match head.len() {
            0 => "fc".to_owned(),
            hidden => format!("fc{}", hidden + 1),
        };
        let fc = Linear::new(inputs, self.classes);
        let fc = self.layers.linear(&fc, vb.pp(name))?;
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

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use theriac::{Classifier, Labels, Mode, Pixels, Rng, Run};
    use theriac_nn::{Params, Plain, Twin};

    use super::*;

    fn params(dtype: DType) -> Params {
        Params::new(5, dtype, &Device::Cpu)
    }

    fn images(n: usize, side: usize, dtype: DType) -> Result<Pixels> {
        let values = Rng::new(3).uniform("x", 0, n * 3 * side * side);
        let x = Tensor::from_vec(values, (n, 3, side, side), &Device::Cpu)?;
        Pixels::new(x.to_dtype(dtype)?.affine(0.9, 0.05)?)
    }

    fn values(t: &Tensor) -> Result<Vec<f32>> {
        Ok(t.flatten_all()?.to_vec1()?)
    }

    /// Table 6 of the paper: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M. In full, by hand, with
    /// n = (depth - 2) / 6: stem 464; stages 2 n 2,336, 4,672 + (2 n - 1) 9,280,
    /// 18,560 + (2 n - 1) 36,992; last 650.
    #[test]
    fn resnet_v1_has_the_size_of_the_paper() -> Result<()> {
        for (depth, count) in [
            (20, 269_722),
            (32, 464_154),
            (44, 658_586),
            (56, 853_018),
            (110, 1_727_962),
        ] {
            let params = params(DType::F32);
            resnet_v1(&Plain, params.live(), depth, 1, 10)?;
            assert_eq!(params.count(), count, "depth {depth}");
        }
        Ok(())
    }

    /// Layers in the paper's sense: convolutions and the fully connected one, without shortcuts.
    #[test]
    fn depth_counts_layers_with_weights() -> Result<()> {
        let weighted = |params: &Params| {
            let all = params.all().into_iter();
            all.filter(|(path, var)| var.rank() > 1 && !path.contains("shortcut"))
                .count()
        };
        let v1 = params(DType::F32);
        resnet_v1(&Plain, v1.live(), 20, 1, 10)?;
        assert_eq!(weighted(&v1), 20);
        let of_18 = params(DType::F32);
        resnet18(&Plain, of_18.live(), 10)?;
        assert_eq!(weighted(&of_18), 18);
        // The size that the public implementations print (kuangliu/pytorch-cifar).
        assert_eq!(of_18.count(), 11_173_962);
        // In place of its last layer, 512 to 10: 512 to 1,028 to 1,028 to 200.
        let of_fc3 = params(DType::F32);
        resnet18_fc3(&Plain, of_fc3.live(), 64, 1028, 200)?;
        assert_eq!(of_fc3.count(), 12_959_808);
        Ok(())
    }

    #[test]
    fn parameters_keep_their_paths() -> Result<()> {
        let norm = ["bias", "running_mean", "running_var", "weight"];
        let conv_norm = |at: &str, number: &str| {
            let mut paths = vec![format!("{at}.conv{number}.weight")];
            paths.extend(norm.map(|leaf| format!("{at}.norm{number}.{leaf}")));
            paths
        };
        let paths_of = |stages: usize, blocks: usize, projection: bool| {
            let mut paths = vec!["fc.bias".to_owned(), "fc.weight".to_owned()];
            paths.extend(conv_norm("stem", ""));
            for stage in 1..=stages {
                for block in 0..blocks {
                    let at = format!("stage{stage}.{block}");
                    paths.extend(conv_norm(&at, "1"));
                    paths.extend(conv_norm(&at, "2"));
                    if projection && stage > 1 && block == 0 {
                        paths.extend(conv_norm(&format!("{at}.shortcut"), ""));
                    }
                }
            }
            paths.sort();
            paths
        };
        let paths = |params: &Params| -> Vec<String> {
            params.all().into_iter().map(|(path, _)| path).collect()
        };
        let v1 = params(DType::F32);
        resnet_v1(&Plain, v1.live(), 14, 2, 3)?;
        assert_eq!(paths(&v1), paths_of(3, 2, false));
        let of_18 = params(DType::F32);
        resnet18(&Plain, of_18.live(), 3)?;
        assert_eq!(paths(&of_18), paths_of(4, 2, true));
        Ok(())
    }

    #[test]
    fn refuses_what_is_no_residual_network() {
        let refused = |depth, widen, classes| {
            let made = resnet_v1(&Plain, params(DType::F32).live(), depth, widen, classes);
            made.err().map(|error| error.to_string()).unwrap()
        };
        for depth in [0, 1, 2, 7, 18, 21] {
            let text = refused(depth, 1, 10);
            assert!(text.contains("depth") && text.contains("6 n + 2"), "{text}");
        }
        assert!(refused(8, 0, 10).contains("widen"));
        assert!(refused(8, 1, 0).contains("classes"));
        assert!(resnet18(&Plain, params(DType::F32).live(), 0).is_err());
    }

    #[test]
    fn logits_are_one_a_class() -> Result<()> {
        let run = Run::new(0, &Device::Cpu);
        let x = images(2, 32, DType::F32)?;
        for mode in [Mode::Eval, Mode::Train] {
            let pass = Pass {
                mode,
                ..run.eval(&[0, 1])
            };
            for (depth, widen, classes) in [(8, 1, 7), (14, 2, 10)] {
                let net = resnet_v1(&Plain, params(DType::F32).live(), depth, widen, classes)?;
                assert_eq!(net.logits(&x, &pass)?.dims(), [2, classes]);
            }
            let net = resnet18(&Plain, params(DType::F32).live(), 100)?;
            assert_eq!(net.logits(&x, &pass)?.dims(), [2, 100]);
        }
        // Whole blocks to their last pixel: 2 x 2 in the last stage of v1.
        let (net, x) = (
            resnet_v1(&Plain, params(DType::F32).live(), 8, 1, 10)?,
            images(2, 6, DType::F32)?,
        );
        assert_eq!(net.logits(&x, &run.eval(&[0, 1]))?.dims(), [2, 10]);
        Ok(())
    }

    #[test]
    fn gradients_agree_with_differences() -> Result<()> {
        let labels = Labels::new(&[1, 7, 3], 10, &Device::Cpu)?;
        let twins = [
            (
                Twin::build(&params(DType::F64), |vb| resnet_v1(&Plain, vb, 8, 1, 10))?,
                8,
            ),
            (
                Twin::build(&params(DType::F64), |vb| resnet18(&Plain, vb, 10))?,
                4,
            ),
        ];
        for (twin, side) in twins {
            let x = images(3, side, DType::F64)?;
            theriac::contract::classifier(&twin.live, &x, &labels)?;
            theriac::contract::classifier(&twin.frozen, &x, &labels)?;
        }
        Ok(())
    }

    #[test]
    fn the_shortcut_takes_every_second_pixel_and_appends_zeros() -> Result<()> {
        let params = params(DType::F32);
        let shortcut = Subsample::new(3, 5, 2, &params.live())?;
        let mut net = Network::new(2);
        net.layer(net.image(), Box::new(shortcut));
        let run = Run::new(0, &Device::Cpu);
        for side in [6, 7] {
            let x = images(2, side, DType::F32)?;
            let half = side.div_ceil(2);
            let every = Tensor::new(
                (0..half as u32).map(|i| 2 * i).collect::<Vec<_>>(),
                &Device::Cpu,
            )?;
            let kept = x
                .tensor()
                .index_select(&every, 2)?
                .index_select(&every, 3)?;
            let zeros = Tensor::zeros((2, 2, half, half), DType::F32, &Device::Cpu)?;
            let expected = values(&Tensor::cat(&[&kept, &zeros], 1)?)?;
            let pass = run.eval(&[0, 1]);
            assert_eq!(values(&net.forward(x.tensor(), &pass)?)?, expected);
            assert_eq!(values(&net.step_by_step(x.tensor(), &pass)?)?, expected);
        }
        Ok(())
    }

    /// Without their branches (gamma 0) all blocks hand on the stem, at every fourth pixel.
    #[test]
    fn blocks_without_branches_are_the_identity() -> Result<()> {
        let params = params(DType::F32);
        let net = resnet_v1(&Plain, params.frozen(), 14, 1, 10)?;
        for (path, var) in params.all() {
            if path.ends_with("norm2.weight") {
                var.set(&var.zeros_like()?)?;
            }
        }
        let x = images(2, 32, DType::F32)?;
        let conv = Conv::new(3, 16, 3).padding(1).no_bias();
        let mut stem = Network::new(16);
        let h = stem.layer(
            stem.image(),
            Plain.conv(&conv, params.frozen().pp("stem.conv"))?,
        );
        let h = stem.layer(h, Plain.norm(16, params.frozen().pp("stem.norm"))?);
        stem.relu(h);
        let run = Run::new(0, &Device::Cpu);
        let pass = run.eval(&[0, 1]);
        let h = stem.forward(x.tensor(), &pass)?;
        let every = Tensor::new((0..8u32).map(|i| 4 * i).collect::<Vec<_>>(), &Device::Cpu)?;
        let h = h.index_select(&every, 2)?.index_select(&every, 3)?;
        let features = h.mean((2, 3))?.pad_with_zeros(1, 0, 48)?;
        let get = |path: &str| params.all().into_iter().find(|(p, _)| p == path).unwrap().1;
        let expected = features
            .matmul(&get("fc.weight").t()?)?
            .broadcast_add(get("fc.bias").as_tensor())?;
        let (actual, expected) = (values(&net.logits(&x, &pass)?)?, values(&expected)?);
        for (a, e) in actual.iter().zip(&expected) {
            assert!((a - e).abs() < 1e-5, "{a} against {e}");
        }
        Ok(())
    }
}
