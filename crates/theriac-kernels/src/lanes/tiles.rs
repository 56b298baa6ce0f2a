//! Convolutions of 3x3 by tiles of 2x2 outputs.
//!
//! ```text
//! U = G g G^T,   V = B^T d B,   M_p = sum over channels of U_p V_p,   y = A^T M A
//! ```
//!
//! Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, section 4.1,
//! F(2x2, 3x3), after Winograd: 16 products for each pair of channels and tile where the sum over taps
//! takes 36. The tile's 4x4 inputs and 16 products are taken apart and put together by additions alone,
//! so that a result is about as exact as the sum's.
// Two squares are walked side by side: counters read better than nested zips.
#![allow(clippy::needless_range_loop)]
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::LANES;
use super::plane::{Room, Shelf};
use super::products::{Finish, Grid, Job, Packed, finish, products};
use super::simd::{Level, Vector, dispatch};

/// Values of a tile's input, and products of each pair of channels.
const POSITIONS: usize = 16;

/// Bytes of a chunk of tiles, taken apart, that stay in the second cache.
const CHUNK: usize = 256 * 1024;

/// Weights that one thread takes apart.
const FEW: usize = 1 << 12;

/// Lines between the positions of a chunk, so that sixteen streams do not meet in one set of the
/// first cache.
const APART: usize = 5;

/// Weights of a convolution of 3x3, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Tiles {
    /// For each position (outputs, inputs).
    weights: Vec<Packed>,
    inputs: usize,
    outputs: usize,
}

/// What is computed: everything of a [`Job`] but the weights.
#[derive(Clone, Copy)]
pub(crate) struct Area<'a> {
    pub(crate) x: &'a [f32],
    /// Places of the upper left corners of the windows, and of the channels.
    pub(crate) from: Grid,
    pub(crate) to: Grid,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) finish: Finish<'a>,
}

impl Tiles {
    /// Whether a convolution of 3x3 with stride 1 between so many channels is faster by tiles: whole
    /// ones, and enough channels for what additions cost.
    pub(crate) fn pay(inputs: usize, outputs: usize, (rows, columns): (usize, usize)) -> bool {
        let whole = rows.is_multiple_of(2) && columns.is_multiple_of(2);
        whole && inputs >= 16 && outputs >= 16
    }

    /// From the 3x3 weights of each output and input.
    pub(crate) fn new(
        room: Room<'_>,
        outputs: usize,
        inputs: usize,
        weight: impl Fn(usize, usize) -> [f32; 9] + Sync,
    ) -> Self {
        let row = POSITIONS * inputs;
        // (outputs, positions, inputs)
        let mut all = room.shelf.take_len(outputs * row);
        let fill = |(output, to): (usize, &mut [f32])| {
            for input in 0..inputs {
                let values = spread_weight(weight(output, input));
                for (p, value) in values.into_iter().enumerate() {
                    to[p * inputs + input] = value;
                }
            }
        };
        let rows = &mut all[..outputs * row];
        match room.alone || outputs * inputs < FEW {
            true => rows.chunks_mut(row).enumerate().for_each(fill),
            false => rows.par_chunks_mut(row).enumerate().for_each(fill),
        }
        let weights = (0..POSITIONS).map(|p| {
            Packed::new(room, outputs, inputs, |output, to| {
                to.copy_from_slice(&all[output * row + p * inputs..][..inputs]);
            })
        });
        let weights = weights.collect();
        room.shelf.give_len(all);
        Self {
            weights,
            inputs,
            outputs,
        }
    }

    /// Gives the memory back.
    pub(crate) fn give(self, shelf: &Shelf) {
        for weights in self.weights {
            weights.give(shelf);
        }
    }

    /// `out = finish(the convolution)`.
    ///
    /// # Panics
    ///
    /// If a place lies outside its slice, or a tile is not whole: a mistake of this crate.
    pub(crate) fn run(&self, level: Level, area: &Area<'_>, shelf: &Shelf, out: &mut [f32]) {
        let Area {
            from,
            to,
            rows,
            columns,
            finish,
            ..
        } = *area;
        if rows * columns == 0 {
            return;
        }
        assert!(rows % 2 == 0 && columns % 2 == 0, "tiles: half a tile");
        assert!(
            from.end(self.inputs, rows + 2, columns + 2) <= area.x.len(),
            "tiles: x is too short"
        );
        let end = to.end(self.outputs, rows, columns);
        assert!(end <= out.len(), "tiles: out is too short");
        let residual = finish.residual.map_or(end, <[f32]>::len);
        assert!(end <= residual, "tiles: residual is too short");
        for values in [
            finish.bias,
            finish.affine.map(|(scale, _)| scale),
            finish.affine.map(|(_, shift)| shift),
        ] {
            let channels = values.map_or(self.outputs, <[f32]>::len);
            assert!(self.outputs <= channels, "tiles: a channel is missing");
        }
        let across = columns / 2;
        let tile = POSITIONS * self.inputs.max(self.outputs) * LANES * size_of::<f32>();
        let tall = (CHUNK / (tile * across)).clamp(1, rows / 2);
        let pitch = |channels: usize| (channels * tall * across + APART) * LANES;
        let (pitch_in, pitch_out) = (pitch(self.inputs), pitch(self.outputs));
        let mut apart = shelf.take_len(POSITIONS * pitch_in);
        let mut sums = shelf.take_len(POSITIONS * pitch_out);
        for row in (0..rows / 2).step_by(tall) {
            let chunk = Chunk {
                row,
                tall: tall.min(rows / 2 - row),
                across,
            };
            let n = chunk.tall * across;
            take_apart(level, area, &chunk, self.inputs, pitch_in, &mut apart);
            let offsets: Vec<usize> = (0..self.inputs).map(|c| c * n * LANES).collect();
            let line = |start| Grid {
                start,
                channel: n * LANES,
                row: n * LANES,
                column: LANES,
            };
            for (p, weights) in self.weights.iter().enumerate() {
                let job = Job {
                    weights: weights.all(),
                    offsets: &offsets,
                    x: &apart,
                    from: line(p * pitch_in),
                    to: line(p * pitch_out),
                    rows: 1,
                    columns: n,
                    finish: Finish::default(),
                };
                products(level, &job, &mut sums);
            }
            put_together(level, area, &chunk, self.outputs, pitch_out, &sums, out);
        }
        shelf.give_len(apart);
        shelf.give_len(sums);
    }
}

/// Some rows of tiles.
#[derive(Clone, Copy)]
struct Chunk {
    row: usize,
    tall: usize,
    across: usize,
}

/// `G g G^T`, rounded once.
fn spread_weight(g: [f32; 9]) -> [f32; POSITIONS] {
    let g = g.map(f64::from);
    let apart = |[a, b, c]: [f64; 3]| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
    // By columns, then by rows.
    let columns: [[f64; 4]; 3] = std::array::from_fn(|v| apart([g[v], g[3 + v], g[6 + v]]));
    let rows: [[f64; 4]; 4] =
        std::array::from_fn(|u| apart([columns[0][u], columns[1][u], columns[2][u]]));
    std::array::from_fn(|p| rows[p / 4][p % 4] as f32)
}

dispatch! {
    /// `V = B^T d B` of a chunk, (position, channel, tile).
    fn take_apart(
        area: &Area<'_>,
        chunk: &Chunk,
        channels: usize,
        pitch: usize,
        to: &mut [f32],
    ) = inputs;
    avx512 <16>, avx2 <16>, neon <16>
}

#[inline(always)]
unsafe fn inputs<V: Vector, const P: usize>(
    area: &Area<'_>,
    chunk: &Chunk,
    channels: usize,
    pitch: usize,
    to: &mut [f32],
) {
    assert!(P * pitch <= to.len(), "tiles: no room");
    let mut tile = 0;
    for c in 0..channels {
        for y in chunk.row..chunk.row + chunk.tall {
            for x in 0..chunk.across {
                let place = area.from.at(c, 2 * y, 2 * x);
                let mut lane = 0;
                while lane < LANES {
                    // SAFETY: `Tiles::run` checked that each window lies in x; each position has room
                    // for the tiles of all channels. The features are the caller's.
                    unsafe {
                        let from = area.x.as_ptr().add(place + lane);
                        let to = to.as_mut_ptr().add(tile * LANES + lane);
                        let mut d = [[V::splat(0.0); 4]; 4];
                        for (u, row) in d.iter_mut().enumerate() {
                            let from = from.add(u * area.from.row);
                            for (v, value) in row.iter_mut().enumerate() {
                                *value = V::load(from.add(v * area.from.column));
                            }
                        }
                        let mut down = [[V::splat(0.0); 4]; 4];
                        for v in 0..4 {
                            let column = apart([d[0][v], d[1][v], d[2][v], d[3][v]]);
                            for (u, value) in column.into_iter().enumerate() {
                                down[u][v] = value;
                            }
                        }
                        for (u, row) in down.into_iter().enumerate() {
                            for (v, value) in apart(row).into_iter().enumerate() {
                                value.store(to.add((4 * u + v) * pitch));
                            }
                        }
                    }
                    lane += V::WIDTH;
                }
                tile += 1;
            }
        }
    }
}

/// A row of `B^T d`.
#[inline(always)]
unsafe fn apart<V: Vector>([a, b, c, d]: [V; 4]) -> [V; 4] {
    // SAFETY: the features are the caller's.
    unsafe { [a.minus(c), b.plus(c), c.minus(b), b.minus(d)] }
}

dispatch! {
    /// `y = finish(A^T M A)` of a chunk.
    fn put_together(
        area: &Area<'_>,
        chunk: &Chunk,
        channels: usize,
        pitch: usize,
        sums: &[f32],
        out: &mut [f32],
    ) = outputs;
    avx512 <16>, avx2 <16>, neon <16>
}

#[inline(always)]
unsafe fn outputs<V: Vector, const P: usize>(
    area: &Area<'_>,
    chunk: &Chunk,
    channels: usize,
    pitch: usize,
    sums: &[f32],
    out: &mut [f32],
) {
    assert!(P * pitch <= sums.len(), "tiles: sums are missing");
    let mut tile = 0;
    for c in 0..channels {
        let bias = area.finish.bias.map_or(0.0, |bias| bias[c]);
        for y in chunk.row..chunk.row + chunk.tall {
            for x in 0..chunk.across {
                let mut lane = 0;
                while lane < LANES {
                    // SAFETY: as in `inputs`; `Tiles::run` checked the places of the outputs and what
                    // `finish` needs.
                    unsafe {
                        let from = sums.as_ptr().add(tile * LANES + lane);
                        let mut across = [[V::splat(0.0); 4]; 2];
                        for u in 0..4 {
                            let mut row = [V::splat(0.0); 4];
                            for (v, value) in row.iter_mut().enumerate() {
                                *value = V::load(from.add((4 * u + v) * pitch));
                            }
                            [across[0][u], across[1][u]] = together(row);
                        }
                        for (v, column) in across.into_iter().enumerate() {
                            for (u, value) in together(column).into_iter().enumerate() {
                                let to = area.to.at(c, 2 * y + u, 2 * x + v) + lane;
                                let value = value.plus(V::splat(bias));
                                finish(&area.finish, c, to, value, out.as_mut_ptr());
                            }
                        }
                    }
                    lane += V::WIDTH;
                }
                tile += 1;
            }
        }
    }
}

/// A row of `A^T M`.
#[inline(always)]
unsafe fn together<V: Vector>([a, b, c, d]: [V; 4]) -> [V; 2] {
    // SAFETY: the features are the caller's.
    unsafe { [a.plus(b).plus(c), b.minus(c).minus(d)] }
}
