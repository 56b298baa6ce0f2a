//! The two loops that all matrix work of a network comes down to.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::LANES;
use super::plane::{Buffer, Room, Shelf};
use super::simd::{Level, Vector, dispatch};

/// Where the values of a channel, row and column start in a buffer, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) start: usize,
    pub(crate) channel: usize,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl Grid {
    #[inline]
    pub(crate) fn at(&self, channel: usize, row: usize, column: usize) -> usize {
        self.start + channel * self.channel + row * self.row + column * self.column
    }

    /// One more than the last element of (channels, rows, columns) places.
    pub(crate) fn end(&self, channels: usize, rows: usize, columns: usize) -> usize {
        if channels * rows * columns == 0 {
            return 0;
        }
        self.at(channels - 1, rows - 1, columns - 1) + LANES
    }
}

/// Weights in blocks of at most 8 rows, each block (terms, rows of the block): the order in which
/// [`products`] reads them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packed {
    values: Buffer,
    rows: usize,
    terms: usize,
}

/// Some rows of [`Packed`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    values: &'a [f32],
    rows: usize,
    terms: usize,
}

/// Rows of the block that starts where `left` rows are left; missing rows are zeros.
fn height(left: usize) -> usize {
    match left {
        0 => 0,
        1 => 1,
        2 => 2,
        3 | 4 => 4,
        _ => 8,
    }
}

/// Values that are packed by one task.
const PACK: usize = 1 << 15;

impl Packed {
    /// Packs the matrix with the rows that `fill(row, values)` writes: `fill` gets the row's number
    /// and room for one value of each term.
    pub(crate) fn new(
        room: Room<'_>,
        rows: usize,
        terms: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        Self::with(room, rows, terms, |row, to| {
            let mut lines = vec![0f32; 8 * terms];
            for (i, to) in to.chunks_mut(8 * terms).enumerate() {
                let (row, block) = (row + 8 * i, to.len() / terms);
                for (r, line) in lines.chunks_exact_mut(terms).take(block).enumerate() {
                    if row + r < rows {
                        fill(row + r, line);
                    } else {
                        line.fill(0.0);
                    }
                }
                interleave(&lines, terms, block, to);
            }
        })
    }

    /// Packs the transpose of a matrix that lies row by row in `values`, each of its rows scaled.
    pub(crate) fn transposed(
        room: Room<'_>,
        values: &[f32],
        width: usize,
        scale: Option<&[f32]>,
    ) -> Self {
        let terms = values.len() / width.max(1);
        Self::with(room, width, terms, |first, to| {
            // All blocks of the task at each term, so that whole cache lines are read.
            for (term, values) in values.chunks_exact(width).enumerate() {
                let scale = scale.map_or(1.0, |scale| scale[term]);
                let mut row = first;
                for to in to.chunks_mut(8 * terms) {
                    let block = to.len() / terms;
                    let to = &mut to[term * block..][..block];
                    match (values[row..].first_chunk::<8>(), to.first_chunk_mut::<8>()) {
                        (Some(values), Some(to)) => *to = values.map(|v| v * scale),
                        _ => {
                            let left = block.min(width - row);
                            for (to, v) in to.iter_mut().zip(&values[row..row + left]) {
                                *to = v * scale;
                            }
                            to[left..].fill(0.0);
                        }
                    }
                    row += block;
                }
            }
        })
    }

    /// `pack(first row, room for its blocks)` for all blocks, some at a time.
    fn with(
        room: Room<'_>,
        rows: usize,
        terms: usize,
        pack: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let padded = rows / 8 * 8 + height(rows % 8);
        let mut values = room.shelf.take_len(padded * terms);
        let task = (PACK / (8 * terms).max(1)).max(1) * 8;
        let (size, packed) = ((task * terms).max(1), &mut values[..padded * terms]);
        let pack = |(i, to): (usize, &mut [f32])| pack(i * task, to);
        match room.alone || rows <= task {
            true => packed.chunks_mut(size).enumerate().for_each(pack),
            false => packed.par_chunks_mut(size).enumerate().for_each(pack),
        }
        Self {
            values,
            rows,
            terms,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.values[..])
    }

    pub(crate) fn all(&self) -> Rows<'_> {
        self.part(0, self.rows)
    }

    /// At most `rows` rows from the row `first`, a multiple of 8.
    pub(crate) fn part(&self, first: usize, rows: usize) -> Rows<'_> {
        let rows = rows.min(self.rows - first);
        let room = rows / 8 * 8 + height(rows % 8);
        Rows {
            values: &self.values[first * self.terms..][..room * self.terms],
            rows,
            terms: self.terms,
        }
    }

    /// Gives the memory back.
    pub(crate) fn give(self, shelf: &Shelf) {
        shelf.give_len(self.values);
    }
}

/// The transpose of `block` rows of length `terms`.
fn interleave(rows: &[f32], terms: usize, block: usize, to: &mut [f32]) {
    let mut first = 0;
    if block == 8 && terms >= 8 {
        // Squares of known size are transposed in registers.
        let squares = rows.chunks_exact(terms).map(|row| row.as_chunks::<8>().0);
        let squares: Vec<&[[f32; 8]]> = squares.take(8).collect();
        for (square, to) in to.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            if square == terms / 8 {
                break;
            }
            for (r, row) in squares.iter().enumerate() {
                for (column, value) in row[square].iter().enumerate() {
                    to[8 * column + r] = *value;
                }
            }
        }
        first = terms / 8 * 8;
    }
    for (term, to) in to.chunks_exact_mut(block).enumerate().skip(first) {
        for (r, to) in to.iter_mut().enumerate() {
            *to = rows[r * terms + term];
        }
    }
}

/// What happens to a sum before it is stored, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Finish<'a> {
    /// Added to each channel, before all else.
    pub(crate) bias: Option<&'a [f32]>,
    /// `scale * sum + shift` for each channel.
    pub(crate) affine: Option<(&'a [f32], &'a [f32])>,
    /// Added, laid out like the output.
    pub(crate) residual: Option<&'a [f32]>,
    /// Negative values become 0.
    pub(crate) relu: bool,
    /// Added to what the output holds instead of overwriting it.
    pub(crate) accumulate: bool,
}

impl Finish<'_> {
    /// Whether sums are stored as they are. The bias is in them already.
    fn is_nothing(&self) -> bool {
        self.affine.is_none() && self.residual.is_none() && !self.relu && !self.accumulate
    }
}

/// One job of [`products`].
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) weights: Rows<'a>,
    /// Where a term's value lies, counted from a position's place in `x`.
    pub(crate) offsets: &'a [usize],
    pub(crate) x: &'a [f32],
    /// Places of the positions in `x`; its channel is not used.
    pub(crate) from: Grid,
    pub(crate) to: Grid,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) finish: Finish<'a>,
}

/// `out[c, y, x] = finish(sum_k weights[c, k] x[position(y, x) + offset_k])` for 16 images at once.
///
/// Every sum is taken in the order of k with fused multiply-adds, whatever the machine.
///
/// # Panics
///
/// If a place lies outside its slice, a mistake of this crate.
pub(crate) fn products(level: Level, job: &Job<'_>, out: &mut [f32]) {
    let channels = job.weights.rows;
    if job.rows * job.columns * channels == 0 {
        return;
    }
    let farthest = job.offsets.iter().copied().max().unwrap_or(0);
    assert_eq!(job.offsets.len(), job.weights.terms, "products: terms");
    assert!(
        job.from.end(1, job.rows, job.columns) + farthest <= job.x.len(),
        "products: x is too short"
    );
    let end = job.to.end(channels, job.rows, job.columns);
    assert!(end <= out.len(), "products: out is too short");
    if let Some(residual) = job.finish.residual {
        assert!(end <= residual.len(), "products: residual is too short");
    }
    for values in [
        job.finish.bias,
        job.finish.affine.map(|(scale, _)| scale),
        job.finish.affine.map(|(_, shift)| shift),
    ]
    .into_iter()
    .flatten()
    {
        assert!(channels <= values.len(), "products: a channel is missing");
    }
    run(level, job, out);
}

dispatch! {
    fn run(job: &Job<'_>, out: &mut [f32]) = blocks;
    avx512 <8, 3, 6, 8, 12>, avx2 <4, 3, 3, 5, 8>, neon <8, 3, 6, 8, 12>
}

/// Bytes of weights that stay in cache while a whole plane is computed row by row.
const RESIDENT: usize = 256 * 1024;
/// Bytes of the image that stay in cache while all weights pass over them.
const BAND: usize = 640 * 1024;
/// Columns whose part of the image, for some of the terms, stays in the first cache while all weights
/// pass over it; the sums wait in memory for the next terms, which does not change them.
const SPAN: usize = 9;

/// A stretch of the output's positions and of the sums' terms.
#[derive(Clone)]
struct Part {
    y: usize,
    columns: Range<usize>,
    terms: Range<usize>,
    /// Sums of the terms before and after, (channels, columns, 16) from the first of the columns.
    partial: *mut f32,
}

/// A block of packed rows: its weights, its height, the first of the rows to compute and the number
/// of that row in the output.
#[derive(Clone, Copy)]
struct Block<'a> {
    weights: &'a [f32],
    height: usize,
    sub: usize,
    row: usize,
}

#[inline(always)]
unsafe fn blocks<
    V: Vector,
    const R8: usize,
    const P8: usize,
    const P4: usize,
    const P2: usize,
    const P1: usize,
>(
    job: &Job<'_>,
    out: &mut [f32],
) {
    let (rows, terms) = (job.weights.rows, job.weights.terms);
    let mut partial = Buffer::default();
    // Worth it where several blocks of rows read many terms. Terms side by side share most of
    // what a span reads.
    let shared = matches!(job.offsets, [a, b, ..] if *b == a + LANES);
    let (many, chunk) = if shared { (512, 72) } else { (96, 32) };
    let chunked = rows > 8 && terms > many;
    let (span, chunk) = if chunked {
        partial = Buffer::zeros(rows.next_multiple_of(8) * SPAN * LANES);
        (SPAN, chunk)
    } else {
        (job.columns, terms.max(1))
    };
    // Weights that stay in cache are read again for each row of the image; others for as many rows
    // as keep the image in cache, which is read for each block of weights.
    let by_row = chunked || size_of_val(job.weights.values) <= RESIDENT;
    let share = (size_of_val(job.x) / job.rows).max(1);
    let fits = (BAND / share).saturating_sub(2).clamp(1, job.rows);
    let tall = if by_row { 1 } else { fits };
    for band in (0..job.rows).step_by(tall) {
        for x in (0..job.columns).step_by(span) {
            // Once even without terms: what remains is the bias.
            for term in (0..terms.max(1)).step_by(chunk) {
                let mut part = Part {
                    y: band,
                    columns: x..(x + span).min(job.columns),
                    terms: term..(term + chunk).min(terms),
                    partial: partial.as_mut_ptr(),
                };
                let (mut row, mut at) = (0, 0);
                while row < rows {
                    let height = height(rows - row);
                    let mut block = Block {
                        weights: &job.weights.values[at..][..height * terms],
                        height,
                        sub: 0,
                        row,
                    };
                    for y in band..(band + tall).min(job.rows) {
                        part.y = y;
                        // SAFETY: `products` checked all places; `partial` has room for all rows and
                        // a span of columns if there are several chunks; the vectors' features are
                        // the caller's.
                        unsafe {
                            match height {
                                8 => {
                                    for sub in (0..8).step_by(R8) {
                                        block.sub = sub;
                                        line::<V, R8, P8>(job, &block, &part, out);
                                    }
                                    block.sub = 0;
                                }
                                4 => line::<V, 4, P4>(job, &block, &part, out),
                                2 => line::<V, 2, P2>(job, &block, &part, out),
                                _ => line::<V, 1, P1>(job, &block, &part, out),
                            }
                        }
                    }
                    at += height * terms;
                    row += height;
                }
            }
        }
    }
}

/// The positions of one row.
#[inline(always)]
unsafe fn line<V: Vector, const R: usize, const P: usize>(
    job: &Job<'_>,
    block: &Block<'_>,
    part: &Part,
    out: &mut [f32],
) {
    let mut x = part.columns.start;
    while x < part.columns.end {
        let left = part.columns.end - x;
        // SAFETY: the caller's; tiles cover the columns once.
        unsafe {
            // Few sums in flight would wait for each other, so that an even split beats a wide
            // tile with a narrow rest.
            x += if R <= 2 && (left == 7 || left == 14) {
                tile::<V, R, 7>(job, block, part, x, out)
            } else if left >= P {
                tile::<V, R, P>(job, block, part, x, out)
            } else if P > 4 && left >= 4 {
                tile::<V, R, 4>(job, block, part, x, out)
            } else if left >= 2 {
                tile::<V, R, 2>(job, block, part, x, out)
            } else {
                tile::<V, R, 1>(job, block, part, x, out)
            };
        }
    }
}

/// R channels at P positions, with their R * P sums in registers; returns P.
#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const P: usize>(
    job: &Job<'_>,
    block: &Block<'_>,
    part: &Part,
    x: usize,
    out: &mut [f32],
) -> usize {
    let first = block.row + block.sub;
    let rows = R.min(job.weights.rows.saturating_sub(first));
    let place = job.from.start + part.y * job.from.row + x * job.from.column;
    let waiting = (first * SPAN + x - part.columns.start) * LANES;
    let mut lane = 0;
    while lane < LANES {
        // SAFETY: `products` checked that every position with every offset lies in x and that every
        // channel and position lies in out and the operands; `weights` holds `height` values for
        // each term, `partial` the sums of each row and column. The vectors' features are the
        // caller's.
        unsafe {
            let mut sums = [[V::splat(0.0); P]; R];
            if part.terms.start > 0 {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (p, sum) in sums.iter_mut().enumerate() {
                        let at = waiting + (r * SPAN + p) * LANES + lane;
                        *sum = V::load(part.partial.add(at));
                    }
                }
            } else if let Some(bias) = job.finish.bias {
                for (r, sums) in sums.iter_mut().enumerate() {
                    // Rows that only fill the block have no bias and are not stored.
                    let bias = if r < rows {
                        *bias.get_unchecked(first + r)
                    } else {
                        0.0
                    };
                    *sums = [V::splat(bias); P];
                }
            }
            let from = job.x.as_ptr().add(place + lane);
            let offsets = job.offsets.get_unchecked(part.terms.clone());
            let weights = block.weights.as_ptr().add(block.sub);
            let mut weight = weights.add(part.terms.start * block.height);
            // Loops rather than closures: a closure would lack the target feature.
            let mut values = [V::splat(0.0); P];
            if job.from.column == LANES {
                for &offset in offsets {
                    let from = from.add(offset);
                    for (p, value) in values.iter_mut().enumerate() {
                        *value = V::load(from.add(p * LANES));
                    }
                    step::<V, R, P>(&mut sums, weight, &values);
                    weight = weight.add(block.height);
                }
            } else {
                for &offset in offsets {
                    let from = from.add(offset);
                    for (p, value) in values.iter_mut().enumerate() {
                        *value = V::load(from.add(p * job.from.column));
                    }
                    step::<V, R, P>(&mut sums, weight, &values);
                    weight = weight.add(block.height);
                }
            }
            if part.terms.end < job.weights.terms {
                for (r, sums) in sums.iter().enumerate() {
                    for (p, sum) in sums.iter().enumerate() {
                        let at = waiting + (r * SPAN + p) * LANES + lane;
                        sum.store(part.partial.add(at));
                    }
                }
                lane += V::WIDTH;
                continue;
            }
            let to = job.to.at(first, part.y, x) + lane;
            if rows == R && job.finish.is_nothing() {
                for (r, sums) in sums.iter().enumerate() {
                    let to = out.as_mut_ptr().add(to + r * job.to.channel);
                    for (p, sum) in sums.iter().enumerate() {
                        sum.store(to.add(p * job.to.column));
                    }
                }
                lane += V::WIDTH;
                continue;
            }
            // Through memory: an array that a loop indexes is not kept in registers, and the sums
            // must be.
            let mut spilled = [const { MaybeUninit::<f32>::uninit() }; SUMS * LANES];
            let spilled = spilled.as_mut_ptr().cast::<f32>();
            for (r, sums) in sums.iter().enumerate() {
                for (p, sum) in sums.iter().enumerate() {
                    sum.store(spilled.add((r * P + p) * V::WIDTH));
                }
            }
            for r in 0..rows {
                let (sums, to) = (spilled.add(r * P * V::WIDTH), to + r * job.to.channel);
                for p in 0..P {
                    let value = V::load(sums.add(p * V::WIDTH));
                    let to = to + p * job.to.column;
                    finish(&job.finish, first + r, to, value, out.as_mut_ptr());
                }
            }
        }
        lane += V::WIDTH;
    }
    P
}

#[inline(always)]
unsafe fn step<V: Vector, const R: usize, const P: usize>(
    sums: &mut [[V; P]; R],
    weight: *const f32,
    values: &[V; P],
) {
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's.
        unsafe {
            let weight = V::splat(*weight.add(r));
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum = sum.plus_product(weight, value);
            }
        }
    }
}

/// Most sums of a tile.
const SUMS: usize = 24;

/// Does what `f` asks for with a sum of a channel that holds its bias, and stores it.
///
/// # Safety
///
/// The channel must be one of `f`'s, `to` a place of `out` and of `f`'s residual; the features are the
/// caller's.
#[inline(always)]
pub(crate) unsafe fn finish<V: Vector>(
    f: &Finish<'_>,
    channel: usize,
    to: usize,
    mut value: V,
    out: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        if let Some((scale, shift)) = f.affine {
            let scale = V::splat(*scale.get_unchecked(channel));
            value = V::splat(*shift.get_unchecked(channel)).plus_product(scale, value);
        }
        if let Some(residual) = f.residual {
            value = value.plus(V::load(residual.as_ptr().add(to)));
        }
        if f.relu {
            value = value.positive();
        }
        if f.accumulate {
            value = value.plus(V::load(out.add(to)));
        }
        value.store(out.add(to));
    }
}

/// One job of [`correlations`].
#[derive(Clone, Copy)]
pub(crate) struct Pairs<'a> {
    /// (channels, rows, columns) on `left_at`.
    pub(crate) left: &'a [f32],
    pub(crate) left_at: Grid,
    pub(crate) channels: usize,
    pub(crate) right: &'a [f32],
    /// Places of the positions in `right`; its channel is not used.
    pub(crate) right_at: Grid,
    /// Where a term's value lies, counted from a position's place.
    pub(crate) offsets: &'a [usize],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// `sums[c, k, lane] = sum_{y, x} left[c, y, x, lane] right[position(y, x) + offset_k, lane]`.
///
/// # Panics
///
/// If a place lies outside its slice, a mistake of this crate.
pub(crate) fn correlations(level: Level, job: &Pairs<'_>, sums: &mut [f32]) {
    let farthest = job.offsets.iter().copied().max().unwrap_or(0);
    if job.rows * job.columns * job.channels * job.offsets.len() == 0 {
        return;
    }
    assert!(
        job.left_at.end(job.channels, job.rows, job.columns) <= job.left.len(),
        "correlations: left is too short"
    );
    assert!(
        job.right_at.end(1, job.rows, job.columns) + farthest <= job.right.len(),
        "correlations: right is too short"
    );
    assert!(
        job.channels * job.offsets.len() * LANES <= sums.len(),
        "correlations: sums is too short"
    );
    run_pairs(level, job, sums);
}

dispatch! {
    fn run_pairs(job: &Pairs<'_>, sums: &mut [f32]) = pairs;
    avx512 <4, 6>, avx2 <3, 4>, neon <4, 6>
}

/// Positions that are walked before the next tile, so that their values stay in the first cache.
const WALK: usize = 64;

#[inline(always)]
unsafe fn pairs<V: Vector, const C: usize, const K: usize>(job: &Pairs<'_>, sums: &mut [f32]) {
    let tall = (WALK / job.columns).max(1);
    let terms = job.offsets.len();
    let mut y = 0;
    while y < job.rows {
        let rows = tall.min(job.rows - y);
        let mut c = 0;
        while c < job.channels {
            let mut k = 0;
            while k < terms {
                let (left, right) = (job.channels - c, terms - k);
                // SAFETY: `correlations` checked all places; the features are the caller's.
                unsafe {
                    match (left >= C, right >= K) {
                        (true, true) => pair::<V, C, K>(job, sums, c, k, y, rows),
                        (true, false) => pair::<V, C, 1>(job, sums, c, k, y, rows),
                        (false, true) => pair::<V, 1, K>(job, sums, c, k, y, rows),
                        (false, false) => pair::<V, 1, 1>(job, sums, c, k, y, rows),
                    }
                }
                k += if right >= K { K } else { 1 };
            }
            c += if job.channels - c >= C { C } else { 1 };
        }
        y += rows;
    }
}

#[inline(always)]
unsafe fn pair<V: Vector, const C: usize, const K: usize>(
    job: &Pairs<'_>,
    sums: &mut [f32],
    c: usize,
    k: usize,
    y: usize,
    rows: usize,
) {
    let terms = job.offsets.len();
    let mut lane = 0;
    while lane < LANES {
        // SAFETY: `correlations` checked every channel, position and offset, and the length of sums.
        unsafe {
            // Loops rather than closures: a closure would lack the target feature.
            let mut totals = [[V::splat(0.0); K]; C];
            let mut offsets = [0; K];
            for (j, offset) in offsets.iter_mut().enumerate() {
                *offset = *job.offsets.get_unchecked(k + j);
            }
            let sums = sums.as_mut_ptr().add((c * terms + k) * LANES + lane);
            if y > 0 {
                for (i, totals) in totals.iter_mut().enumerate() {
                    for (j, total) in totals.iter_mut().enumerate() {
                        *total = V::load(sums.add((i * terms + j) * LANES));
                    }
                }
            }
            let mut lefts = [V::splat(0.0); C];
            for y in y..y + rows {
                let left = job.left.as_ptr().add(job.left_at.at(c, y, 0) + lane);
                let right = job.right.as_ptr().add(job.right_at.at(0, y, 0) + lane);
                for x in 0..job.columns {
                    let left = left.add(x * job.left_at.column);
                    let right = right.add(x * job.right_at.column);
                    for (i, value) in lefts.iter_mut().enumerate() {
                        *value = V::load(left.add(i * job.left_at.channel));
                    }
                    for (j, &offset) in offsets.iter().enumerate() {
                        let value = V::load(right.add(offset));
                        for (totals, &left) in totals.iter_mut().zip(&lefts) {
                            totals[j] = totals[j].plus_product(left, value);
                        }
                    }
                }
            }
            for (i, totals) in totals.iter().enumerate() {
                for (j, total) in totals.iter().enumerate() {
                    total.store(sums.add((i * terms + j) * LANES));
                }
            }
        }
        lane += V::WIDTH;
    }
}
