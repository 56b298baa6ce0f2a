use crate::error::{Result, check_len, elements, geometry};
use crate::gemm::{Strides, gemm};
use crate::parallel::{CHUNK, collect, split, sum};
use crate::real::{Real, with_scratch};
use crate::shifted::Shifted;
use std::ops::Range;

/// Size in bytes that the column buffer aims at: it fits in the second-level cache of current cores
/// beside the weights.
const COLUMN_BYTES: usize = 256 * 1024;

/// Columns are padded to a multiple of this, so that every row starts on a vector boundary and no
/// matrix product is narrow enough to be treated specially.
const LANES: usize = 16;

/// Bound on stride, padding and dilation, far above any use, that keeps sizes from overflowing.
pub(crate) const MAX_STEP: usize = 1 << 16;

/// Length of the blocks that [`Conv::im2col`] copies.
const COPY: usize = 8;

/// Geometry of a two-dimensional convolution (cross-correlation, as in deep learning).
///
/// For x (N, C_in, H, W) and weight (C_out, C_in / groups, K_h, K_w), zeros outside x, and
/// per group of channels:
///
/// `out[n, o, i, j] = bias[o] + sum_{c, u, v} weight[o, c, u, v]
///   x[n, c, i stride + u dilation - padding, j stride + v dilation - padding]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    n: usize,
    pub(crate) c_in: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) c_out: usize,
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    pub(crate) dilation: usize,
    pub(crate) groups: usize,
}

impl Conv {
    /// Checks and records the geometry of a convolution from the shapes of x and weight.
    ///
    /// # Errors
    ///
    /// If a dimension, the stride, the dilation or the number of groups is 0, if stride, padding or
    /// dilation exceeds 65536, if the groups do not divide the channels or disagree with the weight,
    /// if the kernel does not fit in the padded image, or if an array would be larger than any
    /// memory.
    pub fn new(
        x: [usize; 4],
        weight: [usize; 4],
        stride: usize,
        padding: usize,
        dilation: usize,
        groups: usize,
    ) -> Result<Self> {
        let ([n, c_in, h, w], [c_out, c_group, kh, kw]) = (x, weight);
        if x.contains(&0) {
            return Err(geometry(
                "conv2d: the input's shape",
                format!("{x:?}"),
                "pass a batch of at least one non-empty image",
            ));
        }
        if weight.contains(&0) {
            return Err(geometry(
                "conv2d: the weight's shape",
                format!("{weight:?}"),
                "every dimension must be at least 1",
            ));
        }
        for (what, value) in [
            ("conv2d: stride", stride),
            ("conv2d: dilation", dilation),
            ("conv2d: groups", groups),
        ] {
            if value == 0 {
                return Err(geometry(what, value, "it must be at least 1"));
            }
        }
        for (what, value) in [
            ("conv2d: stride", stride),
            ("conv2d: padding", padding),
            ("conv2d: dilation", dilation),
        ] {
            if value > MAX_STEP {
                return Err(geometry(
                    what,
                    value,
                    format!("it must be at most {MAX_STEP}"),
                ));
            }
        }
        if c_in % groups != 0 || c_out % groups != 0 || c_in / groups != c_group {
            return Err(geometry(
                "conv2d: the weight's shape",
                format!("{weight:?}"),
                format!(
                    "{groups} group(s) of {c_in} input channels need (C_out, {c_in} / {groups}, \
                     K_h, K_w) with C_out a multiple of {groups}"
                ),
            ));
        }
        elements("conv2d: the input's shape", &x)?;
        elements("conv2d: the weight's shape", &weight)?;
        // Far from overflow, now that the shapes are bounded; the product is not.
        let padded = (h + 2 * padding, w + 2 * padding);
        let span = |kernel: usize| dilation.saturating_mul(kernel - 1).saturating_add(1);
        let span = (span(kh), span(kw));
        if span.0 > padded.0 || span.1 > padded.1 {
            return Err(geometry(
                "conv2d: the kernel's extent",
                format!("{span:?}"),
                format!("it must fit in the padded image, {padded:?}"),
            ));
        }
        let conv = Self {
            n,
            c_in,
            h,
            w,
            c_out,
            kernel: (kh, kw),
            stride,
            padding,
            dilation,
            groups,
        };
        let (oh, ow) = conv.out_hw();
        elements("conv2d: the output's shape", &conv.out_shape())?;
        // Bounds of what a chunk needs beside the arrays: its padded copy, its columns.
        let padded = [CHUNK, c_in, padded.0 + stride, padded.1 + stride];
        elements("conv2d: the padded input's shape", &padded)?;
        elements(
            "conv2d: the columns' shape",
            &[CHUNK, conv.taps(), oh, ow + LANES],
        )?;
        Ok(conv)
    }

    /// Height and width of the output.
    pub fn out_hw(&self) -> (usize, usize) {
        let out = |size: usize, kernel: usize| {
            (size + 2 * self.padding - self.dilation * (kernel - 1) - 1) / self.stride + 1
        };
        (out(self.h, self.kernel.0), out(self.w, self.kernel.1))
    }

    /// Shape of the output, (N, C_out, H_out, W_out).
    pub fn out_shape(&self) -> [usize; 4] {
        let (oh, ow) = self.out_hw();
        [self.n, self.c_out, oh, ow]
    }

    /// Elements of one input image.
    fn image(&self) -> usize {
        self.c_in * self.h * self.w
    }

    /// Elements of one output image.
    fn out_image(&self) -> usize {
        let (oh, ow) = self.out_hw();
        self.c_out * oh * ow
    }

    /// Weights of one output channel: rows of the column buffer.
    fn taps(&self) -> usize {
        self.c_in / self.groups * self.kernel.0 * self.kernel.1
    }

    fn weight_len(&self) -> usize {
        self.c_out * self.taps()
    }

    /// Images and output rows whose columns share the buffer, from the shape alone.
    fn tile_size<T>(&self) -> (usize, usize) {
        let (oh, ow) = self.out_hw();
        let row = self.taps() * ow * size_of::<T>();
        if row * oh <= COLUMN_BYTES {
            ((COLUMN_BYTES / (row * oh)).min(CHUNK), oh)
        } else {
            (1, (COLUMN_BYTES / row).clamp(1, oh))
        }
    }

    /// The tiles of a chunk of `images` images, in order.
    fn tiles<T>(&self, images: usize) -> impl Iterator<Item = Tile> + use<T> {
        let (oh, ow) = self.out_hw();
        let (step, row_step) = self.tile_size::<T>();
        (0..images).step_by(step).flat_map(move |image| {
            (0..oh).step_by(row_step).map(move |row| {
                let images = image..(image + step).min(images);
                let rows = row..(row + row_step).min(oh);
                let columns = (images.len() * rows.len() * ow).next_multiple_of(LANES);
                Tile {
                    images,
                    rows,
                    columns,
                }
            })
        })
    }

    /// Sizes of a tile's padded copy of the input: rows per channel and columns per phase.
    ///
    /// A padded row is stored as `stride` phases, phase p holding the columns p, p + stride, ...;
    /// what a kernel column reads for consecutive outputs is then contiguous.
    fn padded_size(&self, tile: &Tile) -> (usize, usize) {
        let rows = (tile.rows.len() - 1) * self.stride + (self.kernel.0 - 1) * self.dilation + 1;
        let columns = self.out_hw().1 + (self.kernel.1 - 1) * self.dilation / self.stride;
        (rows, columns)
    }

    /// Lengths of the scratch buffers: the padded input, its columns, one output matrix.
    fn scratch<T>(&self) -> [usize; 3] {
        let (images, rows) = self.tile_size::<T>();
        let tile = Tile {
            images: 0..images,
            rows: 0..rows,
            columns: 0,
        };
        let (padded_rows, phase) = self.padded_size(&tile);
        let columns = (images * rows * self.out_hw().1).next_multiple_of(LANES);
        [
            images * self.c_in / self.groups * padded_rows * self.stride * phase + COPY,
            self.taps() * columns + COPY,
            self.c_out / self.groups * columns,
        ]
    }

    /// Visits the image rows in a tile's padded input, phase by phase: `f` gets the place of the
    /// row's pixels in the padded copy, and the place of the first one in the chunk of images.
    fn for_each_row(&self, tile: &Tile, group: usize, mut f: impl FnMut(Range<usize>, usize)) {
        let c_group = self.c_in / self.groups;
        let (rows, len) = self.padded_size(tile);
        for phase in 0..self.stride {
            let count =
                |columns: usize| columns.saturating_sub(phase).div_ceil(self.stride).min(len);
            let inside = count(self.padding)..count(self.padding + self.w);
            if inside.is_empty() {
                continue;
            }
            let column = inside.start * self.stride + phase - self.padding;
            for (i, image) in tile.images.clone().enumerate() {
                for c in 0..c_group {
                    let plane = (image * self.c_in + group * c_group + c) * self.h * self.w;
                    for row in 0..rows {
                        let padded_y = tile.rows.start * self.stride + row;
                        if padded_y < self.padding || padded_y >= self.padding + self.h {
                            continue;
                        }
                        let y = padded_y - self.padding;
                        let place = (((i * c_group + c) * rows + row) * self.stride + phase) * len;
                        f(
                            place + inside.start..place + inside.end,
                            plane + y * self.w + column,
                        );
                    }
                }
            }
        }
    }

    /// Copies a tile's input with its padding.
    fn pad<T: Real>(&self, tile: &Tile, group: usize, x: &[T], padded: &mut [T]) {
        padded.fill(T::ZERO);
        self.for_each_row(tile, group, |place, source| {
            let row = &mut padded[place];
            if self.stride == 1 {
                row.copy_from_slice(&x[source..source + row.len()]);
            } else {
                for (v, &x) in row.iter_mut().zip(x[source..].iter().step_by(self.stride)) {
                    *v = x;
                }
            }
        });
    }

    /// Adds a tile's padded input back to where it came from, dropping the padding.
    fn unpad<T: Real>(&self, tile: &Tile, group: usize, padded: &[T], x: &mut [T]) {
        self.for_each_row(tile, group, |place, source| {
            let row = &padded[place];
            if self.stride == 1 {
                x[source..source + row.len()]
                    .iter_mut()
                    .zip(row)
                    .for_each(|(x, &v)| *x += v);
            } else {
                let x = x[source..].iter_mut().step_by(self.stride);
                x.zip(row).for_each(|(x, &v)| *x += v);
            }
        });
    }

    /// Visits the column matrix (taps, columns) by pieces of one output row: `f` gets the piece's
    /// first element there and in the padded input.
    fn for_each_piece(&self, tile: &Tile, mut f: impl FnMut(usize, usize)) {
        let ow = self.out_hw().1;
        let (rows, phase) = self.padded_size(tile);
        let pitch = self.stride * phase;
        let c_group = self.c_in / self.groups;
        let mut tap = 0;
        for c in 0..c_group {
            for ky in 0..self.kernel.0 {
                for kx in 0..self.kernel.1 {
                    let column = kx * self.dilation;
                    let column = column % self.stride * phase + column / self.stride;
                    let mut piece = tap * tile.columns;
                    for image in 0..tile.images.len() {
                        let row = (image * c_group + c) * rows + ky * self.dilation;
                        for i in 0..tile.rows.len() {
                            f(piece, (row + i * self.stride) * pitch + column);
                            piece += ow;
                        }
                    }
                    tap += 1;
                }
            }
        }
    }

    /// Writes the columns of a tile: row = tap, column = output position, zero beyond the last.
    fn im2col<T: Real>(&self, tile: &Tile, padded: &[T], columns: &mut [T]) {
        let ow = self.out_hw().1;
        let used = tile.images.len() * tile.rows.len() * ow;
        let blocks = ow.div_ceil(COPY);
        // Blocks of fixed length copy faster than pieces. What they write too much lies in the
        // pieces that follow, which are written later, or in the zeros below.
        self.for_each_piece(tile, |piece, source| {
            let len = blocks * COPY;
            let (to, _) = columns[piece..piece + len].as_chunks_mut::<COPY>();
            let (from, _) = padded[source..source + len].as_chunks::<COPY>();
            for (to, from) in to.iter_mut().zip(from) {
                *to = *from;
            }
        });
        for row in columns.chunks_exact_mut(tile.columns).take(self.taps()) {
            row[used..].fill(T::ZERO);
        }
    }

    /// Adds the columns of a tile back to the padded input they were taken from.
    fn col2im<T: Real>(&self, tile: &Tile, columns: &[T], padded: &mut [T]) {
        let ow = self.out_hw().1;
        let (whole, rest) = (ow / COPY, ow % COPY);
        self.for_each_piece(tile, |piece, source| {
            let len = (whole + 1) * COPY;
            let (to, _) = padded[source..source + len].as_chunks_mut::<COPY>();
            let (from, _) = columns[piece..piece + len].as_chunks::<COPY>();
            for (to, from) in to[..whole].iter_mut().zip(from) {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to += from);
            }
            // A block of fixed length again; its surplus adds nothing.
            for (i, (to, &from)) in to[whole].iter_mut().zip(&from[whole]).enumerate() {
                *to += if i < rest { from } else { T::ZERO };
            }
        });
    }

    /// Visits the pieces of the output that belong to a tile: `f` gets the row (channel in the
    /// group), the first column in the tile, and the place in the chunk of output images.
    fn for_each_output(
        &self,
        tile: &Tile,
        group: usize,
        mut f: impl FnMut(usize, Range<usize>, Range<usize>),
    ) {
        let (oh, ow) = self.out_hw();
        let c_group = self.c_out / self.groups;
        let len = tile.rows.len() * ow;
        for row in 0..c_group {
            for (i, image) in tile.images.clone().enumerate() {
                let channel = image * self.c_out + group * c_group + row;
                let place = channel * oh * ow + tile.rows.start * ow;
                let column = row * tile.columns + i * len;
                f(row, column..column + len, place..place + len);
            }
        }
    }

    /// Writes the part of an output-shaped chunk that belongs to a tile as a (channels, columns)
    /// matrix.
    fn gather<T: Real>(&self, tile: &Tile, group: usize, out: &[T], matrix: &mut [T]) {
        let used = tile.images.len() * tile.rows.len() * self.out_hw().1;
        self.for_each_output(tile, group, |_, column, place| {
            matrix[column].copy_from_slice(&out[place]);
        });
        for row in matrix
            .chunks_exact_mut(tile.columns)
            .take(self.c_out / self.groups)
        {
            row[used..].fill(T::ZERO);
        }
    }
}

/// Images and output rows of a chunk that are turned into columns together.
struct Tile {
    images: Range<usize>,
    rows: Range<usize>,
    columns: usize,
}

/// Convolution, see [`Conv`] for the formula and shapes.
///
/// # Errors
///
/// If a slice has the wrong length.
pub fn conv2d<T: Real>(
    conv: &Conv,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    out: &mut [T],
) -> Result<()> {
    check_len("conv2d: x", x, conv.n * conv.image())?;
    check_len("conv2d: weight", weight, conv.weight_len())?;
    check_len("conv2d: out", out, conv.n * conv.out_image())?;
    if let Some(bias) = bias {
        check_len("conv2d: bias", bias, conv.c_out)?;
    }
    let (rows, taps) = (conv.c_out / conv.groups, conv.taps());
    let shifted = Shifted::of(conv);
    split(out, CHUNK * conv.out_image(), |chunk, out| {
        let images = out.len() / conv.out_image();
        let x = &x[chunk * CHUNK * conv.image()..][..images * conv.image()];
        if let Some(shifted) = shifted {
            return shifted.forward(x, weight, bias, out);
        }
        with_scratch(conv.scratch::<T>(), |[padded, columns, product]| {
            for tile in conv.tiles::<T>(images) {
                for group in 0..conv.groups {
                    conv.pad(&tile, group, x, padded);
                    conv.im2col(&tile, padded, columns);
                    gemm(
                        (rows, tile.columns, taps),
                        (product, Strides::rows(tile.columns)),
                        (&weight[group * rows * taps..], Strides::rows(taps)),
                        (columns, Strides::rows(tile.columns)),
                        false,
                    );
                    conv.for_each_output(&tile, group, |row, column, place| {
                        match bias.map(|bias| bias[group * rows + row]) {
                            None => out[place].copy_from_slice(&product[column]),
                            Some(b) => {
                                for (o, &p) in out[place].iter_mut().zip(&product[column]) {
                                    *o = p + b;
                                }
                            }
                        }
                    });
                }
            }
        });
    });
    Ok(())
}

/// Gradient of [`conv2d`] to its input; `grad_x` is overwritten.
///
/// # Errors
///
/// If a slice has the wrong length.
pub fn conv2d_input_grad<T: Real>(
    conv: &Conv,
    grad_out: &[T],
    weight: &[T],
    grad_x: &mut [T],
) -> Result<()> {
    check_len(
        "conv2d_input_grad: grad_out",
        grad_out,
        conv.n * conv.out_image(),
    )?;
    check_len("conv2d_input_grad: weight", weight, conv.weight_len())?;
    check_len("conv2d_input_grad: grad_x", grad_x, conv.n * conv.image())?;
    let (rows, taps) = (conv.c_out / conv.groups, conv.taps());
    let shifted = Shifted::of(conv);
    split(grad_x, CHUNK * conv.image(), |chunk, grad_x| {
        let images = grad_x.len() / conv.image();
        let grad_out = &grad_out[chunk * CHUNK * conv.out_image()..][..images * conv.out_image()];
        if let Some(shifted) = shifted {
            return shifted.input_grad(grad_out, weight, grad_x);
        }
        grad_x.fill(T::ZERO);
        with_scratch(conv.scratch::<T>(), |[padded, columns, gathered]| {
            for tile in conv.tiles::<T>(images) {
                for group in 0..conv.groups {
                    conv.gather(&tile, group, grad_out, gathered);
                    gemm(
                        (taps, tile.columns, rows),
                        (columns, Strides::rows(tile.columns)),
                        (&weight[group * rows * taps..], Strides::cols(taps)),
                        (gathered, Strides::rows(tile.columns)),
                        false,
                    );
                    padded.fill(T::ZERO);
                    conv.col2im(&tile, columns, padded);
                    conv.unpad(&tile, group, padded, grad_x);
                }
            }
        });
    });
    Ok(())
}

/// Gradient of [`conv2d`] to its weight; `grad_w` is overwritten.
///
/// Each chunk of [`CHUNK`] images gives a partial sum; these are added in the order of the chunks.
///
/// # Errors
///
/// If a slice has the wrong length.
pub fn conv2d_weight_grad<T: Real>(
    conv: &Conv,
    x: &[T],
    grad_out: &[T],
    grad_w: &mut [T],
) -> Result<()> {
    check_len("conv2d_weight_grad: x", x, conv.n * conv.image())?;
    check_len(
        "conv2d_weight_grad: grad_out",
        grad_out,
        conv.n * conv.out_image(),
    )?;
    check_len("conv2d_weight_grad: grad_w", grad_w, conv.weight_len())?;
    let (rows, taps) = (conv.c_out / conv.groups, conv.taps());
    let chunks = conv.n.div_ceil(CHUNK);
    if let Some(shifted) = Shifted::of(conv) {
        let partials = collect(chunks, chunks > 1, |chunk| {
            let first = chunk * CHUNK;
            let images = CHUNK.min(conv.n - first);
            let x = &x[first * conv.image()..][..images * conv.image()];
            let grad_out = &grad_out[first * conv.out_image()..][..images * conv.out_image()];
            let mut partial = vec![T::ZERO; conv.weight_len()];
            shifted.weight_grad(x, grad_out, &mut partial);
            partial
        });
        grad_w.fill(T::ZERO);
        for partial in partials {
            grad_w.iter_mut().zip(partial).for_each(|(g, p)| *g += p);
        }
        return Ok(());
    }
    let partials = collect(chunks, chunks > 1, |chunk| {
        let first = chunk * CHUNK;
        let images = CHUNK.min(conv.n - first);
        let x = &x[first * conv.image()..][..images * conv.image()];
        let grad_out = &grad_out[first * conv.out_image()..][..images * conv.out_image()];
        // Per group (taps, channels): in this orientation the small matrix is the one that the
        // product has to repack.
        let mut partial = vec![T::ZERO; conv.weight_len()];
        with_scratch(conv.scratch::<T>(), |[padded, columns, gathered]| {
            for tile in conv.tiles::<T>(images) {
                for group in 0..conv.groups {
                    conv.pad(&tile, group, x, padded);
                    conv.im2col(&tile, padded, columns);
                    conv.gather(&tile, group, grad_out, gathered);
                    gemm(
                        (rows, taps, tile.columns),
                        (&mut partial[group * rows * taps..], Strides::cols(rows)),
                        (gathered, Strides::rows(tile.columns)),
                        (columns, Strides::cols(tile.columns)),
                        true,
                    );
                }
            }
        });
        partial
    });
    grad_w.fill(T::ZERO);
    for partial in partials {
        let groups = grad_w
            .chunks_exact_mut(rows * taps)
            .zip(partial.chunks_exact(rows * taps));
        for (grad_w, partial) in groups {
            for (row, grad_w) in grad_w.chunks_exact_mut(taps).enumerate() {
                for (tap, g) in grad_w.iter_mut().enumerate() {
                    *g += partial[tap * rows + row];
                }
            }
        }
    }
    Ok(())
}

/// Gradient of [`conv2d`] to its bias: the sum over N, H and W, taken in double precision.
///
/// # Errors
///
/// If a slice has the wrong length.
pub fn conv2d_bias_grad<T: Real>(conv: &Conv, grad_out: &[T], grad_bias: &mut [T]) -> Result<()> {
    check_len(
        "conv2d_bias_grad: grad_out",
        grad_out,
        conv.n * conv.out_image(),
    )?;
    check_len("conv2d_bias_grad: grad_bias", grad_bias, conv.c_out)?;
    let plane = conv.out_image() / conv.c_out;
    let sums = collect(conv.c_out, conv.n > CHUNK, |channel| {
        (0..conv.n)
            .map(|i| {
                sum(
                    &grad_out[(i * conv.c_out + channel) * plane..][..plane],
                    |g| g,
                )
            })
            .sum()
    });
    grad_bias
        .iter_mut()
        .zip(sums)
        .for_each(|(g, s)| *g = T::from_f64(s));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same_bits, data, dirty_scratch, same_for_threads};

    /// x, weight, stride, padding, dilation, groups.
    type Case = ([usize; 4], [usize; 4], usize, usize, usize, usize);

    const CASES: &[Case] = &[
        ([3, 2, 9, 7], [4, 2, 3, 3], 1, 1, 1, 1),
        ([2, 3, 8, 11], [2, 3, 4, 4], 2, 1, 1, 1),
        ([2, 2, 10, 9], [3, 2, 3, 2], 3, 2, 2, 1),
        ([2, 4, 7, 7], [6, 2, 3, 3], 1, 0, 1, 2),
        ([2, 4, 6, 5], [4, 1, 3, 3], 2, 1, 1, 4),
        ([1, 3, 5, 5], [1, 3, 1, 1], 2, 0, 1, 1),
        ([2, 1, 4, 4], [1, 1, 1, 1], 1, 3, 1, 1),
        ([1, 2, 3, 3], [2, 2, 3, 3], 1, 4, 1, 1),
        ([2, 1, 6, 6], [2, 1, 2, 2], 5, 0, 3, 1),
        ([1, 1, 2, 20], [2, 1, 1, 5], 1, 2, 4, 1),
        // More taps than one product takes at once, and columns beyond the buffer's aim.
        ([1, 70, 9, 9], [3, 70, 3, 3], 1, 1, 1, 1),
        ([2, 24, 33, 40], [2, 24, 3, 3], 1, 1, 1, 1),
        ([2, 12, 40, 70], [4, 6, 5, 5], 2, 2, 1, 2),
        ([37, 1, 6, 6], [3, 1, 3, 3], 1, 1, 1, 1),
        // Shifted products: strides 1 to 3, kernels that the stride does not divide, padding that
        // is larger than the image needs, rows that the stride cuts off.
        ([21, 16, 14, 14], [32, 16, 4, 4], 2, 1, 1, 1),
        ([19, 16, 9, 12], [5, 16, 3, 3], 1, 1, 1, 1),
        ([2, 8, 15, 14], [6, 8, 4, 4], 2, 0, 1, 1),
        ([3, 5, 16, 17], [7, 5, 3, 4], 2, 3, 1, 1),
        ([2, 3, 20, 19], [4, 3, 6, 5], 3, 2, 1, 1),
        ([1, 20, 8, 8], [3, 20, 1, 1], 1, 0, 1, 1),
    ];

    fn geometry((x, weight, stride, padding, dilation, groups): Case) -> Conv {
        Conv::new(x, weight, stride, padding, dilation, groups).unwrap()
    }

    /// Every product of the defining sum: `f(output, input, weight)`.
    fn for_each_product(conv: &Conv, mut f: impl FnMut(usize, usize, usize)) {
        let (oh, ow) = conv.out_hw();
        let ((kh, kw), groups) = (conv.kernel, conv.groups);
        let (c_in, c_out) = (conv.c_in / groups, conv.c_out / groups);
        for n in 0..conv.n {
            for o in 0..conv.c_out {
                for (i, j) in (0..oh).flat_map(|i| (0..ow).map(move |j| (i, j))) {
                    for c in 0..c_in {
                        for (u, v) in (0..kh).flat_map(|u| (0..kw).map(move |v| (u, v))) {
                            let y =
                                (i * conv.stride + u * conv.dilation).wrapping_sub(conv.padding);
                            let x =
                                (j * conv.stride + v * conv.dilation).wrapping_sub(conv.padding);
                            if y < conv.h && x < conv.w {
                                let channel = n * conv.c_in + o / c_out * c_in + c;
                                f(
                                    ((n * conv.c_out + o) * oh + i) * ow + j,
                                    (channel * conv.h + y) * conv.w + x,
                                    ((o * c_in + c) * kh + u) * kw + v,
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    struct Results<T> {
        out: Vec<T>,
        grad_x: Vec<T>,
        grad_w: Vec<T>,
        grad_bias: Vec<T>,
    }

    fn run<T: Real>(conv: &Conv, x: &[T], weight: &[T], bias: &[T], grad: &[T]) -> Results<T> {
        // Kernels overwrite whatever their outputs hold.
        let dirt = |len| vec![T::from_f64(f64::NAN); len];
        let mut r = Results {
            out: dirt(grad.len()),
            grad_x: dirt(x.len()),
            grad_w: dirt(weight.len()),
            grad_bias: dirt(bias.len()),
        };
        conv2d(conv, x, weight, Some(bias), &mut r.out).unwrap();
        conv2d_input_grad(conv, grad, weight, &mut r.grad_x).unwrap();
        conv2d_weight_grad(conv, x, grad, &mut r.grad_w).unwrap();
        conv2d_bias_grad(conv, grad, &mut r.grad_bias).unwrap();
        r
    }

    fn inputs<T: Real>(conv: &Conv) -> [Vec<T>; 4] {
        [
            data(1, conv.n * conv.image()),
            data(2, conv.weight_len()),
            data(3, conv.c_out),
            data(4, conv.n * conv.out_image()),
        ]
    }

    fn against_definition<T: Real>(tolerance: f64) {
        for &case in CASES {
            let conv = geometry(case);
            let [x, weight, bias, grad] = inputs::<T>(&conv);
            dirty_scratch::<T>();
            let actual = run(&conv, &x, &weight, &bias, &grad);
            let plane = conv.out_image() / conv.c_out;
            let mut out: Vec<f64> = (0..grad.len())
                .map(|i| bias[i / plane % conv.c_out].to_f64())
                .collect();
            let (mut grad_x, mut grad_w) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
            let mut grad_bias = vec![0.0; bias.len()];
            for_each_product(&conv, |o, i, w| {
                out[o] += x[i].to_f64() * weight[w].to_f64();
                grad_x[i] += grad[o].to_f64() * weight[w].to_f64();
                grad_w[w] += grad[o].to_f64() * x[i].to_f64();
            });
            for (i, g) in grad.iter().enumerate() {
                grad_bias[i / plane % conv.c_out] += g.to_f64();
            }
            assert_close(&actual.out, &out, tolerance, &case);
            assert_close(&actual.grad_x, &grad_x, tolerance, &case);
            assert_close(&actual.grad_w, &grad_w, tolerance, &case);
            assert_close(&actual.grad_bias, &grad_bias, tolerance, &case);
        }
    }

    #[test]
    fn equals_the_definition() {
        against_definition::<f64>(1e-13);
        against_definition::<f32>(2e-6);
    }

    #[test]
    fn thread_count_changes_nothing() {
        for case in [
            ([50, 3, 9, 7], [4, 3, 3, 3], 1, 1, 1, 1),
            ([33, 4, 14, 14], [6, 2, 4, 4], 2, 1, 1, 2),
        ] {
            let conv = geometry(case);
            let [x, weight, bias, grad] = inputs::<f32>(&conv);
            same_for_threads(|| {
                let r = run(&conv, &x, &weight, &bias, &grad);
                [r.out, r.grad_x, r.grad_w, r.grad_bias].concat()
            });
        }
    }

    fn batch_changes_nothing<T: Real>() {
        for (image, weight, stride, padding, groups) in [
            ([1, 28, 28], [16, 1, 4, 4], 2, 1, 1),
            ([16, 14, 14], [32, 16, 4, 4], 2, 1, 1),
            ([70, 5, 5], [3, 70, 3, 3], 1, 1, 1),
            ([4, 6, 6], [1, 4, 3, 3], 1, 1, 1),
            ([4, 3, 3], [4, 1, 2, 2], 1, 0, 4),
            ([2, 2, 2], [2, 2, 1, 1], 1, 0, 1),
        ] {
            let [c, h, w] = image;
            let full = Conv::new([37, c, h, w], weight, stride, padding, 1, groups).unwrap();
            let [x, weights, bias, grad] = inputs::<T>(&full);
            let expected = run(&full, &x, &weights, &bias, &grad);
            for n in 1..=20 {
                let conv = Conv::new([n, c, h, w], weight, stride, padding, 1, groups).unwrap();
                let (x, grad) = (&x[..n * conv.image()], &grad[..n * conv.out_image()]);
                let actual = run(&conv, x, &weights, &bias, grad);
                assert_same_bits(&actual.out, &expected.out[..grad.len()]);
                assert_same_bits(&actual.grad_x, &expected.grad_x[..x.len()]);
            }
        }
    }

    #[test]
    fn the_batch_changes_no_image() {
        batch_changes_nothing::<f32>();
        batch_changes_nothing::<f64>();
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let new = |x, weight, stride, groups| Conv::new(x, weight, stride, 0, 1, groups);
        assert!(new([0, 1, 3, 3], [1, 1, 2, 2], 1, 1).is_err());
        assert!(new([1, 1, 3, 3], [1, 1, 0, 2], 1, 1).is_err());
        assert!(new([1, 1, 3, 3], [1, 1, 4, 2], 1, 1).is_err());
        assert!(new([1, 1, 3, 3], [1, 1, 2, 2], 0, 1).is_err());
        assert!(new([1, 1, 3, 3], [1, 1, 2, 2], usize::MAX, 1).is_err());
        assert!(new([1, 3, 3, 3], [1, 2, 2, 2], 1, 1).is_err());
        assert!(new([1, 4, 3, 3], [3, 2, 2, 2], 1, 2).is_err());
        let conv = new([1, 1, 3, 3], [1, 1, 2, 2], 1, 1).unwrap();
        let error = conv2d(&conv, &[0f32; 8], &[0.0; 4], None, &mut [0.0; 4]).unwrap_err();
        assert!(
            error.to_string().contains("conv2d: x has 8 elements"),
            "{error}"
        );
    }
}
