//! `cargo xtask images`: which images there are, and their way into `.build/images`.

mod binaries;
mod recipe;

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::oci::ImageSpec;

/// An unprivileged user that exists nowhere: the conventional "nonroot" of scratch images.
const NONROOT: &str = "65532:65532";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Images to build, by the last part of their name; all when none is given
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Build Debian images again although their recipes are unchanged (for newer packages)
    #[arg(long)]
    refresh: bool,
}

/// One image `vse.hpc.io/<name>:dev`.
struct Image {
    name: &'static str,
    source: Source,
    entrypoint: &'static [&'static str],
    user: &'static str,
}

enum Source {
    /// Static binaries of this workspace, at the image's root.
    Binaries(&'static [&'static str]),
    /// `images/<name>/build`, a script that writes the file tree as a tar.
    Recipe,
    /// A static program made elsewhere, which the environment variable names, at this path in the image; without the
    /// variable there is no such image.
    Given { variable: &'static str, path: &'static str },
}

const IMAGES: &[Image] = &[
    Image {
        name: "operator",
        source: Source::Binaries(&["vse-operator"]),
        entrypoint: &["/vse-operator"],
        user: NONROOT,
    },
    Image {
        name: "node-runtime",
        source: Source::Binaries(&["vse-init", "vse-node-runtime"]),
        entrypoint: &["/vse-node-runtime"],
        user: "0:0",
    },
    Image {
        name: "launcher",
        source: Source::Binaries(&["vse-launcher"]),
        entrypoint: &["/vse-launcher"],
        user: NONROOT,
    },
    Image { name: "engine-vmm", source: Source::Binaries(&["vse-vmm"]), entrypoint: &["/vse-vmm"], user: NONROOT },
    Image { name: "engine-qemu", source: Source::Recipe, entrypoint: &["/usr/bin/qemu-system-x86_64"], user: NONROOT },
    Image {
        name: "engine-cloud-hypervisor",
        source: Source::Given { variable: "CLOUD_HYPERVISOR", path: "usr/bin/cloud-hypervisor" },
        entrypoint: &["/usr/bin/cloud-hypervisor"],
        user: NONROOT,
    },
    Image { name: "debian-hpc", source: Source::Recipe, entrypoint: &[], user: "0:0" },
    Image { name: "tiny", source: Source::Recipe, entrypoint: &[], user: "0:0" },
];

impl Image {
    /// Whether all that it is made of is here, or can be had.
    fn can_be_built(&self) -> bool {
        match self.source {
            Source::Binaries(_) | Source::Recipe => true,
            Source::Given { variable, .. } => env::var_os(variable).is_some(),
        }
    }

    /// Its file.
    fn archive(&self, out: &Path) -> PathBuf {
        out.join(format!("{}.tar", self.name))
    }
}

/// Removes images of what was given once and is no more: they would go on being installed.
fn forget_withheld(out: &Path) -> Result<()> {
    for archive in IMAGES.iter().filter(|image| !image.can_be_built()).map(|image| image.archive(out)) {
        match fs::remove_file(&archive) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", archive.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where an archive came from this time.
enum Made {
    Built,
    FromCache,
    Unchanged,
}

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let chosen = choose(&args.names)?;
    let out = root.join(".build/images");
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    if args.names.is_empty() {
        forget_withheld(&out)?;
    }

    let programs = programs_of(&chosen);
    let built = if programs.is_empty() {
        None
    } else {
        let started = Instant::now();
        let built = binaries::build(root, &programs)?;
        report("static binaries", "built", started.elapsed());
        Some(built)
    };

    for image in chosen {
        let started = Instant::now();
        let reference = format!("vse.hpc.io/{}:dev", image.name);
        let spec = ImageSpec { reference: &reference, entrypoint: image.entrypoint, user: image.user };
        let archive = image.archive(&out);
        let made = match (&image.source, &built) {
            (Source::Binaries(names), Some(built)) => {
                let programs: Vec<_> = names.iter().map(|name| (*name, built[name].as_path())).collect();
                binaries::archive(&archive, &spec, &programs)
            }
            (Source::Binaries(_), None) => bail!("{reference}: its binaries were not built"),
            (Source::Given { variable, path }, _) => {
                let program = env::var_os(variable)
                    .with_context(|| format!("{variable} must name the static program to put into it"))?;
                binaries::archive(&archive, &spec, &[(path, Path::new(&program))])
            }
            (Source::Recipe, _) => recipe::archive(root, &archive, &spec, image.name, args.refresh),
        }
        .with_context(|| format!("building {reference}"))?;
        report(&reference, made.word(), started.elapsed());
    }
    Ok(())
}

/// The images called `names`, in the order they are built.
fn choose(names: &[String]) -> Result<Vec<&'static Image>> {
    if let Some(unknown) = names.iter().find(|n| IMAGES.iter().all(|i| i.name != **n)) {
        let known: Vec<_> = IMAGES.iter().map(|i| i.name).collect();
        bail!("no image is called {unknown}; there are {}", known.join(", "));
    }
    let wanted = |image: &&Image| {
        if names.is_empty() { image.can_be_built() } else { names.iter().any(|name| name == image.name) }
    };
    Ok(IMAGES.iter().filter(wanted).collect())
}

fn programs_of(images: &[&Image]) -> Vec<&'static str> {
    images
        .iter()
        .filter_map(|i| match i.source {
            Source::Binaries(names) => Some(names),
            Source::Recipe | Source::Given { .. } => None,
        })
        .flatten()
        .copied()
        .collect()
}

impl Made {
    fn word(&self) -> &'static str {
        match self {
            Self::Built => "built",
            Self::FromCache => "from cache",
            Self::Unchanged => "unchanged",
        }
    }
}

fn report(what: &str, how: &str, took: Duration) {
    eprintln!("{what:<32} {how:<12} {:>6.1} s", took.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_means_every_image_that_can_be() {
        let names: Vec<_> = choose(&[]).unwrap().iter().map(|image| image.name).collect();
        assert!(names.contains(&"tiny") && names.contains(&"launcher"), "{names:?}");
        assert_eq!(names.contains(&"engine-cloud-hypervisor"), env::var_os("CLOUD_HYPERVISOR").is_some());
    }

    #[test]
    fn an_image_whose_program_is_not_given_goes() {
        let out = tempfile::tempdir().unwrap();
        for image in IMAGES {
            fs::write(image.archive(out.path()), "").unwrap();
        }
        forget_withheld(out.path()).unwrap();
        forget_withheld(out.path()).unwrap();
        for image in IMAGES {
            assert_eq!(image.archive(out.path()).exists(), image.can_be_built(), "{}", image.name);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let refusal = choose(&["lanucher".to_owned()]).err().unwrap().to_string();
        assert!(refusal.contains("lanucher") && refusal.contains("launcher,"), "{refusal}");
    }

    #[test]
    fn debian_images_need_no_cargo() {
        let chosen = choose(&["tiny".to_owned(), "debian-hpc".to_owned()]).unwrap();
        assert!(programs_of(&chosen).is_empty());
    }
}
