//! The command line.

use std::path::PathBuf;

const HELP: &str = "\
vse-launcher: first process of a VM pod; waits for one launch order and becomes the engine.

Usage: vse-launcher [--socket PATH] [--orders-from UID]...

  --socket PATH       where to wait for the order  [default: /run/vse/launch.sock]
  --orders-from UID   a user whose orders are taken, as seen in this pod; may be repeated  [default: 0]
                      In a pod with its own user namespace the host's root shows as 65534.
  --help, --version

Example, as the command of a pod's container:
  vse-launcher --socket /run/vse/launch.sock";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Wait for an order.
    Run(Options),
    /// Print this and end.
    Say(String),
}

/// How to wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Where the socket is made.
    pub(crate) socket: PathBuf,
    /// User ids, as this user namespace sees them, whose orders are taken.
    pub(crate) orders_from: Vec<u32>,
}

/// What is wrong with the command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("unknown argument {0:?}")]
    Unknown(String),
    #[error("{0} needs a value")]
    NoValue(String),
    #[error("--orders-from: {0:?} is not a user id")]
    Uid(String),
}

pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Request, UsageError> {
    let mut socket = PathBuf::from("/run/vse/launch.sock");
    let mut orders_from = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| UsageError::NoValue(arg.clone()));
        match arg.as_str() {
            "--help" | "-h" => return Ok(Request::Say(HELP.to_owned())),
            "--version" => {
                return Ok(Request::Say(format!("vse-launcher {}", env!("CARGO_PKG_VERSION"))));
            }
            "--socket" => socket = value()?.into(),
            "--orders-from" => {
                let uid = value()?;
                orders_from.push(uid.parse().map_err(|_| UsageError::Uid(uid))?);
            }
            _ => return Err(UsageError::Unknown(arg)),
        }
    }
    if orders_from.is_empty() {
        orders_from.push(0);
    }
    Ok(Request::Run(Options { socket, orders_from }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Request, UsageError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn only_root_may_order_unless_said_otherwise() {
        let Ok(Request::Run(options)) = parsed("") else { panic!("no run") };
        assert_eq!(options.orders_from, [0]);
        let Ok(Request::Run(options)) = parsed("--orders-from 65534 --socket /s") else { panic!("no run") };
        assert_eq!(options, Options { socket: "/s".into(), orders_from: vec![65534] });
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parsed("--sock"), Err(UsageError::Unknown("--sock".into())));
        assert_eq!(parsed("--socket"), Err(UsageError::NoValue("--socket".into())));
        assert_eq!(parsed("--orders-from root"), Err(UsageError::Uid("root".into())));
    }
}
