//! Pooling between planes.

use super::LANES;
use super::plane::Plane;

/// Windows of (height, width).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: (usize, usize),
    pub(crate) padding: usize,
}

type Lane<T> = [T; LANES];

impl Windows {
    pub(crate) fn square(kernel: usize, stride: usize, padding: usize) -> Self {
        Self {
            kernel: (kernel, kernel),
            stride: (stride, stride),
            padding,
        }
    }

    /// Rows and columns of the result, if the window fits.
    pub(crate) fn out(&self, rows: usize, columns: usize) -> Option<(usize, usize)> {
        let axis = |size: usize, kernel: usize, stride: usize| {
            let room = (size + 2 * self.padding).checked_sub(kernel)?;
            Some(room / stride + 1)
        };
        Some((
            axis(rows, self.kernel.0, self.stride.0)?,
            axis(columns, self.kernel.1, self.stride.1)?,
        ))
    }

    /// The window's part of an axis.
    fn range(&self, start: usize, kernel: usize, size: usize) -> std::ops::Range<usize> {
        let end = (start + kernel).saturating_sub(self.padding).min(size);
        start.saturating_sub(self.padding)..end
    }

    fn size(&self) -> f32 {
        (self.kernel.0 * self.kernel.1) as f32
    }

    /// Calls `f(output's number, its place, (tap, place of the pixel) of its window)`.
    fn each(
        &self,
        plane: &Plane,
        out: &Plane,
        mut f: impl FnMut(usize, usize, &mut dyn Iterator<Item = (u8, usize)>),
    ) {
        let (from, to) = (plane.grid(), out.grid());
        let mut number = 0;
        for c in 0..out.channels {
            for oy in 0..out.rows {
                let rows = self.range(oy * self.stride.0, self.kernel.0, plane.rows);
                for ox in 0..out.columns {
                    let columns = self.range(ox * self.stride.1, self.kernel.1, plane.columns);
                    let mut places = rows
                        .clone()
                        .flat_map(|y| columns.clone().map(move |x| from.at(c, y, x)))
                        .enumerate()
                        // Exact for max pooling, the only reader: its windows have at most 225 pixels.
                        .map(|(tap, place)| (tap as u8, place));
                    f(number, to.at(c, oy, ox), &mut places);
                    number += 1;
                }
            }
        }
    }

    /// The first maximum of each window and its number in the window; NaN wins.
    pub(crate) fn max(
        &self,
        (plane, x): (&Plane, &[f32]),
        (out_plane, out): (&Plane, &mut [f32]),
        winners: &mut Vec<Lane<u8>>,
    ) {
        winners.clear();
        self.each(plane, out_plane, |_, place, window| {
            let mut best = [f32::NEG_INFINITY; LANES];
            let mut winner = [0u8; LANES];
            for (tap, pixel) in window {
                let values = lane(x, pixel);
                for ((best, winner), &v) in best.iter_mut().zip(&mut winner).zip(values) {
                    let wins = v > *best || v.is_nan();
                    *best = if wins { v } else { *best };
                    *winner = if wins { tap } else { *winner };
                }
            }
            out[place..place + LANES].copy_from_slice(&best);
            winners.push(winner);
        });
    }

    /// Adds each output's gradient to the pixel that won.
    pub(crate) fn max_grad(
        &self,
        (out_plane, grad): (&Plane, &[f32]),
        winners: &[Lane<u8>],
        (plane, grad_x): (&Plane, &mut [f32]),
    ) {
        self.each(plane, out_plane, |number, place, window| {
            let (grad, winner) = (*lane(grad, place), winners[number]);
            for (tap, pixel) in window {
                let to = &mut grad_x[pixel..pixel + LANES];
                for ((to, &g), &w) in to.iter_mut().zip(&grad).zip(&winner) {
                    *to += if w == tap { g } else { 0.0 };
                }
            }
        });
    }

    /// The mean of each window; padding counts as zeros.
    pub(crate) fn mean(
        &self,
        (plane, x): (&Plane, &[f32]),
        (out_plane, out): (&Plane, &mut [f32]),
    ) {
        let size = self.size();
        self.each(plane, out_plane, |_, place, window| {
            let mut total = [0f32; LANES];
            for (_, pixel) in window {
                for (total, &v) in total.iter_mut().zip(lane(x, pixel)) {
                    *total += v;
                }
            }
            for (out, total) in out[place..place + LANES].iter_mut().zip(total) {
                *out = total / size;
            }
        });
    }

    /// Adds each output's gradient, divided by the window's size, to its pixels.
    pub(crate) fn mean_grad(
        &self,
        (out_plane, grad): (&Plane, &[f32]),
        (plane, grad_x): (&Plane, &mut [f32]),
    ) {
        let size = self.size();
        self.each(plane, out_plane, |_, place, window| {
            let share = lane(grad, place).map(|g| g / size);
            for (_, pixel) in window {
                for (to, share) in grad_x[pixel..pixel + LANES].iter_mut().zip(share) {
                    *to += share;
                }
            }
        });
    }
}

fn lane(x: &[f32], place: usize) -> &Lane<f32> {
    // The slice has exactly LANES elements.
    x[place..].first_chunk().unwrap_or(&[0.0; LANES])
}
