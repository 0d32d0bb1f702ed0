//! virtiofsd(1): a program that serves one directory to one machine, by a device of it.
//!
//! | | In C, with QEMU until 8.0 | In Rust |
//! |---|---|---|
//! | comes in | `qemu-system-common` (Debian 12) | `virtiofsd` (Debian 13), often in `/usr/libexec` |
//! | keeps itself to its directory by | chroot(2), which wants a capability | the names that it looks up; Landlock, as we start it |
//! | changes its capabilities | always, which wants one as well | when it runs as user 0 |
//!
//! Both become the user of the guest's program for as long as they make a file for it. In a user namespace with one user they
//! cannot, and are told that they have (`cofferdam_backend_ns::DeviceServer`).

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cofferdam_backend_ns::{Capability, DeviceServer};

use crate::arguments::Share;

/// Bytes of memory of those of one machine: their own, and what the host keeps for each file that the guest has looked up.
pub(crate) const MEMORY: u64 = 256 << 20;

/// Where it is when it is not on the PATH: Debian, Fedora; Debian 12; Arch.
const PLACES: [&str; 5] = [
    "/usr/local/libexec/virtiofsd",
    "/usr/libexec/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/bin/virtiofsd",
];

/// What it would keep for itself, and has not.
const CAPABILITIES: [&str; 8] = ["chown", "dac_override", "fowner", "fsetid", "setgid", "setuid", "mknod", "setfcap"];

/// An installed virtiofsd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Virtiofsd {
    path: PathBuf,
    dialect: Dialect,
}

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    C,
    Rust,
}

/// There is none that could be used.
#[derive(Debug, thiserror::Error)]
pub enum VirtiofsdError {
    #[error(
        "virtiofsd is not in {}: install it (Debian, Ubuntu: apt-get install virtiofsd; Debian 12: \
         qemu-system-common), or leave --mount-via out",
        PLACES.join(", ")
    )]
    Missing,
    #[error("cannot execute {path}", path = path.display())]
    Execute { path: PathBuf, source: io::Error },
    #[error("{path} is no virtiofsd that is known: its --help speaks of neither --shared-dir nor -o source", path = path.display())]
    Unknown { path: PathBuf },
}

impl Virtiofsd {
    /// Looks for it where distributions have it. Executes it, to learn which options it has: so not on the search path, where a
    /// project that a sandbox writes to may have one.
    ///
    /// # Errors
    /// There is none, or it is something else.
    pub fn find() -> Result<Virtiofsd, VirtiofsdError> {
        Virtiofsd::find_in(&PLACES.map(Path::new))
    }

    fn find_in(places: &[&Path]) -> Result<Virtiofsd, VirtiofsdError> {
        let path = places.iter().find(|path| path.is_file()).ok_or(VirtiofsdError::Missing)?;
        let execute = |source| VirtiofsdError::Execute { path: path.to_path_buf(), source };
        let path = std::fs::canonicalize(path).map_err(execute)?;
        let mut help = Command::new(&path);
        help.arg("--help").env_clear().stdin(Stdio::null()).stderr(Stdio::null());
        let said = help.output().map_err(execute)?.stdout;
        match Dialect::of(&String::from_utf8_lossy(&said)) {
            Some(dialect) => Ok(Virtiofsd { path, dialect }),
            None => Err(VirtiofsdError::Unknown { path }),
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The program for one directory. `:ro` is the mount's that it has it by.
    pub(crate) fn server(&self, share: &Share, uid: u32) -> DeviceServer {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let modified = CAPABILITIES.map(|name| format!("-{name}")).join(":");
        let mut directory = OsString::new();
        let (arguments, capabilities) = match self.dialect {
            Dialect::C => {
                directory.push("source=");
                let mut arguments = words(&["-f", "--rlimit-nofile=0", "-o", "sandbox=chroot", "-o", "cache=auto"]);
                arguments.extend(words(&["-o", "log_level=err", "-o", &format!("modcaps={modified}"), "-o"]));
                (arguments, vec![Capability::SYS_CHROOT, Capability::SETPCAP])
            }
            Dialect::Rust => {
                let mut arguments =
                    words(&["--rlimit-nofile=0", "--sandbox=none", "--cache=auto", "--log-level=error"]);
                // 1.14 would open files by their handles otherwise, which wants a capability, and keep that one.
                arguments.push("--inode-file-handles=never".into());
                arguments.extend(words(&[&format!("--modcaps={modified}"), "--shared-dir"]));
                // As anybody else it leaves its capabilities as they are.
                (arguments, if uid == 0 { vec![Capability::SETPCAP] } else { Vec::new() })
            }
        };
        directory.push(&share.path);
        let arguments = arguments.into_iter().chain([directory]).collect();
        DeviceServer { program: self.path.clone(), arguments, directory: share.path.clone(), capabilities }
    }
}

impl Dialect {
    fn of(help: &str) -> Option<Dialect> {
        if help.contains("--shared-dir") {
            Some(Dialect::Rust)
        } else if help.contains("-o source=") {
            Some(Dialect::C)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::arguments::Access;

    /// A program of this name that says this.
    fn program(folder: &Path, says: &str) -> PathBuf {
        let path = folder.join("virtiofsd");
        std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.canonicalize().unwrap()
    }

    fn started(dialect: Dialect, uid: u32) -> (String, Vec<Capability>) {
        let share = Share { tag: "share0".to_owned(), path: "/vm/shares/0".into(), access: Access::Write };
        let server = Virtiofsd { path: "/usr/libexec/virtiofsd".into(), dialect }.server(&share, uid);
        assert_eq!((server.program, server.directory), ("/usr/libexec/virtiofsd".into(), share.path));
        (server.arguments.join(OsStr::new(" ")).into_string().unwrap(), server.capabilities)
    }

    #[test]
    fn is_told_apart_by_its_options() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("virtiofsd");
        let find = || Virtiofsd::find_in(&[Path::new("/nowhere/virtiofsd"), &there]);
        let missing = find().unwrap_err().to_string();
        assert!(missing.starts_with("virtiofsd is not in /usr") && missing.contains("apt-get install virtiofsd"));
        for (says, dialect) in
            [("    -o source=PATH   shared directory tree", Dialect::C), ("  --shared-dir <SHARED_DIR>", Dialect::Rust)]
        {
            let path = program(folder.path(), says);
            assert_eq!(find().unwrap(), Virtiofsd { path, dialect });
        }
        let path = program(folder.path(), "hello");
        assert_eq!(find().unwrap_err().to_string().split(" is no").next(), path.to_str());
    }

    #[test]
    fn the_one_in_c_is_given_what_it_gives_up() {
        let (arguments, capabilities) = started(Dialect::C, 1000);
        insta::assert_snapshot!(arguments);
        assert_eq!(capabilities, [Capability::SYS_CHROOT, Capability::SETPCAP]);
        assert_eq!(started(Dialect::C, 0), (arguments, capabilities));
    }

    #[test]
    fn the_one_in_rust_has_no_more_than_it_gives_up() {
        let (arguments, capabilities) = started(Dialect::Rust, 1000);
        insta::assert_snapshot!(arguments);
        assert_eq!(capabilities, []);
        assert_eq!(started(Dialect::Rust, 0), (arguments, vec![Capability::SETPCAP]));
    }
}
