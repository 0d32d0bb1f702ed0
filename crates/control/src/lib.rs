//! The public Rust API: sandboxes and their lifecycle.

pub mod environment;
mod resolvers;
pub mod slot;
pub mod summary;
mod timestamp;
