//! Devices come to a running guest, and go again.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;

use serde_json::{Value, json};

use crate::guest::Guest;
use crate::host::{ADDRESS, Tap, accept, digest, fill};
use crate::initramfs::Content;
use crate::process::until;

/// Twice, so that what has gone can come again.
const COME_AND_GO: &str = "
echo ready
for round in 1 2; do
    until [ -b /dev/vda ]; do sleep 0.1; done
    sum=$(sha256sum </dev/vda)
    echo disk $round ${sum%% *}
    until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
    ifconfig eth0 192.0.2.2 netmask 255.255.255.0 up
    echo round $round $(cat /sys/class/net/eth0/address) | nc 192.0.2.1 7002
    while [ -e /dev/vda -o -e /sys/class/net/eth0 ]; do sleep 0.1; done
    echo gone $round $(ls /sys/bus/virtio/devices | wc -l)
done
sleep 3600
";

#[test]
#[ignore = "needs a stock kernel under real KVM: hack/lab-runner"]
fn disks_and_network_cards_come_and_go() {
    let _tap = Tap::new("vse0");
    let listener = TcpListener::bind((ADDRESS, 7002)).unwrap();
    let files = tempfile::tempdir().unwrap();
    let disk = files.path().join("disk");
    let content = Content { modules: &["virtio_blk", "virtio_net"], script: COME_AND_GO, ..Content::default() };
    let mut guest = Guest::boot(files.path(), content, json!({}));
    assert_eq!(guest.event(), "vm/booted");
    guest.tells("ready");
    for round in 1..=2 {
        fill(&disk, round << 20);
        let mac = format!("02:00:00:00:00:0{round}");
        guest.vmm.put("vm.add-disk", &json!({"id": "disk", "path": disk, "readonly": true}).to_string());
        assert_eq!(guest.tells(&format!("disk {round}")), digest(&disk));
        guest.vmm.put("vm.add-net", &json!({"id": "net", "tap": "vse0", "mac": mac}).to_string());
        let mut line = String::new();
        BufReader::new(accept(&listener)).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), format!("round {round} {mac}"));

        let counters = guest.get("vm.counters");
        assert!(counters["disk"]["read_bytes"].as_u64() >= Some(round as u64), "{counters}");
        assert!(counters["net"]["tx_frames"].as_u64() >= Some(1), "{counters}");
        for id in ["disk", "net"] {
            guest.vmm.put("vm.remove-device", &json!({"id": id}).to_string());
        }
        // The random number generator stays.
        assert_eq!(guest.tells(&format!("gone {round}")), "1");
        let is_there = |info: &Value, list: &str| info["config"][list].as_array().is_some_and(|all| !all.is_empty());
        until("the configuration has them no more", || {
            let info = guest.get("vm.info");
            !is_there(&info, "disks") && !is_there(&info, "net")
        });
    }
    guest.vmm.put("vmm.shutdown", "");
    assert_eq!(guest.vmm.end(), Some(0));
}
