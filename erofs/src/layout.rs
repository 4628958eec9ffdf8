//! Decides where each inode and its content lie. Pure: sizes in, places out.
//!
//! ```text
//! block 0      superblock
//! block 1 …    inodes, each followed by its extended attributes and, where it fits, the last part of its content
//! then         the full blocks of all content, inode after inode
//! ```

use crate::format::{BLOCK, DataLayout, INODE, SLOT};

/// How many partly filled metadata blocks are kept open for later inodes.
const OPEN_BLOCKS: usize = 32;

/// What the layout needs to know of an inode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    pub(crate) xattr_bytes: u64,
    /// Bytes of content; 0 for what has none, as device nodes.
    pub(crate) content: u64,
}

/// Where an inode lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) nid: u64,
    pub(crate) layout: DataLayout,
    /// First of the full blocks of the content.
    pub(crate) first_block: u64,
}

impl Place {
    /// Byte offset of the inode in the image.
    pub(crate) fn offset(&self) -> u64 {
        self.nid * SLOT
    }

    /// Byte offset of the content's full blocks.
    pub(crate) fn data_offset(&self) -> u64 {
        self.first_block * BLOCK
    }
}

/// The places of all inodes, in the order of their needs.
pub(crate) struct Layout {
    pub(crate) places: Vec<Place>,
    pub(crate) metadata_blocks: u64,
    pub(crate) total_blocks: u64,
}

/// Lays out the image. The first inode always gets the lowest number: the superblock has 16 bits for the root's.
pub(crate) fn layout(needs: &[Need]) -> Layout {
    let mut metadata = Metadata { end: 1, gaps: Vec::new() };
    let mut data_blocks = 0;
    let mut places: Vec<Place> = needs
        .iter()
        .map(|need| {
            let tail = need.content % BLOCK;
            let head = INODE + need.xattr_bytes;
            let inline = tail > 0 && head + tail <= BLOCK;
            let offset = metadata.allocate(if inline { head + tail } else { head });
            let first_block = data_blocks;
            data_blocks += if inline { need.content / BLOCK } else { need.content.div_ceil(BLOCK) };
            let layout = if inline { DataLayout::InlineTail } else { DataLayout::Plain };
            Place { nid: offset / SLOT, layout, first_block }
        })
        .collect();
    for place in &mut places {
        place.first_block += metadata.end;
    }
    Layout { places, metadata_blocks: metadata.end - 1, total_blocks: metadata.end + data_blocks }
}

/// The metadata blocks handed out so far.
struct Metadata {
    /// The first block behind them.
    end: u64,
    /// Free ends of blocks: (offset, bytes), none of which crosses a block.
    gaps: Vec<(u64, u64)>,
}

impl Metadata {
    /// Bytes in one block, or, if there are more, in consecutive blocks from the start of the first.
    fn allocate(&mut self, bytes: u64) -> u64 {
        let bytes = bytes.next_multiple_of(SLOT);
        let best = (0..self.gaps.len()).filter(|&i| self.gaps[i].1 >= bytes).min_by_key(|&i| self.gaps[i].1);
        let (offset, free) = match best {
            Some(i) => self.gaps.swap_remove(i),
            None => {
                let blocks = bytes.div_ceil(BLOCK);
                let offset = self.end * BLOCK;
                self.end += blocks;
                (offset, blocks * BLOCK)
            }
        };
        if free - bytes >= INODE {
            self.gaps.push((offset + bytes, free - bytes));
        }
        if self.gaps.len() > OPEN_BLOCKS {
            let smallest = (0..self.gaps.len()).min_by_key(|&i| self.gaps[i].1);
            smallest.map(|i| self.gaps.swap_remove(i));
        }
        offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn need() -> impl Strategy<Value = Need> {
        let xattrs =
            prop_oneof![4 => Just(0u64), 1 => (3u64..40).prop_map(|n| n * 4), 1 => (900u64..5000).prop_map(|n| n * 4)];
        (xattrs, prop_oneof![0u64..300, 3900u64..4200, 0u64..20_000])
            .prop_map(|(xattr_bytes, content)| Need { xattr_bytes, content })
    }

    proptest! {
        #[test]
        fn nothing_overlaps_and_no_tail_crosses_a_block(needs in prop::collection::vec(need(), 1..300)) {
            let layout = layout(&needs);
            prop_assert_eq!(layout.places[0].nid, BLOCK / SLOT);
            let mut taken = vec![(0, BLOCK)];
            for (need, place) in needs.iter().zip(&layout.places) {
                let tail = need.content % BLOCK;
                let mut inode = INODE + need.xattr_bytes;
                let mut data = need.content.next_multiple_of(BLOCK);
                if place.layout == DataLayout::InlineTail {
                    prop_assert!(tail > 0);
                    prop_assert!((place.offset() + inode) % BLOCK + tail <= BLOCK);
                    inode += tail;
                    data -= BLOCK;
                }
                prop_assert_eq!(place.offset() % SLOT, 0);
                taken.push((place.offset(), place.offset() + inode));
                if data > 0 {
                    taken.push((place.data_offset(), place.data_offset() + data));
                }
            }
            taken.sort_unstable();
            for pair in taken.windows(2) {
                prop_assert!(pair[0].1 <= pair[1].0, "{:?}", pair);
            }
            prop_assert!(taken[taken.len() - 1].1 <= layout.total_blocks * BLOCK);
        }
    }
}
