//! The only source of random numbers: ChaCha8 used as a counter-based generator.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use theriac_ops::network::Key;

/// Random numbers as a function of (seed, purpose, sample, step).
///
/// The four words are the key of a ChaCha8 stream, so a draw never depends on what else was
/// drawn: not on batch size, batch order, thread count, device or a resumed run. Values are drawn
/// in f32 on the host, so that f32 and f64 runs, and every device, see the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rng {
    seed: u64,
    step: u64,
}

impl Rng {
    /// The generator of a seeded run.
    pub fn new(seed: u64) -> Self {
        Self { seed, step: 0 }
    }

    /// The same generator at step `step` of an iteration: fresh numbers for every step.
    pub fn at(self, step: u64) -> Self {
        Self { step, ..self }
    }

    /// An independent generator for a part of the work (a restart, an epoch, a cell), which may
    /// count its own steps.
    pub fn fork(self, tag: u64) -> Self {
        Self {
            seed: mix(mix(self.seed) ^ mix(self.step.wrapping_add(1)) ^ tag),
            step: 0,
        }
    }

    /// `n` values uniform in [0, 1), multiples of 2^-24.
    pub fn uniform(&self, purpose: &str, sample: u64, n: usize) -> Vec<f32> {
        let mut stream = self.stream(purpose, sample);
        (0..n).map(|_| unit(&mut stream)).collect()
    }

    /// `n` values from N(0, 1).
    pub fn normal(&self, purpose: &str, sample: u64, n: usize) -> Vec<f32> {
        let mut stream = self.stream(purpose, sample);
        (0..n).map(|_| StandardNormal.sample(&mut stream)).collect()
    }

    /// `n` values from N(0, 1) by [`theriac_ops::normal`], other ones than [`Rng::normal`]'s and in
    /// less than half of the time: for noise on every activation of every pass.
    pub fn gaussian(&self, purpose: &str, sample: u64, n: usize) -> Vec<f32> {
        let mut values = vec![0.0; n];
        theriac_ops::normal(&self.key(purpose, sample), &mut values);
        values
    }

    /// The key of a stream, for operations that draw [`Rng::gaussian`] themselves.
    pub fn key(&self, purpose: &str, sample: u64) -> Key {
        let words = [self.seed, fnv1a(purpose), sample, self.step];
        std::array::from_fn(|i| (words[i / 2] >> (32 * (i % 2))) as u32)
    }

    /// A whole number below `bound`, without bias; 0 when `bound` is 0.
    pub fn below(&self, purpose: &str, sample: u64, bound: u32) -> u32 {
        below(&mut self.stream(purpose, sample), bound)
    }

    /// A permutation of 0..n (Fisher-Yates), a function of (seed, purpose, round).
    pub fn permutation(&self, purpose: &str, round: u64, n: u32) -> Vec<u32> {
        let mut stream = self.stream(purpose, round);
        let mut order: Vec<u32> = (0..n).collect();
        for last in (1..n).rev() {
            order.swap(last as usize, below(&mut stream, last + 1) as usize);
        }
        order
    }

    fn stream(&self, purpose: &str, sample: u64) -> ChaCha8Rng {
        let mut key = [0u8; 32];
        let words = self.key(purpose, sample);
        for (bytes, word) in key.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        ChaCha8Rng::from_seed(key)
    }
}

fn unit(stream: &mut ChaCha8Rng) -> f32 {
    (stream.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Lemire's multiply and reject.
fn below(stream: &mut ChaCha8Rng, bound: u32) -> u32 {
    if bound == 0 {
        return 0;
    }
    let reject = bound.wrapping_neg() % bound;
    loop {
        let wide = u64::from(stream.next_u32()) * u64::from(bound);
        if wide as u32 >= reject {
            return (wide >> 32) as u32;
        }
    }
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finaliser of SplitMix64.
fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_key_matters() {
        let draw = |rng: Rng, purpose, sample| rng.uniform(purpose, sample, 4);
        let base = draw(Rng::new(7), "start", 3);
        assert_eq!(base, draw(Rng::new(7), "start", 3));
        assert_ne!(base, draw(Rng::new(8), "start", 3));
        assert_ne!(base, draw(Rng::new(7), "noise", 3));
        assert_ne!(base, draw(Rng::new(7), "start", 4));
        assert_ne!(base, draw(Rng::new(7).at(1), "start", 3));
        assert_ne!(base, draw(Rng::new(7).fork(0), "start", 3));
        assert_ne!(
            draw(Rng::new(7).at(1).fork(0), "start", 3),
            draw(Rng::new(7).fork(1), "start", 3)
        );
    }

    #[test]
    fn a_longer_draw_continues_a_shorter_one() {
        let rng = Rng::new(1);
        assert_eq!(rng.normal("n", 0, 10)[..4], rng.normal("n", 0, 4));
        assert_eq!(rng.gaussian("n", 0, 300)[..40], rng.gaussian("n", 0, 40));
    }

    #[test]
    fn the_two_ways_to_a_normal_draw_share_no_numbers_and_have_one_key() {
        let rng = Rng::new(5).at(3);
        let (slow, fast) = (rng.normal("n", 2, 2000), rng.gaussian("n", 2, 2000));
        let product = |(a, b): (&f32, &f32)| f64::from(a * b);
        let correlation: f64 = slow.iter().zip(&fast).map(product).sum();
        assert!((correlation / 2000.0).abs() < 0.1, "{correlation}");
        for other in [
            rng.at(4).gaussian("n", 2, 4),
            rng.gaussian("m", 2, 4),
            rng.gaussian("n", 3, 4),
            Rng::new(6).at(3).gaussian("n", 2, 4),
        ] {
            assert_ne!(other, fast[..4]);
        }
    }

    #[test]
    fn moments_and_permutation() {
        let rng = Rng::new(11);
        let uniform = rng.uniform("u", 0, 20_000);
        let mean = uniform.iter().map(|&v| f64::from(v)).sum::<f64>() / 20_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!(uniform.iter().all(|v| (0.0..1.0).contains(v)));
        let normal = rng.normal("n", 0, 20_000);
        let var = normal.iter().map(|&v| f64::from(v * v)).sum::<f64>() / 20_000.0;
        assert!((var - 1.0).abs() < 0.05, "{var}");
        let mut order = rng.permutation("order", 5, 1000);
        assert_ne!(order, rng.permutation("order", 6, 1000));
        order.sort_unstable();
        assert!(order.iter().copied().eq(0..1000));
    }
}
