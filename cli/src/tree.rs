//! Drawing a tree with lines.

/// A node: one line, and what hangs below it.
#[derive(Debug, Default)]
pub struct Node {
    pub line: String,
    pub below: Vec<Node>,
}

impl Node {
    /// A node with nothing below it.
    pub fn leaf(line: impl Into<String>) -> Self {
        Self { line: line.into(), below: Vec::new() }
    }

    /// The tree as lines, each ended by a newline.
    pub fn draw(&self) -> String {
        let mut out = format!("{}\n", self.line);
        self.draw_below("", &mut out);
        out
    }

    fn draw_below(&self, indent: &str, out: &mut String) {
        for (index, node) in self.below.iter().enumerate() {
            let last = index + 1 == self.below.len();
            let (branch, further) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            out.push_str(&format!("{indent}{branch}{}\n", node.line));
            node.draw_below(&format!("{indent}{further}"), out);
        }
    }
}
