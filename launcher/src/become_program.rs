//! From a received order to the `execve`: descriptors at their numbers, no way to more privileges, nothing else.
//!
//! The launcher's own descriptors live above all numbers that an order can ask for, so those are free.
#![allow(unsafe_code)] // close_range(2) has no safe wrapper

use std::ffi::{CString, NulError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use vse_launch::{Descriptor, LaunchOrder, Received, TARGETS, answer_accepted};

/// Why the launcher is still itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BecomeError {
    #[error("cannot place descriptor {name:?} at {target}: {source}")]
    Place { name: String, target: i32, source: io::Error },
    #[error("cannot give up the way to more privileges: {0}")]
    Privileges(io::Error),
    #[error(transparent)]
    Nul(#[from] NulError),
    #[error("the one who ordered is gone: {0}")]
    Orphaned(io::Error),
    #[error("cannot execute {program}: {source}")]
    Execute { program: String, source: io::Error },
}

/// Closes what the container runtime may have left open beside the standard streams. Before anything else.
pub(crate) fn close_inherited() {
    // SAFETY: called before this program opened anything, so no owner of a descriptor above 2 exists.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// A close-on-exec duplicate above all numbers an order can ask for.
pub(crate) fn out_of_the_way(fd: &impl AsFd) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(fd, TARGETS.end)?)
}

/// Becomes the ordered program, or returns why not; then everything is as before but the privileges.
pub(crate) fn become_program(sender: &UnixStream, received: Received) -> BecomeError {
    match attempt(sender, received) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn attempt(sender: &UnixStream, Received { order, fds }: Received) -> Result<std::convert::Infallible, BecomeError> {
    let LaunchOrder { program, args, env, descriptors } = order;
    let path = CString::new(program.as_str())?;
    let argv = std::iter::once(Ok(path.clone())).chain(args.into_iter().map(CString::new));
    let argv = argv.collect::<Result<Vec<_>, _>>()?;
    let envp = env.iter().map(|(name, value)| CString::new(format!("{name}={value}")));
    let envp = envp.collect::<Result<Vec<_>, _>>()?;

    // Dropped, and so closed again, if the execve fails.
    let _placed = place(&descriptors, fds)?;
    rustix::thread::set_no_new_privs(true).map_err(|errno| BecomeError::Privileges(errno.into()))?;
    answer_accepted(sender).map_err(BecomeError::Orphaned)?;
    nix::unistd::execve(&path, &argv, &envp).map_err(|errno| BecomeError::Execute { program, source: errno.into() })
}

/// Puts each descriptor at its number, to stay open across the `execve`.
fn place(descriptors: &[Descriptor], fds: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, BecomeError> {
    let failed = |Descriptor { name, target }: &Descriptor, source| BecomeError::Place {
        name: name.clone(),
        target: *target,
        source,
    };
    // All of them move up before the first moves down: any may stand where another belongs.
    let mut aside = Vec::with_capacity(fds.len());
    for (descriptor, fd) in descriptors.iter().zip(fds) {
        aside.push(out_of_the_way(&fd).map_err(|error| failed(descriptor, error))?);
    }
    let mut placed = Vec::with_capacity(aside.len());
    for (descriptor, fd) in descriptors.iter().zip(aside) {
        let there = fcntl_dupfd_cloexec(&fd, descriptor.target).map_err(|errno| failed(descriptor, errno.into()))?;
        if there.as_raw_fd() != descriptor.target {
            return Err(failed(descriptor, io::ErrorKind::AddrInUse.into()));
        }
        fcntl_setfd(&there, FdFlags::empty()).map_err(|errno| failed(descriptor, errno.into()))?;
        placed.push(there);
    }
    Ok(placed)
}
