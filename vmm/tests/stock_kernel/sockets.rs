//! Connections: over virtio-net by the kernel's vhost-net, and over vsock.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
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
    let vhost = File::options().read(true).write(true).open("/dev/vhost-net").unwrap();
    // The VMM gets it.
    fcntl_setfd(&vhost, FdFlags::empty()).unwrap();
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
