//! Normal noise on activations.

use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{Error, Pass, Result};
use theriac_ops::network::Op;

use crate::{Form, Layer, VarBuilder};

/// Who shares a draw of noise on activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// Nobody: each image has its own, keyed by its id.
    #[default]
    Sample,
    /// The images of a pass have one.
    Batch,
}

/// `y = x + theta n` with n from N(0, 1) for each value of each image, x of shape (N, C, H, W).
///
/// On in both modes. `theta`, of shape (C, H, W) with C > 1, (C, 1, 1) or (1, 1, 1), may be a parameter: its
/// gradient is the sum of `g n` over whatever shares it. The draws are [`Pass::gaussian`]'s.
#[derive(Clone, Debug)]
pub struct Noise {
    theta: Tensor,
    purpose: String,
    share: Share,
}

impl Noise {
    /// `purpose` keeps the draws of several layers in one pass apart: take the path of the layer.
    ///
    /// # Errors
    /// [`Error::Shape`] for a theta of any other shape than those three.
    pub fn new(theta: Tensor, purpose: String, share: Share) -> Result<Self> {
        // (1, H, W) would be broadcast here and read as (C, 1, 1) by a network's one operation.
        let ambiguous = match theta.dims() {
            [1, h, w] => h * w > 1,
            [_, h, w] => (*h == 1) != (*w == 1),
            _ => true,
        };
        if ambiguous {
            return Err(Error::Shape {
                what: "theta",
                got: theta.dims().to_vec(),
                expected: "(C, H, W) with C > 1, (C, 1, 1) or (1, 1, 1)".to_owned(),
            });
        }
        Ok(Self {
            theta,
            purpose,
            share,
        })
    }

    /// The same deviation everywhere; the path of `vb` keeps its draws apart.
    ///
    /// # Errors
    /// A candle error.
    pub fn fixed(std: f64, vb: &VarBuilder, share: Share) -> Result<Self> {
        let theta = Tensor::full(std, (1, 1, 1), vb.device())?;
        Self::new(theta.to_dtype(vb.dtype())?, vb.prefix(), share)
    }
}

impl Layer for Noise {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let noise = match self.share {
            Share::Sample => pass.gaussian(&self.purpose, x)?,
            Share::Batch => pass.shared_gaussian(&self.purpose, &x.narrow(0, 0, 1)?)?,
        };
        let noise = noise.broadcast_mul(&self.theta)?;
        Ok(x.broadcast_add(&noise)?)
    }

    fn form(&self, pass: &Pass<'_>) -> Result<Option<Form>> {
        let keys = match self.share {
            Share::Sample => pass.keys(&self.purpose),
            Share::Batch => pass.shared_keys(&self.purpose),
        };
        let parameters = [Some(self.theta.clone()), None, None, None];
        Ok(Some(Form {
            keys: Some(Arc::new(keys)),
            ..Form::stored(Some(Op::Noise), parameters)
        }))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use theriac::{Classifier as _, Mode, Pixels, Run, gradient};

    use super::*;
    use crate::{BatchNorm, Chain, Conv, Layers, Linear, Network, Params, Plain};

    const SHAPES: [(usize, usize, usize); 3] = [(4, 6, 6), (4, 1, 1), (1, 1, 1)];

    /// A residual block with noise in front of a convolution, behind a norm and behind the sum.
    fn network(vb: VarBuilder, share: Share, shape: (usize, usize, usize)) -> Result<Network> {
        let conv = |i, o| Conv::new(i, o, 3).padding(1);
        let theta = |name: &str| {
            let init = candle_nn::Init::Uniform { lo: 0.1, up: 0.4 };
            let theta = vb.pp(name).get_with_hints(shape, "theta", init)?;
            Ok::<_, Error>(Box::new(Noise::new(theta, vb.pp(name).prefix(), share)?))
        };
        let mut net = Network::new(3);
        let fixed = Noise::fixed(0.3, &vb.pp("fixed"), share)?;
        let a = Plain.conv(&conv(2, 4), vb.pp("a"))?;
        let h = net.layer(net.image(), Box::new(Chain::new(vec![Box::new(fixed), a])));
        let h = net.layer(h, theta("first")?);
        let skip = net.relu(h);
        let h = net.layer(skip, Plain.conv(&conv(4, 4), vb.pp("b"))?);
        let h = net.layer(h, Plain.norm(&BatchNorm::new(4), vb.pp("norm"))?);
        let h = net.layer(h, theta("second")?);
        let h = net.add(h, skip);
        let h = net.layer(h, theta("third")?);
        let h = net.relu(h);
        let h = net.global_avg_pool(h);
        let h = net.flatten(h);
        net.layer(h, Plain.linear(&Linear::new(4, 3), vb.pp("fc"))?);
        Ok(net)
    }

    fn images(dtype: DType) -> Result<Pixels> {
        let values: Vec<f32> = (0..21 * 2 * 36).map(|i| (i % 17) as f32 / 17.0).collect();
        let x = Tensor::from_vec(values, (21, 2, 6, 6), &Device::Cpu)?;
        Pixels::new(x.to_dtype(dtype)?)
    }

    fn flat(t: &Tensor) -> Result<Vec<f64>> {
        Ok(t.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
    }

    /// Logits, gradient by the images and by the parameters.
    fn results(
        dtype: DType,
        (share, shape): (Share, (usize, usize, usize)),
        mode: Mode,
        frozen: bool,
    ) -> Result<Vec<Vec<f64>>> {
        let params = Params::new(3, dtype, &Device::Cpu);
        let net = match frozen {
            true => network(params.frozen(), share, shape)?,
            false => network(params.live(), share, shape)?,
        };
        let ids: Vec<u32> = (40..61).collect();
        let (x, run) = (images(dtype)?, Run::new(0, &Device::Cpu));
        let pass = Pass {
            mode,
            ..run.eval(&ids).at(5)
        };
        let logits = net.logits(&x, &pass)?;
        let (_, by_image) = gradient(&x, &pass, |x| Ok(net.logits(x, &pass)?.sqr()?.sum(1)?))?;
        let mut all = vec![flat(&logits)?, flat(&by_image)?];
        let grads = logits.sqr()?.sum_all()?.backward()?;
        for (path, var) in params.trainable() {
            match grads.get(&var) {
                Some(grad) => all.push(flat(grad)?),
                None => assert!(frozen, "{path} has no gradient"),
            }
        }
        Ok(all)
    }

    /// One operation in f32 against single steps in f64, whose gradients are candle's.
    #[test]
    fn one_operation_gives_what_single_steps_give() -> Result<()> {
        for share in [Share::Sample, Share::Batch] {
            for (shape, mode, frozen) in SHAPES.into_iter().flat_map(|shape| {
                [
                    (Mode::Eval, true),
                    (Mode::Eval, false),
                    (Mode::Train, true),
                    (Mode::Train, false),
                ]
                .map(|(mode, frozen)| (shape, mode, frozen))
            }) {
                let case = (share, shape);
                let expected = results(DType::F64, case, mode, frozen)?;
                let actual = results(DType::F32, case, mode, frozen)?;
                // Weights and biases of three layers, gamma and beta, three thetas.
                assert_eq!(actual.len(), if frozen { 2 } else { 2 + 6 + 2 + 3 });
                for (actual, expected) in actual.iter().zip(&expected) {
                    // A bias in front of a norm over the batch has gradient 0 but for rounding.
                    let floor = if mode == Mode::Train { 20.0 } else { 1f64 };
                    let scale = expected.iter().fold(floor, |m, v| m.max(v.abs()));
                    for (a, e) in actual.iter().zip(expected) {
                        let case = (case, mode, frozen);
                        assert!((a - e).abs() <= 2e-5 * scale, "{case:?}: {a} against {e}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn noise_runs_inside_a_stretch_and_an_image_keeps_its_bits_in_any_batch() -> Result<()> {
        for (share, shape) in [Share::Sample, Share::Batch]
            .into_iter()
            .flat_map(|share| SHAPES.map(|shape| (share, shape)))
        {
            let params = Params::new(3, DType::F32, &Device::Cpu);
            let net = network(params.frozen(), share, shape)?;
            let (x, run) = (images(DType::F32)?, Run::new(0, &Device::Cpu));
            let ids: Vec<u32> = (40..61).collect();
            let pass = run.eval(&ids);
            assert_eq!(net.stretches(&pass)?, 1);
            let both = |x: &Pixels, pass: &Pass<'_>| -> Result<Vec<Vec<f64>>> {
                let square = |x: &Pixels| Ok(net.logits(x, pass)?.sqr()?.sum(1)?);
                let (value, slopes) = gradient(x, pass, square)?;
                let rows = Tensor::cat(&[value.unsqueeze(1)?, slopes.flatten_from(1)?], 1)?;
                Ok(rows.to_dtype(DType::F64)?.to_vec2()?)
            };
            let whole = both(&x, &pass)?;
            for (start, len) in [(0, 1), (7, 1), (5, 16), (3, 17)] {
                let part = both(&x.narrow(start, len)?, &pass.narrow(start, len)?)?;
                assert_eq!(part, whole[start..start + len], "{share:?} {shape:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_theta_of_another_shape_is_refused() -> Result<()> {
        let theta = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
        for shape in [&[2][..], &[1, 2, 2], &[1, 1, 4], &[4, 1, 4]] {
            assert!(Noise::new(theta(shape)?, String::new(), Share::Sample).is_err());
        }
        let error = Noise::new(theta(&[2])?, String::new(), Share::Sample).unwrap_err();
        assert!(error.to_string().contains("theta"), "{error}");
        let noise = Noise::new(theta(&[3, 1, 1])?, String::new(), Share::Sample)?;
        let x = Tensor::zeros((1, 2, 4, 4), DType::F32, &Device::Cpu)?;
        let run = Run::new(0, &Device::Cpu);
        assert!(noise.forward(&x, &run.eval(&[0])).is_err());
        // As many ids as images.
        let noise = Noise::new(theta(&[2, 1, 1])?, String::new(), Share::Sample)?;
        assert!(noise.forward(&x, &run.eval(&[0, 1])).is_err());
        Ok(())
    }
}
