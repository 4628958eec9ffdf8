//! The tour: a whole Debian with cloud-init, looked at and logged into with `kubectl vse`.

use vse_crds::vse_conditions::AGENT_CONNECTED;
use vse_e2e::{Conditions, Shell, claim, ensure, json, patched, scenario};

#[test]
fn with_a_real_distribution() {
    scenario("tour", async |world| {
        let shell = Shell::new(world).await?;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "user-data"},
            "stringData": {"userdata": "#cloud-config\nwrite_files:\n- {path: /etc/toured, content: \"toured\\n\"}\n"},
        });
        world.apply(&secret).await?;
        let on_disk = json!({
            "system": {
                "root": "Disk", "rootVolume": "root",
                "cloudInit": {"hostname": "on-tour", "userDataSecretRef": {"name": "user-data"}},
            },
            "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "root"}}],
        });
        let vse = json!({
            "apiVersion": "vse.hpc.io/v1alpha1", "kind": "VSE", "metadata": {"name": "tour"},
            "spec": patched(shell.debian(), on_disk),
        });
        world.apply(&claim("root", "4Gi")).await?;
        world.apply(&vse).await?;
        let status = world.ready("tour", 1).await?;
        let connected = |vse: &vse_crds::VSE| vse.is(AGENT_CONNECTED);
        world.until_vse("tour", "has its agent connected", connected).await?;
        let named =
            |vse: &vse_crds::VSE| vse.told().guest.and_then(|guest| guest.hostname).as_deref() == Some("on-tour");
        let guest = world.until_vse("tour", "has its host name", named).await?.told().guest.unwrap_or_default();
        ensure!(guest.os.is_some_and(|os| os.contains("Debian")), "no operating system");

        let node = status.node_name.unwrap_or_default();
        let picture = shell.kubectl_vse(&["status", "tour"]).await?;
        for word in ["tour", "tour-1", &node] {
            ensure!(picture.contains(word), "no {word} in the status:\n{picture}");
        }
        let picture = shell.kubectl_vse(&["topology", "tour"]).await?;
        ensure!(picture.contains(&node), "no {node} in the topology:\n{picture}");

        let look = "cloud-init status --wait >/dev/null; hostname; cat /etc/toured; id -un";
        let said = shell.first("tour", look).await?;
        assert_eq!(said.lines().collect::<Vec<_>>(), ["on-tour", "toured", "root"]);

        // Restarted, it finds its root disk as it was.
        shell.run("tour", "echo kept >/root/file; sync").await?;
        shell.kubectl_vse(&["restart", "tour"]).await?;
        world.ready("tour", 2).await?;
        assert_eq!(shell.first("tour", "cat /root/file").await?, "kept");
        Ok(())
    });
}
