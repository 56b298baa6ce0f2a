//! The golden networks, built from the layers of theriac-nn.

use candle_core::{DType, Device, Tensor};
use theriac::{Classifier, Pass, Pixels, Result};
use theriac_nn::{
    BatchNorm, Conv, Layer, Layers, Linear, Network, Params, Plain, Twin, Value, VarBuilder,
};
use theriac_ops::PoolConfig;

use crate::golden;

/// Any of the golden networks.
pub(crate) struct Net {
    network: Network,
    single: bool,
}

impl Classifier for Net {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        match self.single {
            true => self.network.step_by_step(x.tensor(), pass),
            false => self.network.logits(x, pass),
        }
    }

    fn classes(&self) -> usize {
        10
    }
}

/// A golden network with initial parameters.
pub(crate) fn fresh(model: &str, dtype: DType) -> Result<Twin<Net>> {
    build(model, dtype, false)
}

fn build(model: &str, dtype: DType, single: bool) -> Result<Twin<Net>> {
    let params = Params::new(3, dtype, &Device::Cpu);
    Twin::build(&params, |vb| {
        let network = match model {
            "bn" => residual(&Plain, vb),
            "noisy" => lenet(&Plain, vb, Some(Noise(0.1))),
            _ => lenet(&Plain, vb, None),
        }?;
        Ok(Net { network, single })
    })
}

/// A golden network with its trained weights, which are f32 in the file. `noisy` is `rob` with
/// noise inside.
pub(crate) fn load(model: &str, dtype: DType) -> Result<Twin<Net>> {
    trained(model, build(model, dtype, false)?)
}

/// The same by single operations: the tolerances for single images in f32 were measured on one
/// order of summation, that of PyTorch's operations.
pub(crate) fn load_single(model: &str, dtype: DType) -> Result<Twin<Net>> {
    trained(model, build(model, dtype, true)?)
}

fn trained(model: &str, twin: Twin<Net>) -> Result<Twin<Net>> {
    let weights = if model == "noisy" { "rob" } else { model };
    twin.params
        .load(&golden::path(&format!("model_{weights}.safetensors")))?;
    Ok(twin)
}

/// Gaussian noise of this deviation, fresh in every pass.
struct Noise(f64);

impl Layer for Noise {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        Ok((x + (pass.normal("noise", x)? * self.0)?)?)
    }
}

/// `std` and `rob`:
///
/// ```text
/// conv 1->8, 5x5, pad 2 - ReLU - max pool 2 - (noise) - conv 8->16, 5x5 - ReLU - max pool 2
///   - flatten (400) - FC 64 - ReLU - FC 10
/// ```
fn lenet(layers: &dyn Layers, vb: VarBuilder, noise: Option<Noise>) -> Result<Network> {
    let pool = PoolConfig {
        kernel: 2,
        stride: 2,
        padding: 0,
    };
    let mut net = Network::new(10);
    let x = net.image();
    let conv1 = Conv::new(1, 8, 5).padding(2);
    let h = net.layer(x, layers.conv(&conv1, vb.pp("conv1"))?);
    let h = net.relu(h);
    let mut h = net.max_pool(h, pool);
    if let Some(noise) = noise {
        h = net.layer(h, Box::new(noise));
    }
    let h = net.layer(h, layers.conv(&Conv::new(8, 16, 5), vb.pp("conv2"))?);
    let h = net.relu(h);
    let h = net.max_pool(h, pool);
    let h = net.flatten(h);
    let h = net.layer(h, layers.linear(&Linear::new(400, 64), vb.pp("fc1"))?);
    let h = net.relu(h);
    net.layer(h, layers.linear(&Linear::new(64, 10), vb.pp("fc2"))?);
    Ok(net)
}

/// `bn`: a stem of stride 2, a block of 8 channels and a block of 16 with a projected shortcut.
fn residual(layers: &dyn Layers, vb: VarBuilder) -> Result<Network> {
    let mut net = Network::new(10);
    // A convolution without bias and its batch norm.
    let normed = |net: &mut Network, x: Value, conv: Conv, names: [&str; 2]| -> Result<Value> {
        let outputs = conv.outputs;
        let h = net.layer(x, layers.conv(&conv.no_bias(), vb.pp(names[0]))?);
        Ok(net.layer(h, layers.norm(&BatchNorm::new(outputs), vb.pp(names[1]))?))
    };
    let three = |inputs, outputs| Conv::new(inputs, outputs, 3).padding(1);
    let x = net.image();
    let h = normed(&mut net, x, three(1, 8).stride(2), ["conv1", "bn1"])?;
    let stem = net.relu(h);
    let h = normed(&mut net, stem, three(8, 8), ["b1_conv1", "b1_bn1"])?;
    let h = net.relu(h);
    let h = normed(&mut net, h, three(8, 8), ["b1_conv2", "b1_bn2"])?;
    let h = net.add(h, stem);
    let first = net.relu(h);
    let h = normed(
        &mut net,
        first,
        three(8, 16).stride(2),
        ["b2_conv1", "b2_bn1"],
    )?;
    let h = net.relu(h);
    let h = normed(&mut net, h, three(16, 16), ["b2_conv2", "b2_bn2"])?;
    let down = Conv::new(8, 16, 1).stride(2);
    let shortcut = normed(&mut net, first, down, ["b2_down", "b2_downbn"])?;
    let h = net.add(h, shortcut);
    let h = net.relu(h);
    let h = net.global_avg_pool(h);
    let h = net.flatten(h);
    net.layer(h, layers.linear(&Linear::new(16, 10), vb.pp("fc"))?);
    Ok(net)
}
