//! The control group of a call: what a program starts is in it, whatever it does to its session or its parent.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cofferdam_guest_protocol::CallId;
use cofferdam_sys::ns::{self, Fork};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};

use crate::words::{Doing, Trouble};

const ROOT: &str = "/sys/fs/cgroup";

/// A control group of ours.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    directory: OwnedFd,
    /// Says when it is empty; see cgroup-v2.rst, "cgroup.events".
    events: OwnedFd,
}

impl Group {
    pub(crate) fn new(call: CallId) -> Result<Group, Trouble> {
        let path = Path::new(ROOT).join(format!("cofferdam-{}", call.0));
        fs::create_dir(&path).doing(|| format!("make the control group {}", path.display()))?;
        let open = |path: &Path, flags| {
            let opened = rustix::fs::open(path, flags | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            opened.doing(|| format!("open {}", path.display()))
        };
        let directory = open(&path, OFlags::DIRECTORY)?;
        let events = open(&path.join("cgroup.events"), OFlags::empty())?;
        Ok(Group { path, directory, events })
    }

    /// Forks a process that is in it from its beginning.
    pub(crate) fn fork(&self) -> io::Result<Fork> {
        ns::fork_into_cgroup(self.directory.as_fd())
    }

    /// Kills every process in it.
    pub(crate) fn kill(&self) {
        // Linux 5.14; it reaches what forks meanwhile too.
        if fs::write(self.path.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        for _ in 0..1000 {
            let members = self.members();
            if members.is_empty() {
                return;
            }
            for pid in members {
                let _gone = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Whether nobody in it is alive.
    pub(crate) fn is_empty(&self) -> bool {
        // Read from the start each time, so that the next change is told anew.
        let mut text = [0; 256];
        let read = rustix::io::pread(&self.events, &mut text, 0).unwrap_or(0);
        let text = text.get(..read).unwrap_or_default();
        !text.windows(11).any(|words| words == b"populated 1")
    }

    /// Gets a priority event when it becomes empty.
    pub(crate) fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn members(&self) -> Vec<Pid> {
        let list = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        list.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // One that somebody lives in stays.
        let _ = fs::remove_dir(&self.path);
    }
}
