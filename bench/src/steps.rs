//! Instructions of a program's own code until a guest's first: all its threads are single-stepped (ptrace(2)) until one of
//! them is about to call `KVM_RUN`, which a seccomp filter tells of. Exact, and a thousand times slower than running.
#![allow(unsafe_code, reason = "a child traces and filters itself between fork and exec")]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// `KVM_RUN` (`linux/kvm.h`).
const KVM_RUN: u64 = 0xAE80;

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// All of them.
    Exactly(u64),
    /// Counting was given up.
    MoreThan(u64),
}

impl Steps {
    /// The number, which is the least there are.
    pub fn count(self) -> u64 {
        let (Self::Exactly(count) | Self::MoreThan(count)) = self;
        count
    }

    /// What stands before that number, and before what is computed from it.
    pub fn sign(self) -> &'static str {
        if matches!(self, Self::Exactly(_)) { "" } else { "> " }
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.sign(), self.count())
    }
}

/// Runs a command until its first `KVM_RUN`, or `limit` instructions, and ends it.
pub fn to_first_entry(command: &[String], limit: u64) -> Result<Steps> {
    let [program, arguments @ ..] = command else { bail!("no command") };
    let filter = filter()?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: between fork and exec only system calls are made, on memory that was there before.
    unsafe {
        command.pre_exec(move || {
            ptrace::traceme()?;
            seccompiler::apply_filter(&filter).map_err(|_| io::Error::last_os_error())
        });
    }
    let child = command.spawn().with_context(|| format!("starting {program}"))?;
    let first = Pid::from_raw(child.id().cast_signed());
    let counted = step(first, limit);
    let ended = end(first);
    counted.and_then(|steps| ended.map(|()| steps))
}

/// Stops a thread before it calls `KVM_RUN`; lets everything else be.
fn filter() -> Result<BpfProgram> {
    let is_run = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, KVM_RUN)?;
    let rules = BTreeMap::from([(libc::SYS_ioctl, vec![SeccompRule::new(vec![is_run])?])]);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Trace(0), TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

fn step(first: Pid, limit: u64) -> Result<Steps> {
    // It stops by itself once it has become the program.
    waitpid(first, None).context("waiting for the program to begin")?;
    let options = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESECCOMP | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(first, options).context("tracing the program")?;
    ptrace::step(first, None)?;
    let mut count = 0;
    while count < limit {
        let (thread, signal) = match waitpid(None, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_SECCOMP) => return Ok(Steps::Exactly(count)),
            WaitStatus::PtraceEvent(thread, ..) => (thread, None),
            WaitStatus::Stopped(thread, Signal::SIGTRAP) => {
                count += 1;
                (thread, None)
            }
            // A new thread begins so.
            WaitStatus::Stopped(thread, Signal::SIGSTOP) => (thread, None),
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..) if thread == first => {
                bail!("the program ended before it entered a guest")
            }
            _ => continue,
        };
        ptrace::step(thread, signal)?;
    }
    Ok(Steps::MoreThan(count))
}

/// Ends the program and waits for all its threads.
fn end(first: Pid) -> Result<()> {
    // It may have ended already.
    let _ = kill(first, Signal::SIGKILL);
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..)) if thread == first => return Ok(()),
            Ok(_) => {}
            Err(nix::errno::Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_stepped() {
        let command = ["/bin/true".to_owned()];
        assert!(to_first_entry(&command, u64::MAX).unwrap_err().to_string().contains("before it entered"));
        assert_eq!(to_first_entry(&command, 100).unwrap(), Steps::MoreThan(100));
        assert_eq!(Steps::MoreThan(100).to_string(), "> 100");
    }
}
