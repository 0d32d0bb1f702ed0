//! Every frame of one interface, as the kernel sees it go by: a packet socket (packet(7)) whose frames lie in memory that it
//! shares with the kernel (`PACKET_MMAP`, Documentation/networking/packet_mmap.rst, `TPACKET_V3`).
//!
//! The socket's own queue would not do: its bound is `net.core.rmem_max`, some 200 KiB, which one super-packet of TCP fills. The
//! ring is memory of the kernel's, [`BLOCKS`] blocks of [`BLOCK`] bytes, which nobody pages out, and takes frames of any size.
//!
//! A block belongs to the kernel or to us, as its status says. Ours is one that is full, or that has had a frame for
//! [`RETIRE`]; it goes back when its [`Block`] is dropped. While all are ours the kernel drops frames and counts them.

use std::io;
use std::mem;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Four of the largest frames, and what is lost at the end of a block to the one that does not fit any more is a quarter of it at most.
pub const BLOCK: usize = 1 << 20;
/// 32 MiB: what 10 Gbit/s bring in 25 ms.
pub const BLOCKS: usize = 32;
/// After how long a block that is not full is handed over.
pub const RETIRE: Duration = Duration::from_millis(8);

/// No frame is as small; the kernel wants to know a size although frames of any lie one behind the other.
const FRAME: usize = 2048;

// linux/if_packet.h. `tpacket_block_desc`, of which `hdr.bh1` begins at byte 8:
const STATUS: usize = 8;
const COUNT: usize = 12;
const FIRST: usize = 16;
const LAST_SECONDS: usize = 40;
const LAST_NANOSECONDS: usize = 44;
// `tpacket3_hdr`, and the `sockaddr_ll` behind it:
const NEXT: usize = 0;
const SECONDS: usize = 4;
const NANOSECONDS: usize = 8;
const CAPTURED: usize = 12;
const LENGTH: usize = 16;
const MAC: usize = 24;
const PACKET_TYPE: usize = 48 + 10;

/// Options of `SOL_PACKET`.
const PACKET_STATISTICS: libc::c_int = 6;
const PACKET_VERSION: libc::c_int = 10;
const TPACKET_V3: libc::c_int = 2;

/// Every protocol (`ETH_P_ALL`), in network byte order.
const ALL: u16 = 0x0003_u16.to_be();

/// Opens a socket that takes every frame of the interface `index` in the calling thread's network namespace, both ways, from
/// here on, but for those of TCP to and from `without`. Close-on-exec. It takes `CAP_NET_RAW` there.
///
/// # Errors
/// The name of the refused call and the system's reason: `EPERM` without the capability, `EAFNOSUPPORT` when the kernel has no packet
/// sockets, `ENOMEM` when there is no room for the ring.
pub fn open(index: u32, without: Option<SocketAddrV4>) -> Result<OwnedFd, (&'static str, io::Error)> {
    // SAFETY: socket(2) takes numbers alone.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(("socket", io::Error::last_os_error()));
    }
    // SAFETY: the kernel has made a new descriptor, which nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, PACKET_VERSION, &TPACKET_V3).map_err(|error| ("PACKET_VERSION", error))?;
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let ring = libc::tpacket_req3 {
        tp_block_size: number(BLOCK),
        tp_block_nr: number(BLOCKS),
        tp_frame_size: number(FRAME),
        tp_frame_nr: number(BLOCK / FRAME * BLOCKS),
        tp_retire_blk_tov: u32::try_from(RETIRE.as_millis()).unwrap_or(8),
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    };
    set(&socket, libc::PACKET_RX_RING, &ring).map_err(|error| ("PACKET_RX_RING", error))?;
    if let Some(address) = without {
        leave_out(&socket, address).map_err(|error| ("SO_ATTACH_FILTER", error))?;
    }
    // SAFETY: sockaddr_ll holds numbers alone; all zeroes is valid.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(17);
    address.sll_protocol = ALL;
    address.sll_ifindex = libc::c_int::try_from(index).unwrap_or(libc::c_int::MAX);
    let len = libc::socklen_t::try_from(mem::size_of_val(&address)).unwrap_or(0);
    // SAFETY: the address is a live sockaddr_ll of the given size, which the kernel only reads; the descriptor is open.
    let rc = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if rc < 0 { Err(("bind", io::Error::last_os_error())) } else { Ok(socket) }
}

/// What a classic filter looks at: in Ethernet the type, in IPv4 (RFC 791) protocol, fragment and addresses, in TCP the ports.
const ETHER_TYPE: u32 = 12;
const IPV4: u32 = 0x0800;
const HEADER_WORDS: u32 = 14;
const FRAGMENT: u32 = 20;
const FRAGMENT_OFFSET: u32 = 0x1fff;
const PROTOCOL: u32 = 23;
const TCP: u32 = 6;
const SOURCE: u32 = 26;
const DESTINATION: u32 = 30;
/// Behind a header whose length is in register X.
const SOURCE_PORT: u32 = 14;
const DESTINATION_PORT: u32 = 16;

/// The program that takes every frame but those of TCP to and from `address`, for the kernel's machine (bpf(4) of the BSDs,
/// Documentation/networking/filter.rst).
fn all_but(address: SocketAddrV4) -> [libc::sock_filter; 17] {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF_BEHIND: u16 = 0x48;
    const LOAD_HEADER_LENGTH: u16 = 0xb1;
    const IF_EQUAL: u16 = 0x15;
    const IF_ANY: u16 = 0x45;
    const RETURN: u16 = 0x06;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let (ip, port) = (u32::from(*address.ip()), u32::from(address.port()));
    // Jumps count the steps that are left out; the last two are what they lead to.
    [
        step(LOAD_HALF, ETHER_TYPE, 0, 0),
        step(IF_EQUAL, IPV4, 0, 13),
        step(LOAD_BYTE, PROTOCOL, 0, 0),
        step(IF_EQUAL, TCP, 0, 11),
        step(LOAD_HALF, FRAGMENT, 0, 0),
        step(IF_ANY, FRAGMENT_OFFSET, 9, 0),
        step(LOAD_HEADER_LENGTH, HEADER_WORDS, 0, 0),
        step(LOAD_WORD, SOURCE, 0, 0),
        step(IF_EQUAL, ip, 0, 2),
        step(LOAD_HALF_BEHIND, SOURCE_PORT, 0, 0),
        step(IF_EQUAL, port, 5, 0),
        step(LOAD_WORD, DESTINATION, 0, 0),
        step(IF_EQUAL, ip, 0, 2),
        step(LOAD_HALF_BEHIND, DESTINATION_PORT, 0, 0),
        step(IF_EQUAL, port, 1, 0),
        step(RETURN, u32::MAX, 0, 0),
        step(RETURN, 0, 0, 0),
    ]
}

fn leave_out(socket: &OwnedFd, address: SocketAddrV4) -> io::Result<()> {
    let mut steps = all_but(address);
    let len = libc::c_ushort::try_from(steps.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
    let size = libc::socklen_t::try_from(mem::size_of_val(&program)).map_err(io::Error::other)?;
    // SAFETY: the program is live and of the given size, and the kernel only reads it and the `len` steps that it points to, which
    // live through the call; the descriptor is borrowed.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set<T>(socket: &OwnedFd, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(mem::size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the value is live and of the given size, and the kernel only reads it; the descriptor is borrowed.
    let rc = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, name, ptr::from_ref(value).cast(), len) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The frames of a socket of [`open`].
#[derive(Debug)]
pub struct Ring {
    socket: OwnedFd,
    memory: NonNull<u8>,
    /// The block that comes next.
    next: usize,
}

/// Which way a frame went, as its interface sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Since 1970.
    pub time: Duration,
    pub way: Way,
    /// With its Ethernet header.
    pub bytes: &'a [u8],
    /// How long it was.
    pub length: u32,
}

/// What has gone by so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// With those that were dropped.
    pub frames: u64,
    /// For want of room in the ring.
    pub dropped: u64,
}

impl Ring {
    /// Maps the ring of a socket of [`open`], whoever opened it. One process at a time can read it.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn map(socket: OwnedFd) -> io::Result<Ring> {
        let (len, access) = (BLOCK * BLOCKS, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping at an address that the kernel chooses, of the size that the ring was made with.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, socket.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(at.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Ring { socket, memory, next: 0 })
    }

    /// When the last frame of the next block went by, since 1970, if the kernel has handed it over.
    pub fn next_ended(&mut self) -> Option<Duration> {
        let block = mem::ManuallyDrop::new(self.block()?);
        Some(block.ended())
    }

    /// The next block, if the kernel has handed it over.
    pub fn block(&mut self) -> Option<Block<'_>> {
        if self.is_ready(0) { Some(Block { ring: self }) } else { None }
    }

    /// Whether the block that comes `ahead` of the next one is ours: then all before it are.
    #[must_use]
    pub fn is_ready(&self, ahead: usize) -> bool {
        self.word((self.next + ahead) % BLOCKS, STATUS).load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// Whether there is no frame that was not handed over, nor one in a block that was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // The number is the kernel's to change while the block is: it is zero until there is a frame.
        !self.is_ready(0) && self.word(self.next, COUNT).load(Ordering::Relaxed) == 0
    }

    /// What has gone by since this was asked last.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn counters(&self) -> io::Result<Counters> {
        // `tpacket_stats_v3`: frames, dropped ones, and how often the ring was full.
        let mut counters = [0_u32; 3];
        let mut len = libc::socklen_t::try_from(mem::size_of_val(&counters)).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `len` bytes to `counters`, both of which live through the call.
        let rc = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_STATISTICS,
                counters.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let [frames, dropped, _] = counters.map(u64::from);
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(Counters { frames, dropped }) }
    }

    /// A number that the kernel may change.
    fn word(&self, block: usize, at: usize) -> &AtomicU32 {
        debug_assert!(block < BLOCKS && at + mem::size_of::<u32>() <= BLOCK);
        // SAFETY: both are within bounds, so the address is within the mapping, which lives as long as `self`.
        let at = unsafe { self.memory.add(block * BLOCK + at) };
        // SAFETY: blocks begin at pages and `at` is a multiple of four, so it is aligned. All of ours goes through this atomic,
        // or through slices while the block is ours, when the kernel leaves it alone.
        unsafe { AtomicU32::from_ptr(at.as_ptr().cast()) }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and of this size, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), BLOCK * BLOCKS) };
    }
}

/// A block of frames that is ours; dropping it gives it back.
#[derive(Debug)]
pub struct Block<'a> {
    ring: &'a mut Ring,
}

impl Block<'_> {
    /// Its frames, in the order in which they went by.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        let block = self.bytes();
        let mut at = word(block, FIRST).and_then(|first| usize::try_from(first).ok()).unwrap_or(BLOCK);
        let mut left = word(block, COUNT).unwrap_or(0);
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let header = block.get(at..)?;
            at += usize::try_from(word(header, NEXT)?).ok()?;
            let mac = usize::from(u16::from_ne_bytes(*header.get(MAC..)?.first_chunk()?));
            let captured = usize::try_from(word(header, CAPTURED)?).ok()?;
            let seconds = Duration::from_secs(word(header, SECONDS)?.into());
            Some(Frame {
                time: seconds + Duration::from_nanos(word(header, NANOSECONDS)?.into()),
                way: if *header.get(PACKET_TYPE)? == libc::PACKET_OUTGOING { Way::Out } else { Way::In },
                bytes: header.get(mac..)?.get(..captured)?,
                length: word(header, LENGTH)?,
            })
        })
    }

    fn ended(&self) -> Duration {
        let number = |at| u64::from(word(self.bytes(), at).unwrap_or(0));
        Duration::from_secs(number(LAST_SECONDS)) + Duration::from_nanos(number(LAST_NANOSECONDS))
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the block is within the mapping and ours until `self` is dropped, so that nobody writes to it.
        let start = unsafe { self.ring.memory.add(self.ring.next * BLOCK) };
        // SAFETY: as above; the slice cannot outlive `self`, and its bytes are initialised: the kernel zeroes what it maps.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), BLOCK) }
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        self.ring.word(self.ring.next, STATUS).store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.ring.next = (self.ring.next + 1) % BLOCKS;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::ns::{self, Namespaces};

    /// The index of the loopback device in every namespace.
    const LOOPBACK: u32 = 1;

    /// In a network namespace of its own, with a loopback that is up.
    fn alone(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(move || {
            let namespaces = match rustix::process::getuid().is_root() {
                true => Namespaces::NET,
                false => Namespaces::USER | Namespaces::NET,
            };
            // A user namespace is for processes with one thread alone; other tests look at rings as plain users.
            if ns::unshare(namespaces).is_ok() {
                let mut connection = crate::netlink::Connection::open().unwrap();
                connection.execute(&[crate::netlink::Request::SetUp { index: LOOPBACK }]).unwrap();
                test();
            }
        })
        .join()
        .unwrap();
    }

    /// Reads frames until there are as many, and what they end with.
    fn read(ring: &mut Ring, count: usize) -> Vec<(Way, u32, Vec<u8>)> {
        let mut frames = Vec::new();
        while frames.len() < count {
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(ring.as_fd(), rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            while let Some(block) = ring.block() {
                frames.extend(block.frames().map(|frame| (frame.way, frame.length, frame.bytes.to_vec())));
            }
        }
        frames
    }

    #[test]
    fn hands_over_every_frame_both_ways_and_in_order() {
        alone(|| {
            let mut ring = Ring::map(open(LOOPBACK, None).unwrap()).unwrap();
            assert!(ring.is_empty() && ring.block().is_none());
            let (from, to) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
            let before = std::time::UNIX_EPOCH.elapsed().unwrap();
            // More than a block, of all sizes, so that blocks end in the midst of a row.
            let sizes: Vec<usize> = (0..100).map(|n| n * 397 % 60_000 + 1).collect();
            for (n, size) in (0_u8..).zip(&sizes) {
                from.send_to(&vec![n; *size], to.local_addr().unwrap()).unwrap();
            }
            assert!(!ring.is_empty());
            let frames = read(&mut ring, 200);
            assert_eq!(frames.len(), 200);
            for way in [Way::Out, Way::In] {
                let one_way = frames.iter().filter(|(of, ..)| *of == way);
                for ((n, size), (_, length, bytes)) in (0_u8..).zip(&sizes).zip(one_way) {
                    let headers = 14 + 20 + 8;
                    assert_eq!(usize::try_from(*length).unwrap(), headers + size);
                    assert_eq!(bytes[headers..], vec![n; *size]);
                }
            }
            assert_eq!(ring.counters().unwrap(), Counters { frames: 200, dropped: 0 });
            assert_eq!(ring.counters().unwrap(), Counters::default());
            assert!(ring.is_empty());
            from.send_to(b"x", to.local_addr().unwrap()).unwrap();
            while ring.next_ended().is_none() {
                std::thread::yield_now();
            }
            assert!(ring.next_ended().unwrap() >= before);
        });
    }

    #[test]
    fn counts_what_it_had_no_room_for() {
        alone(|| {
            let mut ring = Ring::map(open(LOOPBACK, None).unwrap()).unwrap();
            let (from, to) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
            for _ in 0..600 {
                from.send_to(&[0; 60_000], to.local_addr().unwrap()).unwrap();
            }
            let counters = ring.counters().unwrap();
            assert!(counters.frames == 1200 && counters.dropped > 0, "{counters:?}");
            let kept = usize::try_from(counters.frames - counters.dropped).unwrap();
            assert_eq!(read(&mut ring, kept).len(), kept);
        });
    }

    #[test]
    fn one_server_can_be_left_out() {
        alone(|| {
            use std::io::{Read, Write};
            use std::net::{SocketAddr, TcpListener, TcpStream};
            let [left_out, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
            let SocketAddr::V4(address) = left_out.local_addr().unwrap() else { unreachable!() };
            let mut ring = Ring::map(open(LOOPBACK, Some(address)).unwrap()).unwrap();
            for listener in [&left_out, &other] {
                let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (mut server, _) = listener.accept().unwrap();
                client.write_all(b"question").unwrap();
                server.read_exact(&mut [0; 8]).unwrap();
            }
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            udp.send_to(b"a datagram to the same port", address).unwrap();
            let has = |frames: &[Vec<u8>], wanted: &[u8]| {
                frames.iter().any(|frame| frame.windows(wanted.len()).any(|part| part == wanted))
            };
            let mut frames: Vec<Vec<u8>> = Vec::new();
            // It was sent last.
            while !has(&frames, b"a datagram to the same port") {
                frames.extend(read(&mut ring, 1).into_iter().map(|(.., bytes)| bytes));
            }
            assert!(has(&frames, b"question"));
            let port = address.port().to_be_bytes();
            let left = frames.iter().filter(|frame| frame[23] == 6 && (frame[34..36] == port || frame[36..38] == port));
            assert_eq!(left.count(), 0);
        });
    }
}
