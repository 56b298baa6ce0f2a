//! Networks as data.

use serde::{Deserialize, Serialize};
use theriac::Result;
use theriac_nn::{Layers, Network, VarBuilder};

use crate::{
    Transformer, advertorch_lenet, atda_cnn, bottleneck_resnet, efficientnet_lite0, lenet,
    resnet_v1, resnet18, resnet18_cifar, resnet18_fc3, resnet34, resnet50, resnet50_cifar,
    resnext29, squeezenet, vgg16, wide_resnet,
};

/// A network as it stands in TOML: `{ kind = "lenet" }`,
/// `{ kind = "resnet-v1", depth = 20, classes = 10 }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Spec {
    /// [`atda_cnn`].
    AtdaCnn,
    /// [`lenet()`].
    Lenet,
    /// [`advertorch_lenet`].
    AdvertorchLenet,
    /// [`resnet_v1`].
    ResnetV1 {
        /// Layers, 6 n + 2.
        depth: usize,
        /// Channels of the first stage.
        #[serde(default = "sixteen")]
        width: usize,
        /// Number of classes.
        classes: usize,
    },
    /// [`resnet18_cifar`].
    Resnet18Cifar {
        /// Number of classes.
        classes: usize,
    },
    /// [`resnet50_cifar`].
    Resnet50Cifar {
        /// Number of classes.
        classes: usize,
    },
    /// [`bottleneck_resnet`].
    BottleneckResnet {
        /// Number of classes.
        classes: usize,
    },
    /// [`wide_resnet`].
    WideResnet {
        /// Layers, 6 n + 4.
        depth: usize,
        /// Factor of the widths.
        widen: usize,
        /// Number of classes.
        classes: usize,
    },
    /// [`vgg16`].
    Vgg16 {
        /// Number of classes.
        classes: usize,
    },
    /// [`resnext29`].
    Resnext29 {
        /// Groups of the 3x3 convolutions.
        groups: usize,
        /// Channels of a group in the first stage.
        width: usize,
        /// Number of classes.
        classes: usize,
    },
    /// [`resnet18`].
    Resnet18 {
        /// Number of classes.
        classes: usize,
    },
    /// [`resnet34`].
    Resnet34 {
        /// Number of classes.
        classes: usize,
    },
    /// [`resnet50`].
    Resnet50 {
        /// Number of classes.
        classes: usize,
    },
    /// [`efficientnet_lite0`].
    EfficientnetLite0 {
        /// Number of classes.
        classes: usize,
    },
    /// [`squeezenet()`].
    Squeezenet {
        /// Number of classes.
        classes: usize,
    },
    /// [`Transformer::tiny`].
    DeitTiny {
        /// Number of classes.
        classes: usize,
    },
    /// [`Transformer::small`].
    DeitSmall {
        /// Number of classes.
        classes: usize,
    },
    /// [`Transformer::base`].
    DeitBase {
        /// Number of classes.
        classes: usize,
    },
    /// [`Transformer::cifar`].
    DeitCifar {
        /// Pixels on a side of a patch, 4 unless told.
        #[serde(default = "four")]
        patch: usize,
        /// Number of classes.
        classes: usize,
    },
    /// [`resnet18_fc3`].
    Resnet18Fc3 {
        /// Pixels on a side of an image.
        side: usize,
        /// Units of the two hidden layers.
        hidden: usize,
        /// Number of classes.
        classes: usize,
    },
}

fn four() -> usize {
    4
}

fn sixteen() -> usize {
    16
}

impl Spec {
    /// The network over the parameters of `vb`.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    pub fn build(self, layers: &dyn Layers, vb: VarBuilder) -> Result<Network> {
        match self {
            Self::AtdaCnn => atda_cnn(layers, vb),
            Self::Lenet => lenet(layers, vb),
            Self::AdvertorchLenet => advertorch_lenet(layers, vb),
            Self::ResnetV1 {
                depth,
                width,
                classes,
            } => resnet_v1(layers, vb, depth, width, classes),
            Self::Resnet18Cifar { classes } => resnet18_cifar(layers, vb, classes),
            Self::Resnet50Cifar { classes } => resnet50_cifar(layers, vb, classes),
            Self::BottleneckResnet { classes } => bottleneck_resnet(layers, vb, classes),
            Self::WideResnet {
                depth,
                widen,
                classes,
            } => wide_resnet(layers, vb, depth, widen, classes),
            Self::Vgg16 { classes } => vgg16(layers, vb, classes),
            Self::Resnext29 {
                groups,
                width,
                classes,
            } => resnext29(layers, vb, groups, width, classes),
            Self::Resnet18 { classes } => resnet18(layers, vb, classes),
            Self::Resnet34 { classes } => resnet34(layers, vb, classes),
            Self::Resnet50 { classes } => resnet50(layers, vb, classes),
            Self::EfficientnetLite0 { classes } => efficientnet_lite0(layers, vb, classes),
            Self::Squeezenet { classes } => squeezenet(layers, vb, classes),
            Self::DeitTiny { classes } => Transformer::tiny(classes).build(layers, vb),
            Self::DeitSmall { classes } => Transformer::small(classes).build(layers, vb),
            Self::DeitBase { classes } => Transformer::base(classes).build(layers, vb),
            Self::DeitCifar { patch, classes } => Transformer {
                patch,
                ..Transformer::cifar(classes)
            }
            .build(layers, vb),
            Self::Resnet18Fc3 {
                side,
                hidden,
                classes,
            } => resnet18_fc3(layers, vb, side, hidden, classes),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use theriac::{Labels, Pixels, Rng};
    use theriac_nn::{Params, Plain, Twin};

    use super::*;

    #[test]
    fn text_and_back() {
        let v1 = |depth, width, classes| Spec::ResnetV1 {
            depth,
            width,
            classes,
        };
        for (text, spec) in [
            ("kind = \"atda-cnn\"", Spec::AtdaCnn),
            ("kind = \"lenet\"", Spec::Lenet),
            ("kind = \"advertorch-lenet\"", Spec::AdvertorchLenet),
            (
                "kind = \"resnet-v1\"\ndepth = 20\nclasses = 10",
                v1(20, 16, 10),
            ),
            (
                "kind = \"resnet-v1\"\ndepth = 32\nwidth = 64\nclasses = 100",
                v1(32, 64, 100),
            ),
            (
                "kind = \"resnet18\"\nclasses = 10",
                Spec::Resnet18 { classes: 10 },
            ),
            (
                "kind = \"resnet18-cifar\"\nclasses = 10",
                Spec::Resnet18Cifar { classes: 10 },
            ),
            (
                "kind = \"bottleneck-resnet\"\nclasses = 100",
                Spec::BottleneckResnet { classes: 100 },
            ),
            (
                "kind = \"wide-resnet\"\ndepth = 28\nwiden = 10\nclasses = 10",
                Spec::WideResnet {
                    depth: 28,
                    widen: 10,
                    classes: 10,
                },
            ),
            (
                "kind = \"vgg16\"\nclasses = 10",
                Spec::Vgg16 { classes: 10 },
            ),
            (
                "kind = \"resnext29\"\ngroups = 2\nwidth = 64\nclasses = 10",
                Spec::Resnext29 {
                    groups: 2,
                    width: 64,
                    classes: 10,
                },
            ),
            (
                "kind = \"deit-cifar\"\nclasses = 10",
                Spec::DeitCifar {
                    patch: 4,
                    classes: 10,
                },
            ),
            (
                "kind = \"efficientnet-lite0\"\nclasses = 1000",
                Spec::EfficientnetLite0 { classes: 1000 },
            ),
            (
                "kind = \"squeezenet\"\nclasses = 1000",
                Spec::Squeezenet { classes: 1000 },
            ),
            (
                "kind = \"resnet50\"\nclasses = 1000",
                Spec::Resnet50 { classes: 1000 },
            ),
            (
                "kind = \"resnet18-fc3\"\nside = 64\nhidden = 1028\nclasses = 200",
                Spec::Resnet18Fc3 {
                    side: 64,
                    hidden: 1028,
                    classes: 200,
                },
            ),
        ] {
            assert_eq!(toml::from_str::<Spec>(text).unwrap(), spec);
            let written = toml::to_string(&spec).unwrap();
            assert_eq!(toml::from_str::<Spec>(&written).unwrap(), spec, "{written}");
        }
        for wrong in [
            "kind = \"resnet-v1\"\ndepth = 20",
            "kind = \"resnet-v1\"\ndepth = 20\nclasses = 10\nwiden = 2",
            "kind = \"resnet18\"",
            "kind = \"resnet-18\"\nclasses = 10",
        ] {
            assert!(toml::from_str::<Spec>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks_have_their_published_size_and_right_gradients() -> Result<()> {
        for (spec, count) in [
            (Spec::AtdaCnn, 166_406),
            (Spec::Lenet, 61_706),
            (Spec::AdvertorchLenet, 648_226),
        ] {
            let params = Params::new(1, DType::F64, &Device::Cpu);
            let twin = Twin::build(&params, |vb| spec.build(&Plain, vb))?;
            assert_eq!(params.count(), count, "{spec:?}");
            let values = Rng::new(3).uniform("x", 0, 3 * 784);
            let x = Tensor::from_vec(values, (3, 1, 28, 28), &Device::Cpu)?;
            let x = Pixels::new(x.to_dtype(DType::F64)?.affine(0.9, 0.05)?)?;
            let labels = Labels::new(&[1, 7, 3], 10, &Device::Cpu)?;
            theriac::contract::classifier(&twin.live, &x, &labels)?;
            theriac::contract::classifier(&twin.frozen, &x, &labels)?;
            let params = Params::new(1, DType::F32, &Device::Cpu);
            let net = spec.build(&Plain, params.frozen())?;
            theriac::contract::prepared(&net, &x.to_dtype(DType::F32)?)?;
        }
        Ok(())
    }
}
