//! Packet formats, each on two levels: a *view* that borrows validated bytes, and functions that emit.
//!
//! A view exists only when every length, offset and checksum in it was checked, so the code behind it never asks again.
//! What is refused, and as which [`cofferdam_model::DropReason`], is decided here and nowhere else.

pub(crate) mod checksum;
pub mod ends;
pub(crate) mod icmp;
pub(crate) mod ip;
pub(crate) mod ipv4;
pub(crate) mod ipv6;
pub(crate) mod tcp;
pub(crate) mod udp;
pub mod virtio;
