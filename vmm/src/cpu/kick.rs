//! Brings a vCPU's thread out of the guest: a signal whose handler sets `immediate_exit` of its own vCPU.
//!
//! A signal that arrives between the thread's last look at what is wanted and `KVM_RUN` would otherwise be lost:
//! `immediate_exit` makes that `KVM_RUN` return at once (`Documentation/virt/kvm/api.rst`, 5. The kvm_run structure).
#![allow(unsafe_code, reason = "a signal handler that writes into the page that KVM shares with the thread")]

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::OnceLock;

use kvm_ioctls::VcpuFd;
use rustix::process::Pid;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs, or null.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal in use.
fn signal() -> i32 {
    SIGRTMIN()
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // `const` initialization without a destructor: reading the cell allocates nothing, which a handler must not.
    let target = IMMEDIATE_EXIT.get();
    if !target.is_null() {
        // SAFETY: not null means that a `Kickable` of this thread exists, which keeps the vCPU and its page mapped. The
        // kernel reads the byte during KVM_RUN; nobody holds a reference to it while a guest may be entered.
        unsafe { target.write_volatile(1) };
    }
}

/// Makes the calling thread kickable for as long as this exists.
#[derive(Debug)]
pub(super) struct Kickable {
    // The cell is the thread's own: this must not go to another one.
    _not_send: std::marker::PhantomData<*const ()>,
}

/// Handles kicks, from the first call on. Before any of the process' threads is kickable.
///
/// # Errors
/// When the handler can't be installed.
pub(super) fn prepare() -> io::Result<()> {
    static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = HANDLER.get_or_init(|| register_signal_handler(signal(), handle).map_err(|error| error.errno()));
    installed.map_err(io::Error::from_raw_os_error)
}

impl Kickable {
    /// Kicks make `vcpu` leave the guest, which has to live as long as the result.
    pub(super) fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self { _not_send: std::marker::PhantomData }
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

/// Kicks a thread of this process; one that has ended is left alone.
pub(super) fn kick(thread: Pid) {
    let process = rustix::process::getpid();
    // SAFETY: sends a signal, by numbers only. A thread that has ended is not found: `Vcpus` joins its threads only
    // after their last kick, so that the number is not another's yet.
    let _ = unsafe {
        libc::syscall(libc::SYS_tgkill, process.as_raw_nonzero().get(), thread.as_raw_nonzero().get(), signal())
    };
}
