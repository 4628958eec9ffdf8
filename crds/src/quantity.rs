//! Kubernetes quantities as integers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity that is not a whole, non-negative number of units that fits 63 bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity such as 512Mi, 4Gi or 1500m")]
pub struct InvalidQuantity(pub String);

/// Thousandths of a unit (for CPU: milli-CPUs), rounded up.
pub fn millis(quantity: &Quantity) -> Result<u64, InvalidQuantity> {
    scaled(quantity, 1000)
}

/// Whole units (for memory: bytes), rounded up.
pub fn bytes(quantity: &Quantity) -> Result<u64, InvalidQuantity> {
    scaled(quantity, 1)
}

/// The shortest binary spelling of a number of bytes: `2Gi`, `1536Mi`, `1000`.
pub fn from_bytes(bytes: u64) -> Quantity {
    const UNITS: [(&str, u32); 4] = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let spelled = UNITS.iter().find(|(_, shift)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    Quantity(spelled.map_or(bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift)))
}

/// Parses `<digits>[.<digits>]<suffix>` (apimachinery's `resource.Quantity`) in integers only, times `scale`.
fn scaled(quantity: &Quantity, scale: u128) -> Result<u64, InvalidQuantity> {
    let invalid = || InvalidQuantity(quantity.0.clone());
    let text = quantity.0.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || whole.len() > 18 || fraction.len() > 9 || fraction.contains('.') {
        return Err(invalid());
    }
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| invalid())?;
    let (numerator, denominator): (u128, u128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E']).and_then(|e| e.parse().ok()).ok_or_else(invalid)?;
            (10u128.checked_pow(power).filter(|_| power <= 18).ok_or_else(invalid)?, 1)
        }
    };
    let divisor = denominator * 10u128.pow(fraction.len() as u32);
    let product = digits.checked_mul(numerator).and_then(|n| n.checked_mul(scale)).ok_or_else(invalid)?;
    u64::try_from(product.div_ceil(divisor)).ok().filter(|n| i64::try_from(*n).is_ok()).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(text: &str) -> Quantity {
        Quantity(text.into())
    }

    #[test]
    fn reads_what_kubernetes_writes() {
        assert_eq!(bytes(&q("1Gi")), Ok(1 << 30));
        assert_eq!(bytes(&q("1.5Gi")), Ok(3 << 29));
        assert_eq!(bytes(&q("128974848")), Ok(128_974_848));
        assert_eq!(bytes(&q("129e6")), Ok(129_000_000));
        assert_eq!(bytes(&q("123Mi")), Ok(123 << 20));
        assert_eq!(millis(&q("250m")), Ok(250));
        assert_eq!(millis(&q("2")), Ok(2000));
        assert_eq!(millis(&q("0.1")), Ok(100));
        assert_eq!(bytes(&q("100m")), Ok(1));
    }

    #[test]
    fn refuses_what_is_none() {
        for text in ["", "-1", "1 Gi", "Gi", "1Gib", "1e99", "9999999999999999999Pi", "1..5", "0x10"] {
            assert!(bytes(&q(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn spells_bytes_shortly() {
        assert_eq!(from_bytes(2 << 30).0, "2Gi");
        assert_eq!(from_bytes(1536 << 20).0, "1536Mi");
        assert_eq!(from_bytes(1000).0, "1000");
        assert_eq!(from_bytes(0).0, "0");
    }
}
