//! The command line: every command, flag and example.

use crate::completion;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;
use std::path::PathBuf;
use std::time::Duration;

/// Look at virtual system environments and act on them.
#[derive(Debug, Parser)]
#[command(name = "kubectl-vse", bin_name = "kubectl vse", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub connect: Connect,
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster and namespace.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct Connect {
    /// Namespace of the VSE [default: the context's]
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, global = true, value_name = "CONTEXT")]
    pub context: Option<String>,
    /// Path of the kubeconfig [default: as kubectl: $KUBECONFIG, ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show a VSE with its MicroVM, pod and host, and how long each step of its start took
    #[command(after_help = "Examples:
  kubectl vse status hello
  kubectl vse status hello -o json | jq .timeline")]
    Status(ViewArgs),

    /// Show the host's sockets, cells, cores and CPUs, and whose they are
    #[command(after_help = "Examples:
  kubectl vse topology hello
  kubectl vse topology hello -o json | jq '.cpus[] | select(.use.kind == \"vcpu\")'")]
    Topology(ViewArgs),

    /// Attach to the guest's serial console; Ctrl-] leaves it
    #[command(after_help = "Examples:
  kubectl vse console hello
  kubectl vse console hello --tail 100")]
    Console(ConsoleArgs),

    /// Log in by SSH through the API server; the guest needs no reachable address
    #[command(after_help = "Examples:
  kubectl vse ssh hello
  kubectl vse ssh debian@hello -- -i key.pem uname -a
  kubectl vse ssh hello -- -L 8080:localhost:80 -N")]
    Ssh(SshArgs),

    /// Start a VSE that was stopped or has ended
    #[command(after_help = "Examples:
  kubectl vse start hello
  kubectl vse start hello --wait --timeout 10m

Sets spec.runStrategy back to what `stop` replaced (Always if nothing is known). A VSE that ended by itself is started
once more.")]
    Start(PowerArgs),

    /// Shut the guest down and keep it so
    #[command(after_help = "Examples:
  kubectl vse stop hello --wait

Sets spec.runStrategy to Halted and remembers the former one for `start`.")]
    Stop(PowerArgs),

    /// Shut the guest down and start a new incarnation
    #[command(after_help = "Examples:
  kubectl vse restart hello --wait")]
    Restart(PowerArgs),

    /// Stop the guest's vCPUs; its memory is kept
    #[command(after_help = "Examples:
  kubectl vse pause hello")]
    Pause(PowerArgs),

    /// Let a paused guest go on
    #[command(after_help = "Examples:
  kubectl vse resume hello --wait")]
    Resume(PowerArgs),

    /// Print a completion script
    #[command(after_help = "Examples:
  source <(kubectl-vse completion bash)          # for kubectl-vse itself
  source <(kubectl-vse completion zsh)
  kubectl-vse completion kubectl > ~/.local/bin/kubectl_complete-vse
  chmod +x ~/.local/bin/kubectl_complete-vse     # for `kubectl vse`, through kubectl's own completion")]
    Completion(CompletionArgs),

    /// Connect standard input and output to a port of the guest (for ssh's ProxyCommand)
    #[command(hide = true)]
    PortForwardStdio(ForwardArgs),

    /// Complete a command line for kubectl's completion of plugins
    #[command(hide = true, name = "__complete")]
    Complete(CompleteArgs),
}

#[derive(Debug, Args)]
pub struct ViewArgs {
    /// Name of the VSE
    #[arg(add = ArgValueCompleter::new(completion::names))]
    pub name: String,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// Name of the VSE
    #[arg(add = ArgValueCompleter::new(completion::names))]
    pub name: String,
    /// Lines of the console's past to print first
    #[arg(long, default_value_t = 20, value_name = "LINES")]
    pub tail: u32,
}

#[derive(Debug, Args)]
pub struct SshArgs {
    /// Name of the VSE, and the user to log in as [default user: root]
    #[arg(value_name = "[USER@]NAME", add = ArgValueCompleter::new(completion::names))]
    pub target: String,
    /// Port of the guest's SSH server
    #[arg(short, long, default_value_t = 22)]
    pub port: u16,
    /// Options of ssh and the command to run
    #[arg(last = true, value_name = "SSH ARGUMENT")]
    pub rest: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PowerArgs {
    /// Name of the VSE
    #[arg(add = ArgValueCompleter::new(completion::names))]
    pub name: String,
    /// Return only when it is done
    #[arg(short, long)]
    pub wait: bool,
    /// How long to wait, for example 90s or 10m
    #[arg(long, default_value = "5m", value_parser = duration, requires = "wait")]
    pub timeout: Duration,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// Name of the VSE
    pub name: String,
    /// Port of the guest
    pub port: u16,
}

#[derive(Debug, Args)]
pub struct CompletionArgs {
    #[arg(value_enum)]
    pub shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// For `kubectl-vse` in bash
    Bash,
    /// For `kubectl-vse` in zsh
    Zsh,
    /// For `kubectl vse` in any shell kubectl completes in: the program kubectl_complete-vse
    Kubectl,
}

#[derive(Debug, Args)]
pub struct CompleteArgs {
    #[arg(last = true)]
    pub words: Vec<std::ffi::OsString>,
}

/// A duration as kubectl writes it: `30`, `30s`, `10m`, `1h`; at most a year.
fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration such as 90s, 10m or 1h");
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(invalid()),
    };
    let number: u64 = number.parse().map_err(|_| invalid())?;
    number.checked_mul(seconds).filter(|total| *total <= 365 * 24 * 3600).map(Duration::from_secs).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = format!("kubectl vse {}", command.get_name());
            assert!(help.contains(&example) || help.contains(&example.replacen(' ', "-", 1)), "{}", command.get_name());
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        for wrong in ["", "m", "1d", "-1s", "1h30m", "99999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ssh_takes_options_and_a_command_after_two_dashes() {
        let cli = Cli::parse_from(["kubectl-vse", "ssh", "-n", "x", "me@a", "--", "-v", "uname", "-a"]);
        let Command::Ssh(args) = cli.command else { panic!("not ssh") };
        assert_eq!(args.rest, ["-v", "uname", "-a"]);
        assert_eq!(cli.connect.namespace.as_deref(), Some("x"));
    }
}
