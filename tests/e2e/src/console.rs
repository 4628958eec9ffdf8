//! A guest's console, with somebody typing.

use crate::World;
use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, AttachedProcess};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use vse_crds::labels;

/// How long a guest may take to answer a line; then the line is typed again, for a console loses what is typed while
/// nobody reads it.
const ANSWER: Duration = Duration::from_secs(15);
/// How often a line is typed.
const ATTEMPTS: usize = 8;

/// Lines around what a command prints.
const BEGIN: &str = "begin:\n";
const END: &str = ":end\n";

/// An attached console.
pub struct Console {
    process: AttachedProcess,
    stdin: Box<dyn tokio::io::AsyncWrite + Unpin + Send>,
    stdout: Box<dyn tokio::io::AsyncRead + Unpin + Send>,
}

impl Console {
    /// Attaches to an incarnation's console and logs in as root (tiny guest: no password).
    pub async fn login(world: &World, vse: &str, incarnation: i64) -> Result<Console> {
        world.until_booted(vse, incarnation).await?;
        let parameters = AttachParams::interactive_tty().container(labels::VM_CONTAINER);
        let pod = labels::incarnation_name(vse, incarnation);
        let mut process = world.api::<Pod>().attach(&pod, &parameters).await?;
        let stdin = Box::new(process.stdin().context("console without input")?);
        let stdout = Box::new(process.stdout().context("console without output")?);
        let mut console = Console { process, stdin, stdout };
        console.type_until("", "login: ").await?;
        console.type_until("root", "# ").await?;
        Ok(console)
    }

    /// What a shell command prints.
    pub async fn run(&mut self, command: &str) -> Result<String> {
        // The marks are not in what is typed, and so not in its echo.
        let line = format!("echo be''gin:; {command}; echo :en''d");
        let printed = self.type_until(&line, END).await?;
        let printed = printed.rsplit_once(BEGIN).map_or(printed.as_str(), |(_, after)| after);
        Ok(printed.split_once(END).map_or(printed, |(before, _)| before).trim_end().to_owned())
    }

    /// Types a command that ends the guest, and leaves.
    pub async fn run_last(mut self, command: &str) -> Result<()> {
        self.type_until(command, command).await.map(drop)
    }

    async fn send(&mut self, line: &str) -> Result<()> {
        self.stdin.write_all(format!("{line}\r").as_bytes()).await?;
        Ok(self.stdin.flush().await?)
    }

    /// Types a line until the guest answers with a text; all it printed meanwhile.
    async fn type_until(&mut self, line: &str, text: &str) -> Result<String> {
        let mut seen = String::new();
        for _ in 0..ATTEMPTS {
            self.send(line).await?;
            if let Ok(answered) = timeout(ANSWER, self.read_until(text, &mut seen)).await {
                answered?;
                return Ok(seen);
            }
        }
        bail!("typed {line:?} on the console and saw no {text:?}, but: {seen:?}")
    }

    async fn read_until(&mut self, text: &str, seen: &mut String) -> Result<()> {
        let mut buffer = [0; 4096];
        while !seen.contains(text) {
            let read = self.stdout.read(&mut buffer).await?;
            anyhow::ensure!(read > 0, "the console ended; it showed {seen:?}");
            // The guest's terminal and the container's each add a carriage return to a line's end.
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]).replace('\r', ""));
        }
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.process.abort();
    }
}
