//! VGG-16 for 32 x 32 images.
//!
//! ```text
//! 64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M - flatten (512) - FC
//! a number: conv 3x3, pad 1 - norm - ReLU, with so many channels;   M: max pool 2
//! ```
//!
//! Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR
//! 2015, configuration D, with batch norm and one fully connected layer as in pytorch-cifar and the
//! codes of RSE and Adv-BNN. Parameters as there, which for the convolutions is torchvision's
//! `vgg16_bn`: `features.0` (convolution), `features.1` (norm), `features.3`, ..., `classifier`.
//! PyTorch's initial values. Inputs lie in [0, 1].

use theriac::Result;
use theriac_nn::{BatchNorm, Conv, Layers, Linear, Network, Site, VarBuilder};
use theriac_ops::PoolConfig;

use crate::resnet::positive;

const CHANNELS: [&[usize]; 5] = [
    &[64, 64],
    &[128, 128],
    &[256, 256, 256],
    &[512, 512, 512],
    &[512, 512, 512],
];

/// The network for images (N, 3, 32, 32): 14,728,266 parameters at 10 classes.
///
/// # Errors
/// When `classes` is 0, or a parameter exists with another shape.
pub fn vgg16(layers: &dyn Layers, vb: VarBuilder, classes: usize) -> Result<Network> {
    positive("classes", classes)?;
    let pool = PoolConfig {
        kernel: 2,
        stride: 2,
        padding: 0,
    };
    let mut net = Network::new(classes);
    let mut h = net.image();
    // Numbers count ReLUs and pools too, as in PyTorch's `Sequential`.
    let (mut inputs, mut side, mut number) = (3, 32, 0);
    for stage in CHANNELS {
        for &outputs in stage {
            let at = |number: usize| vb.pp(format!("features.{number}"));
            let conv = Conv::new(inputs, outputs, 3).padding(1);
            h = net.layer(h, layers.conv(&conv, at(number))?);
            h = net.layer(h, layers.norm(&BatchNorm::new(outputs), at(number + 1))?);
            let site = if number == 0 { Site::Stem } else { Site::Conv };
            let shape = (outputs, side, side);
            h = net.layer(h, layers.site(site, shape, at(number).pp("site"))?);
            h = net.relu(h);
            inputs = outputs;
            number += 3;
        }
        h = net.max_pool(h, pool);
        side /= 2;
        number += 1;
    }
    let h = net.flatten(h);
    let fc = Linear::new(inputs, classes);
    net.layer(h, layers.linear(&fc, vb.pp("classifier"))?);
    Ok(net)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use theriac::{Labels, Pixels, Rng, Run};
    use theriac_nn::{Params, Plain, Twin};

    use super::*;

    /// By hand: 9 in out + out of each convolution, 2 out of each norm, 5,130.
    #[test]
    fn has_its_published_size_and_names() -> Result<()> {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        vgg16(&Plain, params.live(), 10)?;
        assert_eq!(params.count(), 14_728_266);
        let shape = |path: &str| {
            let (_, var) = params.all().into_iter().find(|(p, _)| p == path).unwrap();
            var.dims().to_vec()
        };
        // Where torchvision's `vgg16_bn` has them.
        assert_eq!(shape("features.0.weight"), [64, 3, 3, 3]);
        assert_eq!(shape("features.7.weight"), [128, 64, 3, 3]);
        assert_eq!(shape("features.40.weight"), [512, 512, 3, 3]);
        assert_eq!(shape("features.41.running_var"), [512]);
        assert_eq!(shape("classifier.weight"), [10, 512]);
        assert!(vgg16(&Plain, params.live(), 0).is_err());
        Ok(())
    }

    /// One operation against single steps, and an image without neighbours.
    #[test]
    fn one_operation_gives_what_single_steps_give() -> Result<()> {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let twin = Twin::build(&params, |vb| vgg16(&Plain, vb, 10))?;
        let x = Tensor::from_vec(
            Rng::new(3).uniform("x", 0, 2 * 3072),
            (2, 3, 32, 32),
            &Device::Cpu,
        )?;
        let (x, run) = (Pixels::new(x)?, Run::new(0, &Device::Cpu));
        let pass = run.eval(&[0, 1]);
        let values = |t: Tensor| t.flatten_all()?.to_vec1::<f32>();
        let joined = values(twin.frozen.forward(x.tensor(), &pass)?)?;
        let single = values(twin.frozen.step_by_step(x.tensor(), &pass)?)?;
        for (a, e) in joined.iter().zip(&single) {
            assert!((a - e).abs() < 1e-4 * (1.0 + e.abs()), "{a} against {e}");
        }
        let labels = Labels::new(&[1, 7], 10, &Device::Cpu)?;
        let losses = theriac::Model::loss(&twin.live, &x, &labels, &run.train(&[0, 1]))?;
        let grads = losses.mean_all()?.backward()?;
        for (path, var) in params.trainable() {
            assert!(grads.get(&var).is_some(), "{path}");
        }
        Ok(())
    }
}
