//! Files made from the Rust types and kept in git, so that a chart needs no Rust to install.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const CRDS: &str = "charts/vse/crds";
const HEADER: &str = "# Generated from the crate vse-crds by `cargo xtask generate`; edit the types instead.\n";

/// Writes every generated file, and removes what a kind that is gone left behind.
pub(crate) fn write(root: &Path) -> Result<()> {
    for (path, difference) in differences(root)? {
        let file = root.join(&path);
        match &difference {
            Difference::Missing(text) | Difference::Stale(text) => {
                fs::create_dir_all(root.join(CRDS))?;
                fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
            }
            Difference::Left => {
                fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
            }
        }
        eprintln!("{} was {}", path.display(), difference.word());
    }
    Ok(())
}

/// What `write` would do, in words.
pub(crate) fn complaints(root: &Path) -> Result<Vec<String>> {
    Ok(differences(root)?
        .iter()
        .map(|(path, difference)| format!("{} is {}: run `cargo xtask generate`", path.display(), difference.word()))
        .collect())
}

enum Difference {
    Missing(String),
    Stale(String),
    Left,
}

impl Difference {
    fn word(&self) -> &'static str {
        match self {
            Self::Missing(_) => "missing",
            Self::Stale(_) => "stale",
            Self::Left => "made from nothing",
        }
    }
}

/// Compares the files in the checkout with what the types give, by path from `root`.
fn differences(root: &Path) -> Result<BTreeMap<PathBuf, Difference>> {
    let mut found = BTreeMap::new();
    for path in generated_before(root)? {
        found.insert(path, Difference::Left);
    }
    for crd in vse_crds::all() {
        let name = crd.metadata.name.as_deref().context("a CRD has a name")?;
        let path = Path::new(CRDS).join(format!("{name}.yaml"));
        let text = format!("{HEADER}{}", serde_yaml::to_string(&crd)?);
        match fs::read_to_string(root.join(&path)) {
            Ok(present) if present == text => found.remove(&path),
            Ok(_) => found.insert(path, Difference::Stale(text)),
            Err(_) => found.insert(path, Difference::Missing(text)),
        };
    }
    Ok(found)
}

fn generated_before(root: &Path) -> Result<Vec<PathBuf>> {
    let directory = root.join(CRDS);
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
    entries.map(|entry| Ok(Path::new(CRDS).join(entry?.file_name()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_files_are_fresh() {
        let stale = complaints(&crate::workspace_root().unwrap()).unwrap();
        assert!(stale.is_empty(), "{stale:#?}");
    }

    #[test]
    fn writing_leaves_nothing_to_complain_about() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(CRDS)).unwrap();
        fs::write(root.path().join(CRDS).join("gone.vse.hpc.io.yaml"), "left").unwrap();
        assert_eq!(complaints(root.path()).unwrap().len(), vse_crds::all().len() + 1);
        write(root.path()).unwrap();
        assert!(complaints(root.path()).unwrap().is_empty());
    }
}
