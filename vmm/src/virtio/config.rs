//! Device configuration as bytes.

use crate::snapshot::{InvalidState, Unit};

/// Device configuration of `N` bytes, little-endian.
#[derive(Debug, Clone)]
pub struct ConfigSpace<const N: usize>([u8; N]);

impl<const N: usize> Default for ConfigSpace<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> ConfigSpace<N> {
    /// Sets a field. What would lie beyond the end is left out.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0.iter_mut().skip(offset).zip(bytes).for_each(|(to, from)| *to = *from);
    }

    /// What a driver reads; beyond the end, `data` stays as it is.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(N);
        data.iter_mut().zip(&self.0[start..]).for_each(|(to, from)| *to = *from);
    }
}

/// What a device without state of its own says to state.
///
/// # Errors
/// Always.
pub fn no_state(kind: &'static str, unit: &Unit) -> Result<(), InvalidState> {
    if unit.kind != kind {
        return Err(InvalidState::Kind { expected: kind, found: unit.kind.clone() });
    }
    Err(InvalidState::Damaged { kind, reason: "it has none".to_owned() })
}
