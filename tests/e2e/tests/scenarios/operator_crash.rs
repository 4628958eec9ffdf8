//! The operator is killed again and again while VSEs are created: each gets one pod and one MicroVM.

use k8s_openapi::api::core::v1::Pod;
use vse_crds::MicroVM;
use vse_e2e::cluster::{node_exec, nodes};
use vse_e2e::{Conditions, ensure, hosts, json, scenario, tiny};

#[test]
fn makes_nothing_twice() {
    scenario("operator-crash", async |world| {
        let names = ["a", "b", "c"];
        let nodes = nodes().await?;
        for name in names {
            world.apply(&tiny(name, json!({}))).await?;
            for node in &nodes {
                node_exec(node, "pkill -9 -x vse-operator || true").await?;
            }
            let claimed = |vse: &vse_crds::VSE| vse.told().incarnation > 0;
            world.until_vse(name, "is claimed", claimed).await?;
        }
        for name in names {
            let status = world.ready(name, 1).await?;
            assert_eq!(status.recent_failures, 0);
            hosts::engine(&world.microvm(name, 1).await?).await?;
        }
        ensure!(world.all::<Pod>().await?.len() == names.len(), "another number of pods");
        ensure!(world.all::<MicroVM>().await?.len() == names.len(), "another number of MicroVMs");
        Ok(())
    });
}
