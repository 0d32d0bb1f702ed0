//! What the host's kernel does with a flow's datagrams that are too big for the path.

use std::os::fd::AsFd;

use cofferdam_gate::Fragmentation;
use cofferdam_sys::socket::{self, TooBig};

/// Payload that fits into every path: IPv6's least MTU without the headers of IPv6 and UDP. IPv4 paths below it are gone.
const FITS: usize = 1_232;

/// The path of one connected socket, and how the socket is set.
#[derive(Debug)]
pub(crate) struct Path {
    ipv6: bool,
    /// `None`: as the kernel opens sockets. It sets the DF bit on what fits and cuts up what does not.
    set: Option<Fragmentation>,
}

impl Path {
    pub(crate) fn new(ipv6: bool) -> Path {
        Path { ipv6, set: None }
    }

    /// Sees to it that the next datagrams, of `size` bytes, are cut up or not as the guest wants it. Costs a system call when
    /// that changes, and none for a flow of small datagrams: what always fits is sent alike either way.
    pub(crate) fn prepare(&mut self, socket: impl AsFd, size: usize, fragmentation: Fragmentation) {
        if self.set == Some(fragmentation) || self.set.is_none() && size <= FITS {
            return;
        }
        let then = match fragmentation {
            Fragmentation::Allowed => TooBig::Cut,
            Fragmentation::Forbidden => TooBig::Refuse,
        };
        // Where the kernel refuses, it goes on as it did: the datagram arrives, in pieces perhaps.
        if socket::set_too_big(socket, self.ipv6, then).is_ok() {
            self.set = Some(fragmentation);
        }
    }

    /// The path's MTU in bytes; 0 when the kernel does not know.
    pub(crate) fn mtu(&self, socket: impl AsFd) -> u32 {
        socket::path_mtu(socket, self.ipv6).unwrap_or(0)
    }
}
