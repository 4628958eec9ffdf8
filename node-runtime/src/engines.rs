//! The drivers of all engines there are, by name.

use vse_engine::Engine;
use vse_engine::qemu::Qemu;
use vse_engine::rest::{CloudHypervisor, Vmm};

/// Disks that a guest may have beside its volumes: the system's own, and the cloud-init seed.
pub const OWN_DISKS: usize = 2;

/// All drivers.
pub struct Engines([Box<dyn Engine>; 3]);

impl Default for Engines {
    fn default() -> Self {
        Self([Box::new(Vmm::default()), Box::new(CloudHypervisor::default()), Box::new(Qemu::default())])
    }
}

impl Engines {
    /// The driver of the engine of that name.
    pub fn get(&self, name: &str) -> Option<&dyn Engine> {
        self.0.iter().find(|engine| engine.name() == name).map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vse_crds::EngineName;

    #[test]
    fn every_engine_of_the_api_has_a_driver() {
        for name in EngineName::ALL {
            assert_eq!(Engines::default().get(name.as_str()).map(Engine::name), Some(name.as_str()));
        }
    }
}
