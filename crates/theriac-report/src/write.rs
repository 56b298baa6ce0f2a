//! The page as files.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::markdown::IMAGES;
use crate::{Error, Page, Result};

impl Page {
    /// The page as JSON, which serde reads back into the same page. Pictures are base64 text of
    /// their bytes. Numbers of more than 15 digits may change in the last bit when serde reads them,
    /// unless its feature `float_roundtrip` is on.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn json(&self) -> Result<String> {
        self.validate()?;
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Writes `index.html`, `report.md` with its folder `images`, and `report.json` into `dir`,
    /// making it if needed, and returns the path of `index.html`. Nobody ever reads half a file.
    ///
    /// # Errors
    /// As [`html`](Self::html), or if a file cannot be written. Nothing is written of a page that
    /// cannot be shown.
    pub fn write(&self, dir: impl AsRef<Path>) -> Result<PathBuf> {
        let (html, json, markdown) = (self.html()?, self.json()?, self.markdown_with_files()?);
        let dir = dir.as_ref();
        let folder = if markdown.files.is_empty() {
            dir.to_path_buf()
        } else {
            dir.join(IMAGES)
        };
        fs::create_dir_all(&folder).map_err(Error::io("make", &folder))?;
        for (path, bytes) in &markdown.files {
            write_atomic(&dir.join(path), bytes)?;
        }
        write_atomic(&dir.join("report.md"), markdown.text.as_bytes())?;
        write_atomic(&dir.join("report.json"), json.as_bytes())?;
        let index = dir.join("index.html");
        write_atomic(&index, html.as_bytes())?;
        Ok(index)
    }
}

/// Writes beside the file and renames.
fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(Error::io("write", path))
}
