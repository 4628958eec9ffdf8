//! Specs the API server takes and the operator, or a host, can't follow: each says why, and goes on once it can.

use kube::api::{Api, DeleteParams};
use vse_crds::{
    VSE, VSEPhase, VSEProfile,
    vse_conditions::{READY, STALLED},
};
use vse_e2e::{Conditions, Result, World, claim, ensure, json, refusal, scenario, tiny};

#[test]
fn say_why_and_go_on_once_they_can() {
    scenario("refusals", async |world| {
        let profile = format!("{}-small", world.namespace);
        let impossible = [
            ("no-profile", json!({"profileName": profile}), "ProfileNotFound", vec!["spec.profileName", &profile]),
            (
                "huge-pages",
                json!({"machine": {"memory": {"hugepages": {"pageSize": "1Gi"}, "guest": "64Gi"}}}),
                "Insufficient",
                vec!["spec.machine.memory", "no host has"],
            ),
            ("cpus", json!({"machine": {"cpu": {"request": null, "cores": 200}}}), "InsufficientCPUs", vec!["200"]),
            (
                "vcpus",
                json!({"machine": {"cpu": {"request": null, "cores": 512}}}),
                "NoEngine",
                vec!["fewer than the 512 of spec.machine.cpu", "no host has 512 CPUs"],
            ),
            (
                "no-claim",
                json!({"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "later"}}]}),
                "VolumeNotFound",
                vec!["spec.volumes", "later"],
            ),
        ];
        for (name, spec, ..) in &impossible {
            world.apply(&tiny(name, spec.clone())).await?;
        }
        for (name, _, reason, words) in &impossible {
            refused(world, name, reason, words).await?;
        }

        // A profile that contradicts: every conflict with its path.
        world.apply(&profile_manifest(&profile)).await?;
        let contradicting = json!({
            "profileName": profile, "nodeSelector": {"kubernetes.io/os": "plan9"},
            "machine": {"cpu": {"cores": 2}, "memory": {"guest": "128Mi"}},
        });
        world.apply(&tiny("contradicting", contradicting)).await?;
        let conflicts = ["spec.machine.cpu.cores", "spec.machine.memory.guest", "spec.nodeSelector[kubernetes.io/os]"];
        refused(world, "contradicting", "ProfileConflict", &conflicts).await?;

        // What was missing is there now, what was wrong is made right: they go on by themselves.
        world.patch("no-profile", json!({"spec": {"machine": {"memory": {"guest": null}}}})).await?;
        world
            .patch("huge-pages", json!({"spec": {"machine": {"memory": {"hugepages": null, "guest": "96Mi"}}}}))
            .await?;
        world.apply(&claim("later", "32Mi")).await?;
        for name in ["no-profile", "huge-pages", "no-claim"] {
            let status = world.ready(name, 1).await?;
            ensure!(status.conditions.iter().any(|c| c.type_ == STALLED && c.status == "False"), "{name} is stalled");
        }
        Api::<VSEProfile>::all(world.client.clone()).delete(&profile, &DeleteParams::default()).await?;
        Ok(())
    });
}

#[test]
fn of_images_say_why() {
    scenario("bad-images", async |world| {
        let unknown = "vse.hpc.io/there-is-none:dev";
        world.apply(&tiny("unknown", json!({"system": {"image": unknown, "imagePullPolicy": "Never"}}))).await?;
        let no_kernel = json!({"runStrategy": "Once", "system": {"image": "vse.hpc.io/launcher:dev"}});
        world.apply(&tiny("no-kernel", no_kernel)).await?;

        let is_told = |vse: &VSE| vse.why(READY).1.contains(unknown) && !vse.is(READY);
        world.until_vse("unknown", "tells of its image", is_told).await?;
        let failed = world.until_vse("no-kernel", "failed", |vse| vse.phase() == Some(VSEPhase::Failed)).await?;
        let exit = failed.told().last_exit.map(|exit| exit.message).unwrap_or_default();
        ensure!(exit.contains("vse.hpc.io/launcher:dev") && exit.contains("kernel"), "{exit}");

        // With another image both run, without a word from anybody.
        let tiny_image =
            json!({"spec": {"system": {"image": "vse.hpc.io/tiny:dev", "imagePullPolicy": "IfNotPresent"}}});
        world.patch("unknown", tiny_image.clone()).await?;
        world.ready("unknown", 2).await?;
        world.patch("no-kernel", tiny_image).await?;
        world.patch("no-kernel", json!({"spec": {"runStrategy": "Always"}})).await?;
        world.ready("no-kernel", 2).await.map(drop)
    });
}

async fn refused(world: &World, name: &str, reason: &str, words: &[&str]) -> Result<()> {
    let vse = world.until_vse(name, "is refused", |vse| refusal(vse).is_some()).await?;
    let (why, message) = refusal(&vse).unwrap_or_default();
    ensure!(why.starts_with(reason), "{name} is refused for {why}, not {reason}: {message}");
    for word in words {
        ensure!(message.contains(word), "the refusal of {name} does not name {word}: {message}");
    }
    ensure!(!vse.is(READY) && vse.told().incarnation == 0, "something of {name} was started");
    Ok(())
}

fn profile_manifest(name: &str) -> vse_e2e::Value {
    json!({
        "apiVersion": "vse.hpc.io/v1alpha1", "kind": "VSEProfile", "metadata": {"name": name},
        "spec": {
            "machine": {"cpu": {"cores": 1}, "memory": {"guest": "96Mi"}},
            "nodeSelector": {"kubernetes.io/os": "linux"},
        },
    })
}
