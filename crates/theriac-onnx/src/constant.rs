//! Constants of a graph.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path};

use candle_core::{DType, Device, Tensor};

use crate::error::{Said, refuse, require};
use crate::proto::{TensorProto, data_type};

/// Most values that a tensor may have: far above any use, so that a damaged file cannot ask for
/// more than any memory.
const MOST: usize = 1 << 27;

/// Refuses shapes of more values than any network has.
pub(crate) fn room(dims: &[usize]) -> Said<usize> {
    let count = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    match count.filter(|n| *n <= MOST) {
        Some(count) => Ok(count),
        None => refuse!("a tensor of shape {dims:?} has more than {MOST} values"),
    }
}

/// Where and as what constants are kept.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) dtype: DType,
    pub(crate) device: Device,
    /// The folder of the file, for constants beside it.
    pub(crate) folder: Option<&'a Path>,
}

/// Whole numbers: shapes, axes, indices. `None` stands for the size of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ints {
    /// At most one dimension.
    pub(crate) dims: Vec<usize>,
    pub(crate) values: Vec<Option<i64>>,
}

impl Ints {
    pub(crate) fn vector(values: Vec<Option<i64>>) -> Self {
        let dims = vec![values.len()];
        Self { dims, values }
    }

    /// The values, none of which may follow the batch.
    pub(crate) fn known(&self) -> Said<Vec<i64>> {
        let known: Option<Vec<i64>> = self.values.iter().copied().collect();
        match known {
            Some(known) => Ok(known),
            None => refuse!("it needs numbers that do not depend on the size of the batch"),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Constant {
    Float(Tensor),
    Ints(Ints),
}

/// Reads a constant.
pub(crate) fn constant(of: &TensorProto, place: &Place<'_>) -> Said<Constant> {
    match read(of, place) {
        Err(mut reason) => {
            reason.0 = format!("the constant {:?}: {}", of.name, reason.0);
            Err(reason)
        }
        read => read,
    }
}

fn read(of: &TensorProto, place: &Place<'_>) -> Said<Constant> {
    let dims: Option<Vec<usize>> = of.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let Some(dims) = dims else {
        refuse!("shape {:?}; no dimension may be negative", of.dims);
    };
    let count = room(&dims)?;
    let name = data_type::name(of.data_type);
    let Some(width) = width(of.data_type) else {
        refuse!(
            "its type is {name} ({}); give floats or whole numbers",
            of.data_type
        );
    };
    let bytes = bytes(of, width, count * width, place)?;
    require!(
        bytes.len() == count * width,
        "{} bytes for {count} values of {name}, shape {dims:?}; export the model again",
        bytes.len()
    );
    let dtype = match of.data_type {
        data_type::FLOAT => DType::F32,
        data_type::DOUBLE => DType::F64,
        data_type::FLOAT16 => DType::F16,
        data_type::BFLOAT16 => DType::BF16,
        other => {
            let values = bytes.chunks_exact(width).map(|b| Some(whole(b, other)));
            let values = values.collect();
            return Ok(Constant::Ints(Ints { dims, values }));
        }
    };
    require!(count > 0, "it is empty, shape {dims:?}");
    let tensor = Tensor::from_raw_buffer(&bytes, dtype, &dims, &Device::Cpu)?;
    let tensor = tensor.to_dtype(place.dtype)?.to_device(&place.device)?;
    Ok(Constant::Float(tensor))
}

/// Bytes of one value.
fn width(of: i32) -> Option<usize> {
    use data_type::{
        BFLOAT16, BOOL, DOUBLE, FLOAT, FLOAT16, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32,
        UINT64,
    };
    Some(match of {
        UINT8 | INT8 | BOOL => 1,
        UINT16 | INT16 | FLOAT16 | BFLOAT16 => 2,
        FLOAT | INT32 | UINT32 => 4,
        INT64 | DOUBLE | UINT64 => 8,
        _ => return None,
    })
}

/// A whole number from its little-endian bytes.
fn whole(bytes: &[u8], of: i32) -> i64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let value = i64::from_le_bytes(wide);
    match of {
        data_type::INT8 => i64::from(value as i8),
        data_type::INT16 => i64::from(value as i16),
        data_type::INT32 => i64::from(value as i32),
        _ => value,
    }
}

/// The values, little-endian, wherever they are kept.
fn bytes<'a>(
    of: &'a TensorProto,
    width: usize,
    len: usize,
    place: &Place<'_>,
) -> Said<Cow<'a, [u8]>> {
    if of.data_location == 1 {
        return Ok(beside(of, len, place)?.into());
    }
    if !of.raw_data.is_empty() {
        return Ok((&of.raw_data[..]).into());
    }
    let narrow = |v: &i32| v.to_le_bytes()[..width.min(4)].to_vec();
    let short = |v: &u64| v.to_le_bytes()[..width].to_vec();
    Ok(match of.data_type {
        data_type::FLOAT => of.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        data_type::DOUBLE => of
            .double_data
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
        data_type::INT64 => of.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        data_type::UINT32 | data_type::UINT64 => of.uint64_data.iter().flat_map(short).collect(),
        _ => of.int32_data.iter().flat_map(narrow).collect(),
    })
}

/// The values in a file beside the model's.
fn beside(of: &TensorProto, len: usize, place: &Place<'_>) -> Said<Vec<u8>> {
    let entry = |key: &str| {
        let found = of.external_data.iter().find(|entry| entry.key == key);
        found.map(|entry| entry.value.as_str())
    };
    let location = entry("location").unwrap_or_default();
    let Some(folder) = place.folder else {
        refuse!("its values are in the file {location:?}; open the model by its path");
    };
    let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    require!(
        !location.is_empty() && Path::new(location).components().all(inside),
        "its values are in {location:?}; the file must lie beside the model or below it"
    );
    let offset: u64 = match entry("offset").unwrap_or("0").parse() {
        Ok(offset) => offset,
        Err(error) => refuse!("its offset in {location:?}: {error}"),
    };
    let read = || {
        let mut file = File::open(folder.join(location))?;
        // Before any memory is asked for.
        let there = file.metadata()?.len().saturating_sub(offset);
        if there < len as u64 {
            let few = format!("{there} bytes from {offset} on, {len} are needed");
            return Err(std::io::Error::other(few));
        }
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; len];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(bytes),
        Err(error) => {
            refuse!("its values are in {location:?}, which must lie beside the model: {error}")
        }
    }
}
