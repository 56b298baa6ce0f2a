use crate::Real;
use crate::error::{Result, check_len, elements, geometry};
use crate::parallel::{CHUNK, collect, split, sum, sum2};

/// Geometry and epsilon of batch normalisation of x (N, C, H, W), per channel:
///
/// `y = gamma (x - mean) / sqrt(var + eps) + beta`.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    n: usize,
    c: usize,
    plane: usize,
    eps: f64,
}

/// Per-channel statistics, in double precision.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Mean, (C).
    pub mean: Vec<f64>,
    /// Variance that normalises, (C); for a batch the biased one (divisor N H W).
    pub var: Vec<f64>,
    /// `1 / sqrt(var + eps)`, (C).
    pub inv_std: Vec<f64>,
}

/// Where to write the gradients of batch normalisation; what is `None` is not computed.
#[derive(Debug)]
pub struct BatchNormGrads<'a, T> {
    /// Gradient to x, (N, C, H, W).
    pub x: Option<&'a mut [T]>,
    /// Gradient to gamma, (C).
    pub gamma: Option<&'a mut [T]>,
    /// Gradient to beta, (C).
    pub beta: Option<&'a mut [T]>,
}

impl Statistics {
    /// Statistics fixed in advance (evaluation mode).
    ///
    /// # Errors
    ///
    /// If the two slices differ in length.
    pub fn fixed<T: Real>(mean: &[T], var: &[T], eps: f64) -> Result<Self> {
        check_len("Statistics: var", var, mean.len())?;
        let var: Vec<f64> = var.iter().map(|v| v.to_f64()).collect();
        Ok(Self {
            mean: mean.iter().map(|v| v.to_f64()).collect(),
            inv_std: inv_std(&var, eps),
            var,
        })
    }

    /// The unbiased variance of `count` values per channel, PyTorch's choice for running averages.
    pub fn unbiased_var(&self, count: usize) -> Vec<f64> {
        let factor = count as f64 / (count as f64 - 1.0);
        self.var.iter().map(|v| v * factor).collect()
    }
}

fn inv_std(var: &[f64], eps: f64) -> Vec<f64> {
    var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect()
}

impl BatchNorm {
    /// Checks and records the geometry.
    ///
    /// # Errors
    ///
    /// If a dimension is 0, the array would be larger than any memory, or `eps` is not a positive
    /// number.
    pub fn new(x: [usize; 4], eps: f64) -> Result<Self> {
        let [n, c, h, w] = x;
        if x.contains(&0) {
            return Err(geometry(
                "batch_norm: the input's shape",
                format!("{x:?}"),
                "pass a batch of at least one non-empty image",
            ));
        }
        if !(eps > 0.0 && eps.is_finite()) {
            return Err(geometry(
                "batch_norm: eps",
                eps,
                "it must be a positive number",
            ));
        }
        elements("batch_norm: the input's shape", &x)?;
        Ok(Self {
            n,
            c,
            plane: h * w,
            eps,
        })
    }

    /// Number of values per channel, N H W.
    pub fn count(&self) -> usize {
        self.n * self.plane
    }

    fn len(&self) -> usize {
        self.n * self.c * self.plane
    }

    fn channel<'a, T>(&self, x: &'a [T], channel: usize) -> impl Iterator<Item = &'a [T]> {
        x.chunks_exact(self.plane).skip(channel).step_by(self.c)
    }

    /// Mean and biased variance of each channel, in two passes and in double precision.
    ///
    /// # Errors
    ///
    /// If `x` has the wrong length.
    pub fn statistics<T: Real>(&self, x: &[T]) -> Result<Statistics> {
        check_len("batch_norm: x", x, self.len())?;
        let count = self.count() as f64;
        let (mean, var): (Vec<f64>, Vec<f64>) = collect(self.c, self.n > CHUNK, |c| {
            let total: f64 = self.channel(x, c).map(|x| sum(x, |v| v)).sum();
            let mean = total / count;
            let square: f64 = self
                .channel(x, c)
                .map(|x| {
                    sum(x, |v| {
                        let d = v - mean;
                        d * d
                    })
                })
                .sum();
            (mean, square / count)
        })
        .into_iter()
        .unzip();
        Ok(Statistics {
            mean,
            inv_std: inv_std(&var, self.eps),
            var,
        })
    }

    /// Normalises x with the given statistics.
    ///
    /// # Errors
    ///
    /// If a slice has the wrong length.
    pub fn forward<T: Real>(
        &self,
        x: &[T],
        gamma: &[T],
        beta: &[T],
        statistics: &Statistics,
        out: &mut [T],
    ) -> Result<()> {
        check_len("batch_norm: x", x, self.len())?;
        check_len("batch_norm: gamma", gamma, self.c)?;
        check_len("batch_norm: beta", beta, self.c)?;
        check_len("batch_norm: mean", &statistics.mean, self.c)?;
        check_len("batch_norm: out", out, self.len())?;
        let image = self.c * self.plane;
        split(out, CHUNK * image, |chunk, out| {
            let x = x[chunk * CHUNK * image..].chunks_exact(self.plane);
            for (i, (x, out)) in x.zip(out.chunks_exact_mut(self.plane)).enumerate() {
                let c = i % self.c;
                let mean = T::from_f64(statistics.mean[c]);
                let scale = T::from_f64(statistics.inv_std[c] * gamma[c].to_f64());
                for (o, &v) in out.iter_mut().zip(x) {
                    *o = (v - mean) * scale + beta[c];
                }
            }
        });
        Ok(())
    }

    /// Gradients when the statistics are those of the batch itself (training mode).
    ///
    /// With `z = (x - mean) inv_std`, means over N, H and W:
    /// `grad_x = gamma inv_std (g - mean(g) - z mean(g z))`.
    ///
    /// # Errors
    ///
    /// If a slice has the wrong length.
    pub fn train_grad<T: Real>(
        &self,
        x: &[T],
        grad_out: &[T],
        gamma: &[T],
        statistics: &Statistics,
        grads: BatchNormGrads<'_, T>,
    ) -> Result<()> {
        self.grad(x, grad_out, gamma, statistics, grads, true)
    }

    /// Gradients when the statistics are constants (evaluation mode):
    /// `grad_x = gamma inv_std g`.
    ///
    /// # Errors
    ///
    /// If a slice has the wrong length.
    pub fn eval_grad<T: Real>(
        &self,
        x: &[T],
        grad_out: &[T],
        gamma: &[T],
        statistics: &Statistics,
        grads: BatchNormGrads<'_, T>,
    ) -> Result<()> {
        self.grad(x, grad_out, gamma, statistics, grads, false)
    }

    fn grad<T: Real>(
        &self,
        x: &[T],
        grad_out: &[T],
        gamma: &[T],
        statistics: &Statistics,
        grads: BatchNormGrads<'_, T>,
        train: bool,
    ) -> Result<()> {
        check_len("batch_norm: x", x, self.len())?;
        check_len("batch_norm: grad_out", grad_out, self.len())?;
        check_len("batch_norm: gamma", gamma, self.c)?;
        check_len("batch_norm: mean", &statistics.mean, self.c)?;
        let Statistics { mean, inv_std, .. } = statistics;
        let need_sums =
            grads.gamma.is_some() || grads.beta.is_some() || (train && grads.x.is_some());
        // Per channel: sum of g, sum of g z.
        let sums = if need_sums {
            collect(self.c, self.n > CHUNK, |c| {
                let g = self
                    .channel(grad_out, c)
                    .map(|g| sum(g, |g| g))
                    .sum::<f64>();
                let gx: f64 = self
                    .channel(grad_out, c)
                    .zip(self.channel(x, c))
                    .map(|(g, x)| sum2(g, x, |g, x| g * (x - mean[c])))
                    .sum();
                (g, gx * inv_std[c])
            })
        } else {
            Vec::new()
        };
        if let Some(out) = grads.gamma {
            check_len("batch_norm: grad gamma", out, self.c)?;
            out.iter_mut()
                .zip(&sums)
                .for_each(|(o, s)| *o = T::from_f64(s.1));
        }
        if let Some(out) = grads.beta {
            check_len("batch_norm: grad beta", out, self.c)?;
            out.iter_mut()
                .zip(&sums)
                .for_each(|(o, s)| *o = T::from_f64(s.0));
        }
        let Some(out) = grads.x else { return Ok(()) };
        check_len("batch_norm: grad x", out, self.len())?;
        let count = self.count() as f64;
        let image = self.c * self.plane;
        split(out, CHUNK * image, |chunk, out| {
            let start = chunk * CHUNK * image;
            let inputs = x[start..]
                .chunks_exact(self.plane)
                .zip(grad_out[start..].chunks_exact(self.plane));
            for (i, ((x, g), out)) in inputs.zip(out.chunks_exact_mut(self.plane)).enumerate() {
                let c = i % self.c;
                let scale = T::from_f64(gamma[c].to_f64() * inv_std[c]);
                if !train {
                    out.iter_mut().zip(g).for_each(|(o, &g)| *o = scale * g);
                    continue;
                }
                let mean_g = T::from_f64(sums[c].0 / count);
                let slope = T::from_f64(sums[c].1 / count * inv_std[c]);
                let mean = T::from_f64(mean[c]);
                for (o, (&g, &v)) in out.iter_mut().zip(g.iter().zip(x)) {
                    *o = scale * (g - mean_g - (v - mean) * slope);
                }
            }
        });
        Ok(())
    }
}

/// PyTorch's running average, `running = (1 - momentum) running + momentum value`.
///
/// For `running_var` PyTorch feeds the unbiased variance, [`Statistics::unbiased_var`].
///
/// # Errors
///
/// If the slices differ in length.
pub fn update_running<T: Real>(running: &mut [T], value: &[f64], momentum: f64) -> Result<()> {
    check_len("update_running: value", value, running.len())?;
    for (r, v) in running.iter_mut().zip(value) {
        *r = T::from_f64((1.0 - momentum) * r.to_f64() + momentum * v);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, data, same_for_threads};

    struct Results<T> {
        out: Vec<T>,
        x: Vec<T>,
        gamma: Vec<T>,
        beta: Vec<T>,
    }

    fn run<T: Real>(norm: &BatchNorm, x: &[T], statistics: &Statistics, train: bool) -> Results<T> {
        let (gamma, beta): (Vec<T>, Vec<T>) = (data(2, norm.c), data(3, norm.c));
        let grad: Vec<T> = data(4, x.len());
        let dirt = |len| vec![T::from_f64(f64::NAN); len];
        let mut r = Results {
            out: dirt(x.len()),
            x: dirt(x.len()),
            gamma: dirt(norm.c),
            beta: dirt(norm.c),
        };
        norm.forward(x, &gamma, &beta, statistics, &mut r.out)
            .unwrap();
        let grads = BatchNormGrads {
            x: Some(&mut r.x[..]),
            gamma: Some(&mut r.gamma[..]),
            beta: Some(&mut r.beta[..]),
        };
        if train {
            norm.train_grad(x, &grad, &gamma, statistics, grads)
                .unwrap();
        } else {
            norm.eval_grad(x, &grad, &gamma, statistics, grads).unwrap();
        }
        r
    }

    #[test]
    fn statistics_survive_a_large_mean() {
        let norm = BatchNorm::new([2, 1, 1, 2], 1e-5).unwrap();
        let x = [4096.0f32, 4096.5, 4097.0, 4097.5];
        let statistics = norm.statistics(&x).unwrap();
        assert_eq!(statistics.mean, [4096.75]);
        assert_eq!(statistics.var, [0.3125]);
        assert_close(
            &statistics.unbiased_var(4),
            &[0.3125 * 4.0 / 3.0],
            1e-15,
            &"unbiased",
        );
        let mut running = [1.0f32];
        update_running(&mut running, &[3.0], 0.25).unwrap();
        assert_eq!(running, [1.5]);
    }

    #[test]
    fn normalised_channels_have_mean_beta_and_gradients_that_sum_to_zero() {
        let norm = BatchNorm::new([5, 3, 4, 3], 1e-5).unwrap();
        let x: Vec<f64> = data(1, 180);
        let statistics = norm.statistics(&x).unwrap();
        let r = run(&norm, &x, &statistics, true);
        let beta: Vec<f64> = data(3, 3);
        for (c, beta) in beta.iter().enumerate() {
            let total: f64 = norm.channel(&r.out, c).map(|x| sum(x, |v| v)).sum();
            assert!((total / 60.0 - beta).abs() < 1e-14);
            let total: f64 = norm.channel(&r.x, c).map(|x| sum(x, |v| v)).sum();
            assert!(total.abs() < 1e-12, "shifting a channel changes nothing");
        }
    }

    #[test]
    fn fixed_statistics_are_constants() {
        let norm = BatchNorm::new([2, 2, 1, 2], 0.25).unwrap();
        let statistics = Statistics::fixed(&[0.0, 1.0], &[0.75, 3.75], 0.25).unwrap();
        let x: Vec<f64> = data(1, 8);
        let r = run(&norm, &x, &statistics, false);
        let (gamma, grad): (Vec<f64>, Vec<f64>) = (data(2, 2), data(4, 8));
        let scale = [gamma[0], gamma[1] / 2.0];
        let expected: Vec<f64> = (0..8).map(|i| grad[i] * scale[i / 2 % 2]).collect();
        assert_close(&r.x, &expected, 1e-15, &"x");
        assert_close(
            &r.beta,
            &[0, 2].map(|i| (0..2).map(|j| grad[i + j] + grad[i + j + 4]).sum()),
            1e-15,
            &"beta",
        );
    }

    #[test]
    fn thread_count_changes_nothing() {
        let norm = BatchNorm::new([40, 3, 5, 7], 1e-5).unwrap();
        let x: Vec<f32> = data(1, 40 * 3 * 35);
        same_for_threads(|| {
            let statistics = norm.statistics(&x).unwrap();
            let train = run(&norm, &x, &statistics, true);
            let eval = run(&norm, &x, &statistics, false);
            [train.out, train.x, train.gamma, train.beta, eval.x].concat()
        });
    }

    #[test]
    fn refuses_what_does_not_fit() {
        assert!(BatchNorm::new([0, 1, 1, 1], 1e-5).is_err());
        assert!(BatchNorm::new([1, 1, 1, 1], 0.0).is_err());
        assert!(Statistics::fixed(&[0f32], &[], 1e-5).is_err());
    }
}
