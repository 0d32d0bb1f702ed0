//! `cofferdam smb-serve`: folders for one connection of a guest, on standard input and output.
//!
//! Whoever starts a virtual machine has it run this for each connection to its file server. A share is named on the command line, or is a file in a
//! directory: `ro /path` or `rw /path`, under the name of the share. A share whose file is removed is gone for connections that have it, too; one that is
//! added is there for connections that begin later, since a connection's process is confined to the shares that it began with.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use cofferdam_smb::{Confined, Owner, Password, Server, ShareAccess, Shares, confine, serve};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::output;
use crate::refusal::EXIT_FAILED;

/// Longest password. A file with a longer one is not read to its end.
const LONGEST_PASSWORD: usize = 128;

/// Longest file that names a share: a path, and what stands before it.
const LONGEST_LINE: usize = 4096 + 4;

#[derive(Debug, Args)]
pub(crate) struct SmbServeArgs {
    /// A folder to show: NAME=PATH, or NAME=PATH:ro.
    #[arg(long = "share", value_name = "NAME=PATH[:ro]")]
    shares: Vec<OsString>,
    /// A directory with a file per share: `ro PATH` or `rw PATH`, under its name.
    #[arg(long, value_name = "DIR")]
    shares_dir: Option<PathBuf>,
    /// A file with the password that clients log on with, which is for nobody else to read.
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,
    /// The user of the guest who is shown as the owner of our files.
    #[arg(long, default_value_t = 0)]
    uid: u32,
    /// And the group.
    #[arg(long, default_value_t = 0)]
    gid: u32,
}

pub(crate) fn smb_serve(args: &SmbServeArgs) -> u8 {
    silence_shared_stderr();
    match prepare(args) {
        Ok((server, confined)) => match serve(&server, rustix::stdio::stdin(), rustix::stdio::stdout(), &confined) {
            Ok(()) => 0,
            Err(error) => output::fail(&output::chain(&error), EXIT_FAILED),
        },
        Err(text) => output::fail(&text, EXIT_FAILED),
    }
}

/// QEMU makes the guest's stream all three descriptors of a command: then what we have to say is not for who is at the other end.
fn silence_shared_stderr() {
    let of = |fd: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).map(|found| (found.st_dev, found.st_ino));
    let (out, err) = (of(rustix::stdio::stdout()), of(rustix::stdio::stderr()));
    let is_terminal = rustix::termios::isatty(rustix::stdio::stderr());
    let is_shared = out.is_err() || err.is_err() || out == err && !is_terminal;
    if is_shared && let Ok(null) = rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::stdio::dup2_stderr(null);
    }
}

fn prepare(args: &SmbServeArgs) -> Result<(Server, Confined), String> {
    let password = read_password(&args.password_file)?;
    let server =
        Server::new(password, Owner::new(args.uid, args.gid)).map_err(|error| format!("no random numbers: {error}"))?;
    for word in &args.shares {
        let (name, path, access) = parse_share(word)
            .ok_or_else(|| format!("--share {} is not NAME=PATH or NAME=PATH:ro", word.to_string_lossy()))?;
        server.shares.add(&name, &path, access).map_err(|error| output::chain(&error))?;
    }
    if let Some(directory) = &args.shares_dir {
        add_from(&server.shares, directory)?;
    }
    let confined = confine(&server.shares).map_err(|error| output::chain(&error))?;
    Ok((server, confined))
}

/// The password in a file that nobody else reads.
fn read_password(path: &Path) -> Result<Password, String> {
    let refused = |error: Errno| format!("cannot read the password in {}: {}", path.display(), io::Error::from(error));
    // No reader of a pipe waits for who writes to it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(refused)?;
    let found = rustix::fs::fstat(&file).map_err(refused)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(format!("the password in {} is in no regular file", path.display()));
    }
    if Mode::from_raw_mode(found.st_mode).intersects(Mode::RWXG | Mode::RWXO) {
        return Err(format!("the password in {0} is for others to read or change: chmod 600 {0}", path.display()));
    }
    let mut text = [0; LONGEST_PASSWORD + 2];
    let length = rustix::io::pread(&file, &mut text, 0).map_err(refused)?;
    let text = text.get(..length).unwrap_or_default();
    let line = std::str::from_utf8(text.strip_suffix(b"\n").unwrap_or(text)).ok();
    line.and_then(Password::new).ok_or_else(|| {
        format!("{} is not one line of 1 to 128 graphic ASCII characters, which a password is", path.display())
    })
}

fn parse_share(word: &OsStr) -> Option<(String, PathBuf, ShareAccess)> {
    let bytes = word.as_bytes();
    let equals = bytes.iter().position(|byte| *byte == b'=')?;
    let (name, path) = (bytes.get(..equals)?, bytes.get(equals + 1..)?);
    let (path, access) = match path.strip_suffix(b":ro") {
        Some(path) => (path, ShareAccess::ReadOnly),
        None => (path, ShareAccess::ReadWrite),
    };
    let name = std::str::from_utf8(name).ok()?;
    (!path.is_empty()).then(|| (name.to_owned(), PathBuf::from(OsStr::from_bytes(path)), access))
}

/// Adds a share for each file in a directory, but for those whose names begin with a dot, which are being written.
fn add_from(shares: &Shares, directory: &Path) -> Result<(), String> {
    let refused = |error: std::io::Error| format!("cannot read the shares in {}: {error}", directory.display());
    let opened = rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let opened = opened.map_err(|error| refused(error.into()))?;
    for entry in std::fs::read_dir(directory).map_err(refused)? {
        let name = entry.map_err(refused)?.file_name();
        if name.as_bytes().starts_with(b".") {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&opened, name.as_os_str(), flags, Mode::empty()) {
            // Removed just now.
            Err(rustix::io::Errno::NOENT) => continue,
            file => file.map_err(|error| refused(error.into()))?,
        };
        let (path, access) = read_share(&file)
            .ok_or_else(|| format!("{} is not `ro PATH` or `rw PATH`", directory.join(&name).display()))?;
        let name = name.to_string_lossy();
        shares.add_marked(&name, &path, access, Some(file)).map_err(|error| output::chain(&error))?;
    }
    Ok(())
}

fn read_share(file: &OwnedFd) -> Option<(PathBuf, ShareAccess)> {
    let mut line = vec![0; LONGEST_LINE + 1];
    let read = rustix::io::pread(file.as_fd(), &mut line, 0).ok()?;
    let line = line.get(..read).filter(|line| line.len() <= LONGEST_LINE)?;
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let (access, path) = match line.split_at_checked(3)? {
        (b"ro ", path) => (ShareAccess::ReadOnly, path),
        (b"rw ", path) => (ShareAccess::ReadWrite, path),
        _ => return None,
    };
    path.starts_with(b"/").then(|| (PathBuf::from(OsStr::from_bytes(path)), access))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_shares_as_they_are_written() {
        let parse = |word: &str| parse_share(OsStr::new(word));
        let path = |text: &str| PathBuf::from(text);
        assert_eq!(parse("src=/a b:c"), Some(("src".to_owned(), path("/a b:c"), ShareAccess::ReadWrite)));
        assert_eq!(parse("src=/a=b:ro"), Some(("src".to_owned(), path("/a=b"), ShareAccess::ReadOnly)));
        assert_eq!(parse("src"), None);
        assert_eq!(parse("src=:ro"), None);
    }

    #[test]
    fn a_share_is_a_file_and_ends_with_it() {
        let root = tempfile::tempdir().unwrap();
        let (list, shown) = (root.path().join("list"), root.path().join("shown"));
        std::fs::create_dir(&list).unwrap();
        std::fs::create_dir(&shown).unwrap();
        std::fs::write(list.join("one"), format!("ro {}\n", shown.display())).unwrap();
        std::fs::write(list.join(".two"), "half").unwrap();
        let shares = Shares::default();
        add_from(&shares, &list).unwrap();
        assert!(shares.remove("ONE"));
        assert!(!shares.remove("two"));
        std::fs::write(list.join("three"), "rx /").unwrap();
        let error = add_from(&Shares::default(), &list).unwrap_err();
        assert!(error.ends_with("three is not `ro PATH` or `rw PATH`"), "{error}");
    }
}
