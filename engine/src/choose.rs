//! Which engine runs a guest, and why the others do not. Pure.

use std::collections::BTreeSet;
use std::fmt;

use crate::capabilities::{AcceleratorKind, Capabilities, Feature, PageSize};

/// What a guest needs of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// The only engine that will do, or any.
    pub engine: Option<String>,
    /// What runs its vCPUs.
    pub accelerator: AcceleratorKind,
    /// vCPUs.
    pub vcpus: u32,
    /// Disks.
    pub disks: usize,
    /// Network cards.
    pub nics: usize,
    /// Disks, network cards and host devices together.
    pub devices: usize,
    /// What backs its memory.
    pub pages: PageSize,
    /// The rest.
    pub features: BTreeSet<Feature>,
}

/// An engine of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// Its name in the API.
    pub name: String,
    /// What it can do on this host.
    pub capabilities: Capabilities,
}

/// One reason why one engine does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The engine; `None` when there is none to speak of.
    pub engine: Option<String>,
    /// The field of the machine's description, for example `cpu`.
    pub field: &'static str,
    /// What is lacking, in words.
    pub reason: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.engine {
            Some(engine) => write!(f, "{}: engine {engine}: {}", self.field, self.reason),
            None => write!(f, "{}: {}", self.field, self.reason),
        }
    }
}

/// The first engine, in the order of preference given, that has all that is needed.
///
/// # Errors
/// Every reason against every engine that was considered; never empty.
pub fn choose<'a>(needs: &Needs, engines: &'a [EngineInfo]) -> Result<&'a EngineInfo, Vec<Mismatch>> {
    let mut against = Vec::new();
    for engine in engines {
        if needs.engine.as_ref().is_some_and(|only| *only != engine.name) {
            continue;
        }
        let lacking = lacks(needs, &engine.capabilities);
        if lacking.is_empty() {
            return Ok(engine);
        }
        against.extend(lacking.into_iter().map(|(field, reason)| Mismatch {
            engine: Some(engine.name.clone()),
            field,
            reason,
        }));
    }
    if against.is_empty() {
        let there = engines.iter().map(|engine| engine.name.as_str()).collect::<Vec<_>>().join(", ");
        let reason = match &needs.engine {
            Some(only) if !there.is_empty() => {
                format!("this host has no engine {only}, but {there}")
            }
            _ => "this host has no engine".to_owned(),
        };
        against.push(Mismatch { engine: None, field: "engine", reason });
    }
    Err(against)
}

/// Everything this engine does not have.
fn lacks(needs: &Needs, has: &Capabilities) -> Vec<(&'static str, String)> {
    let mut lacking = Vec::new();
    if !has.accelerators.contains(&needs.accelerator) {
        lacking.push(("acceleration", format!("{} is not available", needs.accelerator)));
    }
    if !has.page_sizes.contains(&needs.pages) {
        lacking.push(("memory.hugepages.pageSize", format!("pages of size {} are not available", needs.pages)));
    }
    let counts = [
        ("cpu", "vCPUs", u64::from(needs.vcpus), u64::from(has.max_vcpus)),
        ("disks", "disks", needs.disks as u64, has.max_disks as u64),
        ("networks", "networks", needs.nics as u64, has.max_nics as u64),
        ("devices", "devices", needs.devices as u64, has.max_devices as u64),
    ];
    for (field, what, needed, most) in counts {
        if needed > most {
            lacking.push((field, format!("{needed} {what} are more than the {most} it can have")));
        }
    }
    for feature in needs.features.difference(&has.features) {
        lacking.push(("features", format!("{feature}: not possible")));
    }
    lacking
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(name: &str, max_vcpus: u32) -> EngineInfo {
        let capabilities = Capabilities {
            accelerators: [AcceleratorKind::Kvm].into(),
            max_vcpus,
            max_disks: 4,
            max_nics: 1,
            max_devices: 5,
            page_sizes: [PageSize::Default].into(),
            features: [Feature::Pause].into(),
        };
        EngineInfo { name: name.into(), capabilities }
    }

    fn needs(vcpus: u32) -> Needs {
        Needs {
            engine: None,
            accelerator: AcceleratorKind::Kvm,
            vcpus,
            disks: 1,
            nics: 1,
            devices: 2,
            pages: PageSize::Default,
            features: [Feature::Pause].into(),
        }
    }

    #[test]
    fn the_first_that_fits_is_taken() {
        let engines = [engine("small", 2), engine("large", 64), engine("larger", 128)];
        assert_eq!(choose(&needs(8), &engines).unwrap().name, "large");
        let named = Needs { engine: Some("larger".into()), ..needs(1) };
        assert_eq!(choose(&named, &engines).unwrap().name, "larger");
    }

    #[test]
    fn every_reason_against_every_engine_is_told() {
        let asked = Needs {
            accelerator: AcceleratorKind::Emulation,
            pages: PageSize::Huge1G,
            disks: 5,
            devices: 6,
            features: [Feature::Pause, Feature::Snapshot].into(),
            ..needs(100)
        };
        let against = choose(&asked, &[engine("a", 64), engine("b", 128)]).unwrap_err();
        let told: Vec<String> = against.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "acceleration: engine a: emulation is not available",
                "memory.hugepages.pageSize: engine a: pages of size 1Gi are not available",
                "cpu: engine a: 100 vCPUs are more than the 64 it can have",
                "disks: engine a: 5 disks are more than the 4 it can have",
                "devices: engine a: 6 devices are more than the 5 it can have",
                "features: engine a: snapshots: not possible",
                "acceleration: engine b: emulation is not available",
                "memory.hugepages.pageSize: engine b: pages of size 1Gi are not available",
                "disks: engine b: 5 disks are more than the 4 it can have",
                "devices: engine b: 6 devices are more than the 5 it can have",
                "features: engine b: snapshots: not possible",
            ]
        );
    }

    #[test]
    fn an_engine_that_is_not_there_is_named() {
        let asked = Needs { engine: Some("vmm".into()), ..needs(1) };
        let reason = |engines: &[EngineInfo]| choose(&asked, engines).unwrap_err()[0].to_string();
        assert_eq!(reason(&[engine("qemu", 1)]), "engine: this host has no engine vmm, but qemu");
        assert_eq!(reason(&[]), "engine: this host has no engine");
    }

    #[test]
    fn unknown_means_no() {
        let nothing = EngineInfo { name: "new".into(), capabilities: Capabilities::default() };
        assert_eq!(choose(&needs(1), &[nothing]).unwrap_err().len(), 7);
    }
}
