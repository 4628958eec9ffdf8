//! NoCloud seeds: what cloud-init in the guest reads its settings from (cloud-init's documentation, "NoCloud").

use std::io::{self, Cursor, Write};

use fatfs::{DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, TimeProvider};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The most bytes of data in a seed. A Secret holds 1 MiB.
const MAX_DATA: usize = 2 << 20;
/// Of a FAT beside its files.
const OVERHEAD: usize = 256 << 10;

/// The guest's identity. What is empty is not written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeedMeta {
    /// cloud-init does its once-per-instance work again when this changes.
    pub instance_id: String,
    /// Host name.
    pub hostname: Option<String>,
    /// Public keys for the default user, in the form of `authorized_keys`.
    pub ssh_authorized_keys: Vec<String>,
    /// A network configuration (YAML); DHCP on all interfaces if not given.
    pub network_config: Option<String>,
}

/// A FAT image labelled `CIDATA` with `meta-data`, `user-data` and, if given, `network-config`. The same input gives
/// the same bytes.
///
/// # Errors
/// [`Error::SeedTooLarge`] above 2 MiB of data.
pub fn seed(meta: &SeedMeta, user_data: &[u8]) -> Result<Vec<u8>> {
    let meta_data = meta_data(meta).to_string();
    let mut files = vec![("meta-data", meta_data.as_bytes()), ("user-data", user_data)];
    files.extend(meta.network_config.as_ref().map(|config| ("network-config", config.as_bytes())));
    let bytes = files.iter().map(|(_, content)| content.len()).sum();
    if bytes > MAX_DATA {
        return Err(Error::SeedTooLarge { bytes, limit: MAX_DATA });
    }
    fat(&files, bytes).map_err(Error::Seed)
}

/// JSON is YAML, and leaves no doubt about quoting.
fn meta_data(meta: &SeedMeta) -> Value {
    let mut fields = Map::new();
    fields.insert("instance-id".into(), json!(meta.instance_id));
    if let Some(hostname) = &meta.hostname {
        fields.insert("local-hostname".into(), json!(hostname));
    }
    if !meta.ssh_authorized_keys.is_empty() {
        fields.insert("public-keys".into(), json!(meta.ssh_authorized_keys));
    }
    Value::Object(fields)
}

fn fat(files: &[(&str, &[u8])], bytes: usize) -> io::Result<Vec<u8>> {
    let mut disk = Cursor::new(vec![0; (bytes + OVERHEAD).next_multiple_of(1 << 20)]);
    let volume = FormatVolumeOptions::new().volume_label(*b"CIDATA     ").volume_id(0).fat_type(FatType::Fat12);
    fatfs::format_volume(&mut disk, volume)?;
    disk.set_position(0);
    {
        let file_system = FileSystem::new(&mut disk, FsOptions::new().time_provider(&NO_TIME))?;
        let root = file_system.root_dir();
        for (name, content) in files {
            let mut file = root.create_file(name)?;
            file.write_all(content)?;
            file.flush()?;
        }
        drop(root);
        file_system.unmount()?;
    }
    Ok(disk.into_inner())
}

/// Gives all files the same time, the first that FAT knows.
#[derive(Debug)]
struct NoTime;

static NO_TIME: NoTime = NoTime;

impl TimeProvider for NoTime {
    fn get_current_date(&self) -> fatfs::Date {
        fatfs::Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: fatfs::Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn meta() -> SeedMeta {
        SeedMeta {
            instance_id: "default.node-1".into(),
            hostname: Some("node: 1".into()),
            ssh_authorized_keys: vec!["ssh-ed25519 AAAA someone's \"key\"".into()],
            network_config: Some("version: 2\n".into()),
        }
    }

    fn read(image: &[u8], name: &str) -> String {
        let file_system = FileSystem::new(Cursor::new(image.to_vec()), FsOptions::new()).unwrap();
        assert_eq!(file_system.read_volume_label_from_root_dir().unwrap().unwrap(), "CIDATA");
        let mut text = String::new();
        file_system.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn holds_what_was_given_and_the_same_each_time() {
        let image = seed(&meta(), b"#cloud-config\n").unwrap();
        assert_eq!(read(&image, "user-data"), "#cloud-config\n");
        assert_eq!(read(&image, "network-config"), "version: 2\n");
        let data: Value = serde_json::from_str(&read(&image, "meta-data")).unwrap();
        let expected = json!({
            "instance-id": "default.node-1",
            "local-hostname": "node: 1",
            "public-keys": ["ssh-ed25519 AAAA someone's \"key\""],
        });
        assert_eq!(data, expected);
        assert_eq!(image, seed(&meta(), b"#cloud-config\n").unwrap());
    }

    #[test]
    fn sizes_up_to_the_limit_fit() {
        let rest = meta_data(&meta()).to_string().len() + "version: 2\n".len();
        for size in [0, 1, 700 << 10, 800 << 10, 1 << 20, MAX_DATA - rest] {
            let image = seed(&meta(), &vec![b'x'; size]).unwrap_or_else(|e| panic!("{size}: {e:?}"));
            assert_eq!(read(&image, "user-data").len(), size);
        }
        let error = seed(&meta(), &vec![b'x'; MAX_DATA - rest + 1]).unwrap_err();
        assert!(matches!(error, Error::SeedTooLarge { .. }));
    }
}
