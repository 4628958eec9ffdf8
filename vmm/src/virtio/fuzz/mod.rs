//! Hostile drivers against each device ([`crate::fuzzing`]).
//!
//! Whatever a driver does, a device must not panic, must come back from a pause, and must work for the next driver.

mod script;
mod targets;

use self::script::{MOST, STEP, Step, decode};
use super::device::VirtioDevice;
use super::testing::{Bench, Ring};
use crate::fuzzing::{self, Shape};

/// The host's end of a device.
pub trait Host {
    /// Does something: sends, reads, connects, leaves.
    fn act(&mut self, _what: u8, _length: u32) {}
}

/// The host's end of a device that has none.
impl Host for () {}

/// Runs a script against a device that works, and sees that it still does.
fn drive<D: VirtioDevice>(bench: &mut Bench<D>, host: &mut impl Host, bytes: &[u8]) {
    restart(bench);
    for step in decode(bytes) {
        let count = bench.rings.len();
        let ring = |queue: u8| usize::from(queue) % count;
        match step {
            Step::Describe { queue, index, address, length, flags, next } => {
                bench.rings[ring(queue)].describe(index, address, length, flags, next);
            }
            Step::Offer { queue, head } => bench.rings[ring(queue)].offer(head),
            Step::Kick { queue } => bench.rings[ring(queue)].kick(),
            Step::Put { address, data } => bench.rings[0].put(address, &data),
            Step::Jump { queue, index } => bench.rings[ring(queue)].jump(index),
            Step::Configure { offset, data } => {
                bench.device.write_config(offset, &data);
                bench.device.read_config(offset, &mut [0; 8]);
            }
            Step::Pause => {
                pause(bench);
                bench.device.resume().unwrap();
            }
            Step::Reset => restart(bench),
            Step::Host { what, length } => host.act(what, length),
        }
    }
    pause(bench);
}

/// Pauses a device that has a driver; a thread that panicked has lost its queues.
fn pause<D: VirtioDevice>(bench: &mut Bench<D>) {
    bench.device.pause();
    assert_eq!(bench.device.queue_states().len(), bench.rings.len(), "the device's thread is gone");
    bench.device.save();
}

/// A driver that starts anew.
fn restart<D: VirtioDevice>(bench: &mut Bench<D>) {
    bench.device.reset();
    bench.rings.iter_mut().for_each(Ring::clear);
    bench.recorder.forget();
    bench.activate(&[]);
}

/// Where a device's scripts are kept.
fn corpus(name: &str) -> std::path::PathBuf {
    fuzzing::corpus(&format!("virtio/{name}"))
}

/// Runs scripts against a device, and lets `check` see whether it still works.
fn fuzz<D: VirtioDevice, H: Host>(
    name: &str,
    bench: &mut Bench<D>,
    host: &mut H,
    mut check: impl FnMut(&mut Bench<D>, &mut H),
) {
    fuzzing::fuzz(&format!("virtio/{name}"), Shape::steps(STEP, MOST), |script| {
        drive(bench, host, script);
        restart(bench);
        check(bench, host);
    });
}
