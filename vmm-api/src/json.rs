//! Reading a request's JSON, with errors that say where it is wrong.

use serde::{Deserialize, Deserializer};

/// JSON that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct Malformed {
    /// Where, for example `disks[0].iommu`; empty for the whole of it.
    pub path: String,
    /// What is wrong there.
    pub reason: String,
}

/// Reads `json`. Unknown fields, and fields that ask for what this VMM can't do, are errors that name them.
///
/// # Errors
/// When it is no JSON, or not this type's.
pub fn read<T: for<'a> Deserialize<'a>>(json: &[u8]) -> Result<T, Malformed> {
    // Following the path costs instructions at each start, so only what failed is read a second time with it.
    serde_json::from_slice(json).or_else(|_| {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let value = serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| malformed(&error.path().to_string(), error.inner()))?;
        deserializer.end().map_err(|error| malformed("", &error))?;
        Ok(value)
    })
}

/// For lists: `null` is none, as it is to Cloud Hypervisor, whose client sends it.
pub(crate) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn malformed(path: &str, error: &serde_json::Error) -> Malformed {
    let path = if path == "." || path == "?" { "" } else { path };
    Malformed { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VmConfig;

    #[test]
    fn errors_name_the_field() {
        let path = |json: &str| read::<VmConfig>(json.as_bytes()).unwrap_err().path;
        assert_eq!(path(r#"{"disks": [{"path": "/a"}, {"pth": "/b"}]}"#), "disks[1].pth");
        assert_eq!(path(r#"{"cpus": {"boot_vcpus": "two"}}"#), "cpus.boot_vcpus");
        assert_eq!(path(r#"{"net": [{"iommu": true}]}"#), "net[0].iommu");
        assert_eq!(path("{} x"), "");
        assert_eq!(path("7"), "");
    }

    #[test]
    fn no_list_is_an_empty_one() {
        let null = r#"{"disks": null, "net": null, "fs": null, "pmem": null, "devices": null, "numa": null,
                       "cpus": {"affinity": null}, "memory": {"zones": null}, "platform": {"oem_strings": null}}"#;
        assert_eq!(read::<VmConfig>(null.as_bytes()), Ok(VmConfig::default()));
        let cells = r#"{"numa": [{"guest_numa_id": 0, "cpus": null, "memory_zones": null, "distances": null}]}"#;
        assert!(read::<VmConfig>(cells.as_bytes()).unwrap().numa[0].cpus.is_empty());
        let net = r#"{"tap": "t", "fds": null, "vhost_fds": null}"#;
        assert!(read::<crate::NetConfig>(net.as_bytes()).unwrap().fds.is_empty());
        assert!(read::<crate::NetConfig>(br#"{"fds": 3}"#).unwrap_err().path == "fds");
    }

    #[test]
    fn errors_read_well() {
        let error = read::<VmConfig>(br#"{"vdpa": [{"path": "/dev/vhost-vdpa-0"}]}"#).unwrap_err().to_string();
        assert_eq!(error, "vdpa: not supported by this VMM at line 1 column 40");
    }
}
