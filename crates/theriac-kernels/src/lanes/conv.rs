//! Convolution between planes.

use std::ops::Range;

use super::LANES;
use super::plane::{Plane, Room, Shelf};
use super::products::{Finish, Grid, Job, Packed, Pairs, correlations, products};
use super::simd::Level;
use super::tiles::{Area, Tiles};

/// A convolution without groups: kernel, stride, padding, dilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conv {
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    pub(crate) dilation: usize,
}

/// Taps of one axis that reach the pixels `a, a + stride, ...` of the input: (tap, output minus
/// input step).
struct Reach {
    /// Pixels of the phase.
    count: usize,
    taps: Vec<(usize, isize)>,
}

impl Conv {
    /// Size of an axis after the convolution, if the kernel fits.
    pub(crate) fn out(&self, size: usize, kernel: usize) -> Option<usize> {
        let span = self.dilation.checked_mul(kernel - 1)?.checked_add(1)?;
        let room = size.checked_add(self.padding.checked_mul(2)?)?;
        let room = room.checked_sub(span)?;
        Some(room / self.stride + 1)
    }

    /// Which outputs a pixel of phase `a` took part in, along an axis.
    fn reach(&self, a: usize, size: usize, kernel: usize) -> Reach {
        let (s, p) = (self.stride as isize, self.padding as isize);
        let taps = (0..kernel).filter_map(|u| {
            let step = a as isize + p - (u * self.dilation) as isize;
            (step.rem_euclid(s) == 0).then(|| (u, step.div_euclid(s)))
        });
        Reach {
            count: size.saturating_sub(a).div_ceil(self.stride),
            taps: taps.collect(),
        }
    }

    /// Border that the gradient of the output needs for [`Backward`].
    pub(crate) fn grad_border(&self, x: &Plane, out: &Plane) -> usize {
        let axis = |size: usize, out: usize, kernel: usize| {
            (0..self.stride)
                .map(|a| {
                    let reach = self.reach(a, size, kernel);
                    let low = reach.taps.iter().map(|t| -t.1).max().unwrap_or(0);
                    let high = reach.taps.iter().map(|t| t.1).max().unwrap_or(0)
                        + reach.count as isize
                        - out as isize;
                    low.max(high).max(0) as usize
                })
                .max()
                .unwrap_or(0)
        };
        axis(x.rows, out.rows, self.kernel.0).max(axis(x.columns, out.columns, self.kernel.1))
    }

    /// Places of the weights' terms (channel, tap) in a plane.
    pub(crate) fn offsets(&self, x: &Plane) -> Vec<usize> {
        let (kh, kw) = self.kernel;
        let mut offsets = Vec::with_capacity(x.channels * kh * kw);
        for c in 0..x.channels {
            for u in 0..kh {
                for v in 0..kw {
                    let (u, v) = (u * self.dilation, v * self.dilation);
                    offsets.push(c * x.channel() + u * x.row() + v * LANES);
                }
            }
        }
        offsets
    }

    fn from(&self, x: &Plane) -> Grid {
        let grid = x.shifted(self.padding);
        Grid {
            row: self.stride * grid.row,
            column: self.stride * grid.column,
            ..grid
        }
    }

    /// Whether tiles compute it faster.
    fn by_tiles(&self, inputs: usize, outputs: usize, size: (usize, usize)) -> bool {
        let tiled = self.kernel == (3, 3) && self.stride == 1 && self.dilation == 1;
        tiled && Tiles::pay(inputs, outputs, size)
    }

    /// Fills `sums` (channels, terms, 16), for some of the output's channels.
    pub(crate) fn weight_grad(
        &self,
        level: Level,
        (plane, x): (&Plane, &[f32]),
        offsets: &[usize],
        (out_plane, grad, channels): (&Plane, &[f32], Range<usize>),
        sums: &mut [f32],
    ) {
        let grid = out_plane.grid();
        let pairs = Pairs {
            left: grad,
            left_at: Grid {
                start: grid.at(channels.start, 0, 0),
                ..grid
            },
            channels: channels.len(),
            right: x,
            right_at: self.from(plane),
            offsets,
            rows: out_plane.rows,
            columns: out_plane.columns,
        };
        correlations(level, &pairs, sums);
    }
}

/// Weights, arranged for the way that is faster.
#[derive(Clone, Debug)]
enum Weights {
    Taps(Packed),
    Tiles(Tiles),
}

impl Weights {
    fn run(
        &self,
        level: Level,
        area: &Area<'_>,
        offsets: &[usize],
        shelf: &Shelf,
        out: &mut [f32],
    ) {
        match self {
            Self::Tiles(tiles) => tiles.run(level, area, shelf, out),
            Self::Taps(weights) => {
                let job = Job {
                    weights: weights.all(),
                    offsets,
                    x: area.x,
                    from: area.from,
                    to: area.to,
                    rows: area.rows,
                    columns: area.columns,
                    finish: area.finish,
                };
                products(level, &job, out);
            }
        }
    }

    fn give(self, shelf: &Shelf) {
        match self {
            Self::Taps(weights) => weights.give(shelf),
            Self::Tiles(tiles) => tiles.give(shelf),
        }
    }
}

/// Weights of a convolution in the order that it reads them.
#[derive(Clone, Debug)]
pub(crate) struct Forward {
    weights: Weights,
}

impl Forward {
    /// From weights (out channels, in channels, kernel).
    pub(crate) fn new(room: Room<'_>, conv: &Conv, x: &Plane, out: &Plane, weight: &[f32]) -> Self {
        let terms = x.channels * conv.kernel.0 * conv.kernel.1;
        let size = (out.rows, out.columns);
        let weights = match conv.by_tiles(x.channels, out.channels, size) {
            true => Weights::Tiles(Tiles::new(room, out.channels, x.channels, |o, c| {
                let from = &weight[o * terms + 9 * c..];
                std::array::from_fn(|tap| from[tap])
            })),
            false => Weights::Taps(Packed::new(room, out.channels, terms, |row, to| {
                to.copy_from_slice(&weight[row * terms..][..terms]);
            })),
        };
        Self { weights }
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn run(
        &self,
        level: Level,
        conv: &Conv,
        (plane, x): (&Plane, &[f32]),
        offsets: &[usize],
        finish: Finish<'_>,
        shelf: &Shelf,
        (out_plane, out): (&Plane, &mut [f32]),
    ) {
        let area = Area {
            x,
            from: conv.from(plane),
            to: out_plane.grid(),
            rows: out_plane.rows,
            columns: out_plane.columns,
            finish,
        };
        self.weights.run(level, &area, offsets, shelf, out);
    }

    /// Gives the memory back.
    pub(crate) fn give(self, shelf: &Shelf) {
        self.weights.give(shelf);
    }
}

/// Weights of a convolution in the order that its input's gradient reads them.
///
/// With stride s the pixels of one phase (y mod s, x mod s) are reached by the same taps, so that
/// each phase is a convolution of stride 1 with some of the weights.
#[derive(Clone, Debug)]
pub(crate) struct Backward {
    phases: Vec<Phase>,
}

#[derive(Clone, Debug)]
struct Phase {
    weights: Weights,
    offsets: Vec<usize>,
    from: Grid,
    to: Grid,
    rows: usize,
    columns: usize,
}

impl Backward {
    /// From weights (out channels, in channels, kernel), each output channel scaled.
    pub(crate) fn new(
        room: Room<'_>,
        conv: &Conv,
        x: &Plane,
        out: &Plane,
        weight: &[f32],
        scale: Option<&[f32]>,
    ) -> Self {
        let (kh, kw) = conv.kernel;
        let mut phases = Vec::new();
        for a in 0..conv.stride.min(x.rows) {
            for b in 0..conv.stride.min(x.columns) {
                let down = conv.reach(a, x.rows, kh);
                let across = conv.reach(b, x.columns, kw);
                let least = |reach: &Reach| reach.taps.iter().map(|t| t.1).min().unwrap_or(0);
                let (top, left) = (least(&down), least(&across));
                let mut taps = Vec::new();
                let mut offsets = Vec::new();
                for o in 0..out.channels {
                    for &(u, j) in &down.taps {
                        for &(v, i) in &across.taps {
                            taps.push((o, u * kw + v));
                            // Differences from the least are not negative.
                            let (j, i) = ((j - top) as usize, (i - left) as usize);
                            offsets.push(o * out.channel() + j * out.row() + i * LANES);
                        }
                    }
                }
                let of = |o: usize, c: usize, tap: usize| {
                    let weight = weight[(o * x.channels + c) * kh * kw + tap];
                    scale.map_or(weight, |scale| scale[o] * weight)
                };
                let size = (down.count, across.count);
                let weights = match conv.by_tiles(out.channels, x.channels, size) {
                    // Mirrored: the first tap reaches farthest.
                    true => Weights::Tiles(Tiles::new(room, x.channels, out.channels, |c, o| {
                        std::array::from_fn(|place| of(o, c, 8 - place))
                    })),
                    false => Weights::Taps(Packed::new(room, x.channels, taps.len(), |c, to| {
                        for (to, &(o, tap)) in to.iter_mut().zip(&taps) {
                            *to = of(o, c, tap);
                        }
                    })),
                };
                let (grid, grad) = (x.grid(), out.grid());
                // The border is at least as wide as `grad_border`.
                let start = grad.start as isize + top * grad.row as isize + left * LANES as isize;
                phases.push(Phase {
                    weights,
                    offsets,
                    from: Grid {
                        start: start as usize,
                        ..grad
                    },
                    to: Grid {
                        start: grid.at(0, a, b),
                        channel: grid.channel,
                        row: conv.stride * grid.row,
                        column: conv.stride * grid.column,
                    },
                    rows: down.count,
                    columns: across.count,
                });
            }
        }
        Self { phases }
    }

    /// Gives the memory back.
    pub(crate) fn give(self, shelf: &Shelf) {
        for phase in self.phases {
            phase.weights.give(shelf);
        }
    }

    pub(crate) fn run(
        &self,
        level: Level,
        grad: &[f32],
        finish: Finish<'_>,
        shelf: &Shelf,
        grad_x: &mut [f32],
    ) {
        for phase in &self.phases {
            let area = Area {
                x: grad,
                from: phase.from,
                to: phase.to,
                rows: phase.rows,
                columns: phase.columns,
                finish,
            };
            let offsets = &phase.offsets;
            phase.weights.run(level, &area, offsets, shelf, grad_x);
        }
    }
}
