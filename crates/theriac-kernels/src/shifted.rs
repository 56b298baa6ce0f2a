//! Convolution as a sum of shifted matrix products, without a column matrix.
//!
//! A stride of s cuts the padded image into s x s phases: phase (p, q) holds the pixels
//! (s i + p, s j + q). On phases the convolution has stride 1, s^2 times the channels and a kernel
//! of ceil(k / s), and if a phase is stored as one flat row, moving the kernel by one tap moves
//! where the row is read by a constant:
//!
//! `out[o, f] = sum_{taps t} sum_{channels c} weight_t[o, c] phases[c, f + offset_t]`.
//!
//! One product for each tap then reads the phases in place, where a column matrix would copy every
//! pixel once for each weight that meets it. Where a row of the image ends, f runs over the kernel's
//! overhang: these positions are computed and dropped.

use crate::conv::Conv;
use crate::gemm::{Strides, gemm};
use crate::real::{Real, with_scratch};

/// Fewest phase channels for which the products are deep enough to pay.
const DEPTH: usize = 16;

/// Largest share of computed positions that may be dropped, in percent.
const WASTE: usize = 40;

/// Size in bytes that the phases of a group of images aim at.
const BYTES: usize = 256 * 1024;

/// Positions are padded to a multiple of this.
const LANES: usize = 16;

/// The phases of a convolution without dilation and groups.
#[derive(Clone, Copy)]
pub(crate) struct Shifted {
    conv: Conv,
    /// Taps of the kernel on phases, down and across.
    taps: (usize, usize),
    /// Rows and columns of a phase.
    plane: (usize, usize),
    /// Output rows and columns.
    out: (usize, usize),
    /// Channels of all phases.
    channels: usize,
}

impl Shifted {
    /// The form for a geometry, if it pays there.
    pub(crate) fn of(conv: &Conv) -> Option<Self> {
        let (s, (kh, kw), out) = (conv.stride, conv.kernel, conv.out_hw());
        let taps = (kh.div_ceil(s), kw.div_ceil(s));
        let plane = (out.0 + taps.0 - 1, out.1 + taps.1 - 1);
        let channels = conv.c_in * s * s;
        let (used, computed) = (out.0 * out.1, plane.0 * plane.1);
        // A kernel that s does not divide adds taps that are zero.
        let dense = kh * kw * (100 + WASTE) >= taps.0 * taps.1 * s * s * 100;
        let pays = conv.dilation == 1 && conv.groups == 1 && channels >= DEPTH && dense;
        (pays && computed * 100 <= used * (100 + WASTE)).then_some(Self {
            conv: *conv,
            taps,
            plane,
            out,
            channels,
        })
    }

    /// Images whose phases lie side by side, from the shape alone.
    fn images<T>(&self) -> usize {
        let one = self.channels * self.plane.0 * self.plane.1 * size_of::<T>();
        (BYTES / one).clamp(1, crate::parallel::CHUNK)
    }

    /// Flat positions of `images` images.
    fn positions(&self, images: usize) -> usize {
        (images * self.plane.0 * self.plane.1).next_multiple_of(LANES)
    }

    /// Length of a channel's row: its positions and what the last tap reads beyond them.
    fn row(&self, images: usize) -> usize {
        (self.positions(images) + self.offset(self.taps.0 - 1, self.taps.1 - 1))
            .next_multiple_of(LANES)
    }

    fn offset(&self, down: usize, across: usize) -> usize {
        down * self.plane.1 + across
    }

    /// Taps in order with their number and offset.
    fn each_tap(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let this = *self;
        (0..this.taps.0 * this.taps.1)
            .map(move |tap| (tap, this.offset(tap / this.taps.1, tap % this.taps.1)))
    }

    fn packed_len(&self) -> usize {
        self.taps.0 * self.taps.1 * self.conv.c_out * self.channels
    }

    /// Where the weights of one (output, input) channel stand in the packed weights,
    /// (taps, C_out, channels), counted from the channel's first place.
    fn places(&self) -> Vec<usize> {
        let (s, (kh, kw)) = (self.conv.stride, self.conv.kernel);
        let place = |u: usize, v: usize| {
            let tap = u / s * self.taps.1 + v / s;
            tap * self.conv.c_out * self.channels + u % s * s + v % s
        };
        (0..kh)
            .flat_map(|u| (0..kw).map(move |v| (u, v)))
            .map(|(u, v)| place(u, v))
            .collect()
    }

    /// The first place of each (output, input) channel, in the order of the weights.
    fn bases(&self) -> impl Iterator<Item = usize> + use<> {
        let (channels, phases) = (self.channels, self.conv.stride * self.conv.stride);
        (0..self.conv.c_out)
            .flat_map(move |o| (0..channels).step_by(phases).map(move |c| o * channels + c))
    }

    fn pack<T: Real>(&self, weight: &[T], packed: &mut [T]) {
        packed.fill(T::ZERO);
        let places = self.places();
        for (base, weights) in self.bases().zip(weight.chunks_exact(places.len())) {
            for (&place, &w) in places.iter().zip(weights) {
                packed[base + place] = w;
            }
        }
    }

    /// Adds packed gradients to the weights they belong to.
    fn unpack<T: Real>(&self, packed: &[T], grad_w: &mut [T]) {
        let places = self.places();
        for (base, weights) in self.bases().zip(grad_w.chunks_exact_mut(places.len())) {
            for (&place, w) in places.iter().zip(weights) {
                *w += packed[base + place];
            }
        }
    }

    /// The part of a padded row, `stride` times as long as a phase's, that holds pixels.
    fn inside(&self) -> std::ops::Range<usize> {
        let padding = self.conv.padding;
        padding..(padding + self.conv.w).min(self.conv.stride * self.plane.1)
    }

    /// Visits the rows of a group's phases, those of one padded row together: `f(first place of the
    /// first phase's row, first pixel)`, no pixel for a row of padding. Phases are `row` apart.
    fn for_each_row(&self, images: usize, mut f: impl FnMut(usize, Option<usize>)) {
        let Conv {
            c_in,
            h,
            w,
            stride: s,
            padding,
            ..
        } = self.conv;
        let ((rows, columns), row) = (self.plane, self.row(images));
        for c in 0..c_in {
            for image in 0..images {
                let plane = (image * c_in + c) * h;
                for y in 0..s * rows {
                    let place = (c * s + y % s) * s * row + (image * rows + y / s) * columns;
                    let y = y.checked_sub(padding).filter(|&y| y < h);
                    f(place, y.map(|y| (plane + y) * w));
                }
            }
        }
    }

    /// Cuts images into phases, zero outside the image.
    fn cut<T: Real>(&self, x: &[T], phases: &mut [T]) {
        let images = x.len() / (self.conv.c_in * self.conv.h * self.conv.w);
        let (s, columns, row) = (self.conv.stride, self.plane.1, self.row(images));
        let (inside, mut line) = (self.inside(), vec![T::ZERO; s * columns]);
        self.for_each_row(images, |place, pixel| {
            let Some(pixel) = pixel else {
                (0..s).for_each(|q| phases[place + q * row..][..columns].fill(T::ZERO));
                return;
            };
            line[inside.clone()].copy_from_slice(&x[pixel..pixel + inside.len()]);
            if s == 2 {
                // Pairs of known length vectorise.
                let (even, odd) = phases[place..].split_at_mut(row);
                let pairs = line.as_chunks::<2>().0;
                for ((e, o), [x, y]) in even[..columns].iter_mut().zip(odd).zip(pairs) {
                    (*e, *o) = (*x, *y);
                }
                return;
            }
            for q in 0..s {
                let phase = &mut phases[place + q * row..][..columns];
                phase
                    .iter_mut()
                    .zip(line[q..].iter().step_by(s))
                    .for_each(|(v, x)| *v = *x);
            }
        });
        self.clear_tails(images, phases);
    }

    /// Puts phases together to images, dropping the padding.
    fn join<T: Real>(&self, phases: &[T], x: &mut [T]) {
        let images = x.len() / (self.conv.c_in * self.conv.h * self.conv.w);
        let (s, columns, row) = (self.conv.stride, self.plane.1, self.row(images));
        let (inside, mut line) = (self.inside(), vec![T::ZERO; s * columns]);
        // Pixels that the stride cuts off are in no phase.
        if inside.len() < self.conv.w || s * self.plane.0 < self.conv.padding + self.conv.h {
            x.fill(T::ZERO);
        }
        self.for_each_row(images, |place, pixel| {
            let Some(pixel) = pixel else { return };
            if s == 2 {
                let (even, odd) = phases[place..].split_at(row);
                let pairs = line.as_chunks_mut::<2>().0;
                for ((e, o), pair) in even[..columns].iter().zip(odd).zip(pairs) {
                    *pair = [*e, *o];
                }
            } else {
                for q in 0..s {
                    let phase = &phases[place + q * row..][..columns];
                    line[q..]
                        .iter_mut()
                        .step_by(s)
                        .zip(phase)
                        .for_each(|(x, v)| *x = *v);
                }
            }
            x[pixel..pixel + inside.len()].copy_from_slice(&line[inside.clone()]);
        });
    }

    /// Zeros behind the positions of each channel, which the last taps read.
    fn clear_tails<T: Real>(&self, images: usize, phases: &mut [T]) {
        let used = images * self.plane.0 * self.plane.1;
        for channel in phases.chunks_exact_mut(self.row(images)) {
            channel[used..].fill(T::ZERO);
        }
    }

    /// Visits the output rows: `f(channel, place on the phases' grid, place in the output)`.
    fn for_each_output(&self, images: usize, mut f: impl FnMut(usize, usize, usize)) {
        let ((rows, columns), (oh, ow)) = (self.plane, self.out);
        let positions = self.positions(images);
        for o in 0..self.conv.c_out {
            for image in 0..images {
                let (grid, out) = (
                    o * positions + image * rows * columns,
                    (image * self.conv.c_out + o) * oh,
                );
                for i in 0..oh {
                    f(o, grid + i * columns, (out + i) * ow);
                }
            }
        }
    }

    /// Spreads an output-shaped gradient over the phases' grid, zero where positions are dropped.
    fn spread<T: Real>(&self, grad_out: &[T], grid: &mut [T]) {
        let images = grad_out.len() / (self.conv.c_out * self.out.0 * self.out.1);
        let (ow, columns) = (self.out.1, self.plane.1);
        self.for_each_output(images, |_, place, from| {
            let row = &mut grid[place..place + columns];
            row[..ow].copy_from_slice(&grad_out[from..from + ow]);
            row[ow..].fill(T::ZERO);
        });
        let (plane, used) = (self.plane.0 * columns, self.out.0 * columns);
        for channel in grid.chunks_exact_mut(self.positions(images)) {
            let (planes, tail) = channel.split_at_mut(images * plane);
            planes
                .chunks_exact_mut(plane)
                .for_each(|plane| plane[used..].fill(T::ZERO));
            tail.fill(T::ZERO);
        }
    }

    /// The convolution of a chunk of images; `out` is overwritten.
    pub(crate) fn forward<T: Real>(
        &self,
        x: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        out: &mut [T],
    ) {
        let ((c_out, channels), group) = ((self.conv.c_out, self.channels), self.images::<T>());
        let (image, ow) = (self.conv.c_in * self.conv.h * self.conv.w, self.out.1);
        let out_image = c_out * self.out.0 * self.out.1;
        let lens = [
            self.packed_len(),
            channels * self.row(group),
            c_out * self.positions(group),
        ];
        with_scratch(lens, |[packed, phases, grid]| {
            self.pack(weight, packed);
            let parts = x
                .chunks(group * image)
                .zip(out.chunks_mut(group * out_image));
            for (x, out) in parts {
                let images = x.len() / image;
                let (row, positions) = (self.row(images), self.positions(images));
                let phases = &mut phases[..channels * row];
                self.cut(x, phases);
                for (tap, offset) in self.each_tap() {
                    gemm(
                        (c_out, positions, channels),
                        (grid, Strides::rows(positions)),
                        (&packed[tap * c_out * channels..], Strides::rows(channels)),
                        (&phases[offset..], Strides::rows(row)),
                        tap > 0,
                    );
                }
                self.for_each_output(images, |o, place, to| {
                    let bias = bias.map_or(T::ZERO, |bias| bias[o]);
                    let from = &grid[place..place + ow];
                    for (out, &v) in out[to..to + ow].iter_mut().zip(from) {
                        *out = v + bias;
                    }
                });
            }
        });
    }

    /// The gradient to a chunk of images; `grad_x` is overwritten.
    pub(crate) fn input_grad<T: Real>(&self, grad_out: &[T], weight: &[T], grad_x: &mut [T]) {
        let ((c_out, channels), group) = ((self.conv.c_out, self.channels), self.images::<T>());
        let image = self.conv.c_in * self.conv.h * self.conv.w;
        let out_image = c_out * self.out.0 * self.out.1;
        let lens = [
            self.packed_len(),
            channels * self.row(group),
            c_out * self.positions(group),
        ];
        with_scratch(lens, |[packed, phases, grid]| {
            self.pack(weight, packed);
            let parts = grad_out
                .chunks(group * out_image)
                .zip(grad_x.chunks_mut(group * image));
            for (grad_out, grad_x) in parts {
                let images = grad_x.len() / image;
                let (row, positions) = (self.row(images), self.positions(images));
                let phases = &mut phases[..channels * row];
                let grid = &mut grid[..c_out * positions];
                self.spread(grad_out, grid);
                // The first tap writes all positions, the others add to them.
                for channel in phases.chunks_exact_mut(row) {
                    channel[positions..].fill(T::ZERO);
                }
                for (tap, offset) in self.each_tap() {
                    gemm(
                        (channels, positions, c_out),
                        (&mut phases[offset..], Strides::rows(row)),
                        (&packed[tap * c_out * channels..], Strides::cols(channels)),
                        (grid, Strides::rows(positions)),
                        tap > 0,
                    );
                }
                self.join(phases, grad_x);
            }
        });
    }

    /// Adds a chunk's gradient to the weight, (C_out, C_in, K_h, K_w), to `grad_w`.
    pub(crate) fn weight_grad<T: Real>(&self, x: &[T], grad_out: &[T], grad_w: &mut [T]) {
        let ((c_out, channels), group) = ((self.conv.c_out, self.channels), self.images::<T>());
        let image = self.conv.c_in * self.conv.h * self.conv.w;
        let out_image = c_out * self.out.0 * self.out.1;
        let lens = [
            self.packed_len(),
            channels * self.row(group),
            c_out * self.positions(group),
        ];
        with_scratch(lens, |[packed, phases, grid]| {
            packed.fill(T::ZERO);
            for (x, grad_out) in x
                .chunks(group * image)
                .zip(grad_out.chunks(group * out_image))
            {
                let images = x.len() / image;
                let (row, positions) = (self.row(images), self.positions(images));
                let phases = &mut phases[..channels * row];
                let grid = &mut grid[..c_out * positions];
                self.cut(x, phases);
                self.spread(grad_out, grid);
                for (tap, offset) in self.each_tap() {
                    // Transposed: the small matrix is the one that the product repacks.
                    let packed = &mut packed[tap * c_out * channels..];
                    gemm(
                        (channels, c_out, positions),
                        (packed, Strides::cols(channels)),
                        (&phases[offset..], Strides::rows(row)),
                        (grid, Strides::cols(positions)),
                        true,
                    );
                }
            }
            self.unpack(packed, grad_w);
        });
    }
}
