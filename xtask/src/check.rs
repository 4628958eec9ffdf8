//! `cargo xtask check`: generated files are fresh, and crates depend on each other only as ARCHITECTURE.md says.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::generate;

/// Each crate and the crates of this workspace it may use. Tests may look further: dev-dependencies do not count.
const ARROWS: &[(&str, &[&str])] = &[
    ("kubectl-vse", &["vse-crds"]),
    ("vse-bench", &[]),
    ("vse-crds", &[]),
    ("vse-engine", &[]),
    ("vse-erofs", &[]),
    ("vse-guest-network", &[]),
    ("vse-init", &[]),
    ("vse-launch", &[]),
    ("vse-launcher", &["vse-launch"]),
    ("vse-node-runtime", &["vse-crds", "vse-engine", "vse-guest-network", "vse-launch", "vse-system-image"]),
    ("vse-operator", &["vse-crds"]),
    ("vse-system-image", &["vse-erofs"]),
    ("vse-vmm", &["vse-vmm-api"]),
    ("vse-vmm-api", &[]),
    ("vse-e2e", &["vse-crds"]),
    ("xtask", &["vse-crds"]),
];

pub(crate) fn run(root: &Path) -> Result<()> {
    let mut complaints = generate::complaints(root)?;
    complaints.extend(wrong_arrows(&metadata(root)?)?);
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{}", complaints.join("\n"))
}

/// What cargo knows about the crates of this workspace.
fn metadata(root: &Path) -> Result<Value> {
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline", "--locked"])
        .output()
        .context("starting cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("reading the output of cargo metadata")
}

fn wrong_arrows(metadata: &Value) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().context("cargo metadata lists packages")? {
        let name = package["name"].as_str().context("a package has a name")?;
        let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == name) else {
            wrong.push(format!("{name} is not in the table of xtask/src/check.rs"));
            continue;
        };
        wrong.extend(
            workspace_dependencies(package)
                .filter(|to| !allowed.contains(to))
                .map(|to| format!("{name} must not depend on {to} (see ARCHITECTURE.md)")),
        );
    }
    Ok(wrong)
}

/// The crates of this workspace that `package` is built from; those have a path.
fn workspace_dependencies(package: &Value) -> impl Iterator<Item = &str> {
    package["dependencies"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|dependency| dependency["path"].is_string() && dependency["kind"] != "dev")
        .filter_map(|dependency| dependency["name"].as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn crates_depend_on_each_other_only_along_the_arrows() {
        let root = crate::workspace_root().unwrap();
        let wrong = wrong_arrows(&metadata(&root).unwrap()).unwrap();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn a_wrong_arrow_is_named_and_a_test_only_one_is_not() {
        let metadata = json!({"packages": [{
            "name": "vse-launcher",
            "dependencies": [
                {"name": "vse-launch", "kind": null, "path": "/launch"},
                {"name": "vse-crds", "kind": null, "path": "/crds"},
                {"name": "vse-engine", "kind": "dev", "path": "/engine"},
                {"name": "rustix", "kind": null},
            ],
        }]});
        let wrong = wrong_arrows(&metadata).unwrap();
        assert_eq!(wrong, ["vse-launcher must not depend on vse-crds (see ARCHITECTURE.md)"]);
    }

    #[test]
    fn a_crate_nobody_placed_is_named() {
        let metadata = json!({"packages": [{"name": "vse-stray", "dependencies": []}]});
        assert_eq!(wrong_arrows(&metadata).unwrap().len(), 1);
    }
}
