//! What the supervisor tells the gateway about the machine's network while a sandbox runs.
//!
//! The gateway cannot look for itself: it is sealed. The supervisor follows the machine's addresses and routes, and sends the
//! whole of what counts, never a difference, over a channel that was made before the gateway sealed itself. Each message
//! takes the place of all before it, so losing none but the last would do.
//!
//! One message, numbers in network byte order, is read strictly: a version, a length or a bit that should not be there makes
//! the whole of it unreadable. A gateway that cannot read what it is told does not know any more which addresses are the
//! machine's, and ends; there is no network from then on.
//!
//! | Bytes | What |
//! |---|---|
//! | 1 | version of this format, 1 |
//! | 2 | number of addresses |
//! | 5 or 17 each | 4 or 6, the address |
//! | 2 | number of on-link networks |
//! | 6 or 18 each | 4 or 6, the prefix length, the network's address |
//!
//! Where a sandbox uses the machine's resolvers, another message says which these are, read as strictly:
//!
//! | Bytes | What |
//! |---|---|
//! | 1 | [`RESOLVERS`] |
//! | 2 | number of resolvers, in their order |
//! | 11 or 23 each | 4 or 6, the address, 4 for the interface of a link-local one, 2 for the port |
//!
//! Limits: a message of [`LONGEST`] bytes. A machine with more than that is refused when the message is made.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use cofferdam_model::HostNetwork;
use cofferdam_sys::netlink::HostSnapshot;
use ipnet::IpNet;
use rustix::io::Errno;
use rustix::net::RecvFlags;

const VERSION: u8 = 1;

/// What a message about resolvers begins with; no version of the other one gets as far.
const RESOLVERS: u8 = b'R';
/// The C library asks three (`MAXNS`); more are listed by some services.
const MAX_RESOLVERS: usize = 16;

/// Some 3,600 IPv6 networks: a node of a container cluster has a few hundred. The classifier that is made of so many takes
/// some tens of milliseconds, in which no packet moves; and a socket takes the message whole by default (`wmem_default`).
const LONGEST: usize = 64 * 1024;

/// Messages that are read in one turn; only the last one counts.
const TURN: usize = 16;

/// The machine has more addresses and networks than a message holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this machine has more addresses and on-link networks than a gateway keeps track of")]
pub struct TooMany;

/// What arrived on the gateway's end of the channel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The last of what was sent of each kind.
    Said {
        network: Option<HostNetwork>,
        resolvers: Option<Vec<SocketAddr>>,
    },
    /// The supervisor's end is closed.
    Closed,
    Unreadable,
}

/// The message that tells a gateway of `snapshot`.
///
/// # Errors
/// When there is too much in it.
pub fn machine_message(snapshot: &HostSnapshot) -> Result<Vec<u8>, TooMany> {
    let mut message = vec![VERSION];
    push_count(&mut message, snapshot.addresses.len())?;
    for address in &snapshot.addresses {
        push_address(&mut message, *address, None);
    }
    push_count(&mut message, snapshot.on_link.len())?;
    for net in &snapshot.on_link {
        push_address(&mut message, net.network(), Some(net.prefix_len()));
    }
    if message.len() <= LONGEST { Ok(message) } else { Err(TooMany) }
}

/// The message that tells a gateway of the machine's resolvers, as many as it takes.
#[must_use]
pub fn resolvers_message(servers: &[SocketAddr]) -> Vec<u8> {
    let servers = servers.get(..MAX_RESOLVERS).unwrap_or(servers);
    let mut message = vec![RESOLVERS];
    message.extend(u16::try_from(servers.len()).unwrap_or(0).to_be_bytes());
    for server in servers {
        push_address(&mut message, server.ip(), None);
        let interface = match server {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(server) => server.scope_id(),
        };
        message.extend(interface.to_be_bytes());
        message.extend(server.port().to_be_bytes());
    }
    message
}

fn push_count(message: &mut Vec<u8>, count: usize) -> Result<(), TooMany> {
    let count = u16::try_from(count).map_err(|_| TooMany)?;
    message.extend(count.to_be_bytes());
    Ok(())
}

fn push_address(message: &mut Vec<u8>, address: IpAddr, prefix: Option<u8>) {
    match address {
        IpAddr::V4(address) => {
            message.push(4);
            message.extend(prefix);
            message.extend(address.octets());
        }
        IpAddr::V6(address) => {
            message.push(6);
            message.extend(prefix);
            message.extend(address.octets());
        }
    }
}

/// Reads what has arrived.
pub(crate) fn receive(channel: &OwnedFd) -> News {
    let mut buffer = vec![0; LONGEST];
    let (mut network, mut resolvers) = (None, None);
    for _ in 0..TURN {
        match rustix::net::recv(channel, &mut buffer[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((_, 0)) => return News::Closed,
            // A message that was cut off says its full length, which is none of the buffer's.
            Ok((_, len)) => {
                let message = buffer.get(..len).unwrap_or_default();
                if message.first() == Some(&RESOLVERS) {
                    let Some(servers) = parse_resolvers(message) else { return News::Unreadable };
                    resolvers = Some(servers);
                } else {
                    let Some(news) = parse(message) else { return News::Unreadable };
                    network = Some(news);
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(_) => return News::Closed,
        }
    }
    News::Said { network, resolvers }
}

fn parse_resolvers(message: &[u8]) -> Option<Vec<SocketAddr>> {
    let mut rest = Rest(message);
    rest.byte()?;
    let count = usize::from(rest.count()?);
    let mut servers = Vec::new();
    for _ in 0..Some(count).filter(|count| *count <= MAX_RESOLVERS)? {
        let family = rest.byte()?;
        let address = rest.address(family)?;
        let interface = u32::from_be_bytes(rest.take()?);
        let port = rest.count()?;
        servers.push(match address {
            IpAddr::V4(address) => SocketAddr::from((address, port)),
            IpAddr::V6(address) => SocketAddrV6::new(address, port, 0, interface).into(),
        });
    }
    rest.0.is_empty().then_some(servers)
}

fn parse(message: &[u8]) -> Option<HostNetwork> {
    let mut rest = Rest(message);
    if rest.byte()? != VERSION {
        return None;
    }
    let mut network = HostNetwork::default();
    for _ in 0..rest.count()? {
        let family = rest.byte()?;
        network.addresses.push(rest.address(family)?);
    }
    for _ in 0..rest.count()? {
        let (family, prefix) = (rest.byte()?, rest.byte()?);
        let net = IpNet::new(rest.address(family)?, prefix).ok()?;
        // An address within a network is not how a network is written.
        network.on_link.push(Some(net).filter(|net| net.addr() == net.network())?);
    }
    rest.0.is_empty().then_some(network)
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const LEN: usize>(&mut self) -> Option<[u8; LEN]> {
        let (bytes, rest) = self.0.split_first_chunk::<LEN>()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn count(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn address(&mut self, family: u8) -> Option<IpAddr> {
        match family {
            4 => self.take::<4>().map(IpAddr::from),
            6 => self.take::<16>().map(IpAddr::from),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::SendFlags;

    use super::*;

    fn snapshot(addresses: &[&str], on_link: &[&str]) -> HostSnapshot {
        HostSnapshot {
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            on_link: on_link.iter().map(|text| text.parse().unwrap()).collect(),
            ..HostSnapshot::default()
        }
    }

    #[test]
    fn a_message_says_what_the_machine_has() {
        for snapshot in [
            HostSnapshot::default(),
            snapshot(&["192.0.2.1", "2001:db8::1"], &["192.0.2.0/24", "2001:db8::/64", "0.0.0.0/0", "2001:db8::1/128"]),
        ] {
            let network = parse(&machine_message(&snapshot).unwrap()).unwrap();
            assert_eq!((network.addresses, network.on_link), (snapshot.addresses, snapshot.on_link));
        }
    }

    #[test]
    fn no_part_of_a_message_is_one_and_nothing_may_follow_it() {
        let message = machine_message(&snapshot(&["192.0.2.1", "2001:db8::1"], &["192.0.2.0/24", "2001:db8::/64"]));
        let message = message.unwrap();
        for len in 0..message.len() {
            assert_eq!(parse(&message[..len]), None, "{len} bytes");
        }
        assert_eq!(parse(&[&message[..], &[0]].concat()), None);
    }

    #[test]
    fn what_is_not_exactly_right_is_unreadable() {
        for message in [
            &[0, 0, 0, 0, 0][..],
            &[2, 0, 0, 0, 0],
            &[1, 0, 1, 5, 1, 2, 3, 4, 0, 0],
            &[1, 0, 0, 0, 1, 4, 33, 10, 0, 0, 0],
            &[1, 0, 0, 0, 1, 4, 8, 10, 0, 0, 1],
            &[1, 255, 255, 0, 0],
        ] {
            assert_eq!(parse(message), None, "{message:?}");
        }
        assert!(parse(&[1, 0, 0, 0, 0]).is_some());
    }

    #[test]
    fn a_message_about_resolvers_is_read_whole_or_not_at_all() {
        let servers = ["192.0.2.53:53", "[2001:db8::53]:54"].map(|text| text.parse().unwrap());
        let message = resolvers_message(&servers);
        assert_eq!(parse_resolvers(&message), Some(servers.to_vec()));
        for len in 0..message.len() {
            assert_eq!(parse_resolvers(&message[..len]), None, "{len} bytes");
        }
        assert_eq!(parse_resolvers(&[&message[..], &[0]].concat()), None);
        assert_eq!(parse_resolvers(&[RESOLVERS, 255, 255]), None);
        assert_eq!(parse_resolvers(&resolvers_message(&[servers[0]; 99])).unwrap().len(), MAX_RESOLVERS);
    }

    #[test]
    fn a_machine_with_too_much_is_refused() {
        let many: Vec<String> = (0..4000).map(|n| format!("2001:db8::{n:x}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(machine_message(&snapshot(&many[..3600], &[])).is_ok());
        assert_eq!(machine_message(&snapshot(&many, &[])), Err(TooMany));
    }

    #[test]
    fn the_last_message_counts_and_none_is_skipped_that_cannot_be_read() {
        let (ours, theirs) = cofferdam_sys::fdpass::pair().unwrap();
        let send = |message: &[u8]| rustix::net::send(&theirs, message, SendFlags::DONTWAIT).unwrap();
        assert_eq!(receive(&ours), News::Said { network: None, resolvers: None });
        let message = |address: &str| machine_message(&snapshot(&[address], &[])).unwrap();
        send(&message("192.0.2.1"));
        send(&message("2001:db8::1"));
        let addresses = vec!["2001:db8::1".parse().unwrap()];
        let servers: Vec<SocketAddr> =
            ["192.0.2.53:53", "[2001:db8::53]:54", "[fe80::53%7]:53"].map(|text| text.parse().unwrap()).to_vec();
        send(&resolvers_message(&servers[..1]));
        send(&resolvers_message(&servers));
        let network = Some(HostNetwork { addresses, ..HostNetwork::default() });
        assert_eq!(receive(&ours), News::Said { network, resolvers: Some(servers) });
        send(&[9; LONGEST + 1]);
        send(&message("192.0.2.1"));
        assert_eq!(receive(&ours), News::Unreadable);
        drop(theirs);
        receive(&ours);
        assert_eq!(receive(&ours), News::Closed);
    }
}
