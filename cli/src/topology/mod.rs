//! `kubectl vse topology`: reads the objects, hands them to [`map`] and [`view`].

mod cpu_list;
mod devices;
mod map;
mod view;

use crate::args::{Output, ViewArgs};
use crate::cluster::Cluster;
use crate::find;
use crate::paint::Paint;
use anyhow::{Context, Result, bail};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use vse_crds::{Host, MicroVM, MicroVMPhase};

/// Prints a picture of the host a VSE is on.
pub async fn run(cluster: &Cluster, args: &ViewArgs) -> Result<()> {
    let vse = find::vse(cluster, &args.name).await?;
    let Some(vm) = find::microvm(cluster, &vse).await? else {
        bail!("{}", find::why_not_running(&vse));
    };
    if vm.status.as_ref().and_then(|status| status.cpus.as_ref()).is_none() {
        bail!("{}; which CPUs it has is known once its engine runs", find::why_not_running(&vse));
    }
    let host_name = &vm.spec.node_name;
    let host: Host = Api::<Host>::all(cluster.client.clone())
        .get(host_name)
        .await
        .with_context(|| format!("can't read host {host_name}; the ClusterRole vse-hosts-view gives the right to"))?;
    let (others, note) = others(cluster, &vm).await?;
    let map = map::draw_up(&host, &vm, &others);
    match args.output {
        Output::Json => println!("{:#}", serde_json::to_value(&map).context("can't write JSON")?),
        Output::Text => {
            print!("{}", view::render(&map, Paint::for_stdout()));
            if let Some(note) = note {
                println!("\nnote: {note}");
            }
        }
    }
    Ok(())
}

/// The other guests on the host: of all namespaces if the user may see them, else of this one.
async fn others(cluster: &Cluster, vm: &MicroVM) -> Result<(Vec<MicroVM>, Option<String>)> {
    let here = ListParams::default().fields(&format!("spec.nodeName={}", vm.spec.node_name));
    let everywhere: Api<MicroVM> = Api::all(cluster.client.clone());
    let (found, note) = match everywhere.list(&here).await {
        Err(kube::Error::Api(status)) if status.code == 403 => {
            let api: Api<MicroVM> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
            let note = format!("guests of other namespaces than {} are not shown", cluster.namespace);
            (api.list(&here).await, Some(note))
        }
        found => (found, None),
    };
    let others = found
        .context("can't list the host's other MicroVMs")?
        .into_iter()
        .filter(|other| other.uid() != vm.uid())
        .filter(|other| other.status.as_ref().and_then(|s| s.phase) != Some(MicroVMPhase::Released))
        .collect();
    Ok((others, note))
}
