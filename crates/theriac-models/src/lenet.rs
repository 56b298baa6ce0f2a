//! LeNet-5 for 28 x 28 images.
//!
//! ```text
//! conv 1->6, 5x5, pad 2 - ReLU - max pool 2 - conv 6->16, 5x5 - ReLU - max pool 2
//!   - flatten (400) - FC 120 - ReLU - FC 84 - ReLU - FC 10
//! ```
//!
//! LeCun et al., "Gradient-based learning applied to document recognition", 1998, in the form in
//! common use today (ReLU, max pooling, dense second convolution): 61,706 parameters, PyTorch's
//! initial values.

use candle_core::Tensor;
use theriac::{Classifier, Pass, Pixels, Result};
use theriac_nn::{Conv, Layer, Layers, Linear, Site, VarBuilder};
use theriac_ops::{PoolConfig, max_pool2d, relu};

/// The network; input (N, 1, 28, 28).
pub struct Lenet {
    conv1: Box<dyn Layer>,
    site1: Box<dyn Layer>,
    conv2: Box<dyn Layer>,
    site2: Box<dyn Layer>,
    fc1: Box<dyn Layer>,
    fc2: Box<dyn Layer>,
    fc3: Box<dyn Layer>,
}

impl Lenet {
    /// Parameters `conv1`, `conv2`, `fc1`, `fc2`, `fc3`.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    pub fn new(layers: &dyn Layers, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            conv1: layers.conv(&Conv::new(1, 6, 5).padding(2), vb.pp("conv1"))?,
            site1: layers.site(Site::Stem, (6, 28, 28), vb.pp("site1"))?,
            conv2: layers.conv(&Conv::new(6, 16, 5), vb.pp("conv2"))?,
            site2: layers.site(Site::Conv, (16, 10, 10), vb.pp("site2"))?,
            fc1: layers.linear(&Linear::new(400, 120), vb.pp("fc1"))?,
            fc2: layers.linear(&Linear::new(120, 84), vb.pp("fc2"))?,
            fc3: layers.linear(&Linear::new(84, 10), vb.pp("fc3"))?,
        })
    }
}

impl Classifier for Lenet {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let pool = PoolConfig {
            kernel: 2,
            stride: 2,
            padding: 0,
        };
        let h = relu(&self.conv1.forward(x.tensor(), pass)?)?;
        let h = max_pool2d(&self.site1.forward(&h, pass)?, pool)?;
        let h = relu(&self.conv2.forward(&h, pass)?)?;
        let h = max_pool2d(&self.site2.forward(&h, pass)?, pool)?.flatten_from(1)?;
        let h = relu(&self.fc1.forward(&h, pass)?)?;
        let h = relu(&self.fc2.forward(&h, pass)?)?;
        self.fc3.forward(&h, pass)
    }

    fn classes(&self) -> usize {
        10
    }
}
