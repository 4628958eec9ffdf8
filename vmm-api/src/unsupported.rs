//! Types of fields that Cloud Hypervisor's API has and this VMM has no use for.
//!
//! Clients send many of them at their defaults, which is fine; anything else is refused where it is read, so that the
//! error names the field.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A feature that isn't there: reads `null`, `false`, zero and what is empty, refuses everything else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsupported;

/// A number that can only be `N`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Only<const N: u64>;

/// What the errors say after the field's path.
pub(crate) const NOT_SUPPORTED: &str = "not supported by this VMM";

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Nothing)
    }
}

struct Nothing;

fn if_nothing<E: de::Error>(is_nothing: bool) -> Result<Unsupported, E> {
    if is_nothing { Ok(Unsupported) } else { Err(E::custom(NOT_SUPPORTED)) }
}

impl<'de> Visitor<'de> for Nothing {
    type Value = Unsupported;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("nothing")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Unsupported, E> {
        Ok(Unsupported)
    }

    fn visit_none<E: de::Error>(self) -> Result<Unsupported, E> {
        Ok(Unsupported)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Unsupported, E> {
        if_nothing(!value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Unsupported, E> {
        if_nothing(value == 0)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Unsupported, E> {
        if_nothing(false)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Unsupported, E> {
        if_nothing(false)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Unsupported, E> {
        if_nothing(value.is_empty())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Unsupported, A::Error> {
        if_nothing(list.next_element::<IgnoredAny>()?.is_none())
    }

    // An object is "nothing" when all that is in it is, for example `{"amx": false}`.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unsupported, A::Error> {
        while map.next_entry::<IgnoredAny, Unsupported>()?.is_some() {}
        Ok(Unsupported)
    }
}

impl<'de, const N: u64> Deserialize<'de> for Only<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::<u64>::deserialize(deserializer)? {
            Some(found) if found != N => Err(de::Error::custom(format!("{NOT_SUPPORTED} except as {N}"))),
            _ => Ok(Self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_pass() {
        for json in ["null", "false", "0", "[]", "{}", "\"\"", r#"{"amx": false}"#] {
            assert!(serde_json::from_str::<Unsupported>(json).is_ok(), "{json}");
        }
        assert!(serde_json::from_str::<Only<1>>("1").is_ok());
    }

    #[test]
    fn all_else_is_refused() {
        for json in ["true", "1", "-1", "0.5", "[0]", r#"{"amx": true}"#, "\"x\""] {
            let error = serde_json::from_str::<Unsupported>(json).unwrap_err().to_string();
            assert!(error.starts_with(NOT_SUPPORTED), "{json}: {error}");
        }
        assert!(serde_json::from_str::<Only<1>>("2").is_err());
    }
}
