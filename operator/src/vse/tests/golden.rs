//! Golden files of what the builders make. `UPDATE_GOLDEN=1 cargo test -p vse-operator golden` writes them anew.

use super::{from_yaml, host, images, vse};
use crate::vse::microvm::{self, Placement};
use crate::vse::observe::Observed;
use crate::vse::order::Order;
use crate::vse::pod;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use vse_crds::{EngineName, VSE};

/// Every field that shapes a pod.
const FULL: &str = r"
apiVersion: vse.hpc.io/v1alpha1
kind: VSE
metadata: {name: full.demo, namespace: team, uid: vse-uid, generation: 1}
spec:
  terminationGracePeriodSeconds: 90
  system:
    image: example.org/debian-hpc:13
    imagePullPolicy: Never
    root: Disk
    rootVolume: root
    kernelArguments: [mitigations=off]
    cloudInit: {hostname: full, userDataSecretRef: {name: seed}}
  machine:
    cpu: {cores: 2, threads: 2, dedicatedCPUPlacement: true, isolateEmulatorThread: true}
    memory: {guest: 1Gi, hugepages: {pageSize: 2Mi}}
  disks:
  - {name: data, order: 1, readOnly: true}
  volumes:
  - {name: root, persistentVolumeClaim: {claimName: root-claim}}
  - {name: data, persistentVolumeClaim: {claimName: data-claim}}
  - {name: scratch, emptyDisk: {capacity: 20Gi}}
  networks:
  - name: default
    ports: [{name: ssh, port: 22}, {port: 4789, protocol: UDP}]
  nodeSelector: {zone: a}
  tolerations: [{key: hpc, operator: Exists}]
  priorityClassName: high
";

const CLAIMS: [&str; 2] = [
    r"{metadata: {name: root-claim}, spec: {volumeMode: Filesystem, resources: {requests: {storage: 10Gi}}}}",
    r"{metadata: {name: data-claim}, spec: {volumeMode: Block}, status: {capacity: {storage: 5Gi}}}",
];

fn check(name: &str, vse: VSE, incarnation: i64) {
    let claims = CLAIMS.map(from_yaml::<k8s_openapi::api::core::v1::PersistentVolumeClaim>);
    let seen = Observed {
        vse: Arc::new(vse),
        profile: None,
        claims: claims.into_iter().map(|claim| (claim.metadata.name.clone().unwrap(), Arc::new(claim))).collect(),
        hosts: vec![host()],
        engines: EngineName::ALL.into(),
        pods: Vec::new(),
        microvms: Vec::new(),
        pod_warning: None,
        now: jiff::Timestamp::UNIX_EPOCH,
    };
    let order = Order::new(&seen, None).unwrap();
    let pod = pod::build(&seen.vse, incarnation, &order, &images());
    let placement = Placement {
        pod_name: pod.metadata.name.clone().unwrap(),
        pod_uid: "pod-uid".into(),
        node_name: "host-1".into(),
    };
    let vm = microvm::build(&seen.vse, incarnation, &order, &placement);
    let built =
        BTreeMap::from([("pod", serde_json::to_value(pod).unwrap()), ("microvm", serde_json::to_value(vm).unwrap())]);
    let built = serde_yaml::to_string(&built).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/vse/tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &built).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(built == golden, "{name} is not what is built now; see the module's words on how to update it:\n{built}");
}

#[test]
fn small() {
    check("small.yaml", vse(), 1);
}

#[test]
fn full() {
    let mut vse: VSE = from_yaml(FULL);
    vse.metadata.annotations =
        Some(BTreeMap::from([(vse_crds::labels::RESTARTED_AT.to_owned(), "2026-01-01T00:00:00Z".to_owned())]));
    check("full.yaml", vse, 12);
}
