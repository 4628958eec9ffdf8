//! Short hashes of a resolved spec by field path, kept on the pod it was made into, pure. They tell which fields of a
//! running incarnation differ from what would be made now, without keeping the fields themselves (user data may be
//! 256 KiB).

use crate::vse::merge::ResolvedSpec;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Annotation on VM pods with the fingerprint of the spec they were made from, as JSON.
pub const ANNOTATION: &str = "vse.hpc.io/spec-fingerprint";

/// How deep a field path goes: `machine.cpu.cores`.
const DEPTH: usize = 3;

/// Field path to hash of the value there; fields that are not given are not in it.
pub type Fingerprint = BTreeMap<String, String>;

/// The fingerprint of a spec.
pub fn fingerprint(spec: &ResolvedSpec) -> Fingerprint {
    let mut prints = Fingerprint::new();
    let value = serde_json::to_value(spec).unwrap_or_default();
    walk("spec", &value, 0, &mut prints);
    prints
}

/// Field paths that differ between two fingerprints, in order.
pub fn changed(was: &Fingerprint, is: &Fingerprint) -> Vec<String> {
    let mut paths: Vec<_> =
        was.keys().chain(is.keys()).filter(|path| was.get(*path) != is.get(*path)).cloned().collect();
    paths.sort();
    paths.dedup();
    paths
}

fn walk(path: &str, value: &Value, depth: usize, prints: &mut Fingerprint) {
    match value {
        Value::Null => {}
        Value::Array(items) if items.is_empty() => {}
        Value::Object(fields) if depth < DEPTH => {
            for (field, value) in fields {
                walk(&format!("{path}.{field}"), value, depth + 1, prints);
            }
        }
        value => {
            prints.insert(path.to_owned(), short_hash(&value.to_string()));
        }
    }
}

/// The first 8 hexadecimal digits of SHA-256: enough to tell two versions of one field apart.
fn short_hash(text: &str) -> String {
    Sha256::digest(text.as_bytes())[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}
