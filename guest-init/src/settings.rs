//! What the kernel's command line asks for. Parsing is pure.

use std::path::PathBuf;

use crate::error::{At, Error, Result};

/// Where the root file system lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// A RAM overlay over the system image.
    Diskless,
    /// The root disk.
    Disk,
}

/// The `vse.` parameters.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) root: Root,
    pub(crate) init: PathBuf,
    pub(crate) overlay_size: Option<String>,
}

impl Settings {
    /// Those of the running kernel.
    pub(crate) fn read() -> Result<Self> {
        const PATH: &str = "/proc/cmdline";
        parse(&std::fs::read_to_string(PATH).at("read", PATH)?)
    }
}

/// The last of several values counts, as with the kernel's own parameters; what follows `--` is for init.
fn parse(command_line: &str) -> Result<Settings> {
    let mut settings = Settings { root: Root::Diskless, init: PathBuf::from("/sbin/init"), overlay_size: None };
    for word in words(command_line) {
        match word.split_once('=') {
            None if word == "--" => break,
            Some(("vse.root", "diskless")) => settings.root = Root::Diskless,
            Some(("vse.root", "disk")) => settings.root = Root::Disk,
            Some(("vse.root", other)) => return Err(Error::UnknownRoot(other.to_owned())),
            Some(("vse.init", path)) => settings.init = path.into(),
            Some(("vse.overlay_size", size)) => settings.overlay_size = Some(size.to_owned()),
            _ => {}
        }
    }
    Ok(settings)
}

/// Splits at white space outside double quotes, and drops the quotes, as the kernel does.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => words.push(String::new()),
            c => words.last_mut().into_iter().for_each(|word| word.push(c)),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_when_nothing_is_said() {
        let settings = parse("console=ttyS0 quiet\n").unwrap();
        assert_eq!(settings, Settings { root: Root::Diskless, init: "/sbin/init".into(), overlay_size: None });
    }

    #[test]
    fn everything_said() {
        let settings = parse("vse.root=disk vse.init=\"/my init\" vse.overlay_size=50% -- vse.init=/other").unwrap();
        let expected = Settings { root: Root::Disk, init: "/my init".into(), overlay_size: Some("50%".into()) };
        assert_eq!(settings, expected);
    }

    #[test]
    fn the_last_value_counts() {
        assert_eq!(parse("vse.root=disk vse.root=diskless").unwrap().root, Root::Diskless);
    }

    #[test]
    fn an_unknown_root_is_refused_with_the_choices() {
        let message = parse("vse.root=nfs").unwrap_err().to_string();
        assert_eq!(message, "vse.root=\"nfs\" is not known: use diskless or disk");
    }
}
