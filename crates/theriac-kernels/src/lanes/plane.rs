//! Where the pixels of sixteen images lie.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use super::LANES;
use super::products::Grid;

/// One value of each of the sixteen images, aligned so that a vector never straddles cache lines.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; LANES]);

/// A slice of numbers on a cache line's boundary.
#[derive(Clone, Default)]
pub(crate) struct Buffer(Vec<Line>);

impl Buffer {
    /// Zeros; `len` is rounded up to whole lines.
    pub(crate) fn zeros(len: usize) -> Self {
        Self(vec![Line([0.0; LANES]); len.div_ceil(LANES)])
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: a Line is LANES numbers without padding (its size equals its alignment), so
        // `len` lines are `len * LANES` initialised numbers, borrowed as long as `self`.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LANES) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LANES) }
    }
}

/// An activation of sixteen images: (channels, rows, columns, 16) within a border of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plane {
    pub(crate) channels: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) border: usize,
}

impl Plane {
    pub(crate) fn row(&self) -> usize {
        (self.columns + 2 * self.border) * LANES
    }

    pub(crate) fn channel(&self) -> usize {
        (self.rows + 2 * self.border) * self.row()
    }

    pub(crate) fn len(&self) -> usize {
        self.channels * self.channel()
    }

    /// Pixels of an image.
    pub(crate) fn pixels(&self) -> usize {
        self.channels * self.rows * self.columns
    }

    /// Places of the pixels.
    pub(crate) fn grid(&self) -> Grid {
        self.shifted(0)
    }

    /// Places as seen from `padding` pixels up and left of the image.
    pub(crate) fn shifted(&self, padding: usize) -> Grid {
        Grid {
            start: (self.border - padding) * (self.row() + LANES),
            channel: self.channel(),
            row: self.row(),
            column: LANES,
        }
    }

    /// The rows of all channels as ranges without the border, with their channel.
    pub(crate) fn lines(self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        let (grid, len) = (self.grid(), self.columns * LANES);
        (0..self.channels).flat_map(move |c| {
            (0..self.rows).map(move |y| {
                let start = grid.at(c, y, 0);
                (c, start..start + len)
            })
        })
    }

    /// Places of the pixels in the order of (channel, row, column).
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> + use<> {
        self.lines().flat_map(|(_, line)| line.step_by(LANES))
    }

    /// Sets images of shape (channels, rows, columns) side by side; lanes without image are 0.
    pub(crate) fn spread(&self, images: &[f32], to: &mut [f32]) {
        let pixels = self.pixels();
        let mut square = [[0f32; LANES]; LANES];
        for (first, places) in self.strips() {
            let count = places.len() / LANES;
            // Whole cache lines are read and written, whatever the images' distance in memory.
            for (line, image) in square.iter_mut().zip(images.chunks_exact(pixels)) {
                line[..count].copy_from_slice(&image[first..first + count]);
            }
            for (pixel, to) in to[places].as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                for (to, line) in to.iter_mut().zip(&square) {
                    *to = line[pixel];
                }
            }
        }
    }

    /// The inverse of [`Self::spread`].
    pub(crate) fn gather(&self, from: &[f32], images: &mut [f32]) {
        self.gather_rows(from, images, self.pixels());
    }

    /// [`Self::gather`] to images that lie `pitch` apart.
    pub(crate) fn gather_rows(&self, from: &[f32], images: &mut [f32], pitch: usize) {
        let mut square = [[0f32; LANES]; LANES];
        for (first, places) in self.strips() {
            let count = places.len() / LANES;
            for (pixel, from) in from[places].as_chunks::<LANES>().0.iter().enumerate() {
                for (line, from) in square.iter_mut().zip(from) {
                    line[pixel] = *from;
                }
            }
            for (line, image) in square.iter().zip(images.chunks_exact_mut(pitch)) {
                image[first..first + count].copy_from_slice(&line[..count]);
            }
        }
    }

    /// At most sixteen pixels that lie side by side: the number of the first, and their places.
    fn strips(self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        self.lines().enumerate().flat_map(move |(i, (_, line))| {
            let starts = (0..self.columns).step_by(LANES);
            starts.map(move |x| {
                let end = (x + LANES).min(self.columns);
                let places = line.start + x * LANES..line.start + end * LANES;
                (i * self.columns + x, places)
            })
        })
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Buffer").field(&self.len()).finish()
    }
}

/// Buffers that wait for their next use, so that no page has to be fetched and cleared again.
///
/// A buffer comes back with whatever its last user left inside the border, and zeros in it.
#[derive(Default)]
pub(crate) struct Shelf(Mutex<HashMap<Plane, Vec<Buffer>>>);

impl Shelf {
    pub(crate) fn take(&self, plane: Plane) -> Buffer {
        let waiting = self.lock().get_mut(&plane).and_then(Vec::pop);
        waiting.unwrap_or_else(|| Buffer::zeros(plane.len()))
    }

    pub(crate) fn give(&self, plane: Plane, buffer: Option<Buffer>) {
        if let Some(buffer) = buffer {
            self.lock().entry(plane).or_default().push(buffer);
        }
    }

    /// A buffer of `len` values without border, rounded up to whole vectors.
    pub(crate) fn take_len(&self, len: usize) -> Buffer {
        self.take(flat(len))
    }

    /// The inverse of [`Self::take_len`].
    pub(crate) fn give_len(&self, buffer: Buffer) {
        self.give(flat(buffer.len()), Some(buffer));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Plane, Vec<Buffer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where work is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room<'a> {
    /// Its buffers.
    pub(crate) shelf: &'a Shelf,
    /// On the calling thread alone. A task that shared its work would wait by doing other tasks.
    pub(crate) alone: bool,
}

fn flat(len: usize) -> Plane {
    Plane {
        channels: len.div_ceil(LANES),
        rows: 1,
        columns: 1,
        border: 0,
    }
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Shelf").field(&self.lock().len()).finish()
    }
}
