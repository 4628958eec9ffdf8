//! A stock distribution on a bare-metal host: real KVM, CPUs of its own, huge pages of one cell.

use kube::Api;
use vse_crds::{Accelerator, Host, vse_conditions::AGENT_CONNECTED};
use vse_e2e::lab::{self, Thread, bare_metal, lab_scenario};
use vse_e2e::{Conditions, Context, Shell, cluster, ensure, hosts};

/// 768 MiB, in pages of 2 MiB.
const PAGES: u64 = 384;

/// Faults of a vCPU's thread that are the engine's own.
const OWN_FAULTS: u64 = 4;

/// A worker of the kernel's own that KVM starts from the first vCPU's thread (arch/x86/kvm/mmu/mmu.c).
const KVM_WORKER: &str = "kvm-nx-lpage-re";

#[test]
fn stock_debian_with_cpus_and_huge_pages_of_one_cell() {
    lab_scenario("stock-debian", async |world| {
        let shell = Shell::new(world).await?;
        world.apply(&bare_metal("debian", shell.debian())).await?;
        world.ready("debian", 1).await?;
        let microvm = world.microvm("debian", 1).await?;
        assert_eq!(microvm.spec.accelerator, Accelerator::Kvm);
        let pod = world.pod("debian", 1).await?;
        assert_eq!(pod.status.and_then(|status| status.qos_class).as_deref(), Some("Guaranteed"));

        // All its CPUs are of one cell, the emulator's none of the vCPUs'.
        let placed = microvm.status.clone().and_then(|status| status.cpus).context("no CPUs in the status")?;
        let [first, second] = placed.pinned[..] else { vse_e2e::bail!("two vCPUs on {:?}", placed.pinned) };
        let emulator: u32 =
            placed.emulator.parse().with_context(|| format!("one emulator CPU: {}", placed.emulator))?;
        ensure!(first != second && emulator != first && emulator != second, "{}", placed.summary);
        let node = &microvm.spec.node_name;
        let host = Api::<Host>::all(world.client.clone()).get(node).await?;
        let topology = host.status.context("nothing in the Host's status")?.cpu.topology;
        let cell_of = |cpu: u32| topology.iter().find(|thread| thread.cpu == cpu).map(|thread| thread.cell);
        let cell = cell_of(first).context("the pinned CPU is not in the Host")?;
        ensure!([second, emulator].map(cell_of) == [Some(cell); 2], "{} is not of one cell", placed.summary);

        // So are the guest's pages, and it is booted as far as its agent.
        world.until_vse("debian", "has its agent connected", |vse| vse.is(AGENT_CONNECTED)).await?;
        let engine = hosts::engine(&microvm).await?;
        assert_eq!(lab::huge_pages(&engine).await?, [(cell, PAGES)].into());

        // Each vCPU runs where the status says; and nothing else of the engine does.
        let before = lab::threads(&engine).await?;
        let (vcpus, others): (Vec<&Thread>, Vec<&Thread>) = before
            .iter()
            .partition(|thread| ["CPU ", "vcpu"].iter().any(|of_a_vcpu| thread.name.starts_with(of_a_vcpu)));
        let allowed: Vec<&str> = vcpus.iter().map(|thread| thread.allowed.as_str()).collect();
        assert_eq!(allowed, [first.to_string(), second.to_string()]);
        let stray = others.iter().find(|thread| thread.allowed != placed.emulator && thread.name != KVM_WORKER);
        ensure!(stray.is_none(), "{stray:?} is not on {emulator}");

        // It has the caches of the CPUs it runs on, in cores of one socket and one cell.
        let caches = "lscpu -C=NAME,ONE-SIZE,WAYS,SETS,COHERENCY-SIZE";
        assert_eq!(shell.first("debian", caches).await?, cluster::node_exec(node, caches).await?.trim_end());
        let places = shell.run("debian", "lscpu -p=CPU,CORE,SOCKET,NODE | grep -v '#'").await?;
        assert_eq!(places, "0,0,0,0\n1,1,0,0");

        // In a minute of its work no vCPU moves, and none faults for memory of the guest's: all of it was there before it
        // started. The engine's own code may be used for the first time.
        let before = lab::threads(&engine).await?;
        let work = "timeout 60 sh -c 'while :; do :; done'";
        shell.run("debian", &format!("{work} & {work}; wait")).await?;
        let after = lab::threads(&engine).await?;
        for vcpu in vcpus {
            let of = |threads: &[Thread]| threads.iter().find(|thread| thread.name == vcpu.name).cloned();
            let (then, now) = of(&before).zip(of(&after)).context("a vCPU's thread is gone")?;
            ensure!((&now.allowed, now.last) == (&then.allowed, then.last), "{then:?} became {now:?}");
            ensure!(now.faults - then.faults <= OWN_FAULTS, "{then:?} became {now:?}");
        }

        // Deleted, its pages are free again.
        let used = lab::free_huge_pages(node).await?;
        world.delete("debian").await?;
        let free = lab::free_huge_pages(node).await?;
        assert_eq!(free.get(&cell).copied(), used.get(&cell).map(|pages| pages + PAGES));
        Ok(())
    });
}
