//! Whole networks as one operation.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;

use candle_core::{DType, Result, Tensor, bail};
use theriac_kernels::network as kernels;

use crate::cpu::View;
use crate::graph::Node;

pub use kernels::{Op, Step};
pub use theriac_kernels::Key;

/// The parameters of a step, in the order that its [`Op`] names; `None` for those it has not.
pub type Parameters = [Option<Tensor>; 4];

/// Of a step with noise ([`Op::Noise`]): a key for each image.
pub type Keys = Option<Arc<Vec<Key>>>;

/// A network of fixed geometry as one operation, differentiable in the images and in the
/// parameters of convolutions and fully connected layers. CPU, f32.
///
/// The layers run one after the other on sixteen images at a time, which stay in a core's cache;
/// groups of sixteen run in parallel. Against a graph of single operations this saves the copies,
/// allocations and sums of gradients between them.
#[derive(Debug)]
pub struct Network {
    network: Arc<kernels::Network>,
    image: [usize; 3],
    flat: bool,
    id: u64,
}

/// Parameters arranged for the kernels, once for many passes.
#[derive(Clone, Debug)]
pub struct Prepared(Arc<kernels::Prepared>);

/// What a norm over the batch found, for its running statistics: tensors (C) without gradient.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Mean of each channel.
    pub mean: Tensor,
    /// Unbiased variance of each channel, which PyTorch's running averages take.
    pub var: Tensor,
}

impl Moments {
    fn new(count: usize, statistics: &theriac_kernels::Statistics) -> Result<Self> {
        let vector = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            let len = values.len();
            Tensor::from_vec(values, len, &candle_core::Device::Cpu)
        };
        Ok(Self {
            mean: vector(&statistics.mean)?,
            var: vector(&statistics.unbiased_var(count))?,
        })
    }
}

/// Arranged parameters of the networks that were run with it.
///
/// For work during which no parameter changes, an attack above all: nobody notices if one does.
#[derive(Debug, Default)]
pub struct PreparedCache(Mutex<HashMap<u64, Prepared>>);

impl PreparedCache {
    /// The arranged parameters of a network; `make` runs if they are not there yet.
    ///
    /// # Errors
    ///
    /// Those of `make`.
    pub fn get_or(
        &self,
        network: &Network,
        make: impl FnOnce() -> Result<Prepared>,
    ) -> Result<Prepared> {
        // Held while arranging, so that parallel tasks wait instead of doing it all at once. What
        // arranges must not start tasks of its own: this thread might get one that waits here.
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prepared) = cache.get(&network.id) {
            return Ok(prepared.clone());
        }
        let prepared = make()?;
        cache.insert(network.id, prepared.clone());
        Ok(prepared)
    }
}

/// Gradients of one backward pass that wait for the nodes of their parameters.
type Waiting = Mutex<HashMap<ThreadId, kernels::Gradients>>;

/// One forward pass and what its backward passes need.
struct Call {
    network: Arc<kernels::Network>,
    prepared: Arc<kernels::Prepared>,
    trace: kernels::Trace,
    want: kernels::Want,
    waiting: Waiting,
}

impl Call {
    fn backward(&self, grad: &Tensor) -> Result<kernels::Gradients> {
        let grad = View::new(grad)?;
        self.network
            .backward(&self.prepared, &self.trace, grad.slice()?, &self.want)
            .map_err(candle_core::Error::wrap)
    }
}

impl Network {
    /// Checks the steps for images of shape (C, H, W). The result is (N, outputs) if `flat`, else
    /// (N, C, H, W).
    ///
    /// # Errors
    ///
    /// If a step reads a value that is not there, or shapes do not fit.
    pub fn new(image: [usize; 3], steps: &[Step], flat: bool) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let network = kernels::Network::new(image, steps).map_err(candle_core::Error::wrap)?;
        Ok(Self {
            network: Arc::new(network),
            image,
            flat,
            id: COUNT.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Whether networks run on this tensor.
    pub fn takes(x: &Tensor) -> bool {
        x.device().is_cpu() && x.dtype() == DType::F32
    }

    /// Whether the gradients of all parameters are available: those of a norm, and of the layer
    /// before it, are not.
    pub fn has_parameter_gradients(&self) -> bool {
        self.network.has_parameter_gradients()
    }

    /// Arranges parameters for forward passes and, on request, backward passes.
    ///
    /// # Errors
    ///
    /// If a parameter is missing, has the wrong size or is not f32 on the CPU.
    pub fn prepare(&self, parameters: &[Parameters], backward: bool) -> Result<Prepared> {
        self.arrange(parameters, |slices| self.network.prepare(slices, backward))
    }

    /// [`Self::prepare`] on the calling thread, which passes with the result do not leave either:
    /// for tasks that run beside each other on parts of a batch.
    ///
    /// # Errors
    ///
    /// Those of [`Self::prepare`].
    pub fn prepare_alone(&self, parameters: &[Parameters], backward: bool) -> Result<Prepared> {
        self.arrange(parameters, |slices| {
            self.network.prepare_alone(slices, backward)
        })
    }

    fn arrange(
        &self,
        parameters: &[Parameters],
        prepare: impl FnOnce(
            &[kernels::Parameters<'_>],
        ) -> std::result::Result<kernels::Prepared, theriac_kernels::Error>,
    ) -> Result<Prepared> {
        let whole: Vec<[Option<Tensor>; 4]> = parameters
            .iter()
            .map(|step| each(step, |t| t.contiguous()))
            .collect::<Result<_>>()?;
        let views: Vec<[Option<View<'_>>; 4]> = whole
            .iter()
            .map(|step| each(step, View::new))
            .collect::<Result<_>>()?;
        let slices: Vec<[Option<&[f32]>; 4]> = views
            .iter()
            .map(|step| each(step, View::slice))
            .collect::<Result<_>>()?;
        let prepared = prepare(&slices).map_err(candle_core::Error::wrap)?;
        Ok(Prepared(Arc::new(prepared)))
    }

    /// The result for images (N, C, H, W), or (N, C H W), and the statistics of each norm over the
    /// batch.
    ///
    /// `prepared` must come from the same parameters; gradients flow to those that are tracked.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, or a gradient is asked for that the network does not have.
    pub fn forward(
        &self,
        prepared: &Prepared,
        x: &Tensor,
        parameters: &[Parameters],
    ) -> Result<(Tensor, Vec<Option<Moments>>)> {
        self.forward_noisy(prepared, x, parameters, &[])
    }

    /// [`Self::forward`] of a network with noise: `keys` has an entry for each step.
    ///
    /// # Errors
    ///
    /// Those of [`Self::forward`]; if a step with noise lacks a key.
    pub fn forward_noisy(
        &self,
        prepared: &Prepared,
        x: &Tensor,
        parameters: &[Parameters],
        keys: &[Keys],
    ) -> Result<(Tensor, Vec<Option<Moments>>)> {
        let [c, h, w] = self.image;
        let n = match *x.dims() {
            [n, a, b, d] if n > 0 && [a, b, d] == self.image => n,
            [n, pixels] if n > 0 && pixels == c * h * w => n,
            _ => bail!(
                "network: the images have shape {:?}; pass at least one of {:?}",
                x.dims(),
                self.image
            ),
        };
        let x = x.contiguous()?;
        let tracked = |t: &Option<Tensor>| t.as_ref().is_some_and(Tensor::track_op);
        let want = kernels::Want {
            images: x.track_op(),
            parameters: parameters
                .iter()
                .map(|step| step.iter().any(tracked))
                .collect(),
        };
        let any = want.parameters.contains(&true);
        if any && !self.has_parameter_gradients() {
            bail!("network: a norm with fixed statistics has no gradients of parameters here");
        }
        let kernels::Output {
            values: out,
            trace,
            statistics,
        } = {
            let (images, keep) = (View::new(&x)?, want.images || any);
            let keys: Vec<Option<&[Key]>> =
                keys.iter().map(|k| k.as_deref().map(|k| &k[..])).collect();
            self.network
                .forward_noisy(&prepared.0, images.slice()?, &keys, keep)
                .map_err(candle_core::Error::wrap)?
        };
        let moments = statistics
            .into_iter()
            .map(|found| found.map(|(count, s)| Moments::new(count, &s)).transpose())
            .collect::<Result<_>>()?;
        let [c, h, w] = self.network.output();
        let shape = if self.flat {
            vec![n, c * h * w]
        } else {
            vec![n, c, h, w]
        };
        let Some(trace) = trace else {
            return Ok((Tensor::from_vec(out, shape, x.device())?, moments));
        };
        let call = Arc::new(Call {
            network: self.network.clone(),
            prepared: prepared.0.clone(),
            trace,
            want,
            waiting: Mutex::default(),
        });
        if !any {
            let name = "network";
            let node = Node::from_vec(name, shape, out, move |[x], grad| {
                Ok([images(&mut call.backward(grad)?, x)?])
            });
            return Ok((x.apply_op1(node)?, moments));
        }
        Ok((with_parameters(&call, &x, parameters, out, shape)?, moments))
    }
}

/// candle's operations take three tensors at most. So the value passes through a chain of nodes,
/// one for each step with parameters: the last one, where a backward pass arrives first, computes
/// all gradients, and the others hand out what waits for them.
fn with_parameters(
    call: &Arc<Call>,
    x: &Tensor,
    parameters: &[Parameters],
    out: Vec<f32>,
    shape: Vec<usize>,
) -> Result<Tensor> {
    let steps: Vec<usize> = (0..parameters.len())
        .filter(|&i| call.want.parameters[i])
        .collect();
    let mut y = if call.want.images {
        let call = call.clone();
        let node = Node::from_vec("network", &shape[..], out.clone(), move |[x], _| {
            let mut gradients = call.take()?;
            Ok([images(&mut gradients, x)?])
        });
        x.apply_op1(node)?
    } else {
        Tensor::from_vec(out.clone(), &shape[..], x.device())?
    };
    let last = steps.last().copied();
    for (order, &i) in steps.iter().enumerate() {
        let (is_first, is_last) = (order == 0, Some(i) == last);
        let call = call.clone();
        // What each node of the chain does: returns the gradients of weight and bias.
        let hand_out = move |grad: &Tensor, weight: &Tensor, bias: Option<&Tensor>| {
            let mut gradients = if is_last {
                call.backward(grad)?
            } else {
                call.take()?
            };
            let [w, b] = &mut gradients.parameters[i];
            let (w, b) = (w.take(), b.take());
            if !is_first || call.want.images {
                call.leave(gradients);
            }
            let tensor = |values: Option<Vec<f32>>, like: &Tensor| match values {
                Some(values) if like.track_op() => {
                    Tensor::from_vec(values, like.shape(), like.device()).map(Some)
                }
                _ => Ok(None),
            };
            let b = bias.map(|bias| tensor(b, bias)).transpose()?.flatten();
            Ok::<_, candle_core::Error>((tensor(w, weight)?, b))
        };
        let [weight, bias, ..] = &parameters[i];
        let (Some(weight), value) = (weight, out.clone()) else {
            bail!("network: step {i} has no weight");
        };
        y = match bias {
            Some(bias) => {
                let backward = move |[y, weight, bias]: [&Tensor; 3], grad: &Tensor| {
                    let (w, b) = hand_out(grad, weight, Some(bias))?;
                    Ok([y.track_op().then(|| grad.clone()), w, b])
                };
                let node = Node::from_vec("network", &shape[..], value, backward);
                y.apply_op3(weight, bias, node)?
            }
            None => {
                let backward = move |[y, weight]: [&Tensor; 2], grad: &Tensor| {
                    let (w, _) = hand_out(grad, weight, None)?;
                    Ok([y.track_op().then(|| grad.clone()), w])
                };
                let node = Node::from_vec("network", &shape[..], value, backward);
                y.apply_op2(weight, node)?
            }
        };
    }
    Ok(y)
}

impl Call {
    /// What the last node computed in this thread's backward pass.
    fn take(&self) -> Result<kernels::Gradients> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.remove(&std::thread::current().id()) {
            Some(gradients) => Ok(gradients),
            None => bail!("network: no gradients wait; this is a defect of theriac-ops"),
        }
    }

    fn leave(&self, gradients: kernels::Gradients) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(std::thread::current().id(), gradients);
    }
}

fn images(gradients: &mut kernels::Gradients, x: &Tensor) -> Result<Option<Tensor>> {
    let images = gradients.images.take();
    images
        .map(|values| Tensor::from_vec(values, x.shape(), x.device()))
        .transpose()
}

fn each<'a, A, B>(
    step: &'a [Option<A>; 4],
    f: impl Fn(&'a A) -> Result<B>,
) -> Result<[Option<B>; 4]> {
    let [a, b, c, d] = step;
    let f = |v: &'a Option<A>| v.as_ref().map(&f).transpose();
    Ok([f(a)?, f(b)?, f(c)?, f(d)?])
}
