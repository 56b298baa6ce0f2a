//! The LeNet5 of advertorch, so that its public MNIST checkpoints load by name.
//!
//! ```text
//! conv 1->32, 3x3, pad 1 - ReLU - max pool 2 - conv 32->64, 3x3, pad 1 - ReLU - max pool 2
//!   - flatten (3136) - FC 200 - ReLU - FC 10
//! ```
//!
//! Ding, Wang & Jin, "advertorch v0.1", 2019 (`advertorch_examples/models.py`): 648,226
//! parameters, PyTorch's initial values.

use candle_core::Tensor;
use theriac::{Classifier, Pass, Pixels, Result};
use theriac_nn::{Conv, Layer, Layers, Linear, Site, VarBuilder};
use theriac_ops::{PoolConfig, max_pool2d, relu};

/// The network; input (N, 1, 28, 28).
pub struct AdvertorchLenet {
    conv1: Box<dyn Layer>,
    site1: Box<dyn Layer>,
    conv2: Box<dyn Layer>,
    site2: Box<dyn Layer>,
    linear1: Box<dyn Layer>,
    linear2: Box<dyn Layer>,
}

impl AdvertorchLenet {
    /// Parameters `conv1`, `conv2`, `linear1`, `linear2`.
    ///
    /// # Errors
    /// When a parameter exists with another shape.
    pub fn new(layers: &dyn Layers, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            conv1: layers.conv(&Conv::new(1, 32, 3).padding(1), vb.pp("conv1"))?,
            site1: layers.site(Site::Stem, (32, 28, 28), vb.pp("site1"))?,
            conv2: layers.conv(&Conv::new(32, 64, 3).padding(1), vb.pp("conv2"))?,
            site2: layers.site(Site::Conv, (64, 14, 14), vb.pp("site2"))?,
            linear1: layers.linear(&Linear::new(3136, 200), vb.pp("linear1"))?,
            linear2: layers.linear(&Linear::new(200, 10), vb.pp("linear2"))?,
        })
    }
}

impl Classifier for AdvertorchLenet {
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
        self.linear2
            .forward(&relu(&self.linear1.forward(&h, pass)?)?, pass)
    }

    fn classes(&self) -> usize {
        10
    }
}
