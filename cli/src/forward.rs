//! The hidden `port-forward-stdio`: standard input and output become a connection to a port of the guest.

use crate::args::ForwardArgs;
use crate::cluster::Cluster;
use crate::find;
use anyhow::{Context, Result, bail};
use kube::ResourceExt;
use tokio::io::{AsyncWriteExt, copy, split, stdin, stdout};

/// Carries bytes both ways until the guest closes the connection or there is no more input.
pub async fn run(cluster: &Cluster, args: &ForwardArgs) -> Result<()> {
    let vse = find::vse(cluster, &args.name).await?;
    let pod = find::running_pod(cluster, &vse).await?.name_any();
    let port = args.port;
    let mut forwarder = find::pods(cluster)
        .portforward(&pod, &[port])
        .await
        .with_context(|| format!("can't forward to port {port} of pod {pod}"))?;
    let connection = forwarder.take_stream(port).context("the port was not forwarded")?;
    let refused = forwarder.take_error(port).context("the port was not forwarded")?;
    let (mut from_guest, mut to_guest) = split(connection);
    let send = async {
        copy(&mut stdin(), &mut to_guest).await?;
        to_guest.shutdown().await
    };
    let receive = async {
        let mut out = stdout();
        copy(&mut from_guest, &mut out).await?;
        out.flush().await
    };
    tokio::select! {
        received = receive => received.context("lost the connection")?,
        sent = send => sent.context("lost the connection")?,
        Some(why) = refused => bail!("port {port} of the guest can't be reached: {why}"),
    }
    Ok(())
}
