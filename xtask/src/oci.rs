//! Writes an OCI image layout as one tar archive that `ctr images import`, `podman load` and `docker load` read.
//!
//! The bytes depend on nothing but the arguments: no clock, no user, no directory order. Layers stay uncompressed:
//! archives are imported on the machine that made them, where decompressing would only cost time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::image::{
    ANNOTATION_REF_NAME, Arch, ConfigBuilder, Descriptor, DescriptorBuilder, Digest, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder,
    SCHEMA_VERSION,
};
use sha2::{Digest as _, Sha256};

/// What an image says about itself beside its files.
pub(crate) struct ImageSpec<'a> {
    /// Full reference, `registry/name:tag`; the name the image has once imported.
    pub(crate) reference: &'a str,
    /// Program and first arguments; empty for an image that is not run.
    pub(crate) entrypoint: &'a [&'a str],
    /// `uid:gid`, numeric because a scratch image has no `/etc/passwd`.
    pub(crate) user: &'a str,
}

/// Writes `spec` with one layer (an uncompressed tar) to `archive` and returns the manifest's digest.
///
/// `archive` is replaced whole, or left as it was on error.
pub(crate) fn write_archive(archive: &Path, spec: &ImageSpec<'_>, layer: &mut (impl Read + Seek)) -> Result<String> {
    let (diff_id, size) = digest_of(layer)?;
    let layer_blob = Blob { digest: diff_id, size, media_type: MediaType::ImageLayer }.descriptor()?;

    let config = ImageConfigurationBuilder::default()
        .architecture(Arch::Amd64)
        .os(Os::Linux)
        .config(
            ConfigBuilder::default()
                .entrypoint(spec.entrypoint.iter().map(ToString::to_string).collect::<Vec<_>>())
                .user(spec.user)
                .working_dir("/")
                .build()?,
        )
        .rootfs(RootFsBuilder::default().typ("layers").diff_ids(vec![layer_blob.digest().to_string()]).build()?)
        .history(vec![])
        .build()?;
    let config = serde_json::to_vec(&config)?;
    let config_blob = Blob::of(&config, MediaType::ImageConfig).descriptor()?;

    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config_blob.clone())
        .layers(vec![layer_blob.clone()])
        .build()?;
    let manifest = serde_json::to_vec(&manifest)?;
    let mut manifest_blob = Blob::of(&manifest, MediaType::ImageManifest).descriptor()?;
    manifest_blob.set_platform(Some(PlatformBuilder::default().architecture(Arch::Amd64).os(Os::Linux).build()?));
    manifest_blob.set_annotations(Some(HashMap::from([
        (ANNOTATION_REF_NAME.to_owned(), spec.reference.to_owned()),
        ("io.containerd.image.name".to_owned(), spec.reference.to_owned()),
    ])));
    let digest = manifest_blob.digest().to_string();

    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(vec![manifest_blob.clone()])
        .build()?;
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;

    let directory = archive.parent().context("an archive's path has a directory")?;
    let mut partial = tempfile::NamedTempFile::new_in(directory)?;
    let mut tar = Tar::new(BufWriter::new(partial.as_file_mut()));
    tar.file("oci-layout", &serde_json::to_vec(&layout)?)?;
    tar.file("index.json", &sorted_json(&index)?)?;
    tar.file(&blob_path(&manifest_blob), &manifest)?;
    tar.file(&blob_path(&config_blob), &config)?;
    layer.rewind()?;
    tar.stream(&blob_path(&layer_blob), 0o644, size, layer)?;
    tar.finish()?.flush()?;
    persist(partial, archive)?;
    Ok(digest)
}

/// A reproducible tar: entries as they are given, everything root's, no times.
pub(crate) struct Tar<W: Write>(tar::Builder<W>);

impl<W: Write> Tar<W> {
    pub(crate) fn new(to: W) -> Self {
        Self(tar::Builder::new(to))
    }

    /// Adds a file nobody executes.
    fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.stream(path, 0o644, content.len() as u64, content)
    }

    /// Adds a file of exactly `size` bytes.
    pub(crate) fn stream(&mut self, path: &str, mode: u32, size: u64, content: impl Read) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        self.0.append_data(&mut header, path, content).with_context(|| format!("adding {path} to the archive"))
    }

    pub(crate) fn finish(self) -> Result<W> {
        Ok(self.0.into_inner()?)
    }
}

/// JSON with the keys of every object in order: annotations are a hash map.
fn sorted_json(document: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut value = serde_json::to_value(document)?;
    value.sort_all_objects();
    Ok(serde_json::to_vec(&value)?)
}

struct Blob {
    digest: [u8; 32],
    size: u64,
    media_type: MediaType,
}

impl Blob {
    fn of(content: &[u8], media_type: MediaType) -> Self {
        Self { digest: Sha256::digest(content).into(), size: content.len() as u64, media_type }
    }

    fn descriptor(self) -> Result<Descriptor> {
        Ok(DescriptorBuilder::default()
            .media_type(self.media_type)
            .digest(format!("sha256:{}", hex(&self.digest)).parse::<Digest>()?)
            .size(self.size)
            .build()?)
    }
}

fn blob_path(blob: &Descriptor) -> String {
    format!("blobs/sha256/{}", blob.digest().digest())
}

fn digest_of(from: &mut (impl Read + Seek)) -> Result<([u8; 32], u64)> {
    from.rewind()?;
    let mut hasher = Sha256::new();
    let size = io::copy(from, &mut hasher)?;
    Ok((hasher.finalize().into(), size))
}

/// Lower-case hexadecimal, as digests are written.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Gives a finished temporary file its name and the permissions of an ordinary file.
fn persist(partial: tempfile::NamedTempFile, path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    partial.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    let _: File = partial.persist(path).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Cursor;

    use serde_json::Value;

    use super::*;

    const SPEC: ImageSpec<'_> =
        ImageSpec { reference: "vse.hpc.io/test:dev", entrypoint: &["/program"], user: "65532:65532" };

    fn written(directory: &Path, name: &str) -> Vec<u8> {
        let mut layer = Tar::new(Vec::new());
        layer.stream("program", 0o755, 3, "run".as_bytes()).unwrap();
        let archive = directory.join(name);
        write_archive(&archive, &SPEC, &mut Cursor::new(layer.finish().unwrap())).unwrap();
        std::fs::read(archive).unwrap()
    }

    fn entries(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        // Hash maps are seeded anew each time: a few rounds find an order that depends on them.
        let first = written(directory.path(), "first.tar");
        for round in 0..8 {
            assert!(first == written(directory.path(), "again.tar"), "round {round} differs");
        }
    }

    #[test]
    fn every_blob_is_reached_from_the_index_by_its_digest() {
        let directory = tempfile::tempdir().unwrap();
        let entries = entries(&written(directory.path(), "image.tar"));
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let content = &entries[&format!("blobs/sha256/{digest}")];
            assert_eq!(hex(&Sha256::digest(content)), digest);
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let json = |content: &[u8]| serde_json::from_slice::<Value>(content).unwrap();

        let index = json(&entries["index.json"]);
        let in_index = &index["manifests"][0];
        assert_eq!(in_index["annotations"]["io.containerd.image.name"], SPEC.reference);
        let manifest = json(blob(in_index));
        let config = json(blob(&manifest["config"]));
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&Sha256::digest(layer))));
        assert_eq!(config["config"]["User"], SPEC.user);
        assert_eq!(entries.len(), 5, "{:?}", entries.keys());
    }
}
