//! Descriptors that came with a request: which field of it names them. Pure.

use vse_vmm_api::{Fd, NewDevice};

use super::Refusal;
use crate::api::Command;

/// Writes the numbers into the field that they are for.
///
/// # Errors
/// When the request takes none, or not so many.
pub fn bring(command: &mut Command, numbers: &[Fd]) -> Result<(), Refusal> {
    if numbers.is_empty() {
        return Ok(());
    }
    let field = match command {
        Command::Add(device) => match &mut **device {
            NewDevice::Net(net) => {
                net.fds = numbers.to_vec();
                return Ok(());
            }
            _ => return Err(Refusal::UnexpectedDescriptors),
        },
        Command::Snapshot(snapshot) => &mut snapshot.destination_fd,
        Command::Restore(restore) => &mut restore.source_fd,
        _ => return Err(Refusal::UnexpectedDescriptors),
    };
    match numbers {
        [one] => *field = Some(*one),
        _ => return Err(Refusal::TooManyDescriptors(numbers.len())),
    }
    Ok(())
}
