//! Functions of each value, with the derivatives that PyTorch gives them.

use candle_core::{DType, Result as Candle, Tensor};
use theriac::{Result, vjp};

use crate::error::{Said, refuse, require};
use crate::graph::{Builder, Value};
use crate::node::{Node, inner_axis};

/// A function with its derivative, which gets the argument and the value.
fn pointwise(
    b: &mut Builder<'_>,
    node: &Node<'_>,
    value: impl Fn(&Tensor) -> Candle<Tensor> + Send + Sync + 'static,
    slope: impl Fn(&Tensor, &Tensor) -> Candle<Tensor> + Clone + Send + Sync + 'static,
) -> Said<Vec<Value>> {
    let y = b.map(node.input(0)?, move |x| {
        let (x0, slope) = (x.detach(), slope.clone());
        let y = value(&x0)?;
        let y0 = y.clone();
        Ok(vjp(x, y, move |grad| grad * slope(&x0, &y0)?)?)
    })?;
    Ok(vec![y])
}

/// A function whose composition of candle's operations has the right derivative.
fn composed(
    b: &mut Builder<'_>,
    node: &Node<'_>,
    f: impl Fn(&Tensor) -> Candle<Tensor> + Send + Sync + 'static,
) -> Said<Vec<Value>> {
    Ok(vec![b.map(node.input(0)?, move |x| Ok(f(x)?))?])
}

/// 1 where the condition holds, else 0, in the type of `like`.
fn mask(condition: &Tensor, like: &Tensor) -> Candle<Tensor> {
    condition.to_dtype(like.dtype())
}

/// `max(x, 0)`.
pub(super) fn relu(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    Ok(vec![match node.input(0)? {
        Value::Flow(x) if x.is_plain() => {
            let sample = theriac_ops::relu(&x.sample)?;
            b.step(sample, x.folded, |net| net.relu(x.at))?
        }
        x => b.map(x, |x| Ok(theriac_ops::relu(x)?))?,
    }])
}

/// `x` where it is above 0, else `alpha x`.
pub(super) fn leaky_relu(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let alpha = node.float("alpha", 0.01);
    let slope = move |x: &Tensor| mask(&x.gt(0.0)?, x)?.affine(1.0 - alpha, alpha);
    pointwise(b, node, move |x| x * slope(x)?, move |x, _| slope(x))
}

/// [`leaky_relu`] with a constant for each channel.
pub(super) fn prelu(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let alpha = node.weight(1)?.clone();
    let x = node.flow(0)?;
    let wide = alpha.broadcast_as(x.dims());
    require!(
        wide.is_ok(),
        "slopes of shape {:?} for a value of shape {:?}",
        alpha.dims(),
        x.dims()
    );
    let slope = move |x: &Tensor| {
        let ones = x.ones_like()?;
        x.gt(0.0)?.where_cond(&ones, &alpha.broadcast_as(x.dims())?)
    };
    let same = slope.clone();
    pointwise(b, node, move |x| x * slope(x)?, move |x, _| same(x))
}

/// `x` where it is above 0, else `alpha (exp(x) - 1)`.
pub(super) fn elu(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    exponential(b, node, node.float("alpha", 1.0), 1.0)
}

/// `gamma` times [`elu`].
pub(super) fn selu(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let gamma = node.float("gamma", 1.050_701);
    exponential(b, node, node.float("alpha", 1.673_263_2), gamma)
}

fn exponential(b: &mut Builder<'_>, node: &Node<'_>, alpha: f64, gamma: f64) -> Said<Vec<Value>> {
    // The exponential of what is above 0 could overflow.
    let below = |x: &Tensor| x.minimum(0.0)?.exp();
    let value = move |x: &Tensor| {
        let low = (below(x)? - 1.0)?.affine(alpha * gamma, 0.0)?;
        x.gt(0.0)?.where_cond(&(x * gamma)?, &low)
    };
    pointwise(b, node, value, move |x, _| {
        let high = x.ones_like()?.affine(gamma, 0.0)?;
        x.gt(0.0)?
            .where_cond(&high, &(below(x)? * (alpha * gamma))?)
    })
}

/// `min(max(x, low), high)`. Its derivative is 1 on [low, high], as `torch.clamp` has it: an image
/// that is clipped first has many pixels exactly at a bound. Clip(0, 6) is what exporters write for
/// ReLU6, whose derivative at its bounds is 0.
pub(super) fn clip(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let bound = |name: &str, at: usize, none: f32| -> Said<f64> {
        match node.given(at) {
            None => Ok(node.float(name, none)),
            Some(value) => scalar(value),
        }
    };
    let (low, high) = (bound("min", 1, f32::MIN)?, bound("max", 2, f32::MAX)?);
    between(b, node, low, high)
}

fn between(b: &mut Builder<'_>, node: &Node<'_>, low: f64, high: f64) -> Said<Vec<Value>> {
    require!(
        low <= high,
        "its bounds are {low} and {high}; the first must not be larger"
    );
    let open = (low, high) == (0.0, 6.0);
    let value = move |x: &Tensor| x.maximum(low)?.minimum(high);
    pointwise(b, node, value, move |x, _| {
        let inside = match open {
            true => (x.gt(low)? * x.lt(high)?)?,
            false => (x.ge(low)? * x.le(high)?)?,
        };
        mask(&inside, x)
    })
}

/// The larger of a value and a constant: [`clip`] with one bound.
pub(super) fn max(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    one_bound(b, node, |bound| (bound, f64::from(f32::MAX)))
}

/// The smaller of a value and a constant: [`clip`] with one bound.
pub(super) fn min(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    one_bound(b, node, |bound| (f64::from(f32::MIN), bound))
}

fn one_bound(
    b: &mut Builder<'_>,
    node: &Node<'_>,
    bounds: impl Fn(f64) -> (f64, f64),
) -> Said<Vec<Value>> {
    require!(
        node.inputs.len() == 2,
        "it compares {} values; a value with a constant is supported",
        node.inputs.len()
    );
    let (x, bound) = match (node.input(0)?, node.input(1)?) {
        (x @ Value::Flow(_), bound) | (bound, x) => (x, scalar(bound)?),
    };
    let (low, high) = bounds(bound);
    let alone = Node {
        inputs: vec![Some(x.clone())],
        ..*node
    };
    between(b, &alone, low, high)
}

/// A constant of one value.
fn scalar(value: &Value) -> Said<f64> {
    match value {
        Value::Float(c) if c.elem_count() == 1 => {
            Ok(c.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?[0])
        }
        Value::Ints(c) if c.values.len() == 1 => Ok(c.known()?[0] as f64),
        _ => refuse!("it needs a constant of one value"),
    }
}

/// `1 / (1 + exp(-x))`.
pub(super) fn sigmoid(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    pointwise(b, node, logistic, |_, y| y * (1.0 - y)?)
}

fn logistic(x: &Tensor) -> Candle<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// `min(max(alpha x + beta, 0), 1)`, derivative 0 at the bounds.
pub(super) fn hard_sigmoid(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let (alpha, beta) = (node.float("alpha", 0.2), node.float("beta", 0.5));
    let value = move |x: &Tensor| x.affine(alpha, beta)?.maximum(0.0)?.minimum(1.0);
    pointwise(b, node, value, move |x, y| {
        mask(&(y.gt(0.0)? * y.lt(1.0)?)?, x)? * alpha
    })
}

/// `x min(max(x / 6 + 1 / 2, 0), 1)`.
pub(super) fn hard_swish(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let value = |x: &Tensor| x * x.affine(1.0 / 6.0, 0.5)?.maximum(0.0)?.minimum(1.0)?;
    pointwise(b, node, value, |x, _| {
        let bent = x.affine(1.0 / 3.0, 0.5)?;
        let low = x.gt(-3.0)?.where_cond(&bent, &x.zeros_like()?)?;
        x.lt(3.0)?.where_cond(&low, &x.ones_like()?)
    })
}

pub(super) fn tanh(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    pointwise(b, node, Tensor::tanh, |_, y| 1.0 - y.sqr()?)
}

/// `log(1 + exp(x))`.
pub(super) fn softplus(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let value = |x: &Tensor| x.maximum(0.0)? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?;
    pointwise(b, node, value, |x, _| logistic(x))
}

/// Derivative 0 at 0.
pub(super) fn abs(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    pointwise(b, node, Tensor::abs, |x, _| {
        mask(&x.gt(0.0)?, x)? - mask(&x.lt(0.0)?, x)?
    })
}

pub(super) fn erf(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    composed(b, node, Tensor::erf)
}

pub(super) fn exp(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    composed(b, node, Tensor::exp)
}

pub(super) fn log(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    composed(b, node, Tensor::log)
}

pub(super) fn sqrt(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    composed(b, node, Tensor::sqrt)
}

pub(super) fn reciprocal(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    composed(b, node, Tensor::recip)
}

/// `x^e` for a constant e.
pub(super) fn pow(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let e = scalar(node.input(1)?)?;
    composed(b, node, move |x| match e {
        2.0 => x.sqr(),
        _ => x.powf(e),
    })
}

/// `x Phi(x)` with the normal distribution function, or its approximation by tanh.
pub(super) fn gelu(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    let rough = node.text("approximate", "none") == "tanh";
    composed(b, node, move |x| {
        let bend = match rough {
            true => ((x + (x.sqr()? * x)?.affine(0.044_715, 0.0)?)?
                * (2.0 / std::f64::consts::PI).sqrt())?
            .tanh()?,
            false => (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?,
        };
        x * bend.affine(0.5, 0.5)?
    })
}

/// Along an axis; before version 13, along that axis and all after it.
pub(super) fn softmax(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    along(b, node, |x| {
        let e = shifted(x)?.exp()?;
        Ok(e.broadcast_div(&e.sum_keepdim(1)?)?)
    })
}

pub(super) fn log_softmax(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    along(b, node, |x| {
        let z = shifted(x)?;
        Ok(z.broadcast_sub(&z.exp()?.sum_keepdim(1)?.log()?)?)
    })
}

/// Less its maximum, which changes neither result nor derivative.
fn shifted(x: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_sub(&x.detach().max_keepdim(1)?)?)
}

/// Applies a function of (rows, entries, rest) along the entries.
fn along(
    b: &mut Builder<'_>,
    node: &Node<'_>,
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Said<Vec<Value>> {
    let x = node.flow(0)?;
    let old = node.opset < 13;
    let axis = inner_axis(node.int("axis", if old { 1 } else { -1 }), x.dims().len())?;
    let last = if old { x.dims().len() } else { axis + 1 };
    let y = b.map(node.input(0)?, move |x| {
        let dims = x.dims();
        let count = |dims: &[usize]| dims.iter().product::<usize>();
        let [rows, entries, rest] = [&dims[..axis], &dims[axis..last], &dims[last..]].map(count);
        Ok(f(&x.reshape((rows, entries, rest))?)?.reshape(dims)?)
    })?;
    Ok(vec![y])
}
