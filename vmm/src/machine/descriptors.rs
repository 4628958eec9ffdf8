//! Open descriptors that a configuration names by number.
#![allow(unsafe_code, reason = "a number becomes an owned descriptor here, and nowhere else")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

/// A descriptor can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// Not open, standard input or output, taken by another device, or the VMM's own.
    #[error("descriptor {0} was not given, or is in use already")]
    NotFree(RawFd),
    /// A file by its path.
    #[error("{path:?} can't be opened")]
    Open {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Neither.
    #[error("neither a path nor a descriptor is given")]
    Neither,
    /// Another kind of file than its field is for.
    #[error("{field}: descriptor {number} is not {needed}")]
    Unfit {
        /// Which.
        field: &'static str,
        /// Its number.
        number: RawFd,
        /// What it should be.
        needed: &'static str,
    },
}

/// Numbers that nobody in this process owns yet: inherited, or received from a client.
static FREE: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

fn free() -> MutexGuard<'static, BTreeSet<RawFd>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks which descriptors this process was started with. The first thing of all: what is open then is nobody's.
///
/// # Errors
/// When the kernel does not tell.
pub fn inherit() -> io::Result<()> {
    static BEGINNING: Once = Once::new();
    let mut result = Ok(());
    BEGINNING.call_once(|| {
        let open = std::fs::read_dir("/proc/self/fd").map(|entries| {
            let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            numbers.filter(|number| *number > libc::STDERR_FILENO).collect::<Vec<RawFd>>()
        });
        // One was that of the directory, which is closed again.
        result = open.map(|numbers| free().extend(numbers.into_iter().filter(|number| is_open(*number))));
    });
    result
}

/// A descriptor that came from a client, by a number that a configuration can name.
#[must_use]
pub fn receive(descriptor: OwnedFd) -> RawFd {
    let number = descriptor.into_raw_fd();
    free().insert(number);
    number
}

/// Takes a descriptor over.
///
/// # Errors
/// When it is not open, somebody has it already, or it is the VMM's own.
pub fn take(number: RawFd) -> Result<OwnedFd, DescriptorError> {
    if !free().remove(&number) {
        return Err(DescriptorError::NotFree(number));
    }
    // SAFETY: it was open when it came into the set, nobody owned it since, and now nobody else can get it from there.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes a descriptor, if nobody has taken it over.
pub fn close(number: RawFd) {
    drop(take(number));
}

/// Descriptors that came with a request. What is not kept is closed, unless somebody has taken it over.
#[derive(Default)]
pub struct Received(Vec<RawFd>);

impl Received {
    /// To be named by number from now on.
    #[must_use]
    pub fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter().map(receive).collect())
    }

    /// Their numbers.
    #[must_use]
    pub fn numbers(&self) -> &[RawFd] {
        &self.0
    }

    /// Leaves them open.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.0.iter().for_each(|number| close(*number));
    }
}

/// A copy of a descriptor, which itself stays free to be taken or copied.
///
/// # Errors
/// As [`take`].
pub fn copy(number: RawFd) -> Result<OwnedFd, DescriptorError> {
    let free = free();
    if !free.contains(&number) {
        return Err(DescriptorError::NotFree(number));
    }
    // SAFETY: it is in the set, so it is open and stays so while the set is locked.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned().map_err(|_| DescriptorError::NotFree(number))
}

/// Where a console's output goes: a descriptor (of which a copy is used), or else a file by path, which is added to.
///
/// # Errors
/// When there is neither, it can't be opened, or the descriptor is not open for writing.
pub fn output(field: &'static str, number: Option<RawFd>, path: Option<&Path>) -> Result<File, DescriptorError> {
    if let Some(number) = number {
        let descriptor = copy(number)?;
        let flags = fcntl_getfl(&descriptor).unwrap_or(OFlags::PATH);
        let is_fit = flags.intersects(OFlags::WRONLY | OFlags::RDWR) && !flags.contains(OFlags::PATH);
        let needed = "open for writing";
        return if is_fit { Ok(descriptor.into()) } else { Err(DescriptorError::Unfit { field, number, needed }) };
    }
    let path = path.ok_or(DescriptorError::Neither)?;
    let opened = File::options().create(true).append(true).open(path);
    opened.map_err(|source| DescriptorError::Open { path: path.display().to_string(), source })
}

/// A copy of an open directory, as [`copy`].
///
/// # Errors
/// As [`copy`], and when it is something else.
pub fn directory(field: &'static str, number: RawFd) -> Result<OwnedFd, DescriptorError> {
    let descriptor = copy(number)?;
    let is_directory =
        fstat(&descriptor).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Directory);
    // What is only a handle of one can't be written to the disk.
    let is_fit = is_directory && fcntl_getfl(&descriptor).is_ok_and(|flags| !flags.contains(OFlags::PATH));
    let needed = "an open directory";
    if is_fit { Ok(descriptor) } else { Err(DescriptorError::Unfit { field, number, needed }) }
}

/// A copy of a unix socket that listens, as [`copy`].
///
/// # Errors
/// As [`copy`], and when it is something else.
pub fn listener(field: &'static str, number: RawFd) -> Result<UnixListener, DescriptorError> {
    let descriptor = copy(number)?;
    // Only a socket that has a name listens.
    let is_fit = socket_domain(&descriptor) == Ok(AddressFamily::UNIX)
        && socket_type(&descriptor) == Ok(SocketType::STREAM)
        && socket_acceptconn(&descriptor) == Ok(true);
    let needed = "a listening unix stream socket";
    if is_fit { Ok(descriptor.into()) } else { Err(DescriptorError::Unfit { field, number, needed }) }
}

fn is_open(number: RawFd) -> bool {
    // SAFETY: asks for flags by number; a closed one is an error.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// A file by descriptor (of which a copy is used), or else by path.
///
/// # Errors
/// When there is neither, or it can't be opened.
pub fn file(number: Option<RawFd>, path: Option<&Path>, is_writable: bool) -> Result<File, DescriptorError> {
    if let Some(number) = number {
        return copy(number).map(File::from);
    }
    let path = path.ok_or(DescriptorError::Neither)?;
    let opened = File::options().read(true).write(is_writable).open(path);
    opened.map_err(|source| DescriptorError::Open { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn each_is_taken_once() {
        let number = receive(File::open("/dev/null").unwrap().into());
        drop(copy(number).unwrap());
        drop(copy(number).unwrap());
        let owned = take(number).unwrap();
        assert!(matches!(take(number), Err(DescriptorError::NotFree(_))));
        assert!(matches!(copy(number), Err(DescriptorError::NotFree(_))));
        drop(owned);
    }

    #[test]
    fn only_unix_sockets_listen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let number = receive(UnixListener::bind(&path).unwrap().into());
        let listener = listener("socket_fd", number).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        let others: [OwnedFd; 4] = [
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(),
            UnixDatagram::bind(folder.path().join("datagrams")).unwrap().into(),
            UnixStream::connect(&path).unwrap().into(),
            File::open("/dev/null").unwrap().into(),
        ];
        for other in others {
            let other = receive(other);
            let error = super::listener("vsock.socket_fd", other).unwrap_err().to_string();
            assert_eq!(error, format!("vsock.socket_fd: descriptor {other} is not a listening unix stream socket"));
            drop(take(other).unwrap());
        }
        drop(take(number).unwrap());
    }

    #[test]
    fn output_goes_to_what_is_open_for_writing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "before ").unwrap();
        let write = |number: RawFd| writeln!(output("serial.fd", Some(number), None)?, "after").map_err(io_error);
        let fit = receive(File::options().append(true).open(&path).unwrap().into());
        write(fit).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before after\n");
        drop(take(fit).unwrap());
        let handle = rustix::fs::open(&path, OFlags::PATH | OFlags::RDWR, rustix::fs::Mode::empty()).unwrap();
        for other in [OwnedFd::from(File::open(&path).unwrap()), File::open(folder.path()).unwrap().into(), handle] {
            let other = receive(other);
            let error = write(other).unwrap_err().to_string();
            assert_eq!(error, format!("serial.fd: descriptor {other} is not open for writing"));
            drop(take(other).unwrap());
        }
    }

    #[test]
    fn directories_are_open() {
        let folder = tempfile::tempdir().unwrap();
        let number = receive(File::open(folder.path()).unwrap().into());
        directory("source_fd", number).unwrap();
        let handle = rustix::fs::open(folder.path(), OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let others = Received::new(vec![handle, File::open("/dev/null").unwrap().into()]);
        for other in others.numbers() {
            let error = directory("source_fd", *other).unwrap_err().to_string();
            assert_eq!(error, format!("source_fd: descriptor {other} is not an open directory"));
        }
        close(number);
    }

    #[test]
    fn what_came_with_a_request_is_closed_unless_it_is_kept() {
        let (mut other_end, end) = UnixStream::pair().unwrap();
        other_end.set_nonblocking(true).unwrap();
        let mut is_open = || other_end.read(&mut [0]).is_err();
        let received = Received::new(vec![end.into()]);
        let number = received.numbers()[0];
        received.keep();
        assert!(is_open());
        drop(Received(vec![number]));
        assert!(!is_open());
    }

    fn io_error(source: io::Error) -> DescriptorError {
        DescriptorError::Open { path: String::new(), source }
    }

    #[test]
    fn what_was_not_given_is_refused() {
        use std::os::fd::AsRawFd;
        let own = File::open("/dev/null").unwrap();
        for number in [-1, 0, 1, 2, own.as_raw_fd(), RawFd::MAX, RawFd::MIN] {
            assert!(matches!(take(number), Err(DescriptorError::NotFree(_))));
            assert!(matches!(file(Some(number), None, false), Err(DescriptorError::NotFree(_))));
        }
        assert!(matches!(file(None, None, false), Err(DescriptorError::Neither)));
        assert!(matches!(file(None, Some(Path::new("/nowhere")), false), Err(DescriptorError::Open { .. })));
    }
}
