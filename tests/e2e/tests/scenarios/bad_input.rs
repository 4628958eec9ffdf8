//! What the API server refuses by itself, with a message that names the field.

use kube::api::{Api, ListParams};
use vse_crds::VSE;
use vse_e2e::{Result, Value, World, bail, ensure, json, patched, scenario, tiny};

/// Changes to a good spec, and what the refusal must say.
fn bad_specs() -> Vec<(Value, &'static [&'static str])> {
    let cpu = |cpu: Value| json!({"machine": {"cpu": cpu}});
    let volume = |name: &str| json!({"name": name, "emptyDisk": {"capacity": "16Mi"}});
    let device = |name: &str, resource: &str| json!({"machine": {"devices": {"hostDevices": [{"name": name, "deviceName": resource}]}}});
    vec![
        (cpu(json!({"cores": 0})), &["spec.machine.cpu.cores", "greater than or equal to 1"]),
        (cpu(json!({"cores": 10_000})), &["spec.machine.cpu.cores", "less than or equal to 512"]),
        (cpu(json!({"sockets": 4, "cores": 256})), &["spec.machine.cpu", "at most 512"]),
        (cpu(json!({"threads": 3})), &["spec.machine.cpu.threads"]),
        (cpu(json!({"cores": "two"})), &["spec.machine.cpu.cores"]),
        (cpu(json!({"isolateEmulatorThread": true, "dedicatedCPUPlacement": false})), &["isolateEmulatorThread"]),
        (cpu(json!({"request": "1", "dedicatedCPUPlacement": true})), &["spec.machine.cpu.request"]),
        (cpu(json!({"coers": 2})), &["spec.machine.cpu.coers"]),
        (json!({"machine": {"memory": {"guest": "95Mi"}}}), &["spec.machine.memory.guest", "at least 96Mi"]),
        (json!({"machine": {"memory": {"guest": null}}}), &["spec.machine.memory.guest", "required"]),
        (
            json!({"machine": {"memory": {"hugepages": {"pageSize": "4Ki"}}}}),
            &["spec.machine.memory.hugepages.pageSize"],
        ),
        (
            device("a", "nvidia.com/gpu"),
            &["spec.machine.devices.hostDevices[0].deviceName", "must be vse.hpc.io/CLASS"],
        ),
        (device("a", "vse.hpc.io/kvm"), &["hostDevices[0].deviceName", "asked for by every guest anyway"]),
        (device("a", "vse.hpc.io/engine-vmm"), &["hostDevices[0].deviceName", "asked for by every guest anyway"]),
        (device("No_Name", "vse.hpc.io/nic"), &["spec.machine.devices.hostDevices[0].name"]),
        (json!({"volumes": [volume("a"), volume("a")]}), &["spec.volumes", "uplicate"]),
        (json!({"volumes": [volume("a")], "disks": [{"name": "b"}]}), &["spec.disks", "name one of volumes"]),
        (json!({"volumes": [volume("cidata")]}), &["spec.volumes[0].name", "taken"]),
        (json!({"volumes": [volume("A_b")]}), &["spec.volumes[0].name"]),
        (json!({"volumes": [{"name": "a"}]}), &["spec.volumes[0]", "exactly one of"]),
        (json!({"volumes": [{"name": "a", "emptyDisk": {"capacity": "0"}}]}), &["spec.volumes[0].emptyDisk.capacity"]),
        (json!({"system": {"root": "Disk"}}), &["spec.system.rootVolume"]),
        (json!({"system": {"root": "Disk", "rootVolume": "a"}}), &["spec.system.rootVolume", "name one of volumes"]),
        (json!({"system": {"image": ""}}), &["spec.system.image"]),
        (
            json!({"system": {"cloudInit": {"userData": "#!", "userDataSecretRef": {"name": "s"}}}}),
            &["userData", "not both"],
        ),
        (json!({"system": {"cloudInit": {"hostname": "No Good"}}}), &["spec.system.cloudInit.hostname"]),
        (json!({"system": {"kernelArguments": ["two words"]}}), &["spec.system.kernelArguments[0]"]),
        (json!({"runStrategy": "Sometimes"}), &["spec.runStrategy"]),
        (json!({"engine": "bochs"}), &["spec.engine"]),
        (json!({"terminationGracePeriodSeconds": -1}), &["spec.terminationGracePeriodSeconds"]),
        (json!({"networks": [{"name": "a"}, {"name": "b"}]}), &["spec.networks"]),
        (json!({"networks": [{"name": "a", "ports": [{"port": 0}]}]}), &["spec.networks[0].ports[0].port"]),
    ]
}

#[test]
fn is_refused_with_the_field() {
    scenario("bad-input", async |world| {
        for (spec, words) in bad_specs() {
            refused(world, &tiny("bad", spec), words).await?;
        }
        refused(world, &tiny(&"n".repeat(53), json!({})), &["metadata.name", "at most 52"]).await?;
        refused(world, &tiny("Bad_Name", json!({})), &["metadata.name"]).await?;
        let by_hand = json!({
            "apiVersion": "vse.hpc.io/v1alpha1", "kind": "MicroVM", "metadata": {"name": "by-hand"},
            "spec": {
                "vseName": "a", "vseUID": "u", "incarnation": 1, "nodeName": "node-1", "podName": "p", "podUID": "u",
                "powerState": "Running", "engine": "qemu", "accelerator": "TCG",
                "machine": {"memory": {"guest": "96Mi"}}, "boot": {"image": "i", "root": "Diskless"},
                "terminationGracePeriodSeconds": 1,
            },
        });
        refused(world, &by_hand, &["made by the operator only"]).await?;
        for taken in ["kvm", "emulation", "engine-qemu"] {
            let class = json!({"name": taken, "selector": {"class": "02"}});
            let policy = json!({
                "apiVersion": "vse.hpc.io/v1alpha1", "kind": "HostPolicy", "metadata": {"name": "bad-input"},
                "spec": {"deviceClasses": [class], "nodeSelector": {"no": "host"}},
            });
            let words = ["spec.deviceClasses[0].name", "taken by resources of the hosts themselves"];
            refused(world, &policy, &words).await?;
        }
        let vses: Api<VSE> = world.api();
        ensure!(vses.list(&ListParams::default()).await?.items.is_empty(), "something was taken");

        // The longest name there may be is no problem.
        let longest = "n".repeat(52);
        world.apply(&patched(tiny(&longest, json!({})), json!({"spec": {"runStrategy": "Once"}}))).await?;
        world.ready(&longest, 1).await.map(drop)
    });
}

async fn refused(world: &World, manifest: &Value, words: &[&str]) -> Result<()> {
    match world.apply(manifest).await {
        Ok(_) => bail!("taken, though {words:?} should be refused: {manifest}"),
        Err(kube::Error::Api(status)) => {
            for word in words {
                ensure!(status.message.contains(word), "no {word:?} in the refusal of {manifest}: {}", status.message);
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
