//! `vse-vmm`: see `--help`.

use std::process::ExitCode;

use vse_vmm::options::{self, Action};
use vse_vmm::start::start;
use vse_vmm::vmm::{End, refusal::chain};

/// The command line is wrong.
const USAGE: u8 = 2;
/// The VMM could not start, or go on.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let end = match options::parse(std::env::args_os().skip(1)) {
        Ok(Action::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Ok(Action::Run(options)) => start(*options),
        Err(usage) => {
            eprintln!("vse-vmm: {usage}");
            return ExitCode::from(USAGE);
        }
    };
    match end {
        Ok(end) => {
            if let End::Failed(reason) = &end {
                eprintln!("vse-vmm: {reason}");
            }
            ExitCode::from(end.exit_code())
        }
        Err(error) => {
            eprintln!("vse-vmm: {}", chain(&error).join(": "));
            ExitCode::from(FAILED)
        }
    }
}
