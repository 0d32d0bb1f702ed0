//! Packet formats, each on two levels: a *view* that borrows validated bytes, and functions that emit.

pub mod virtio;
