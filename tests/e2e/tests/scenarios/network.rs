//! A guest on the pod network: its ports at the pod's address, from other hosts and by port-forward; others closed.

use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vse_e2e::console::Console;
use vse_e2e::{Context, Result, World, cluster, ensure, json, scenario, tiny};

#[test]
fn exposed_ports_are_reached_and_no_others() {
    scenario("network", async |world| {
        let networks = json!([{"name": "default", "pod": {}, "ports": [{"port": 80}]}]);
        world.apply(&tiny("server", json!({"networks": networks}))).await?;
        let status = world.ready("server", 1).await?;
        let address = status.addresses.first().context("no address")?.ip.clone();
        world.uptime("server", 1).await?;
        let mut console = Console::login(world, "server", 1).await?;
        console.run("httpd -p 8080 -h /srv").await?;
        assert_eq!(console.run("wget -q -O - http://127.0.0.1:8080/").await?, "tiny", "nothing listens on 8080");

        let own = status.node_name.context("no host")?;
        let other = cluster::nodes().await?.into_iter().find(|node| *node != own).context("only one node")?;
        let fetched = client(world, &other, &format!("http://{address}/")).await?;
        assert_eq!(fetched.trim(), "tiny");
        let refused = client(world, &other, &format!("http://{address}:8080/")).await?;
        ensure!(!refused.contains("tiny"), "a port that is not exposed answers: {refused}");

        let forwarded = forward(world, "server-1", 80).await?;
        ensure!(forwarded.contains("tiny"), "{forwarded}");
        // And out: the guest reaches the host of the other node, with the pod's address.
        let node_ip =
            cluster::kubectl(&["get", "node", &other, "-o", "jsonpath={.status.addresses[0].address}"]).await?;
        let kubelet = console.run(&format!("nc -w 5 {node_ip} 10250 </dev/null && echo reached")).await?;
        ensure!(kubelet.contains("reached"), "the guest reaches nothing outside: {kubelet}");
        Ok(())
    });
}

/// What a pod on a node gets from an address, or why it gets nothing.
async fn client(world: &World, node: &str, url: &str) -> Result<String> {
    let name = format!("client-{}", world.all::<Pod>().await?.len());
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node, "restartPolicy": "Never", "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "client", "image": "vse.hpc.io/tiny:dev", "imagePullPolicy": "IfNotPresent",
                "command": ["/usr/bin/wget", "-T", "5", "-q", "-O", "-", url],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    world.apply(&pod).await?;
    let what = format!("{name} has asked {url}");
    world
        .until(&what, async || {
            let phase = world.api::<Pod>().get(&name).await?.status.and_then(|status| status.phase);
            Ok(matches!(phase.as_deref(), Some("Succeeded" | "Failed")).then_some(()))
        })
        .await?;
    Ok(world.api::<Pod>().logs(&name, &LogParams::default()).await?)
}

/// What a web server answers through a forwarded port.
async fn forward(world: &World, pod: &str, port: u16) -> Result<String> {
    let mut forwarder = world.api::<Pod>().portforward(pod, &[port]).await?;
    let mut stream = forwarder.take_stream(port).context("no stream")?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(std::time::Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
    ensure!(read.is_ok(), "the forwarded port does not answer");
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
