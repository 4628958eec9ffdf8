//! `kubectl vse console`: this terminal becomes the guest's serial console, which is the terminal of the VM container.

use crate::args::ConsoleArgs;
use crate::cluster::Cluster;
use crate::{escape, find};
use anyhow::{Context, Result};
use futures::SinkExt;
use kube::ResourceExt;
use kube::api::{AttachParams, AttachedProcess, LogParams, TerminalSize};
use rustix::termios::{self, OptionalActions, Termios};
use std::io::IsTerminal;
use tokio::io::{AsyncReadExt, AsyncWriteExt, stdin, stdout};
use tokio::signal::unix::{SignalKind, signal};
use vse_crds::labels::VM_CONTAINER;

/// Prints the console's recent past, then attaches to it until Ctrl-] or the guest's end.
pub async fn run(cluster: &Cluster, args: &ConsoleArgs) -> Result<()> {
    let vse = find::vse(cluster, &args.name).await?;
    let pod = find::running_pod(cluster, &vse).await?.name_any();
    let pods = find::pods(cluster);
    let past = LogParams {
        container: Some(VM_CONTAINER.into()),
        tail_lines: Some(i64::from(args.tail)),
        ..LogParams::default()
    };
    let past = pods.logs(&pod, &past).await.with_context(|| format!("can't read the console's log of pod {pod}"))?;
    let attach = AttachParams::interactive_tty().container(VM_CONTAINER);
    let process = pods.attach(&pod, &attach).await.with_context(|| format!("can't attach to pod {pod}"))?;
    eprintln!("Console of vse/{}; Ctrl-] leaves it.", args.name);
    let mut out = stdout();
    out.write_all(past.as_bytes()).await?;
    out.flush().await?;
    let raw = Raw::enter()?;
    let ended = talk(process).await;
    drop(raw);
    match ended? {
        End::Left => eprintln!("\nLeft the console; the guest goes on."),
        End::Closed => eprintln!("\nThe guest's console was closed."),
    }
    Ok(())
}

/// Why a console ended.
enum End {
    /// The escape key was typed.
    Left,
    /// The other side closed it: the guest is gone, or the connection.
    Closed,
}

async fn talk(mut process: AttachedProcess) -> Result<End> {
    let mut out = stdout();
    let mut screen = process.stdout().context("the console has no output")?;
    let mut keyboard = process.stdin().context("the console has no input")?;
    let mut size = process.terminal_size();
    let mut resized = signal(SignalKind::window_change()).context("can't watch the window's size")?;
    let (mut typed, mut shown) = ([0; 4096], [0; 16384]);
    let (mut input, mut typing) = (stdin(), true);
    if let Some(size) = &mut size {
        send_size(size).await;
    }
    loop {
        tokio::select! {
            count = screen.read(&mut shown) => match count.context("lost the console")? {
                0 => return Ok(End::Closed),
                count => {
                    out.write_all(&shown[..count]).await?;
                    out.flush().await?;
                }
            },
            count = input.read(&mut typed), if typing => match count.context("can't read the keyboard")? {
                // Piped input has ended: go on showing.
                0 => typing = false,
                count => {
                    let (text, leave) = escape::split(&typed[..count]);
                    if !text.is_empty() && keyboard.write_all(text).await.is_err() {
                        return Ok(End::Closed);
                    }
                    if leave {
                        return Ok(End::Left);
                    }
                }
            },
            _ = resized.recv() => if let Some(size) = &mut size {
                send_size(size).await;
            },
        }
    }
}

/// Tells the container's terminal how large this one is. Nothing is lost when that fails.
async fn send_size(to: &mut (impl SinkExt<TerminalSize> + Unpin)) {
    if let Ok(size) = termios::tcgetwinsize(std::io::stdout()) {
        let (width, height) = (size.ws_col, size.ws_row);
        let _ = to.send(TerminalSize { width, height }).await;
    }
}

/// The terminal in raw mode, as long as this lives: every key goes to the guest.
struct Raw {
    before: Option<Termios>,
}

impl Raw {
    /// Does nothing when standard input is no terminal.
    fn enter() -> Result<Self> {
        let terminal = std::io::stdin();
        if !terminal.is_terminal() {
            return Ok(Self { before: None });
        }
        let before = termios::tcgetattr(&terminal).context("can't read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&terminal, OptionalActions::Now, &raw).context("can't set the terminal's mode")?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
