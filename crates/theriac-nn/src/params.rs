//! Parameters by path.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::init::NormalOrUniform;
use candle_nn::var_builder::SimpleBackend;
use theriac::Rng;

use crate::{Entry, Error, Saved, VarBuilder, write};

/// Last components of paths that hold statistics rather than trained values.
const BUFFERS: [&str; 2] = ["running_mean", "running_var"];

/// The parameters of a network: an ordered map from path (`conv1.weight`) to variable.
///
/// Paths follow PyTorch's state dicts, so a converted checkpoint is a renaming at most.
#[derive(Clone, Debug)]
pub struct Params {
    seed: u64,
    dtype: DType,
    device: Device,
    variables: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl Params {
    /// No parameters yet; networks add theirs while they are built.
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Self {
        Self {
            seed,
            dtype,
            device: device.clone(),
            variables: Arc::default(),
        }
    }

    /// Access that yields the variables themselves: for the network that trains.
    pub fn live(&self) -> VarBuilder {
        self.builder(false)
    }

    /// Access that yields detached views of the same storage: they follow every update and have
    /// no gradients. For the network that is attacked.
    pub fn frozen(&self) -> VarBuilder {
        self.builder(true)
    }

    /// Every variable with its path, in the order of paths; running statistics included.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.lock()
            .iter()
            .map(|(path, var)| (path.clone(), var.clone()))
            .collect()
    }

    /// The variables that training moves: all but running statistics.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        self.all()
            .into_iter()
            .filter(|(path, _)| !is_buffer(path))
            .collect()
    }

    /// Number of trained values.
    pub fn count(&self) -> usize {
        self.trainable()
            .iter()
            .map(|(_, var)| var.elem_count())
            .sum()
    }

    /// Writes every variable to a safetensors file, under a temporary name first.
    ///
    /// `about` is written in the file's metadata, keys sorted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path, about: &BTreeMap<String, String>) -> Result<(), Error> {
        write(path, self.entries("")?, about)
    }

    /// The variables as entries of a file, their paths behind `prefix`.
    ///
    /// # Errors
    /// A candle error.
    pub fn entries(&self, prefix: &str) -> Result<Vec<Entry<'static>>, Error> {
        let all = self.all();
        all.iter()
            .map(|(path, var)| Entry::tensor(format!("{prefix}{path}"), var))
            .collect()
    }

    /// Reads a file written by [`Params::save`], strictly: the names and shapes must be exactly
    /// those of the network. Nothing changes unless all of it fits.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming every missing, unexpected and misshapen parameter;
    /// [`Error::Io`], [`Error::Format`].
    pub fn load(&self, path: &Path) -> Result<BTreeMap<String, String>, Error> {
        let saved = Saved::read(path)?;
        self.restore(&saved, "")?;
        Ok(saved.about().clone())
    }

    /// Takes the values of the tensors behind `prefix`, as strictly as [`Params::load`].
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn restore(&self, saved: &Saved, prefix: &str) -> Result<(), Error> {
        self.check(saved, prefix)?;
        for (path, var) in &self.all() {
            let value = saved.tensor(&format!("{prefix}{path}"), &self.device)?;
            var.set(&value.to_dtype(var.dtype())?)?;
        }
        Ok(())
    }

    /// Whether names and shapes of the tensors behind `prefix` are exactly those of the network.
    /// PyTorch's `num_batches_tracked` counters are passed over.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn check(&self, saved: &Saved, prefix: &str) -> Result<(), Error> {
        let variables = self.all();
        let mut missing = Vec::new();
        let mut misshapen = Vec::new();
        let mut known = BTreeSet::new();
        for (path, var) in &variables {
            let name = format!("{prefix}{path}");
            match saved.shape(&name) {
                None => missing.push(path.clone()),
                Some(shape) if shape != var.dims() => {
                    misshapen.push(format!("{path}: {shape:?} against {:?}", var.dims()));
                }
                Some(_) => {}
            }
            known.insert(name);
        }
        let unexpected: Vec<String> = saved
            .names()
            .filter(|name| name.starts_with(prefix) && !known.contains(*name))
            .filter(|name| !name.ends_with("num_batches_tracked"))
            .map(str::to_owned)
            .collect();
        if !(missing.is_empty() && unexpected.is_empty() && misshapen.is_empty()) {
            let path = saved.path().to_owned();
            return Err(Error::Mismatch {
                path,
                missing,
                unexpected,
                misshapen,
            });
        }
        Ok(())
    }

    fn builder(&self, frozen: bool) -> VarBuilder {
        let source = Source {
            params: self.clone(),
            frozen,
        };
        VarBuilder::from_backend(Box::new(source), self.dtype, self.device.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Var>> {
        // A panic elsewhere cannot leave the map half changed.
        self.variables
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn initial(
        &self,
        path: &str,
        shape: &Shape,
        init: candle_nn::Init,
    ) -> candle_core::Result<Var> {
        use candle_nn::Init;
        let n = shape.elem_count();
        let rng = Rng::new(self.seed);
        let uniform = |lo: f64, up: f64| -> Vec<f32> {
            let draws = rng.uniform(path, 0, n).into_iter();
            draws
                .map(|u| (lo + (up - lo) * f64::from(u)) as f32)
                .collect()
        };
        let normal = |mean: f64, stdev: f64| -> Vec<f32> {
            let draws = rng.normal(path, 0, n).into_iter();
            draws
                .map(|z| (mean + stdev * f64::from(z)) as f32)
                .collect()
        };
        let values = match init {
            Init::Const(value) => vec![value as f32; n],
            Init::Uniform { lo, up } => uniform(lo, up),
            Init::Randn { mean, stdev } => normal(mean, stdev),
            Init::Kaiming {
                dist,
                fan,
                non_linearity,
            } => {
                let std = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
                match dist {
                    NormalOrUniform::Normal => normal(0.0, std),
                    NormalOrUniform::Uniform => uniform(-std * 3f64.sqrt(), std * 3f64.sqrt()),
                }
            }
        };
        let tensor = Tensor::from_vec(values, shape, &self.device)?.to_dtype(self.dtype)?;
        Var::from_tensor(&tensor)
    }
}

fn is_buffer(path: &str) -> bool {
    BUFFERS.contains(&path.rsplit('.').next().unwrap_or(path))
}

struct Source {
    params: Params,
    frozen: bool,
}

impl Source {
    fn view(&self, path: &str, var: &Var) -> Tensor {
        // Statistics stay variables in both twins: whoever runs in training mode updates them.
        if self.frozen && !is_buffer(path) {
            var.as_tensor().detach()
        } else {
            var.as_tensor().clone()
        }
    }
}

impl SimpleBackend for Source {
    fn get(
        &self,
        shape: Shape,
        path: &str,
        init: candle_nn::Init,
        _: DType,
        _: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut variables = self.params.lock();
        let var = match variables.get(path) {
            Some(var) => var.clone(),
            None => {
                let var = self.params.initial(path, &shape, init)?;
                variables.insert(path.to_owned(), var.clone());
                var
            }
        };
        if var.shape() != &shape {
            let (have, want) = (var.dims().to_vec(), shape.dims().to_vec());
            let error = Error::Reshaped {
                name: path.to_owned(),
                have,
                want,
            };
            return Err(candle_core::Error::wrap(error));
        }
        Ok(self.view(path, &var))
    }

    fn get_unchecked(&self, path: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        match self.params.lock().get(path) {
            Some(var) => Ok(self.view(path, var)),
            None => candle_core::bail!("no parameter {path:?}; ask for it with a shape first"),
        }
    }

    fn contains_tensor(&self, path: &str) -> bool {
        self.params.lock().contains_key(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Init;

    fn values(params: &Params) -> Vec<(String, Vec<f32>)> {
        let all = params.all().into_iter();
        all.map(|(p, v)| (p, v.flatten_all().unwrap().to_vec1().unwrap()))
            .collect()
    }

    fn network(params: &Params, order: [&str; 2]) {
        for name in order {
            params
                .live()
                .pp(name)
                .get_with_hints((3, 4), "weight", Init::Glorot.weight(4, 3))
                .unwrap();
        }
    }

    #[test]
    fn initial_values_depend_on_seed_and_path_alone() {
        let [a, b, c] = [1, 1, 2].map(|seed| Params::new(seed, DType::F32, &Device::Cpu));
        network(&a, ["first", "second"]);
        network(&b, ["second", "first"]);
        network(&c, ["first", "second"]);
        assert_eq!(values(&a), values(&b));
        assert_ne!(values(&a), values(&c));
        let bound = (6f32 / 7.0).sqrt();
        assert!(
            values(&a)
                .iter()
                .all(|(_, v)| v.iter().all(|w| w.abs() <= bound && *w != 0.0))
        );
    }

    #[test]
    fn frozen_views_follow_and_have_no_gradient() {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let live = params.live().get(2, "w").unwrap();
        let frozen = params.frozen().get(2, "w").unwrap();
        params.all()[0]
            .1
            .set(&Tensor::new(&[3f32, 4.0], &Device::Cpu).unwrap())
            .unwrap();
        assert_eq!(frozen.to_vec1::<f32>().unwrap(), [3.0, 4.0]);
        let grads = (&live * &frozen)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        assert_eq!(
            grads.get(&live).unwrap().to_vec1::<f32>().unwrap(),
            [3.0, 4.0]
        );
        assert!(!frozen.is_variable());
    }

    #[test]
    fn strict_loading_names_everything() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let saved = Params::new(0, DType::F32, &Device::Cpu);
        network(&saved, ["first", "second"]);
        let about = BTreeMap::from([("model".to_owned(), "two".to_owned())]);
        saved.save(&path, &about).unwrap();

        let same = Params::new(9, DType::F32, &Device::Cpu);
        network(&same, ["first", "second"]);
        assert_eq!(same.load(&path).unwrap(), about);
        assert_eq!(values(&same), values(&saved));

        let other = Params::new(0, DType::F32, &Device::Cpu);
        network(&other, ["first", "third"]);
        other.live().get(2, "extra").unwrap();
        let before = values(&other);
        let text = other.load(&path).unwrap_err().to_string();
        assert!(
            text.contains("third.weight") && text.contains("second.weight"),
            "{text}"
        );
        assert_eq!(before, values(&other));

        let misshapen = Params::new(0, DType::F32, &Device::Cpu);
        network(&misshapen, ["first", "first"]);
        misshapen.live().get((5, 5), "second.weight").unwrap();
        let text = misshapen.load(&path).unwrap_err().to_string();
        assert!(text.contains("[3, 4] against [5, 5]"), "{text}");
        assert!(misshapen.live().get((1, 1), "second.weight").is_err());

        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        assert!(matches!(same.load(&path), Err(Error::Format { .. })));
        assert!(matches!(
            same.load(&folder.path().join("none")),
            Err(Error::Io { .. })
        ));
    }
}
