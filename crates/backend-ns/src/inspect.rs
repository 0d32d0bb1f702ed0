//! Which process of a sandbox has a socket, as the supervisor sees it from outside.
//!
//! The sandbox's init hands over two descriptors before the program starts: the root of a proc file system of its pid namespace,
//! which is attached nowhere, so that nothing inside can cover a part of it; and a netlink socket of its network namespace. From then on
//! a socket is looked up in two steps: its addresses lead to its inode ([`SocketFinder`]), and the inode to a process that has it in its
//! table of descriptors. Processes that had the socket of an earlier question are asked first, then the youngest: a program that
//! was started to fetch something is younger than who waits for it.
//!
//! Everything that is read is the guest's to choose: how many processes and descriptors there are, when they vanish, what they are
//! called. So the work of one look-up is bounded: [`MAX_PROCESSES`] and [`MAX_DESCRIPTORS`] are looked at, and beyond that nobody is
//! found. No file of these makes a reader wait, but for the command line: it is in the memory of the process, whose lock the
//! process can hold. A thread of its own reads that, and is waited for [`PATIENCE`] at most; while it is held up nobody waits for it.
//!
//! What the kernel asks of the reader of a descriptor table (`PTRACE_MODE_READ_FSCREDS`, ptrace(2)) the supervisor has: it is root, or
//! the owner of the user namespace around the sandbox's, with every capability over it. So processes that are not dumpable are seen as
//! well. `hidepid` is a matter of the mount, and Yama one of attaching.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use cofferdam_model::Process;
use cofferdam_sys::mount::{self, Attributes};
use cofferdam_sys::sock_diag::SocketFinder;
pub use cofferdam_sys::sock_diag::Transport;
use rustix::fs::{Mode, OFlags, RawDir, ResolveFlags, SeekFrom};
use rustix::io::Errno;

/// Processes that one look-up may list. Sandboxes have a few; a build has hundreds.
const MAX_PROCESSES: usize = 1024;
/// Processes that are listed whole; of more, as many of the youngest come first. The kernel makes an entry of its own for each name
/// that it lists, some microseconds each, and who is refused is gone in a thousand.
const FEW: usize = 16;
/// Room for the names of so many processes.
const FEW_NAMES: usize = 512;
/// Descriptors that one look-up may read, of all processes together: 2 to 6 ms, where most take less than a tenth of one.
const MAX_DESCRIPTORS: usize = 2048;
/// Processes that are remembered, each with one descriptor of ours.
const REMEMBERED: usize = 32;
/// How much of a name is kept. The kernel has 15 bytes for `comm`; a path to a program is seldom longer.
const LONGEST_NAME: usize = 256;
/// How long a command line may take to be read. It takes some 20 µs where nobody holds it up.
const PATIENCE: Duration = Duration::from_millis(2);
/// Numbers of processes are below 2^22 (`PID_MAX_LIMIT`).
const PID_BITS: u32 = 22;
/// The place of process 0 in a proc directory (`TGID_OFFSET`).
const FIRST_PROCESS: u64 = 258;
/// Sockets for pings of which a look-up asks whose they are. `ping` has one.
const MAX_PINGS: usize = 8;
/// What is read of a table of sockets: a hundred lines. With more there are more than [`MAX_PINGS`] in any case, or sockets of
/// so many other protocols that nobody should wait for us to read them.
const LONGEST_TABLE: usize = 16 * 1024;
/// More than the status of a process has, which is some 1,500 bytes.
const LONGEST_STATUS: usize = 8 * 1024;
// linux/in.h and linux/in6.h; a socket of the last can send anything.
const IPPROTO_ICMP: u16 = 1;
const IPPROTO_ICMPV6: u16 = 58;
const IPPROTO_RAW: u16 = 255;
/// Room for the names of some hundred descriptors at once.
const NAMES: usize = 4096;

/// Finds the processes of one sandbox by their sockets.
#[derive(Debug)]
pub struct Inspector {
    proc: OwnedFd,
    finder: SocketFinder,
    /// Those that were found last, the last of them first.
    known: Vec<Known>,
    /// The highest number of a process when more than a few were there, or 0.
    highest: u32,
    command_lines: CommandLines,
}

/// A process that was found. Its number may be another's by now, its directory not.
#[derive(Debug)]
struct Known {
    directory: OwnedFd,
    process: Process,
}

/// What init hands over: the proc file system and the netlink socket.
///
/// # Errors
/// When the kernel gives no such thing.
pub(crate) fn eyes() -> io::Result<[OwnedFd; 2]> {
    Ok([mount::new_filesystem("proc", &[], Attributes::default())?, SocketFinder::open()?])
}

impl Inspector {
    /// `None` when it is not what [`eyes`] gives.
    pub(crate) fn new(eyes: Vec<OwnedFd>) -> Option<Inspector> {
        let [proc, socket] = eyes.try_into().ok()?;
        let finder = SocketFinder::new(socket);
        Some(Inspector { proc, finder, known: Vec::new(), highest: 0, command_lines: CommandLines::default() })
    }

    /// A process that has the socket between `local`, in the sandbox, and `remote` open; of several the one that was found before, or the
    /// youngest. `None` when nobody has, or nobody was found within the bounds.
    pub fn find(&mut self, transport: Transport, local: SocketAddr, remote: SocketAddr) -> Option<Process> {
        let inode = self.finder.find(transport, local, remote).ok()??;
        let mut search = Search { link: format!("socket:[{inode}]").into_bytes(), left: MAX_DESCRIPTORS };
        let found = self.find_known(&mut search).or_else(|| self.find_new(&mut search))?;
        let process = found.process.clone();
        self.remember(found);
        Some(process)
    }

    /// The process that pings `peer`, where only one can: a ping names no socket, so that all that are for pings of this family have to be
    /// of one process. `None` when several have such, or more than `MAX_PINGS` are there.
    pub fn find_who_pings(&mut self, peer: IpAddr) -> Option<Process> {
        let (echo, raw, protocols) = match peer.to_canonical() {
            IpAddr::V4(_) => ("icmp", "raw", [IPPROTO_ICMP, IPPROTO_RAW]),
            IpAddr::V6(_) => ("icmp6", "raw6", [IPPROTO_ICMPV6, IPPROTO_RAW]),
        };
        let mut inodes = sockets_in(&self.read_net(echo)?, |_| true);
        inodes.extend(sockets_in(&self.read_net(raw)?, |port| protocols.contains(&port)));
        if inodes.len() > MAX_PINGS {
            return None;
        }
        let mut left = MAX_DESCRIPTORS;
        let mut who: Option<Process> = None;
        for inode in inodes {
            let mut search = Search { link: format!("socket:[{inode}]").into_bytes(), left };
            let found = self.find_known(&mut search).or_else(|| self.find_new(&mut search))?;
            left = search.left;
            let process = found.process.clone();
            self.remember(found);
            if who.as_ref().is_some_and(|who| who.pid != process.pid) {
                return None;
            }
            who = Some(process);
        }
        who
    }

    /// The process that has this number outside, where this program runs.
    pub fn find_by_number(&mut self, outside: u32) -> Option<Process> {
        let own = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let seen = open(&own, &outside.to_string(), OFlags::PATH | OFlags::DIRECTORY).ok()?;
        let born = start_time(&seen)?;
        // It has a number in each pid namespace from the reader's own inwards; that of the sandbox is among these.
        for pid in inner_numbers(&read(&seen, "status", LONGEST_STATUS).ok()?) {
            let Ok(directory) = open(&self.proc, &pid.to_string(), OFlags::PATH | OFlags::DIRECTORY) else { continue };
            if start_time(&directory).is_some_and(|time| time == born) {
                let comm = read_comm(&directory)?;
                let argv0 = self.command_lines.first_word(&directory);
                return Some(Process { pid, comm, argv0 });
            }
        }
        None
    }

    /// A table of sockets of the sandbox's network, where all of it is there.
    fn read_net(&self, table: &str) -> Option<Vec<u8>> {
        let text = read(&self.proc, &format!("1/net/{table}"), LONGEST_TABLE).ok()?;
        (text.len() < LONGEST_TABLE).then_some(text)
    }

    fn remember(&mut self, found: Known) {
        self.known.insert(0, found);
        self.known.truncate(REMEMBERED);
    }

    fn find_known(&mut self, search: &mut Search) -> Option<Known> {
        let mut index = 0;
        while let Some(known) = self.known.get(index) {
            match search.look_into(&known.directory) {
                Ok(true) => {
                    let mut known = self.known.remove(index);
                    // It may run another program by now.
                    let comm = read_comm(&known.directory)?;
                    if comm != known.process.comm || known.process.argv0.is_none() {
                        known.process.argv0 = self.command_lines.first_word(&known.directory);
                        known.process.comm = comm;
                    }
                    return Some(known);
                }
                Ok(false) => index += 1,
                Err(_ended) => drop(self.known.remove(index)),
            }
        }
        None
    }

    fn find_new(&mut self, search: &mut Search) -> Option<Known> {
        let directory = open(&self.proc, ".", OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
        let few = numbers_from(&directory, 2, FEW).ok()?;
        if few.len() < FEW {
            return self.find_among(search, few);
        }
        // Who waits for an answer is most likely the youngest, and gone in a moment: all are listed after that.
        self.highest = highest(&directory, self.highest).ok()?;
        let youngest = youngest(&directory, self.highest, FEW).ok();
        let found = youngest.and_then(|youngest| self.find_among(search, youngest));
        found.or_else(|| pids(&directory, self.highest).ok().and_then(|pids| self.find_among(search, pids)))
    }

    fn find_among(&mut self, search: &mut Search, mut pids: Vec<u32>) -> Option<Known> {
        pids.sort_unstable_by(|a, b| b.cmp(a));
        for pid in pids {
            if self.known.iter().any(|known| known.process.pid == pid) {
                continue;
            }
            let Ok(directory) = open(&self.proc, &pid.to_string(), OFlags::PATH | OFlags::DIRECTORY) else { continue };
            if search.look_into(&directory).is_ok_and(|found| found) {
                let comm = read_comm(&directory)?;
                let argv0 = self.command_lines.first_word(&directory);
                return Some(Known { directory, process: Process { pid, comm, argv0 } });
            }
        }
        None
    }
}

/// One look-up of an inode.
struct Search {
    /// What a descriptor of the socket links to.
    link: Vec<u8>,
    /// Descriptors that may still be read.
    left: usize,
}

impl Search {
    /// Whether the process of this directory has the socket open.
    fn look_into(&mut self, process: &OwnedFd) -> io::Result<bool> {
        let table = open(process, "fd", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut found = false;
        for_each_number(&table, |number| {
            if self.left == 0 {
                return false;
            }
            self.left -= 1;
            let mut buffer = [MaybeUninit::uninit(); 64];
            // One that is closed meanwhile is another's.
            if let Ok((link, _)) = rustix::fs::readlinkat_raw(&table, number.to_string(), &mut buffer[..]) {
                found = *link == *self.link;
            }
            !found
        })?;
        Ok(found)
    }
}

/// The processes of the sandbox but for its init: all of them, or where they are more than [`MAX_PROCESSES`], half as many of the
/// lowest numbers, and as many of the highest.
fn pids(proc: &OwnedFd, highest: u32) -> io::Result<Vec<u32>> {
    let mut pids = numbers_from(proc, 2, MAX_PROCESSES)?;
    if pids.len() == MAX_PROCESSES {
        pids.truncate(MAX_PROCESSES / 2);
        pids.extend(youngest(proc, highest, MAX_PROCESSES / 2)?);
        pids.sort_unstable();
        pids.dedup();
    }
    Ok(pids)
}

/// The highest number of a process, which was `before` a moment ago.
fn highest(proc: &OwnedFd, before: u32) -> io::Result<u32> {
    // Above what is known: twice as far each time, and then the bits below that.
    let mut known = if is_any_from(proc, before.max(1))? { before.max(1) } else { 0 };
    let mut bits = PID_BITS;
    if known > 0 {
        bits = 0;
        while bits < PID_BITS && is_any_from(proc, known + (1 << bits))? {
            bits += 1;
        }
    }
    for bit in (0..bits).rev() {
        if is_any_from(proc, known + (1 << bit))? {
            known += 1 << bit;
        }
    }
    Ok(known)
}

/// At most `most` processes of those with the highest numbers, which are the youngest until the numbers begin again.
fn youngest(proc: &OwnedFd, highest: u32, most: usize) -> io::Result<Vec<u32>> {
    // Numbers of those that have ended lie between, so the stretch grows while all of it fits.
    let mut found = Vec::new();
    let mut stretch = u32::try_from(most).unwrap_or(u32::MAX);
    while stretch < 1 << PID_BITS {
        let next = numbers_from(proc, highest.saturating_sub(stretch - 1).max(2), most)?;
        let reaches = next.last().is_some_and(|last| *last >= highest);
        if !reaches && !found.is_empty() {
            break;
        }
        let is_enough = next.len() > most / 2;
        found = next;
        if is_enough {
            break;
        }
        stretch = stretch.saturating_mul(2);
    }
    Ok(found)
}

/// The first processes whose number is `from` or higher, `most` of them. In proc a place in the directory is a number with an offset
/// (`proc_pid_readdir`), so that those before cost nothing; where that should not be so, they are left out all the same.
fn numbers_from(proc: &OwnedFd, from: u32, most: usize) -> io::Result<Vec<u32>> {
    rustix::fs::seek(proc, SeekFrom::Start(u64::from(from) + FIRST_PROCESS))?;
    let mut numbers = Vec::new();
    let mut looked_at = 0;
    let room = if most <= FEW { FEW_NAMES } else { NAMES };
    for_each_number_in(proc, room, |number| {
        looked_at += 1;
        numbers.extend(Some(number).filter(|number| *number >= from));
        numbers.len() < most && looked_at < MAX_PROCESSES
    })?;
    Ok(numbers)
}

/// Whether there is a process whose number is `from` or higher. A buffer for two names has the kernel look for no more.
fn is_any_from(proc: &OwnedFd, from: u32) -> io::Result<bool> {
    rustix::fs::seek(proc, SeekFrom::Start(u64::from(from) + FIRST_PROCESS))?;
    let mut buffer = [MaybeUninit::uninit(); 64];
    let mut entries = RawDir::new(proc, &mut buffer);
    let Some(entry) = entries.next() else { return Ok(false) };
    let number: Option<u32> = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok());
    Ok(number.is_some_and(|number| number >= from))
}

/// Calls `each` with the names in a directory that are numbers, until it says no.
fn for_each_number(directory: &OwnedFd, each: impl FnMut(u32) -> bool) -> io::Result<()> {
    for_each_number_in(directory, NAMES, each)
}

/// The same, with room for names of so many bytes at once.
fn for_each_number_in(directory: &OwnedFd, room: usize, mut each: impl FnMut(u32) -> bool) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); NAMES];
    let mut entries = RawDir::new(directory, buffer.get_mut(..room).unwrap_or_default());
    while let Some(entry) = entries.next() {
        let Some(number) = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok()) else { continue };
        if !each(number) {
            break;
        }
    }
    Ok(())
}

/// Opens what is beneath a directory of proc and is no link.
fn open(directory: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn read_comm(process: &OwnedFd) -> Option<String> {
    let line = read_start(process, "comm").ok()?;
    let name = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
    // One without a name is what a process of outside is told as (`Process::seen_from_outside`).
    Some(if name.is_empty() { "?".to_owned() } else { name })
}

fn read_start(process: &OwnedFd, file: &str) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; LONGEST_NAME];
    let file = open(process, file, OFlags::RDONLY)?;
    let len = rustix::io::read(&file, &mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}

/// A file from its beginning, `most` bytes of it.
fn read(directory: &OwnedFd, file: &str, most: usize) -> io::Result<Vec<u8>> {
    let mut text = vec![0; most];
    let file = open(directory, file, OFlags::RDONLY)?;
    let mut len = 0;
    while let Some(room) = text.get_mut(len..).filter(|room| !room.is_empty()) {
        match rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut *room))? {
            0 => break,
            n => len += n,
        }
    }
    text.truncate(len);
    Ok(text)
}

/// The inodes in a table such as `/proc/net/raw`, of lines whose local port is `wanted`; for raw sockets that is the protocol.
fn sockets_in(table: &[u8], wanted: impl Fn(u16) -> bool) -> Vec<u32> {
    let text = String::from_utf8_lossy(table);
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (_, port) = words.nth(1)?.rsplit_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        // Behind the local address stand the remote one, state, queues, timer, retransmits, uid and time-out.
        let inode = words.nth(7)?.parse().ok()?;
        wanted(port).then_some(inode)
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// When a process was started, in ticks since the machine was (proc_pid_stat(5), the 22nd field): with its number it is one process.
fn start_time(process: &OwnedFd) -> Option<u64> {
    let text = read(process, "stat", LONGEST_STATUS).ok()?;
    let text = String::from_utf8_lossy(&text);
    // Its name stands in parentheses and may have any character.
    let (_, behind) = text.rsplit_once(')')?;
    behind.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The numbers of a process in the namespaces within the reader's, from the status of it (proc_pid_status(5), NSpid).
fn inner_numbers(status: &[u8]) -> Vec<u32> {
    let text = String::from_utf8_lossy(status);
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_ascii_whitespace().skip(1).filter_map(|number| number.parse().ok()).collect()
}

/// Reads command lines in a thread, which starts with the first of them and ends with this.
#[derive(Debug, Default)]
struct CommandLines {
    reader: Option<Reader>,
}

#[derive(Debug)]
struct Reader {
    questions: SyncSender<OwnedFd>,
    answers: Receiver<Option<String>>,
    /// An answer is due.
    is_held_up: bool,
}

impl CommandLines {
    fn first_word(&mut self, process: &OwnedFd) -> Option<String> {
        if self.reader.is_none() {
            self.reader = Reader::start(read_first_word).ok();
        }
        self.reader.as_mut()?.ask(process)
    }
}

impl Reader {
    fn start(read: impl Fn(&OwnedFd) -> Option<String> + Send + 'static) -> io::Result<Reader> {
        let (questions, asked) = sync_channel::<OwnedFd>(1);
        let (answer, answers) = sync_channel(1);
        let work = move || {
            while let Ok(process) = asked.recv() {
                if answer.send(read(&process)).is_err() {
                    break;
                }
            }
        };
        // Nobody waits for its end: held up, it ends with the process.
        drop(thread::Builder::new().name("command lines".to_owned()).spawn(work)?);
        Ok(Reader { questions, answers, is_held_up: false })
    }

    fn ask(&mut self, process: &OwnedFd) -> Option<String> {
        if self.is_held_up {
            // What it was held up with is of no interest any more.
            if let Err(TryRecvError::Empty) = self.answers.try_recv() {
                return None;
            }
            self.is_held_up = false;
        }
        self.questions.try_send(process.try_clone().ok()?).ok()?;
        match self.answers.recv_timeout(PATIENCE) {
            Ok(word) => word,
            Err(RecvTimeoutError::Timeout) => {
                self.is_held_up = true;
                None
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

fn read_first_word(process: &OwnedFd) -> Option<String> {
    let line = read_start(process, "cmdline").ok()?;
    let word = line.split(|byte| *byte == 0).next().filter(|word| !word.is_empty())?;
    Some(String::from_utf8_lossy(word).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    /// Held by tests for which it matters how many descriptors this process has.
    static DESCRIPTORS: Mutex<()> = Mutex::new(());

    /// Of the test's own pid and network namespaces.
    fn inspector() -> Inspector {
        let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        Inspector::new(vec![proc, SocketFinder::open().unwrap()]).unwrap()
    }

    #[test]
    fn finds_itself_and_once_more_by_what_it_remembers() {
        let _alone = DESCRIPTORS.lock();
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let mut inspector = inspector();
            let listener = TcpListener::bind(loopback).unwrap();
            for _ in 0..3 {
                let guest = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (local, remote) = (guest.local_addr().unwrap(), guest.peer_addr().unwrap());
                let found = inspector.find(Transport::Tcp, local, remote).unwrap();
                assert_eq!(found.pid, std::process::id());
                let argv0 = own_argv0();
                assert!(!found.comm.is_empty() && argv0.contains(&found.comm), "{found:?}");
                // On a busy machine it is not there in time.
                assert!(found.argv0.is_none_or(|found| found == argv0));
                drop(guest);
                assert_eq!(inspector.known.len(), 1);
            }
        }
    }

    #[test]
    fn more_descriptors_than_the_bound_cost_no_more() {
        let _alone = DESCRIPTORS.lock();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let process = rustix::fs::open("/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let _many: Vec<OwnedFd> = (0..3000).map(|_| rustix::io::dup(&listener).unwrap()).collect();
        let mut search = Search { link: b"socket:[0]".to_vec(), left: MAX_DESCRIPTORS };
        assert!(!search.look_into(&process).unwrap());
        assert_eq!(search.left, 0);
        // With nothing left it gives up at the first one, whoever is asked.
        assert!(!search.look_into(&process).unwrap());
    }

    #[test]
    fn the_youngest_are_listed_whatever_is_before_them() {
        let inspector = inspector();
        let children: Vec<std::process::Child> =
            (0..20).map(|_| std::process::Command::new("sleep").arg("1000").spawn().unwrap()).collect();
        let youngest_child = children.iter().map(std::process::Child::id).max().unwrap();
        let directory = open(&inspector.proc, ".", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        let all = pids(&directory, highest(&directory, 0).unwrap()).unwrap();
        // The kernel begins where it is told to.
        let from = numbers_from(&directory, youngest_child, 4).unwrap();
        assert_eq!(from.first(), Some(&youngest_child));
        for most in [4, 16, 64] {
            // Whatever it was before.
            let highest = [0, 1, youngest_child, 1 << PID_BITS].map(|before| highest(&directory, before).unwrap());
            assert!(highest.iter().all(|highest| *highest >= youngest_child), "{highest:?}");
            let found = youngest(&directory, highest[0], most).unwrap();
            assert!(!found.is_empty() && found.len() <= most && found.is_sorted(), "{found:?}");
            assert!(found.last() >= Some(&youngest_child), "{found:?} of {all:?}");
            // Others of the machine may have much higher numbers.
            let is_near = highest[0] - youngest_child < u32::try_from(most).unwrap();
            assert!(!is_near || found.contains(&youngest_child), "{found:?} of {all:?}");
        }
        for mut child in children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_table_of_sockets_is_read_by_its_columns() {
        let table = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            \x20 21: 00000000:0015 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2 0000000000000000 0\n\
            \x20  1: 00000000:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 77 2 0000000000000000 0\n\
            \x20 cut short";
        assert_eq!(sockets_in(table, |_| true), [4242, 77]);
        assert_eq!(sockets_in(table, |port| port == 1), [77]);
        assert_eq!(inner_numbers(b"Name:\tx\nNSpid:\t4711\t7\t1\nPid:\t4711\n"), [7, 1]);
        assert_eq!(inner_numbers(b""), [] as [u32; 0]);
    }

    #[test]
    fn a_process_that_has_ended_is_forgotten() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let directory = open(&inspector().proc, &child.id().to_string(), OFlags::PATH).unwrap();
        let mut inspector = inspector();
        let process = Process { pid: child.id(), comm: "sleep".to_owned(), argv0: None };
        inspector.known.push(Known { directory, process });
        let mut search = Search { link: b"socket:[0]".to_vec(), left: MAX_DESCRIPTORS };
        assert!(inspector.find_known(&mut search).is_none());
        assert_eq!(inspector.known.len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(inspector.find_known(&mut search).is_none());
        assert!(inspector.known.is_empty());
    }

    #[test]
    fn a_command_line_that_cannot_be_read_holds_nobody_up() {
        let (go_on, held) = channel();
        let mut reader = Reader::start(move |_| held.recv().ok()).unwrap();
        let process = rustix::fs::open("/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(reader.ask(&process), None);
        assert!(reader.is_held_up);
        // Nobody waits for it again, and its late answer is not taken for another's.
        assert_eq!(reader.ask(&process), None);
        go_on.send("late".to_owned()).unwrap();
        let answer = loop {
            go_on.send("in time".to_owned()).unwrap();
            if let Some(answer) = reader.ask(&process) {
                break answer;
            }
        };
        assert_eq!(answer, "in time");
    }

    #[test]
    fn names_are_cut_and_made_text() {
        let process = rustix::fs::open("/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert!(read_start(&process, "maps").unwrap().len() <= LONGEST_NAME);
        assert_eq!(read_first_word(&process), Some(own_argv0()));
        assert!(open(&process, "cwd", OFlags::PATH).is_err(), "a link was followed");
        assert!(open(&process, "fd/../../1", OFlags::PATH).is_err());
    }

    fn own_argv0() -> String {
        let word = std::env::args_os().next().unwrap().into_string().unwrap();
        word.chars().take(LONGEST_NAME).collect()
    }
}
