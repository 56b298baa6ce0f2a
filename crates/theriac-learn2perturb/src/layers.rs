//! Noise at the sites of a network.

use theriac::Result;
use theriac_nn::{Layer, Layers, Noise, Plain, Share, Site, VarBuilder};

use crate::{Placement, ThetaShape};

/// Last component of the path of a theta.
pub(crate) const NAME: &str = "theta";

/// The perturbation-injection module: `x + theta n` at the sites of a network, theta a parameter at
/// `theta`. All other layers are plain.
#[derive(Clone, Copy, Debug)]
pub struct Injection {
    /// Values of theta.
    pub theta: ThetaShape,
    /// Sites.
    pub placement: Placement,
    /// Who shares a draw.
    pub share: Share,
    /// Where theta starts.
    pub init: f64,
}

impl Layers for Injection {
    fn site(
        &self,
        site: Site,
        shape: (usize, usize, usize),
        vb: VarBuilder,
    ) -> Result<Box<dyn Layer>> {
        let here = match self.placement {
            Placement::Block => matches!(site, Site::Stem | Site::Block),
            Placement::EveryConv => matches!(site, Site::Stem | Site::Conv),
        };
        if !here {
            return Plain.site(site, shape, vb);
        }
        let (channels, _, _) = shape;
        let shape = match self.theta {
            ThetaShape::Element => shape,
            ThetaShape::Channel => (channels, 1, 1),
            ThetaShape::Layer => (1, 1, 1),
        };
        let theta = vb.get_with_hints(shape, NAME, candle_nn::Init::Const(self.init))?;
        Ok(Box::new(Noise::new(theta, vb.prefix(), self.share)?))
    }
}
