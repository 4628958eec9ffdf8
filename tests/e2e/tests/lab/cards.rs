//! Cards of a lab host (docs/lab.md), and guests that have them.

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams};
use vse_crds::HostPolicy;
use vse_e2e::lab::{bare_metal, pci};
use vse_e2e::{Result, Value, World, cluster, json};

/// e1000e, wired to the one in the same place on the other hosts.
pub const CARD: &str = "0000:00:08.0";
/// igb, which makes virtual functions.
pub const MAKER: &str = "0000:00:0a.0";
/// e1000, in one group with a device of the host's own.
pub const SHARED: &str = "0000:01:01.0";

/// Resources of the classes of the scenarios' policies.
const RESOURCES: [&str; 4] = ["vse.hpc.io/card", "vse.hpc.io/vf", "vse.hpc.io/shared", "vse.hpc.io/nvme"];

/// A HostPolicy for all hosts, with a class for each of these cards: `card`, `vf` (two of them) and `shared`.
pub fn policy(name: &str) -> Value {
    let class = |name: &str, address: &str| json!({"name": name, "selector": {"addresses": [address]}});
    let vf = json!({"name": "vf", "selector": {"addresses": [MAKER]}, "virtualFunctions": 2});
    json!({
        "apiVersion": "vse.hpc.io/v1alpha1", "kind": "HostPolicy", "metadata": {"name": name},
        "spec": {"priority": 1000, "deviceClasses": [class("card", CARD), vf, class("shared", SHARED)]},
    })
}

/// A guest's device of each of these classes, named like its class.
pub fn host_devices(classes: &[&str]) -> Value {
    let device = |class: &&str| json!({"name": class, "deviceName": format!("vse.hpc.io/{class}")});
    classes.iter().map(device).collect()
}

/// A small guest with a device of each of these classes.
pub fn with_devices(name: &str, classes: &[&str]) -> Value {
    let cpu = json!({"cores": 1, "isolateEmulatorThread": false});
    let machine = json!({"cpu": cpu, "memory": {"guest": "128Mi"}, "devices": {"hostDevices": host_devices(classes)}});
    bare_metal(name, json!({"machine": machine}))
}

/// Deletes a policy, and waits until no host has a virtual function any more and no Node offers a device: kubelet tells
/// so seconds later, and refuses pods that were placed by what it told before.
pub async fn withdraw(world: &World, policy: &str) -> Result<()> {
    Api::<HostPolicy>::all(world.client.clone()).delete(policy, &DeleteParams::default()).await?;
    for node in cluster::nodes().await? {
        world
            .until(&format!("no virtual functions on {node}"), async || {
                Ok((pci(&node, &format!("cat {MAKER}/sriov_numvfs")).await? == "0").then_some(()))
            })
            .await?;
        world
            .until(&format!("no devices on offer by {node}"), async || {
                let node = Api::<Node>::all(world.client.clone()).get(&node).await?;
                let allocatable = node.status.and_then(|status| status.allocatable).unwrap_or_default();
                let none = |resource| allocatable.get(resource).is_none_or(|count| count.0 == "0");
                Ok(RESOURCES.into_iter().all(none).then_some(()))
            })
            .await?;
    }
    Ok(())
}
