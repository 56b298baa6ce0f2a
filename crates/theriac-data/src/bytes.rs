//! Bytes of a file, plain or gzip, told apart by the first two bytes and not by the name.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::{Error, Result};

/// Opens a file for reading its unpacked bytes.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = File::open(path).map_err(Error::io(path))?;
    unpack(file).map_err(Error::io(path))
}

fn unpack(mut file: impl Read + 'static) -> std::io::Result<Box<dyn Read>> {
    let mut start = Vec::new();
    file.by_ref().take(2).read_to_end(&mut start)?;
    let packed = start == [0x1f, 0x8b];
    let whole = BufReader::new(Cursor::new(start).chain(file));
    Ok(match packed {
        true => Box::new(MultiGzDecoder::new(whole)),
        false => Box::new(whole),
    })
}

/// Reads at most `limit` bytes; a file that announces more than it has allocates nothing.
pub(crate) fn read(reader: &mut dyn Read, limit: u64, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(Error::io(path))?;
    Ok(bytes)
}
