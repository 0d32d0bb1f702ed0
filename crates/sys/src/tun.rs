//! The TUN device: IP packets as bytes (Documentation/networking/tuntap.rst), each behind a `virtio_net_hdr`. And TAP: Ethernet
//! frames.

use std::fs::OpenOptions;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// The device that TUN interfaces are made from.
pub const DEVICE: &str = "/dev/net/tun";

/// Length of the `virtio_net_hdr` before each packet: the one without `num_buffers`. Its numbers are little endian.
pub const HEADER_LEN: usize = 10;

/// The largest MTU of a TUN interface, which is the largest IPv4 packet.
pub const MAX_MTU: u32 = 65_535;

// linux/if_tun.h: `_IOW('T', nr, int)`, as all architectures but MIPS, PowerPC and SPARC encode it.
const INT_OF_TUN: libc::Ioctl = 0x4004_5400;
const TUNSETIFF: libc::Ioctl = INT_OF_TUN | 202;
const TUNSETOFFLOAD: libc::Ioctl = INT_OF_TUN | 208;
const TUNSETVNETHDRSZ: libc::Ioctl = INT_OF_TUN | 216;
const TUNSETIFINDEX: libc::Ioctl = INT_OF_TUN | 218;
const TUNSETVNETLE: libc::Ioctl = INT_OF_TUN | 220;
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

/// What the kernel may leave to the reader of a TUN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloads {
    /// Checksums.
    Checksum,
    /// Checksums, and cutting rows of UDP datagrams (Linux 6.2).
    ChecksumAndUdpSegmentation,
}

/// Why a TUN interface could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed on {DEVICE}")]
pub struct TunError {
    /// The system call or ioctl.
    pub call: &'static str,
    pub source: io::Error,
}

/// Opens [`DEVICE`], non-blocking and close-on-exec. An interface made with the descriptor appears in the network
/// namespace that the calling thread is in **now**.
///
/// # Errors
/// `ENOENT` without the device, `EACCES` when its mode is not the usual 0666, `ENODEV` without the driver.
pub fn open() -> Result<OwnedFd, TunError> {
    let opened =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(DEVICE);
    opened.map(OwnedFd::from).map_err(|source| TunError { call: "open", source })
}

/// Makes the TUN interface `name` with interface index `index`: one queue, no packet information, a header of
/// [`HEADER_LEN`] bytes. It is down, and gone when the last copy of the descriptor is closed.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over the namespace that the device was opened in, `EBUSY` for a taken name or index,
/// `EINVAL` where the kernel is too old (`TUNSETVNETLE`: 4.1).
pub fn create(device: impl AsFd, name: &str, index: u32) -> Result<Offloads, TunError> {
    let device = device.as_fd();
    attach(device, name, index, libc::IFF_TUN)?;
    set_int(
        device,
        TUNSETVNETHDRSZ,
        "TUNSETVNETHDRSZ",
        HEADER_LEN.try_into().map_err(|_| invalid("TUNSETVNETHDRSZ"))?,
    )?;
    set_int(device, TUNSETVNETLE, "TUNSETVNETLE", 1)?;
    enable_offloads(device)
}

/// Makes the TAP interface `name` with interface index `index`: one queue, no packet information, a `virtio_net_hdr` before each
/// frame. The length of that and the offloads are for whoever reads and writes the frames to set (QEMU does, once the guest's
/// driver has said what it can take); neither needs a privilege. It is down, and gone when the last copy of the descriptor is
/// closed.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over the namespace that the device was opened in, `EBUSY` for a taken name or index.
pub fn create_tap(device: impl AsFd, name: &str, index: u32) -> Result<(), TunError> {
    attach(device.as_fd(), name, index, libc::IFF_TAP)
}

fn attach(device: BorrowedFd<'_>, name: &str, index: u32, kind: libc::c_int) -> Result<(), TunError> {
    set_int(device, TUNSETIFINDEX, "TUNSETIFINDEX", index.cast_signed())?;
    // SAFETY: ifreq holds integers, a name and pointers that stay unused here; all zeroes is valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays NUL.
    let room = request.ifr_name.len().saturating_sub(1);
    if name.len() > room {
        return Err(TunError { call: "TUNSETIFF", source: io::ErrorKind::InvalidInput.into() });
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags =
        (kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR).try_into().map_err(|_| invalid("TUNSETIFF"))?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which is alive for the call.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw mut request) };
    check(rc, "TUNSETIFF")
}

/// Lets the kernel leave as much as possible to the reader, and says what that is. Can be asked again at any time.
///
/// # Errors
/// `EBADFD` on a descriptor without an interface.
pub fn enable_offloads(device: impl AsFd) -> Result<Offloads, TunError> {
    let fd = device.as_fd().as_raw_fd();
    // SAFETY: TUNSETOFFLOAD takes a bit set by value; no memory of ours is involved.
    let rc = unsafe { libc::ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6) };
    if rc == 0 {
        return Ok(Offloads::ChecksumAndUdpSegmentation);
    }
    // SAFETY: as above.
    let rc = unsafe { libc::ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM) };
    check(rc, "TUNSETOFFLOAD")?;
    Ok(Offloads::Checksum)
}

fn set_int(device: impl AsFd, request: libc::Ioctl, call: &'static str, value: libc::c_int) -> Result<(), TunError> {
    // SAFETY: the requests passed here read one c_int, which is alive for the call.
    let rc = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), request, &raw const value) };
    check(rc, call)
}

fn check(rc: libc::c_int, call: &'static str) -> Result<(), TunError> {
    if rc == 0 { Ok(()) } else { Err(TunError { call, source: io::Error::last_os_error() }) }
}

fn invalid(call: &'static str) -> TunError {
    TunError { call, source: io::ErrorKind::InvalidInput.into() }
}
