//! `kubectl vse`: looking at VSEs and acting on them from a terminal.
//!
//! Owns: what people read and type. It is a client like any other: it changes specs and annotations of VSEs as their
//! owner could with `kubectl patch`, and must not know more of the operator than the API says.

#![forbid(unsafe_code)]

mod args;
mod cluster;
mod completion;
mod console;
mod escape;
mod find;
mod forward;
#[cfg(test)]
mod golden;
mod paint;
mod power;
mod ssh;
mod status;
mod topology;
mod tree;
mod wait;

use anyhow::Result;
use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use cluster::Cluster;
use std::process::ExitCode;

fn main() -> ExitCode {
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&error.into()),
    };
    let outcome = runtime.block_on(run(cli));
    // A thread may be left that waits for the keyboard.
    runtime.shutdown_background();
    outcome.unwrap_or_else(|error| report(&error))
}

/// Prints an error with its causes, one after the other.
fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let connect = &cli.connect;
    match cli.command {
        Command::Status(args) => status::run(&Cluster::connect(connect).await?, &args).await?,
        Command::Topology(args) => topology::run(&Cluster::connect(connect).await?, &args).await?,
        Command::Console(args) => console::run(&Cluster::connect(connect).await?, &args).await?,
        Command::Ssh(args) => {
            return ssh::run(&Cluster::connect(connect).await?, connect, &args).await;
        }
        Command::Start(args) => power::run(connect, power::Action::Start, &args).await?,
        Command::Stop(args) => power::run(connect, power::Action::Stop, &args).await?,
        Command::Restart(args) => power::run(connect, power::Action::Restart, &args).await?,
        Command::Pause(args) => power::run(connect, power::Action::Pause, &args).await?,
        Command::Resume(args) => power::run(connect, power::Action::Resume, &args).await?,
        Command::PortForwardStdio(args) => {
            forward::run(&Cluster::connect(connect).await?, &args).await?;
        }
        Command::Completion(args) => completion::print(args.shell)?,
        Command::Complete(args) => completion::complete_for_kubectl(args.words)?,
    }
    Ok(ExitCode::SUCCESS)
}
