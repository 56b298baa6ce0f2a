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

use theriac::Result;
use theriac_nn::{Conv, Init, Layers, Linear, Network, Site, VarBuilder};

/// The network for images (N, 1, 28, 28): parameters `conv1`, `conv2`, `fc1`, `fc2`.
///
/// # Errors
/// When a parameter exists with another shape.
pub fn atda_cnn(layers: &dyn Layers, vb: VarBuilder) -> Result<Network> {
    let conv = |i, o| Conv::new(i, o, 4).stride(2).padding(1).init(Init::Glorot);
    let linear = |i, o| Linear::new(i, o).init(Init::Glorot);
    let mut net = Network::new(10);
    let x = net.image();
    let h = net.layer(x, layers.conv(&conv(1, 16), vb.pp("conv1"))?);
    let h = net.relu(h);
    let h = net.layer(h, layers.site(Site::Stem, (16, 14, 14), vb.pp("site1"))?);
    let h = net.layer(h, layers.conv(&conv(16, 32), vb.pp("conv2"))?);
    let h = net.relu(h);
    let h = net.layer(h, layers.site(Site::Conv, (32, 7, 7), vb.pp("site2"))?);
    let h = net.flatten(h);
    let h = net.layer(h, layers.linear(&linear(1568, 100), vb.pp("fc1"))?);
    let h = net.relu(h);
    net.layer(h, layers.linear(&linear(100, 10), vb.pp("fc2"))?);
    Ok(net)
}
