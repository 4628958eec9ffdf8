//! The way to a socket that lies in a directory of an untrusted pod.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::peer::peer;

/// A connection to a process in a pod.
#[derive(Debug)]
pub struct Connection {
    /// The connected, blocking, close-on-exec stream.
    pub stream: UnixStream,
    /// The process that listens, in our pid namespace. The caller checks that it is the pod's.
    pub peer_pid: i32,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nothing is there (yet).
    #[error("there is no {0}")]
    Absent(String),
    /// A socket file without a process behind it.
    #[error("nobody listens on {0}")]
    NobodyListens(String),
    /// The listener's queue is full.
    #[error("{0} takes no further connection now")]
    Busy(String),
    /// A link, a way out of the directory, or some other kind of file: somebody meddled with the pod's directory.
    #[error("{name} is not a socket in this directory: {why}")]
    Foreign {
        /// The name that was looked up.
        name: String,
        /// What it is instead.
        why: &'static str,
    },
    /// The listener lives in a pid namespace that is not below ours.
    #[error("the process that listens on {0} is not visible in this pid namespace (hostPID is needed)")]
    Invisible(String),
    /// Anything else.
    #[error("cannot connect to {name}")]
    Io {
        /// The name that was looked up.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Connects to the unix stream socket `name` in `dir`, following no link and never leaving `dir`.
///
/// The inode is opened first and connected to through `/proc/self/fd`, so what was checked is what is used. Never
/// waits: a listener that does not accept is [`ConnectError::Busy`].
///
/// # Errors
/// See [`ConnectError`].
pub fn connect_beneath(dir: BorrowedFd<'_>, name: &str) -> Result<Connection, ConnectError> {
    let failed = |errno: Errno| ConnectError::Io { name: name.to_owned(), source: errno.into() };
    let foreign = |why| ConnectError::Foreign { name: name.to_owned(), why };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let inode =
        openat2(dir, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).map_err(|errno| match errno {
            Errno::NOENT => ConnectError::Absent(name.to_owned()),
            Errno::LOOP => foreign("a symbolic link"),
            Errno::XDEV => foreign("a path out of the directory"),
            errno => failed(errno),
        })?;
    let mode = fstat(&inode).map_err(failed)?.st_mode;
    if FileType::from_raw_mode(mode) != FileType::Socket {
        return Err(foreign("another kind of file"));
    }

    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", inode.as_raw_fd())).map_err(failed)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
    connect(&socket, &address).map_err(|errno| match errno {
        Errno::CONNREFUSED => ConnectError::NobodyListens(name.to_owned()),
        Errno::AGAIN => ConnectError::Busy(name.to_owned()),
        Errno::PROTOTYPE => foreign("a socket of another type"),
        errno => failed(errno),
    })?;

    let stream = UnixStream::from(socket);
    let io = |source| ConnectError::Io { name: name.to_owned(), source };
    stream.set_nonblocking(false).map_err(io)?;
    let peer_pid = peer(&stream).map_err(io)?.pid.ok_or_else(|| ConnectError::Invisible(name.to_owned()))?;
    Ok(Connection { stream, peer_pid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    fn attempt(dir: &tempfile::TempDir, name: &str) -> Result<Connection, ConnectError> {
        connect_beneath(File::open(dir.path()).unwrap().as_fd(), name)
    }

    #[test]
    fn reaches_a_listener_and_names_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let connection = attempt(&dir, "s").unwrap();
        assert_eq!(connection.peer_pid, i32::try_from(std::process::id()).unwrap());
    }

    #[test]
    fn follows_nothing_out_of_the_directory() {
        let outside = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(outside.path().join("s")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path().join("s"), dir.path().join("link")).unwrap();
        symlink(outside.path(), dir.path().join("sub")).unwrap();
        let above = format!("../{}/s", outside.path().file_name().unwrap().to_str().unwrap());
        for name in ["link", "sub/s", &above, outside.path().join("s").to_str().unwrap()] {
            assert!(matches!(attempt(&dir, name), Err(ConnectError::Foreign { .. })), "{name}");
        }
    }

    #[test]
    fn says_what_is_there_instead() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let _datagram = UnixDatagram::bind(dir.path().join("datagram")).unwrap();
        drop(UnixListener::bind(dir.path().join("stale")).unwrap());
        assert!(matches!(attempt(&dir, "nothing"), Err(ConnectError::Absent(_))));
        assert!(matches!(attempt(&dir, "file"), Err(ConnectError::Foreign { .. })));
        assert!(matches!(attempt(&dir, "datagram"), Err(ConnectError::Foreign { .. })));
        assert!(matches!(attempt(&dir, "stale"), Err(ConnectError::NobodyListens(_))));
    }

    #[test]
    fn never_waits_for_a_listener_that_does_not_accept() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _queued = attempt(&dir, "s").unwrap();
        assert!(matches!(attempt(&dir, "s"), Err(ConnectError::Busy(_))));
    }
}
