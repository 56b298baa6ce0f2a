//! Vision transformers.
//!
//! ```text
//! patches: conv p x p, stride p, to d channels - (N, T, d) - class token in front - + positions
//! block:   h + attention(norm(h)),   h + MLP(norm(h)),   MLP: d -> 4 d, GELU, d
//! logits:  FC of the class token of norm(h)
//! attention, each head: softmax(q k^T / sqrt(d / heads)) v,   q, k, v from one FC
//! ```
//!
//! Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; the sizes of Touvron et al.,
//! "Training data-efficient image transformers & distillation through attention" (DeiT), ICML 2021,
//! without the distillation token, and without dropout or stochastic depth. Parameters have timm's
//! paths: `cls_token`, `pos_embed`, `patch_embed.proj`, `blocks.{0..}.norm1`, `.attn.qkv`,
//! `.attn.proj`, `.norm2`, `.mlp.fc1`, `.mlp.fc2`, `norm`, `head`. Weights start normal with
//! deviation 0.02, biases at 0, as timm's up to its cut at two deviations. Norms are layer norms with
//! eps 1e-6. Inputs in [0, 1]; normalise them in front of the network.

use candle_core::{D, Tensor};
use theriac::{Error, Pass, Result};
use theriac_nn::{Conv, Layer, Layers, Linear, Network, Value, VarBuilder};

use crate::resnet::positive;

/// Sizes of a vision transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transformer {
    /// Pixels on a side of an image.
    pub side: usize,
    /// Pixels on a side of a patch.
    pub patch: usize,
    /// Width d of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of attention.
    pub heads: usize,
    /// Classes.
    pub classes: usize,
}

impl Transformer {
    /// DeiT-Tiny for images of 224 x 224: 5,717,416 parameters at 1,000 classes.
    pub fn tiny(classes: usize) -> Self {
        Self {
            side: 224,
            patch: 16,
            width: 192,
            depth: 12,
            heads: 3,
            classes,
        }
    }

    /// DeiT-Small: 22,050,664 parameters at 1,000 classes.
    pub fn small(classes: usize) -> Self {
        Self {
            width: 384,
            heads: 6,
            ..Self::tiny(classes)
        }
    }

    /// DeiT-Base: 86,567,656 parameters at 1,000 classes.
    pub fn base(classes: usize) -> Self {
        Self {
            width: 768,
            heads: 12,
            ..Self::tiny(classes)
        }
    }

    /// A small one for images of 32 x 32: patches of 4, width 96, 6 blocks of 3 heads.
    pub fn cifar(classes: usize) -> Self {
        Self {
            side: 32,
            patch: 4,
            width: 96,
            depth: 6,
            heads: 3,
            classes,
        }
    }

    /// The network over the parameters of `vb`, for images (N, 3, side, side).
    ///
    /// # Errors
    /// [`Error::Setting`] for sizes that do not divide; when a parameter exists with another shape.
    pub fn build(self, layers: &dyn Layers, vb: VarBuilder) -> Result<Network> {
        let Self {
            side,
            patch,
            width,
            depth,
            heads,
            classes,
        } = self;
        let sizes = [("patch", patch), ("heads", heads), ("classes", classes)];
        for (name, value) in sizes {
            positive(name, value)?;
        }
        for (name, whole, part) in [("patch", side, patch), ("heads", width, heads)] {
            if whole == 0 || !whole.is_multiple_of(part) {
                return Err(Error::Setting {
                    name,
                    value: format!("{part} of {whole}"),
                    remedy: "use a divisor",
                });
            }
        }
        let mut net = Network::new(classes);
        let (image, tokens) = (net.image(), (side / patch).pow(2));
        let conv = Conv::new(3, width, patch).stride(patch);
        let h = net.layer(image, layers.conv(&conv, vb.pp("patch_embed.proj"))?);
        let normal = candle_nn::Init::Randn {
            mean: 0.0,
            stdev: 0.02,
        };
        let embedding = Embedding {
            class: vb.get_with_hints((1, 1, width), "cls_token", normal)?,
            positions: vb.get_with_hints((1, 1 + tokens, width), "pos_embed", normal)?,
        };
        let mut h = net.layer(h, Box::new(embedding));
        for block in 0..depth {
            let vb = vb.pp(format!("blocks.{block}"));
            h = self.block(&mut net, h, layers, &vb)?;
        }
        let h = net.layer(h, layers.layer_norm(width, EPS, vb.pp("norm"))?);
        let h = net.join(h, &[], |v| {
            Ok(v[0].narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)
        });
        net.layer(h, layers.linear(&linear(width, classes), vb.pp("head"))?);
        Ok(net)
    }

    fn block(
        self,
        net: &mut Network,
        h: Value,
        layers: &dyn Layers,
        vb: &VarBuilder,
    ) -> Result<Value> {
        let (width, heads) = (self.width, self.heads);
        let tokens = |from, to, at: &str| -> Result<Box<dyn Layer>> {
            let inner = layers.linear(&linear(from, to), vb.pp(at))?;
            Ok(Box::new(OnTokens(inner)))
        };
        let a = net.layer(h, layers.layer_norm(width, EPS, vb.pp("norm1"))?);
        let a = net.layer(a, tokens(width, 3 * width, "attn.qkv")?);
        let a = net.join(a, &[], move |v| attention(&v[0], heads));
        let a = net.layer(a, tokens(width, width, "attn.proj")?);
        let h = net.add(a, h);
        let m = net.layer(h, layers.layer_norm(width, EPS, vb.pp("norm2"))?);
        let m = net.layer(m, tokens(width, 4 * width, "mlp.fc1")?);
        let m = net.join(m, &[], |v| Ok(v[0].gelu_erf()?));
        let m = net.layer(m, tokens(4 * width, width, "mlp.fc2")?);
        Ok(net.add(m, h))
    }
}

/// Of layer norms.
const EPS: f64 = 1e-6;

fn linear(inputs: usize, outputs: usize) -> Linear {
    Linear::new(inputs, outputs).init(theriac_nn::Init::Small)
}

/// (N, T, 3 d) to (N, T, d): q, k and v stand one after the other, heads within each.
fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (n, t, three) = qkv.dims3()?;
    let width = three / 3;
    let each = width / heads;
    let part = |i: usize| -> Result<Tensor> {
        let part = qkv
            .narrow(2, i * width, width)?
            .reshape((n, t, heads, each))?;
        Ok(part.transpose(1, 2)?.contiguous()?)
    };
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let scores = (q.matmul(&k.t()?.contiguous()?)? / (each as f64).sqrt())?;
    let shifted = scores
        .broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?
        .exp()?;
    let weights = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
    let mixed = weights.matmul(&v)?.transpose(1, 2)?.contiguous()?;
    Ok(mixed.reshape((n, t, width))?)
}

/// (N, d, H, W) to (N, 1 + H W, d): tokens row by row behind the class token, plus positions.
struct Embedding {
    class: Tensor,
    positions: Tensor,
}

impl Layer for Embedding {
    fn forward(&self, x: &Tensor, _: &Pass<'_>) -> Result<Tensor> {
        let (n, width, _, _) = x.dims4()?;
        let tokens = x.flatten_from(2)?.transpose(1, 2)?;
        let (found, known) = (tokens.dim(1)? + 1, self.positions.dim(1)?);
        if found != known {
            return Err(Error::Shape {
                what: "image",
                got: x.dims().to_vec(),
                expected: format!("{} patches, as many as positions", known - 1),
            });
        }
        let class = self.class.broadcast_as((n, 1, width))?;
        let all = Tensor::cat(&[&class.contiguous()?, &tokens.contiguous()?], 1)?;
        Ok(all.broadcast_add(&self.positions)?)
    }
}

/// A fully connected layer on every token.
struct OnTokens(Box<dyn Layer>);

impl Layer for OnTokens {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let (n, t, width) = x.dims3()?;
        let y = self.0.forward(&x.reshape((n * t, width))?, pass)?;
        Ok(y.reshape((n, t, ()))?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use theriac::{Classifier as _, Labels, Pixels, Rng, Run};
    use theriac_nn::{Params, Plain, Twin};

    use super::*;

    fn images(n: usize, side: usize, dtype: DType) -> Result<Pixels> {
        let values = Rng::new(3).uniform("x", 0, n * 3 * side * side);
        let x = Tensor::from_vec(values, (n, 3, side, side), &Device::Cpu)?;
        Pixels::new(x.to_dtype(dtype)?.affine(0.9, 0.05)?)
    }

    /// timm's counts of `deit_tiny_patch16_224`, `deit_small_...` and `deit_base_...`.
    #[test]
    fn transformers_have_their_published_size() -> Result<()> {
        for (sizes, count) in [
            (Transformer::tiny(1000), 5_717_416),
            (Transformer::small(1000), 22_050_664),
            (Transformer::base(1000), 86_567_656),
        ] {
            let params = Params::new(0, DType::F32, &Device::Cpu);
            sizes.build(&Plain, params.live())?;
            assert_eq!(params.count(), count, "{sizes:?}");
        }
        Ok(())
    }

    #[test]
    fn gradients_agree_with_differences() -> Result<()> {
        let sizes = Transformer {
            side: 8,
            patch: 4,
            width: 6,
            depth: 2,
            heads: 2,
            classes: 5,
        };
        let params = Params::new(1, DType::F64, &Device::Cpu);
        let twin = Twin::build(&params, |vb| sizes.build(&Plain, vb))?;
        // Away from weights so small that every head sees all patches alike.
        for (path, var) in params.trainable() {
            if path.ends_with("weight") && path.contains("attn") {
                var.set(&(var.as_tensor() * 30.0)?)?;
            }
        }
        let labels = Labels::new(&[1, 4, 3], 5, &Device::Cpu)?;
        let x = images(3, 8, DType::F64)?;
        theriac::contract::classifier(&twin.live, &x, &labels)?;
        theriac::contract::classifier(&twin.frozen, &x, &labels)?;
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let net = sizes.build(&Plain, params.frozen())?;
        theriac::contract::prepared(&net, &x.to_dtype(DType::F32)?)
    }

    /// Where keys are all alike it takes the mean of the values, where one stands out that one's.
    #[test]
    fn attention_takes_what_keys_point_at() -> Result<()> {
        let cpu = &Device::Cpu;
        let qkv = |rows: [[f64; 3]; 2]| Tensor::new(&rows, cpu)?.unsqueeze(0);
        let alike = attention(&qkv([[1.0, 2.0, 5.0], [1.0, 2.0, 7.0]])?, 1)?;
        assert_eq!(alike.flatten_all()?.to_vec1::<f64>()?, [6.0, 6.0]);
        let pointed = attention(&qkv([[90.0, 0.0, 5.0], [90.0, 9.0, 7.0]])?, 1)?;
        assert_eq!(pointed.flatten_all()?.to_vec1::<f64>()?, [7.0, 7.0]);
        Ok(())
    }

    #[test]
    fn images_of_another_size_and_sizes_that_do_not_divide_are_refused() -> Result<()> {
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let net = Transformer::cifar(10).build(&Plain, params.frozen())?;
        let run = Run::new(0, &Device::Cpu);
        assert_eq!(
            net.logits(&images(2, 32, DType::F32)?, &run.eval(&[0, 1]))?
                .dims(),
            [2, 10]
        );
        let error = net.logits(&images(2, 36, DType::F32)?, &run.eval(&[0, 1]));
        assert!(error.unwrap_err().to_string().contains("64 patches"));
        for wrong in [
            Transformer {
                patch: 5,
                ..Transformer::cifar(10)
            },
            Transformer {
                heads: 5,
                ..Transformer::cifar(10)
            },
            Transformer::cifar(0),
        ] {
            let params = Params::new(1, DType::F32, &Device::Cpu);
            assert!(wrong.build(&Plain, params.live()).is_err(), "{wrong:?}");
        }
        Ok(())
    }
}
