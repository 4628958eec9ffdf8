//! Hostile snapshots ([`crate::fuzzing`]): whoever can write one can write its checksums too.
//!
//! Whatever is in the files, it is refused, or it is a state that can be saved and restored again and that a guest can go
//! on from.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::manifest::{MANIFEST_BYTES, Manifest, PAGE};
use super::{InvalidState, Saved, Unit, image};
use crate::fuzzing::{JSON_WORDS, Shape, fuzz};
use crate::interrupts::{Interrupts, Recorder};
use crate::legacy::platform::Platform;
use crate::legacy::serial::SerialPort;
use crate::memory::GuestMemory;
use crate::pci::{PciFunction, PciRoot, Windows};
use crate::virtio::VirtioDevice;
use crate::virtio::console::{Console, PortOptions};
use crate::virtio::rng::Rng;
use crate::virtio::transport::{Doorbells, VirtioPci, Wiring};

/// What a manifest says of RAM, and a file of so many bytes in which every other page has something.
const RAM: u64 = 16 * PAGE;

#[test]
fn manifest() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(RAM).unwrap();
    (0..RAM).step_by(2 * PAGE as usize).for_each(|at| file.write_all_at(b"page", at).unwrap());
    fuzz("snapshot/manifest", Shape::text(4096, JSON_WORDS), |body| {
        assert!(Manifest::decode(body).is_err(), "no checksum");
        let bytes = [format!("vse-snapshot 1 crc32c={:08x}\n", crc32c::crc32c(body)).as_bytes(), body].concat();
        let Ok(manifest) = Manifest::decode(&bytes) else { return };
        let encoded = manifest.encode().unwrap();
        assert!(encoded.len() as u64 <= MANIFEST_BYTES);
        assert_eq!(Manifest::decode(&encoded).as_ref(), Ok(&manifest));
        if let Ok(length @ 0..0x1_0000) = manifest.state_length() {
            let state = vec![0; length as usize];
            if let Ok(units) = manifest.units(&state) {
                assert_eq!(units.values().map(|unit| unit.bytes.len() as u64).sum::<u64>(), length);
            }
        }
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        if image::read(&memory, &file, &manifest.memory).is_ok() {
            let again = image::write(&memory, &tempfile::tempfile().unwrap()).unwrap();
            assert_eq!(again, manifest.memory);
        }
        assert_eq!(memory.num_regions(), 1);
    });
}

/// Makes something out of a unit, and saves it.
type Restore = dyn Fn(&Unit) -> Result<Saved, InvalidState>;

/// Something that has state, and how it is made anew out of one.
struct Owner {
    fresh: Unit,
    restore: Box<Restore>,
}

impl Owner {
    fn new(restore: impl Fn(Option<&Unit>) -> Result<Saved, InvalidState> + 'static) -> Self {
        let Ok(Saved::State(fresh)) = restore(None) else { panic!("it has state") };
        Self { fresh, restore: Box::new(move |unit| restore(Some(unit))) }
    }
}

fn root() -> Arc<PciRoot> {
    PciRoot::new(&Arc::default(), Windows { low: 0..0, high: 0..0 })
}

fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

/// A function with a device; one that was restored goes on for a moment, and starts over.
fn function<D: VirtioDevice + 'static>(device: impl Fn() -> D + 'static) -> Owner {
    let vm: Arc<dyn Doorbells> = Arc::new(kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap());
    Owner::new(move |unit| {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let interrupts = Interrupts::new(Arc::new(Recorder::default()));
        let wiring = Wiring { memory, interrupts, doorbells: Arc::clone(&vm), slot: 1 };
        let Some(unit) = unit else { return Ok(VirtioPci::new(Box::new(device()), wiring).unwrap().save()) };
        let function = VirtioPci::restore(Box::new(device()), wiring, unit)?;
        let saved = function.save();
        if function.resume().is_ok() {
            function.pause();
            function.save();
        }
        function.reset();
        Ok(saved)
    })
}

fn owners() -> Vec<Owner> {
    vec![
        Owner::new(|unit| {
            let drained = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
            let serial = SerialPort::new(None, event(), drained);
            unit.map_or(Ok(()), |unit| serial.restore(unit))?;
            Ok(serial.save())
        }),
        Owner::new(|unit| {
            let platform = Platform::new(root(), event());
            unit.map_or(Ok(()), |unit| platform.restore(unit))?;
            Ok(platform.save())
        }),
        Owner::new(|unit| {
            let root = root();
            unit.map_or(Ok(()), |unit| root.restore(unit))?;
            Ok(root.save())
        }),
        function(|| Rng::new(None).unwrap()),
        function(|| {
            let output = std::fs::File::open("/dev/null").unwrap();
            Console::new(vec![PortOptions::console(None, output)], None).unwrap()
        }),
    ]
}

/// Restores what a script is: which of them, then its unit's bytes, unpacked.
fn restore(owners: &[Owner], script: &[u8]) -> Result<(), InvalidState> {
    let [which, bytes @ ..] = script else { return Ok(()) };
    let Owner { fresh, restore } = &owners[usize::from(*which) % owners.len()];
    let is_packed = fresh.unpacked().bytes.starts_with(b"{");
    let unit = match serde_json::from_slice::<serde_json::Value>(bytes) {
        Ok(value) if is_packed => Unit::pack(&fresh.kind, fresh.version, &value),
        _ => Unit { bytes: bytes.to_vec(), ..fresh.clone() },
    };
    let Saved::State(unit) = restore(&unit)? else { panic!("what was restored can be saved") };
    let Ok(Saved::State(again)) = restore(&unit) else { panic!("what was restored can be restored again") };
    assert_eq!(again.unpacked(), unit.unpacked());
    Ok(())
}

#[test]
fn units() {
    let owners = owners();
    fuzz("snapshot/units", Shape::text(8192, JSON_WORDS), |script| drop(restore(&owners, script)));
}

#[test]
fn states_of_devices_at_work_are_accepted() {
    for name in ["active-rng", "active-console"] {
        let script = std::fs::read(crate::fuzzing::corpus("snapshot/units").join(name)).unwrap();
        assert_eq!(restore(&owners(), &script), Ok(()), "{name}");
    }
}

/// The corpus has the state of each as it is made; `VSE_FUZZ_SEED=1` writes it there.
#[test]
fn fresh_states_are_kept() {
    for (number, Owner { fresh, .. }) in (0..).zip(owners()) {
        let legible = if fresh.bytes.starts_with(b"{") { fresh.clone() } else { fresh.unpacked() };
        let file = crate::fuzzing::corpus("snapshot/units").join(format!("fresh-{number}-{}", fresh.kind));
        let script = [&[number], legible.bytes.as_slice()].concat();
        if std::env::var_os("VSE_FUZZ_SEED").is_some() {
            std::fs::write(&file, &script).unwrap();
        }
        assert!(std::fs::read(&file).is_ok_and(|kept| kept == script), "{}", file.display());
    }
}
