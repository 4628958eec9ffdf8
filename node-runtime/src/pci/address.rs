//! Where a PCI function is: `dddd:bb:ss.f`, as sysfs names it (include/linux/pci.h; domains of some bridges have more
//! than four digits).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Address of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    domain: u32,
    bus: u8,
    slot: u8,
    function: u8,
}

/// Text that is no address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a PCI address such as 0000:65:00.1")]
pub struct InvalidAddress(String);

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        parse(text).ok_or_else(|| InvalidAddress(text.chars().take(40).collect()))
    }
}

fn parse(text: &str) -> Option<Address> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (slot, function) = rest.split_once('.')?;
    let hex = |digits: &str, lengths: std::ops::RangeInclusive<usize>| {
        let good = lengths.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        good.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
    };
    let address = Address {
        domain: hex(domain, 4..=8)?,
        bus: hex(bus, 2..=2)? as u8,
        slot: hex(slot, 2..=2)? as u8,
        function: hex(function, 1..=1)? as u8,
    };
    (address.slot < 32 && address.function < 8).then_some(address)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.slot, self.function)
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_addresses_are_taken() {
        for text in ["0000:65:00.1", "10000:e1:1f.7"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "65:00.1", "0000:65:20.0", "0000:65:00.8", "0000:65:+1.0", "0000:65:00.1 ", "../..:1:0.0"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_refused(text in "[0-9a-g:.]{0,16}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
            }
        }
    }
}
