//! Writes what is said of a guest, beside the guest's steps: what can't be written now is tried again and holds up
//! nothing. What is overtaken by something newer before it was written is never written.

use super::Context;
use crate::report;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde_json::json;
use std::time::Duration;
use tokio::sync::watch;
use vse_crds::{MicroVM, MicroVMPhase, MicroVMStatus, labels};
use vse_node_runtime::crash_point::Step;

/// Wait after the first failed attempt; each further one doubles it …
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// … up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(8);

/// Writes the status of one MicroVM whenever something new is said of it; ends with its sender, when the last word is
/// written.
pub(super) async fn publish(context: &Context, vm: &MicroVM, said: watch::Receiver<Option<MicroVMStatus>>) {
    let vms: Api<MicroVM> = Api::namespaced(context.client.clone(), &vm.namespace().unwrap_or_default());
    let name = vm.name_any();
    keep_written(said, |status| write(context, &vms, &name, status)).await;
}

async fn write(context: &Context, vms: &Api<MicroVM>, name: &str, status: MicroVMStatus) -> kube::Result<()> {
    let patch = json!({ "apiVersion": MicroVM::api_version(&()), "kind": MicroVM::kind(&()), "status": status });
    let params = PatchParams::apply(labels::NODE_RUNTIME).force();
    match vms.patch_status(name, &params, &Patch::Apply(patch)).await {
        // The object went away in the meantime; the watch will say so.
        Err(kube::Error::Api(refusal)) if refusal.code == 404 => return Ok(()),
        written => written?,
    };
    context.metrics.status_writes.inc();
    match status.phase {
        Some(MicroVMPhase::Running) => context.crash_points.after(Step::RunningSaid),
        Some(MicroVMPhase::Released) => context.crash_points.after(Step::ReleasedSaid),
        _ => {}
    }
    Ok(())
}

async fn keep_written<W: Future<Output = Result<(), E>>, E: std::error::Error + 'static>(
    mut said: watch::Receiver<Option<MicroVMStatus>>,
    mut write: impl FnMut(MicroVMStatus) -> W,
) {
    while said.changed().await.is_ok() {
        let mut wait = FIRST_WAIT;
        loop {
            let Some(newest) = said.borrow_and_update().clone() else { break };
            let Err(error) = write(newest).await else { break };
            tracing::warn!(error = %report(&error), "status not written, will try again");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn of(phase: MicroVMPhase) -> Option<MicroVMStatus> {
        Some(MicroVMStatus { phase: Some(phase), ..MicroVMStatus::default() })
    }

    /// Says both while the API server is away for so many attempts; what was written in the end.
    async fn written(first: MicroVMPhase, last: MicroVMPhase, failures: usize) -> Vec<MicroVMPhase> {
        let (attempts, written) = (RefCell::new(0), RefCell::new(Vec::new()));
        let (say, said) = watch::channel(None);
        let keep = keep_written(said, async |status: MicroVMStatus| {
            *attempts.borrow_mut() += 1;
            if *attempts.borrow() <= failures {
                return Err(std::io::Error::other("away"));
            }
            written.borrow_mut().extend(status.phase);
            Ok(())
        });
        let steps = async move {
            say.send_replace(of(first));
            tokio::time::sleep(Duration::from_millis(10)).await;
            say.send_replace(of(last));
        };
        tokio::join!(keep, steps);
        written.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_word_is_written_after_its_sender_is_gone() {
        use MicroVMPhase::{Released, Running};
        assert_eq!(written(Running, Released, 0).await, [Running, Released]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_overtaken_is_not_written() {
        use MicroVMPhase::{Released, Running};
        assert_eq!(written(Running, Released, 5).await, [Released]);
    }
}
