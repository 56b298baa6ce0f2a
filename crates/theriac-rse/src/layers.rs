//! RSE: noise in front of every convolution.
//!
//! ```text
//! h <- conv(h + s n),   n ~ N(0, 1),   s = 0.2 on the image, 0.1 inside
//! p(x) = mean over draws of softmax(f(x))
//! ```
//!
//! Liu, Cheng, Zhang & Hsieh, "Towards robust neural networks via random self-ensemble", ECCV 2018,
//! section 3. The noise is on at test. It is measured in pixels of [0, 1]: do not normalise them in
//! front. Noise on the image leaves [0, 1].

use serde::{Deserialize, Serialize};
use theriac::{Error, Result};
use theriac_nn::{Chain, Conv, Layer, Layers, Noise, Plain, Share, VarBuilder};

/// The settings of the method.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rse {
    /// Deviation in front of the first convolution.
    pub init: f64,
    /// Deviation in front of all others.
    pub inner: f64,
    /// Channels of the images: the convolution that reads so many is the first.
    pub channels: usize,
}

impl Default for Rse {
    fn default() -> Self {
        Self {
            init: 0.2,
            inner: 0.1,
            channels: 3,
        }
    }
}

impl Rse {
    /// Where a network gets its layers.
    pub fn hook(&self) -> NoisyConvs {
        NoisyConvs(*self)
    }
}

/// Noise in front of every convolution, of each image's own. All other layers are plain.
#[derive(Clone, Copy, Debug)]
pub struct NoisyConvs(Rse);

impl Layers for NoisyConvs {
    fn conv(&self, spec: &Conv, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        let Rse {
            init,
            inner,
            channels,
        } = self.0;
        let (name, std) = match spec.inputs == channels {
            true => ("init", init),
            false => ("inner", inner),
        };
        if !(std >= 0.0 && std.is_finite()) {
            return Err(Error::Setting {
                name,
                value: std.to_string(),
                remedy: "use a finite deviation of at least 0",
            });
        }
        let noise = Noise::fixed(std, &vb, Share::Sample)?;
        let conv = Plain.conv(spec, vb)?;
        Ok(Box::new(Chain::new(vec![Box::new(noise), conv])))
    }
}
