//! Counters for `vm.counters`: written by the thread that moves data, read by the owner at any time.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters by name, as they are now. Names are Cloud Hypervisor's where it has them.
pub type Counts = Vec<(&'static str, u64)>;

/// A number that only grows. Nobody concludes from it what else has happened, so it orders nothing.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// More of it.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How much it is now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One direction of a device's traffic.
#[derive(Debug, Default)]
pub struct Flow {
    bytes: Counter,
    pieces: Counter,
}

impl Flow {
    /// One piece (a request, a frame) of so many bytes was moved.
    pub fn add(&self, bytes: u64) {
        self.bytes.add(bytes);
        self.pieces.add(1);
    }
}

/// A device's traffic, since the device was made: a reset of the guest changes nothing.
#[derive(Debug, Default)]
pub struct Traffic {
    /// What the guest reads or receives.
    pub to_guest: Flow,
    /// What it writes or sends.
    pub from_guest: Flow,
}

impl Traffic {
    /// As that of a device that is read and written, by requests.
    #[must_use]
    pub fn of_storage(&self) -> Counts {
        self.named([("read_bytes", "read_ops"), ("write_bytes", "write_ops")])
    }

    /// As that of a device that receives and transmits, by frames.
    #[must_use]
    pub fn of_network(&self) -> Counts {
        self.named([("rx_bytes", "rx_frames"), ("tx_bytes", "tx_frames")])
    }

    /// As that of a device that is a stream of bytes.
    #[must_use]
    pub fn of_stream(&self) -> Counts {
        vec![("rx_bytes", self.to_guest.bytes.get()), ("tx_bytes", self.from_guest.bytes.get())]
    }

    fn named(&self, [to_guest, from_guest]: [(&'static str, &'static str); 2]) -> Counts {
        let flows = [(to_guest, &self.to_guest), (from_guest, &self.from_guest)];
        let both = |((bytes, pieces), flow): (_, &Flow)| [(bytes, flow.bytes.get()), (pieces, flow.pieces.get())];
        flows.into_iter().flat_map(both).collect()
    }
}
