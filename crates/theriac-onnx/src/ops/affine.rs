//! Sums and products: with constants, and of values.

use candle_core::{DType, Tensor};
use theriac::{Pass, Result, vjp};
use theriac_nn::{Form, Layer};
use theriac_ops::batch_norm_eval;
use theriac_ops::network::{Op, Parameters};

use crate::constant::{Ints, room};
use crate::error::{Said, refuse, require};
use crate::graph::{Builder, Flow, Value};
use crate::node::Node;

/// `scale x + shift` over each channel of (N, C, H, W) or each feature of (N, F), written as the
/// batch norm that networks run: mean 0, and a variance that with [`EPS`] makes 1.
struct Channels([Tensor; 4]);

/// A batch norm needs one above 0.
const EPS: f64 = 0.5;

impl Channels {
    fn new(scale: &Tensor, shift: &Tensor) -> Result<Self> {
        let zero = scale.zeros_like()?;
        let half = (&zero + 0.5)?;
        Ok(Self([scale.clone(), shift.clone(), zero, half]))
    }
}

impl Layer for Channels {
    fn forward(&self, x: &Tensor, _: &Pass<'_>) -> Result<Tensor> {
        let [scale, shift, mean, var] = &self.0;
        match x.rank() {
            4 => Ok(batch_norm_eval(x, scale, shift, mean, var, EPS)?),
            _ => affine(x, Some(scale), Some(shift)),
        }
    }

    fn form(&self, _: &Pass<'_>) -> Result<Option<Form>> {
        let parameters: Parameters = self.0.clone().map(Some);
        Ok(Some(Form::stored(Some(Op::Norm { eps: EPS }), parameters)))
    }
}

/// `scale x + shift`, constants broadcast; nothing is computed for their gradients.
pub(super) fn affine(x: &Tensor, scale: Option<&Tensor>, shift: Option<&Tensor>) -> Result<Tensor> {
    let mut y = x.detach();
    if let Some(scale) = scale {
        y = y.broadcast_mul(scale)?;
    }
    if let Some(shift) = shift {
        y = y.broadcast_add(shift)?;
    }
    let (dims, scale) = (x.dims().to_vec(), scale.cloned());
    Ok(vjp(x, y, move |grad| {
        let grad = match &scale {
            Some(scale) => grad.broadcast_mul(scale)?,
            None => grad.clone(),
        };
        // What was broadcast to is summed.
        let wider = |axis: &usize| dims[*axis] != grad.dims()[*axis];
        let wide: Vec<usize> = (0..dims.len()).filter(wider).collect();
        match wide[..] {
            [] => Ok(grad),
            _ => grad.sum_keepdim(wide),
        }
    })?)
}

/// A constant with the rank of a value, or none if it has more dimensions than that.
fn aligned(constant: &Tensor, rank: usize) -> Said<Tensor> {
    let dims = constant.dims();
    let extra = dims.len().saturating_sub(rank);
    require!(
        dims[..extra].iter().all(|d| *d == 1),
        "a constant of shape {dims:?} with a value of {rank} dimensions; it may have no more \
         dimensions than the value"
    );
    let mut shape = vec![1; rank.saturating_sub(dims.len())];
    shape.extend(&dims[extra..]);
    require!(
        shape.first() == Some(&1),
        "a constant of shape {dims:?} differs between the images of a batch; it must be the same \
         for all: export with a batch of 1"
    );
    Ok(constant.reshape(shape)?)
}

/// The dimensions of two values together, as numpy broadcasts them.
fn together(a: &[usize], b: &[usize]) -> Said<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], axis: usize| match (axis + dims.len()).checked_sub(rank) {
        Some(axis) => dims[axis],
        None => 1,
    };
    let mut dims = Vec::with_capacity(rank);
    for axis in 0..rank {
        dims.push(match (at(a, axis), at(b, axis)) {
            (a, b) if a == b => a,
            (1, d) | (d, 1) => d,
            _ => refuse!("shapes {a:?} and {b:?} do not fit together"),
        });
    }
    room(&dims)?;
    Ok(dims)
}

/// `scale x + shift` with constants of any shape that broadcasts.
fn with_constants(
    b: &mut Builder<'_>,
    x: &Flow,
    scale: Option<&Tensor>,
    shift: Option<&Tensor>,
) -> Said<Value> {
    let rank = x.dims().len();
    let scale = scale.map(|c| aligned(c, rank)).transpose()?;
    let shift = shift.map(|c| aligned(c, rank)).transpose()?;
    let channels = x.dims().get(1).copied().unwrap_or(1);
    let each = |c: &Option<Tensor>| {
        let fits = |(axis, d): (usize, &usize)| *d == 1 || axis == 1 && *d == channels;
        c.as_ref()
            .is_none_or(|c| c.dims().iter().enumerate().all(fits))
    };
    if x.is_plain() && !x.folded && each(&scale) && each(&shift) {
        let vector = |c: Option<Tensor>, default: f64| -> Said<Tensor> {
            let default = Tensor::full(default, 1, &b.place.device)?.to_dtype(b.place.dtype)?;
            let c = c.unwrap_or(default).flatten_all()?;
            Ok(c.broadcast_as(channels)?.contiguous()?)
        };
        let layer = Channels::new(&vector(scale, 1.0)?, &vector(shift, 0.0)?)?;
        return b.layer(x, layer);
    }
    for constant in [&scale, &shift].into_iter().flatten() {
        together(x.dims(), constant.dims())?;
    }
    let x = Value::Flow(x.clone());
    b.map(&x, move |x| affine(x, scale.as_ref(), shift.as_ref()))
}

/// The four operations.
#[derive(Clone, Copy, PartialEq)]
enum Binary {
    Add,
    Sub,
    Mul,
    Div,
}

pub(super) fn add(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    two(b, node, Binary::Add)
}

pub(super) fn sub(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    two(b, node, Binary::Sub)
}

pub(super) fn mul(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    two(b, node, Binary::Mul)
}

pub(super) fn div(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    two(b, node, Binary::Div)
}

pub(super) fn neg(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    Ok(vec![match node.input(0)? {
        Value::Flow(x) => {
            let minus = Tensor::full(-1.0, 1, &b.place.device)?.to_dtype(b.place.dtype)?;
            with_constants(b, x, Some(&minus), None)?
        }
        x => b.map(x, |x| Ok(x.neg()?))?,
    }])
}

fn two(b: &mut Builder<'_>, node: &Node<'_>, op: Binary) -> Said<Vec<Value>> {
    let (x, y) = (node.input(0)?, node.input(1)?);
    Ok(vec![combine(b, x, y, op)?])
}

/// The sum of two values.
pub(super) fn sum_of(b: &mut Builder<'_>, x: &Value, y: &Value) -> Said<Value> {
    combine(b, x, y, Binary::Add)
}

fn combine(b: &mut Builder<'_>, x: &Value, y: &Value, op: Binary) -> Said<Value> {
    match (x, y, op) {
        (Value::Ints(x), Value::Ints(y), _) => Ok(Value::Ints(of_ints(x, y, op)?)),
        (Value::Flow(x), Value::Float(c), Binary::Add)
        | (Value::Float(c), Value::Flow(x), Binary::Add) => with_constants(b, x, None, Some(c)),
        (Value::Flow(x), Value::Float(c), Binary::Mul)
        | (Value::Float(c), Value::Flow(x), Binary::Mul) => with_constants(b, x, Some(c), None),
        (Value::Flow(x), Value::Float(c), Binary::Sub) => {
            with_constants(b, x, None, Some(&c.neg()?))
        }
        (Value::Flow(x), Value::Float(c), Binary::Div) => {
            with_constants(b, x, Some(&c.recip()?), None)
        }
        (Value::Float(c), Value::Flow(x), Binary::Sub) => {
            let minus = Tensor::full(-1.0, 1, &b.place.device)?.to_dtype(b.place.dtype)?;
            with_constants(b, x, Some(&minus), Some(c))
        }
        (Value::Float(c), Value::Flow(_), Binary::Div) => {
            let inverse = b.map(y, |y| Ok(y.recip()?))?;
            combine(b, &Value::Float(c.clone()), &inverse, Binary::Mul)
        }
        (Value::Flow(v), Value::Flow(w), _) => {
            require!(
                v.dims().len() == w.dims().len(),
                "values of shapes {:?} and {:?} for one image; they must have as many dimensions",
                v.dims(),
                w.dims()
            );
            together(v.dims(), w.dims())?;
            let alike = v.dims() == w.dims() && v.is_plain() && !v.folded && !w.folded;
            if alike && op == Binary::Add {
                let sample = (&v.sample + &w.sample)?;
                return b.step(sample, false, |net| net.add(v.at, w.at));
            }
            b.join(&[x, y], move |v| values(&v[0], &v[1], op))
        }
        (Value::Float(v), Value::Float(w), _) => {
            together(v.dims(), w.dims())?;
            b.join(&[x, y], move |v| values(&v[0], &v[1], op))
        }
        _ => refuse!("it computes with whole numbers and floats together; cast one of them"),
    }
}

fn values(x: &Tensor, y: &Tensor, op: Binary) -> Result<Tensor> {
    Ok(match op {
        Binary::Add => x.broadcast_add(y)?,
        Binary::Sub => x.broadcast_sub(y)?,
        Binary::Mul => x.broadcast_mul(y)?,
        Binary::Div => x.broadcast_div(y)?,
    })
}

/// Arithmetic on shapes.
fn of_ints(x: &Ints, y: &Ints, op: Binary) -> Said<Ints> {
    let (a, c) = (x.known()?, y.known()?);
    let len = match (a.len(), c.len()) {
        (n, m) if n == m => n,
        (1, n) | (n, 1) => n,
        (n, m) => refuse!("{n} and {m} whole numbers do not fit together"),
    };
    let one = |i: usize| {
        let (a, c) = (a[i % a.len()], c[i % c.len()]);
        match op {
            Binary::Add => a.checked_add(c),
            Binary::Sub => a.checked_sub(c),
            Binary::Mul => a.checked_mul(c),
            Binary::Div => a.checked_div(c),
        }
    };
    let values: Option<Vec<i64>> = (0..len).map(one).collect();
    let Some(values) = values else {
        refuse!("whole numbers too large, or a division by 0: {a:?} and {c:?}");
    };
    let dims = if x.dims.len() >= y.dims.len() {
        &x.dims
    } else {
        &y.dims
    };
    let dims = if dims.iter().product::<usize>() == len {
        dims.clone()
    } else {
        vec![len]
    };
    let values = values.into_iter().map(Some).collect();
    Ok(Ints { dims, values })
}

/// `scale (x - mean) / sqrt(var + eps) + bias` over each channel: as `a x + b`, in f64.
pub(super) fn batch_normalization(b: &mut Builder<'_>, node: &Node<'_>) -> Said<Vec<Value>> {
    require!(
        node.int("training_mode", 0) == 0 && node.int("spatial", 1) == 1,
        "it normalises by the batch, or by pixel; export the model in evaluation mode"
    );
    let x = node.flow(0)?;
    let channels = x.dims().get(1).copied().unwrap_or_default();
    let wide = |at: usize| -> Said<Tensor> {
        let vector = node.weight(at)?;
        require!(
            vector.dims() == [channels],
            "input {at} has shape {:?} for {channels} channels",
            vector.dims()
        );
        Ok(vector.to_dtype(DType::F64)?)
    };
    let (gamma, beta, mean, var) = (wide(1)?, wide(2)?, wide(3)?, wide(4)?);
    let scale = (gamma / (var + node.float("epsilon", 1e-5))?.sqrt()?)?;
    let shift = (beta - (mean * &scale)?)?;
    let mut shape = vec![1; x.dims().len()];
    shape[1] = channels;
    let narrow =
        |c: Tensor| -> Said<Tensor> { Ok(c.to_dtype(b.place.dtype)?.reshape(&shape[..])?) };
    let (scale, shift) = (narrow(scale)?, narrow(shift)?);
    Ok(vec![with_constants(b, x, Some(&scale), Some(&shift))?])
}
