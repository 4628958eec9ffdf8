//! What changes on a host is seen in its Host, and nothing is written when nothing did.

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use vse_crds::{Host, PageSize};
use vse_e2e::cluster::{node_exec, nodes};
use vse_e2e::{Context, Result, World, audit, ensure, json, scenario};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
/// Has the kernel say an event of a CPU again, which changes nothing (Documentation/ABI/testing/sysfs-uevent).
const EVENT: &str = "echo change >/sys/devices/system/cpu/cpu0/uevent";

#[test]
fn are_published_and_nothing_else() {
    scenario("host-changes", async |world| {
        let node = nodes().await?.into_iter().next().context("no node")?;
        let before = huge_pages(world, &node).await?;
        let mark = audit::mark().await?;
        // The host is looked at, and there is nothing to say.
        Word::OfTheKernel.give(world, &node).await?;
        Word::OfTheNode.give(world, &node).await?;
        for word in [Word::OfTheKernel, Word::OfTheNode] {
            let more = resized(world, &node, before + 1, word).await;
            resized(world, &node, before, word).await?;
            more?;
        }
        let of_host = format!("vse-node-runtime patch hosts/status /{node}");
        let writes = audit::writes_since(&mark).await?.into_iter().filter(|write| *write == of_host).count();
        ensure!(writes == 4, "written {writes} times for 4 changes");
        Ok(())
    });
}

/// What has a node runtime look at its host.
#[derive(Clone, Copy)]
enum Word {
    OfTheKernel,
    OfTheNode,
}

impl Word {
    async fn give(self, world: &World, node: &str) -> Result<()> {
        match self {
            Word::OfTheKernel => node_exec(node, EVENT).await.map(drop),
            Word::OfTheNode => touch_node(world, node).await,
        }
    }
}

/// Gives the pool that many pages, and waits until the Host shows them.
async fn resized(world: &World, node: &str, pages: u64, word: Word) -> Result<()> {
    node_exec(node, &format!("echo {pages} >{POOL}")).await?;
    word.give(world, node).await?;
    let what = format!("Host {node} shows {pages} huge pages");
    world.until(&what, async || Ok((huge_pages(world, node).await? == pages).then_some(()))).await
}

/// Huge pages of 2 MiB that the Host of that node shows.
async fn huge_pages(world: &World, node: &str) -> Result<u64> {
    let host = Api::<Host>::all(world.client.clone()).get(node).await?;
    let cells = host.status.context("the Host has no status")?.cells;
    let pools = cells.iter().flat_map(|cell| &cell.huge_pages).filter(|pool| pool.page_size == PageSize::TwoMi);
    Ok(pools.map(|pool| pool.total).sum())
}

/// Changes a Node without any meaning, as each of kubelet's reports does.
async fn touch_node(world: &World, node: &str) -> Result<()> {
    let now = jiff::Timestamp::now().as_microsecond().to_string();
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"e2e/touched": now}}}));
    Api::<Node>::all(world.client.clone()).patch(node, &PatchParams::default(), &patch).await.map(drop)?;
    Ok(())
}
