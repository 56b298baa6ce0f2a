//! A network as a list of steps.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use theriac::{Bank, Classifier, Error, Pass, Pixels, Result};
use theriac_ops::network::{Keys, Network as Tape, Op, Parameters, Step as TapeStep};
use theriac_ops::{PoolConfig, avg_pool2d, max_pool2d, relu};

use crate::Layer;

mod operations;

pub use operations::Operations;

/// A value inside a network: the image, or the result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value(usize);

/// What a layer computes, in terms that a whole network can run as one operation.
#[derive(Clone, Debug)]
pub struct Form {
    /// The computation; `None` for the identity.
    pub op: Option<Op>,
    /// Its parameters, in the order that the computation names.
    pub parameters: Parameters,
    /// Whether the parameters are the stored ones, the same in every pass: then they are arranged
    /// once for a whole attack.
    pub stored: bool,
    /// Of noise: the key of each image in this pass.
    pub keys: Keys,
    /// What is computed of the result.
    pub then: Option<Box<Form>>,
}

impl Form {
    /// A computation with stored parameters.
    pub fn stored(op: Option<Op>, parameters: Parameters) -> Self {
        Self {
            op,
            parameters,
            stored: true,
            keys: None,
            then: None,
        }
    }

    /// This computation, then another.
    pub fn then(mut self, next: Form) -> Self {
        self.then = Some(Box::new(match self.then {
            None => next,
            Some(then) => then.then(next),
        }));
        self
    }

    /// The computations one after the other.
    fn each(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |form| form.then.as_deref())
    }

    fn computes(&self, what: impl Fn(Op) -> bool) -> bool {
        self.each().filter_map(|form| form.op).any(what)
    }
}

enum Kind {
    Layer(Box<dyn Layer>),
    Relu,
    MaxPool(PoolConfig),
    AvgPool(PoolConfig),
    GlobalAvgPool,
    Flatten,
    Add(Value),
    Join(Join, Vec<Value>),
}

/// A function of tensors.
type Join = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

struct Step {
    kind: Kind,
    input: Value,
}

/// A network: steps that each read an earlier value, the last one gives the logits.
///
/// Written once, run in the fastest way there is: on a CPU in f32 every stretch of steps whose
/// layers have a [`Form`] runs as one operation ([`theriac_ops::network`]), all else step by
/// step. Which layers have a form may depend on the pass.
///
/// ```
/// use candle_core::{DType, Device};
/// use theriac_nn::{Conv, Layers, Linear, Network, Params, Plain};
///
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let vb = params.live();
/// let mut net = Network::new(10);
/// let x = net.image();
/// let h = net.layer(x, Plain.conv(&Conv::new(1, 8, 3), vb.pp("conv"))?);
/// let h = net.relu(h);
/// let h = net.flatten(h);
/// net.layer(h, Plain.linear(&Linear::new(8 * 26 * 26, 10), vb.pp("fc"))?);
/// # Ok::<(), theriac::Error>(())
/// ```
pub struct Network {
    steps: Vec<Step>,
    classes: usize,
    /// The stretches met so far; few.
    tapes: Mutex<Vec<(Stretch, Arc<Tape>)>>,
}

/// Shape of the entry, steps, whether the result is flat.
type Geometry = ([usize; 3], Vec<TapeStep>, bool);

/// A stretch by its first step. Another with the same geometry, or the same with another bank, has
/// other parameters, and arranged parameters are kept by tape.
type Stretch = (usize, Bank, Geometry);

/// Steps `first..=last`, which read one earlier value and whose last result alone is read later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    first: usize,
    last: usize,
    /// Whether they run as one operation.
    together: bool,
}

impl Network {
    /// A network without steps, for `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self {
            steps: Vec::new(),
            classes,
            tapes: Mutex::default(),
        }
    }

    /// The same steps for another number of classes: for whoever learns it from the last step.
    pub fn with_classes(self, classes: usize) -> Self {
        Self { classes, ..self }
    }

    /// The image, (N, C, H, W).
    pub fn image(&self) -> Value {
        Value(0)
    }

    /// A layer on a value.
    pub fn layer(&mut self, input: Value, layer: Box<dyn Layer>) -> Value {
        self.push(input, Kind::Layer(layer))
    }

    /// `max(x, 0)`.
    pub fn relu(&mut self, input: Value) -> Value {
        self.push(input, Kind::Relu)
    }

    /// Max pooling.
    pub fn max_pool(&mut self, input: Value, config: PoolConfig) -> Value {
        self.push(input, Kind::MaxPool(config))
    }

    /// Average pooling; padding counts as zeros.
    pub fn avg_pool(&mut self, input: Value, config: PoolConfig) -> Value {
        self.push(input, Kind::AvgPool(config))
    }

    /// The mean over each channel's pixels, (N, C, 1, 1).
    pub fn global_avg_pool(&mut self, input: Value) -> Value {
        self.push(input, Kind::GlobalAvgPool)
    }

    /// (N, C, H, W) as (N, C H W).
    pub fn flatten(&mut self, input: Value) -> Value {
        self.push(input, Kind::Flatten)
    }

    /// The sum of two values of one shape.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.push(a, Kind::Add(b))
    }

    /// A function of one value and maybe of more, for all that has no step of its own. It runs on
    /// its own, so stretches end there; its gradients must be right.
    pub fn join(
        &mut self,
        input: Value,
        more: &[Value],
        f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Value {
        self.push(input, Kind::Join(Box::new(f), more.to_vec()))
    }

    fn push(&mut self, input: Value, kind: Kind) -> Value {
        self.steps.push(Step { kind, input });
        Value(self.steps.len())
    }

    /// The last value for images (N, C, H, W).
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        if !Tape::takes(x) || x.rank() != 4 {
            return self.step_by_step(x, pass);
        }
        let mut values = self.values(x)?;
        let forms = self.forms(pass)?;
        for part in self.parts(&forms) {
            if part.together {
                values[part.last + 1] = Some(self.run(part, &forms, &values, pass)?);
                continue;
            }
            for i in part.first..=part.last {
                values[i + 1] = Some(self.step(i, &values, pass)?);
            }
        }
        last(values)
    }

    /// [`Network::forward`] with every step as an operation of its own, whatever the device:
    /// slower on a CPU, and what the joined steps are measured by.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn step_by_step(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let mut values = self.values(x)?;
        for i in 0..self.steps.len() {
            values[i + 1] = Some(self.step(i, &values, pass)?);
        }
        last(values)
    }

    /// The image, and a place for the result of each step.
    fn values(&self, x: &Tensor) -> Result<Vec<Option<Tensor>>> {
        if self.steps.is_empty() {
            return Err(Error::Empty { what: "network" });
        }
        let mut values = vec![None; self.steps.len() + 1];
        values[0] = Some(x.clone());
        Ok(values)
    }

    /// The result of steps that run as one operation.
    fn run(
        &self,
        part: Part,
        forms: &[Option<Form>],
        values: &[Option<Tensor>],
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let entry = self.steps[part.first].input;
        let x = value(values, entry)?;
        let shape = match *x.dims() {
            [_, c, h, w] => [c, h, w],
            [_, features] => [features, 1, 1],
            _ => [0; 3],
        };
        let mut tape_steps = Vec::new();
        let mut parameters: Vec<Parameters> = Vec::new();
        let mut keys: Vec<Keys> = Vec::new();
        let mut stored = true;
        let mut from = Vec::new();
        // Where each value from `first` on stands on the tape, and whether it is (N, features).
        let mut places = vec![(0, x.rank() == 2)];
        let at = |value: Value| match value == entry {
            true => 0,
            false => value.0 - part.first,
        };
        let steps = self.steps.iter().zip(forms).enumerate();
        for (i, (step, form)) in steps.take(part.last + 1).skip(part.first) {
            let (mut place, mut flat) = places[at(step.input)];
            flat |= matches!(step.kind, Kind::Flatten);
            for form in form.iter().flat_map(Form::each) {
                let Some(op) = form.op else {
                    continue;
                };
                flat |= matches!(op, Op::Linear { .. });
                let op = match step.kind {
                    Kind::Add(other) => Op::Add {
                        other: places[at(other)].0,
                    },
                    _ => op,
                };
                tape_steps.push(TapeStep { op, input: place });
                parameters.push(form.parameters.clone());
                keys.push(form.keys.clone());
                from.push(i);
                stored &= form.stored;
                place = tape_steps.len();
            }
            places.push((place, flat));
        }
        let flat = places[places.len() - 1].1;
        let tape = self.tape((part.first, pass.bank, (shape, tape_steps, flat)))?;
        let tracked = |t: &Option<Tensor>| t.as_ref().is_some_and(Tensor::track_op);
        let backward = x.track_op() || parameters.iter().any(|step| step.iter().any(tracked));
        let prepared = match pass.prepared {
            Some(cache) if stored => {
                cache.get_or(&tape, || tape.prepare_alone(&parameters, true))?
            }
            _ => tape.prepare(&parameters, backward)?,
        };
        let (y, moments) = tape.forward_noisy(&prepared, x, &parameters, &keys)?;
        for (i, moments) in from.into_iter().zip(moments) {
            if let (Kind::Layer(layer), Some(moments)) = (&self.steps[i].kind, moments) {
                layer.observe(&moments, pass)?;
            }
        }
        Ok(y)
    }

    fn tape(&self, stretch: Stretch) -> Result<Arc<Tape>> {
        let mut tapes = self.tapes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tape)) = tapes.iter().find(|(known, _)| *known == stretch) {
            return Ok(tape.clone());
        }
        let (_, _, (shape, steps, flat)) = &stretch;
        let tape = Arc::new(Tape::new(*shape, steps, *flat)?);
        tapes.push((stretch, tape.clone()));
        Ok(tape)
    }

    /// Cuts the steps into stretches that run as one operation and single steps.
    fn parts(&self, forms: &[Option<Form>]) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut first = 0;
        while first < self.steps.len() {
            let last = self.stretch(first, forms);
            let layers = forms[first..=last].iter().flatten();
            let together = layers
                .into_iter()
                .any(|form| form.computes(|op| matches!(op, Op::Conv { .. } | Op::Linear { .. })));
            parts.push(Part {
                first,
                last,
                together,
            });
            first = last + 1;
        }
        parts
    }

    /// Into how many stretches and single steps a pass divides the network.
    #[cfg(test)]
    pub(crate) fn stretches(&self, pass: &Pass<'_>) -> Result<usize> {
        Ok(self.parts(&self.forms(pass)?).len())
    }

    /// The last step of the longest stretch from `first` on.
    fn stretch(&self, first: usize, forms: &[Option<Form>]) -> usize {
        let entry = self.steps[first].input;
        let inside = |value: Value| value == entry || value.0 > first;
        let end = (first..self.steps.len())
            .take_while(|&i| forms[i].is_some() && self.reads(i).all(inside))
            .last();
        let alone = |last: &usize| {
            let later = last + 1..self.steps.len();
            let hidden = first + 1..=*last;
            later
                .flat_map(|i| self.reads(i))
                .all(|value| !hidden.contains(&value.0))
        };
        end.and_then(|end| (first..=end).rev().find(alone))
            .unwrap_or(first)
    }

    /// The values that step i reads.
    fn reads(&self, i: usize) -> impl Iterator<Item = Value> {
        let others = match &self.steps[i].kind {
            Kind::Add(other) => std::slice::from_ref(other),
            Kind::Join(_, more) => more,
            _ => &[],
        };
        [self.steps[i].input]
            .into_iter()
            .chain(others.iter().copied())
    }

    /// The result of step i from earlier values.
    fn step(&self, i: usize, values: &[Option<Tensor>], pass: &Pass<'_>) -> Result<Tensor> {
        let Step { kind, input } = &self.steps[i];
        let x = value(values, *input)?;
        Ok(match kind {
            Kind::Layer(layer) => layer.forward(x, pass)?,
            Kind::Relu => relu(x)?,
            Kind::MaxPool(config) => max_pool2d(x, *config)?,
            Kind::AvgPool(config) => avg_pool2d(x, *config, true)?,
            Kind::GlobalAvgPool => x.mean_keepdim((2, 3))?,
            Kind::Flatten => x.flatten_from(1)?,
            Kind::Add(other) => (x + value(values, *other)?)?,
            Kind::Join(f, more) => {
                let more = more.iter().map(|at| Ok(value(values, *at)?.clone()));
                let all: Result<Vec<Tensor>> = [Ok(x.clone())].into_iter().chain(more).collect();
                f(&all?)?
            }
        })
    }

    /// What each step is on a tape; `None` for those that run on their own.
    fn forms(&self, pass: &Pass<'_>) -> Result<Vec<Option<Form>>> {
        let plain = |op: Option<Op>| Form::stored(op, [const { None }; 4]);
        let window = |config: PoolConfig| (config.kernel, config.stride, config.padding);
        let form = |step: &Step| {
            Ok(Some(match &step.kind {
                Kind::Layer(layer) => return layer.form(pass),
                Kind::Relu => plain(Some(Op::Relu)),
                Kind::MaxPool(config) => {
                    let (kernel, stride, padding) = window(*config);
                    plain(Some(Op::MaxPool {
                        kernel,
                        stride,
                        padding,
                    }))
                }
                Kind::AvgPool(config) => {
                    let (kernel, stride, padding) = window(*config);
                    plain(Some(Op::AvgPool {
                        kernel,
                        stride,
                        padding,
                    }))
                }
                Kind::GlobalAvgPool => plain(Some(Op::GlobalAvgPool)),
                Kind::Flatten => plain(None),
                // `run` fills in where the other value stands.
                Kind::Add(_) => plain(Some(Op::Add { other: 0 })),
                Kind::Join(..) => return Ok(None),
            }))
        };
        let mut forms: Vec<Option<Form>> = self.steps.iter().map(form).collect::<Result<_>>()?;
        // A tape with fixed norms has no gradients of parameters: then norms run on their own.
        let tracked = |t: &Option<Tensor>| t.as_ref().is_some_and(Tensor::track_op);
        let any = |form: &Form| form.parameters.iter().any(tracked);
        if forms.iter().flatten().flat_map(Form::each).any(any) {
            let fixed = |form: &Form| form.computes(|op| matches!(op, Op::Norm { .. }));
            for form in &mut forms {
                if form.as_ref().is_some_and(fixed) {
                    *form = None;
                }
            }
        }
        Ok(forms)
    }
}

impl Classifier for Network {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        self.forward(x.tensor(), pass)
    }

    fn classes(&self) -> usize {
        self.classes
    }
}

fn value(values: &[Option<Tensor>], Value(i): Value) -> Result<&Tensor> {
    // A value inside a part that runs as one operation is read by no one else.
    values[i].as_ref().ok_or_else(|| {
        Error::Other(format!("value {i} of a network is not there: a defect of theriac-nn").into())
    })
}

fn last(mut values: Vec<Option<Tensor>>) -> Result<Tensor> {
    values
        .pop()
        .flatten()
        .ok_or(Error::Empty { what: "network" })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use theriac::{Mode, Run, gradient};

    use super::*;
    use crate::{BatchNorm, Conv, Layers, Linear, Params, Plain, VarBuilder};

    /// Adds a constant: a layer that no tape knows.
    struct Shift;

    impl Layer for Shift {
        fn forward(&self, x: &Tensor, _: &Pass<'_>) -> Result<Tensor> {
            Ok((x + 0.25)?)
        }
    }

    /// A residual block between two convolutions, with something opaque at `opaque`.
    fn network(vb: VarBuilder, opaque: usize) -> Result<Network> {
        let conv = |i, o| Conv::new(i, o, 3).padding(1);
        let mut net = Network::new(3);
        let x = net.image();
        let site = |net: &mut Network, h, place| match place == opaque {
            true => net.layer(h, Box::new(Shift)),
            false => h,
        };
        let h = net.layer(x, Plain.conv(&conv(2, 4), vb.pp("a"))?);
        let h = site(&mut net, h, 1);
        let h = net.relu(h);
        let skip = h;
        let h = net.layer(h, Plain.conv(&conv(4, 4), vb.pp("b"))?);
        let h = net.layer(h, Plain.norm(&BatchNorm::new(4), vb.pp("norm"))?);
        let h = site(&mut net, h, 2);
        let h = net.add(h, skip);
        let h = net.relu(h);
        let h = site(&mut net, h, 3);
        let h = net.max_pool(
            h,
            PoolConfig {
                kernel: 2,
                stride: 2,
                padding: 0,
            },
        );
        let h = net.global_avg_pool(h);
        let h = net.flatten(h);
        net.layer(h, Plain.linear(&Linear::new(4, 3), vb.pp("fc"))?);
        Ok(net)
    }

    fn images(dtype: DType) -> Result<Pixels> {
        let values: Vec<f32> = (0..5 * 2 * 36).map(|i| (i % 17) as f32 / 17.0).collect();
        let x = Tensor::from_vec(values, (5, 2, 6, 6), &Device::Cpu)?;
        Pixels::new(x.to_dtype(dtype)?)
    }

    /// Logits, gradient by the images and by the parameters, as f64.
    fn results(dtype: DType, opaque: usize, mode: Mode, frozen: bool) -> Result<Vec<Vec<f64>>> {
        let params = Params::new(3, dtype, &Device::Cpu);
        let vb = if frozen {
            params.frozen()
        } else {
            params.live()
        };
        let net = network(vb, opaque)?;
        let (x, run, ids) = (images(dtype)?, Run::new(0, &Device::Cpu), [0, 1, 2, 3, 4]);
        let pass = Pass {
            mode,
            ..run.eval(&ids)
        };
        let logits = net.logits(&x, &pass)?;
        let (_, by_image) = gradient(&x, &pass, |x| Ok(net.logits(x, &pass)?.sqr()?.sum(1)?))?;
        let mut all = vec![logits.clone(), by_image];
        let grads = logits.sqr()?.sum_all()?.backward()?;
        for (path, var) in params.trainable() {
            match grads.get(&var) {
                Some(grad) => all.push(grad.clone()),
                None => assert!(frozen, "{path} has no gradient"),
            }
        }
        let flat = |t: &Tensor| t.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
        Ok(all.iter().map(flat).collect::<candle_core::Result<_>>()?)
    }

    #[test]
    fn stretches_give_what_single_steps_give() -> Result<()> {
        for opaque in 0..4 {
            for (mode, frozen) in [
                (Mode::Eval, true),
                (Mode::Eval, false),
                (Mode::Train, false),
            ] {
                // In f64 every step runs on its own.
                let expected = results(DType::F64, opaque, mode, frozen)?;
                let actual = results(DType::F32, opaque, mode, frozen)?;
                assert_eq!(actual.len(), expected.len());
                for (actual, expected) in actual.iter().zip(&expected) {
                    // A bias in front of a norm over the batch has gradient 0, and in f32 the noise
                    // of a sum over the batch.
                    let floor = if mode == Mode::Train { 2.0 } else { 0.5f64 };
                    let scale = expected.iter().fold(floor, |m, v| m.max(v.abs()));
                    for (a, e) in actual.iter().zip(expected) {
                        let case = (opaque, mode, frozen);
                        assert!((a - e).abs() <= 2e-5 * scale, "{case:?}: {a} against {e}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn finds_the_stretches() -> Result<()> {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let run = Run::new(0, &Device::Cpu);
        let parts = |opaque, vb, mode| -> Result<Vec<(usize, usize, bool)>> {
            let net = network(vb, opaque)?;
            let pass = Pass {
                mode,
                ..run.eval(&[])
            };
            let parts = net.parts(&net.forms(&pass)?);
            Ok(parts
                .iter()
                .map(|p| (p.first, p.last, p.together))
                .collect())
        };
        // Frozen, evaluation: all of it.
        assert_eq!(parts(0, params.frozen(), Mode::Eval)?, [(0, 9, true)]);
        // So is training; but a norm with fixed statistics has no gradients of parameters, and the
        // skip connection is read behind it, so no stretch may swallow that.
        assert_eq!(parts(0, params.live(), Mode::Train)?, [(0, 9, true)]);
        assert_eq!(
            parts(0, params.live(), Mode::Eval)?,
            [
                (0, 1, true),
                (2, 2, true),
                (3, 3, false),
                (4, 4, false),
                (5, 9, true)
            ]
        );
        assert_eq!(
            parts(3, params.frozen(), Mode::Eval)?,
            [(0, 5, true), (6, 6, false), (7, 10, true)]
        );
        Ok(())
    }

    /// `relu(a(x)) b(relu(a(x)))` between two stretches.
    fn joined(vb: VarBuilder) -> Result<Network> {
        let mut net = Network::new(0);
        let conv = |i, o| Conv::new(i, o, 3).padding(1);
        let h = net.layer(net.image(), Plain.conv(&conv(2, 4), vb.pp("a"))?);
        let h = net.relu(h);
        let g = net.layer(h, Plain.conv(&conv(4, 4), vb.pp("b"))?);
        let h = net.join(h, &[g], |v| Ok((&v[0] * &v[1])?));
        let h = net.flatten(h);
        net.layer(h, Plain.linear(&Linear::new(144, 3), vb.pp("fc"))?);
        Ok(net.with_classes(3))
    }

    #[test]
    fn a_join_runs_between_stretches_with_its_gradients() -> Result<()> {
        let (run, ids) = (Run::new(0, &Device::Cpu), [0, 1, 2, 3, 4]);
        let pass = run.eval(&ids);
        let values = |dtype| -> Result<Vec<f64>> {
            let net = joined(Params::new(0, dtype, &Device::Cpu).frozen())?;
            assert_eq!(net.classes(), 3);
            let square = |x: &Pixels| Ok(net.logits(x, &pass)?.sqr()?.sum(1)?);
            let (value, slopes) = gradient(&images(dtype)?, &pass, square)?;
            let flat = |t: &Tensor| t.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
            Ok([flat(&value)?, flat(&slopes)?].concat())
        };
        let net = joined(Params::new(0, DType::F32, &Device::Cpu).frozen())?;
        let parts = net.parts(&net.forms(&pass)?);
        let parts: Vec<_> = parts
            .iter()
            .map(|p| (p.first, p.last, p.together))
            .collect();
        assert_eq!(
            parts,
            [(0, 1, true), (2, 2, true), (3, 3, false), (4, 5, true)]
        );
        // In f64 every step runs on its own.
        for (a, e) in values(DType::F32)?.iter().zip(values(DType::F64)?) {
            assert!((a - e).abs() < 1e-5, "{a} against {e}");
        }
        Ok(())
    }

    /// Of stretches with the same geometry each has its own.
    #[test]
    fn arranged_parameters_are_kept_by_stretch() -> Result<()> {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let mut net = Network::new(2 * 36);
        let mut h = net.image();
        for at in ["a", "b", "c"] {
            let conv = Conv::new(2, 2, 3).padding(1);
            h = net.layer(h, Plain.conv(&conv, params.frozen().pp(at))?);
            h = net.join(h, &[], |v| Ok(v[0].tanh()?));
        }
        net.flatten(h);
        theriac::contract::prepared(&net, &images(DType::F32)?)
    }

    #[test]
    fn an_empty_network_is_refused() -> Result<()> {
        let run = Run::new(0, &Device::Cpu);
        let (net, x) = (Network::new(3), images(DType::F32)?);
        assert!(net.logits(&x, &run.eval(&[0; 5])).is_err());
        assert!(net.step_by_step(x.tensor(), &run.eval(&[0; 5])).is_err());
        Ok(())
    }
}
