//! `kubectl vse ssh`: the system's ssh, whose connection goes through the API server and the VM pod.

use crate::args::{Connect, SshArgs};
use crate::cluster::Cluster;
use crate::find;
use anyhow::{Context, Result};
use kube::ResourceExt;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::process::Command;
use vse_crds::{Root, VSE};

/// Runs ssh and gives its exit status.
pub async fn run(cluster: &Cluster, connect: &Connect, args: &SshArgs) -> Result<ExitCode> {
    let (user, name) = args.target.rsplit_once('@').unwrap_or(("root", &args.target));
    let vse = find::vse(cluster, name).await?;
    // Says why if nothing runs, rather than let ssh say that its proxy failed.
    find::running_pod(cluster, &vse).await?;
    let this = std::env::current_exe().context("can't find this program")?;
    let known_hosts = known_hosts()?;
    if let Some(directory) = known_hosts.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("can't make the directory {}", directory.display()))?;
    }
    let connection = Connection {
        proxy: proxy_command(&this.to_string_lossy(), connect, &cluster.namespace, name, args.port),
        host_key_alias: host_key_alias(&vse),
        known_hosts: known_hosts.to_string_lossy().into_owned(),
    };
    let status = Command::new("ssh")
        .args(arguments(&connection, user, name, &args.rest))
        .status()
        .await
        .context("can't run ssh; is OpenSSH's client installed?")?;
    // 255 is ssh's own word for a failure of its own.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(255)))
}

/// How ssh gets to a guest and knows it again.
struct Connection {
    proxy: String,
    host_key_alias: String,
    known_hosts: String,
}

/// Arguments of ssh. What the user gives comes after the destination, where ssh takes options and a command alike.
fn arguments(connection: &Connection, user: &str, name: &str, rest: &[String]) -> Vec<OsString> {
    let options = [
        format!("ProxyCommand={}", connection.proxy),
        format!("HostKeyAlias={}", connection.host_key_alias),
        format!("UserKnownHostsFile=\"{}\"", connection.known_hosts),
        // The API server vouches for the way to the pod; a key that changes later is still refused.
        "StrictHostKeyChecking=accept-new".into(),
    ];
    let mut arguments: Vec<OsString> = Vec::new();
    for option in options {
        arguments.extend(["-o".into(), option.into()]);
    }
    arguments.push(format!("{user}@{name}").into());
    arguments.extend(rest.iter().map(OsString::from));
    arguments
}

/// Name a guest's host key is kept under. A diskless guest makes a new key in each incarnation; one with a root volume
/// keeps its key. A VSE made anew under an old name is another guest.
fn host_key_alias(vse: &VSE) -> String {
    let uid = vse.uid().unwrap_or_default();
    let incarnation = vse.status.as_ref().map_or(0, |status| status.incarnation);
    match vse.spec.system.root {
        Root::Diskless => format!("vse-{uid}-{incarnation}"),
        Root::Disk => format!("vse-{uid}"),
    }
}

/// Where host keys are kept, apart from the user's own: `$XDG_STATE_HOME/vse/known_hosts`.
fn known_hosts() -> Result<PathBuf> {
    let state = match std::env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty()) {
        Some(state) => PathBuf::from(state),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".local/state"),
    };
    Ok(state.join("vse/known_hosts"))
}

/// The command ssh talks through: this program's port-forward-stdio.
fn proxy_command(this: &str, connect: &Connect, namespace: &str, name: &str, port: u16) -> String {
    let mut words = vec![this.to_owned(), "port-forward-stdio".into()];
    words.extend(["--namespace".into(), namespace.to_owned()]);
    if let Some(context) = &connect.context {
        words.extend(["--context".into(), context.clone()]);
    }
    if let Some(path) = &connect.kubeconfig {
        words.extend(["--kubeconfig".into(), path.to_string_lossy().into_owned()]);
    }
    words.extend(["--".into(), name.to_owned(), port.to_string()]);
    let quoted: Vec<_> = words.iter().map(|word| quote(word)).collect();
    // ssh expands percent signs, then has the shell execute it.
    quoted.join(" ").replace('%', "%%")
}

/// A word as the shell reads it back.
fn quote(word: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./:=@".contains(c);
    if !word.is_empty() && word.chars().all(safe) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_command_survives_ssh_and_the_shell() {
        let connect =
            Connect { context: Some("it's 100%".into()), kubeconfig: Some("/a b/config".into()), ..Connect::default() };
        assert_eq!(
            proxy_command("/usr/bin/kubectl-vse", &connect, "ns", "hello", 22),
            r"/usr/bin/kubectl-vse port-forward-stdio --namespace ns --context 'it'\''s 100%%' --kubeconfig '/a b/config' -- hello 22"
        );
    }

    #[test]
    fn options_and_command_follow_the_destination() {
        let connection = Connection { proxy: "p".into(), host_key_alias: "vse-u-1".into(), known_hosts: "/k".into() };
        let rest = ["-v".to_owned(), "uname".into()];
        let arguments = arguments(&connection, "root", "hello", &rest);
        assert_eq!(arguments[1], "ProxyCommand=p");
        assert_eq!(arguments[arguments.len() - 3..], ["root@hello", "-v", "uname"]);
    }

    #[test]
    fn a_diskless_guest_has_a_host_key_for_each_incarnation() {
        let mut vse = crate::golden::fixture("running").vse;
        vse.metadata.uid = Some("u".into());
        assert_eq!(host_key_alias(&vse), "vse-u-1");
        vse.spec.system.root = Root::Disk;
        assert_eq!(host_key_alias(&vse), "vse-u");
    }
}
