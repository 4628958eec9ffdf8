//! Manifests of the scenarios' guests.

use serde_json::{Value, json};

/// The smallest guest there is (images/tiny), with changes to its spec (a JSON merge patch).
pub fn tiny(name: &str, spec: Value) -> Value {
    let base = json!({
        "apiVersion": "vse.hpc.io/v1alpha1",
        "kind": "VSE",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 30,
            "system": {"image": "vse.hpc.io/tiny:dev", "imagePullPolicy": "IfNotPresent"},
            "machine": {"cpu": {"request": "20m"}, "memory": {"guest": "96Mi"}},
        },
    });
    patched(base, json!({"spec": spec}))
}

/// A claim of the cluster's default storage class.
pub fn claim(name: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    })
}

/// A manifest with a JSON merge patch (RFC 7396) applied.
pub fn patched(mut manifest: Value, patch: Value) -> Value {
    merge(&mut manifest, patch);
    manifest
}

fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (field, value) in patch {
        if value.is_null() {
            fields.remove(&field);
        } else {
            merge(fields.entry(field).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_add_replace_and_remove() {
        let vse = tiny("a", json!({"machine": {"memory": {"guest": "112Mi"}, "cpu": null}, "paused": true}));
        assert_eq!(vse["spec"]["machine"], json!({"memory": {"guest": "112Mi"}}));
        assert_eq!(vse["spec"]["paused"], true);
        assert_eq!(vse["spec"]["system"]["image"], "vse.hpc.io/tiny:dev");
    }
}
