//! A host loses its power and comes back: nothing of its guests stays there, and each follows its run strategy; one with
//! a card gets it again.

use vse_crds::VSEPhase;
use vse_e2e::lab::{self, lab_scenario};
use vse_e2e::{Conditions, Context, cluster, ensure, hosts, json, patched};

use crate::cards::{CARD, policy, with_devices, withdraw};

#[test]
fn guests_follow_their_run_strategy_after_a_power_cut() {
    lab_scenario("reboot", async |world| {
        world.apply(&policy("reboot")).await?;
        let node = cluster::nodes().await?.into_iter().next().context("no hosts")?;
        for (name, class, strategy) in [("always", "card", "Always"), ("once", "vf", "Once")] {
            let there = json!({"runStrategy": strategy, "nodeSelector": {"kubernetes.io/hostname": node}});
            world.apply(&patched(with_devices(name, &[class]), json!({"spec": there}))).await?;
            world.ready(name, 1).await?;
        }
        let before = hosts::engine(&world.microvm("always", 1).await?).await?;
        let used = lab::free_huge_pages(&node).await?.values().sum::<u64>();

        lab::kill_node(&node).await?;
        lab::start_node(&node).await?;

        // One starts again as the next incarnation, the other has ended.
        let status = world.ready("always", 2).await?;
        let exit = status.last_exit.map(|exit| exit.incarnation);
        assert_eq!(exit, Some(1), "the end of the first life");
        let once = world.until_vse("once", "has ended", |vse| vse.phase() == Some(VSEPhase::Failed)).await?;
        let exit = once.told().last_exit;
        ensure!(exit.as_ref().is_some_and(|exit| exit.incarnation == 1 && exit.reason.is_failure()), "{exit:?}");

        let after = hosts::engine(&world.microvm("always", 2).await?).await?;
        ensure!(after != before, "the engine of before the power cut");
        // Of the two guests' 64 pages each, one's are in use.
        let free = lab::free_huge_pages(&node).await?.values().sum::<u64>();
        assert_eq!(free, used + 64);
        assert_eq!(lab::driver(&node, CARD).await?, "vfio-pci");
        world.until_booted("always", 2).await?;
        world.delete("always").await?;
        assert_eq!(lab::driver(&node, CARD).await?, "e1000e");
        world.delete("once").await?;
        withdraw(world, "reboot").await
    });
}
