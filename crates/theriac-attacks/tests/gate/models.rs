//! Models whose best and worst perturbations are known.

use candle_core::{DType, Device, Tensor};
use theriac::{Classifier, Labels, Norm, Pass, Pixels, Result, Rng, Run};

/// `z = W relu(V x + c) + b`, or `z = W x + b` without a hidden layer, on images of any shape.
pub(crate) struct Net {
    hidden: Option<(Tensor, Tensor)>,
    last: (Tensor, Tensor),
    classes: usize,
}

fn matrix(rng: &Rng, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
    let values = rng.normal(name, 0, rows * columns);
    Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?.to_dtype(DType::F64)?)
}

impl Net {
    /// Logits that are linear in the pixels.
    pub(crate) fn linear(pixels: usize, classes: usize, seed: u64) -> Result<Self> {
        let rng = Rng::new(seed);
        let w = matrix(&rng, "w", pixels, classes)?;
        // Balanced around grey, so that every class is met.
        let b = (w.sum_keepdim(0)? * -0.5)?;
        Ok(Self {
            hidden: None,
            last: (w, b),
            classes,
        })
    }

    /// One hidden layer.
    pub(crate) fn relu(pixels: usize, hidden: usize, classes: usize, seed: u64) -> Result<Self> {
        let rng = Rng::new(seed);
        let v = matrix(&rng, "v", pixels, hidden)?;
        let c = ((v.sum_keepdim(0)? * -0.5)? + (matrix(&rng, "c", 1, hidden)? * 0.3)?)?;
        let w = matrix(&rng, "w", hidden, classes)?;
        Ok(Self {
            hidden: Some((v, c)),
            last: (w, matrix(&rng, "b", 1, classes)?.affine(0.1, 0.0)?),
            classes,
        })
    }

    fn rows(t: &Tensor) -> Vec<Vec<f64>> {
        t.to_vec2().unwrap()
    }

    /// Weights and bias of `z_1 - z_0` of a linear model.
    pub(crate) fn plane(&self) -> (Vec<f64>, f64) {
        assert!(
            self.hidden.is_none() && self.classes == 2,
            "linear, two classes"
        );
        let (w, b) = (Self::rows(&self.last.0), Self::rows(&self.last.1));
        (w.iter().map(|w| w[1] - w[0]).collect(), b[0][1] - b[0][0])
    }

    /// `z_1 - z_0` as pieces: the lines where a hidden unit switches, (normal, offset), and the
    /// function itself.
    pub(crate) fn units(&self) -> Vec<([f64; 2], f64)> {
        let (v, c) = self.hidden.as_ref().unwrap();
        let (v, c) = (Self::rows(v), Self::rows(c));
        (0..c[0].len())
            .map(|h| ([v[0][h], v[1][h]], c[0][h]))
            .collect()
    }

    /// The value of `z_1 - z_0`, and its gradient, at a point of the plane.
    pub(crate) fn at(&self, x: [f64; 2]) -> (f64, [f64; 2]) {
        let (w, b) = (Self::rows(&self.last.0), Self::rows(&self.last.1));
        let (mut value, mut slope) = (b[0][1] - b[0][0], [0.0; 2]);
        for (h, (v, c)) in self.units().into_iter().enumerate() {
            let (a, w) = (v[0] * x[0] + v[1] * x[1] + c, w[h][1] - w[h][0]);
            if a > 0.0 {
                value += w * a;
                slope = [slope[0] + w * v[0], slope[1] + w * v[1]];
            }
        }
        (value, slope)
    }
}

impl Classifier for Net {
    fn logits(&self, x: &Pixels, _: &Pass<'_>) -> Result<Tensor> {
        let mut h = x.tensor().flatten_from(1)?;
        let dtype = h.dtype();
        if let Some((v, c)) = &self.hidden {
            let a = h
                .matmul(&v.to_dtype(dtype)?)?
                .broadcast_add(&c.to_dtype(dtype)?)?;
            h = theriac_ops::relu(&a)?;
        }
        let (w, b) = &self.last;
        Ok(h.matmul(&w.to_dtype(dtype)?)?
            .broadcast_add(&b.to_dtype(dtype)?)?)
    }

    fn classes(&self) -> usize {
        self.classes
    }
}

/// The same logits for every image.
pub(crate) struct Constant(pub(crate) Vec<f64>);

impl Classifier for Constant {
    fn logits(&self, x: &Pixels, _: &Pass<'_>) -> Result<Tensor> {
        let row = Tensor::new(self.0.as_slice(), &Device::Cpu)?.to_dtype(x.tensor().dtype())?;
        Ok(row
            .unsqueeze(0)?
            .broadcast_as((x.len(), self.0.len()))?
            .contiguous()?)
    }

    fn classes(&self) -> usize {
        self.0.len()
    }
}

/// Images between `low` and `high` with a model's own labels.
pub(crate) fn images<C: Classifier>(
    model: &C,
    shape: [usize; 4],
    (low, high): (f64, f64),
    dtype: DType,
) -> Result<(Pixels, Labels, Vec<u32>)> {
    let [n, c, h, w] = shape;
    let values = Rng::new(2).uniform("x", 0, n * c * h * w);
    let values: Vec<f64> = values
        .into_iter()
        .map(|u| (low + (high - low) * f64::from(u)).clamp(0.0, 1.0))
        .collect();
    let x = Tensor::from_vec(values, (n, c, h, w), &Device::Cpu)?.to_dtype(dtype)?;
    let x = Pixels::new(x)?;
    let ids: Vec<u32> = (0..n as u32).map(|i| 5 * i + 1).collect();
    let run = Run::new(1, &Device::Cpu);
    let labels = theriac::predict(model, &x, &run.eval(&ids))?;
    Ok((x, labels, ids))
}

/// The distance from an image to the plane `<w, x> + b = 0` inside the cube, by bisection over the
/// level of a move that goes against the function in every coordinate.
pub(crate) fn distance_to_plane(norm: Norm, x: &[f64], w: &[f64], b: f64) -> f64 {
    let value = |x: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + b;
    let downhill = -value(x).signum();
    let moved = |level: f64| -> Vec<f64> {
        let step = |w: f64| match norm {
            Norm::L2 => downhill * level * w,
            _ => downhill * level * if w == 0.0 { 0.0 } else { w.signum() },
        };
        x.iter()
            .zip(w)
            .map(|(x, w)| (x + step(*w)).clamp(0.0, 1.0))
            .collect()
    };
    let (mut low, mut high) = (0.0, 1e3);
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if value(&moved(middle)) * value(x) > 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    let moves = moved(high).into_iter().zip(x).map(|(a, b)| (a - b).abs());
    match norm {
        Norm::L2 => moves.map(|d| d * d).sum::<f64>().sqrt(),
        _ => moves.fold(0.0, f64::max),
    }
}

/// The true distance from a point of the square to where a two-pixel network's `z_1 - z_0` is zero:
/// every pattern of hidden units gives one line, which counts where its pattern holds.
pub(crate) fn distance_by_enumeration(norm: Norm, net: &Net, x: [f64; 2]) -> f64 {
    let units = net.units();
    // Points where the boundary can bend: crossings of unit lines and edges with pieces of the
    // boundary are found by walking each piece's line finely between its ends.
    let mut closest = f64::INFINITY;
    for pattern in 0..1u32 << units.len() {
        let Some((w, b)) = piece(net, pattern) else {
            continue;
        };
        let Some((from, to)) = segment(&units, pattern, w, b) else {
            continue;
        };
        // The nearest point of a segment: a convex problem in one variable.
        let along = |t: f64| {
            [
                from[0] + t * (to[0] - from[0]),
                from[1] + t * (to[1] - from[1]),
            ]
        };
        let far = |t: f64| {
            let p = along(t);
            let (a, b) = ((p[0] - x[0]).abs(), (p[1] - x[1]).abs());
            match norm {
                Norm::L2 => a.hypot(b),
                _ => a.max(b),
            }
        };
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..200 {
            let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
            if far(a) < far(b) {
                high = b;
            } else {
                low = a;
            }
        }
        closest = closest.min(far(f64::midpoint(low, high)));
    }
    closest
}

/// The linear function that `z_1 - z_0` is where exactly the units of a pattern are on.
fn piece(net: &Net, pattern: u32) -> Option<([f64; 2], f64)> {
    let (w, b) = (Net::rows(&net.last.0), Net::rows(&net.last.1));
    let (mut slope, mut offset) = ([0.0; 2], b[0][1] - b[0][0]);
    for (h, (v, c)) in net.units().into_iter().enumerate() {
        if pattern >> h & 1 == 1 {
            let w = w[h][1] - w[h][0];
            slope = [slope[0] + w * v[0], slope[1] + w * v[1]];
            offset += w * c;
        }
    }
    (slope != [0.0; 2]).then_some((slope, offset))
}

/// The part of the line `<w, x> + b = 0` inside the square and the pattern's region.
fn segment(
    units: &[([f64; 2], f64)],
    pattern: u32,
    w: [f64; 2],
    b: f64,
) -> Option<([f64; 2], [f64; 2])> {
    let norm = w[0].hypot(w[1]);
    let origin = [-b * w[0] / (norm * norm), -b * w[1] / (norm * norm)];
    let direction = [-w[1] / norm, w[0] / norm];
    let (mut low, mut high) = (-1e3f64, 1e3f64);
    // Keeps the part where <v, x> + c >= 0.
    let mut cut = |v: [f64; 2], c: f64| {
        let at_origin = v[0] * origin[0] + v[1] * origin[1] + c;
        let slope = v[0] * direction[0] + v[1] * direction[1];
        if slope.abs() < 1e-12 {
            if at_origin < 0.0 {
                low = f64::INFINITY;
            }
        } else if slope > 0.0 {
            low = low.max(-at_origin / slope);
        } else {
            high = high.min(-at_origin / slope);
        }
    };
    for (v, c) in [
        ([1.0, 0.0], 0.0),
        ([0.0, 1.0], 0.0),
        ([-1.0, 0.0], 1.0),
        ([0.0, -1.0], 1.0),
    ] {
        cut(v, c);
    }
    for (h, (v, c)) in units.iter().enumerate() {
        let on = pattern >> h & 1 == 1;
        let side = if on { 1.0 } else { -1.0 };
        cut([side * v[0], side * v[1]], side * c);
    }
    let at = |t: f64| [origin[0] + t * direction[0], origin[1] + t * direction[1]];
    (low <= high).then(|| (at(low), at(high)))
}

/// The largest `side * (z_1 - z_0)` of a two-pixel network in a Linf ball: at a crossing of unit
/// lines and edges of the ball, since the function is linear between them.
pub(crate) fn worst_by_enumeration(net: &Net, x: [f64; 2], eps: f64, side: f64) -> f64 {
    let (low, high) = (
        [0, 1].map(|i| (x[i] - eps).max(0.0)),
        [0, 1].map(|i| (x[i] + eps).min(1.0)),
    );
    let mut lines = net.units();
    for i in 0..2 {
        let mut normal = [0.0; 2];
        normal[i] = 1.0;
        lines.push((normal, -low[i]));
        lines.push((normal, -high[i]));
    }
    let mut worst = f64::NEG_INFINITY;
    for (i, (v, c)) in lines.iter().enumerate() {
        for (u, d) in &lines[..i] {
            let determinant = v[0] * u[1] - v[1] * u[0];
            if determinant.abs() < 1e-12 {
                continue;
            }
            let point = [
                (-c * u[1] + d * v[1]) / determinant,
                (-v[0] * d + u[0] * c) / determinant,
            ];
            let inside = (0..2).all(|i| point[i] >= low[i] - 1e-9 && point[i] <= high[i] + 1e-9);
            if inside {
                worst = worst.max(side * net.at(point).0);
            }
        }
    }
    worst
}
