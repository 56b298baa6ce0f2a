//! Standard normal numbers, sixteen streams side by side.
//!
//! ```text
//! w = ChaCha8(key, stream 1)
//! z[2 k]     = sqrt(-2 ln u) cos a
//! z[2 k + 1] = sqrt(-2 ln u) sin a,   u from w[2 k] in (0, 1], a from w[2 k + 1]
//! ```
//!
//! Box & Muller 1958, in f32; |z| is at most 6.7. Neither branches nor tables, so sixteen numbers
//! are made at once, in the lanes where a network wants them. All machines give the same bits.
#![allow(unsafe_code)]

use super::LANES;
use super::elementwise::fold;
use super::plane::Plane;
use super::simd::{Level, each_level};

/// Key of a stream of random numbers.
pub type Key = [u32; 8];

/// Sixteen keys, word by word; lanes without image have key 0.
#[derive(Clone, Debug)]
pub(crate) struct Keys([[u32; LANES]; 8]);

impl Keys {
    /// Of sixteen images at most.
    pub(crate) fn new(keys: &[Key]) -> Self {
        let mut words = [[0; LANES]; 8];
        for (lane, key) in keys.iter().take(LANES).enumerate() {
            for (word, &value) in words.iter_mut().zip(key) {
                word[lane] = value;
            }
        }
        Self(words)
    }
}

/// Words of one block of ChaCha, and values made of them.
const BLOCK: usize = 16;

macro_rules! quarter {
    ($a:ident, $b:ident, $c:ident, $d:ident) => {
        $a = $a.wrapping_add($b);
        $d = ($d ^ $a).rotate_left(16);
        $c = $c.wrapping_add($d);
        $b = ($b ^ $c).rotate_left(12);
        $a = $a.wrapping_add($b);
        $d = ($d ^ $a).rotate_left(8);
        $c = $c.wrapping_add($d);
        $b = ($b ^ $c).rotate_left(7);
    };
}

/// Block `counters[lane]` of the stream of each key (Bernstein 2008, eight rounds, a counter and a
/// stream of 64 bits).
#[inline(always)]
fn words(keys: &Keys, counters: &[u64; LANES], out: &mut [[u32; LANES]; BLOCK]) {
    let Keys(keys) = keys;
    let low: [u32; LANES] = std::array::from_fn(|i| counters[i] as u32);
    let high: [u32; LANES] = std::array::from_fn(|i| (counters[i] >> 32) as u32);
    for i in 0..LANES {
        let (k0, k1, k2, k3) = (
            0x6170_7865u32,
            0x3320_646eu32,
            0x7962_2d32u32,
            0x6b20_6574u32,
        );
        let (mut a0, mut a1, mut a2, mut a3) = (k0, k1, k2, k3);
        let (mut b0, mut b1, mut b2, mut b3) = (keys[0][i], keys[1][i], keys[2][i], keys[3][i]);
        let (mut c0, mut c1, mut c2, mut c3) = (keys[4][i], keys[5][i], keys[6][i], keys[7][i]);
        // Stream 1: stream 0 belongs to the host's generator.
        let (mut d0, mut d1, mut d2, mut d3) = (low[i], high[i], 1u32, 0u32);
        macro_rules! double_round {
            () => {
                quarter!(a0, b0, c0, d0);
                quarter!(a1, b1, c1, d1);
                quarter!(a2, b2, c2, d2);
                quarter!(a3, b3, c3, d3);
                quarter!(a0, b1, c2, d3);
                quarter!(a1, b2, c3, d0);
                quarter!(a2, b3, c0, d1);
                quarter!(a3, b0, c1, d2);
            };
        }
        // Written out: then the loop over lanes is the innermost, and becomes vectors.
        double_round!();
        double_round!();
        double_round!();
        double_round!();
        out[0][i] = a0.wrapping_add(k0);
        out[1][i] = a1.wrapping_add(k1);
        out[2][i] = a2.wrapping_add(k2);
        out[3][i] = a3.wrapping_add(k3);
        out[4][i] = b0.wrapping_add(keys[0][i]);
        out[5][i] = b1.wrapping_add(keys[1][i]);
        out[6][i] = b2.wrapping_add(keys[2][i]);
        out[7][i] = b3.wrapping_add(keys[3][i]);
        out[8][i] = c0.wrapping_add(keys[4][i]);
        out[9][i] = c1.wrapping_add(keys[5][i]);
        out[10][i] = c2.wrapping_add(keys[6][i]);
        out[11][i] = c3.wrapping_add(keys[7][i]);
        out[12][i] = d0.wrapping_add(low[i]);
        out[13][i] = d1.wrapping_add(high[i]);
        out[14][i] = d2.wrapping_add(1);
        out[15][i] = d3;
    }
}

/// `-ln u` of u = (w / 2 + 1/2) 2^-31, the polynomial of the Cephes library's `logf`.
#[inline(always)]
fn minus_log(w: u32) -> f32 {
    let u = ((w >> 1) as i32 as f32 + 0.5) * (1.0 / 2_147_483_648.0);
    let bits = u.to_bits();
    let exponent = (bits >> 23) as i32 - 126;
    let half = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000); // in [1/2, 1)
    let small = half < std::f32::consts::FRAC_1_SQRT_2;
    let e = (if small { exponent - 1 } else { exponent }) as f32;
    let x = if small { half + half } else { half } - 1.0;
    let z = x * x;
    let mut y = 7.037_683_6e-2 * x - 1.151_461e-1;
    y = y * x + 1.167_699_9e-1;
    y = y * x - 1.242_014_1e-1;
    y = y * x + 1.424_932_3e-1;
    y = y * x - 1.666_805_8e-1;
    y = y * x + 2.000_071_5e-1;
    y = y * x - 2.499_999_4e-1;
    y = y * x + 3.333_333e-1;
    let y = y * x * z - 2.121_944_4e-4 * e - 0.5 * z;
    -(x + y + 0.693_359_4 * e)
}

/// Two values from two words.
#[inline(always)]
fn pair(first: u32, second: u32) -> (f32, f32) {
    let r = (minus_log(first) * 2.0).max(0.0).sqrt();
    // A quarter of the circle from two bits, a place in [-pi/4, pi/4) from the others.
    let quarter = second >> 30;
    let place = (second & 0x3fff_ffff) as i32 - 0x2000_0000;
    let f = place as f32 * (std::f32::consts::FRAC_PI_2 / 1_073_741_824.0);
    let z = f * f;
    let sin = ((-1.951_529_6e-4 * z + 8.332_161e-3) * z - 1.666_665_5e-1) * z * f + f;
    let cos = ((2.443_315_7e-5 * z - 1.388_731_6e-3) * z + 4.166_664_6e-2) * z * z - 0.5 * z + 1.0;
    let odd = quarter & 1 == 1;
    let a = if odd { sin } else { cos };
    let b = if odd { cos } else { sin };
    let signed = |v: f32, bit: u32| f32::from_bits(v.to_bits() ^ ((bit & 2) << 30));
    (r * signed(a, quarter + 1), r * signed(b, quarter))
}

/// The sixteen values of a block, for each lane.
#[inline(always)]
fn values(keys: &Keys, counters: &[u64; LANES], out: &mut [[f32; LANES]; BLOCK]) {
    let mut drawn = [[0u32; LANES]; BLOCK];
    words(keys, counters, &mut drawn);
    for k in 0..BLOCK / 2 {
        let (mut even, mut odd) = ([0f32; LANES], [0f32; LANES]);
        for i in 0..LANES {
            (even[i], odd[i]) = pair(drawn[2 * k][i], drawn[2 * k + 1][i]);
        }
        (out[2 * k], out[2 * k + 1]) = (even, odd);
    }
}

each_level! {
    /// [`values`] for the vectors of a level.
    fn blocks(keys: &Keys, counters: &[u64; LANES], out: &mut [[f32; LANES]; BLOCK]) {
        values(keys, counters, out);
    }
}

/// The first values of a key's stream of N(0, 1); a longer draw continues a shorter one.
pub fn normal(key: &Key, out: &mut [f32]) {
    draw(Level::best(), key, out);
}

fn draw(level: Level, key: &Key, out: &mut [f32]) {
    let keys = Keys::new(&[*key; LANES]);
    let mut numbers = [[0f32; LANES]; BLOCK];
    for (part, out) in out.chunks_mut(LANES * BLOCK).enumerate() {
        let counters = std::array::from_fn(|lane| (part * LANES + lane) as u64);
        blocks(level, &keys, &counters, &mut numbers);
        for (lane, out) in out.chunks_mut(BLOCK).enumerate() {
            for (to, from) in out.iter_mut().zip(&numbers) {
                *to = from[lane];
            }
        }
    }
}

each_level! {
    /// `out = x + theta n` on planes of one layout, and maybe its ReLU.
    pub(crate) fn perturb(
        plane: &Plane,
        x: &[f32],
        theta: &[f32],
        keys: &Keys,
        relu: bool,
        out: &mut [f32],
    ) {
        let mut numbers = [[0f32; LANES]; BLOCK];
        let mut at = 0;
        for (_, line) in plane.lines() {
            let to = out[line.clone()].as_chunks_mut::<LANES>().0;
            for (to, x) in to.iter_mut().zip(x[line].as_chunks::<LANES>().0) {
                if at % BLOCK == 0 {
                    values(keys, &[(at / BLOCK) as u64; LANES], &mut numbers);
                }
                let (n, theta) = (&numbers[at % BLOCK], theta[at]);
                for i in 0..LANES {
                    let v = x[i] + theta * n[i];
                    to[i] = if relu && v <= 0.0 { 0.0 } else { v };
                }
                at += 1;
            }
        }
    }
}

each_level! {
    /// The sums of `grad n` over the lanes: this group's gradient by theta.
    pub(crate) fn perturb_sums(plane: &Plane, grad: &[f32], keys: &Keys, sums: &mut [f32]) {
        let mut numbers = [[0f32; LANES]; BLOCK];
        let mut at = 0;
        for (_, line) in plane.lines() {
            for g in grad[line].as_chunks::<LANES>().0 {
                if at % BLOCK == 0 {
                    values(keys, &[(at / BLOCK) as u64; LANES], &mut numbers);
                }
                let n = &numbers[at % BLOCK];
                let products: [f32; LANES] = std::array::from_fn(|i| g[i] * n[i]);
                sums[at] = fold(&products);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_same_bits;

    const KEY: Key = [3, 1, 4, 1, 5, 9, 2, 6];

    #[test]
    fn words_are_those_of_chacha() {
        use rand_chacha::ChaCha8Rng;
        use rand_chacha::rand_core::{RngCore, SeedableRng};
        let keys: Vec<Key> = (0..LANES as u32)
            .map(|i| KEY.map(|w| w ^ (i << 20)))
            .collect();
        let counters = std::array::from_fn(|i| (i as u64) << (2 * i));
        let mut ours = [[0; LANES]; BLOCK];
        words(&Keys::new(&keys), &counters, &mut ours);
        for (lane, key) in keys.iter().enumerate() {
            let bytes: Vec<u8> = key.iter().flat_map(|w| w.to_le_bytes()).collect();
            let mut theirs = ChaCha8Rng::from_seed(bytes.try_into().unwrap());
            theirs.set_stream(1);
            theirs.set_word_pos(u128::from(counters[lane]) * BLOCK as u128);
            for ours in &ours {
                assert_eq!(ours[lane], theirs.next_u32(), "lane {lane}");
            }
        }
    }

    #[test]
    fn values_are_box_and_mullers() {
        let (mut drawn, counters) = ([[0; LANES]; BLOCK], [7; LANES]);
        let keys: Vec<Key> = (0..LANES as u32).map(|i| KEY.map(|w| w + i)).collect();
        let keys = Keys::new(&keys);
        words(&keys, &counters, &mut drawn);
        let mut ours = [[0.0; LANES]; BLOCK];
        values(&keys, &counters, &mut ours);
        let mut cases: Vec<([u32; 2], [f32; 2])> = Vec::new();
        for (drawn, ours) in drawn.chunks(2).zip(ours.chunks(2)) {
            cases
                .extend((0..LANES).map(|i| ([drawn[0][i], drawn[1][i]], [ours[0][i], ours[1][i]])));
        }
        // The ends of the range.
        for first in [0, 1, u32::MAX / 2, u32::MAX - 200, u32::MAX] {
            for second in [0, 1 << 30, (1 << 30) - 1, 3 << 29, u32::MAX] {
                cases.push(([first, second], pair(first, second).into()));
            }
        }
        for ([first, second], ours) in cases {
            let u = ((f64::from(first >> 1)) as f32 + 0.5) as f64 / 2_147_483_648.0;
            let r = (-2.0 * u.ln()).sqrt();
            let turn = f64::from(second) / 4_294_967_296.0 - 0.125;
            let angle = turn * std::f64::consts::TAU;
            for (ours, exact) in ours.iter().zip([r * angle.cos(), r * angle.sin()]) {
                let error = (f64::from(*ours) - exact).abs();
                assert!(error < 2e-6, "{first} {second}: {ours} against {exact}");
            }
        }
    }

    #[test]
    fn moments_and_tails_are_those_of_the_normal_distribution() {
        const N: usize = 1_000_000;
        let mut z = vec![0f32; N];
        normal(&KEY, &mut z);
        let mean =
            |f: &dyn Fn(f64) -> f64| z.iter().map(|&v| f(f64::from(v))).sum::<f64>() / N as f64;
        // Four standard errors of each.
        for (name, value, exact, error) in [
            ("mean", mean(&|v| v), 0.0, 0.004),
            ("variance", mean(&|v| v * v), 1.0, 0.0057),
            ("third", mean(&|v| v.powi(3)), 0.0, 0.0155),
            ("fourth", mean(&|v| v.powi(4)), 3.0, 0.0392),
            (
                "below -1",
                mean(&|v| f64::from(u8::from(v < -1.0))),
                0.158_655,
                0.001_46,
            ),
            (
                "above 3",
                mean(&|v| f64::from(u8::from(v > 3.0))),
                0.001_35,
                0.000_147,
            ),
        ] {
            assert!((value - exact).abs() < error, "{name}: {value}");
        }
        // Neighbours, of a pair and of two, are uncorrelated.
        for first in [0, 1] {
            let pairs = z[first..].chunks_exact(2);
            let sum: f64 = pairs.map(|p| f64::from(p[0]) * f64::from(p[1])).sum();
            assert!((sum / (N / 2) as f64).abs() < 0.0057);
        }
    }

    #[test]
    fn all_instruction_sets_and_lengths_give_the_same_bits() {
        let mut whole = vec![0f32; 700];
        draw(Level::Portable, &KEY, &mut whole);
        for level in Level::available() {
            for n in [1, 15, 256, 257, 700] {
                let mut some = vec![0f32; n];
                draw(level, &KEY, &mut some);
                assert_same_bits(&some, &whole[..n]);
            }
        }
    }
}
