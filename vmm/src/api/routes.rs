//! Which command a request is. Pure.

use serde::Deserialize;
use vse_vmm_api::{NewDevice, RestoreConfig, VmConfig, VmRemoveDevice, VmResize, VmSnapshotConfig, json};

use super::http::{Method, Request, Response, Status};

/// What can be asked of a VMM.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each is the path of the same name")]
pub enum Command {
    Ping,
    VmmShutdown,
    Create(Box<VmConfig>),
    Delete,
    Boot,
    Shutdown,
    Reboot,
    PowerButton,
    Pause,
    Resume,
    Info,
    Counters,
    Add(Box<NewDevice>),
    Remove(VmRemoveDevice),
    Resize(VmResize),
    Snapshot(VmSnapshotConfig),
    Restore(RestoreConfig),
}

const ROOT: &str = "/api/v1/";

/// Paths of the published API that this VMM has no use for.
const NOT_HERE: [&str; 9] = [
    "vm.add-generic-vhost-user",
    "vm.add-user-device",
    "vm.add-vdpa",
    "vm.coredump",
    "vm.nmi",
    "vm.receive-migration",
    "vm.resize-disk",
    "vm.resize-zone",
    "vm.send-migration",
];

/// The command that a request is.
///
/// # Errors
/// With the answer when it is none.
pub fn command(request: &Request) -> Result<Command, Response> {
    let Some(name) = request.path.strip_prefix(ROOT) else {
        return Err(unknown(&request.path));
    };
    let body = request.body.as_slice();
    let command = match name {
        "vmm.ping" => Ok(Command::Ping),
        "vmm.shutdown" => Ok(Command::VmmShutdown),
        "vm.create" => read(body).map(Command::Create),
        "vm.delete" => Ok(Command::Delete),
        "vm.boot" => Ok(Command::Boot),
        "vm.shutdown" => Ok(Command::Shutdown),
        "vm.reboot" => Ok(Command::Reboot),
        "vm.power-button" => Ok(Command::PowerButton),
        "vm.pause" => Ok(Command::Pause),
        "vm.resume" => Ok(Command::Resume),
        "vm.info" => Ok(Command::Info),
        "vm.counters" => Ok(Command::Counters),
        "vm.add-disk" => read(body).map(NewDevice::Disk).map(add),
        "vm.add-net" => read(body).map(NewDevice::Net).map(add),
        "vm.add-fs" => read(body).map(NewDevice::Fs).map(add),
        "vm.add-pmem" => read(body).map(NewDevice::Pmem).map(add),
        "vm.add-vsock" => read(body).map(NewDevice::Vsock).map(add),
        "vm.add-device" => read(body).map(NewDevice::Vfio).map(add),
        "vm.remove-device" => read(body).map(Command::Remove),
        "vm.resize" => read(body).map(Command::Resize),
        "vm.snapshot" => read(body).map(Command::Snapshot),
        "vm.restore" => read(body).map(Command::Restore),
        _ if NOT_HERE.contains(&name) => {
            let message = format!("{name} is not supported by this VMM");
            return Err(Response::error(Status::NotImplemented, [message]));
        }
        _ => return Err(unknown(&request.path)),
    };
    // The verb is looked at first: a body that came with the wrong one means nothing.
    let expected = match name {
        "vmm.ping" | "vm.info" | "vm.counters" => Method::Get,
        _ => Method::Put,
    };
    if request.method != expected {
        let verb = if expected == Method::Get { "GET" } else { "PUT" };
        return Err(Response::error(Status::BadRequest, [format!("{name} is asked for by {verb}")]));
    }
    command
}

fn add(device: NewDevice) -> Command {
    Command::Add(Box::new(device))
}

fn unknown(path: &str) -> Response {
    let shown: String = path.chars().take(100).collect();
    Response::error(Status::NotFound, [format!("there is no {shown:?}; the API is below {ROOT}")])
}

fn read<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Response> {
    json::read(body).map_err(|error| Response::error(Status::BadRequest, [error.to_string()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, path: &str, body: &str) -> Result<Command, (u16, String)> {
        let request = Request { method, path: path.into(), body: body.into(), keep_alive: true };
        command(&request).map_err(|answer| (answer.status as u16, String::from_utf8(answer.body).unwrap()))
    }

    /// Paths of the published description, version 0.3.0.
    const PUBLISHED: [&str; 31] = [
        "vmm.ping",
        "vmm.shutdown",
        "vm.info",
        "vm.counters",
        "vm.create",
        "vm.delete",
        "vm.boot",
        "vm.pause",
        "vm.resume",
        "vm.shutdown",
        "vm.reboot",
        "vm.power-button",
        "vm.resize",
        "vm.resize-disk",
        "vm.resize-zone",
        "vm.add-device",
        "vm.remove-device",
        "vm.add-disk",
        "vm.add-fs",
        "vm.add-generic-vhost-user",
        "vm.add-pmem",
        "vm.add-net",
        "vm.add-vsock",
        "vm.add-vdpa",
        "vm.add-user-device",
        "vm.snapshot",
        "vm.coredump",
        "vm.nmi",
        "vm.restore",
        "vm.receive-migration",
        "vm.send-migration",
    ];

    #[test]
    fn every_published_path_is_known() {
        for name in PUBLISHED {
            for method in [Method::Get, Method::Put] {
                let answer = ask(method, &format!("/api/v1/{name}"), "{}");
                assert!(!matches!(answer, Err((404, _))), "{name}: {answer:?}");
            }
        }
    }

    #[test]
    fn what_is_not_there_says_so() {
        assert_eq!(
            ask(Method::Put, "/api/v1/vm.nmi", ""),
            Err((501, r#"["vm.nmi is not supported by this VMM"]"#.into()))
        );
        assert_eq!(ask(Method::Get, "/api/v2/vm.info", "").unwrap_err().0, 404);
        assert_eq!(ask(Method::Get, "/api/v1/vm.x", "").unwrap_err().0, 404);
        assert_eq!(ask(Method::Other, "/api/v1/vm.info", "").unwrap_err().0, 400);
        assert_eq!(ask(Method::Get, "/api/v1/vm.boot", ""), Err((400, r#"["vm.boot is asked for by PUT"]"#.into())));
    }

    #[test]
    fn bodies_are_read() {
        assert_eq!(ask(Method::Put, "/api/v1/vm.boot", ""), Ok(Command::Boot));
        let Ok(Command::Add(device)) = ask(Method::Put, "/api/v1/vm.add-disk", r#"{"path": "/a", "id": "x"}"#) else {
            panic!("no disk");
        };
        assert_eq!(device.id(), Some("x"));
        let (status, text) = ask(Method::Put, "/api/v1/vm.add-disk", r#"{"vhost_user": true}"#).unwrap_err();
        assert_eq!(status, 400);
        assert!(text.starts_with(r#"["vhost_user: not supported by this VMM"#), "{text}");
    }
}
