//! Work inside another network namespace, on a thread of its own so that nothing else of the process moves.

use crate::error::{Context, Error};
use rustix::fs::fstat;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::sync::oneshot;

/// Runs `work` on a short-lived thread inside the namespace. Sockets opened there stay bound to it.
///
/// Dropping the future does not stop the thread: `work` ends by itself, and must be safe to repeat.
pub(crate) async fn inside<T: Send + 'static>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    refuse_host(netns)?;
    let netns = netns.try_clone_to_owned().context(|| "duplicate the network namespace's descriptor".into())?;
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("guest-network".into())
        .spawn(move || {
            // Nobody listens when the caller was cancelled; the work is done all the same.
            let _ = done.send(enter(&netns).and_then(|()| work()));
        })
        .context(|| "start a thread for the pod's network namespace".into())?;
    result.await.map_err(io::Error::other).context(|| "finish the work in the pod's network namespace".into())?
}

fn enter(netns: &OwnedFd) -> Result<(), Error> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
        .context(|| "enter the pod's network namespace".into())
}

/// A pod with `hostNetwork: true` would have us rewrite the host's own rules.
fn refuse_host(netns: BorrowedFd<'_>) -> Result<(), Error> {
    let identity = |fd: BorrowedFd<'_>| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    let theirs = identity(netns).context(|| "identify the pod's network namespace".into())?;
    for ours in ["/proc/self/ns/net", "/proc/1/ns/net"] {
        // Process 1's namespace is only visible in the host's process namespace; our own always is.
        let Ok(ours) = File::open(ours) else { continue };
        if identity(ours.as_fd()).is_ok_and(|ours| ours == theirs) {
            return Err(Error::HostNamespace);
        }
    }
    Ok(())
}
