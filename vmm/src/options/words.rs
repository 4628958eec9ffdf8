//! The syntax of an option's value: `key=value,key=[a,b],flag=on`. Pure; each value becomes JSON.

use serde_json::{Map, Value};

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As it is; quotes around it are taken off.
    Text,
    /// A whole number.
    Number,
    /// Bytes, with K, M, G or T for powers of 1024.
    Size,
    /// `on`, `true`, `off` or `false`.
    Switch,
    /// `3`, `[3,5]` or `[0-3,8]`.
    Numbers,
    /// `[a,b]`.
    Texts,
    /// Threads of a core, cores of a die, dies of a socket, sockets: `2:4:1:1`.
    Topology,
    /// Host CPUs of vCPUs: `[0@[2,3],1@[4]]`.
    Affinity,
    /// Cells and how far they are: `[1@20]`.
    Distances,
}

/// A key of an option.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// How it is written.
    pub name: &'static str,
    /// The field in JSON.
    pub field: &'static str,
    /// How its value is written.
    pub kind: Kind,
    /// What it is, for `--help`.
    pub help: &'static str,
}

/// A value that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadValue {
    /// The key isn't known.
    #[error("there is no {0:?}")]
    UnknownKey(String),
    /// It is there twice.
    #[error("{0} is there twice")]
    Twice(&'static str),
    /// Something without `=`.
    #[error("{0:?} is not like key=value")]
    NoValue(String),
    /// The value is of another kind.
    #[error("{key}: {value:?} is not {expected}")]
    Kind {
        /// Whose value.
        key: &'static str,
        /// It.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Brackets or quotes don't match.
    #[error("brackets or quotes in {0:?} don't match")]
    Unbalanced(String),
}

/// Reads an option's value.
///
/// # Errors
/// When it is written otherwise, or has keys that aren't known.
pub fn read(text: &str, keys: &[Key]) -> Result<Map<String, Value>, BadValue> {
    let mut object = Map::new();
    for word in split(text, ',')? {
        let (name, value) = word.split_once('=').ok_or_else(|| BadValue::NoValue(word.to_owned()))?;
        let key = keys.iter().find(|key| key.name == name).ok_or_else(|| BadValue::UnknownKey(name.to_owned()))?;
        let value = convert(key, value)?;
        if object.insert(key.field.to_owned(), value).is_some() {
            return Err(BadValue::Twice(key.name));
        }
    }
    Ok(object)
}

/// Splits at a separator that is in no brackets and no quotes.
fn split(text: &str, separator: char) -> Result<Vec<&str>, BadValue> {
    let unbalanced = || BadValue::Unbalanced(text.to_owned());
    let (mut parts, mut start, mut depth, mut is_quoted) = (Vec::new(), 0, 0_usize, false);
    for (at, letter) in text.char_indices() {
        match letter {
            '"' => is_quoted = !is_quoted,
            _ if is_quoted => {}
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1).ok_or_else(unbalanced)?,
            _ if letter == separator && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + letter.len_utf8();
            }
            _ => {}
        }
    }
    if depth != 0 || is_quoted {
        return Err(unbalanced());
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn convert(key: &Key, text: &str) -> Result<Value, BadValue> {
    let wrong = |expected| BadValue::Kind { key: key.name, value: text.to_owned(), expected };
    match key.kind {
        Kind::Text => Ok(unquoted(text).into()),
        Kind::Number => number(text).map(Into::into).ok_or_else(|| wrong("a number")),
        Kind::Size => size(text).map(Into::into).ok_or_else(|| wrong("a size like 512M")),
        Kind::Switch => match text {
            "on" | "true" => Ok(true.into()),
            "off" | "false" => Ok(false.into()),
            _ => Err(wrong("on or off")),
        },
        Kind::Numbers => Ok(numbers(text).ok_or_else(|| wrong("a list like [0-3,8]"))?.into()),
        Kind::Texts => {
            let items = list(text).ok_or_else(|| wrong("a list like [a,b]"))?;
            Ok(items.into_iter().map(|item| Value::from(unquoted(item))).collect())
        }
        Kind::Topology => topology(text).ok_or_else(|| wrong("four numbers like 2:4:1:1")),
        Kind::Affinity => {
            let pairs = pairs(text).ok_or_else(|| wrong("a list like [0@[2,3],1@[4]]"))?;
            let one = |(vcpu, cpus): (u64, &str)| Some(serde_json::json!({"vcpu": vcpu, "host_cpus": numbers(cpus)?}));
            pairs.into_iter().map(one).collect::<Option<Value>>().ok_or_else(|| wrong("a list like [0@[2,3],1@[4]]"))
        }
        Kind::Distances => {
            let pairs = pairs(text).ok_or_else(|| wrong("a list like [1@20]"))?;
            let one =
                |(cell, far): (u64, &str)| Some(serde_json::json!({"destination": cell, "distance": number(far)?}));
            pairs.into_iter().map(one).collect::<Option<Value>>().ok_or_else(|| wrong("a list like [1@20]"))
        }
    }
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// Bytes: `4096`, `512M`.
fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        b'T' | b't' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    number(digits)?.checked_mul(1 << shift)
}

/// What is between brackets.
fn list(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    if inner.is_empty() { Some(Vec::new()) } else { split(inner, ',').ok() }
}

/// Most numbers in a list: there is no host with more CPUs.
const MOST: u64 = 8192;

fn numbers(text: &str) -> Option<Vec<u64>> {
    let mut all = Vec::new();
    for item in list(text).unwrap_or_else(|| vec![text]) {
        let (first, last) = match item.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(item)?, number(item)?),
        };
        if last < first || last - first >= MOST || all.len() as u64 >= MOST {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

/// `[1@x,2@y]`
fn pairs(text: &str) -> Option<Vec<(u64, &str)>> {
    let one = |item: &'_ str| {
        let (number_text, value) = item.split_once('@')?;
        Some((number(number_text)?, value.len()))
    };
    list(text)?.into_iter().map(|item| one(item).map(|(key, length)| (key, &item[item.len() - length..]))).collect()
}

fn topology(text: &str) -> Option<Value> {
    let counts: Vec<u64> = text.split(':').map(number).collect::<Option<_>>()?;
    let [threads, cores, dies, packages] = counts[..] else { return None };
    Some(serde_json::json!({
        "threads_per_core": threads, "cores_per_die": cores, "dies_per_package": dies, "packages": packages,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [(&str, Kind); 9] = [
        ("text", Kind::Text),
        ("number", Kind::Number),
        ("size", Kind::Size),
        ("switch", Kind::Switch),
        ("numbers", Kind::Numbers),
        ("texts", Kind::Texts),
        ("topology", Kind::Topology),
        ("affinity", Kind::Affinity),
        ("distances", Kind::Distances),
    ];

    fn keys() -> Vec<Key> {
        KINDS.iter().map(|(name, kind)| Key { name, field: name, kind: *kind, help: "" }).collect()
    }

    fn json(text: &str) -> String {
        match read(text, &keys()) {
            Ok(object) => Value::Object(object).to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn each_kind() {
        for (text, expected) in [
            ("text=/a b", r#"{"text":"/a b"}"#),
            ("text=\"a,[b\",number=7", r#"{"number":7,"text":"a,[b"}"#),
            ("text=a=b", r#"{"text":"a=b"}"#),
            ("size=2G", r#"{"size":2147483648}"#),
            ("size=1", r#"{"size":1}"#),
            ("switch=on", r#"{"switch":true}"#),
            ("numbers=[0-2,8]", r#"{"numbers":[0,1,2,8]}"#),
            ("numbers=3", r#"{"numbers":[3]}"#),
            ("texts=[a,b]", r#"{"texts":["a","b"]}"#),
            ("affinity=[0@[2,3],1@[4]]", r#"{"affinity":[{"host_cpus":[2,3],"vcpu":0},{"host_cpus":[4],"vcpu":1}]}"#),
            ("distances=[1@20]", r#"{"distances":[{"destination":1,"distance":20}]}"#),
            (
                "topology=2:4:1:1",
                r#"{"topology":{"cores_per_die":4,"dies_per_package":1,"packages":1,"threads_per_core":2}}"#,
            ),
        ] {
            assert_eq!(json(text), expected);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("nothing=1", "there is no \"nothing\""),
            ("text=a,text=b", "text is there twice"),
            ("on", "\"on\" is not like key=value"),
            ("number=x", "number: \"x\" is not a number"),
            ("size=99999999T", "size: \"99999999T\" is not a size like 512M"),
            ("numbers=[3-1]", "numbers: \"[3-1]\" is not a list like [0-3,8]"),
            ("numbers=[0-99999999]", "numbers: \"[0-99999999]\" is not a list like [0-3,8]"),
            ("texts=[a", "brackets or quotes in \"texts=[a\" don't match"),
            ("switch=maybe", "switch: \"maybe\" is not on or off"),
        ] {
            assert_eq!(json(text), expected);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z=,@\\[\\]\"0-9:-]{0,40}", kind in prop::sample::select(KINDS.map(|(name, _)| name).to_vec())) {
            let _ = read(&text, &keys());
            let _ = read(&format!("{kind}={text}"), &keys());
        }
    }
}
