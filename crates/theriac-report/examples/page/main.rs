//! Writes a page with every kind of block: `cargo run -p theriac-report --example page -- DIR`.

mod demo;

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.ok_or("usage: page DIR")?;
    demo::page().write(dir)?;
    Ok(())
}
