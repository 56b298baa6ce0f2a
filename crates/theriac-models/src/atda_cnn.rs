//! The 28 x 28 network of ATDA and of the epoch-wise paper.
//!
//! ```text
//! conv 1->16, 4x4, stride 2, pad 1 - ReLU - conv 16->32, 4x4, stride 2, pad 1 - ReLU
//!   - flatten (1568) - FC 100 - ReLU - FC 10
//! ```
//!
//! "modelZ" of Song et al., "Improving the generalization of adversarial training with domain
//! adaptation", ICLR 2019: 166,406 parameters, Glorot uniform weights, zero biases. Inputs in
//! [0, 1], no normalisation.

use candle_core::Tensor;
use theriac::{Classifier, Pass, Pixels, Result};
use theriac_nn::{Conv, Init, Layer, Layers, Linear, Site, VarBuilder};
use theriac_ops::relu;

/// The network; input (N, 1, 28, 28).
pub struct AtdaCnn {
    conv1: Box<dyn Layer>,
    site1: Box<dyn Layer>,
    conv2: Box<dyn Layer>,
    site2: Box<dyn Layer>,
    fc1: Box<dyn Layer>,
    fc2: Box<dyn Layer>,
}

impl AtdaCnn {
    /// Parameters `conv1`, `conv2`, `fc1`, `fc2`.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    pub fn new(layers: &dyn Layers, vb: VarBuilder) -> Result<Self> {
        let conv = |i, o| Conv::new(i, o, 4).stride(2).padding(1).init(Init::Glorot);
        let linear = |i, o| Linear::new(i, o).init(Init::Glorot);
        Ok(Self {
            conv1: layers.conv(&conv(1, 16), vb.pp("conv1"))?,
            site1: layers.site(Site::Stem, (16, 14, 14), vb.pp("site1"))?,
            conv2: layers.conv(&conv(16, 32), vb.pp("conv2"))?,
            site2: layers.site(Site::Conv, (32, 7, 7), vb.pp("site2"))?,
            fc1: layers.linear(&linear(1568, 100), vb.pp("fc1"))?,
            fc2: layers.linear(&linear(100, 10), vb.pp("fc2"))?,
        })
    }
}

impl Classifier for AtdaCnn {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let h = relu(&self.conv1.forward(x.tensor(), pass)?)?;
        let h = self.site1.forward(&h, pass)?;
        let h = relu(&self.conv2.forward(&h, pass)?)?;
        let h = self.site2.forward(&h, pass)?.flatten_from(1)?;
        self.fc2.forward(&relu(&self.fc1.forward(&h, pass)?)?, pass)
    }

    fn classes(&self) -> usize {
        10
    }
}
