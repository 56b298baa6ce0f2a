//! Pooling between planes.
// The same lane of several arrays: a counter reads better than nested zips.
#![allow(clippy::needless_range_loop)]
#![allow(unsafe_code)]

use std::ops::Range;

use super::LANES;
use super::plane::Plane;
use super::simd::{Level, each_level};

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
            let room = size.checked_add(self.padding.checked_mul(2)?)?;
            let room = room.checked_sub(kernel)?;
            Some(room / stride + 1)
        };
        Some((
            axis(rows, self.kernel.0, self.stride.0)?,
            axis(columns, self.kernel.1, self.stride.1)?,
        ))
    }

    /// The window's part of an axis.
    fn range(&self, start: usize, kernel: usize, size: usize) -> Range<usize> {
        let end = (start + kernel).saturating_sub(self.padding).min(size);
        start.saturating_sub(self.padding)..end
    }

    fn size(&self) -> f32 {
        self.kernel.0 as f32 * self.kernel.1 as f32
    }

    /// Whether each pixel lies in exactly one window.
    pub(crate) fn tiles(&self, plane: &Plane) -> bool {
        self.kernel == self.stride
            && self.padding == 0
            && plane.rows.is_multiple_of(self.kernel.0)
            && plane.columns.is_multiple_of(self.kernel.1)
    }

    /// Windows in the order of their outputs.
    fn windows(&self, plane: &Plane, out: &Plane) -> impl Iterator<Item = Window> {
        let (windows, plane, out) = (*self, *plane, *out);
        let to = out.grid();
        (0..out.channels * out.rows).flat_map(move |line| {
            let (c, oy) = (line / out.rows, line % out.rows);
            let rows = windows.range(oy * windows.stride.0, windows.kernel.0, plane.rows);
            (0..out.columns).map(move |ox| Window {
                place: to.at(c, oy, ox),
                channel: c,
                rows: rows.clone(),
                columns: windows.range(ox * windows.stride.1, windows.kernel.1, plane.columns),
            })
        })
    }

    /// The first maximum of each window and its number in the window; NaN wins.
    pub(crate) fn max(
        &self,
        level: Level,
        (plane, x): (&Plane, &[f32]),
        (out_plane, out): (&Plane, &mut [f32]),
        winners: &mut Vec<Lane<u8>>,
    ) {
        max(level, self, (plane, x), (out_plane, out), winners);
    }

    /// Adds each output's gradient to the pixel that won; without `accumulate`, windows that
    /// [tile](Self::tiles) the plane overwrite it.
    pub(crate) fn max_grad(
        &self,
        level: Level,
        (out_plane, grad): (&Plane, &[f32]),
        winners: &[Lane<u8>],
        (plane, grad_x): (&Plane, &mut [f32]),
        accumulate: bool,
    ) {
        let add = accumulate || !self.tiles(plane);
        let (output, input) = ((out_plane, grad), (plane, grad_x));
        max_grad(level, self, output, winners, input, add);
    }

    /// The mean of each window; padding counts as zeros.
    pub(crate) fn mean(
        &self,
        level: Level,
        (plane, x): (&Plane, &[f32]),
        (out_plane, out): (&Plane, &mut [f32]),
    ) {
        mean(level, self, (plane, x), (out_plane, out));
    }

    /// Adds each output's gradient, divided by the window's size, to its pixels; `accumulate` as in
    /// [`Self::max_grad`].
    pub(crate) fn mean_grad(
        &self,
        level: Level,
        (out_plane, grad): (&Plane, &[f32]),
        (plane, grad_x): (&Plane, &mut [f32]),
        accumulate: bool,
    ) {
        let add = accumulate || !self.tiles(plane);
        mean_grad(level, self, (out_plane, grad), (plane, grad_x), add);
    }
}

/// The pixels of a window and the place of its output.
struct Window {
    place: usize,
    channel: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

each_level! {
    fn max(
        windows: &Windows,
        input: (&Plane, &[f32]),
        output: (&Plane, &mut [f32]),
        winners: &mut Vec<Lane<u8>>,
    ) {
        let ((plane, x), (out_plane, out)) = (input, output);
        let from = plane.grid();
        winners.clear();
        for window in windows.windows(plane, out_plane) {
            let mut best = [f32::NEG_INFINITY; LANES];
            // As wide as the values, so that both are chosen by the same mask.
            let mut winner = [0u32; LANES];
            let mut tap = 0;
            for y in window.rows {
                for column in window.columns.clone() {
                    let values = lane(x, from.at(window.channel, y, column));
                    for i in 0..LANES {
                        let wins = values[i] > best[i] || values[i].is_nan();
                        best[i] = if wins { values[i] } else { best[i] };
                        winner[i] = if wins { tap } else { winner[i] };
                    }
                    tap += 1;
                }
            }
            out[window.place..window.place + LANES].copy_from_slice(&best);
            // A window of max pooling has at most 225 pixels.
            winners.push(winner.map(|tap| tap as u8));
        }
    }
}

each_level! {
    fn max_grad(
        windows: &Windows,
        output: (&Plane, &[f32]),
        winners: &[Lane<u8>],
        input: (&Plane, &mut [f32]),
        add: bool,
    ) {
        let ((out_plane, grad), (plane, grad_x)) = (output, input);
        let from = plane.grid();
        for (window, winner) in windows.windows(plane, out_plane).zip(winners) {
            let (grad, winner) = (*lane(grad, window.place), winner.map(u32::from));
            let mut tap = 0;
            for y in window.rows {
                for column in window.columns.clone() {
                    let to = lane_mut(grad_x, from.at(window.channel, y, column));
                    for i in 0..LANES {
                        let g = if winner[i] == tap { grad[i] } else { 0.0 };
                        to[i] = if add { to[i] + g } else { g };
                    }
                    tap += 1;
                }
            }
        }
    }
}

each_level! {
    fn mean(windows: &Windows, input: (&Plane, &[f32]), output: (&Plane, &mut [f32])) {
        let ((plane, x), (out_plane, out)) = (input, output);
        let (from, size) = (plane.grid(), windows.size());
        for window in windows.windows(plane, out_plane) {
            let mut total = [0f32; LANES];
            for y in window.rows {
                for column in window.columns.clone() {
                    let values = lane(x, from.at(window.channel, y, column));
                    for i in 0..LANES {
                        total[i] += values[i];
                    }
                }
            }
            *lane_mut(out, window.place) = total.map(|total| total / size);
        }
    }
}

each_level! {
    fn mean_grad(
        windows: &Windows,
        output: (&Plane, &[f32]),
        input: (&Plane, &mut [f32]),
        add: bool,
    ) {
        let ((out_plane, grad), (plane, grad_x)) = (output, input);
        let (from, size) = (plane.grid(), windows.size());
        for window in windows.windows(plane, out_plane) {
            let share = lane(grad, window.place).map(|g| g / size);
            for y in window.rows {
                for column in window.columns.clone() {
                    let to = lane_mut(grad_x, from.at(window.channel, y, column));
                    for i in 0..LANES {
                        to[i] = if add { to[i] + share[i] } else { share[i] };
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn lane(x: &[f32], place: usize) -> &Lane<f32> {
    &x[place..].as_chunks().0[0]
}

#[inline(always)]
fn lane_mut(x: &mut [f32], place: usize) -> &mut Lane<f32> {
    &mut x[place..].as_chunks_mut().0[0]
}
