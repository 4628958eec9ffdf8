//! Who answers in a guest's pod: the launcher, the engine, or nobody; and the connections to it.
//!
//! Holds connections only. What is in the pod is found anew after a restart of this process: that is adoption.

use super::plan::Inside;
use super::pod_process::{self, PodProcess};
use super::{Context, network};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::net::UnixStream;
use vse_crds::labels::paths;
use vse_crds::{GuestInfo, MicroVMSpec};
use vse_engine::agent::Agent;
use vse_engine::{Channels, Engine, Event, EventSource, Events, EventsFile, Guest, RunState};
use vse_guest_network::Attached;
use vse_launch::{ConnectError, Connection, connect_beneath};

/// Connections into one pod.
#[derive(Default)]
pub(super) struct Session {
    /// The pod's process, while it is known to be there.
    process: Option<PodProcess>,
    /// The engine, while it answers.
    engine: Option<Connected>,
    /// DHCP and address of the guest.
    pub network: Option<Attached>,
}

struct Connected {
    guest: Box<dyn Guest>,
    version: String,
    events: Events,
}

/// Why it is not known who answers.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot open the pod's directory")]
    Directory(#[from] rustix::io::Errno),
    #[error("the pod's socket is not usable")]
    Socket(#[from] ConnectError),
    #[error(transparent)]
    Process(#[from] pod_process::Error),
    #[error("the engine's monitor is not usable")]
    Engine(#[from] vse_engine::GuestError),
    #[error("the guest's network is not usable")]
    Network(#[source] Box<super::launch::Error>),
    #[error("cannot use the connection")]
    Io(#[from] io::Error),
}

/// An answer from the pod.
pub(super) struct Answer {
    /// Who answers.
    pub inside: Inside,
    /// Whether the guest agent has its channel open.
    pub agent: bool,
    /// The engine was running already: this process was not there when it was launched.
    pub adopted: bool,
}

impl Answer {
    fn of(inside: Inside) -> Self {
        Self { inside, agent: false, adopted: false }
    }
}

impl Session {
    /// Asks who is there. Connects to what it finds.
    pub(super) async fn look(&mut self, context: &Context, vm: &MicroVMSpec) -> Result<Answer, Error> {
        if let Some(answer) = self.ask_engine().await {
            return Ok(answer);
        }
        self.engine = None;
        let Some(run) = context.pods.run(&vm.pod_uid)? else {
            self.process = None;
            return Ok(Answer::of(Inside::Nobody));
        };
        // An engine this version does not know runs no guest: the launcher gets no order for it.
        if let Some(engine) = context.engines.get(&vm.engine)
            && let Some(monitor) = connect(&run, engine.files().monitor)?
        {
            let launched_here = self.process.as_ref().is_some_and(|known| known.pid() == monitor.peer_pid);
            self.adopt(engine, vm, &run, monitor).await?;
            let answer = self.ask_engine().await.unwrap_or(Answer::of(Inside::Nobody));
            return Ok(Answer { adopted: !launched_here, ..answer });
        }
        if let Some(launcher) = connect(&run, paths::LAUNCH_SOCKET)? {
            self.process = Some(PodProcess::open(launcher.peer_pid, &vm.pod_uid)?);
            return Ok(Answer::of(Inside::Launcher));
        }
        Ok(Answer::of(Inside::Nobody))
    }

    async fn ask_engine(&self) -> Option<Answer> {
        let info = self.engine.as_ref()?.guest.info().await.ok()?;
        let inside = match info.state {
            RunState::Prelaunch => Inside::Prelaunch,
            RunState::Running => Inside::Running,
            RunState::Shutdown | RunState::Panicked | RunState::Failed => Inside::Ended,
            // A state this driver does not know: the vCPUs stand still, and may be asked to go on.
            RunState::Paused | RunState::Other | _ => Inside::Paused,
        };
        Some(Answer { inside, agent: info.agent_connected, adopted: false })
    }

    async fn adopt(
        &mut self,
        engine: &dyn Engine,
        vm: &MicroVMSpec,
        run: &OwnedFd,
        monitor: Connection,
    ) -> Result<(), Error> {
        let process = PodProcess::open(monitor.peer_pid, &vm.pod_uid)?;
        // Before the first question: what happens after its answer is told.
        let events = engine.files().events.map(|file| event_source(run, file)).transpose()?.flatten();
        let guest = engine.connect(Channels { monitor: stream(monitor)?, events }).await?;
        let events = guest.events();
        if self.network.is_none() {
            let network = network::adopt(vm, &process).await;
            self.network = network.map_err(|error| Error::Network(Box::new(error)))?;
        }
        self.engine = Some(Connected { events, version: guest.version().await?, guest });
        self.process = Some(process);
        Ok(())
    }

    /// The engine's guest, if it answers.
    pub(super) fn guest(&self) -> Option<&dyn Guest> {
        self.engine.as_ref().map(|engine| engine.guest.as_ref())
    }

    /// The engine's name and version, if it answers.
    pub(super) fn engine_version(&self) -> Option<&str> {
        self.engine.as_ref().map(|engine| engine.version.as_str())
    }

    /// The pod's process, if it is there.
    pub(super) fn process(&self) -> Option<&PodProcess> {
        self.process.as_ref()
    }

    /// The next thing the engine tells; waits for ever when there is no engine. Safe to cancel.
    pub(super) async fn event(&mut self) -> Event {
        match &mut self.engine {
            Some(engine) => match engine.events.next().await {
                Some(event) => event,
                None => {
                    self.engine = None;
                    Event::MonitorClosed
                }
            },
            None => std::future::pending().await,
        }
    }

    /// Takes down what the host still holds: tap and rules go with the pod's network namespace at the latest.
    pub(super) async fn release(&mut self) {
        self.engine = None;
        self.network = None;
        self.process = None;
    }
}

/// Asks the guest agent what the guest is. What it says is only shown.
pub(super) async fn ask_agent(context: &Context, vm: &MicroVMSpec) -> Option<GuestInfo> {
    let run = context.pods.run(&vm.pod_uid).ok()??;
    let socket = context.engines.get(&vm.engine)?.files().agent?;
    let connection = connect(&run, socket).ok()??;
    let mut agent = Agent::new(stream(connection).ok()?);
    let os = agent.os_info().await.inspect_err(|error| tracing::debug!(%error, "guest agent")).ok()?;
    Some(GuestInfo { hostname: agent.host_name().await.ok(), os: os.pretty_name, kernel: os.kernel_release })
}

/// Connects to a socket in the pod's directory; nothing when nobody listens (yet, or any more).
fn connect(run: &OwnedFd, name: &str) -> Result<Option<Connection>, ConnectError> {
    match connect_beneath(run.as_fd(), name) {
        Ok(connection) => Ok(Some(connection)),
        Err(ConnectError::Absent(_) | ConnectError::NobodyListens(_) | ConnectError::Busy(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The way the engine tells of events; nothing when it is gone.
fn event_source(run: &OwnedFd, file: EventsFile) -> Result<Option<EventSource>, Error> {
    Ok(match file {
        EventsFile::Socket(name) => match connect(run, name)? {
            Some(connection) => Some(EventSource::Socket(stream(connection)?)),
            None => None,
        },
        EventsFile::Log(name) => {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            // What lies there is the pod's: opening it must not wait, whatever it is.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let log = openat2(run, name, flags, Mode::empty(), resolve)?;
            let is_file = FileType::from_raw_mode(fstat(&log)?.st_mode) == FileType::RegularFile;
            is_file.then(|| EventSource::File(File::from(log)))
        }
    })
}

fn stream(connection: Connection) -> io::Result<UnixStream> {
    connection.stream.set_nonblocking(true)?;
    UnixStream::from_std(connection.stream)
}
