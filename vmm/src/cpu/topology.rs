//! Sockets, dies, cores and threads, and the APIC IDs that encode them. Pure.

/// What the guest sees of its CPUs' arrangement. vCPUs are numbered thread by thread, core by core, die by die, socket
/// by socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Hardware threads of a core.
    pub threads: u32,
    /// Cores of a die.
    pub cores: u32,
    /// Dies of a socket.
    pub dies: u32,
    /// Sockets.
    pub sockets: u32,
}

/// Where one vCPU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Its number in its core.
    pub thread: u32,
    /// Its core's number in its die.
    pub core: u32,
    /// Its die's number in its socket.
    pub die: u32,
    /// Its socket's number.
    pub socket: u32,
}

/// Bits that number `count` things.
fn bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

impl Topology {
    /// One socket in which each vCPU is a core of its own.
    #[must_use]
    pub fn flat(vcpus: u32) -> Self {
        Self { threads: 1, cores: vcpus, dies: 1, sockets: 1 }
    }

    /// vCPUs in all.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.threads * self.cores * self.dies * self.sockets
    }

    /// vCPUs of a socket.
    #[must_use]
    pub fn per_socket(&self) -> u32 {
        self.threads * self.cores * self.dies
    }

    /// Where a vCPU is.
    #[must_use]
    pub fn position(&self, vcpu: u32) -> Position {
        let (thread, rest) = (vcpu % self.threads, vcpu / self.threads);
        let (core, rest) = (rest % self.cores, rest / self.cores);
        Position { thread, core, die: rest % self.dies, socket: rest / self.dies }
    }

    /// Bits of an APIC ID below the core's number.
    #[must_use]
    pub fn core_shift(&self) -> u32 {
        bits(self.threads)
    }

    /// Bits of an APIC ID below the die's number.
    #[must_use]
    pub fn die_shift(&self) -> u32 {
        self.core_shift() + bits(self.cores)
    }

    /// Bits of an APIC ID below the socket's number.
    #[must_use]
    pub fn socket_shift(&self) -> u32 {
        self.die_shift() + bits(self.dies)
    }

    /// Bits of an APIC ID below which vCPUs of one die have something in common; `domains` names which one each has.
    ///
    /// CPUID can tell of blocks of APIC IDs only, so that of domains of odd sizes less is told than there is; never more.
    #[must_use]
    pub fn common_shift<T: PartialEq>(&self, domains: &[T]) -> u32 {
        let is_common = |shift: u32| {
            let blocks = (0..).zip(domains).map(|(vcpu, domain)| (self.apic_id(vcpu) >> shift, domain));
            // IDs grow with the vCPUs' numbers: those of a block follow each other.
            blocks.clone().zip(blocks.skip(1)).all(|((block, domain), (next, other))| block != next || domain == other)
        };
        let shifts = self.core_shift()..=self.die_shift();
        shifts.rev().find(|shift| is_common(*shift)).unwrap_or(self.core_shift())
    }

    /// A vCPU's APIC ID: each level's number in as many bits as the level needs.
    #[must_use]
    pub fn apic_id(&self, vcpu: u32) -> u32 {
        let Position { thread, core, die, socket } = self.position(vcpu);
        thread | core << self.core_shift() | die << self.die_shift() | socket << self.socket_shift()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_leave_gaps_where_counts_are_odd() {
        let topology = Topology { threads: 2, cores: 3, dies: 1, sockets: 2 };
        let ids: Vec<_> = (0..topology.vcpus()).map(|vcpu| topology.apic_id(vcpu)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!(topology.position(7), Position { thread: 1, core: 0, die: 0, socket: 1 });
    }

    #[test]
    fn flat_is_plain_numbers() {
        let topology = Topology::flat(5);
        assert_eq!((0..5).map(|vcpu| topology.apic_id(vcpu)).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn what_is_common_is_told_in_blocks() {
        let topology = Topology { threads: 2, cores: 8, dies: 1, sockets: 2 };
        let shift = |of: fn(u32) -> u32| topology.common_shift(&(0..32).map(of).collect::<Vec<_>>());
        assert_eq!(shift(|vcpu| vcpu / 16), 4, "one in each socket");
        assert_eq!(shift(|vcpu| vcpu / 8), 3, "two");
        assert_eq!(shift(|vcpu| vcpu / 4), 2);
        assert_eq!(shift(|vcpu| vcpu / 6), 1, "three cores' are told as each core's own");
        assert_eq!(shift(|vcpu| u32::from(vcpu >= 28)), 2);
        assert_eq!(shift(|_| 0), 4, "a socket's at most");
        assert_eq!(shift(|vcpu| vcpu), 1, "a core's at least");
        assert_eq!(topology.common_shift::<u32>(&[]), 4, "unknown: a socket's");
    }

    proptest! {
        #[test]
        fn ids_are_unique_and_grow(threads in 1..5_u32, cores in 1..9_u32, dies in 1..4_u32, sockets in 1..4_u32) {
            let topology = Topology { threads, cores, dies, sockets };
            let ids: Vec<_> = (0..topology.vcpus()).map(|vcpu| topology.apic_id(vcpu)).collect();
            prop_assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
            for vcpu in 0..topology.vcpus() {
                prop_assert_eq!(topology.apic_id(vcpu) >> topology.socket_shift(), topology.position(vcpu).socket);
            }
        }
    }
}
