//! Configurations as clients send them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use vse_vmm_api::{VmConfig, json};

const GOLDEN: [(&str, &str); 3] = [
    ("minimal", include_str!("golden/minimal.json")),
    ("all-defaults", include_str!("golden/all-defaults.json")),
    ("node-runtime", include_str!("golden/node-runtime.json")),
];

#[test]
fn golden_configurations_are_valid_and_come_back_the_same() {
    for (name, text) in GOLDEN {
        let config: VmConfig = json::read(text.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let config = config.validate().unwrap_or_else(|error| panic!("{name}: {error}"));
        let text = serde_json::to_string(&config).unwrap();
        let again: VmConfig = json::read(text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&again.validate().unwrap()).unwrap(), text, "{name}");
    }
}

/// Everything that is not at its default is refused by name, not read over.
#[test]
fn what_is_not_supported_is_refused_by_name() {
    let base: serde_json::Value = serde_json::from_str(GOLDEN[1].1).unwrap();
    for (pointer, value) in [
        ("/balloon", serde_json::json!({"size": 1})),
        ("/iommu", true.into()),
        ("/watchdog", true.into()),
        ("/rtc", serde_json::json!({"id": "r"})),
        ("/landlock_enable", true.into()),
        ("/cpus/kvm_hyperv", true.into()),
        ("/cpus/features/amx", true.into()),
        ("/cpus/core_scheduling", "Vcpu".into()),
        ("/memory/mergeable", true.into()),
        ("/disks/0/backing_files", true.into()),
        ("/disks/0/vhost_user", true.into()),
        ("/disks/0/image_type", "Qcow2".into()),
        ("/net/0/pci_segment", 1.into()),
        ("/platform/num_pci_segments", 2.into()),
        ("/platform/iommufd", true.into()),
    ] {
        let mut config = base.clone();
        *config.pointer_mut(pointer).unwrap() = value;
        let error = json::read::<VmConfig>(config.to_string().as_bytes()).unwrap_err();
        let path = pointer[1..].replace("/0/", "[0].").replace('/', ".");
        assert!(
            error.path.starts_with(&path) || path.starts_with(&error.path) && !error.path.is_empty(),
            "{pointer}: {error}"
        );
    }
}

/// Any JSON with the fields' names in it.
fn json_of(names: Vec<String>) -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        (0_u64..300).prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        "[a-z/:0-9-]{0,40}".prop_map(Into::into),
        prop::sample::select(vec!["Tty", "Off", "File", "02:00:00:00:00:01", "a"]).prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::hash_map(prop::sample::select(names.clone()), inner, 0..6)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

fn names_in(value: &serde_json::Value, names: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => map.iter().for_each(|(name, inner)| {
            names.insert(name.clone());
            names_in(inner, names);
        }),
        serde_json::Value::Array(list) => list.iter().for_each(|inner| names_in(inner, names)),
        _ => {}
    }
}

fn known_names() -> Vec<String> {
    let mut names = BTreeSet::new();
    GOLDEN.iter().for_each(|(_, text)| names_in(&serde_json::from_str(text).unwrap(), &mut names));
    names.into_iter().collect()
}

/// Replaces what a pointer leads to, if it leads anywhere.
fn damage(mut config: serde_json::Value, at: usize, with: serde_json::Value) -> serde_json::Value {
    let mut pointers = Vec::new();
    pointers_in(&config, String::new(), &mut pointers);
    let pointer = &pointers[at % pointers.len()];
    *config.pointer_mut(pointer).unwrap() = with;
    config
}

fn pointers_in(value: &serde_json::Value, here: String, pointers: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            map.iter().for_each(|(name, inner)| pointers_in(inner, format!("{here}/{name}"), pointers));
        }
        serde_json::Value::Array(list) => {
            list.iter().enumerate().for_each(|(at, inner)| pointers_in(inner, format!("{here}/{at}"), pointers));
        }
        _ => {}
    }
    pointers.push(here);
}

proptest! {
    #[test]
    fn damaged_configurations_are_valid_or_refused(
        golden in 0..GOLDEN.len(), at in any::<usize>(), with in json_of(known_names()),
    ) {
        let config = damage(serde_json::from_str(GOLDEN[golden].1).unwrap(), at, with);
        let Ok(config) = json::read::<VmConfig>(config.to_string().as_bytes()) else { return Ok(()) };
        if let Ok(valid) = config.validate() {
            prop_assert_eq!(valid.clone().validate().unwrap(), valid);
        }
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = json::read::<VmConfig>(&bytes);
    }
}
