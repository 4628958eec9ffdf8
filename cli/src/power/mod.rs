//! `kubectl vse start|stop|restart|pause|resume`: one patch of the VSE, and waiting for what it asks for.

mod plan;

use crate::args::{Connect, Output, PowerArgs};
use crate::cluster::Cluster;
use crate::{find, wait};
use anyhow::{Context, Result, bail};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
pub use plan::Action;
use plan::Change;
use vse_crds::VSE;

/// How often a patch is tried again after somebody else changed the VSE in between.
const ATTEMPTS: usize = 5;

/// Does it, and says what was done.
pub async fn run(connect: &Connect, action: Action, args: &PowerArgs) -> Result<()> {
    let cluster = Cluster::connect(connect).await?;
    let api: Api<VSE> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let before = find::vse(&cluster, &args.name).await?;
    let goal = plan::goal(action, &before);
    let (mut vse, changed) = change(&cluster, &api, action, before).await?;
    if args.wait {
        eprintln!("{}", plan::waiting(action, &args.name));
        vse = wait::until(&api, &args.name, args.timeout, |vse| plan::reached(&goal, vse)).await?;
    }
    vse.metadata.managed_fields = None;
    match args.output {
        Output::Json => println!("{:#}", serde_json::to_value(&vse).context("can't write JSON")?),
        Output::Text => println!("vse/{} {}", args.name, plan::said(action, changed, args.wait)),
    }
    Ok(())
}

/// Patches the VSE unless it asks for this already; the flag says which.
async fn change(cluster: &Cluster, api: &Api<VSE>, action: Action, mut vse: VSE) -> Result<(VSE, bool)> {
    for _ in 0..ATTEMPTS {
        let patch = match plan::change(action, &vse, jiff::Timestamp::now()) {
            Change::None => return Ok((vse, false)),
            Change::Refused(why) => bail!("{why}"),
            Change::Patch(patch) => patch,
        };
        let name = vse.name_any();
        let params = PatchParams { field_manager: Some("kubectl-vse".into()), ..PatchParams::default() };
        match api.patch(&name, &params, &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => vse = find::vse(cluster, &name).await?,
            patched => {
                let patched = patched.with_context(|| format!("can't change VSE {}/{name}", cluster.namespace))?;
                return Ok((patched, true));
            }
        }
    }
    bail!("VSE {} was changed by others again and again; try once more", vse.name_any())
}
