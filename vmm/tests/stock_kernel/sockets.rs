//! Connections: over virtio-net by the kernel's vhost-net, and over vsock.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::json;

use crate::guest::Guest;
use crate::host::{ADDRESS, Tap, accept, digest, fill, run};
use crate::initramfs::Content;
use crate::process::until;

const DOWNLOAD: &str = "
until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
ifconfig eth0 192.0.2.2 netmask 255.255.255.0 up
sum=$(nc 192.0.2.1 7003 </dev/null | sha256sum)
echo got ${sum%% *}
";

#[test]
#[ignore = "needs a stock kernel under real KVM: hack/lab-runner"]
fn the_kernel_moves_a_guests_packets() {
    run("modprobe", &["vhost_net"]);
    let _tap = Tap::new("vse0");
    let listener = TcpListener::bind((ADDRESS, 7003)).unwrap();
    let files = tempfile::tempdir().unwrap();
    let large = files.path().join("large");
    fill(&large, 4 << 20);
    let vhost = inherited("/dev/vhost-net");
    let content = Content { modules: &["virtio_net"], script: DOWNLOAD, ..Content::default() };
    let more = json!({"net": [{"id": "net", "tap": "vse0", "vhost_fds": [vhost.as_raw_fd()]}]});
    let mut guest = Guest::boot(files.path(), content, more);
    drop(vhost);
    let mut connection = accept(&listener);
    // What the kernel moves is not counted.
    assert!(guest.get("vm.counters").get("net").is_none());
    connection.write_all(&std::fs::read(&large).unwrap()).unwrap();
    drop(connection);
    assert_eq!(guest.tells("got"), digest(&large));
    assert_eq!(guest.vmm.end(), Some(0));
}

/// A device, open, for the VMM too.
fn inherited(path: &str) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    fcntl_setfd(&file, FdFlags::empty()).unwrap();
    file
}

/// First it calls the host (context ID 2), then it waits for the host's call.
const CALLS: &str = "
until [ -c /dev/vsock ]; do sleep 0.1; done
sum=$(socat -u VSOCK-CONNECT:2:1234 - | sha256sum)
echo got ${sum%% *}
socat VSOCK-LISTEN:4321 EXEC:'tr a-z A-Z'
echo served
";

#[test]
#[ignore = "needs a stock kernel under real KVM: hack/lab-runner"]
fn guest_and_host_call_each_other_over_vsock() {
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name);
    let large = path("large");
    fill(&large, 1 << 20);
    let listener = UnixListener::bind(path("vsock_1234")).unwrap();
    let content = Content { modules: &["vmw_vsock_virtio_transport"], programs: &["/usr/bin/socat"], script: CALLS };
    let more = json!({"vsock": {"id": "vsock", "cid": 3, "socket": path("vsock")}});
    let mut guest = Guest::boot(files.path(), content, more);
    listener.set_nonblocking(true).unwrap();
    let mut call = None;
    until("the guest calls", || {
        call = listener.accept().ok();
        call.is_some()
    });
    let (mut call, _) = call.unwrap();
    call.set_nonblocking(false).unwrap();
    call.write_all(&std::fs::read(&large).unwrap()).unwrap();
    drop(call);
    assert_eq!(guest.tells("got"), digest(&large));

    let mut connection = None;
    until("the guest answers", || {
        connection = connect(&path("vsock"), 4321);
        connection.is_some()
    });
    let mut connection = connection.unwrap();
    connection.write_all(b"over vsock\n").unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "OVER VSOCK\n");
    guest.tells("served");
    assert_eq!(guest.vmm.end(), Some(0));
}

#[test]
#[ignore = "needs a stock kernel under real KVM: hack/lab-runner"]
fn guest_and_host_call_each_other_by_the_kernels_vsock() {
    run("modprobe", &["vhost_vsock"]);
    let files = tempfile::tempdir().unwrap();
    let large = files.path().join("large");
    fill(&large, 1 << 20);
    let vhost = inherited("/dev/vhost-vsock");
    let file = format!("FILE:{}", large.display());
    let mut server = Command::new("socat").args(["-u", &file, "VSOCK-LISTEN:1234"]).spawn().unwrap();
    let content = Content { modules: &["vmw_vsock_virtio_transport"], programs: &["/usr/bin/socat"], script: CALLS };
    let more = json!({"vsock": {"id": "vsock", "cid": 3, "vhost_fd": vhost.as_raw_fd()}});
    let mut guest = Guest::boot(files.path(), content, more);
    drop(vhost);
    assert_eq!(guest.tells("got"), digest(&large));
    assert!(server.wait().unwrap().success());

    let mut answer = Vec::new();
    until("the guest answers", || {
        let mut call = Command::new("socat");
        call.args(["-", "VSOCK-CONNECT:3:4321"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut call = call.spawn().unwrap();
        // Until the guest listens, nobody reads it.
        let _ = call.stdin.take().unwrap().write_all(b"over vsock\n");
        answer = call.wait_with_output().unwrap().stdout;
        !answer.is_empty()
    });
    assert_eq!(answer, b"OVER VSOCK\n");
    guest.tells("served");
    assert_eq!(guest.vmm.end(), Some(0));
}

/// Connects to a port of the guest's, if it listens there.
fn connect(socket: &std::path::Path, port: u32) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    writeln!(stream, "CONNECT {port}").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => answer.push(byte[0]),
            _ => return None,
        }
    }
    assert!(answer.starts_with(b"OK "), "{}", String::from_utf8_lossy(&answer));
    Some(stream)
}
