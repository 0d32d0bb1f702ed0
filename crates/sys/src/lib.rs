//! Small safe wrappers around the system calls that Cofferdam needs; the only crate with `unsafe`.
#![allow(unsafe_code, reason = "system calls that rustix does not wrap; every block says why it is sound")]

pub mod confine;
pub mod datagram;
pub mod fdpass;
pub mod file;
pub mod mount;
pub mod netlink;
pub mod nft;
pub mod ns;
pub mod packet;
pub mod process;
pub mod sock_diag;
pub mod socket;
pub mod transparent;
pub mod tty;
pub mod tun;
