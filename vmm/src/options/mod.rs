//! The command line: Cloud Hypervisor's options as far as this VMM has what they ask for. Pure.

mod table;
mod words;

use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::{Map, Value};
use vse_vmm_api::{Fd, RestoreConfig, VmConfig, json};

use table::{EXAMPLES, Entry, Field, GUEST, VMM};

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Run.
    Run(Box<Options>),
    /// Print this, and nothing else.
    Print(String),
}

/// How to run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// Where to serve the API.
    pub api_socket: Option<Endpoint>,
    /// Where to tell events.
    pub event_monitor: Option<Events>,
    /// Whether to filter system calls.
    pub seccomp: Seccomp,
    /// Open `/dev/kvm`.
    pub kvm_fd: Option<Fd>,
    /// The guest.
    pub config: Option<ConfigFrom>,
    /// Whether it boots at once.
    pub boot: bool,
    /// The snapshot that it goes on from.
    pub restore: Option<RestoreConfig>,
}

/// A listening unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// To be made.
    Path(PathBuf),
    /// Open and listening.
    Fd(Fd),
}

/// Where events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Events {
    /// A file that is made.
    Path(PathBuf),
    /// An open one.
    Fd(Fd),
    /// A unix socket that is made.
    Socket(PathBuf),
    /// One that listens already.
    SocketFd(Fd),
}

/// Whether system calls are filtered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// What isn't allowed kills the process.
    #[default]
    On,
    /// What isn't allowed is logged by the kernel.
    Log,
    /// All is allowed.
    Off,
}

/// Where the guest's description is.
#[derive(Debug, Clone, PartialEq)]
pub enum ConfigFrom {
    /// Here.
    Options(Box<VmConfig>),
    /// Here, as JSON.
    Json(String),
    /// In a file.
    File(PathBuf),
    /// In an open one.
    Fd(Fd),
}

/// The command line is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; --help says more")]
pub struct Usage(String);

/// Reads the command line, without the program's name.
///
/// # Errors
/// When it is wrong.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Action, Usage> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut options = Options::default();
    let mut guest = Map::new();
    while let Some(argument) = parser.next().map_err(usage)? {
        let name = match argument {
            lexopt::Arg::Long(name) => name.to_owned(),
            lexopt::Arg::Short('h') => "help".to_owned(),
            lexopt::Arg::Short('V') => "version".to_owned(),
            other => return Err(usage(other.unexpected())),
        };
        match name.as_str() {
            "help" => return Ok(Action::Print(help())),
            "version" => return Ok(Action::Print(concat!("vse-vmm ", env!("CARGO_PKG_VERSION"), "\n").to_owned())),
            "boot" => options.boot = true,
            _ => {
                let entry = VMM.iter().chain(GUEST).find(|entry| entry.name == name);
                let entry = entry.ok_or_else(|| Usage(format!("there is no option --{name}")))?;
                let fail = |error: &dyn std::fmt::Display| Usage(format!("--{name}: {error}"));
                if let Field::Switch(field) = entry.field {
                    guest.insert(field.to_owned(), true.into());
                    continue;
                }
                let values = values(&mut parser, entry).map_err(|error| fail(&error))?;
                match entry.field {
                    Field::Vmm => vmm_option(&mut options, entry, &values).map_err(|error| fail(&error))?,
                    field => guest_option(&mut guest, field, entry, &values).map_err(|error| fail(&error))?,
                }
            }
        }
    }
    if !guest.is_empty() {
        one_config(&options).map_err(Usage)?;
        options.config = Some(ConfigFrom::Options(Box::new(config(guest)?)));
        options.boot = options.restore.is_none();
    }
    check(options)
}

/// What can't go together.
fn check(options: Options) -> Result<Action, Usage> {
    if options.config.is_none() && options.restore.is_none() {
        if options.boot {
            return Err(Usage("--boot: there is no guest to boot".to_owned()));
        }
        if options.api_socket.is_none() {
            return Err(Usage(
                "there is neither a guest (--kernel, --config, --restore) nor an --api-socket".to_owned(),
            ));
        }
    }
    if options.boot && options.restore.is_some() {
        return Err(Usage("--boot: a restored guest has booted; resume=on lets it go on".to_owned()));
    }
    Ok(Action::Run(Box::new(options)))
}

/// The option's values: one, or for a list all up to the next option.
fn values(parser: &mut lexopt::Parser, entry: &Entry) -> Result<Vec<String>, String> {
    let text = |value: OsString| value.into_string().map_err(|value| format!("{} is no UTF-8", value.display()));
    if matches!(entry.field, Field::List(_)) {
        parser.values().map_err(|error| error.to_string())?.map(text).collect()
    } else {
        Ok(vec![text(parser.value().map_err(|error| error.to_string())?)?])
    }
}

fn vmm_option(options: &mut Options, entry: &Entry, values: &[String]) -> Result<(), String> {
    let [value] = values else { return Err("takes one value".to_owned()) };
    match entry.name {
        "api-socket" => {
            options.api_socket = Some(match value.split_once('=') {
                Some(("path", path)) => Endpoint::Path(path.into()),
                Some(("fd", number)) => Endpoint::Fd(fd(number)?),
                _ => Endpoint::Path(value.into()),
            });
        }
        "event-monitor" => {
            options.event_monitor = Some(match value.split_once('=') {
                Some(("path", path)) => Events::Path(path.into()),
                Some(("fd", number)) => Events::Fd(fd(number)?),
                Some(("socket", path)) => Events::Socket(path.into()),
                Some(("socket_fd", number)) => Events::SocketFd(fd(number)?),
                _ => return Err(format!("{value:?} is not {}", entry.value)),
            });
        }
        "seccomp" => {
            options.seccomp = match value.as_str() {
                "true" => Seccomp::On,
                "false" => Seccomp::Off,
                "log" => Seccomp::Log,
                _ => return Err(format!("{value:?} is not {}", entry.value)),
            };
        }
        "kvm-fd" => options.kvm_fd = Some(fd(value)?),
        "restore" => {
            let object = words::read(value, entry.keys).map_err(|error| error.to_string())?;
            let text = Value::Object(object).to_string();
            let restore: RestoreConfig = json::read(text.as_bytes()).map_err(|error| error.to_string())?;
            restore.source().map_err(|error| error.to_string())?;
            options.restore = Some(restore);
        }
        name => {
            one_config(options)?;
            options.config = Some(match name {
                "config" => ConfigFrom::File(value.into()),
                "config-fd" => ConfigFrom::Fd(fd(value)?),
                _ => ConfigFrom::Json(value.clone()),
            });
        }
    }
    Ok(())
}

fn fd(text: &str) -> Result<Fd, String> {
    text.parse().map_err(|_| format!("{text:?} is no descriptor's number"))
}

fn one_config(options: &Options) -> Result<(), String> {
    if options.config.is_some() { Err("the guest is described once, not twice".to_owned()) } else { Ok(()) }
}

/// Puts an option of the guest into its configuration.
fn guest_option(guest: &mut Map<String, Value>, field: Field, entry: &Entry, values: &[String]) -> Result<(), String> {
    for value in values {
        let keys = || words::read(value, entry.keys).map_err(|error| error.to_string());
        let (place, value) = match field {
            Field::Object(name) => (name, Value::Object(keys()?)),
            Field::List(path) => {
                let list = list_at(guest, path).ok_or("is there in another way already")?;
                list.push(Value::Object(keys()?));
                continue;
            }
            Field::Payload(name) => ("payload", serde_json::json!({ name: value })),
            Field::PayloadFd(name) => ("payload", serde_json::json!({ name: fd(value)? })),
            Field::Fd(name) => {
                guest.insert(name.to_owned(), fd(value)?.into());
                continue;
            }
            Field::Console(name) => (name, console(value)?),
            Field::Vmm | Field::Switch(_) => return Err("takes no value".to_owned()),
        };
        let object = guest.entry(place).or_insert_with(|| Map::new().into());
        if let (Value::Object(object), Value::Object(more)) = (object, value) {
            object.extend(more);
        }
    }
    Ok(())
}

/// The list at `a` or `a.b`.
fn list_at<'a>(object: &'a mut Map<String, Value>, path: &str) -> Option<&'a mut Vec<Value>> {
    match path.split_once('.') {
        Some((outer, inner)) => {
            list_at(object.entry(outer).or_insert_with(|| Map::new().into()).as_object_mut()?, inner)
        }
        None => object.entry(path).or_insert_with(|| Vec::<Value>::new().into()).as_array_mut(),
    }
}

fn console(text: &str) -> Result<Value, String> {
    let mode = match text.split_once('=') {
        Some(("file", path)) => return Ok(serde_json::json!({"mode": "File", "file": path})),
        Some(("fd", number)) => return Ok(serde_json::json!({"mode": "File", "fd": fd(number)?})),
        None => text,
        Some(_) => "",
    };
    let mode = match mode {
        "off" => "Off",
        "null" => "Null",
        "tty" => "Tty",
        _ => return Err(format!("{text:?} is not off, null, tty, file=FILE or fd=N")),
    };
    Ok(serde_json::json!({ "mode": mode }))
}

/// The configuration that options describe. What is different from JSON: images say `raw`, there is no console unless
/// asked for, and `max` follows `boot`.
fn config(mut guest: Map<String, Value>) -> Result<VmConfig, Usage> {
    guest.entry("console").or_insert_with(|| serde_json::json!({"mode": "Off"}));
    if let Some(Value::Object(cpus)) = guest.get_mut("cpus")
        && let Some(boot) = cpus.get("boot_vcpus").cloned()
    {
        cpus.entry("max_vcpus").or_insert(boot);
    }
    for disk in guest.get_mut("disks").and_then(Value::as_array_mut).into_iter().flatten() {
        if disk["image_type"] == "raw" {
            disk["image_type"] = "Raw".into();
        } else if disk["image_type"].is_null()
            && let Some(disk) = disk.as_object_mut()
        {
            disk.remove("image_type");
        }
    }
    json::read(Value::Object(guest).to_string().as_bytes()).map_err(|error| Usage(error.to_string()))
}

fn usage(error: lexopt::Error) -> Usage {
    Usage(error.to_string())
}

/// What `--help` prints.
fn help() -> String {
    let mut text = "vse-vmm: one process, one guest.\n\nOptions of the VMM:\n".to_owned();
    describe(VMM, &mut text);
    text.push_str("\nOptions of the guest:\n");
    describe(GUEST, &mut text);
    text.push('\n');
    text.push_str(EXAMPLES);
    text
}

fn describe(entries: &[Entry], text: &mut String) {
    for entry in entries {
        text.push_str(&format!("  --{} {}\n        {}\n", entry.name, entry.value, entry.help));
        for key in entry.keys {
            text.push_str(&format!("          {:<16} {}\n", key.name, key.help));
        }
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
