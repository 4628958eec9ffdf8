//! No node runtime can write a status: guests are started and shut down all the same, and all is told once it can.

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding as Binding,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use vse_crds::{MicroVM, MicroVMPhase, VSE};
use vse_e2e::{Conditions, Result, World, ensure, hosts, json, scenario, tiny};

#[test]
fn holds_up_no_guest() {
    scenario("unwritten-status", async |world| {
        world.apply(&tiny("going", json!({}))).await?;
        world.ready("going", 1).await?;
        world.until_booted("going", 1).await?;
        let going = world.microvm("going", 1).await?;

        let policy = forbid(world).await?;
        world.api::<VSE>().delete("going", &DeleteParams::default()).await?;
        world.until("the guest was shut down", async || Ok(hosts::engine(&going).await.is_err().then_some(()))).await?;
        world.apply(&tiny("coming", json!({}))).await?;
        world.until_booted("coming", 1).await?;
        let said = world.microvm("going", 1).await?.status.and_then(|status| status.phase);
        ensure!(said == Some(MicroVMPhase::Running), "somebody wrote the status: {said:?}");
        ensure!(!world.vse("coming").await?.ready(1), "ready, and nobody could say so");

        Api::<Binding>::all(world.client.clone()).delete(&policy, &DeleteParams::default()).await?;
        world.ready("coming", 1).await?;
        world.until_gone(Some("going")).await
    });
}

/// Forbids all writes of a MicroVM's status in the scenario's namespace, by a policy that goes with it at the latest.
async fn forbid(world: &World) -> Result<String> {
    let name = format!("forbid-{}", world.namespace);
    let owner = Api::<Namespace>::all(world.client.clone()).get(&world.namespace).await?;
    let metadata = json!({"name": name, "ownerReferences": [{
        "apiVersion": "v1", "kind": "Namespace", "name": world.namespace, "uid": owner.uid(),
    }]});
    let policy = json!({"metadata": metadata, "spec": {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [{
            "apiGroups": ["vse.hpc.io"], "apiVersions": ["*"], "operations": ["UPDATE"],
            "resources": ["microvms/status"],
        }]},
        "validations": [{"expression": "false", "message": "not now"}],
    }});
    let binding = json!({"metadata": metadata, "spec": {
        "policyName": name, "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": world.namespace}}},
    }});
    create::<ValidatingAdmissionPolicy>(&world.client, policy).await?;
    create::<Binding>(&world.client, binding).await?;

    let dry = PatchParams { dry_run: true, ..PatchParams::default() };
    let nothing = Patch::Merge(json!({"status": {"kernel": "none"}}));
    world
        .until("statuses can't be written", async || {
            let tried = world.api::<MicroVM>().patch_status("going-1", &dry, &nothing).await;
            Ok(tried.is_err().then_some(()))
        })
        .await?;
    Ok(name)
}

async fn create<K>(client: &Client, object: vse_e2e::Value) -> Result<()>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    Api::<K>::all(client.clone()).create(&PostParams::default(), &serde_json::from_value(object)?).await.map(drop)?;
    Ok(())
}
