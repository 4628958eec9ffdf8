//! An engine that a launcher became, in a directory of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::UnixStream;
use vse_engine::{
    Accelerator, Boot, Cache, Channels, CpuTopology, Disk, DiskSource, Engine, EventSource, EventsFile, ExitMeaning,
    Guest, GuestCell, GuestConfig, Memory, PageSize, Placement, RunState, Storage,
};
use vse_launch::{Descriptor, LaunchOrder, connect_beneath, send};

/// An engine, started by a launcher.
pub(crate) struct Running {
    engine: Box<dyn Engine>,
    pub(crate) dir: TempDir,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of this project, beside the tests: they may have been carried to another host together.
pub(crate) fn program(name: &str) -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join(name)
}

/// A file like those the node runtime hands over: readable by all, no name, opened read-only.
pub(crate) fn file(dir: &Path, name: &str, content: &[u8]) -> OwnedFd {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let file = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    file.into()
}

/// A guest of two vCPUs with one disk of each kind, without network, emulated.
pub(crate) fn guest(dir: &Path, kernel: OwnedFd) -> GuestConfig {
    let image = dir.join("scratch,disk.img");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let writable = File::options().read(true).write(true).create_new(true).open(dir.join("root")).unwrap();
    writable.set_len(1 << 20).unwrap();
    let disk = |serial: &str, source, read_only| Disk {
        serial: serial.into(),
        source,
        storage: Storage::File,
        read_only,
        discard: !read_only,
        cache: Cache::Shared,
    };
    GuestConfig {
        name: "default/test-1".into(),
        uuid: "6f1c2f0e-1de1-4b5a-9d3c-0a2b4c6d8e0f".into(),
        runtime_dir: dir.to_str().unwrap().into(),
        cpu: CpuTopology { sockets: 1, cores: 2, threads: 1 },
        memory: Memory { bytes: 64 << 20, pages: PageSize::Default },
        cells: vec![],
        placement: Placement::default(),
        boot: Boot { kernel, initramfs: Some(file(dir, "initramfs", b"x")), command_line: "a, b=c".into() },
        disks: vec![
            disk("vse-system", DiskSource::Fd(file(dir, "system", &[0; 4096])), true),
            disk("vse-root", DiskSource::Fd(writable.into()), false),
            disk("scratch", DiskSource::Path(image.to_str().unwrap().into()), false),
        ],
        nics: vec![],
        accelerator: Accelerator::Emulation,
        passthrough: None,
    }
}

/// Puts each vCPU and half of the memory, in huge pages, on one of the first two cells of this machine.
pub(crate) fn on_two_cells(guest: &mut GuestConfig) {
    let first_cpu = |node: u32| {
        let list = fs::read_to_string(format!("/sys/devices/system/node/node{node}/cpulist")).unwrap();
        list.trim().split([',', '-']).next().unwrap().parse::<u32>().unwrap()
    };
    let cell = |index: u32, distances: [u8; 2]| GuestCell {
        vcpus: vec![index],
        bytes: 32 << 20,
        distances: distances.into(),
        host_cells: vec![index],
    };
    guest.memory = Memory { bytes: 64 << 20, pages: PageSize::Huge2M };
    guest.cells = vec![cell(0, [10, 21]), cell(1, [21, 10])];
    guest.placement = Placement { pinned: vec![first_cpu(0), first_cpu(1)] };
}

impl Running {
    /// Launches the guest that `describe` makes in a directory; returns with the engine connected.
    pub(crate) async fn launch(
        engine: impl Engine + 'static,
        describe: impl FnOnce(&Path) -> GuestConfig,
    ) -> (Self, Box<dyn Guest>) {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(program("vse-launcher"))
            .arg("--socket")
            .arg(dir.path().join("launch.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let console = child.stdout.as_mut().unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, console).read_line(&mut line).unwrap();
        assert!(line.contains("waiting"), "{line}");
        let mut running = Self { engine: Box::new(engine), dir, child };

        let guest = describe(running.dir.path());
        let command = running.engine.command(&guest).unwrap();
        let order = LaunchOrder {
            program: command.program,
            args: command.args,
            env: command.env.into_iter().collect(),
            descriptors: command
                .descriptors
                .iter()
                .map(|handed| Descriptor { name: handed.name.clone(), target: handed.target })
                .collect(),
        };
        let fds: Vec<_> = command.descriptors.iter().map(|handed| handed.fd).collect();
        let dir = File::open(running.dir.path()).unwrap();
        let launcher = connect_beneath(dir.as_fd(), "launch.sock").unwrap();
        send(&launcher.stream, &order, &fds).unwrap();
        let guest = running.connect().await;
        (running, guest)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The engine, as soon as it answers.
    pub(crate) async fn connect(&mut self) -> Box<dyn Guest> {
        let files = self.engine.files();
        let monitor = self.socket(files.monitor).await;
        let events = match files.events {
            None => None,
            Some(EventsFile::Socket(name)) => Some(EventSource::Socket(self.socket(name).await)),
            Some(EventsFile::Log(name)) => Some(EventSource::File(File::open(self.dir.path().join(name)).unwrap())),
        };
        self.engine.connect(Channels { monitor, events }).await.unwrap()
    }

    /// A connection to a socket that the engine makes.
    pub(crate) async fn socket(&mut self, name: &str) -> UnixStream {
        let dir = File::open(self.dir.path()).unwrap();
        let child = &mut self.child;
        let connection = until(name, || {
            assert_eq!(child.try_wait().unwrap(), None, "the engine ended");
            connect_beneath(dir.as_fd(), name).ok()
        });
        let connection = connection.await;
        assert_eq!(connection.peer_pid, self.pid());
        connection.stream.set_nonblocking(true).unwrap();
        UnixStream::from_std(connection.stream).unwrap()
    }

    pub(crate) fn link(&self, name: &str) -> PathBuf {
        fs::read_link(format!("/proc/{}/{name}", self.pid())).unwrap()
    }

    /// Huge pages of the engine on these cells, and on all.
    pub(crate) fn huge_pages_on<const N: usize>(&self, cells: [u32; N]) -> ([u64; N], u64) {
        let maps = fs::read_to_string(format!("/proc/{}/numa_maps", self.pid())).unwrap();
        let huge: Vec<&str> = maps.lines().filter(|line| line.contains(" huge ")).collect();
        let fields = || huge.iter().flat_map(|line| line.split(' '));
        let on = |cell: u32| {
            fields().filter_map(|field| field.strip_prefix(&format!("N{cell}="))?.parse::<u64>().ok()).sum()
        };
        (cells.map(on), (0..64).map(on).sum())
    }

    pub(crate) fn status(&self) -> String {
        fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap()
    }

    /// Reads the guest's serial console up to this text.
    pub(crate) fn await_console(&mut self, text: &str) {
        let console = self.child.stdout.as_mut().unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(text.as_bytes()) {
            let mut byte = [0];
            assert_eq!(console.read(&mut byte).unwrap(), 1, "{text:?} not in {:?}", String::from_utf8_lossy(&seen));
            seen.extend(byte);
        }
    }

    pub(crate) fn exit(mut self) -> ExitMeaning {
        let status = self.child.wait().unwrap();
        ExitMeaning::from(status.code().unwrap_or_default(), status.signal())
    }
}

/// Asks again and again until there is an answer.
async fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn state(guest: &dyn Guest) -> RunState {
    guest.info().await.unwrap().state
}
