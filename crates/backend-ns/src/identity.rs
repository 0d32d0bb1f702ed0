//! Who the processes of a sandbox are on the host.

use std::sync::atomic::{AtomicU32, Ordering};

use cofferdam_sys::ns::IdMap;

/// The first of the ids that sandboxes of root run under. User databases and subordinate ids end far below, and ids of
/// this size still fit `net.ipv4.ping_group_range`, whose end is 2^31 - 1.
const FIRST: u32 = 0x7000_0000;

/// Sandboxes of one process that have ids of their own; the next one shares with the first.
const PER_PROCESS: u32 = 32;

/// The user on the host that a sandbox and its gateway run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The user who called: an ordinary one, with its group.
    Own { uid: u32, gid: u32 },
    /// An id that nobody else has, in place of root: files and processes of the host are a stranger's to the sandbox,
    /// and those of other sandboxes too.
    Unused(u32),
    /// Root where no other id is mapped (inside a user namespace of somebody else's).
    Root,
}

/// Numbers the sandboxes of this process.
static COUNT: AtomicU32 = AtomicU32::new(0);

impl Identity {
    /// The identity for the next sandbox of this process.
    pub(crate) fn choose() -> Self {
        let Self::Root = Self::caller() else { return Self::caller() };
        let count = COUNT.fetch_add(1, Ordering::Relaxed) % PER_PROCESS;
        // Pids end at 2^22 (PID_MAX_LIMIT), so this stays below 0x7800_0000.
        let id = FIRST + (std::process::id() % (1 << 22)) * PER_PROCESS + count;
        let mapped = |path: &str| std::fs::read_to_string(path).is_ok_and(|map| holds(&map, id));
        if mapped("/proc/self/uid_map") && mapped("/proc/self/gid_map") { Self::Unused(id) } else { Self::Root }
    }

    /// The identity of the calling process itself.
    pub(crate) fn caller() -> Self {
        match (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()) {
            (0, _) => Self::Root,
            (uid, gid) => Self::Own { uid, gid },
        }
    }

    /// The user and group as the calling process names them.
    pub(crate) fn ids(self) -> (u32, u32) {
        match self {
            Self::Own { uid, gid } => (uid, gid),
            Self::Unused(id) => (id, id),
            Self::Root => (0, 0),
        }
    }

    /// The maps of the builder's namespace: user and group 0 there are this identity.
    pub(crate) fn maps(self) -> (IdMap, IdMap) {
        let (uid, gid) = self.ids();
        (IdMap::single(0, uid), IdMap::single(0, gid))
    }
}

/// Whether an id map, as `/proc/self/uid_map` shows it, has `id` inside.
fn holds(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) => {
                (first..first.saturating_add(count)).contains(&id.into())
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_which_ids_a_map_holds() {
        let full = "         0          0 4294967295\n";
        let container = "0 100000 65536\n65536 1000 1\n";
        assert!(holds(full, FIRST));
        assert!(!holds(container, FIRST));
        assert!(holds(container, 65_536));
        assert!(!holds(container, 65_537));
        assert!(!holds("", 0));
    }

    #[test]
    fn the_largest_id_fits_the_range_of_ping_sockets() {
        let largest = u64::from(FIRST) + ((1 << 22) - 1) * u64::from(PER_PROCESS) + u64::from(PER_PROCESS - 1);
        assert!(largest < 1 << 31);
    }
}
