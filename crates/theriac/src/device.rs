//! Names of devices, for the edges of a program.

use candle_core::Device;

use crate::{Error, Result};

/// `cpu`, `cuda:0` or `metal:0` to a device. Libraries follow their inputs; only programs parse.
///
/// # Errors
/// [`Error::Device`] for an unknown name or a device that this build or machine lacks.
pub fn device(name: &str) -> Result<Device> {
    let wrong = |reason: String| Error::Device {
        name: name.to_owned(),
        reason,
    };
    let (kind, ordinal) = name.split_once(':').unwrap_or((name, "0"));
    let ordinal = ordinal
        .parse()
        .map_err(|_| wrong(format!("{ordinal:?} is not a number")))?;
    match kind {
        "cpu" => Ok(Device::Cpu),
        "cuda" => Device::new_cuda(ordinal).map_err(|error| wrong(error.to_string())),
        "metal" => Device::new_metal(ordinal).map_err(|error| wrong(error.to_string())),
        _ => Err(wrong("unknown kind".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(device("cpu").unwrap().is_cpu());
        assert!(device("tpu").unwrap_err().to_string().contains("cuda:N"));
        assert!(
            device("cuda:x")
                .unwrap_err()
                .to_string()
                .contains("not a number")
        );
    }
}
