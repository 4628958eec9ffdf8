//! Dedicated CPUs: each vCPU's thread is where the status says, and no other thread is there.

use vse_e2e::cluster::node_exec;
use vse_e2e::{Context, ensure, hosts, json, scenario, tiny};

#[test]
fn vcpus_are_pinned_where_the_status_says() {
    scenario("placement", async |world| {
        let dedicated = json!({"machine": {"cpu": {"request": null, "dedicatedCPUPlacement": true}}});
        world.apply(&tiny("pinned", dedicated)).await?;
        world.apply(&tiny("shared", json!({}))).await?;
        world.ready("pinned", 1).await?;
        let microvm = world.microvm("pinned", 1).await?;
        let cpus = microvm.status.clone().and_then(|status| status.cpus).context("no CPUs in the status")?;
        let [pinned] = cpus.pinned[..] else { vse_e2e::bail!("one vCPU on {:?}", cpus.pinned) };
        ensure!(cpus.summary == format!("0→{pinned}, emulator {}", cpus.emulator), "{}", cpus.summary);

        let engine = hosts::engine(&microvm).await?;
        let threads = format!(
            "cd /proc/{}/task && for t in *; do echo \"$(cat $t/comm);$(sed -n 's/^Cpus_allowed_list:\\t//p' $t/status)\"; done",
            engine.pid
        );
        let threads = node_exec(&engine.node, &threads).await?;
        let (vcpus, others): (Vec<_>, Vec<_>) =
            threads.lines().filter_map(|line| line.split_once(';')).partition(|(name, _)| name.starts_with("CPU "));
        assert_eq!(vcpus.iter().map(|(_, cpus)| *cpus).collect::<Vec<_>>(), [pinned.to_string()]);
        ensure!(others.iter().all(|(_, allowed)| *allowed == cpus.emulator), "{others:?}, not {}", cpus.emulator);

        // A guest with shared CPUs keeps away from it, on the same host.
        world.ready("shared", 1).await?;
        let shared = world.microvm("shared", 1).await?;
        let floating = shared.status.clone().and_then(|status| status.cpus).context("no CPUs in the status")?;
        ensure!(floating.pinned.is_empty(), "{:?}", floating.pinned);
        if shared.spec.node_name == microvm.spec.node_name {
            let process = hosts::engine(&shared).await?.proc("status").await?;
            let allowed =
                process.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap_or_default();
            ensure!(allowed != cpus.emulator, "a shared guest runs on dedicated CPUs {allowed}");
        }
        Ok(())
    });
}
