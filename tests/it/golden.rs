//! The files of `tests/golden`, see the README there.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use theriac::{Batch, Labels, Pixels, Result, Target};

pub(crate) const MODELS: [&str; 3] = ["std", "rob", "bn"];
const CLASSES: usize = 10;

/// Settings and tolerances.
pub(crate) static MANIFEST: LazyLock<Manifest> = LazyLock::new(manifest);

/// The manifest, or what a test needs of it.
pub(crate) fn manifest<T: DeserializeOwned>() -> T {
    let text = std::fs::read_to_string(path("manifest.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[derive(Deserialize)]
pub(crate) struct Manifest {
    pub(crate) models: BTreeMap<String, Model>,
    pub(crate) gradients: Gradients,
    attacks: BTreeMap<String, BTreeMap<String, Attack>>,
}

#[derive(Deserialize)]
pub(crate) struct Model {
    pub(crate) clean_accuracy: f64,
    /// Trained values and running statistics.
    pub(crate) values: usize,
}

#[derive(Deserialize)]
pub(crate) struct Gradients {
    pub(crate) logits_within: Each,
    pub(crate) gradient_within: Each,
}

/// One number for each element type.
#[derive(Deserialize)]
pub(crate) struct Each {
    f32: f64,
    f64: f64,
}

impl Each {
    pub(crate) fn of(&self, dtype: DType) -> f64 {
        if dtype == DType::F64 {
            self.f64
        } else {
            self.f32
        }
    }
}

#[derive(Clone, Deserialize)]
pub(crate) struct Attack {
    pub(crate) images: usize,
    pub(crate) eps: Option<f64>,
    pub(crate) alpha: Option<f64>,
    pub(crate) steps: Option<u32>,
    pub(crate) tolerance: Tolerance,
    /// What only some attacks have, by the names of their implementations.
    #[serde(flatten)]
    settings: BTreeMap<String, Value>,
}

impl Attack {
    pub(crate) fn setting(&self, name: &str) -> f64 {
        let value = self.settings.get(name).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("no number {name}"))
    }
}

#[derive(Clone, Deserialize)]
pub(crate) struct Tolerance {
    pub(crate) f64: f64,
    pub(crate) f32: Loose,
}

/// Agreement of f32 runs.
#[derive(Clone, Deserialize)]
pub(crate) struct Loose {
    pub(crate) within: f64,
    pub(crate) share: f64,
    pub(crate) trajectory_share: Option<f64>,
    pub(crate) outcomes: usize,
    pub(crate) median_l2: f64,
}

impl Manifest {
    pub(crate) fn attack(&self, model: &str, attack: &str) -> &Attack {
        &self.attacks[model][attack]
    }

    pub(crate) fn attacks(&self, model: &str) -> impl Iterator<Item = &str> {
        self.attacks[model].keys().map(String::as_str)
    }
}

/// A file of `tests/golden`, which lies above every crate of the workspace.
pub(crate) fn path(name: &str) -> PathBuf {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let mut folders = above.map(|folder| folder.join("tests").join("golden"));
    let folder = folders.find(|folder| folder.join("manifest.json").exists());
    folder.expect("tests/golden").join(name)
}

/// The arrays of one or more files.
pub(crate) struct Vectors(HashMap<String, Tensor>);

impl Vectors {
    pub(crate) fn read(files: &[&str]) -> Result<Self> {
        let mut all = HashMap::new();
        for file in files {
            let path = path(&format!("{file}.safetensors"));
            all.extend(candle_core::safetensors::load(path, &Device::Cpu)?);
        }
        Ok(Self(all))
    }

    /// The arrays of every file whose name starts like this.
    pub(crate) fn starting(prefix: &str) -> Result<Self> {
        let entries = std::fs::read_dir(path("")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let files = names.filter_map(|name| Some(name.strip_suffix(".safetensors")?.to_owned()));
        let files: Vec<String> = files.filter(|file| file.starts_with(prefix)).collect();
        Self::read(&files.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Leaves the first `n` rows of the arrays whose names `choose` picks.
    pub(crate) fn shorten(&mut self, n: usize, choose: impl Fn(&str) -> bool) -> Result<()> {
        for (_, array) in self.0.iter_mut().filter(|(name, _)| choose(name)) {
            *array = array.narrow(0, 0, n.min(array.dim(0)?))?;
        }
        Ok(())
    }

    pub(crate) fn get(&self, name: &str) -> &Tensor {
        self.find(name)
            .unwrap_or_else(|| panic!("no golden array {name}"))
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    pub(crate) fn labels(&self, name: &str, n: usize) -> Result<Labels> {
        let labels = self.numbers(name)?;
        Labels::new(&labels[..n], CLASSES, &Device::Cpu)
    }

    /// Whole numbers: labels, positions, flags.
    pub(crate) fn numbers(&self, name: &str) -> Result<Vec<u32>> {
        let numbers = self.get(name).flatten_all()?;
        Ok(numbers.to_dtype(DType::U32)?.to_vec1()?)
    }
}

/// The first `n` golden images; ids are positions.
pub(crate) fn images(n: usize, dtype: DType) -> Result<Batch<Labels>> {
    images_at(&(0..n as u32).collect::<Vec<_>>(), dtype)
}

/// The golden images at these positions, which are their ids.
pub(crate) fn images_at(positions: &[u32], dtype: DType) -> Result<Batch<Labels>> {
    let vectors = Vectors::read(&["images"])?;
    let at = Tensor::new(positions, &Device::Cpu)?;
    let bytes = vectors.get("u8.gray28").index_select(&at, 0)?;
    let labels = vectors.labels("labels", vectors.get("labels").elem_count())?;
    Ok(Batch {
        pixels: Pixels::from_bytes(&bytes, dtype)?,
        target: labels.pick(positions)?,
        samples: positions.to_vec(),
    })
}

/// The values of a tensor, exactly (f32 fits into f64).
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

/// Largest difference between two tensors of one shape.
pub(crate) fn largest_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    assert_eq!(a.dims(), b.dims());
    let pairs = values(a)?.into_iter().zip(values(b)?);
    Ok(pairs.fold(0.0, |largest: f64, (a, b)| {
        let difference = (a - b).abs();
        // `f64::max` would drop a NaN.
        if difference <= largest {
            largest
        } else {
            difference
        }
    }))
}
