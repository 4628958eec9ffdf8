//! Hostile servers of file systems ([`crate::fuzzing`]): a script is all that a server ever says.
//!
//! Whatever it says, the device is refused, or a driver can begin, and begin again, with RAM as it left it.

use std::io::Write;
use std::sync::Arc;

use super::tests::shared_memory;
use super::*;
use crate::fuzzing::{Shape, fuzz};
use crate::seccomp::{Filters, Role, Seccomp};
use crate::virtio::testing::{Recorder, Ring};

#[test]
fn servers() {
    let filter = Filters::new(Seccomp::On).of(Role::Fs).unwrap();
    let memory = shared_memory();
    let rings = [0, 1].map(|index| Ring::new(&memory, index * Ring::SPACE, 64));
    let ram = || [0, 1].map(|index| rings[index].bytes(index as u64 * Ring::SPACE, Ring::SPACE as usize));
    let before = ram();
    fuzz("virtio/fs-server", Shape::steps(4, 64), |script| {
        let (connection, mut server) = UnixStream::pair().unwrap();
        server.write_all(script).unwrap();
        server.shutdown(std::net::Shutdown::Write).unwrap();
        let Ok(mut fs) = Fs::new(connection, "home", 1, 64, filter.clone()) else { return };
        assert_eq!(fs.features() & !RING_FEATURES, 0);
        for _ in 0..2 {
            let queues = rings.iter().map(|ring| Some(ring.queue(None, false))).collect();
            let (interrupt, features) = (Arc::<Recorder>::default(), fs.features());
            let activated = fs.activate(Activation { memory: memory.clone(), interrupt, queues, features });
            if activated.is_ok() {
                fs.pause();
                assert_eq!(fs.queue_states().len(), 2, "the device's thread is gone");
            }
            fs.reset();
        }
        assert_eq!(ram(), before);
    });
}
