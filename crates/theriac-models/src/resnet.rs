//! Residual networks.
//!
//! ```text
//! stem - stages of blocks - global average pool - FC
//! basic block:  conv 3x3 - norm - ReLU - conv 3x3 - norm - add the shortcut - ReLU
//! bottleneck:   conv 1x1 - norm - ReLU - conv 3x3 - norm - ReLU - conv 1x1 - norm
//!               - add the shortcut - ReLU
//! ```
//!
//! He et al., "Deep residual learning for image recognition", CVPR 2016. Later stages begin with
//! stride 2, in a bottleneck's 3x3 convolution as in fb.resnet.torch and torchvision (the paper has
//! it in the first 1x1). Where a block changes the shape, the shortcut is a 1x1 convolution with a
//! norm ("option B"), that of [`resnet_v1`] takes every second pixel and appends channels of zeros
//! ("option A").
//!
//! | network | stem | stages | blocks |
//! | --- | --- | --- | --- |
//! | [`resnet_v1`], section 4.2 | 3x3 | 3 of (depth - 2) / 6, from 16 channels | basic |
//! | [`resnet18_cifar`], as in pytorch-cifar | 3x3 | 2, 2, 2, 2, from 64 | basic |
//! | [`resnet50_cifar`], the same | 3x3 | 3, 4, 6, 3, from 64 | bottleneck, output 4 times the width |
//! | [`bottleneck_resnet`], as in Mixup-Inference | 5x5 | 5, 5, 5, from 64 | bottleneck, output the width |
//! | [`resnet18`], [`resnet34`], [`resnet50`], table 1 | 7x7, stride 2, max pool | 2 2 2 2, 3 4 6 3, 3 4 6 3 | basic, basic, bottleneck |
//!
//! Parameters have torchvision's paths: `conv1`, `bn1`, `layer{1..}.{0..}.conv{1..}`, `.bn{1..}`,
//! `.downsample.0`, `.downsample.1`, `fc`. Convolutions of [`resnet_v1`] and [`bottleneck_resnet`]
//! start as in He et al. 2015, by fan out, all else as in PyTorch. Inputs lie in [0, 1]; normalise
//! them in front of the network.

use candle_core::{DType, Tensor};
use theriac::{Error, Pass, Result};
use theriac_nn::{
    BatchNorm, Conv, Form, Init, Layer, Layers, Linear, Network, Site, Value, VarBuilder,
};
use theriac_ops::network::Op;
use theriac_ops::{ConvConfig, PoolConfig, conv2d};

/// ResNet-v1 of `depth` 6 n + 2 for images (N, 3, H, W), with `width`, 2 `width` and 4 `width`
/// channels; 16 is the paper's width: 269,722 parameters at depth 20 and 10 classes.
///
/// # Errors
/// When `depth` is not 6 n + 2 with n > 0, `width` or `classes` is 0, or a parameter exists with
/// another shape.
pub fn resnet_v1(
    layers: &dyn Layers,
    vb: VarBuilder,
    depth: usize,
    width: usize,
    classes: usize,
) -> Result<Network> {
    if depth < 8 || !(depth - 2).is_multiple_of(6) {
        return Err(Error::Setting {
            name: "depth",
            value: depth.to_string(),
            remedy: "use 6 n + 2: 20, 32, 44, 56, 110",
        });
    }
    let blocks = [(depth - 2) / 6; 3];
    let plan = Plan {
        stem: Stem::Small { kernel: 3 },
        side: 32,
        width,
        blocks: &blocks,
        block: Block::Basic,
        shortcut: Shortcut::Zeros,
        init: Init::He,
    };
    plan.build(layers, vb, classes, &[])
}

/// ResNet-18 for images of 32 x 32: 11,173,962 parameters at 10 classes.
///
/// # Errors
/// When `classes` is 0, or a parameter exists with another shape.
pub fn resnet18_cifar(layers: &dyn Layers, vb: VarBuilder, classes: usize) -> Result<Network> {
    EIGHTEEN.small(32).build(layers, vb, classes, &[])
}

/// ResNet-50 for images of 32 x 32: 23,520,842 parameters at 10 classes.
///
/// # Errors
/// When `classes` is 0, or a parameter exists with another shape.
pub fn resnet50_cifar(layers: &dyn Layers, vb: VarBuilder, classes: usize) -> Result<Network> {
    FIFTY.small(32).build(layers, vb, classes, &[])
}

/// The network of Pang, Xu & Zhu, "Mixup inference", ICLR 2020, which their code calls ResNet-50:
/// three stages of five bottlenecks whose output is as wide as their middle. 4,752,586 parameters
/// at 10 classes, 4,775,716 at 100.
///
/// # Errors
/// When `classes` is 0, or a parameter exists with another shape.
pub fn bottleneck_resnet(layers: &dyn Layers, vb: VarBuilder, classes: usize) -> Result<Network> {
    let plan = Plan {
        stem: Stem::Small { kernel: 5 },
        blocks: &[5, 5, 5],
        block: Block::Bottleneck { expansion: 1 },
        init: Init::He,
        ..FIFTY.small(32)
    };
    plan.build(layers, vb, classes, &[])
}

/// ResNet-18 for images of 224 x 224: 11,689,512 parameters at 1,000 classes.
///
/// # Errors
/// When `classes` is 0, or a parameter exists with another shape.
pub fn resnet18(layers: &dyn Layers, vb: VarBuilder, classes: usize) -> Result<Network> {
    EIGHTEEN.build(layers, vb, classes, &[])
}

/// ResNet-34 for images of 224 x 224: 21,797,672 parameters at 1,000 classes.
///
/// # Errors
/// When `classes` is 0, or a parameter exists with another shape.
pub fn resnet34(layers: &dyn Layers, vb: VarBuilder, classes: usize) -> Result<Network> {
    let plan = Plan {
        blocks: &[3, 4, 6, 3],
        ..EIGHTEEN
    };
    plan.build(layers, vb, classes, &[])
}

/// ResNet-50 for images of 224 x 224: 25,557,032 parameters at 1,000 classes.
///
/// # Errors
/// When `classes` is 0, or a parameter exists with another shape.
pub fn resnet50(layers: &dyn Layers, vb: VarBuilder, classes: usize) -> Result<Network> {
    FIFTY.build(layers, vb, classes, &[])
}

/// The convolutions of [`resnet18_cifar`] for images (N, 3, side, side), then three fully connected
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
        return Err(Error::Setting {
            name: "side",
            value: side.to_string(),
            remedy: "three stages halve the image: use at least 8 pixels",
        });
    }
    EIGHTEEN
        .small(side)
        .build(layers, vb, classes, &[hidden, hidden])
}

const EIGHTEEN: Plan<'static> = Plan {
    stem: Stem::Large,
    side: 224,
    width: 64,
    blocks: &[2, 2, 2, 2],
    block: Block::Basic,
    shortcut: Shortcut::Projection,
    init: Init::Torch,
};

const FIFTY: Plan<'static> = Plan {
    blocks: &[3, 4, 6, 3],
    block: Block::Bottleneck { expansion: 4 },
    ..EIGHTEEN
};

pub(crate) fn positive(name: &'static str, value: usize) -> Result<()> {
    if value == 0 {
        let (value, remedy) = (value.to_string(), "use at least 1");
        return Err(Error::Setting {
            name,
            value,
            remedy,
        });
    }
    Ok(())
}

/// What distinguishes residual networks.
#[derive(Clone, Copy)]
struct Plan<'a> {
    stem: Stem,
    /// Of the image.
    side: usize,
    /// Of the first stage; it doubles from stage to stage.
    width: usize,
    /// In each stage.
    blocks: &'a [usize],
    block: Block,
    shortcut: Shortcut,
    init: Init,
}

#[derive(Clone, Copy)]
enum Stem {
    /// One convolution at full size.
    Small { kernel: usize },
    /// 7x7 with stride 2, then max pooling.
    Large,
}

#[derive(Clone, Copy)]
enum Block {
    Basic,
    Bottleneck { expansion: usize },
}

#[derive(Clone, Copy)]
enum Shortcut {
    Zeros,
    Projection,
}

impl Plan<'_> {
    fn small(self, side: usize) -> Self {
        let stem = Stem::Small { kernel: 3 };
        Self { stem, side, ..self }
    }

    fn build(
        self,
        layers: &dyn Layers,
        vb: VarBuilder,
        classes: usize,
        head: &[usize],
    ) -> Result<Network> {
        positive("width", self.width)?;
        positive("classes", classes)?;
        let net = Network::new(classes);
        let mut residual = Residual {
            plan: self,
            layers,
            net,
        };
        let h = residual.stages(&vb)?;
        let mut net = residual.net;
        let h = net.global_avg_pool(h);
        let mut h = net.flatten(h);
        let mut inputs = self.outputs(self.width << (self.blocks.len() - 1));
        for (i, &hidden) in head.iter().enumerate() {
            let fc = Linear::new(inputs, hidden);
            h = net.layer(h, layers.linear(&fc, vb.pp(format!("fc{}", i + 1)))?);
            h = net.relu(h);
            inputs = hidden;
        }
        let name = match head.len() {
            0 => "fc".to_owned(),
            hidden => format!("fc{}", hidden + 1),
        };
        net.layer(
            h,
            layers.linear(&Linear::new(inputs, classes), vb.pp(name))?,
        );
        Ok(net)
    }

    /// Channels behind a block of this width.
    fn outputs(self, width: usize) -> usize {
        match self.block {
            Block::Basic => width,
            Block::Bottleneck { expansion } => expansion * width,
        }
    }
}

struct Residual<'a> {
    plan: Plan<'a>,
    layers: &'a dyn Layers,
    net: Network,
}

/// Channels and side of a square activation.
#[derive(Clone, Copy)]
struct Shape {
    channels: usize,
    side: usize,
}

impl Residual<'_> {
    fn stages(&mut self, vb: &VarBuilder) -> Result<Value> {
        let Plan {
            stem,
            side,
            width,
            blocks,
            ..
        } = self.plan;
        let (conv, side) = match stem {
            Stem::Small { kernel } => (Conv::new(3, width, kernel).padding(kernel / 2), side),
            Stem::Large => (Conv::new(3, width, 7).stride(2).padding(3), side / 2),
        };
        let image = self.net.image();
        let mut shape = Shape {
            channels: width,
            side,
        };
        let h = self.conv_norm(image, conv, vb.pp("conv1"), vb.pp("bn1"))?;
        let h = self.site(Site::Stem, h, shape, vb.pp("site"))?;
        let mut h = self.net.relu(h);
        if let Stem::Large = stem {
            let pool = PoolConfig {
                kernel: 3,
                stride: 2,
                padding: 1,
            };
            h = self.net.max_pool(h, pool);
            shape.side /= 2;
        }
        for (stage, &blocks) in blocks.iter().enumerate() {
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let vb = vb.pp(format!("layer{}.{block}", stage + 1));
                (h, shape) = self.block(h, shape, width << stage, stride, &vb)?;
            }
        }
        Ok(h)
    }

    fn block(
        &mut self,
        x: Value,
        from: Shape,
        width: usize,
        stride: usize,
        vb: &VarBuilder,
    ) -> Result<(Value, Shape)> {
        let to = Shape {
            channels: self.plan.outputs(width),
            side: from.side.div_ceil(stride),
        };
        let wide = |inputs| Conv::new(inputs, width, 3).padding(1);
        let convs = match self.plan.block {
            Block::Basic => vec![wide(from.channels).stride(stride), wide(width)],
            Block::Bottleneck { .. } => vec![
                Conv::new(from.channels, width, 1),
                wide(width).stride(stride),
                Conv::new(width, to.channels, 1),
            ],
        };
        let (mut h, mut side, last) = (x, from.side, convs.len());
        for (i, conv) in convs.into_iter().enumerate() {
            let number = i + 1;
            side = side.div_ceil(conv.config.stride);
            let channels = conv.outputs;
            let at = |name: &str| vb.pp(format!("{name}{number}"));
            h = self.conv_norm(h, conv, at("conv"), at("bn"))?;
            h = self.site(Site::Conv, h, Shape { channels, side }, at("site"))?;
            if number < last {
                h = self.net.relu(h);
            }
        }
        let shortcut = self.shortcut(x, from, to, stride, vb)?;
        let h = self.net.add(h, shortcut);
        let h = self.site(Site::Block, h, to, vb.pp("site"))?;
        Ok((self.net.relu(h), to))
    }

    fn shortcut(
        &mut self,
        x: Value,
        from: Shape,
        to: Shape,
        stride: usize,
        vb: &VarBuilder,
    ) -> Result<Value> {
        if stride == 1 && from.channels == to.channels {
            return Ok(x);
        }
        match self.plan.shortcut {
            Shortcut::Zeros => {
                let layer = Subsample::new(from.channels, to.channels, stride, vb)?;
                Ok(self.net.layer(x, Box::new(layer)))
            }
            Shortcut::Projection => {
                let conv = Conv::new(from.channels, to.channels, 1).stride(stride);
                self.conv_norm(x, conv, vb.pp("downsample.0"), vb.pp("downsample.1"))
            }
        }
    }

    fn conv_norm(
        &mut self,
        x: Value,
        conv: Conv,
        conv_at: VarBuilder,
        norm_at: VarBuilder,
    ) -> Result<Value> {
        let outputs = conv.outputs;
        let conv = conv.no_bias().init(self.plan.init);
        let h = self.net.layer(x, self.layers.conv(&conv, conv_at)?);
        Ok(self
            .net
            .layer(h, self.layers.norm(&BatchNorm::new(outputs), norm_at)?))
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
            resnet_v1(&Plain, params.live(), depth, 16, 10)?;
            assert_eq!(params.count(), count, "depth {depth}");
        }
        Ok(())
    }

    /// [`resnet18_cifar`] as kuangliu/pytorch-cifar prints, those for large images as torchvision,
    /// [`bottleneck_resnet`] counted from the published code.
    #[test]
    fn networks_have_their_published_size() -> Result<()> {
        type Make = fn(&dyn Layers, VarBuilder, usize) -> Result<Network>;
        let all: [(Make, usize, usize); 7] = [
            (resnet18_cifar, 10, 11_173_962),
            (resnet50_cifar, 10, 23_520_842),
            (bottleneck_resnet, 10, 4_752_586),
            (bottleneck_resnet, 100, 4_775_716),
            (resnet18, 1000, 11_689_512),
            (resnet34, 1000, 21_797_672),
            (resnet50, 1000, 25_557_032),
        ];
        for (make, classes, count) in all {
            let params = params(DType::F32);
            make(&Plain, params.live(), classes)?;
            assert_eq!(params.count(), count);
        }
        Ok(())
    }

    /// 4.1e9 multiplications with an addition for a forward pass, as torchvision prints.
    #[test]
    fn resnet50_has_its_published_cost() -> Result<()> {
        let net = resnet50(&Plain, params(DType::F32).frozen(), 1000)?;
        let image = Tensor::zeros((1, 3, 224, 224), DType::F32, &Device::Cpu)?;
        let run = Run::new(0, &Device::Cpu);
        let count = net.operations(&image, &run.eval(&[0]))?;
        let pairs = count.forward as f64 / 2e9;
        assert!((4.09..4.2).contains(&pairs), "{pairs}");
        assert!(count.backward > 19 * count.forward / 10, "{count:?}");
        Ok(())
    }

    /// Layers in the paper's sense: convolutions and the fully connected one, without shortcuts.
    #[test]
    fn depth_counts_layers_with_weights() -> Result<()> {
        let weighted = |params: &Params| {
            let all = params.all().into_iter();
            all.filter(|(path, var)| var.rank() > 1 && !path.contains("downsample"))
                .count()
        };
        let v1 = params(DType::F32);
        resnet_v1(&Plain, v1.live(), 20, 16, 10)?;
        assert_eq!(weighted(&v1), 20);
        let of_18 = params(DType::F32);
        resnet18_cifar(&Plain, of_18.live(), 10)?;
        assert_eq!(weighted(&of_18), 18);
        // In place of its last layer, 512 to 10: 512 to 1,028 to 1,028 to 200.
        let of_fc3 = params(DType::F32);
        resnet18_fc3(&Plain, of_fc3.live(), 64, 1028, 200)?;
        assert_eq!(of_fc3.count(), 12_959_808);
        Ok(())
    }

    #[test]
    fn parameters_have_the_paths_of_torchvision() -> Result<()> {
        let norm = ["bias", "running_mean", "running_var", "weight"];
        let conv_norm = |conv: String, norm_at: String| {
            let mut paths = vec![format!("{conv}.weight")];
            paths.extend(norm.map(|leaf| format!("{norm_at}.{leaf}")));
            paths
        };
        // A stage that begins with a projection is in `projected`.
        let paths_of = |blocks: &[usize], convs: usize, projected: &[usize]| {
            let mut paths = vec!["fc.bias".to_owned(), "fc.weight".to_owned()];
            paths.extend(conv_norm("conv1".to_owned(), "bn1".to_owned()));
            for (stage, &blocks) in blocks.iter().enumerate() {
                for block in 0..blocks {
                    let at = format!("layer{}.{block}", stage + 1);
                    for i in 1..=convs {
                        paths.extend(conv_norm(format!("{at}.conv{i}"), format!("{at}.bn{i}")));
                    }
                    if block == 0 && projected.contains(&(stage + 1)) {
                        let at = format!("{at}.downsample");
                        paths.extend(conv_norm(format!("{at}.0"), format!("{at}.1")));
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
        resnet_v1(&Plain, v1.live(), 14, 32, 3)?;
        assert_eq!(paths(&v1), paths_of(&[2; 3], 2, &[]));
        let of_18 = params(DType::F32);
        resnet18(&Plain, of_18.live(), 3)?;
        assert_eq!(paths(&of_18), paths_of(&[2; 4], 2, &[2, 3, 4]));
        let of_50 = params(DType::F32);
        resnet50(&Plain, of_50.live(), 3)?;
        assert_eq!(paths(&of_50), paths_of(&[3, 4, 6, 3], 3, &[1, 2, 3, 4]));
        Ok(())
    }

    #[test]
    fn refuses_what_is_no_residual_network() {
        let refused = |depth, width, classes| {
            let made = resnet_v1(&Plain, params(DType::F32).live(), depth, width, classes);
            made.err().map(|error| error.to_string()).unwrap()
        };
        for depth in [0, 1, 2, 7, 18, 21] {
            let text = refused(depth, 16, 10);
            assert!(text.contains("depth") && text.contains("6 n + 2"), "{text}");
        }
        assert!(refused(8, 0, 10).contains("width"));
        assert!(refused(8, 16, 0).contains("classes"));
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
            for (depth, width, classes) in [(8, 16, 7), (14, 32, 10)] {
                let net = resnet_v1(&Plain, params(DType::F32).live(), depth, width, classes)?;
                assert_eq!(net.logits(&x, &pass)?.dims(), [2, classes]);
            }
            let net = resnet18_cifar(&Plain, params(DType::F32).live(), 100)?;
            assert_eq!(net.logits(&x, &pass)?.dims(), [2, 100]);
        }
        // Whole blocks to their last pixel: 2 x 2 in the last stage of v1.
        let (net, x) = (
            resnet_v1(&Plain, params(DType::F32).live(), 8, 16, 10)?,
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
                Twin::build(&params(DType::F64), |vb| resnet_v1(&Plain, vb, 8, 16, 10))?,
                8,
            ),
            (
                Twin::build(&params(DType::F64), |vb| resnet18_cifar(&Plain, vb, 10))?,
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
        let net = resnet_v1(&Plain, params.frozen(), 14, 16, 10)?;
        for (path, var) in params.all() {
            if path.ends_with("bn2.weight") {
                var.set(&var.zeros_like()?)?;
            }
        }
        let x = images(2, 32, DType::F32)?;
        let conv = Conv::new(3, 16, 3).padding(1).no_bias();
        let mut stem = Network::new(16);
        let h = stem.layer(
            stem.image(),
            Plain.conv(&conv, params.frozen().pp("conv1"))?,
        );
        let h = stem.layer(
            h,
            Plain.norm(&BatchNorm::new(16), params.frozen().pp("bn1"))?,
        );
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
