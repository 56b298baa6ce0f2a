//! The LeNet5 of advertorch, so that its public MNIST checkpoints load by name.
//!
//! ```text
//! conv 1->32, 3x3, pad 1 - ReLU - max pool 2 - conv 32->64, 3x3, pad 1 - ReLU - max pool 2
//!   - flatten (3136) - FC 200 - ReLU - FC 10
//! ```
//!
//! Ding, Wang & Jin, "advertorch v0.1", 2019 (`advertorch_examples/models.py`): 648,226
//! parameters, PyTorch's initial values.

use theriac::Result;
use theriac_nn::{Conv, Layers, Linear, Network, Site, VarBuilder};
use theriac_ops::PoolConfig;

/// The network for images (N, 1, 28, 28): parameters `conv1`, `conv2`, `linear1`, `linear2`.
///
/// # Errors
/// When a parameter exists with another shape.
pub fn advertorch_lenet(layers: &dyn Layers, vb: VarBuilder) -> Result<Network> {
    let pool = PoolConfig {
        kernel: 2,
        stride: 2,
        padding: 0,
    };
    let conv = |i, o| Conv::new(i, o, 3).padding(1);
    let mut net = Network::new(10);
    let x = net.image();
    let h = net.layer(x, layers.conv(&conv(1, 32), vb.pp("conv1"))?);
    let h = net.relu(h);
    let h = net.layer(h, layers.site(Site::Stem, (32, 28, 28), vb.pp("site1"))?);
    let h = net.max_pool(h, pool);
    let h = net.layer(h, layers.conv(&conv(32, 64), vb.pp("conv2"))?);
    let h = net.relu(h);
    let h = net.layer(h, layers.site(Site::Conv, (64, 14, 14), vb.pp("site2"))?);
    let h = net.max_pool(h, pool);
    let h = net.flatten(h);
    let h = net.layer(h, layers.linear(&Linear::new(3136, 200), vb.pp("linear1"))?);
    let h = net.relu(h);
    net.layer(h, layers.linear(&Linear::new(200, 10), vb.pp("linear2"))?);
    Ok(net)
}
