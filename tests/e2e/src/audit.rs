//! Who writes what, out of the API server's audit log.

use crate::cluster;
use anyhow::Result;
use serde_json::Value;

/// A place in the audit log to count from.
pub struct Mark(usize);

/// The present end of the log.
pub async fn mark() -> Result<Mark> {
    Ok(Mark(cluster::audit_log().await?.len()))
}

/// Successful writes of our components since then, leases and Events apart, as `user verb resource namespace/name`.
pub async fn writes_since(mark: &Mark) -> Result<Vec<String>> {
    let log = cluster::audit_log().await?;
    let new = log.get(mark.0..).unwrap_or(&log);
    Ok(new.lines().filter_map(|line| serde_json::from_str(line).ok()).filter_map(|entry| write(&entry)).collect())
}

fn write(entry: &Value) -> Option<String> {
    let user = entry["user"]["username"].as_str()?.strip_prefix("system:serviceaccount:vse-system:")?;
    let done = entry["responseStatus"]["code"].as_u64()? < 300;
    let object = &entry["objectRef"];
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let counts = done && !["events", "leases"].contains(&text("resource"));
    counts.then(|| {
        let verb = entry["verb"].as_str().unwrap_or_default();
        let path = [text("resource"), text("subresource")].join("/");
        format!("{user} {verb} {} {}/{}", path.trim_end_matches('/'), text("namespace"), text("name"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_our_writes_count() {
        let entry = |user: &str, code: u64, resource: &str| {
            json!({
                "user": {"username": user}, "verb": "patch", "responseStatus": {"code": code},
                "objectRef": {"resource": resource, "subresource": "status", "namespace": "a", "name": "b"},
            })
        };
        let ours = "system:serviceaccount:vse-system:vse-operator";
        assert_eq!(write(&entry(ours, 200, "vses")).as_deref(), Some("vse-operator patch vses/status a/b"));
        assert_eq!(write(&entry(ours, 409, "vses")), None);
        assert_eq!(write(&entry(ours, 200, "leases")), None);
        assert_eq!(write(&entry("admin", 200, "vses")), None);
    }
}
