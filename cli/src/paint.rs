//! Colour, when somebody looks.

use std::io::IsTerminal;

/// Colours text, or leaves it alone.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Colour only on a terminal that can show it, and not when NO_COLOR is set (no-color.org).
    pub fn for_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { on: std::io::stdout().is_terminal() && !unwanted && !dumb }
    }

    /// Never colour.
    #[cfg(test)]
    pub fn off() -> Self {
        Self { on: false }
    }

    /// Always colour.
    #[cfg(test)]
    pub fn on() -> Self {
        Self { on: true }
    }

    /// What is as it should be.
    pub fn good(self, text: &str) -> String {
        self.code("32", text)
    }

    /// What is wrong.
    pub fn bad(self, text: &str) -> String {
        self.code("31", text)
    }

    /// What is on its way, or worth a look.
    pub fn warn(self, text: &str) -> String {
        self.code("33", text)
    }

    /// Names.
    pub fn bold(self, text: &str) -> String {
        self.code("1", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.code("2", text)
    }

    fn code(self, code: &str, text: &str) -> String {
        if self.on && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

/// Text from guests and messages without what could steer a terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
