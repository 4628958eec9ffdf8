//! Which parts of a BAR the guest reaches without this process.

use std::ops::Range;

/// KVM's unit, and that of what has to be trapped.
const PAGE: u64 = 0x1000;

/// Whole pages of what can be mapped, without those that something trapped is in.
pub(super) fn direct(mappable: &[Range<u64>], trapped: &[Range<u64>]) -> Vec<Range<u64>> {
    let down = |address: u64| address / PAGE * PAGE;
    let up = |address: u64| address.checked_next_multiple_of(PAGE);
    let pages = |area: &Range<u64>| Some(up(area.start)?..down(area.end)).filter(|pages| pages.start < pages.end);
    let mut parts: Vec<_> = mappable.iter().filter_map(pages).collect();
    for hole in trapped.iter().filter(|hole| !hole.is_empty()) {
        let hole = down(hole.start)..up(hole.end).unwrap_or(u64::MAX);
        let around = |part: Range<u64>| [part.start..part.end.min(hole.start), part.start.max(hole.end)..part.end];
        parts = parts.into_iter().flat_map(around).filter(|part| part.start < part.end).collect();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn msix_pages_are_left_out() {
        assert_eq!(direct(&[0..0x4000], &[0x1000..0x1050, 0x1800..0x1808]), [0..0x1000, 0x2000..0x4000]);
        assert_eq!(direct(&[0..0x4000], &[0..0x10]), [0x1000..0x4000]);
        assert_eq!(direct(&[0..0x4000], &[0x3FF0..0x4000]), [0..0x3000]);
        assert_eq!(direct(&[0..0x4000], &[]), [0..0x4000]);
        assert_eq!(direct(&[0..0x800], &[]), []);
        assert_eq!(direct(&[0x800..0x2800, 0x5000..0x6000], &[]), [0x1000..0x2000, 0x5000..0x6000]);
    }

    proptest! {
        #[test]
        fn parts_are_mappable_pages_and_never_trapped(
            mappable in proptest::collection::vec((0u64..0x20000, 0u64..0x8000), 0..4),
            trapped in proptest::collection::vec((0u64..0x20000, 0u64..0x2000), 0..4),
        ) {
            let ranges = |list: &[(u64, u64)]| list.iter().map(|&(start, size)| start..start + size).collect::<Vec<_>>();
            let (mappable, trapped) = (ranges(&mappable), ranges(&trapped));
            let parts = direct(&mappable, &trapped);
            for part in &parts {
                prop_assert!(part.start % PAGE == 0 && part.end % PAGE == 0 && part.start < part.end);
                prop_assert!(mappable.iter().any(|area| area.start <= part.start && part.end <= area.end));
                prop_assert!(trapped.iter().all(|hole| hole.is_empty() || hole.end <= part.start || part.end <= hole.start));
            }
            for page in (0..0x30000).step_by(PAGE as usize) {
                let page: Range<u64> = page..page + PAGE;
                let inside = mappable.iter().any(|area| area.start <= page.start && page.end <= area.end);
                let is_free = trapped.iter().all(|hole| hole.is_empty() || hole.end <= page.start || page.end <= hole.start);
                let found = parts.iter().any(|part| part.start <= page.start && page.end <= part.end);
                prop_assert_eq!(found, inside && is_free);
            }
        }
    }
}
