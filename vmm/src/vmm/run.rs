//! The owner's loop: one thread, which sleeps until something happens.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};

use super::{End, Vmm};
use crate::api::{Server, routes};

/// What the machine's threads tell its owner.
pub trait Signals: AsFd {
    /// Tells the owner everything that has happened.
    fn deliver(&mut self, vmm: &mut Vmm);
}

/// Serves the guest and its callers until one of them ends it.
///
/// # Errors
/// When polling fails.
pub fn run(vmm: &mut Vmm, server: &mut Option<Server>, signals: &mut impl Signals) -> io::Result<End> {
    loop {
        // What was asked for before the guest told something waits until it has been heard.
        signals.deliver(vmm);
        if let Some(end) = vmm.end() {
            return Ok(end.clone());
        }
        if let Some(server) = server
            && let Some(call) = server.take_call()
        {
            let client = call.client();
            let response = match routes::command(&call.request) {
                Ok(command) => vmm.command(command, call.fds),
                Err(response) => response,
            };
            server.answer(client, &response);
            continue;
        }
        wait(vmm, server.as_mut(), signals)?;
    }
}

/// Sleeps until there is something to do.
fn wait(vmm: &mut Vmm, server: Option<&mut Server>, signals: &impl Signals) -> io::Result<()> {
    let mut fds = vec![PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
    if let Some(fd) = vmm.monitor.fd() {
        fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
    }
    let before_guest = fds.len();
    if let Some(guest) = vmm.guest() {
        guest.watch(&mut fds);
    }
    let before_server = fds.len();
    if let Some(server) = &server {
        server.watch(&mut fds);
    }
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let results: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
    drop(fds);
    let is_ready = |range: std::ops::Range<usize>| results[range].iter().any(|result| !result.is_empty());
    if is_ready(1..before_guest) {
        vmm.monitor.accept();
    }
    if is_ready(before_guest..before_server)
        && let Some(guest) = vmm.guest_mut()
    {
        guest.ready();
    }
    if let Some(server) = server {
        server.ready(&results[before_server..]);
    }
    Ok(())
}
