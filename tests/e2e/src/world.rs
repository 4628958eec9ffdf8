//! The world of one scenario: a namespace of its own, what it applies there, and what it sees.

use crate::{Conditions, cluster, hosts, wait};
use anyhow::{Context, Result, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::PostParams;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, LogParams, Patch, PatchParams,
};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fmt::Debug;
use vse_crds::{MicroVM, VSE, VSEStatus, labels};

/// Field manager of the scenarios: a user.
const USER: &str = "e2e";
/// Kinds without a namespace that scenarios make.
const CLUSTER_KINDS: [&str; 4] = ["VSEProfile", "HostPolicy", "PersistentVolume", "Host"];

/// The world of one scenario.
pub struct World {
    /// The cluster's administrator.
    pub client: Client,
    /// The scenario's namespace.
    pub namespace: String,
    /// What it made outside of that.
    outside: RefCell<Vec<(ApiResource, String)>>,
}

impl World {
    /// A fresh namespace for a scenario. It enforces the Pod Security Standard `restricted`, so every VM pod in it is
    /// proved to be without privilege.
    pub(crate) async fn new(scenario: &str) -> Result<Self> {
        ensure!(
            std::env::var_os("KUBECONFIG").is_some(),
            "KUBECONFIG names no cluster; run the scenarios by `make test`"
        );
        let client = Client::try_default().await.context("can't read KUBECONFIG")?;
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {
            "generateName": format!("e2e-{scenario}-"),
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        }}))?;
        let made = Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(Self { client, namespace: made.name_any(), outside: RefCell::default() })
    }

    /// Objects of a kind in the scenario's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Server-side apply of a manifest as a user does it, unknown fields refused.
    pub async fn apply(&self, manifest: &Value) -> kube::Result<DynamicObject> {
        let text = |field: &str| manifest[field].as_str().unwrap_or_default();
        let (group, version) = text("apiVersion").rsplit_once('/').unwrap_or(("", text("apiVersion")));
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text("kind")));
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
        let api: Api<DynamicObject> = if CLUSTER_KINDS.contains(&text("kind")) {
            self.outside.borrow_mut().push((kind.clone(), name.to_owned()));
            Api::all_with(self.client.clone(), &kind)
        } else {
            Api::namespaced_with(self.client.clone(), &self.namespace, &kind)
        };
        api.patch(name, &PatchParams::apply(USER).validation_strict(), &Patch::Apply(manifest)).await
    }

    /// Changes a VSE by a JSON merge patch, as `kubectl patch` does.
    pub async fn patch(&self, name: &str, patch: Value) -> kube::Result<VSE> {
        self.api::<VSE>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
    }

    /// A VSE.
    pub async fn vse(&self, name: &str) -> Result<VSE> {
        self.get(name).await
    }

    /// The MicroVM of an incarnation.
    pub async fn microvm(&self, vse: &str, incarnation: i64) -> Result<MicroVM> {
        self.get(&labels::incarnation_name(vse, incarnation)).await
    }

    /// The pod of an incarnation.
    pub async fn pod(&self, vse: &str, incarnation: i64) -> Result<Pod> {
        self.get(&labels::incarnation_name(vse, incarnation)).await
    }

    async fn get<K>(&self, name: &str) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        Ok(self.api::<K>().get(name).await?)
    }

    /// All objects of a kind.
    pub async fn all<K>(&self) -> Result<Vec<K>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        Ok(self.api::<K>().list(&ListParams::default()).await?.items)
    }

    /// Waits until the probe has a value.
    pub async fn until<T>(&self, what: &str, probe: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
        wait::until(what, probe).await
    }

    /// Waits until a VSE is as the predicate says, and returns it.
    pub async fn until_vse(&self, name: &str, what: &str, is: impl Fn(&VSE) -> bool) -> Result<VSE> {
        let is = &is;
        self.until(&format!("{name} {what}"), async || Ok(Some(self.vse(name).await?).filter(is))).await
    }

    /// Waits until incarnation `n` of a VSE is ready, and returns its status.
    pub async fn ready(&self, name: &str, n: i64) -> Result<VSEStatus> {
        Ok(self.until_vse(name, &format!("is ready, incarnation {n}"), |vse| vse.ready(n)).await?.told())
    }

    /// What an incarnation's console showed so far.
    pub async fn console_log(&self, vse: &str, incarnation: i64) -> Result<String> {
        let pod = labels::incarnation_name(vse, incarnation);
        Ok(self.api::<Pod>().logs(&pod, &LogParams::default()).await?)
    }

    /// Waits until an incarnation's console has shown a text.
    pub async fn until_console(&self, vse: &str, incarnation: i64, text: &str) -> Result<()> {
        let what = format!("console of {vse}-{incarnation} shows {text:?}");
        self.until(&what, async || Ok(self.console_log(vse, incarnation).await?.contains(text).then_some(()))).await
    }

    /// Waits until an incarnation's guest has booted as far as its login.
    pub async fn until_booted(&self, vse: &str, incarnation: i64) -> Result<()> {
        self.until_console(vse, incarnation, "tiny: ready").await
    }

    /// What a web server in the guest answers, asked through the API server's proxy to the pod.
    pub async fn http(&self, vse: &str, incarnation: i64, path: &str) -> Result<String> {
        let pod = labels::incarnation_name(vse, incarnation);
        let path = format!("/api/v1/namespaces/{}/pods/{pod}:80/proxy{path}", self.namespace);
        Ok(self.client.request_text(http::Request::get(path).body(Vec::new())?).await?)
    }

    /// Seconds since a tiny guest's boot: tells one life of it from the next.
    pub async fn uptime(&self, vse: &str, incarnation: i64) -> Result<f64> {
        let what = format!("{vse}-{incarnation} tells its uptime");
        self.until(&what, async || Ok(self.http(vse, incarnation, "/cgi-bin/uptime").await?.trim().parse().ok())).await
    }

    /// Deletes a VSE, and waits until nothing of it is left in the API.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.api::<VSE>().delete(name, &DeleteParams::default()).await?;
        self.until_gone(Some(name)).await
    }

    /// Waits until one VSE, or all of them, and their pods and MicroVMs are gone.
    pub async fn until_gone(&self, name: Option<&str>) -> Result<()> {
        let of = name.map_or(labels::VSE.to_owned(), |name| format!("{}={name}", labels::VSE));
        let owned = ListParams::default().labels(&of);
        let what = format!("{} and all of it is gone", name.unwrap_or("every VSE"));
        self.until(&what, async || {
            let vses =
                self.all::<VSE>().await?.iter().filter(|vse| name.is_none_or(|name| vse.name_any() == name)).count();
            let microvms = self.api::<MicroVM>().list(&owned).await?.items.len();
            let pods = self.api::<Pod>().list(&owned).await?.items.len();
            Ok((vses + microvms + pods == 0).then_some(()))
        })
        .await
    }

    /// Deletes every VSE of the scenario, and waits until neither the API nor any host has anything of them.
    pub(crate) async fn finish(&self) -> Result<()> {
        self.api::<VSE>().delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        self.until_gone(None).await?;
        self.nothing_left().await
    }

    /// Waits until the hosts have nothing of guests that are gone.
    pub async fn nothing_left(&self) -> Result<()> {
        let mut last = Vec::new();
        let nodes = cluster::nodes().await?;
        let clean = self
            .until("nothing is left on the hosts", async || {
                last = hosts::leftovers(&self.client, &nodes).await?;
                Ok(last.is_empty().then_some(()))
            })
            .await;
        clean.with_context(|| format!("left on the hosts:\n  {}", last.join("\n  ")))
    }

    /// Deletes the namespace with all that is in it, and what was made outside of it, not waiting for the end.
    pub(crate) async fn remove(&self) -> Result<()> {
        for (kind, name) in self.outside.take() {
            match Api::<DynamicObject>::all_with(self.client.clone(), &kind)
                .delete(&name, &DeleteParams::default())
                .await
            {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                deleted => drop(deleted?),
            }
        }
        Api::<Namespace>::all(self.client.clone()).delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }
}
