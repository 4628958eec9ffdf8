//! The vCPUs' threads.
//!
//! ```text
//!             run                      end
//!   Parked ◄───────► Running     * ──────────► Ended
//!             park
//! ```
//! A thread holds its vCPU's lock while it runs; whoever wants a vCPU's registers parks the threads first.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use kvm_ioctls::VcpuFd;
use rustix::process::Pid;
use rustix::thread::CpuSet;

use super::exits::{self, Buses, ExitCounters, Outcome};
use super::kick::{self, Kickable};
use crate::counters::Counts;

/// What the threads tell.
pub trait Listener: Send + Sync {
    /// A vCPU's exit led to this. If it [stops](Outcome::stops) the vCPU, that goes on when the threads are told to run
    /// again.
    fn happened(&self, vcpu: u32, outcome: Outcome);

    /// Called in each thread before it runs anything of the guest's: restricts what the thread can do.
    ///
    /// # Errors
    /// The thread then ends, and with it the attempt to make the vCPUs.
    fn confine(&self) -> io::Result<()>;
}

/// What all threads should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Wanted {
    Parked,
    Running,
    Ended,
}

/// What the threads share.
struct Control {
    /// A copy of `state.wanted`, to be looked at before each entry.
    wanted: AtomicU8,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    wanted: Wanted,
    /// How often it was wanted that they run.
    generation: u64,
    /// How many are parked.
    parked: usize,
}

/// A guest's vCPUs, each with its thread.
pub struct Vcpus {
    control: Arc<Control>,
    threads: Vec<Thread>,
}

struct Thread {
    vcpu: Arc<Mutex<VcpuFd>>,
    id: Pid,
    exits: Arc<ExitCounters>,
    handle: Option<JoinHandle<()>>,
}

/// A thread could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the thread of vCPU {vcpu} can't be made")]
pub struct ThreadError {
    /// Which vCPU's.
    pub vcpu: u32,
    /// Why.
    pub source: io::Error,
}

/// Stacks are small: the loop calls nothing deep. (Pages that are not touched cost nothing, but some are.)
const STACK: usize = 256 << 10;

/// Threads on their way to their host CPUs and into their filters, which need no vCPU yet.
pub struct Starting {
    control: Arc<Control>,
    threads: Vec<StartingThread>,
}

struct StartingThread {
    id: mpsc::Receiver<io::Result<Pid>>,
    vcpu: Option<mpsc::SyncSender<Arc<Mutex<VcpuFd>>>>,
    exits: Arc<ExitCounters>,
    handle: Option<JoinHandle<()>>,
}

impl Starting {
    /// Makes a thread for each of so many vCPUs. `affinity` says on which host CPUs each may run, where it says something.
    ///
    /// # Errors
    /// When the host has no more threads.
    pub fn new(
        vcpus: u32,
        affinity: impl Fn(u32) -> Option<CpuSet>,
        buses: &Arc<Buses>,
        listener: &Arc<dyn Listener>,
    ) -> Result<Self, ThreadError> {
        let state = State { wanted: Wanted::Parked, generation: 0, parked: 0 };
        let control = Arc::new(Control {
            wanted: AtomicU8::new(Wanted::Parked as u8),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let start = |number| {
            let failed = |source| ThreadError { vcpu: number, source };
            kick::prepare().map_err(failed)?;
            let exits: Arc<ExitCounters> = Arc::default();
            let (cpus, listener) = (affinity(number), Arc::clone(listener));
            let (control, buses, counted) = (Arc::clone(&control), Arc::clone(buses), Arc::clone(&exits));
            let (tell, id) = mpsc::sync_channel(1);
            let (vcpu, given) = mpsc::sync_channel(1);
            let begin = move || {
                let _ = tell.send(place(cpus).and_then(|()| listener.confine()).map(|()| rustix::thread::gettid()));
                if let Ok(vcpu) = given.recv() {
                    Runner { number, vcpu, control, buses, listener, exits: counted }.run();
                }
            };
            let thread = thread::Builder::new().name(format!("vcpu{number}")).stack_size(STACK);
            let handle = thread.spawn(begin).map_err(failed)?;
            Ok(StartingThread { id, vcpu: Some(vcpu), exits, handle: Some(handle) })
        };
        let threads = (0..vcpus).map(start).collect::<Result<_, _>>()?;
        Ok(Self { control, threads })
    }

    /// Gives each thread its vCPU, parked.
    ///
    /// # Errors
    /// When a host CPU is not there, or a thread can't be confined.
    pub fn finish(self, vcpus: Vec<VcpuFd>) -> Result<Vcpus, ThreadError> {
        let mut all = Vcpus { control: self.control, threads: Vec::with_capacity(vcpus.len()) };
        for ((number, mut thread), vcpu) in (0..).zip(self.threads).zip(vcpus) {
            let id = thread.id.recv().map_err(io::Error::other).and_then(|result| result);
            let id = id.map_err(|source| ThreadError { vcpu: number, source })?;
            let (vcpu, exits) = (Arc::new(Mutex::new(vcpu)), Arc::clone(&thread.exits));
            // It waits for that; else it has panicked, and there is nobody to give it to.
            let _ = thread.vcpu.take().map(|give| give.send(Arc::clone(&vcpu)));
            all.threads.push(Thread { vcpu, id, exits, handle: thread.handle.take() });
        }
        Ok(all)
    }
}

impl Drop for StartingThread {
    fn drop(&mut self) {
        // One that gets no vCPU ends.
        drop(self.vcpu.take());
        let _ = self.handle.take().map(JoinHandle::join);
    }
}

/// Brings the calling thread to its host CPUs.
fn place(cpus: Option<CpuSet>) -> io::Result<()> {
    cpus.map_or(Ok(()), |cpus| Ok(rustix::thread::sched_setaffinity(None, &cpus)?))
}

impl Vcpus {
    /// Thread IDs, by vCPU.
    #[must_use]
    pub fn ids(&self) -> Vec<i32> {
        self.threads.iter().map(|thread| thread.id.as_raw_nonzero().get()).collect()
    }

    /// How often each left the guest, by vCPU.
    pub fn exits(&self) -> impl Iterator<Item = Counts> {
        self.threads.iter().map(|thread| thread.exits.counts())
    }

    /// Lets all run.
    pub fn run(&self) {
        let mut state = self.control.lock();
        state.generation += 1;
        self.control.want(&mut state, Wanted::Running);
    }

    /// Does something while none is in the guest. Those that ran go on after it, and those that wait for an answer to
    /// what they asked (a reset) wait on.
    pub fn hold<T>(&self, act: impl FnOnce() -> T) -> T {
        let were_running = self.control.is_running();
        self.park();
        let result = act();
        if were_running {
            self.control.want(&mut self.control.lock(), Wanted::Running);
        }
        result
    }

    /// Stops all, and returns when none is in the guest any more.
    pub fn park(&self) {
        let mut state = self.control.lock();
        self.control.want(&mut state, Wanted::Parked);
        self.kick();
        while state.parked < self.threads.len() {
            state = self.control.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The vCPUs, while parked.
    pub fn lock(&self) -> impl Iterator<Item = MutexGuard<'_, VcpuFd>> {
        self.threads.iter().map(|thread| thread.vcpu.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn kick(&self) {
        self.threads.iter().for_each(|thread| kick::kick(thread.id));
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.control.want(&mut self.control.lock(), Wanted::Ended);
        self.kick();
        for thread in &mut self.threads {
            // One that panicked has nothing more to say.
            let _ = thread.handle.take().map(JoinHandle::join);
        }
    }
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, state: &mut State, wanted: Wanted) {
        state.wanted = wanted;
        self.wanted.store(wanted as u8, Ordering::Release);
        self.changed.notify_all();
    }

    fn is_running(&self) -> bool {
        self.wanted.load(Ordering::Acquire) == Wanted::Running as u8
    }

    /// Waits until it should run, `since` the generation it last ran in if that is given; `None` when it should end.
    fn wait(&self, since: Option<u64>) -> Option<u64> {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        loop {
            match state.wanted {
                Wanted::Ended => return None,
                Wanted::Running if since != Some(state.generation) => break,
                Wanted::Running | Wanted::Parked => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        state.parked -= 1;
        Some(state.generation)
    }
}

/// What a thread has.
struct Runner {
    number: u32,
    vcpu: Arc<Mutex<VcpuFd>>,
    control: Arc<Control>,
    buses: Arc<Buses>,
    listener: Arc<dyn Listener>,
    exits: Arc<ExitCounters>,
}

impl Runner {
    fn run(self) {
        let _kickable = Kickable::new(&mut self.lock());
        let mut waits_since = None;
        while let Some(generation) = self.control.wait(waits_since) {
            let outcome = self.enter();
            // After most requests this vCPU waits to be told anew, while others may go on.
            waits_since = outcome.as_ref().is_some_and(Outcome::stops).then_some(generation);
            if let Some(outcome) = outcome {
                self.listener.happened(self.number, outcome);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the guest until it should not any more, or has led to something.
    fn enter(&self) -> Option<Outcome> {
        let mut vcpu = self.lock();
        let mut result = None;
        while result.is_none() && self.control.is_running() {
            result = match vcpu.run() {
                Ok(exit) => {
                    self.exits.add(&exit);
                    Some(exits::handle(&self.buses, exit)).filter(|outcome| *outcome != Outcome::Continue)
                }
                Err(error) => match error.errno() {
                    // Kicked, or something that the next entry shows again.
                    libc::EINTR | libc::EAGAIN => {
                        self.exits.add_signal();
                        vcpu.set_kvm_immediate_exit(0);
                        None
                    }
                    _ => Some(Outcome::Failed(format!("KVM_RUN: {error}"))),
                },
            };
        }
        // What the last exit began (a read's result) is completed by one more entry, which returns at once: unless the
        // access has further pieces, each of which is an exit of its own.
        vcpu.set_kvm_immediate_exit(1);
        while let Ok(exit) = vcpu.run() {
            self.exits.add(&exit);
            let outcome = exits::handle(&self.buses, exit);
            result = result.or(Some(outcome).filter(|outcome| *outcome != Outcome::Continue));
        }
        vcpu.set_kvm_immediate_exit(0);
        result
    }
}
