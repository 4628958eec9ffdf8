//! Completion: scripts for shells, names of VSEs, and kubectl's way of asking plugins.

use crate::args::{Cli, Connect, Shell};
use crate::cluster::Cluster;
use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::CompletionCandidate;
use clap_complete::engine::complete;
use clap_complete::env::{Bash, EnvCompleter, Zsh};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::time::Duration;
use vse_crds::VSE;

/// Longest to wait for the API server: somebody is at the keyboard.
const PATIENCE: Duration = Duration::from_secs(2);
/// Variable by which the scripts ask this program.
const VARIABLE: &str = "COMPLETE";
const PROGRAM: &str = "kubectl-vse";
/// What kubectl runs to complete `kubectl vse …`.
const KUBECTL_SCRIPT: &str =
    "#!/bin/sh\n# Completes `kubectl vse` for kubectl's own completion.\nexec kubectl-vse __complete -- \"$@\"\n";
/// kubectl's directive not to complete file names.
const NO_FILES: &str = ":4";

/// Prints a completion script.
pub fn print(shell: Shell) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match shell {
        Shell::Bash => Bash.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut out),
        Shell::Zsh => Zsh.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut out),
        Shell::Kubectl => out.write_all(KUBECTL_SCRIPT.as_bytes()),
    }
    .context("can't write the script")
}

/// Answers as kubectl wants it from `kubectl_complete-vse`: one candidate a line, its help after a tab, a directive last.
pub fn complete_for_kubectl(words: Vec<OsString>) -> Result<()> {
    let mut line = vec![OsString::from(PROGRAM)];
    line.extend(words);
    if line.len() == 1 {
        line.push(OsString::new());
    }
    let last = line.len() - 1;
    let candidates = complete(&mut Cli::command(), line, last, None).context("can't complete")?;
    let mut out = std::io::stdout().lock();
    for candidate in candidates {
        let value = candidate.get_value().to_string_lossy();
        match candidate.get_help() {
            Some(help) => {
                let help = help.to_string();
                writeln!(out, "{value}\t{}", help.lines().next().unwrap_or_default())
            }
            None => writeln!(out, "{value}"),
        }
        .context("can't write")?;
    }
    writeln!(out, "{NO_FILES}").context("can't write")
}

/// Names of VSEs that begin like this, and none when the API server does not say soon.
pub fn names(current: &OsStr) -> Vec<CompletionCandidate> {
    let typed = current.to_string_lossy();
    let (user, beginning) = typed.rsplit_once('@').unzip();
    let beginning = beginning.unwrap_or(&typed);
    let connect = connect_from(std::env::args());
    let Ok(names) = std::thread::spawn(move || list(&connect)).join() else {
        return Vec::new();
    };
    names
        .into_iter()
        .filter(|name| name.starts_with(beginning))
        .map(|name| match user {
            Some(user) => CompletionCandidate::new(format!("{user}@{name}")),
            None => CompletionCandidate::new(name),
        })
        .collect()
}

/// On a thread of its own: kubectl's way comes here from within a runtime.
fn list(connect: &Connect) -> Vec<String> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let listing = async {
        let cluster = Cluster::connect(connect).await.ok()?;
        let api: Api<VSE> = Api::namespaced(cluster.client, &cluster.namespace);
        let found = api.list_metadata(&ListParams::default()).await.ok()?;
        Some(found.into_iter().map(|vse| vse.name_any()).collect())
    };
    let names = runtime.block_on(async { tokio::time::timeout(PATIENCE, listing).await });
    names.ok().flatten().unwrap_or_default()
}

/// The cluster's flags in a command line that is not complete and so can't be parsed.
fn connect_from(words: impl Iterator<Item = String>) -> Connect {
    let mut connect = Connect::default();
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        let (flag, attached) = match word.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let mut value = || attached.clone().or_else(|| words.peek().cloned());
        match flag.as_str() {
            "-n" | "--namespace" => connect.namespace = value(),
            "--context" => connect.context = value(),
            "--kubeconfig" => connect.kubeconfig = value().map(Into::into),
            _ => {}
        }
    }
    connect
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_in_an_unfinished_line() {
        let line = ["kubectl-vse", "status", "-n", "x", "--context=c", ""];
        let connect = connect_from(line.into_iter().map(String::from));
        assert_eq!(connect.namespace.as_deref(), Some("x"));
        assert_eq!(connect.context.as_deref(), Some("c"));
    }

    #[test]
    fn commands_are_completed() {
        let line = ["kubectl-vse", "sta"].map(OsString::from).to_vec();
        let found = complete(&mut Cli::command(), line, 1, None).unwrap();
        let values: Vec<_> = found.iter().map(|c| c.get_value().to_string_lossy()).collect();
        assert_eq!(values, ["status", "start"]);
    }
}
