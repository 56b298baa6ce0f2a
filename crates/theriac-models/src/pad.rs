//! Zeros around an activation whose number depends on its size.

use candle_core::Tensor;
use theriac::{Error, Pass, Result};
use theriac_nn::Layer;

/// Zeros in front of a window operation whose own padding is 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pad {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) rule: Rule,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    /// TensorFlow's "same": ceil(side / stride) windows, the odd zero behind.
    Same,
    /// PyTorch's `ceil_mode`: behind, up to a last whole window. For values that are at least 0, as
    /// behind a ReLU.
    Ceil,
}

impl Pad {
    /// Zeros in front of and behind a side.
    fn zeros(self, side: usize) -> (usize, usize) {
        let Self { kernel, stride, .. } = self;
        match self.rule {
            Rule::Same => {
                let windows = side.div_ceil(stride);
                let all = ((windows - 1) * stride + kernel).saturating_sub(side);
                (all / 2, all - all / 2)
            }
            Rule::Ceil => {
                let more = side.saturating_sub(kernel).div_ceil(stride);
                (0, more * stride + kernel - side)
            }
        }
    }
}

impl Layer for Pad {
    fn forward(&self, x: &Tensor, _: &Pass<'_>) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        // PyTorch's rule that a window starts inside.
        let least = match self.rule {
            Rule::Same => 1,
            Rule::Ceil => self.kernel - self.stride + 1,
        };
        if h.min(w) < least {
            return Err(Error::Shape {
                what: "activation",
                got: x.dims().to_vec(),
                expected: format!("at least {least} x {least} pixels: use a larger image"),
            });
        }
        let ((top, bottom), (left, right)) = (self.zeros(h), self.zeros(w));
        Ok(x.pad_with_zeros(2, top, bottom)?
            .pad_with_zeros(3, left, right)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_as_many_as_the_rules_say() {
        for (kernel, stride) in [(3, 1), (3, 2), (5, 2), (5, 1), (3, 3)] {
            for side in 1..40 {
                let pad = |rule| Pad {
                    kernel,
                    stride,
                    rule,
                };
                let windows =
                    |(front, behind): (usize, usize)| (front + side + behind - kernel) / stride + 1;
                let (front, behind) = pad(Rule::Same).zeros(side);
                assert_eq!(windows((front, behind)), side.div_ceil(stride));
                assert!(front == behind || front + 1 == behind);
                if side + stride <= kernel {
                    continue;
                }
                // torch.nn.MaxPool2d: ceil((side - kernel) / stride) + 1.
                let (front, behind) = pad(Rule::Ceil).zeros(side);
                let expected = (side as f64 - kernel as f64) / stride as f64;
                assert_eq!(windows((front, behind)) as f64, expected.ceil() + 1.0);
                assert!(front == 0 && behind < stride);
            }
        }
        // 224 and 112 pixels, 3 and 5 wide, every second: one and three zeros.
        let same = |kernel| Pad {
            kernel,
            stride: 2,
            rule: Rule::Same,
        };
        assert_eq!(same(3).zeros(224), (0, 1));
        assert_eq!(same(5).zeros(112), (1, 2));
    }
}
