//! The loop of one guest: look, plan, say, act, wait. Makes no choices of its own.

use super::plan::{Action, Inside, LastWords, LaunchFailure, Observed, Plan, Pod, StopCause, Wanted, plan};
use super::pod_process::{self, PodProcess};
use super::resets::Resets;
use super::session::{self, Session};
use super::status::{self, Memory};
use super::{Context, host_devices, kubelet, launch, publish};
use crate::metrics::{LaunchLabels, Outcome};
use crate::pci::GiveBackError;
use crate::report;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;
use kube::api::Api;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use vse_crds::{Address, AddressScope, ExitReason, ExitRecord, MicroVM, MicroVMPhase, MicroVMStatus, PowerState};
use vse_engine::{Event, GuestError, ShutdownCause};
use vse_node_runtime::crash_point::Step;

/// Wait after a step that failed, or a look that did.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// The same step is not taken twice within this.
const SAME_STEP_AGAIN: SignedDuration = SignedDuration::from_secs(1);
/// Longest wait between two attempts to launch.
const LONGEST_BACKOFF: SignedDuration = SignedDuration::from_secs(60);

/// One guest of this host.
pub(super) struct Guest {
    context: Arc<Context>,
    vm: watch::Receiver<Arc<MicroVM>>,
    pod: watch::Receiver<Option<Arc<core::Pod>>>,
    session: Session,
    memory: Memory,
    /// What was said last; it is written by [`publish`].
    said: watch::Sender<Option<MicroVMStatus>>,
    last_words: Option<LastWords>,
    failures: u32,
    launch_failure: Option<LaunchFailure>,
    pressed_at: Option<Timestamp>,
    resets: Resets,
    /// The threads of the running engine were pinned.
    pinned: bool,
    /// The last step, and when it may be taken again.
    last: Option<(Action, Timestamp)>,
}

/// A step that did not work; it is taken again when the next look still asks for it.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot see what is in the pod")]
    Session(#[from] session::Error),
    #[error("the engine did not do it")]
    Engine(#[from] GuestError),
    #[error("the engine is gone")]
    Gone,
    #[error("cannot place the guest's threads")]
    Place(#[from] launch::Error),
    #[error("cannot pin the guest's threads")]
    Pin(#[source] std::io::Error),
    #[error("cannot kill the engine")]
    Kill(#[from] pod_process::Error),
    #[error("a host device is not given back yet")]
    Devices(#[from] GiveBackError),
    #[error("the API server did not answer")]
    Api(#[from] kube::Error),
}

impl Guest {
    /// The guest of that MicroVM, knowing what its status remembers.
    pub(super) fn new(
        context: Arc<Context>,
        vm: watch::Receiver<Arc<MicroVM>>,
        pod: watch::Receiver<Option<Arc<core::Pod>>>,
    ) -> Self {
        let published = vm.borrow().status.clone();
        Self {
            context,
            session: Session::default(),
            memory: Memory::recall(published.as_ref()),
            said: watch::Sender::new(published),
            last_words: None,
            failures: 0,
            launch_failure: None,
            pressed_at: None,
            resets: Resets::default(),
            pinned: false,
            last: None,
            vm,
            pod,
        }
    }

    /// Until the guest is released and that is said, or the task is ended from outside (the guest then goes on).
    pub(super) async fn run(self) {
        let (context, vm, said) = (self.context.clone(), self.vm.borrow().clone(), self.said.subscribe());
        tokio::join!(self.live(), publish::publish(&context, &vm, said));
    }

    /// Step by step, until the guest is released.
    async fn live(mut self) {
        loop {
            match self.step().await {
                Ok(Some(plan)) if plan.phase == MicroVMPhase::Released && plan.action.is_none() => return,
                Ok(Some(plan)) => self.wait(plan.wake_at).await,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(error = %report(&error), "will try again");
                    self.wait(Timestamp::now().checked_add(AFTER_FAILURE).ok()).await;
                }
            }
        }
    }

    /// One look and one step. Returns the plan when there is nothing to do but wait.
    async fn step(&mut self) -> Result<Option<Plan>, Error> {
        let vm = self.vm.borrow_and_update().clone();
        let seen = self.observe(&vm).await?;
        let plan = plan(&seen);
        self.say(&vm, &seen, &plan);
        match plan.action.clone() {
            // What was just done takes a moment to show.
            Some(action) if self.last.as_ref().is_some_and(|(last, again)| *last == action && seen.now < *again) => {
                Ok(Some(Plan { wake_at: self.last.as_ref().map(|(_, again)| *again), ..plan }))
            }
            Some(action) => {
                tracing::debug!(?action, "step");
                self.last = Some((action.clone(), seen.now + SAME_STEP_AGAIN));
                self.act(&vm, action, seen.now).await?;
                Ok(None)
            }
            None => Ok(Some(plan)),
        }
    }

    async fn observe(&mut self, vm: &MicroVM) -> Result<Observed, Error> {
        let released = self.memory.exit.is_some();
        let (pod, deletion) = self.pod(vm).await?;
        let inside = if released || !matches!(pod, Pod::Starting | Pod::Running) {
            Inside::Nobody
        } else {
            self.look(vm).await?
        };
        let now = Timestamp::now();
        Ok(Observed {
            wanted: Self::wanted(vm, deletion),
            pod,
            inside,
            ran: self.memory.timings.pod_ready.is_some(),
            last_words: self.last_words,
            launch_failure: self.launch_failure.clone(),
            pressed_at: self.pressed_at,
            released,
            now,
        })
    }

    /// Who is in the pod; remembers what an adopted engine no longer tells.
    async fn look(&mut self, vm: &MicroVM) -> Result<Inside, Error> {
        let answer = match self.session.look(&self.context, &vm.spec).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(error = %report(&error), "what is in the pod makes no sense");
                return Ok(Inside::Unintelligible);
            }
        };
        if answer.inside.has_its_memory() {
            self.context.huge_pages.settle(&vm.spec.pod_uid);
        }
        if answer.adopted {
            self.recall(vm).await;
        }
        match answer.inside {
            Inside::Launcher if self.memory.timings.pod_ready.is_none() => {
                self.memory.timings.pod_ready = Some(Timestamp::now());
            }
            Inside::Running | Inside::Paused => {
                if answer.adopted {
                    tracing::info!("adopted a running guest");
                }
                // Adopted, or of an engine that does not wait before it boots.
                if answer.adopted || !self.pinned {
                    self.pin(vm).await?;
                }
                self.memory.timings.booted.get_or_insert_with(Timestamp::now);
                self.memory.engine_version = self.session.engine_version().map(str::to_owned);
                self.remember_addresses();
                self.agent(vm, answer.agent).await;
            }
            _ => {}
        }
        Ok(answer.inside)
    }

    /// What a launch leaves in the status, if the node runtime ended before it was written.
    async fn recall(&mut self, vm: &MicroVM) {
        let Some(process) = self.session.process() else { return };
        let namespace = vm.namespace().unwrap_or_default();
        let unknown = |what, error: &(dyn std::error::Error + 'static)| {
            tracing::warn!(what, error = %report(error), "not known of an adopted guest");
        };
        if self.memory.kernel.is_none() {
            let kernel = launch::kernel(&self.context, &vm.spec, process).await;
            self.memory.kernel = kernel.inspect_err(|error| unknown("kernel", error)).ok();
        }
        if self.memory.devices.is_empty() {
            let devices = host_devices::recall(&self.context, &vm.spec, &namespace).await;
            self.memory.devices = devices.inspect_err(|error| unknown("devices", error)).unwrap_or_default();
        }
    }

    fn remember_addresses(&mut self) {
        if let Some(network) = &self.session.network {
            let address = |ip: std::net::Ipv4Addr, scope| Address { ip: ip.to_string(), scope };
            self.memory.addresses = vec![
                address(network.pod_address, AddressScope::Pod),
                address(network.guest_address, AddressScope::Guest),
            ];
        }
    }

    async fn agent(&mut self, vm: &MicroVM, connected: bool) {
        if !connected {
            self.memory.agent = false;
        } else if !self.memory.agent
            && let Some(guest) = session::ask_agent(&self.context, &vm.spec).await
        {
            self.memory.agent = true;
            self.memory.guest = Some(guest);
            self.memory.timings.agent_connected.get_or_insert_with(Timestamp::now);
        }
    }

    /// The pod by its UID, and when somebody asked for its deletion. What the watch does not have is asked for: a
    /// MicroVM may be seen before its pod.
    async fn pod(&mut self, vm: &MicroVM) -> Result<(Pod, Option<Timestamp>), Error> {
        let is_ours = |pod: &core::Pod| pod.metadata.uid.as_deref() == Some(&vm.spec.pod_uid);
        let watched = self.pod.borrow_and_update().clone().filter(|pod| is_ours(pod));
        let pod = match watched {
            Some(pod) => pod,
            None => {
                let pods: Api<core::Pod> =
                    Api::namespaced(self.context.client.clone(), &vm.namespace().unwrap_or_default());
                match pods.get_opt(&vm.spec.pod_name).await?.filter(is_ours) {
                    Some(pod) => Arc::new(pod),
                    None => return Ok((Pod::Absent, None)),
                }
            }
        };
        Ok((kubelet::state(&pod, &vm.spec.machine, &self.context.cells), kubelet::deletion_asked(&pod)))
    }

    fn wanted(vm: &MicroVM, pod_deleted: Option<Timestamp>) -> Wanted {
        let grace = SignedDuration::from_secs(vm.spec.termination_grace_period_seconds);
        let ordered = vm.metadata.deletion_timestamp.as_ref().map(|time| time.0);
        match (ordered, pod_deleted) {
            (Some(since), _) => Wanted::Stop { cause: StopCause::Order, deadline: since + grace },
            (None, Some(since)) => Wanted::Stop { cause: StopCause::PodDeleted, deadline: since + grace },
            (None, None) if vm.spec.power_state == PowerState::Paused => Wanted::Pause,
            (None, None) => Wanted::Run,
        }
    }

    fn say(&self, vm: &MicroVM, seen: &Observed, plan: &Plan) {
        self.said.send_if_modified(|said| {
            let status = status::status(said.as_ref(), seen, plan, &self.memory, vm.metadata.generation);
            let news = status.is_some() && *said != status;
            if news {
                *said = status;
            }
            news
        });
    }

    async fn act(&mut self, vm: &MicroVM, action: Action, now: Timestamp) -> Result<(), Error> {
        let done = match action {
            Action::Launch => return self.launch(vm, now).await,
            Action::Boot => {
                self.boot(vm, now).await?;
                Step::Booted
            }
            Action::Resume => {
                self.engine()?.resume().await?;
                Step::Resumed
            }
            Action::Pause => {
                self.engine()?.pause().await?;
                Step::Paused
            }
            Action::PowerButton => {
                self.pressed_at = Some(now);
                self.engine()?.power_button().await?;
                Step::PowerButtonPressed
            }
            Action::Stop => match self.engine()?.stop().await {
                // It may end before it has answered.
                Ok(()) | Err(GuestError::Closed) => Step::StopSent,
                Err(error) => return Err(error.into()),
            },
            Action::Kill => {
                PodProcess::all_of(&vm.spec.pod_uid).iter().try_for_each(PodProcess::kill)?;
                Step::Killed
            }
            Action::Release(reason, message) => {
                self.release(vm, reason, message).await?;
                Step::Released
            }
        };
        self.context.crash_points.after(done);
        Ok(())
    }

    fn engine(&self) -> Result<&dyn vse_engine::Guest, Error> {
        self.session.guest().ok_or(Error::Gone)
    }

    async fn launch(&mut self, vm: &MicroVM, now: Timestamp) -> Result<(), Error> {
        let process = self.session.process().ok_or(Error::Gone)?;
        let run = self.context.pods.run(&vm.spec.pod_uid).map_err(session::Error::from)?.ok_or(Error::Gone)?;
        let namespace = vm.namespace().unwrap_or_default();
        match launch::launch(&self.context, &vm.spec, &namespace, process, &run).await {
            Ok(launched) => {
                self.session.network = launched.network;
                self.memory.cpus = Some(launched.cpus);
                self.memory.devices = launched.devices;
                self.memory.kernel = Some(launched.kernel);
                self.memory.timings.prepared = Some(launched.prepared);
                self.memory.timings.engine_started = Some(launched.engine_started);
                self.failures = 0;
                self.launch_failure = None;
                self.count(Outcome::Launched);
                if let Some(ready) = self.memory.timings.pod_ready {
                    let took = launched.engine_started.duration_since(ready);
                    self.context.metrics.launch_seconds.observe(took.as_secs_f64());
                }
                tracing::info!("launched");
            }
            Err(error) => {
                let is_final = error.is_final();
                self.count(if is_final { Outcome::Refused } else { Outcome::Retried });
                tracing::warn!(is_final, error = %report(&error), "not launched");
                let backoff = SignedDuration::from_secs(1 << self.failures.min(6)).min(LONGEST_BACKOFF);
                self.failures += 1;
                self.launch_failure =
                    Some(LaunchFailure { is_final, message: report(&error), retry_at: now + backoff });
            }
        }
        Ok(())
    }

    /// Pins the engine's threads, looks where its memory lies, and lets the guest run its first instruction.
    async fn boot(&mut self, vm: &MicroVM, now: Timestamp) -> Result<(), Error> {
        let process = self.session.process().ok_or(Error::Gone)?;
        let placed = launch::place(&self.context, &vm.spec, process)?;
        if let Err(error) = launch::check_huge_pages(&vm.spec, &placed.cells, process) {
            tracing::warn!(error = %report(&error), "not booted");
            self.launch_failure =
                Some(LaunchFailure { is_final: error.is_final(), message: report(&error), retry_at: now });
            return Ok(());
        }
        self.pin(vm).await?;
        self.context.crash_points.after(Step::Pinned);
        self.engine()?.resume().await?;
        self.memory.timings.booted = Some(Timestamp::now());
        // Some engines make the threads of vCPUs only now; these have pinned themselves, the rest is pinned here.
        self.pin(vm).await
    }

    fn count(&self, outcome: Outcome) {
        self.context.metrics.launches.get_or_create(&LaunchLabels { outcome }).inc();
    }

    /// vCPU i on its CPU, everything else on the emulator's CPUs.
    async fn pin(&mut self, vm: &MicroVM) -> Result<(), Error> {
        let process = self.session.process().ok_or(Error::Gone)?;
        let placement = match self.memory.cpus.clone() {
            Some(placement) => placement,
            None => launch::place(&self.context, &vm.spec, process)?.cpus,
        };
        if !placement.pinned.is_empty() {
            let vcpus = self.engine()?.vcpu_threads().await?;
            let threads =
                vse_engine::threads::threads(Path::new("/proc"), process.pid(), &vcpus).map_err(Error::Pin)?;
            let emulator = crate::cpu_list::CpuList::parse(&placement.emulator).unwrap_or_default();
            for (vcpu, thread) in threads.vcpus {
                if let Some(cpu) = placement.pinned.get(vcpu as usize) {
                    pin_thread(thread, [*cpu])?;
                }
            }
            for thread in threads.emulator {
                pin_thread(thread, emulator.iter())?;
            }
        }
        self.memory.cpus = Some(placement);
        self.pinned = true;
        Ok(())
    }

    async fn release(&mut self, vm: &MicroVM, reason: ExitReason, message: String) -> Result<(), Error> {
        self.session.release().await;
        self.context.huge_pages.settle(&vm.spec.pod_uid);
        self.context.devices.give_back(&vm.spec.pod_uid).await?;
        tracing::info!(?reason, message, "released");
        self.memory.agent = false;
        self.memory.exit = Some(ExitRecord { incarnation: vm.spec.incarnation, reason, message, at: Timestamp::now() });
        Ok(())
    }

    /// Until something changed, the engine told something, or the time has come.
    async fn wait(&mut self, until: Option<Timestamp>) {
        let sleep = async {
            match until {
                Some(time) => {
                    let left = time.duration_since(Timestamp::now());
                    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.vm.changed() => {}
            _ = self.pod.changed() => {}
            event = self.session.event() => self.note(event),
            () = sleep => {}
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Panicked => self.last_words = Some(LastWords::GuestPanic),
            Event::Shutdown { cause: ShutdownCause::Panic, .. } => self.last_words = Some(LastWords::GuestPanic),
            Event::Shutdown { by_guest: true, .. } if self.last_words.is_none() => {
                self.last_words = Some(LastWords::GuestShutdown);
            }
            Event::Reset { by_guest: true } if self.resets.count(Timestamp::now()) => {
                self.last_words = Some(LastWords::ResetLoop);
            }
            // The next look asks how things are.
            _ => {}
        }
    }
}

fn pin_thread(thread: i32, cpus: impl IntoIterator<Item = u32>) -> Result<(), Error> {
    let mut set = CpuSet::new();
    cpus.into_iter().filter(|cpu| (*cpu as usize) < CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu as usize));
    let Some(thread) = Pid::from_raw(thread) else { return Ok(()) };
    match sched_setaffinity(Some(thread), &set) {
        // The thread has ended.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(Error::Pin(errno.into())),
    }
}
