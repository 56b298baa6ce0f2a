//! Fully connected layers on all groups of images, so that a weight is fetched for many images.

use rayon::prelude::*;

use super::LANES;
use super::plane::{Buffer, Plane, Room, Shelf};
use super::products::{Finish, Grid, Job, Packed, products};
use super::simd::Level;

/// Groups that are multiplied at once.
const GROUPS: usize = 12;
/// Bytes of weights that stay in cache.
const RESIDENT: usize = 1 << 20;
/// Terms and outputs of one task.
const TERMS: usize = 256;
const OUTPUTS: usize = 32;
/// Vectors of a row that stay in cache while all outputs pass over them.
const BAND: usize = 15;

/// `y = W x + b`, maybe with a ReLU, or its counterpart on the way back.
#[derive(Clone, Copy)]
pub(crate) struct Dense<'a> {
    pub(crate) level: Level,
    pub(crate) room: Room<'a>,
    pub(crate) weights: &'a Packed,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) relu: bool,
    /// Places of the terms in an input.
    pub(crate) from: &'a [usize],
    /// Places of the outputs in a result.
    pub(crate) to: &'a [usize],
    /// Results are added to what is there.
    pub(crate) accumulate: bool,
}

impl Dense<'_> {
    /// From the inputs of all groups to their results.
    pub(crate) fn run(&self, inputs: &[&[f32]], results: &mut [&mut [f32]]) {
        // Weights that stay in cache need no company.
        let small = self.weights.bytes() <= RESIDENT;
        let groups = if small { 1 } else { GROUPS };
        let part = |(inputs, results): (&[&[f32]], &mut [&mut [f32]])| {
            self.part(inputs, results, !small && !self.room.alone);
        };
        if self.room.alone || inputs.len() == 1 {
            let parts = inputs.chunks(groups);
            parts.zip(results.chunks_mut(groups)).for_each(part);
        } else {
            let parts = inputs.par_chunks(groups);
            parts.zip(results.par_chunks_mut(groups)).for_each(part);
        }
    }

    fn part(&self, inputs: &[&[f32]], results: &mut [&mut [f32]], parallel: bool) {
        let groups = inputs.len();
        let line = groups * LANES;
        let mut all = Buffer::default();
        if groups > 1 {
            // (terms, groups, 16): the groups' vectors of a term side by side.
            all = self.room.shelf.take_len(self.from.len() * line);
            blocks(&mut all, TERMS * line, parallel, |i, x| {
                let places = self.from[i * TERMS..].iter();
                for (to, &place) in x.chunks_exact_mut(line).zip(places) {
                    for (to, input) in to.chunks_exact_mut(LANES).zip(inputs) {
                        to.copy_from_slice(&input[place..place + LANES]);
                    }
                }
            });
        }
        let lines: Vec<usize> = (0..self.from.len()).map(|term| term * line).collect();
        let (x, offsets) = match groups {
            1 => (inputs[0], self.from),
            _ => (&all[..], &lines[..]),
        };
        let mut out = self.room.shelf.take_len(self.to.len() * line);
        blocks(&mut out, OUTPUTS * line, parallel, |i, out| {
            let grid = |channel| Grid {
                start: 0,
                channel,
                row: 0,
                column: LANES,
            };
            let job = Job {
                weights: self.weights.part(i * OUTPUTS, OUTPUTS),
                offsets,
                x,
                from: grid(0),
                to: grid(line),
                rows: 1,
                columns: groups,
                finish: Finish {
                    bias: self.bias.map(|bias| &bias[i * OUTPUTS..]),
                    relu: self.relu,
                    ..Finish::default()
                },
            };
            products(self.level, &job, out);
        });
        let scatter = |(group, result): (usize, &mut &mut [f32])| {
            for (from, &place) in out.chunks_exact(line).zip(self.to) {
                let to = &mut result[place..place + LANES];
                for (to, &v) in to.iter_mut().zip(&from[group * LANES..]) {
                    *to = if self.accumulate { *to + v } else { v };
                }
            }
        };
        match parallel {
            true => results.par_iter_mut().enumerate().for_each(scatter),
            false => results.iter_mut().enumerate().for_each(scatter),
        }
        self.room.shelf.give_len(out);
        if groups > 1 {
            self.room.shelf.give_len(all);
        }
    }
}

/// `f(number, block)` for all blocks of `size` values.
fn blocks(values: &mut [f32], size: usize, parallel: bool, f: impl Fn(usize, &mut [f32]) + Sync) {
    let f = |(i, block): (usize, &mut [f32])| f(i, block);
    match parallel {
        true => values.par_chunks_mut(size).enumerate().for_each(f),
        false => values.chunks_mut(size).enumerate().for_each(f),
    }
}

/// A group's input and the gradient by its result, with the number of its images.
pub(crate) type Pair<'a> = (usize, &'a [f32], &'a [f32]);

/// Gradients of weight (outputs, terms) and bias: sums over all images.
pub(crate) fn weight_grad(
    level: Level,
    shelf: &Shelf,
    (plane, out_plane): (&Plane, &Plane),
    pairs: &[Pair<'_>],
) -> [Vec<f32>; 2] {
    let (outputs, terms) = (out_plane.pixels(), plane.pixels());
    let images: usize = pairs.iter().map(|(images, ..)| images).sum();
    // Rows of whole vectors.
    let width = terms.next_multiple_of(LANES);
    let mut x = shelf.take_len(images * width);
    let mut grads = shelf.take_len(images * outputs);
    let rows = x.par_chunks_mut(LANES * width);
    let grad_rows = grads[..images * outputs].par_chunks_mut(LANES * outputs);
    rows.zip(grad_rows)
        .zip(pairs)
        .for_each(|((rows, grad_rows), (images, x, grad))| {
            plane.gather_rows(x, &mut rows[..images * width], width);
            out_plane.gather_rows(grad, grad_rows, outputs);
        });
    let mut bias = vec![0f32; outputs];
    for row in grads[..images * outputs].chunks_exact(outputs) {
        bias.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
    }
    let room = Room {
        shelf,
        alone: false,
    };
    let packed = Packed::transposed(room, &grads[..images * outputs], outputs, None);
    let offsets: Vec<usize> = (0..images).map(|image| image * width).collect();
    let mut weight = vec![0f32; outputs * terms];
    blocks(&mut weight, OUTPUTS * terms, true, |i, rows| {
        let count = rows.len() / terms;
        let mut padded = Buffer::default();
        if width != terms {
            padded = shelf.take_len(count * width);
        }
        let out = if width == terms {
            &mut *rows
        } else {
            &mut padded
        };
        for band in (0..width / LANES).step_by(BAND) {
            let grid = |channel| Grid {
                start: band * LANES,
                channel,
                row: 0,
                column: LANES,
            };
            let job = Job {
                weights: packed.part(i * OUTPUTS, OUTPUTS),
                offsets: &offsets,
                x: &x,
                from: grid(0),
                to: grid(width),
                rows: 1,
                columns: (width / LANES - band).min(BAND),
                finish: Finish::default(),
            };
            products(level, &job, out);
        }
        if width != terms {
            for (row, padded) in rows.chunks_exact_mut(terms).zip(padded.chunks(width)) {
                row.copy_from_slice(&padded[..terms]);
            }
            shelf.give_len(padded);
        }
    });
    packed.give(shelf);
    shelf.give_len(x);
    shelf.give_len(grads);
    [weight, bias]
}
