//! Tensors on disk: safetensors with sorted metadata, written under a temporary name first.
//!
//! The file's metadata has one key, `theriac`, holding a JSON object of strings. (One key,
//! because the format's writer orders several at random and files would differ between runs.)

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};

use crate::Error;

const KEY: &str = "theriac";

/// One named tensor on its way to a file.
#[derive(Debug)]
pub struct Entry<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Entry<'a> {
    /// A borrowed array: large state goes to disk without a copy.
    pub fn f32(name: impl Into<String>, shape: &[usize], values: &'a [f32]) -> Self {
        let bytes = Cow::Borrowed(bytemuck::cast_slice(values));
        Self {
            name: name.into(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes,
        }
    }

    /// Borrowed bytes.
    pub fn u8(name: impl Into<String>, shape: &[usize], values: &'a [u8]) -> Self {
        let bytes = Cow::Borrowed(values);
        Self {
            name: name.into(),
            dtype: Dtype::U8,
            shape: shape.to_vec(),
            bytes,
        }
    }

    /// A copy of a tensor (f32, f64, u8 or u32).
    ///
    /// # Errors
    /// A candle error for other dtypes.
    pub fn tensor(name: impl Into<String>, tensor: &Tensor) -> Result<Entry<'static>, Error> {
        let flat = tensor.detach().flatten_all()?;
        let (dtype, bytes) = match tensor.dtype() {
            DType::F32 => (
                Dtype::F32,
                bytemuck::cast_slice(&flat.to_vec1::<f32>()?).to_vec(),
            ),
            DType::F64 => (
                Dtype::F64,
                bytemuck::cast_slice(&flat.to_vec1::<f64>()?).to_vec(),
            ),
            DType::U32 => (
                Dtype::U32,
                bytemuck::cast_slice(&flat.to_vec1::<u32>()?).to_vec(),
            ),
            _ => (Dtype::U8, flat.to_vec1::<u8>()?),
        };
        let shape = tensor.dims().to_vec();
        Ok(Entry {
            name: name.into(),
            dtype,
            shape,
            bytes: Cow::Owned(bytes),
        })
    }

    /// The same entry with its name behind `prefix`.
    pub fn under(mut self, prefix: &str) -> Self {
        self.name.insert_str(0, prefix);
        self
    }
}

impl View for &Entry<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes entries and metadata to `path`: first a temporary file beside it, flushed to the disk,
/// then a rename. A crash or a full disk leaves the old file or none.
///
/// # Errors
/// [`Error::Io`].
pub fn write(
    path: &Path,
    entries: Vec<Entry<'_>>,
    about: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let failed = |source: std::io::Error| Error::Io {
        path: path.to_owned(),
        source,
    };
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    let json = serde_json::to_string(about).map_err(|error| failed(error.into()))?;
    let metadata = Some(HashMap::from([(KEY.to_owned(), json)]));
    let named = entries.iter().map(|entry| (entry.name.as_str(), entry));
    safetensors::serialize_to_file(named, metadata, file.path())
        .map_err(|error| failed(std::io::Error::other(error)))?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// A file read into memory. (Not mapped: a file that changes under a map is undefined behaviour.)
#[derive(Debug)]
pub struct Saved {
    path: PathBuf,
    bytes: Vec<u8>,
    about: BTreeMap<String, String>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Saved {
    /// Reads and checks a whole file.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let format = |reason: String| Error::Format {
            path: path.to_owned(),
            reason,
        };
        let bytes = std::fs::read(path).map_err(io)?;
        let (_, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| format(error.to_string()))?;
        let about = match metadata.metadata().as_ref().and_then(|m| m.get(KEY)) {
            Some(json) => serde_json::from_str(json).map_err(|error| format(error.to_string()))?,
            None => BTreeMap::new(),
        };
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|error| format(error.to_string()))?;
        let shapes = tensors
            .iter()
            .map(|(name, view)| (name.to_owned(), view.shape().to_vec()))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            bytes,
            about,
            shapes,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata.
    pub fn about(&self) -> &BTreeMap<String, String> {
        &self.about
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shapes.keys().map(String::as_str)
    }

    /// Shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    /// A tensor on a device.
    ///
    /// # Errors
    /// [`Error::Absent`] or a dtype that candle does not know.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, Error> {
        let view = self.view(name)?;
        let dtype = DType::try_from(view.dtype())?;
        Ok(Tensor::from_raw_buffer(
            view.data(),
            dtype,
            view.shape(),
            device,
        )?)
    }

    /// The values of an f32 tensor, without a detour over a tensor.
    ///
    /// # Errors
    /// [`Error::Absent`], or [`Error::Format`] for another dtype.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        Ok(bytemuck::pod_collect_to_vec(
            self.view_of(name, Dtype::F32)?.data(),
        ))
    }

    /// The bytes of a u8 tensor.
    ///
    /// # Errors
    /// [`Error::Absent`], or [`Error::Format`] for another dtype.
    pub fn u8(&self, name: &str) -> Result<Vec<u8>, Error> {
        Ok(self.view_of(name, Dtype::U8)?.data().to_vec())
    }

    fn view_of(&self, name: &str, dtype: Dtype) -> Result<TensorView<'_>, Error> {
        let view = self.view(name)?;
        if view.dtype() == dtype {
            return Ok(view);
        }
        let reason = format!("{name} is {:?}, expected {dtype:?}", view.dtype());
        Err(Error::Format {
            path: self.path.clone(),
            reason,
        })
    }

    fn view(&self, name: &str) -> Result<TensorView<'_>, Error> {
        let absent = || Error::Absent {
            path: self.path.clone(),
            name: name.to_owned(),
            holds: self.shapes.keys().cloned().collect(),
        };
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|_| absent())?;
        tensors.tensor(name).map_err(|_| absent())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_gives_equal_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let about: BTreeMap<_, _> = (0..9).map(|i| (format!("key{i}"), i.to_string())).collect();
        let values = [1.5f32, -2.0, 0.0];
        let files = ["a", "b"].map(|name| folder.path().join(name));
        for file in &files {
            write(
                file,
                vec![Entry::f32("x", &[3], &values), Entry::u8("b", &[1], &[7])],
                &about,
            )
            .unwrap();
        }
        let [a, b] = files.map(|file| std::fs::read(file).unwrap());
        assert_eq!(a, b);
        let saved = Saved::read(&folder.path().join("a")).unwrap();
        assert_eq!(saved.f32("x").unwrap(), values);
        assert_eq!(saved.u8("b").unwrap(), [7]);
        assert_eq!(saved.about(), &about);
        assert!(saved.f32("y").unwrap_err().to_string().contains("\"x\""));
        assert!(saved.f32("b").is_err() && saved.u8("x").is_err());
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("no/such/folder/file");
        assert!(matches!(
            write(&missing, vec![], &BTreeMap::new()),
            Err(Error::Io { .. })
        ));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
