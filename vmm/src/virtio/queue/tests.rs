use proptest::prelude::*;

use super::*;
use crate::virtio::device::ReadyQueue;
use crate::virtio::testing::{BUFFERS, RAM, Recorder, Ring, input, memory, output};

const SIZE: u16 = 16;

fn device_queue(ring: &Ring, recorder: &Arc<Recorder>, event_idx: bool) -> DeviceQueue {
    let ReadyQueue { queue, notified } = ring.queue(None, event_idx);
    let activation = Activation {
        memory: ring.memory.clone(),
        interrupt: recorder.clone(),
        queues: vec![Some(ReadyQueue { queue, notified })],
        features: 0,
    };
    DeviceQueue::take(activation, 1).unwrap().1.remove(0).unwrap()
}

fn new(event_idx: bool) -> (Ring, Arc<Recorder>, DeviceQueue) {
    let ring = Ring::new(&memory(), 0, SIZE);
    let recorder = Arc::default();
    let queue = device_queue(&ring, &recorder, event_idx);
    (ring, recorder, queue)
}

#[test]
fn a_chain_is_read_written_and_given_back() {
    let (mut ring, recorder, mut queue) = new(true);
    ring.put(BUFFERS, b"hello world");
    let head = ring.add(&[input(BUFFERS, 4), input(BUFFERS + 4, 7), output(BUFFERS + 64, 3), output(BUFFERS + 128, 9)]);
    let mut chain = Chain::default();
    assert!(queue.pop(&mut chain));
    assert_eq!((chain.head(), chain.readable().len(), chain.writable().len()), (head, 11, 12));
    let (first, rest) = chain.readable().split_at(6);
    let mut bytes = [0; 16];
    assert_eq!(first.read(queue.memory(), &mut bytes), 6);
    assert_eq!(&bytes[..6], b"hello ");
    assert_eq!(rest.read(queue.memory(), &mut bytes), 5);
    assert_eq!(&bytes[..5], b"world");
    assert_eq!(chain.writable().split_at(2).1.write(queue.memory(), b"0123456789a"), 10);
    assert_eq!((ring.get::<3>(BUFFERS + 64), ring.get::<9>(BUFFERS + 128)), (*b"\0\x000", *b"123456789"));
    queue.complete(head, 12);
    queue.signal();
    assert_eq!(ring.take(), Some((head, 12)));
    assert_eq!(recorder.seen().queues[&0], 1);
    assert!(!queue.pop(&mut chain));
}

#[test]
fn the_driver_hears_only_of_what_it_wants_to_hear() {
    let (mut ring, recorder, mut queue) = new(true);
    let mut chain = Chain::default();
    for _ in 0..3 {
        ring.add(&[input(BUFFERS, 1)]);
        assert!(queue.pop(&mut chain));
        queue.complete(chain.head(), 0);
    }
    queue.signal();
    queue.signal();
    // It asked for the first one, and has not looked since.
    ring.add(&[input(BUFFERS, 1)]);
    assert!(queue.pop(&mut chain));
    queue.complete(chain.head(), 0);
    queue.signal();
    assert_eq!(recorder.seen().queues[&0], 1);

    // Without EVENT_IDX, a flag says it.
    let (mut ring, recorder, mut queue) = new(false);
    for flag in [0_u16, 1] {
        ring.put(Ring::AVAILABLE, &flag.to_le_bytes());
        ring.add(&[input(BUFFERS, 1)]);
        assert!(queue.pop(&mut chain));
        queue.complete(chain.head(), 0);
        queue.signal();
        assert_eq!(recorder.seen().queues[&0], 1);
    }
}

#[test]
fn notifications_come_again_when_asked_for_and_nothing_is_missed() {
    for event_idx in [true, false] {
        let (mut ring, _, mut queue) = new(event_idx);
        let mut chain = Chain::default();
        queue.suppress_notifications();
        assert!(!queue.enable_notifications());
        ring.add(&[input(BUFFERS, 1)]);
        assert!(queue.enable_notifications());
        assert!(queue.pop(&mut chain));
        assert!(!queue.enable_notifications());
    }
}

#[test]
fn chains_that_are_put_back_come_again() {
    let (mut ring, _, mut queue) = new(true);
    let heads = [ring.add(&[input(BUFFERS, 1)]), ring.add(&[input(BUFFERS, 2)])];
    let mut chains = [Chain::default(), Chain::default()];
    for _ in 0..2 {
        assert!(chains.iter_mut().all(|chain| queue.pop(chain)));
        assert_eq!([chains[0].head(), chains[1].head()], heads);
        chains.iter().rev().for_each(|chain| queue.put_back(chain));
    }
    assert_eq!(queue.state().next_avail, 0);
}

#[test]
fn every_broken_rule_stops_the_queue_where_it_is() {
    const NEXT: u16 = 1;
    const INDIRECT: u16 = 4;
    type Break = fn(&mut Ring);
    let breaks: [(&str, Break); 9] = [
        ("a head beyond the table", |ring| ring.offer(SIZE)),
        ("a loop", |ring| {
            ring.describe(0, BUFFERS, 1, NEXT, 0);
            ring.offer(0);
        }),
        ("a next one beyond the table", |ring| {
            ring.describe(0, BUFFERS, 1, NEXT, SIZE);
            ring.offer(0);
        }),
        ("a buffer outside", |ring| {
            ring.add(&[output(RAM - 1, 2)]);
        }),
        ("a buffer around the end of addresses", |ring| {
            ring.add(&[input(u64::MAX, 2)]);
        }),
        ("a readable buffer last", |ring| {
            ring.add(&[output(BUFFERS, 1), input(BUFFERS, 1)]);
        }),
        ("an indirect table outside", |ring| {
            ring.describe(0, RAM, 32, INDIRECT, 0);
            ring.offer(0);
        }),
        ("an indirect table in an indirect table", |ring| {
            ring.put(BUFFERS, &[BUFFERS.to_le_bytes(), (16_u64 | 4 << 32).to_le_bytes()].concat());
            ring.describe(0, BUFFERS, 16, INDIRECT, 0);
            ring.offer(0);
        }),
        ("one head twice", |ring| {
            ring.add(&[output(BUFFERS, 1)]);
            ring.offer(0);
        }),
    ];
    for (what, break_it) in breaks {
        let (mut ring, recorder, mut queue) = new(true);
        break_it(&mut ring);
        let mut chain = Chain::default();
        let mut taken = 0;
        while queue.pop(&mut chain) {
            taken += 1;
        }
        assert_eq!(taken, u16::from(what == "one head twice"), "{what}");
        assert!(recorder.seen().needs_reset, "{what}");
        assert_eq!(queue.state().next_avail, taken, "{what}");
        ring.add(&[input(BUFFERS, 1)]);
        assert!(!queue.pop(&mut chain) && !queue.enable_notifications(), "{what}");
    }
    let (ring, recorder, mut queue) = new(true);
    ring.put(Ring::AVAILABLE + 2, &(SIZE + 1).to_le_bytes());
    assert!(!queue.pop(&mut Chain::default()));
    assert!(recorder.seen().needs_reset);
}

proptest! {
    #[test]
    fn whatever_the_table_holds_chains_lie_in_ram_and_are_short(
        table in prop::collection::vec((any::<u64>(), any::<u32>(), 0_u16..8, 0..SIZE + 2), usize::from(SIZE)),
        near in any::<bool>(),
        heads in prop::collection::vec(0..SIZE + 1, 1..usize::from(SIZE)),
    ) {
        let (mut ring, _, mut queue) = new(true);
        for (index, (address, length, flags, next)) in (0..).zip(&table) {
            // Mostly sensible ones get further.
            let (address, length) = if near { (address % RAM, length % 0x2000) } else { (*address, *length) };
            ring.describe(index, address, length, *flags, *next);
        }
        heads.iter().for_each(|head| ring.offer(*head));
        let mut chains = Vec::new();
        let mut chain = Chain::default();
        while queue.pop(&mut chain) {
            chains.push(std::mem::take(&mut chain));
        }
        prop_assert!(chains.len() <= heads.len());
        for chain in &chains {
            let all: Vec<_> = chain.readable().pieces().chain(chain.writable().pieces()).collect();
            let total: u64 = all.iter().map(|(_, length)| u64::from(*length)).sum();
            prop_assert!(all.len() <= usize::from(SIZE));
            prop_assert_eq!(total, chain.readable().len() + chain.writable().len());
            for (address, length) in all {
                prop_assert!(address.0 + u64::from(length) <= RAM);
            }
            // Each byte is on one side of a split.
            let (first, rest) = chain.writable().split_at(total / 3);
            prop_assert_eq!(first.len() + rest.len(), chain.writable().len());
            let count = |buffers: crate::virtio::chain::Buffers<'_>| {
                buffers.pieces().map(|(_, length)| u64::from(length)).sum::<u64>()
            };
            prop_assert_eq!((count(first), count(rest)), (first.len(), rest.len()));
        }
        // Put back, they leave the queue as it was.
        chains.iter().rev().for_each(|chain| queue.put_back(chain));
        prop_assert_eq!(queue.state().next_avail, 0);
    }
}
