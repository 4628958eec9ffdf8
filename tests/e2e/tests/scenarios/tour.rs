//! The tour: a whole Debian with cloud-init, looked at and logged into with `kubectl vse`.

use std::path::Path;
use tokio::process::Command;
use vse_crds::vse_conditions::AGENT_CONNECTED;
use vse_e2e::{Conditions, Result, World, claim, cluster, ensure, json, scenario};

#[test]
fn with_a_real_distribution() {
    scenario("tour", async |world| {
        let state = std::env::temp_dir().join(&world.namespace);
        let result = tour(world, &state).await;
        std::fs::remove_dir_all(&state)?;
        result
    });
}

async fn tour(world: &World, state: &Path) -> Result<()> {
    let key = state.join("key");
    std::fs::create_dir_all(state)?;
    cluster::output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).await?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "user-data"},
        "stringData": {"userdata": "#cloud-config\nwrite_files:\n- {path: /etc/toured, content: \"toured\\n\"}\n"},
    });
    world.apply(&secret).await?;
    let vse = json!({
        "apiVersion": "vse.hpc.io/v1alpha1", "kind": "VSE", "metadata": {"name": "tour"},
        "spec": {
            "system": {
                "image": "vse.hpc.io/debian-hpc:dev", "imagePullPolicy": "IfNotPresent",
                "root": "Disk", "rootVolume": "root",
                "cloudInit": {
                    "hostname": "on-tour",
                    "sshAuthorizedKeys": [std::fs::read_to_string(key.with_extension("pub"))?.trim()],
                    "userDataSecretRef": {"name": "user-data"},
                },
            },
            "machine": {"memory": {"guest": "768Mi"}},
            "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "root"}}],
        },
    });
    world.apply(&claim("root", "4Gi")).await?;
    world.apply(&vse).await?;
    let status = world.ready("tour", 1).await?;
    let connected = |vse: &vse_crds::VSE| vse.is(AGENT_CONNECTED);
    world.until_vse("tour", "has its agent connected", connected).await?;
    let named = |vse: &vse_crds::VSE| vse.told().guest.and_then(|guest| guest.hostname).as_deref() == Some("on-tour");
    let guest = world.until_vse("tour", "has its host name", named).await?.told().guest.unwrap_or_default();
    ensure!(guest.os.is_some_and(|os| os.contains("Debian")), "no operating system");

    let node = status.node_name.unwrap_or_default();
    let picture = kubectl_vse(world, state, &["status", "tour"]).await?;
    for word in ["tour", "tour-1", &node] {
        ensure!(picture.contains(word), "no {word} in the status:\n{picture}");
    }
    let picture = kubectl_vse(world, state, &["topology", "tour"]).await?;
    ensure!(picture.contains(&node), "no {node} in the topology:\n{picture}");

    let key = key.to_string_lossy();
    let ssh = async |command: &str| {
        let login = ["ssh", "tour", "--", "-o", "BatchMode=yes", "-i", &key, command];
        kubectl_vse(world, state, &login).await
    };
    let look = "cloud-init status --wait >/dev/null; hostname; cat /etc/toured; id -un";
    let said = world.until("ssh logs in", async || ssh(look).await.map(Some)).await?;
    assert_eq!(said.lines().collect::<Vec<_>>(), ["on-tour", "toured", "root"]);

    // Restarted, it finds its root disk as it was.
    ssh("echo kept >/root/file; sync").await?;
    kubectl_vse(world, state, &["restart", "tour"]).await?;
    world.ready("tour", 2).await?;
    let said = world.until("ssh logs in again", async || ssh("cat /root/file").await.map(Some)).await?;
    assert_eq!(said.trim(), "kept");
    Ok(())
}

/// What `kubectl vse` prints, with its own state directory.
async fn kubectl_vse(world: &World, state: &Path, arguments: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["run", "--quiet", "--package", "kubectl-vse", "--", "--namespace", &world.namespace]);
    cluster::output(command.args(arguments).current_dir(cluster::checkout()).env("XDG_STATE_HOME", state)).await
}
