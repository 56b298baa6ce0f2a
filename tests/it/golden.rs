//! The files of `tests/golden`, see the README there.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use theriac::{Batch, Labels, Pixels, Result};

pub(crate) const MODELS: [&str; 3] = ["std", "rob", "bn"];
const CLASSES: usize = 10;

/// Settings and tolerances.
pub(crate) static MANIFEST: LazyLock<Manifest> = LazyLock::new(|| {
    let text = std::fs::read_to_string(path("manifest.json")).unwrap();
    serde_json::from_str(&text).unwrap()
});

#[derive(Deserialize)]
pub(crate) struct Manifest {
    pub(crate) models: BTreeMap<String, Model>,
    pub(crate) gradients: Gradients,
    attacks: BTreeMap<String, BTreeMap<String, Attack>>,
    pub(crate) random_starts: RandomStarts,
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
    pub(crate) eps: f64,
    pub(crate) alpha: Option<f64>,
    pub(crate) steps: Option<u32>,
    pub(crate) decay: Option<f64>,
    pub(crate) tolerance: Tolerance,
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

#[derive(Deserialize)]
pub(crate) struct RandomStarts {
    pub(crate) deviations: f64,
    pub(crate) slack: f64,
    pub(crate) models: BTreeMap<String, RandomStart>,
}

#[derive(Deserialize)]
pub(crate) struct RandomStart {
    pub(crate) images: usize,
    pub(crate) eps: f64,
    pub(crate) steps: u32,
    pub(crate) alpha: f64,
    pub(crate) seeds: usize,
    pub(crate) mean: f64,
    pub(crate) std: f64,
}

impl Manifest {
    pub(crate) fn attack(&self, model: &str, attack: &str) -> &Attack {
        &self.attacks[model][attack]
    }

    pub(crate) fn attacks(&self, model: &str) -> impl Iterator<Item = &str> {
        self.attacks[model].keys().map(String::as_str)
    }
}

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name)
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

    pub(crate) fn get(&self, name: &str) -> &Tensor {
        self.find(name)
            .unwrap_or_else(|| panic!("no golden array {name}"))
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    pub(crate) fn labels(&self, name: &str, n: usize) -> Result<Labels> {
        let labels = self
            .get(name)
            .narrow(0, 0, n)?
            .to_dtype(DType::U32)?
            .to_vec1::<u32>()?;
        Labels::new(&labels, CLASSES, &Device::Cpu)
    }
}

/// The first `n` golden images; ids are positions.
pub(crate) fn images(n: usize, dtype: DType) -> Result<Batch<Labels>> {
    let vectors = Vectors::read(&["images"])?;
    let bytes = vectors.get("u8.gray28").narrow(0, 0, n)?;
    Ok(Batch {
        pixels: Pixels::from_bytes(&bytes, dtype)?,
        target: vectors.labels("labels", n)?,
        samples: (0..n as u32).collect(),
    })
}
