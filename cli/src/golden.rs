//! Tests against files of expected output, and the objects they are made from.

use crate::status::Seen;

/// Compares with `tests/golden/NAME`; with UPDATE_GOLDEN set, writes it instead.
pub fn check(name: &str, actual: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == actual, "{path} is not what came out (UPDATE_GOLDEN=1 writes it anew):\n{actual}");
}

/// The objects in `tests/fixtures/NAME.yaml`.
pub fn fixture(name: &str) -> Seen {
    let path = format!("{}/tests/fixtures/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}
