//! Noise behind the first convolution.

use theriac::{Error, Result};
use theriac_nn::{Chain, Conv, Layer, Layers, Noise, Plain, Share, VarBuilder};

use crate::PixelDp;

/// Noise behind the first convolution, of each image's own, in both modes. All other
/// layers are plain.
#[derive(Clone, Copy, Debug)]
pub struct NoisyFirst(pub(crate) PixelDp);

impl Layers for NoisyFirst {
    fn conv(&self, spec: &Conv, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        let Self(method) = self;
        if spec.inputs != method.channels {
            return Plain.conv(spec, vb);
        }
        method.check()?;
        let config = spec.config;
        if config.stride != method.stride || config.dilation != 1 || config.groups != 1 {
            return Err(Error::Setting {
                name: "stride",
                value: format!("{} for a convolution with {config:?}", method.stride),
                remedy: "give the first convolution's; dilation and groups have no bound here",
            });
        }
        let noise = Noise::fixed(method.std(), &vb, Share::Sample)?;
        let conv = Plain.conv(spec, vb)?;
        Ok(Box::new(Chain::new(vec![conv, Box::new(noise)])))
    }
}
