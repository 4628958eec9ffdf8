//! One manifest on each engine; what no engine or cell can serve.

use std::collections::BTreeSet;

use kube::api::{Api, ListParams};
use vse_crds::{Accelerator, EngineName, ExitReason, Host};
use vse_e2e::lab::{bare_metal, lab_scenario};
use vse_e2e::{Conditions, ensure, hosts, json, patched, refusal};

use crate::cards::{policy, with_devices, withdraw};

#[test]
fn one_manifest_runs_on_each_engine() {
    lab_scenario("engines", async |world| {
        // Cloud Hypervisor is one of them where its program was given (hack/install).
        let hosts = Api::<Host>::all(world.client.clone()).list(&ListParams::default()).await?.items;
        let offered = hosts.into_iter().flat_map(|host| host.status.unwrap_or_default().engines);
        let engines: BTreeSet<_> = offered.map(|engine| engine.name).collect();
        ensure!(engines.is_superset(&[EngineName::Vmm, EngineName::Qemu].into()), "{engines:?}");
        for engine in engines {
            let engine = engine.as_str();
            world.apply(&bare_metal("guest", json!({"engine": engine}))).await?;
            world.ready("guest", 1).await?;
            let microvm = world.microvm("guest", 1).await?;
            assert_eq!((microvm.spec.engine.as_str(), microvm.spec.accelerator), (engine, Accelerator::Kvm));
            world.until_booted("guest", 1).await?;
            hosts::engine(&microvm).await?;
            ensure!(world.uptime("guest", 1).await? > 0.0, "no uptime");
            world.delete("guest").await?;
        }
        Ok(())
    });
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    lab_scenario("refused", async |world| {
        world.apply(&policy("refused")).await?;
        // An engine that passes no devices.
        world.apply(&patched(with_devices("qemu", &["card"]), json!({"spec": {"engine": "qemu"}}))).await?;
        let lacks = |vse: &_| {
            let words = "lacks Passthrough, which spec.machine.devices.hostDevices needs";
            refusal(vse).is_some_and(|(_, message)| message.contains(words))
        };
        world.until_vse("qemu", "is refused for want of passthrough", lacks).await?;
        // More huge pages than any cell has, though fewer than its host. It never ran, so that it is tried again.
        let wide = json!({"machine": {"memory": {"guest": "1Gi"}}, "runStrategy": "Once"});
        world.apply(&bare_metal("wide", wide)).await?;
        let words = "spec.machine.memory: 512 huge pages of 2Mi are needed on one NUMA cell, cell 0 has ";
        let why = |vse: &_| Conditions::told(vse).conditions.iter().any(|c| c.message.contains(words));
        world.until_vse("wide", "is told of the cells", why).await?;
        let again = |vse: &_| {
            let status = Conditions::told(vse);
            status.incarnation > 1 && status.last_exit.is_some_and(|exit| exit.reason == ExitReason::PodRefused)
        };
        world.until_vse("wide", "is tried again", again).await?;
        withdraw(world, "refused").await
    });
}
