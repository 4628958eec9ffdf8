//! A stock kernel in our VMM, which tells on its serial port what it sees.

use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::initramfs::{self, Content};
use crate::process::{Vmm, event, until};

/// A guest; it ends when this goes out of scope.
pub struct Guest {
    pub vmm: Vmm,
    events: BufReader<UnixStream>,
    serial: PathBuf,
}

/// Its configuration: one vCPU and 256 MiB, with `more`. Its files lie in `folder`.
pub fn config(folder: &Path, content: Content<'_>, more: Value) -> Value {
    let mut config = json!({
        "payload": {
            "kernel": "/boot/vmlinuz",
            "initramfs": initramfs::write(folder, content),
            "cmdline": "console=ttyS0 quiet panic=-1",
        },
        "memory": {"size": 256 << 20},
        "serial": {"mode": "File", "file": folder.join("serial")},
        "console": {"mode": "Off"},
    });
    let Value::Object(more) = more else { panic!("{more} is not an object") };
    config.as_object_mut().unwrap().extend(more);
    config
}

impl Guest {
    /// Boots it.
    pub fn boot(folder: &Path, content: Content<'_>, more: Value) -> Self {
        Self::boot_of(&config(folder, content, more))
    }

    /// Boots one that is configured so, by order: with `--boot`, events are told before somebody can listen.
    pub fn boot_of(config: &Value) -> Self {
        let guest = Self::start(config, &[]);
        guest.vmm.put("vm.boot", "");
        guest
    }

    /// Starts the VMM with more options.
    pub fn start(config: &Value, options: &[&str]) -> Self {
        let text = config.to_string();
        let options: Vec<&str> = ["--config-json", &text].into_iter().chain(options.iter().copied()).collect();
        let vmm = Vmm::start(tempfile::tempdir().unwrap(), &options);
        let events = vmm.events();
        Self { vmm, events, serial: config["serial"]["file"].as_str().unwrap().into() }
    }

    /// Lines on its serial port so far.
    pub fn lines(&self) -> Vec<String> {
        let text = std::fs::read(&self.serial).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// Waits until it says what begins with `word`, and tells the rest of that line.
    pub fn tells(&self, word: &str) -> String {
        let mut rest = None;
        until(&format!("the guest tells {word}"), || {
            rest = self.lines().iter().find_map(|line| Some(line.strip_prefix(word)?.trim().to_owned()));
            rest.is_some()
        });
        rest.unwrap()
    }

    /// Waits for the next event.
    pub fn event(&mut self) -> String {
        event(&mut self.events)
    }

    /// What `vm.info` or `vm.counters` say.
    pub fn get(&self, name: &str) -> Value {
        let (status, body) = self.vmm.ask("GET", name, "");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the guest said:\n{}", self.lines().join("\n"));
        }
    }
}
