//! Host devices of a guest: which ones kubelet gave its pod, taken and opened for the engine.

use super::Context;
use super::pod_process::{self, PodProcess};
use crate::pci::{self, Address, Taken};
use crate::pod_resources::{self, Allocated};
use std::io;
use std::os::fd::OwnedFd;
use vse_crds::{GuestDevice, HostDevice, MicroVMSpec};
use vse_engine::{self as engine, Passthrough};

/// What an engine may pin beside its guest's RAM.
///
/// VFIO pins all RAM that a device may reach, which is all of the guest's, and counts it against RLIMIT_MEMLOCK
/// (vfio_lock_acct, drivers/vfio/vfio_iommu_type1.c). What else an engine maps for devices, firmware and the BARs of
/// other devices, is of some ten MiB; a GiB is what libvirt grants (qemuDomainGetMemLockLimitBytes), and it is only a
/// limit: what is pinned counts as the pod's memory all the same.
const PINNED_BESIDE_RAM: u64 = 1 << 30;

/// Why a guest does not get its devices.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "spec.machine.devices.hostDevices[{name}]: kubelet has given the pod {got} of {resource}, {wanted} are needed"
    )]
    NotAllocated { name: String, resource: String, got: usize, wanted: usize },
    #[error("cannot ask kubelet which devices the pod has")]
    PodResources(#[from] pod_resources::Error),
    #[error(transparent)]
    Take(#[from] pci::TakeError),
    #[error("cannot let the engine pin its guest's memory")]
    Limit(#[from] pod_process::Error),
    #[error("cannot duplicate a device's descriptor")]
    Duplicate(#[from] io::Error),
}

impl Error {
    /// Whether trying again can't help.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Error::Take(error) if error.is_final())
    }
}

/// Devices of a guest: for its engine, and for its status.
pub(super) struct Given {
    pub passthrough: Passthrough,
    pub devices: Vec<GuestDevice>,
}

/// Takes the guest's devices, if it has any, and lets its engine-to-be pin their memory.
pub(super) async fn take(
    context: &Context,
    vm: &MicroVMSpec,
    namespace: &str,
    ram: u64,
    process: &PodProcess,
) -> Result<Option<Given>, Error> {
    let wanted = &vm.machine.devices.host_devices;
    if wanted.is_empty() {
        return Ok(None);
    }
    let allocated = context.pod_resources.of_pod(namespace, &vm.pod_name).await?;
    let units = deal(wanted, &allocated)?;
    let asked = wanted.iter().zip(&units).map(|(device, unit)| (device.class().to_owned(), unit.clone())).collect();
    let taken = context.devices.take(&vm.pod_uid, asked).await?;
    process.limit_memlock(ram.saturating_add(PINNED_BESIDE_RAM))?;
    Ok(Some(given(wanted, taken)?))
}

/// The devices of a guest that was launched with them.
pub(super) async fn recall(context: &Context, vm: &MicroVMSpec, namespace: &str) -> Result<Vec<GuestDevice>, Error> {
    let wanted = &vm.machine.devices.host_devices;
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let units = deal(wanted, &context.pod_resources.of_pod(namespace, &vm.pod_name).await?)?;
    let functions = context.devices.functions(units).await?;
    Ok(wanted.iter().zip(&functions).map(|(device, functions)| told(device, functions)).collect())
}

/// For the status.
fn told(device: &HostDevice, functions: &[Address]) -> GuestDevice {
    GuestDevice {
        name: device.name.clone(),
        device_name: device.device_name.clone(),
        addresses: functions.iter().map(ToString::to_string).collect(),
    }
}

/// Which unit each device is, in the order of the spec and of the units' addresses: the same at each attempt.
fn deal(wanted: &[HostDevice], allocated: &Allocated) -> Result<Vec<String>, Error> {
    let of = |resource: &str| allocated.get(resource).map_or(&[][..], Vec::as_slice);
    let nth = |index: usize, device: &HostDevice| {
        wanted[..index].iter().filter(|d| d.device_name == device.device_name).count()
    };
    let unit = |(index, device): (usize, &HostDevice)| {
        let units = of(&device.device_name);
        units.get(nth(index, device)).cloned().ok_or_else(|| Error::NotAllocated {
            name: device.name.clone(),
            resource: device.device_name.clone(),
            got: units.len(),
            wanted: wanted.iter().filter(|d| d.device_name == device.device_name).count(),
        })
    };
    wanted.iter().enumerate().map(unit).collect()
}

/// One engine device for each function: the first has the name of the spec, others of its group that name with a number.
fn given(wanted: &[HostDevice], taken: Taken) -> io::Result<Given> {
    let mut given =
        Given { passthrough: Passthrough { container: taken.container, devices: Vec::new() }, devices: Vec::new() };
    for (device, (functions, group)) in wanted.iter().zip(taken.units) {
        for (index, address) in functions.iter().enumerate() {
            let name = if index == 0 { device.name.clone() } else { format!("{}.{index}", device.name) };
            let group: OwnedFd = group.try_clone()?;
            given.passthrough.devices.push(engine::HostDevice { name, address: address.to_string(), group });
        }
        given.devices.push(told(device, &functions));
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn device(name: &str, class: &str) -> HostDevice {
        HostDevice { name: name.into(), device_name: format!("vse.hpc.io/{class}") }
    }

    fn allocated(of: &[(&str, &[&str])]) -> Allocated {
        let one = |(class, units): &(&str, &[&str])| {
            (format!("vse.hpc.io/{class}"), units.iter().map(|unit| (*unit).to_owned()).collect())
        };
        of.iter().map(one).collect()
    }

    #[test]
    fn each_class_is_dealt_out_in_order() {
        let wanted = [device("a", "nic"), device("disk", "nvme"), device("b", "nic")];
        let all = allocated(&[("nic", &["0000:65:00.0", "0000:66:00.0"]), ("nvme", &["0000:01:00.0"])]);
        assert_eq!(deal(&wanted, &all).unwrap(), ["0000:65:00.0", "0000:01:00.0", "0000:66:00.0"]);
    }

    #[test]
    fn what_kubelet_has_not_given_is_named() {
        let error = deal(&[device("a", "nic"), device("b", "nic")], &allocated(&[("nic", &["0000:65:00.0"])]));
        assert_eq!(
            error.unwrap_err().to_string(),
            "spec.machine.devices.hostDevices[b]: kubelet has given the pod 1 of vse.hpc.io/nic, 2 are needed"
        );
    }

    #[test]
    fn functions_of_a_group_share_its_descriptor_and_have_names_of_their_own() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let functions = ["0000:65:00.0", "0000:65:00.1"].map(|address| address.parse().unwrap()).to_vec();
        let taken = Taken { container: null(), units: vec![(functions, null())] };
        let given = given(&[device("gpu", "gpu")], taken).unwrap();
        let names: Vec<_> = given.passthrough.devices.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["gpu", "gpu.1"]);
        assert_eq!(given.devices[0].addresses, ["0000:65:00.0", "0000:65:00.1"]);
    }

    proptest! {
        #[test]
        fn nobody_gets_what_another_has(classes in proptest::collection::vec("[ab]", 0..8)) {
            let wanted: Vec<_> = classes.iter().enumerate().map(|(i, c)| device(&format!("d{i}"), c)).collect();
            let units = ["0", "1", "2", "3", "4", "5", "6", "7"];
            let of = |class: &'static str| units.map(|unit| format!("{class}{unit}")).to_vec();
            let all = Allocated::from([("vse.hpc.io/a".into(), of("a")), ("vse.hpc.io/b".into(), of("b"))]);
            let dealt = deal(&wanted, &all).unwrap();
            prop_assert_eq!(dealt.iter().collect::<BTreeSet<_>>().len(), wanted.len());
            prop_assert!(dealt.iter().zip(&classes).all(|(unit, class)| unit.starts_with(class.as_str())));
        }
    }
}
