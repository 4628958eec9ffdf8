//! First process of every VM pod. Waits for one launch order of the node runtime and becomes the engine.
//!
//! It owns the way from the order to the `execve`: signals, descriptors, privileges. It decides nothing about the
//! engine, and nothing of it stays once the engine runs: same process id, no memory, no socket.

mod become_program;
mod options;
mod waiting;

use std::process::ExitCode;

use options::{Options, Request};
use waiting::{Heard, Signals};

fn main() -> ExitCode {
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(Request::Run(options)) => options,
        Ok(Request::Say(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("vse-launcher: {error}; see vse-launcher --help");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vse-launcher: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns when it is told to end; an order that succeeds does not return at all.
fn run(options: &Options) -> Result<(), waiting::WaitError> {
    become_program::close_inherited();
    let signals = Signals::block()?;
    loop {
        let listener = waiting::listen(&options.socket)?;
        println!("vse: waiting for the node runtime of this host");
        match waiting::wait(&listener, &signals, &options.orders_from)? {
            Heard::Ended => {
                waiting::remove(&options.socket)?;
                return Ok(());
            }
            Heard::Order(sender, received) => {
                drop(listener);
                waiting::remove(&options.socket)?;
                let error = become_program::become_program(&sender, received);
                waiting::refuse(&sender, &error);
            }
        }
    }
}
