//! Loops over all pixels of sixteen images.
// The same lane of several arrays: a counter reads better than nested zips.
#![allow(clippy::needless_range_loop)]
#![allow(unsafe_code)]

use super::LANES;
use super::plane::Plane;
use super::products::Finish;
use super::simd::{Level, each_level};

type Lane = [f32; LANES];

/// The sum of the lanes, halved again and again: lanes without image add zeros.
pub(crate) fn fold(lanes: &Lane) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

each_level! {
    /// `out = finish(x)` on planes of one layout, without bias.
    pub(crate) fn pointwise(plane: &Plane, x: &[f32], finish: &Finish<'_>, out: &mut [f32]) {
        for (c, line) in plane.lines() {
            let (scale, shift) = finish.affine.map_or((1.0, 0.0), |(a, b)| (a[c], b[c]));
            let to = &mut out[line.clone()];
            let x = &x[line.clone()];
            let residual = finish.residual.map(|residual| &residual[line]);
            for (i, (to, &v)) in to.iter_mut().zip(x).enumerate() {
                let mut v = v;
                if finish.affine.is_some() {
                    v = v * scale + shift;
                }
                if let Some(residual) = residual {
                    v += residual[i];
                }
                if finish.relu && v <= 0.0 {
                    v = 0.0;
                }
                *to = if finish.accumulate { *to + v } else { v };
            }
        }
    }
}

each_level! {
    /// `grad = 0` where `value` is at most 0: the gradient of a ReLU, which lets NaN through.
    pub(crate) fn gate(plane: &Plane, value: &[f32], grad: &mut [f32]) {
        for (_, line) in plane.lines() {
            for (g, &v) in grad[line.clone()].iter_mut().zip(&value[line]) {
                *g = if v <= 0.0 { 0.0 } else { *g };
            }
        }
    }
}

each_level! {
    /// Adds the sum of each channel over its pixels and the first `images` lanes to `totals`.
    pub(crate) fn sums(plane: &Plane, x: &[f32], images: usize, totals: &mut [f64]) {
        for (c, line) in plane.lines() {
            let mut lanes = [0f32; LANES];
            for pixel in x[line].as_chunks::<LANES>().0 {
                for i in 0..LANES {
                    lanes[i] += pixel[i];
                }
            }
            lanes[images..].fill(0.0);
            totals[c] += f64::from(fold(&lanes));
        }
    }
}

each_level! {
    /// Adds the sum of `(x - mean)^2` of each channel to `totals`.
    pub(crate) fn squares(
        plane: &Plane,
        x: &[f32],
        images: usize,
        means: &[f64],
        totals: &mut [f64],
    ) {
        for (c, line) in plane.lines() {
            let mean = means[c] as f32;
            let mut lanes = [0f32; LANES];
            for pixel in x[line].as_chunks::<LANES>().0 {
                for i in 0..LANES {
                    let apart = pixel[i] - mean;
                    lanes[i] += apart * apart;
                }
            }
            lanes[images..].fill(0.0);
            totals[c] += f64::from(fold(&lanes));
        }
    }
}

each_level! {
    /// Adds the sums of `g` and `g (x - mean)` of each channel to `g_totals` and `gx_totals`.
    pub(crate) fn grad_sums(
        plane: &Plane,
        x: &[f32],
        grad: &[f32],
        means: &[f64],
        g_totals: &mut [f64],
        gx_totals: &mut [f64],
    ) {
        for (c, line) in plane.lines() {
            let mean = means[c] as f32;
            let (mut g_lanes, mut gx_lanes) = ([0f32; LANES], [0f32; LANES]);
            let pixels = grad[line.clone()].as_chunks::<LANES>().0;
            for (g, x) in pixels.iter().zip(x[line].as_chunks::<LANES>().0) {
                for i in 0..LANES {
                    g_lanes[i] += g[i];
                    gx_lanes[i] += g[i] * (x[i] - mean);
                }
            }
            g_totals[c] += f64::from(fold(&g_lanes));
            gx_totals[c] += f64::from(fold(&gx_lanes));
        }
    }
}

/// `scale (g - g_mean) + slope (x - x_mean)` of each channel, for the first `images` lanes.
#[derive(Default)]
pub(crate) struct Slopes {
    pub(crate) images: usize,
    pub(crate) scale: Vec<f32>,
    pub(crate) g_mean: Vec<f32>,
    pub(crate) slope: Vec<f32>,
    pub(crate) x_mean: Vec<f32>,
}

each_level! {
    /// `to = slopes(x, grad)`, or adds it; 0 in the lanes without image.
    pub(crate) fn combine(
        plane: &Plane,
        x: &[f32],
        grad: &[f32],
        slopes: &Slopes,
        accumulate: bool,
        to: &mut [f32],
    ) {
        for (c, line) in plane.lines() {
            let (scale, slope) = (slopes.scale[c], slopes.slope[c]);
            let (g_mean, x_mean) = (slopes.g_mean[c], slopes.x_mean[c]);
            let pixels = to[line.clone()].as_chunks_mut::<LANES>().0.iter_mut();
            let grads = grad[line.clone()].as_chunks::<LANES>().0;
            for ((to, g), x) in pixels.zip(grads).zip(x[line].as_chunks::<LANES>().0) {
                let mut values = [0f32; LANES];
                for i in 0..LANES {
                    values[i] = scale * (g[i] - g_mean) + slope * (x[i] - x_mean);
                }
                // Lanes without image had no part in the sums.
                values[slopes.images..].fill(0.0);
                for i in 0..LANES {
                    to[i] = if accumulate { to[i] + values[i] } else { values[i] };
                }
            }
        }
    }
}

/// The sum of each channel over pixels and lanes.
pub(crate) fn channel_sums(level: Level, plane: &Plane, grad: &[f32]) -> Vec<f32> {
    let mut totals = vec![0f64; plane.channels];
    sums(level, plane, grad, LANES, &mut totals);
    totals.into_iter().map(|total| total as f32).collect()
}
