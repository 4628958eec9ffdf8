//! Guests of one image share what their host made of it.

use vse_e2e::{Result, cluster, ensure, json, scenario, tiny};

#[test]
fn is_made_once_for_a_host() {
    scenario("shared-image", async |world| {
        let node = cluster::nodes().await?.into_iter().next().unwrap_or_default();
        let on_it = json!({"nodeSelector": {"kubernetes.io/hostname": node}});
        world.apply(&tiny("first", on_it.clone())).await?;
        world.ready("first", 1).await?;
        let made = images(&node).await?;
        world.apply(&tiny("second", on_it)).await?;
        world.ready("second", 1).await?;
        ensure!(images(&node).await? == made, "the second guest had its image made anew");
        Ok(())
    });
}

/// Names of the prepared images of a host.
async fn images(node: &str) -> Result<String> {
    cluster::node_exec(node, "ls /var/lib/vse/images").await
}
