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

use theriac::Result;
use theriac_nn::{Conv, Layers, Linear, Network, Site, VarBuilder};
use theriac_ops::PoolConfig;

/// The network for images (N, 1, 28, 28): parameters `conv1`, `conv2`, `fc1`, `fc2`, `fc3`.
///
/// # Errors
/// When a parameter exists with another shape.
pub fn lenet(layers: &dyn Layers, vb: VarBuilder) -> Result<Network> {
    let pool = PoolConfig {
        kernel: 2,
        stride: 2,
        padding: 0,
    };
    let mut net = Network::new(10);
    let x = net.image();
    let h = net.layer(
        x,
        layers.conv(&Conv::new(1, 6, 5).padding(2), vb.pp("conv1"))?,
    );
    let h = net.relu(h);
    let h = net.layer(h, layers.site(Site::Stem, (6, 28, 28), vb.pp("site1"))?);
    let h = net.max_pool(h, pool);
    let h = net.layer(h, layers.conv(&Conv::new(6, 16, 5), vb.pp("conv2"))?);
    let h = net.relu(h);
    let h = net.layer(h, layers.site(Site::Conv, (16, 10, 10), vb.pp("site2"))?);
    let h = net.max_pool(h, pool);
    let h = net.flatten(h);
    let h = net.layer(h, layers.linear(&Linear::new(400, 120), vb.pp("fc1"))?);
    let h = net.relu(h);
    let h = net.layer(h, layers.linear(&Linear::new(120, 84), vb.pp("fc2"))?);
    let h = net.relu(h);
    net.layer(h, layers.linear(&Linear::new(84, 10), vb.pp("fc3"))?);
    Ok(net)
}
