//! Kernel settings of the network namespace the calling thread is in: `/proc/sys/net` follows the opening thread.

use crate::error::{Context, Error};
use crate::tap::TAP_NAME;
use std::fs;
use std::path::Path;

const ROOT: &str = "/proc/sys/net";

/// Settings that do not need the tap.
pub(crate) fn for_namespace() -> Result<(), Error> {
    set("ipv4/ip_forward", "1")?;
    // A guest that talks to itself through the pod's address is on the right way: no ICMP redirects.
    set("ipv4/conf/all/send_redirects", "0")
}

/// Settings of the tap, to be made before it is up.
pub(crate) fn for_tap() -> Result<(), Error> {
    set(&format!("ipv4/conf/{TAP_NAME}/send_redirects"), "0")?;
    // Lets connections from 127.0.0.1 leave by the tap; the rules drop what the guest itself sends to 127/8.
    set(&format!("ipv4/conf/{TAP_NAME}/route_localnet"), "1")?;
    // Without IPv6 the pod's services are out of the guest's reach by link-local addresses too. The setting is
    // absent where IPv6 is: not in the kernel, or the MTU is below 1280.
    let disable_ipv6 = format!("ipv6/conf/{TAP_NAME}/disable_ipv6");
    if Path::new(ROOT).join(&disable_ipv6).exists() {
        set(&disable_ipv6, "1")?;
    }
    Ok(())
}

/// Writes only what differs: some settings reset others when written.
fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new(ROOT).join(name);
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).context(|| format!("set {} to {value}", path.display()))
}
