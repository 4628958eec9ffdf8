//! `kubectl vse status`: reads the objects, hands them to [`view`] and [`timeline`].

mod timeline;
mod view;

use crate::args::{Output, ViewArgs};
use crate::cluster::Cluster;
use crate::find;
use crate::paint::Paint;
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use serde::Serialize;
use vse_crds::{Host, MicroVM, VSE};

/// A VSE and what stands behind it, as read.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub struct Seen {
    pub vse: VSE,
    pub microvm: Option<MicroVM>,
    pub pod: Option<Pod>,
    pub host: Option<Host>,
    /// What could not be read, and why.
    pub notes: Vec<String>,
}

/// Prints the status of a VSE.
pub async fn run(cluster: &Cluster, args: &ViewArgs) -> Result<()> {
    let seen = read(cluster, &args.name).await?;
    let steps = timeline::steps(&seen);
    match args.output {
        Output::Json => {
            let mut json = serde_json::to_value(&seen).context("can't write JSON")?;
            json["timeline"] = serde_json::to_value(&steps).context("can't write JSON")?;
            println!("{json:#}");
        }
        Output::Text => print!("{}", view::render(&seen, &steps, jiff::Timestamp::now(), Paint::for_stdout())),
    }
    Ok(())
}

async fn read(cluster: &Cluster, name: &str) -> Result<Seen> {
    let vse = find::vse(cluster, name).await?;
    let microvm = find::microvm(cluster, &vse).await?;
    let mut notes = Vec::new();
    let pod = match find::incarnation(&vse) {
        Some(incarnation) => find::pods(cluster).get_opt(&incarnation).await.context("can't read the VM pod")?,
        None => None,
    };
    let host_name = microvm.as_ref().map(|vm| vm.spec.node_name.clone());
    let host = match host_name {
        Some(name) => host(cluster, &name, &mut notes).await,
        None => None,
    };
    let mut seen = Seen { vse, microvm, pod, host, notes };
    seen.forget_managers();
    Ok(seen)
}

/// A host. Users may lack the right to see hosts: that is a note, not an error.
async fn host(cluster: &Cluster, name: &str, notes: &mut Vec<String>) -> Option<Host> {
    let api: Api<Host> = Api::all(cluster.client.clone());
    match api.get_opt(name).await {
        Ok(Some(host)) => Some(host),
        Ok(None) => {
            notes.push(format!("host {name} has published nothing"));
            None
        }
        Err(error) => {
            notes.push(format!("can't read host {name}: {error}"));
            None
        }
    }
}

impl Seen {
    /// Drops who set which field: as kubectl does, since it is longer than all the rest.
    fn forget_managers(&mut self) {
        self.vse.metadata.managed_fields = None;
        let vm = self.microvm.iter_mut().map(|vm| &mut vm.metadata);
        let pod = self.pod.iter_mut().map(|pod| &mut pod.metadata);
        let host = self.host.iter_mut().map(|host| &mut host.metadata);
        vm.chain(pod).chain(host).for_each(|metadata| metadata.managed_fields = None);
    }

    /// `NAMESPACE/NAME` of the VSE.
    fn title(&self) -> String {
        let namespace = self.vse.namespace().unwrap_or_default();
        format!("{namespace}/{}", self.vse.name_any())
    }
}
