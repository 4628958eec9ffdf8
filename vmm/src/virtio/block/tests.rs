use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use tempfile::NamedTempFile;

use super::*;
use crate::virtio::testing::{BUFFERS, Bench, Piece, input, output};

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x800;
const DATA: u64 = BUFFERS + 0x1000;
const SIZE: u64 = 1 << 20;

/// io_uring, Linux AIO, neither.
const RINGS: [Kinds; 3] =
    [Kinds { io_uring: true, aio: false }, Kinds { io_uring: false, aio: true }, Kinds { io_uring: false, aio: false }];

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn options() -> BlockOptions {
    BlockOptions {
        read_only: false,
        direct: false,
        discard: true,
        kinds: RINGS[0],
        serial: "vse-root".to_owned(),
        queues: 2,
        queue_size: 64,
    }
}

fn image() -> NamedTempFile {
    // Beside this program: a temporary directory in memory has no O_DIRECT and no zeroed ranges.
    let program = std::env::current_exe().unwrap();
    let mut file = NamedTempFile::new_in(program.parent().unwrap()).unwrap();
    let bytes: Vec<u8> = (0..SIZE).map(|at| (at / 512 + at % 7) as u8).collect();
    file.write_all(&bytes).unwrap();
    file
}

fn bench(file: &NamedTempFile, options: &BlockOptions) -> Bench<Block> {
    Bench::new(Block::new(open(file, 0), options, None).unwrap(), 0)
}

fn open(file: &NamedTempFile, flags: i32) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(file.path()).unwrap()
}

impl Bench<Block> {
    fn header(&self, kind: u32, sector: u64) -> Piece {
        self.header_at(HEADER, kind, sector)
    }

    fn header_at(&self, at: u64, kind: u32, sector: u64) -> Piece {
        self.rings[0].put(at, &kind.to_le_bytes());
        self.rings[0].put(at + 4, &[0; 4]);
        self.rings[0].put(at + 8, &sector.to_le_bytes());
        input(at, 16)
    }

    /// One request; its status and how many bytes were written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
        self.rings[0].put(STATUS, &[0xee]);
        let mut pieces = vec![self.header(kind, sector)];
        pieces.extend(data);
        pieces.push(output(STATUS, 1));
        let written = self.exchange(0, &pieces);
        (self.rings[0].get::<1>(STATUS)[0], written)
    }
}

fn everything(options: &BlockOptions) {
    let file = image();
    let mut bench = bench(&file, options);
    assert_eq!(u64::from_le_bytes(bench.config(0)), SIZE / 512);
    assert_eq!(u16::from_le_bytes(bench.config(34)), 2);

    // Read in pieces of odd sizes, across the border of two regions of RAM.
    let border = crate::virtio::testing::RAM / 2;
    let pieces = [output(DATA, 1), output(DATA + 0x2001, 1022), output(border - 1, 1025)];
    assert_eq!(bench.request(0, 3, &pieces), (OK, 2049));
    let mut expected = vec![0; 2048];
    file.as_file().read_exact_at(&mut expected, 3 * 512).unwrap();
    let ring = &bench.rings[0];
    let read = [ring.bytes(DATA, 1), ring.bytes(DATA + 0x2001, 1022), ring.bytes(border - 1, 1025)].concat();
    assert_eq!(read, expected);

    // Written, then flushed.
    let data: Vec<u8> = (0..4096).map(|at| (at % 251) as u8).collect();
    bench.rings[0].put(DATA, &data);
    assert_eq!(bench.request(1, 8, &[input(DATA, 4000), input(DATA + 4000, 96)]), (OK, 1));
    assert_eq!(bench.request(4, 0, &[]), (OK, 1));
    let mut written = vec![0; 4096];
    file.as_file().read_exact_at(&mut written, 8 * 512).unwrap();
    assert_eq!(written, data);

    // Its name.
    assert_eq!(bench.request(8, 0, &[output(DATA, 20)]), (OK, 21));
    assert_eq!(&bench.rings[0].get::<20>(DATA), b"vse-root\0\0\0\0\0\0\0\0\0\0\0\0");

    // Zeroes that keep the space, holes that don't.
    let range = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    bench.rings[0].put(DATA, &range(0, 16, 0));
    assert_eq!(bench.request(13, 0, &[input(DATA, 16)]).0, OK);
    bench.rings[0].put(DATA, &range(64, 128, 0));
    let before = file.as_file().metadata().unwrap().blocks();
    assert_eq!(bench.request(11, 0, &[input(DATA, 16)]).0, OK);
    assert!(file.as_file().metadata().unwrap().blocks() < before);
    let mut cleared = vec![1; 8192];
    file.as_file().read_exact_at(&mut cleared, 0).unwrap();
    assert_eq!(cleared, vec![0; 8192]);
    file.as_file().read_exact_at(&mut cleared, 64 * 512).unwrap();
    assert_eq!(cleared, vec![0; 8192]);
    assert_eq!(file.as_file().metadata().unwrap().len(), SIZE);

    // Refused: beyond the end, half a sector, nothing, unknown, flags that a discard does not have, two ranges.
    assert_eq!(bench.request(0, SIZE / 512, &[output(DATA, 512)]), (IOERR, 1));
    assert_eq!(bench.request(0, u64::MAX, &[output(DATA, 512)]).0, IOERR);
    assert_eq!(bench.request(1, 0, &[input(DATA, 100)]).0, IOERR);
    assert_eq!(bench.request(0, 0, &[]).0, IOERR);
    assert_eq!(bench.request(8, 0, &[output(DATA, 19)]).0, IOERR);
    assert_eq!(bench.request(77, 0, &[]).0, UNSUPP);
    bench.rings[0].put(DATA, &range(0, 8, 1));
    assert_eq!(bench.request(11, 0, &[input(DATA, 16)]).0, UNSUPP);
    assert_eq!(bench.request(11, 0, &[input(DATA, 32)]).0, IOERR);
    assert!(!bench.recorder.seen().needs_reset);

    // Only what was moved counts, and it stays when the driver goes.
    bench.device.reset();
    let expected = [("read_bytes", 2048), ("read_ops", 1), ("write_bytes", 4096), ("write_ops", 1)];
    assert_eq!(bench.device.counters(), expected);
}

#[test]
fn every_request_by_io_uring() {
    everything(&options());
}

#[test]
fn every_request_by_linux_aio() {
    // Pieces of odd sizes go around it.
    match Disk::new(open(&image(), 0), true, true, true) {
        Ok(_) => everything(&BlockOptions { direct: true, kinds: RINGS[1], ..options() }),
        Err(error) => eprintln!("skipped: no O_DIRECT here: {error}"),
    }
}

#[test]
fn every_request_one_after_the_other() {
    everything(&BlockOptions { kinds: RINGS[2], ..options() });
}

#[test]
fn odd_buffers_bounce_around_the_page_cache() {
    for kinds in RINGS {
        let file = image();
        let options = BlockOptions { direct: true, kinds, ..options() };
        let block = match Block::new(open(&file, 0), &options, None) {
            Ok(block) => block,
            Err(error) => return eprintln!("skipped: no O_DIRECT here: {error}"),
        };
        let block_size = block.disk.rules.block;
        let mut bench = Bench::new(block, 0);
        let length = 20 * block_size as u32;
        let mut expected = vec![0; length as usize];
        file.as_file().read_exact_at(&mut expected, block_size).unwrap();
        for at in [DATA, DATA + 1] {
            assert_eq!(bench.request(0, block_size / 512, &[output(at, length)]), (OK, length + 1));
            assert_eq!(bench.rings[0].bytes(at, length as usize), expected);
        }
        let new: Vec<u8> = expected.iter().map(|byte| !byte).collect();
        bench.rings[0].put(DATA + 3, &new);
        let pieces = [input(DATA + 3, 100), input(DATA + 103, length - 100)];
        assert_eq!(bench.request(1, block_size / 512, &pieces).0, OK);
        assert_eq!(bench.request(4, 0, &[]).0, OK);
        file.as_file().read_exact_at(&mut expected, block_size).unwrap();
        assert_eq!(expected, new);
    }
}

#[test]
fn a_read_only_disk_cannot_be_written() {
    let file = image();
    let options = BlockOptions { read_only: true, ..options() };
    let mut bench = bench(&file, &options);
    assert_eq!(bench.features & (1 << 5 | 1 << 9 | 1 << 13 | 1 << 14), 1 << 5);
    assert_eq!(bench.request(1, 0, &[input(DATA, 512)]).0, IOERR);
    assert_eq!(bench.request(13, 0, &[input(DATA, 16)]).0, UNSUPP);
    assert_eq!(bench.request(0, 0, &[output(DATA, 512)]).0, OK);
    let read_only = File::open(file.path()).unwrap();
    assert!(Block::new(read_only, &super::tests::options(), None).is_err());
}

#[test]
fn what_is_in_flight_is_done_before_a_pause_and_the_rest_after_it() {
    for kinds in RINGS {
        let file = image();
        let options = BlockOptions { kinds, ..options() };
        let mut bench = bench(&file, &options);
        let mut last = (bench.device.queue_states(), crate::virtio::testing::memory());
        for round in 0..20_u64 {
            for place in 0..20 {
                let header = bench.header_at(HEADER + 0x20 * place, 1, place * 8 + round % 3);
                bench.rings[0].put(DATA + place * 512, &[round as u8; 512]);
                let pieces = [header, input(DATA + place * 512, 512), output(STATUS + place, 1)];
                bench.rings[0].add(&pieces);
            }
            bench.rings[0].kick();
            bench.device.pause();
            let state = bench.device.queue_states()[0].unwrap();
            // Nothing is in between: all that was taken was given back.
            assert_eq!(state.next_avail, state.next_used);
            let header = bench.header(4, 0);
            bench.rings[0].add(&[header, output(STATUS + 0x40, 1)]);
            bench.rings[0].kick();
            bench.device.resume().unwrap();
            for _ in 0..21 {
                bench.rings[0].wait(&bench.recorder);
            }
            bench.device.pause();
            assert_eq!(bench.device.save(), Saved::Stateless);
            last = (bench.device.queue_states(), bench.rings[0].memory.clone());
            bench.device.resume().unwrap();
        }
        drop(bench.device);

        // Another process goes on with the same memory and queues.
        let block = Block::new(open(&file, 0), &options, None).unwrap();
        let rings = bench.rings;
        bench = Bench { device: block, rings, recorder: bench.recorder, features: bench.features };
        bench.activate(&last.0);
        assert_eq!(bench.request(0, 0, &[output(DATA, 512)]), (OK, 513));
    }
}

#[test]
fn a_chain_that_is_in_flight_and_one_without_a_status_stop_the_queue() {
    let file = image();
    let mut bench = bench(&file, &options());
    let pieces = [bench.header(0, 0), output(DATA, 512)];
    bench.rings[0].add(&pieces);
    bench.rings[0].kick();
    // 512 bytes for data leave the last one for the status.
    assert_eq!(bench.rings[0].wait(&bench.recorder).1, 1);
    let header = bench.header(0, 0);
    bench.rings[0].add(&[header]);
    bench.rings[0].kick();
    bench.recorder.wait("a reset asked for", |seen| seen.needs_reset.then_some(()));
    assert_eq!(bench.rings[0].take(), None);
    // The other queue goes on, and after a reset all do.
    let header = bench.header(4, 0);
    assert_eq!(bench.exchange(1, &[header, output(STATUS, 1)]), 1);
    bench.device.reset();
    assert!(bench.device.queue_states().is_empty());
}

#[test]
fn each_queue_hears_of_what_is_done_while_another_is_served() {
    let file = image();
    let mut bench = bench(&file, &options());
    for _ in 0..500 {
        // Before anything is added: the device may see it without being told.
        bench.recorder.forget();
        // The kernel does a flush on another thread: it may be done while the other queue's read is served.
        let (flush, read) = (bench.header(4, 0), bench.header_at(HEADER + 0x20, 0, 0));
        bench.rings[1].add(&[flush, output(STATUS, 1)]);
        bench.rings[0].add(&[read, output(DATA, 512), output(STATUS + 1, 1)]);
        bench.rings[1].kick();
        bench.rings[0].kick();
        for index in 0..2 {
            bench.recorder.wait("an interrupt", |seen| seen.queues.get(&index).copied());
            bench.rings[usize::from(index)].wait(&bench.recorder);
        }
    }
}

#[test]
fn a_queue_that_found_no_room_is_served_whoever_makes_room() {
    const FLUSHES: u16 = 150;
    let file = image();
    let mut bench = bench(&file, &BlockOptions { queue_size: 512, ..options() });
    for _ in 0..50 {
        let (flush, id) = (bench.header(4, 0), bench.header_at(HEADER + 0x20, 8, 0));
        for _ in 0..FLUSHES {
            bench.rings[1].add(&[flush, output(STATUS, 1)]);
        }
        bench.rings[1].kick();
        // Done at once, and each time the device sees what the kernel has done meanwhile.
        for _ in 0..40 {
            assert_eq!(bench.exchange(0, &[id, output(DATA, 20), output(STATUS + 1, 1)]), 21);
        }
        for _ in 0..FLUSHES {
            bench.rings[1].wait(&bench.recorder);
        }
    }
}

#[test]
fn one_interrupt_serves_for_many_but_not_for_all() {
    const REQUESTS: u16 = 150;
    let file = image();
    let block = Block::new(open(&file, 0), &BlockOptions { queue_size: 512, ..options() }, None).unwrap();
    // Without EVENT_IDX, by which the driver says which one it wants to hear of.
    let mut bench = Bench::new(block, 1 << 29);
    bench.device.pause();
    let id = bench.header(8, 0);
    for _ in 0..REQUESTS {
        bench.rings[0].add(&[id, output(DATA, 20), output(STATUS, 1)]);
    }
    bench.recorder.forget();
    bench.device.resume().unwrap();
    for _ in 0..REQUESTS {
        bench.rings[0].wait(&bench.recorder);
    }
    bench.device.pause();
    assert_eq!(bench.recorder.seen().queues, [(0, 3)].into());
}
