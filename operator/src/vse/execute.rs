//! Carries out a plan's actions: one call to the API server each, with the preconditions that make a plan from a stale
//! view harmless. Makes no choices.

use crate::error::{Error, is_conflict, is_not_found};
use crate::vse::names;
use crate::vse::plan::{Action, Target};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use std::fmt::Debug;
use vse_crds::{GROUP, MicroVM, VERSION, VSE, VSEStatus, labels};

/// The API server, for one VSE.
pub struct Executor<'a> {
    vse: &'a VSE,
    vses: Api<VSE>,
    pods: Api<Pod>,
    microvms: Api<MicroVM>,
}

impl<'a> Executor<'a> {
    /// For one VSE.
    pub fn new(client: &Client, vse: &'a VSE) -> Self {
        let namespace = vse.namespace().unwrap_or_default();
        Executor {
            vse,
            vses: Api::namespaced(client.clone(), &namespace),
            pods: Api::namespaced(client.clone(), &namespace),
            microvms: Api::namespaced(client.clone(), &namespace),
        }
    }

    /// Carries out one action.
    pub async fn execute(&self, action: &Action) -> Result<(), Error> {
        match action {
            Action::AddFinalizer => {
                let mut finalizers = self.vse.finalizers().to_vec();
                finalizers.push(labels::FINALIZER.to_owned());
                set_finalizers(&self.vses, "VSE", &self.vse.metadata, finalizers).await
            }
            Action::RemoveFinalizer => {
                self.nothing_left().await?;
                let finalizers = without_ours(self.vse.finalizers());
                set_finalizers(&self.vses, "VSE", &self.vse.metadata, finalizers).await
            }
            Action::CreatePod(pod) => self.create(&self.pods, "Pod", pod.as_ref()).await,
            Action::DeletePod(target) => delete(&self.pods, "Pod", target).await,
            Action::CreateMicroVM(vm) => self.create(&self.microvms, "MicroVM", vm.as_ref()).await,
            Action::Adjust(target, adjustable) => {
                let patch = json!({
                    "metadata": {"uid": target.uid},
                    "spec": adjustable,
                });
                let patched = self.microvms.patch(&target.name, &params(), &Patch::Merge(patch)).await;
                done(patched, format!("patch MicroVM {}", target.name))
            }
            Action::DeleteMicroVM(target) => delete(&self.microvms, "MicroVM", target).await,
            Action::ReleaseMicroVM(target) => {
                let call = format!("get MicroVM {}", target.name);
                let found = self.microvms.get_metadata_opt(&target.name).await;
                let Some(vm) = found.map_err(Error::api(call))? else {
                    return Ok(());
                };
                if vm.metadata.uid.as_deref() != Some(&target.uid) {
                    return Ok(());
                }
                let finalizers = without_ours(vm.finalizers());
                set_finalizers(&self.microvms, "MicroVM", &vm.metadata, finalizers).await
            }
        }
    }

    /// Writes the VSE's status, if nobody changed the VSE since it was observed. This is what makes a claim exclusive.
    pub async fn write_status(&self, status: &VSEStatus) -> Result<(), Error> {
        let name = self.vse.name_any();
        let patch = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "VSE",
            "metadata": {
                "name": name,
                "uid": self.vse.metadata.uid,
                "resourceVersion": self.vse.metadata.resource_version,
            },
            "status": status,
        });
        let written = self.vses.patch_status(&name, &params().force(), &Patch::Apply(patch)).await;
        match written {
            Err(error) if is_conflict(&error) || is_not_found(&error) => {
                Err(Error::Stale { what: format!("VSE {name}") })
            }
            other => done(other, format!("write status of VSE {name}")),
        }
    }

    /// Creates an object of the claimed incarnation. One that exists already and is the VSE's own is the same.
    async fn create<K>(&self, api: &Api<K>, kind: &'static str, object: &K) -> Result<(), Error>
    where
        K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Debug,
    {
        self.claim_holds(object).await?;
        let name = object.name_any();
        let exists = match api.create(&PostParams::default(), object).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => true,
            other => return done(other, format!("create {kind} {name}")),
        };
        debug_assert!(exists);
        let call = format!("get {kind} {name}");
        let found = api.get_metadata_opt(&name).await.map_err(Error::api(call))?;
        let uid = self.vse.metadata.uid.as_deref().unwrap_or_default();
        match found {
            Some(found) if names::incarnation(&found.metadata, uid).is_none() => Err(Error::NameTaken { kind, name }),
            _ => Ok(()),
        }
    }

    /// Whether the incarnation is still the latest and not over, by the API server's own word: the cache may be older
    /// than the end of this incarnation and the claim of the next.
    async fn claim_holds<K: Resource>(&self, object: &K) -> Result<(), Error> {
        let name = self.vse.name_any();
        let stale = || Error::Stale { what: format!("VSE {name}") };
        let found = self.vses.get_opt(&name).await;
        let vse = found.map_err(Error::api(format!("get VSE {name}")))?.ok_or_else(stale)?;
        let uid = vse.metadata.uid.as_deref().unwrap_or_default();
        let status = vse.status.clone().unwrap_or_default();
        let over = status.last_exit.is_some_and(|exit| exit.incarnation >= status.incarnation);
        let holds = names::incarnation(object.meta(), uid) == Some(status.incarnation)
            && !over
            && vse.metadata.deletion_timestamp.is_none();
        if holds { Ok(()) } else { Err(stale()) }
    }

    /// Whether nothing of the VSE is left, by the API server's own word.
    async fn nothing_left(&self) -> Result<(), Error> {
        let name = self.vse.name_any();
        let uid = self.vse.metadata.uid.as_deref().unwrap_or_default();
        let params = ListParams::default().labels(&format!("{}={name}", labels::VSE));
        let pods = self.pods.list_metadata(&params).await;
        let pods = pods.map_err(Error::api("list pods"))?;
        let vms = self.microvms.list_metadata(&params).await;
        let vms = vms.map_err(Error::api("list MicroVMs"))?;
        let mut left = pods.iter().map(|o| &o.metadata);
        let mut left_vms = vms.iter().map(|o| &o.metadata);
        let ours = |meta| names::incarnation(meta, uid).is_some();
        if left.any(ours) || left_vms.any(ours) {
            return Err(Error::Stale { what: format!("what belongs to VSE {name}") });
        }
        Ok(())
    }
}

/// The operator as field manager.
pub(crate) fn params() -> PatchParams {
    PatchParams::apply(labels::OPERATOR)
}

/// The finalizers that are somebody else's.
pub(crate) fn without_ours(finalizers: &[String]) -> Vec<String> {
    finalizers.iter().filter(|finalizer| *finalizer != labels::FINALIZER).cloned().collect()
}

/// Replaces the finalizers of an object, if it did not change since it was read. An object that is gone has none.
pub(crate) async fn set_finalizers<K>(
    api: &Api<K>,
    kind: &str,
    read: &kube::api::ObjectMeta,
    finalizers: Vec<String>,
) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let name = read.name.as_deref().unwrap_or_default();
    let patch = json!({"metadata": {
        "uid": read.uid,
        "resourceVersion": read.resource_version,
        "finalizers": finalizers,
    }});
    let params = PatchParams { field_manager: Some(labels::OPERATOR.to_owned()), ..PatchParams::default() };
    let patched = api.patch_metadata(name, &params, &Patch::Merge(patch)).await;
    match patched {
        Err(error) if is_not_found(&error) => Ok(()),
        other => done(other, format!("patch finalizers of {kind} {name}")),
    }
}

/// Deletes the one object meant; that it is gone already, or another has its name, is as good.
async fn delete<K>(api: &Api<K>, kind: &str, target: &Target) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let params =
        DeleteParams::default().preconditions(Preconditions { uid: Some(target.uid.clone()), resource_version: None });
    match api.delete(&target.name, &params).await {
        Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
        other => done(other, format!("delete {kind} {}", target.name)),
    }
}

fn done<T>(result: kube::Result<T>, call: String) -> Result<(), Error> {
    result.map(drop).map_err(Error::api(call))
}
