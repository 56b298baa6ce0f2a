//! Where things are in the workspace.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use theriac_tables::Table;

/// The folder of the workspace.
#[derive(Debug, Clone)]
pub(crate) struct Root(PathBuf);

impl Root {
    pub(crate) fn of_this_workspace() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self(here.parent().unwrap_or(here).to_path_buf())
    }

    #[cfg(test)]
    pub(crate) fn at(dir: &Path) -> Self {
        Self(dir.to_path_buf())
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.0.join(relative)
    }

    /// Trained models and measurements of all runs.
    pub(crate) fn store(&self) -> PathBuf {
        self.path("target/reproduce/store")
    }

    /// The folders of the crates, in the order of their names.
    pub(crate) fn crates(&self) -> Result<Vec<PathBuf>> {
        let dir = self.path("crates");
        let mut folders = Vec::new();
        let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()));
        for entry in entries? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            }
        }
        folders.sort();
        Ok(folders)
    }

    /// Every table and figure in the workspace.
    pub(crate) fn tables(&self) -> Result<Vec<Table>> {
        let mut tables = Vec::new();
        for folder in self.crates()? {
            let dir = folder.join("tables");
            if dir.is_dir() {
                tables.extend(Table::load_dir(&dir)?);
            }
        }
        Ok(tables)
    }
}

/// The papers that have tables.
pub(crate) fn papers(tables: &[Table]) -> BTreeSet<&str> {
    tables.iter().map(|table| table.paper.as_str()).collect()
}

/// The cargo that runs this program, so that its children use the same toolchain.
///
/// Without what cargo tells this program about its own package: some build scripts watch those
/// variables and would run again, with all that depends on them.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}
