//! Host devices: what a HostPolicy declares kubelet counts; a guest has its card, and the host has it back after; what the
//! host can't spare nobody gets.

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams};
use vse_crds::{Host, HostPolicy};
use vse_e2e::cluster::node_exec;
use vse_e2e::lab::{bare_metal, lab_scenario};
use vse_e2e::{Context, Result, Value, World, ensure, json, refusal};

/// Cards of a lab host (docs/lab.md): e1000e; igb, which makes virtual functions; e1000, in one group with a device of the
/// host's own.
const CARD: &str = "0000:00:08.0";
const MAKER: &str = "0000:00:0a.0";
const SHARED: &str = "0000:01:01.0";

fn policy() -> Value {
    let class = |name: &str, address: &str| json!({"name": name, "selector": {"addresses": [address]}});
    let vf = json!({"name": "vf", "selector": {"addresses": [MAKER]}, "virtualFunctions": 2});
    json!({
        "apiVersion": "vse.hpc.io/v1alpha1", "kind": "HostPolicy", "metadata": {"name": "lab-devices"},
        "spec": {"priority": 1000, "deviceClasses": [class("card", CARD), vf, class("shared", SHARED)]},
    })
}

fn with_device(name: &str, class: &str) -> Value {
    let device = json!({"name": "nic", "deviceName": format!("vse.hpc.io/{class}")});
    let cpu = json!({"cores": 1, "isolateEmulatorThread": false});
    bare_metal(name, json!({"machine": {"cpu": cpu, "devices": {"hostDevices": [device]}}}))
}

async fn attribute(node: &str, script: &str) -> Result<String> {
    Ok(node_exec(node, &format!("cd /sys/bus/pci/devices && {script}")).await?.trim().to_owned())
}

async fn refused(world: &World, name: &str, reason: &str, words: &str) -> Result<()> {
    let is = |vse: &_| refusal(vse).is_some_and(|(why, message)| why == reason && message.contains(words));
    world.until_vse(name, &format!("is refused: {reason}, {words}"), is).await.map(drop)
}

#[test]
fn a_class_is_waited_for_given_and_taken_back() {
    lab_scenario("devices", async |world| {
        world.apply(&with_device("early", "card")).await?;
        refused(world, "early", "DeviceClassNotFound", "hostDevices[nic].deviceName").await?;

        // The class comes, and the guest with its card. The virtual functions are counted by kubelet.
        world.apply(&policy()).await?;
        let node = world.ready("early", 1).await?.node_name.context("no host")?;
        let devices = world.microvm("early", 1).await?.status.map(|status| status.devices).unwrap_or_default();
        assert_eq!(devices.first().map(|device| device.addresses.clone()), Some(vec![CARD.to_owned()]));
        assert_eq!(attribute(&node, &format!("basename $(readlink {CARD}/driver)")).await?, "vfio-pci");
        let nodes = Api::<Node>::all(world.client.clone());
        world
            .until("kubelet counts two virtual functions", async || {
                let allocatable =
                    nodes.get(&node).await?.status.and_then(|status| status.allocatable).unwrap_or_default();
                Ok((allocatable.get("vse.hpc.io/vf").is_some_and(|count| count.0 == "2")).then_some(()))
            })
            .await?;

        // What shares a group with the host's own is offered to nobody, and the Host says why.
        world.apply(&with_device("greedy", "shared")).await?;
        refused(world, "greedy", "InsufficientDevices", "no host has 1 of vse.hpc.io/shared").await?;
        let host = Api::<Host>::all(world.client.clone()).get(&node).await?.status.context("the Host says nothing")?;
        let shared = host.device_classes.iter().find(|class| class.name == "shared").context("no class `shared`")?;
        ensure!(shared.devices == 0 && shared.message.contains("also has"), "{shared:?}");

        // The guest goes, and its card is the host's again; the policy goes, and its virtual functions with it.
        world.delete("early").await?;
        assert_eq!(attribute(&node, &format!("basename $(readlink {CARD}/driver)")).await?, "e1000e");
        let policies = Api::<HostPolicy>::all(world.client.clone());
        policies.delete("lab-devices", &DeleteParams::default()).await?;
        world
            .until("the virtual functions are gone", async || {
                Ok((attribute(&node, &format!("cat {MAKER}/sriov_numvfs")).await? == "0").then_some(()))
            })
            .await
    });
}
