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
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use cofferdam_model::Process;
use cofferdam_sys::mount::{self, Attributes};
use cofferdam_sys::sock_diag::SocketFinder;
pub use cofferdam_sys::sock_diag::Transport;
use rustix::fs::{Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

/// Processes that one look-up may list. Sandboxes have a few; a build has hundreds.
const MAX_PROCESSES: usize = 1024;
/// Descriptors that one look-up may read, of all processes together: 2 to 6 ms, where most take less than a tenth of one.
const MAX_DESCRIPTORS: usize = 2048;
/// Processes that are remembered, each with one descriptor of ours.
const REMEMBERED: usize = 32;
/// How much of a name is kept. The kernel has 15 bytes for `comm`; a path to a program is seldom longer.
const LONGEST_NAME: usize = 256;
/// How long a command line may take to be read. It takes some 20 µs where nobody holds it up.
const PATIENCE: Duration = Duration::from_millis(2);
/// Room for the names of some hundred descriptors at once.
const NAMES: usize = 4096;

/// Finds the processes of one sandbox by their sockets.
#[derive(Debug)]
pub struct Inspector {
    proc: OwnedFd,
    finder: SocketFinder,
    /// Those that were found last, the last of them first.
    known: Vec<Known>,
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
        Some(Inspector { proc, finder, known: Vec::new(), command_lines: CommandLines::default() })
    }

    /// A process that has the socket between `local`, in the sandbox, and `remote` open; of several the one that was found before, or the
    /// youngest. `None` when nobody has, or nobody was found within the bounds.
    pub fn find(&mut self, transport: Transport, local: SocketAddr, remote: SocketAddr) -> Option<Process> {
        let inode = self.finder.find(transport, local, remote).ok()??;
        let mut search = Search { link: format!("socket:[{inode}]").into_bytes(), left: MAX_DESCRIPTORS };
        let found = self.find_known(&mut search).or_else(|| self.find_new(&mut search))?;
        let process = found.process.clone();
        self.known.insert(0, found);
        self.known.truncate(REMEMBERED);
        Some(process)
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
        let mut pids = self.pids().ok()?;
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

    /// The processes of the sandbox but for its init, the oldest first.
    fn pids(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for_each_number(&open(&self.proc, ".", OFlags::RDONLY | OFlags::DIRECTORY)?, |pid| {
            pids.extend(Some(pid).filter(|pid| *pid > 1));
            pids.len() < MAX_PROCESSES
        })?;
        Ok(pids)
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

/// Calls `each` with the names in a directory that are numbers, until it says no.
fn for_each_number(directory: &OwnedFd, mut each: impl FnMut(u32) -> bool) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); NAMES];
    let mut entries = RawDir::new(directory, &mut buffer);
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
    Some(String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned())
}

fn read_start(process: &OwnedFd, file: &str) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; LONGEST_NAME];
    let file = open(process, file, OFlags::RDONLY)?;
    let len = rustix::io::read(&file, &mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
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
