//! Programs of the system image, run in it. Nothing else runs besides this process.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{At, Error, Result};
use crate::say;

/// First argument of this program when it was started only to enter a root and become a program there.
const ENTER: &str = "--enter";
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// A program found in a root.
pub(crate) struct Program {
    root: PathBuf,
    path: PathBuf,
}

/// Looks a program up in the usual directories of `root`.
pub(crate) fn find(root: &str, program: &'static str, package: &'static str) -> Result<Program> {
    let root = PathBuf::from(root);
    let paths = DIRECTORIES.iter().map(|directory| Path::new(directory).join(program));
    let path = paths.into_iter().find(|path| exists(&root, path)).ok_or(Error::NoProgram { program, package })?;
    Ok(Program { root, path })
}

/// Whether `path` names something in `root`, its symbolic links followed there.
pub(crate) fn exists(root: &Path, path: &Path) -> bool {
    let Ok(root) = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
        return false;
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).is_ok()
}

impl Program {
    /// Runs it with its root as root directory, and waits for it.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<()> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(ENTER).arg(&self.root).arg(&self.path).args(arguments);
        let status = command.status().at("execute", &self.path)?;
        match status.success() {
            true => Ok(()),
            false => Err(Error::Program { program: self.path.display().to_string(), status: status.to_string() }),
        }
    }
}

/// In a process that [`Program::run`] started: becomes the program. `None` in any other.
pub(crate) fn entered() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ENTER {
        return None;
    }
    let (root, program) = (PathBuf::from(arguments.next()?), arguments.next()?);
    let error = match rustix::process::chroot(&root).and_then(|()| rustix::process::chdir("/")) {
        Ok(()) => Command::new(&program).args(arguments).env("PATH", DIRECTORIES.join(":")).exec(),
        Err(error) => error.into(),
    };
    say(&format!("error: cannot execute {} in {}: {error}", program.display(), root.display()));
    Some(ExitCode::FAILURE)
}
