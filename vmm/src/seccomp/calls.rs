//! The lists. What a library does for us (allocation, threads, time) is in [`BASE`]; the rest is by role.

use libc::*;

use super::program::{Allowed, Condition};
use super::{Role, ioctls};

/// A system call, and which of its arguments are allowed.
#[derive(Debug, Clone, Copy)]
enum Call {
    /// Any.
    Any(i64),
    /// Argument `1` is one of these.
    OneOf(i64, u8, &'static [u64]),
    /// Argument `1`, of which only these bits count, is one of these.
    Masked(i64, u8, u64, &'static [u64]),
}

use Call::{Any, Masked, OneOf};

/// What every thread does, whatever it is for: memory, locks, its own end, and descriptors that it has.
const BASE: &[Call] = &[
    Any(SYS_read),
    Any(SYS_write),
    Any(SYS_close),
    Any(SYS_futex),
    Any(SYS_brk),
    Masked(SYS_mmap, 2, PROT_EXEC as u64, &[0]),
    Masked(SYS_mprotect, 2, PROT_EXEC as u64, &[0]),
    Any(SYS_munmap),
    Any(SYS_mremap),
    Any(SYS_madvise),
    Any(SYS_rt_sigreturn),
    Any(SYS_rt_sigprocmask),
    Any(SYS_sigaltstack),
    Any(SYS_restart_syscall),
    Any(SYS_sched_yield),
    Any(SYS_clock_gettime),
    Any(SYS_clock_nanosleep),
    Any(SYS_gettid),
    Any(SYS_getpid),
    Any(SYS_getrandom),
    Any(SYS_dup),
    OneOf(
        SYS_fcntl,
        1,
        &[F_DUPFD as u64, F_DUPFD_CLOEXEC as u64, F_GETFD as u64, F_SETFD as u64, F_GETFL as u64, F_SETFL as u64],
    ),
    Any(SYS_eventfd2),
    Any(SYS_exit),
    Any(SYS_exit_group),
];

/// A vCPU's: run the guest; what its accesses to devices lead to.
const VCPU: &[Call] = &[
    OneOf(SYS_ioctl, 1, ioctls::VCPU),
    // Registers of VFIO functions.
    Any(SYS_pread64),
    Any(SYS_pwrite64),
    // The serial port's output.
    Any(SYS_writev),
    Any(SYS_poll),
    Any(SYS_ppoll),
];

/// Every device's: wait for its events.
const DEVICE: &[Call] = &[
    Any(SYS_epoll_create1),
    Any(SYS_epoll_ctl),
    Any(SYS_epoll_wait),
    Any(SYS_epoll_pwait),
    Any(SYS_timerfd_create),
    Any(SYS_timerfd_settime),
    Any(SYS_sched_getaffinity),
];

const BLOCK: &[Call] = &[
    Any(SYS_pread64),
    Any(SYS_pwrite64),
    Any(SYS_preadv),
    Any(SYS_pwritev),
    Any(SYS_preadv2),
    Any(SYS_pwritev2),
    Any(SYS_fsync),
    Any(SYS_fdatasync),
    Any(SYS_fallocate),
    Any(SYS_io_uring_setup),
    Any(SYS_io_uring_register),
    Any(SYS_io_uring_enter),
    Any(SYS_io_setup),
    Any(SYS_io_submit),
    Any(SYS_io_getevents),
    Any(SYS_io_destroy),
    Masked(SYS_ioctl, 1, ioctls::TYPE, &[ioctls::BLOCK]),
];

const NET: &[Call] = &[
    Any(SYS_readv),
    Any(SYS_writev),
    OneOf(SYS_ioctl, 1, ioctls::TAPS),
    Masked(SYS_ioctl, 1, ioctls::TYPE, &[ioctls::VHOST]),
];

const CONSOLE: &[Call] = &[
    // Whether a terminal would wait.
    Any(SYS_poll),
    Any(SYS_ppoll),
    Any(SYS_readv),
    Any(SYS_writev),
    Any(SYS_accept4),
    Any(SYS_sendto),
    Any(SYS_recvfrom),
    Any(SYS_sendmsg),
    Any(SYS_recvmsg),
    Any(SYS_shutdown),
    OneOf(SYS_ioctl, 1, ioctls::TERMINAL),
];

const VSOCK: &[Call] = &[
    OneOf(SYS_socket, 0, &[AF_UNIX as u64]),
    Any(SYS_connect),
    Any(SYS_accept4),
    Any(SYS_readv),
    Any(SYS_writev),
    Any(SYS_sendto),
    Any(SYS_recvfrom),
    Any(SYS_sendmsg),
    Any(SYS_recvmsg),
    Any(SYS_shutdown),
    Any(SYS_getsockopt),
    OneOf(SYS_ioctl, 1, ioctls::TERMINAL),
    Masked(SYS_ioctl, 1, ioctls::TYPE, &[ioctls::VHOST]),
];

const PMEM: &[Call] = &[Any(SYS_msync), Any(SYS_fsync), Any(SYS_fdatasync)];

const FS: &[Call] =
    &[Any(SYS_sendmsg), Any(SYS_recvmsg), Any(SYS_recvfrom), Any(SYS_sendto), OneOf(SYS_ioctl, 1, ioctls::TERMINAL)];

/// The owner's own: sockets of callers, files of guests and snapshots, threads, RAM.
const OWNER: &[Call] = &[
    Any(SYS_poll),
    Any(SYS_ppoll),
    Any(SYS_accept4),
    Any(SYS_recvmsg),
    Any(SYS_openat),
    Any(SYS_open),
    Any(SYS_readlink),
    Any(SYS_readlinkat),
    Any(SYS_fstat),
    Any(SYS_newfstatat),
    Any(SYS_statx),
    Any(SYS_statfs),
    Any(SYS_fstatfs),
    Any(SYS_lseek),
    Any(SYS_ftruncate),
    Any(SYS_unlink),
    Any(SYS_unlinkat),
    Any(SYS_renameat),
    Any(SYS_renameat2),
    Any(SYS_getdents64),
    Any(SYS_bind),
    Any(SYS_listen),
    Any(SYS_socketpair),
    // How long who serves a file system may take to answer.
    OneOf(SYS_setsockopt, 2, &[SO_RCVTIMEO as u64, SO_SNDTIMEO as u64]),
    Any(SYS_clone),
    Any(SYS_clone3),
    Any(SYS_rseq),
    Any(SYS_set_robust_list),
    OneOf(SYS_prctl, 0, &[PR_SET_NAME as u64, PR_SET_NO_NEW_PRIVS as u64, PR_SET_TIMERSLACK as u64]),
    Any(SYS_seccomp),
    Any(SYS_sched_setaffinity),
    Any(SYS_memfd_create),
    Any(SYS_mbind),
    Any(SYS_set_mempolicy),
    Any(SYS_mlock),
    Any(SYS_prlimit64),
    Any(SYS_rt_sigaction),
    Any(SYS_uname),
    Any(SYS_sysinfo),
    Masked(SYS_ioctl, 1, ioctls::TYPE, &[ioctls::KVM, ioctls::VFIO]),
];

/// The lists of a role.
fn lists(role: Role) -> &'static [&'static [Call]] {
    match role {
        Role::Owner => &[BASE, VCPU, DEVICE, BLOCK, NET, CONSOLE, VSOCK, PMEM, FS, OWNER],
        Role::Vcpu => &[BASE, VCPU],
        Role::Block => &[BASE, DEVICE, BLOCK],
        Role::Net => &[BASE, DEVICE, NET],
        Role::Console => &[BASE, DEVICE, CONSOLE],
        Role::Vsock => &[BASE, DEVICE, VSOCK],
        Role::Rng => &[BASE, DEVICE],
        Role::Pmem => &[BASE, DEVICE, PMEM],
        Role::Fs => &[BASE, DEVICE, FS],
    }
}

/// The calls that a role may make.
pub fn allowed(role: Role) -> Allowed {
    let mut allowed = Allowed::new();
    let mut add = |number, argument, mask, values: &[u64]| {
        // Whoever may make it with any arguments may make it with some.
        if let Some(conditions) = allowed.entry(number).or_insert_with(|| Some(Vec::new())) {
            conditions.extend(values.iter().map(|value| Condition { argument, mask, value: *value as u32 }));
        }
    };
    for call in lists(role).iter().copied().flatten() {
        match *call {
            OneOf(number, argument, values) => add(number, argument, u32::MAX, values),
            Masked(number, argument, mask, values) => add(number, argument, mask as u32, values),
            Any(_) => {}
        }
    }
    // A process signals only itself.
    if role == Role::Owner {
        add(SYS_tgkill, 0, u32::MAX, &[u64::from(std::process::id())]);
    }
    let any = lists(role).iter().copied().flatten().filter_map(|call| match *call {
        Any(number) => Some((number, None)),
        OneOf(..) | Masked(..) => None,
    });
    allowed.extend(any);
    allowed
}
