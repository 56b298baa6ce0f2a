//! How much a network computes.

use candle_core::Tensor;
use theriac::{Error, Pass, Result};
use theriac_ops::network::Op;

use super::{Kind, Network};

/// Multiplications and additions for one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Of a forward pass.
    pub forward: u64,
    /// Of the gradients of all parameters, and of all values but the image.
    pub backward: u64,
}

impl Network {
    /// Counts for `image`, (1, C, H, W). A convolution or fully connected layer multiplies and adds
    /// once for each weight and result, its bias adds once; its backward pass does so for the
    /// weights and once more for the input, unless that is the image. A norm multiplies and adds
    /// once for each value, so does noise (its draw is not counted), pools once for each value they read, ReLUs and sums once for each result;
    /// their backward passes as often. Losses and optimisers are not counted.
    ///
    /// # Errors
    /// [`Error::Setting`] for a layer without a form, which may do anything.
    pub fn operations(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Operations> {
        let mut values = vec![Some(image.clone())];
        let mut total = Operations::default();
        for (i, step) in self.steps.iter().enumerate() {
            let read = super::value(&values, step.input)?.elem_count() as u64;
            let y = self.step(i, &values, pass)?;
            let result = y.elem_count() as u64;
            let own = match &step.kind {
                Kind::Layer(layer) => {
                    let form = layer.form(pass)?;
                    let form = form.ok_or_else(|| unknown("a layer without a form"))?;
                    let mut sum = Operations::default();
                    // Noise in front of a convolution has the size of what that reads.
                    let mut noisy = true;
                    for form in form.each() {
                        let [weight, bias, ..] = &form.parameters;
                        let own = match (&form.op, weight) {
                            (None, _) => Operations::default(),
                            (Some(Op::Conv { .. } | Op::Linear { .. }), Some(weight)) => {
                                noisy = false;
                                let outputs = weight.dim(0)?.max(1);
                                let once = 2 * result * (weight.elem_count() / outputs) as u64;
                                let bias = bias.as_ref().map_or(0, |_| result);
                                let input = if step.input.0 == 0 { 0 } else { once };
                                Operations {
                                    forward: once + bias,
                                    backward: once + input + bias,
                                }
                            }
                            (Some(Op::Noise), _) if noisy => even(2 * read),
                            _ => even(2 * result),
                        };
                        sum.forward += own.forward;
                        sum.backward += own.backward;
                    }
                    sum
                }
                Kind::Flatten => Operations::default(),
                Kind::MaxPool(_) | Kind::AvgPool(_) | Kind::GlobalAvgPool => even(read),
                Kind::Relu | Kind::Add(_) => even(result),
                Kind::Join(..) => return Err(unknown("a function of its own")),
            };
            total.forward += own.forward;
            total.backward += own.backward;
            values.push(Some(y));
        }
        Ok(total)
    }
}

fn even(count: u64) -> Operations {
    Operations {
        forward: count,
        backward: count,
    }
}

fn unknown(what: &str) -> Error {
    Error::Setting {
        name: "operations",
        value: what.to_owned(),
        remedy: "only layers with a form can be counted",
    }
}
