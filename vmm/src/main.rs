//! `vse-vmm`.

fn main() {}
