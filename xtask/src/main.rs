//! The project's own build steps that cargo does not do: `cargo xtask <command>`.
//!
//! Owns the OCI archives of all images, the generated files, and the check that crates depend on each other only
//! along the arrows of ARCHITECTURE.md. Clusters, tests and releases are not its business.

mod check;
mod generate;
mod images;
mod oci;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build steps that cargo does not do")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build OCI archives into .build/images
    Images(images::Args),
    /// Write the files that are made from the API types
    Generate,
    /// Check that generated files are fresh and that crates depend on each other as they may
    Check,
}

fn main() -> Result<()> {
    let root = workspace_root()?;
    match Args::parse().command {
        Command::Images(args) => images::run(&root, &args),
        Command::Generate => generate::write(&root),
        Command::Check => check::run(&root),
    }
}

/// The checkout this xtask was built from.
fn workspace_root() -> Result<PathBuf> {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Ok(manifest.parent().context("xtask lies in the workspace root")?.to_path_buf())
}
