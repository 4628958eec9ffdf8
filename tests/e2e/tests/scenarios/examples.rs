//! Every example is a manifest the API server takes.

use vse_e2e::cluster::{checkout, kubectl};
use vse_e2e::{ensure, scenario};

#[test]
fn are_accepted() {
    scenario("examples", async |world| {
        let examples = checkout().join("manifests/examples");
        let examples = examples.to_str().unwrap_or_default();
        let strict = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", examples];
        let taken = kubectl(&[&["-n", &world.namespace], &strict[..]].concat()).await?;
        let files = std::fs::read_dir(examples)?.count();
        ensure!(taken.lines().count() >= files, "{files} files, but only:\n{taken}");
        Ok(())
    });
}
