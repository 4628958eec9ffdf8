//! Descriptors that came with a request: which field of it names them. Pure.

use vse_vmm_api::{Fd, NewDevice, RestoreConfig};

use super::Refusal;
use crate::api::Command;

/// Writes the numbers into the field that they are for.
///
/// # Errors
/// When the request takes none, or not so many.
pub fn bring(command: &mut Command, numbers: &[Fd]) -> Result<(), Refusal> {
    if let Command::Restore(restore) = command {
        return bring_restore(restore, numbers);
    }
    if numbers.is_empty() {
        return Ok(());
    }
    let field = match command {
        Command::Add(device) => match &mut **device {
            NewDevice::Net(net) => {
                net.fds = numbers.to_vec();
                return Ok(());
            }
            NewDevice::Disk(disk) => &mut disk.fd,
            NewDevice::Fs(fs) => &mut fs.socket_fd,
            NewDevice::Pmem(pmem) => &mut pmem.fd,
            NewDevice::Vsock(vsock) => &mut vsock.socket_fd,
            NewDevice::Vfio(function) => &mut function.vfio_group_fd,
        },
        Command::Snapshot(snapshot) => &mut snapshot.destination_fd,
        _ => return Err(Refusal::UnexpectedDescriptors),
    };
    match numbers {
        [one] => *field = Some(*one),
        _ => return Err(Refusal::TooManyDescriptors(numbers.len())),
    }
    Ok(())
}

/// First the taps that are asked for, then the snapshot's directory.
fn bring_restore(restore: &mut RestoreConfig, numbers: &[Fd]) -> Result<(), Refusal> {
    let expected = restore.net_fds.iter().map(|net| usize::from(net.num_fds)).sum();
    let others = numbers.split_at_checked(expected).ok_or(Refusal::OtherTaps { expected, came: numbers.len() });
    let (taps, places) = others?;
    let mut taps = taps.iter().copied();
    for net in &mut restore.net_fds {
        net.taps = taps.by_ref().take(net.num_fds.into()).collect();
    }
    match places {
        [] => {}
        [one] => restore.source_fd = Some(*one),
        _ => return Err(Refusal::TooManyDescriptors(places.len())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request, once these have come along.
    fn brought(mut command: Command, numbers: &[Fd]) -> Result<Command, u16> {
        bring(&mut command, numbers).map_err(|refusal| refusal.response().status as u16)?;
        Ok(command)
    }

    fn add(device: NewDevice) -> Command {
        Command::Add(Box::new(device))
    }

    #[test]
    fn each_request_has_a_field_for_what_comes_along() {
        let devices: [fn(Option<Fd>) -> NewDevice; 5] = [
            |fd| NewDevice::Disk(vse_vmm_api::DiskConfig { fd, ..Default::default() }),
            |socket_fd| NewDevice::Fs(vse_vmm_api::FsConfig { socket_fd, ..Default::default() }),
            |fd| NewDevice::Pmem(vse_vmm_api::PmemConfig { fd, ..Default::default() }),
            |socket_fd| NewDevice::Vsock(vse_vmm_api::VsockConfig { socket_fd, ..Default::default() }),
            |vfio_group_fd| NewDevice::Vfio(vse_vmm_api::DeviceConfig { vfio_group_fd, ..Default::default() }),
        ];
        for device in devices {
            assert_eq!(brought(add(device(None)), &[7]), Ok(add(device(Some(7)))));
            assert_eq!(brought(add(device(Some(6))), &[]), Ok(add(device(Some(6)))));
            assert_eq!(brought(add(device(None)), &[7, 8]), Err(400));
        }
        let net = |fds| add(NewDevice::Net(vse_vmm_api::NetConfig { fds, ..Default::default() }));
        assert_eq!(brought(net(vec![]), &[7, 8]), Ok(net(vec![7, 8])));
        assert_eq!(brought(Command::Boot, &[7]), Err(400));
    }
}
