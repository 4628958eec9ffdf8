//! Disks of a guest: what is kept and what is not, and who may write.

use vse_crds::labels::RESTARTED_AT;
use vse_e2e::console::Console;
use vse_e2e::{Result, Value, World, claim, ensure, json, scenario, tiny};

/// Shell: the device whose disk has a serial number.
const DEVICE: &str =
    "dev() { for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = \"$1\" ] && echo /dev/${d##*/}; done; }";

#[test]
fn claims_are_kept_and_scratch_is_not() {
    scenario("storage", async |world| {
        world.apply(&claim("data", "16Mi")).await?;
        world.apply(&tiny("guest", spec(false))).await?;
        world.ready("guest", 1).await?;
        let mut console = disks(world, 1).await?;
        assert_eq!(console.run("cat /sys/block/$(basename $(dev scratch))/size").await?, "16384");
        console.run("for d in data scratch; do echo written-to-$d >$(dev $d); done; sync").await?;
        drop(console);

        // The next incarnation may only read the data.
        world.apply(&tiny("guest", spec(true))).await?;
        let now = jiff::Timestamp::now().to_string();
        world.patch("guest", json!({"metadata": {"annotations": {RESTARTED_AT: now}}})).await?;
        world.ready("guest", 2).await?;
        let mut console = disks(world, 2).await?;
        assert_eq!(console.run("head -n 1 $(dev data)").await?, "written-to-data");
        assert_eq!(console.run("cat /sys/block/$(basename $(dev data))/ro").await?, "1");
        let refused = console.run("echo x >$(dev data) && sync || echo refused").await?;
        ensure!(refused.contains("refused"), "a read-only disk was written: {refused}");
        assert_eq!(console.run("head -c 16 $(dev scratch) | tr -d '\\000'").await?, "");
        Ok(())
    });
}

/// A guest with a data disk and scratch space.
fn spec(data_read_only: bool) -> Value {
    json!({
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "scratch", "emptyDisk": {"capacity": "8Mi"}},
        ],
        "disks": [{"name": "data", "readOnly": data_read_only}],
    })
}

async fn disks(world: &World, incarnation: i64) -> Result<Console> {
    let mut console = Console::login(world, "guest", incarnation).await?;
    console.run(DEVICE).await?;
    Ok(console)
}
