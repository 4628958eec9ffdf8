//! Each role in a process of its own, which makes one call.
#![allow(unsafe_code, reason = "forks, and makes system calls by number")]

use super::*;

/// What became of the process.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It ended as it wanted to.
    Exited,
    /// The kernel killed it for a call.
    Killed,
}

/// Makes a call in a confined process.
fn make(role: Role, number: i64, arguments: [u64; 3]) -> Fate {
    let filter = Filters::new(Seccomp::On).of(role).unwrap().unwrap();
    // SAFETY: the child allocates nothing and takes no lock: it installs a filter that is there, makes one call whose
    // arguments are numbers or null, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: as above. The limit keeps a killed child from writing its memory to the disk.
        unsafe {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &none);
            if seccompiler::apply_filter(&filter).is_ok() {
                libc::syscall(number, arguments[0], arguments[1], arguments[2]);
                libc::syscall(libc::SYS_exit_group, 0);
            }
            libc::_exit(1);
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    if libc::WIFSIGNALED(status) {
        assert_eq!(libc::WTERMSIG(status), libc::SIGSYS);
        return Fate::Killed;
    }
    assert_eq!(libc::WEXITSTATUS(status), 0, "the filter could not be installed");
    Fate::Exited
}

/// Calls that nobody may make.
#[test]
fn forbidden_calls_kill() {
    let inet = libc::AF_INET as u64;
    let exec = libc::PROT_EXEC as u64;
    for role in Role::ALL {
        for (name, number, arguments) in [
            ("execve", libc::SYS_execve, [0, 0, 0]),
            ("ptrace", libc::SYS_ptrace, [0, 0, 0]),
            ("socket(AF_INET)", libc::SYS_socket, [inet, libc::SOCK_STREAM as u64, 0]),
            ("mprotect(PROT_EXEC)", libc::SYS_mprotect, [0, 0, exec]),
            ("mmap(PROT_EXEC)", libc::SYS_mmap, [0, 4096, exec]),
            ("setuid", libc::SYS_setuid, [0, 0, 0]),
            ("mount", libc::SYS_mount, [0, 0, 0]),
            ("tgkill of another", libc::SYS_tgkill, [1, 1, 0]),
            ("ioctl of nobody's", libc::SYS_ioctl, [0, 0x7712, 0]),
            ("SO_ATTACH_FILTER", libc::SYS_setsockopt, [0, libc::SOL_SOCKET as u64, libc::SO_ATTACH_FILTER as u64]),
            ("TIOCSTI", libc::SYS_ioctl, [0, 0x5412, 0]),
        ] {
            assert_eq!(make(role, number, arguments), Fate::Killed, "{role:?}: {name}");
        }
    }
}

/// What one role may do and the others may not.
#[test]
fn roles_differ() {
    let kvm_run = 0xAE80;
    let unix = libc::AF_UNIX as u64;
    let only = |number, arguments, roles: &[Role]| {
        for role in Role::ALL {
            let expected = if roles.contains(&role) || role == Role::Owner { Fate::Exited } else { Fate::Killed };
            assert_eq!(make(role, number, arguments), expected, "{role:?}: {number}");
        }
    };
    let nowhere = u64::from(u32::MAX);
    only(libc::SYS_ioctl, [nowhere, kvm_run, 0], &[Role::Vcpu]);
    only(libc::SYS_openat, [nowhere, 0, 0], &[]);
    only(libc::SYS_clone3, [0, 0, 0], &[]);
    only(libc::SYS_socket, [unix, 9999, 0], &[Role::Vsock]);
    only(libc::SYS_io_uring_enter, [nowhere, 0, 0], &[Role::Block]);
    only(libc::SYS_io_submit, [0, 0, 0], &[Role::Block]);
    only(libc::SYS_accept4, [nowhere, 0, 0], &[Role::Console, Role::Vsock]);
    only(libc::SYS_msync, [0, 0, 0], &[Role::Pmem]);
    only(libc::SYS_setsockopt, [nowhere, libc::SOL_SOCKET as u64, libc::SO_RCVTIMEO as u64], &[]);
    only(libc::SYS_preadv, [nowhere, 0, 0], &[Role::Block]);
}

#[test]
fn what_everyone_needs_is_allowed() {
    for role in Role::ALL {
        assert_eq!(make(role, libc::SYS_getpid, [0, 0, 0]), Fate::Exited, "{role:?}");
        assert_eq!(make(role, libc::SYS_mmap, [0, 0, libc::PROT_READ as u64]), Fate::Exited, "{role:?}");
    }
}

#[test]
fn filters_are_shared_and_can_be_off() {
    let filters = Filters::new(Seccomp::On);
    let first = filters.of(Role::Block).unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &filters.of(Role::Block).unwrap().unwrap()));
    assert!(Filters::new(Seccomp::Off).of(Role::Block).unwrap().is_none());
}
