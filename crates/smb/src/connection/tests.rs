//! Requests in, responses out, on a folder of the test's own. How a logon goes is left to `auth` and to real clients (`tests/`); here a session is put in place.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::share::FileTime;
use crate::wire::bytes::{Reader, utf16};
use crate::{Owner, Password, ShareAccess};

const SESSION: u64 = 77;
const READ: u32 = 0x0012_0089;
const WRITE: u32 = 0x0012_0196;
const DELETE: u32 = 0x1_0000;
const DIRECTORY: u32 = 1;
const REPARSE: u32 = 0x20_0000;
const DELETE_ON_CLOSE: u32 = 0x1000;

struct Folder {
    root: tempfile::TempDir,
    server: Server,
}

impl Folder {
    /// With the share `rw`, and the same folder once more as `ro`.
    fn new() -> Folder {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("shown")).unwrap();
        let server = Server::new(Password::new("secret").unwrap(), Owner::new(0, 0)).unwrap();
        let folder = Folder { root, server };
        folder.server.shares.add("rw", &folder.path(""), ShareAccess::ReadWrite).unwrap();
        folder.server.shares.add("ro", &folder.path(""), ShareAccess::ReadOnly).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("shown").join(name)
    }

    fn client(&self, share: &str) -> Client<'_> {
        let mut connection = Connection::new(&self.server);
        connection.stage = Stage::V311 { preauth: Preauth::START };
        connection.credits = 100_000;
        let key = SigningKey::derive(&[1; 16], None).unwrap();
        let state = SessionState::LoggedOn { key: key.clone(), must_sign: false };
        connection.sessions.insert(SESSION, Session { state });
        let mut client = Client { connection, key, message: 0, session: SESSION, tree: 0 };
        client.tree = client.connect(share).unwrap();
        client
    }
}

struct Client<'s> {
    connection: Connection<'s>,
    key: SigningKey,
    message: u64,
    session: u64,
    tree: u32,
}

/// A response: status, and the body with its header before it.
#[derive(Debug, Clone)]
struct Answer {
    status: Status,
    bytes: Vec<u8>,
}

impl Answer {
    fn number(&self, at: usize) -> u64 {
        Reader::at(&self.bytes, HEADER + at).u64().unwrap()
    }

    fn small(&self, at: usize) -> u32 {
        Reader::at(&self.bytes, HEADER + at).u32().unwrap()
    }
}

impl Client<'_> {
    fn header(&mut self, command: u16, signed: bool) -> Vec<u8> {
        self.message += 1;
        let mut out = Vec::new();
        out.put(&crate::wire::header::PROTOCOL);
        out.u16(64);
        out.u16(64);
        out.u32(0);
        out.u16(command);
        out.u16(64);
        out.u32(if signed { FLAG_SIGNED } else { 0 });
        out.u32(0);
        out.u64(self.message);
        out.u32(0);
        out.u32(self.tree);
        out.u64(self.session);
        out.put(&[0; 16]);
        out
    }

    fn answers(&mut self, message: &[u8]) -> Vec<Answer> {
        let mut out = Vec::new();
        self.connection.handle_message(message, &mut out).unwrap();
        frames(&out)
    }

    fn ask(&mut self, command: u16, body: &[u8]) -> Answer {
        let mut message = self.header(command, false);
        message.put(body);
        let answers = self.answers(&message);
        assert_eq!(answers.len(), 1, "one answer to one request");
        answers[0].clone()
    }

    fn connect(&mut self, share: &str) -> Result<u32, Status> {
        let mut message = self.header(3, true);
        let path = utf16(&format!("\\\\host\\{share}"));
        message.u16(9);
        message.u16(0);
        message.u16(72);
        message.u16(u16::try_from(path.len()).unwrap());
        message.put(&path);
        self.key.sign(&mut message);
        let answer = self.answers(&message).remove(0);
        if answer.status == Status::SUCCESS {
            Ok(Reader::at(&answer.bytes, 36).u32().unwrap())
        } else {
            Err(answer.status)
        }
    }

    fn create(&mut self, name: &str, access: u32, disposition: u32, options: u32) -> Answer {
        let body = create_body(name, access, disposition, options);
        self.ask(5, &body)
    }

    fn open(&mut self, name: &str, access: u32, disposition: u32, options: u32) -> Result<u64, Status> {
        let answer = self.create(name, access, disposition, options);
        if answer.status == Status::SUCCESS { Ok(answer.number(64)) } else { Err(answer.status) }
    }

    fn write(&mut self, file: u64, offset: u64, data: &[u8]) -> Status {
        let mut body = Vec::new();
        body.u16(49);
        body.u16(112);
        body.u32(u32::try_from(data.len()).unwrap());
        body.u64(offset);
        body.u64(file);
        body.u64(file);
        body.put(&[0; 16]);
        body.put(data);
        self.ask(9, &body).status
    }

    fn read(&mut self, file: u64, offset: u64, length: u32) -> Result<Vec<u8>, Status> {
        let mut body = Vec::new();
        body.u16(49);
        body.u16(0);
        body.u32(length);
        body.u64(offset);
        body.u64(file);
        body.u64(file);
        body.put(&[0; 17]);
        let answer = self.ask(8, &body);
        if answer.status == Status::SUCCESS { Ok(answer.bytes[80..].to_vec()) } else { Err(answer.status) }
    }

    fn close(&mut self, file: u64) -> Status {
        let mut body = vec![24, 0, 1, 0, 0, 0, 0, 0];
        body.u64(file);
        body.u64(file);
        self.ask(6, &body).status
    }

    fn set_info(&mut self, file: u64, kind: u8, class: u8, data: &[u8]) -> Status {
        let mut body = vec![33, 0, kind, class];
        body.u32(u32::try_from(data.len()).unwrap());
        body.u16(96);
        body.put(&[0; 6]);
        body.u64(file);
        body.u64(file);
        body.put(data);
        self.ask(17, &body).status
    }

    fn rename(&mut self, file: u64, class: u8, replace: bool, to: &str) -> Status {
        let mut data = vec![u8::from(replace), 0, 0, 0, 0, 0, 0, 0];
        data.u64(0);
        let name = utf16(to);
        data.u32(u32::try_from(name.len()).unwrap());
        data.put(&name);
        self.set_info(file, 1, class, &data)
    }

    fn query(&mut self, file: u64, kind: u8, class: u8) -> Answer {
        let mut body = vec![41, 0, kind, class];
        body.u32(4096);
        body.put(&[0; 8]);
        body.u32(7);
        body.u32(0);
        body.u64(file);
        body.u64(file);
        self.ask(16, &body)
    }

    fn lock(&mut self, file: u64, flags: u32, offset: u64, length: u64) -> Answer {
        let body = lock_body(file, flags, offset, length);
        self.ask(10, &body)
    }

    fn ioctl(&mut self, file: u64, code: u32, input: &[u8]) -> Answer {
        let mut body = vec![57, 0, 0, 0];
        body.u32(code);
        body.u64(file);
        body.u64(file);
        body.u32(120);
        body.u32(u32::try_from(input.len()).unwrap());
        body.put(&[0; 12]);
        body.u32(4096);
        body.u32(1);
        body.u32(0);
        body.put(input);
        self.ask(11, &body)
    }

    fn list(&mut self, file: u64, flags: u8, pattern: &str, room: u32) -> Result<Vec<String>, Status> {
        let pattern = utf16(pattern);
        let mut body = vec![33, 0, 38, flags, 0, 0, 0, 0];
        body.u64(file);
        body.u64(file);
        body.u16(96);
        body.u16(u16::try_from(pattern.len()).unwrap());
        body.u32(room);
        body.put(&pattern);
        let answer = self.ask(14, &body);
        if answer.status != Status::SUCCESS {
            return Err(answer.status);
        }
        let mut rest = &answer.bytes[72..];
        assert!(rest.len() <= room as usize);
        let mut names = Vec::new();
        loop {
            let next = Reader::new(rest).u32().unwrap() as usize;
            let len = Reader::at(rest, 60).u32().unwrap() as usize;
            names.push(crate::wire::bytes::text(&rest[80..80 + len]).unwrap());
            if next == 0 {
                return Ok(names);
            }
            assert_eq!(next % 8, 0);
            rest = &rest[next..];
        }
    }
}

fn create_body(name: &str, access: u32, disposition: u32, options: u32) -> Vec<u8> {
    let name = utf16(name);
    let mut body = vec![57, 0, 0, 0];
    body.put(&[0; 20]);
    body.u32(access);
    body.u32(0);
    body.u32(7);
    body.u32(disposition);
    body.u32(options);
    body.u16(120);
    body.u16(u16::try_from(name.len()).unwrap());
    body.u64(0);
    body.put(&name);
    body
}

fn lock_body(file: u64, flags: u32, offset: u64, length: u64) -> Vec<u8> {
    let mut body = vec![48, 0, 1, 0, 0, 0, 0, 0];
    body.u64(file);
    body.u64(file);
    body.u64(offset);
    body.u64(length);
    body.u32(flags);
    body.u32(0);
    body
}

/// The messages in what is to be sent.
fn frames(mut out: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some((len, rest)) = out.split_first_chunk() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*len) as usize);
        out = rest;
        let mut frame = frame;
        loop {
            let next = Reader::at(frame, AT_NEXT).u32().unwrap() as usize;
            let this = if next == 0 { frame } else { &frame[..next] };
            answers.push(Answer { status: Status(Reader::at(this, 8).u32().unwrap()), bytes: this.to_vec() });
            if next == 0 {
                break;
            }
            frame = &frame[next..];
        }
    }
    answers
}

/// Everything beneath a folder: names, kinds, modes, sizes, times and contents.
fn snapshot(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let data = fs::symlink_metadata(&path).unwrap();
        let content = if data.is_file() { fs::read(&path).unwrap_or_default() } else { Vec::new() };
        all.push(format!("{path:?} {:o} {} {:?} {content:?}", data.mode(), data.len(), data.modified().unwrap()));
        if data.is_dir() {
            all.extend(snapshot(&path));
        }
    }
    all.sort();
    all
}

#[test]
fn nothing_comes_before_negotiating() {
    let folder = Folder::new();
    let mut client = folder.client("rw");
    let message = [client.header(13, false), vec![4, 0, 0, 0]].concat();
    let mut fresh = Connection::new(&folder.server);
    assert_eq!(fresh.handle_message(&message, &mut Vec::new()), Err(Ended::OutOfOrder));
    assert_eq!(fresh.handle_message(b"\xffSMBr", &mut Vec::new()), Err(Ended::NoRequest), "SMB 1");
    let mut old = client.header(0, false);
    old.put(&[36, 0, 1, 0]);
    old.put(&[0; 32]);
    old.u16(0x0210);
    let mut fresh = Connection::new(&folder.server);
    fresh.credits = 64;
    assert_eq!(fresh.handle_message(&old, &mut Vec::new()), Err(Ended::NoDialect));
}

#[test]
fn without_a_session_nothing_is_answered_but_echo() {
    let folder = Folder::new();
    let mut client = folder.client("rw");
    client.session = 5;
    assert_eq!(client.open("a", READ, 1, 0), Err(Status::USER_SESSION_DELETED));
    assert_eq!(client.ask(13, &[4, 0, 0, 0]).status, Status::SUCCESS);
}

#[test]
fn a_tree_is_connected_with_a_signature_alone() {
    let folder = Folder::new();
    let mut client = folder.client("rw");
    for share in ["none", "rw\\sub", "..", "C$", "ADMIN$"] {
        assert_eq!(client.connect(share), Err(Status::BAD_NETWORK_NAME), "{share}");
    }
    let pipes = client.connect("IPC$").unwrap();
    client.tree = pipes;
    assert_eq!(client.open("srvsvc", READ, 1, 0), Err(Status::ACCESS_DENIED));
    client.key = SigningKey::derive(&[2; 16], None).unwrap();
    assert_eq!(client.connect("rw"), Err(Status::ACCESS_DENIED), "another's signature");
    let answer = client.ask(3, &[9, 0, 0, 0, 72, 0, 0, 0]);
    assert_eq!(answer.status, Status::ACCESS_DENIED, "none");
}

#[test]
fn what_is_written_is_read_and_is_on_the_host() {
    let folder = Folder::new();
    let mut client = folder.client("rw");
    let file = client.open("ä 🦀", READ | WRITE, 2, 0).unwrap();
    assert_eq!(client.write(file, 3, b"hello"), Status::SUCCESS);
    assert_eq!(client.read(file, 0, 100), Ok(b"\0\0\0hello".to_vec()));
    assert_eq!(client.read(file, 8, 100), Err(Status::END_OF_FILE));
    assert_eq!(client.read(file, u64::MAX, 100), Err(Status::END_OF_FILE));
    assert_eq!(client.write(file, u64::MAX - 2, b"hello"), Status::FILE_TOO_LARGE);
    // Beyond 4 GiB.
    assert_eq!(client.write(file, 5 << 30, b"end"), Status::SUCCESS);
    assert_eq!(client.query(file, 1, 5).number(8 + 8), (5 << 30) + 3);
    assert_eq!(client.read(file, 5 << 30, 3), Ok(b"end".to_vec()));
    assert_eq!(client.set_info(file, 1, 20, &8_u64.to_le_bytes()), Status::SUCCESS);
    assert_eq!(fs::read(folder.path("ä 🦀")).unwrap(), b"\0\0\0hello");
    assert_eq!(client.close(file), Status::SUCCESS);
    assert_eq!(client.close(file), Status::FILE_CLOSED);
}

#[test]
fn dispositions_do_what_they_say() {
    let folder = Folder::new();
    let mut client = folder.client("rw");
    let missing = Status::OBJECT_NAME_NOT_FOUND;
    for (disposition, absent, present, content) in [
        (0, Ok(2), Ok(3), ""),
        (1, Err(missing), Ok(1), "old"),
        (2, Ok(2), Err(Status::OBJECT_NAME_COLLISION), "old"),
        (3, Ok(2), Ok(1), "old"),
        (4, Err(missing), Ok(3), ""),
        (5, Ok(2), Ok(3), ""),
    ] {
        for (name, expected) in [("absent", absent), ("present", present)] {
            let _ = fs::remove_file(folder.path("absent"));
            fs::write(folder.path("present"), "old").unwrap();
            let answer = client.create(name, READ, disposition, 0);
            let got = if answer.status == Status::SUCCESS { Ok(answer.small(4)) } else { Err(answer.status) };
            assert_eq!(got, expected, "{disposition} {name}");
        }
        assert_eq!(fs::read_to_string(folder.path("present")).unwrap(), content, "{disposition}");
    }
    assert_eq!(client.open("present", READ, 1, DIRECTORY), Err(Status::NOT_A_DIRECTORY));
    fs::create_dir(folder.path("dir")).unwrap();
    assert_eq!(client.open("dir", READ, 1, 0x40), Err(Status::FILE_IS_A_DIRECTORY));
    assert_eq!(client.open("present\\x", READ, 1, 0), Err(Status::NOT_A_DIRECTORY));
    assert_eq!(client.open("no\\x", READ, 2, 0), Err(Status::OBJECT_NAME_NOT_FOUND));
}

#[test]
fn rights_that_were_not_asked_for_are_not_there() {
    let folder = Folder::new();
    fs::write(folder.path("a"), "old").unwrap();
    let mut client = folder.client("rw");
    let file = client.open("a", READ, 1, 0).unwrap();
    assert_eq!(client.write(file, 0, b"new"), Status::ACCESS_DENIED);
    assert_eq!(client.set_info(file, 1, 20, &[0; 8]), Status::ACCESS_DENIED);
    assert_eq!(client.set_info(file, 1, 13, &[1]), Status::ACCESS_DENIED);
    assert_eq!(client.rename(file, 10, true, "b"), Status::ACCESS_DENIED);
    let blind = client.open("a", 0x80, 1, 0).unwrap();
    assert_eq!(client.read(blind, 0, 3), Err(Status::ACCESS_DENIED));
    assert_eq!(fs::read_to_string(folder.path("a")).unwrap(), "old");
}

#[test]
fn a_share_that_is_read_only_changes_in_no_way() {
    let folder = Folder::new();
    fs::write(folder.path("a"), "old").unwrap();
    fs::create_dir(folder.path("dir")).unwrap();
    symlink("a", folder.path("link")).unwrap();
    let before = snapshot(&folder.path(""));
    let mut client = folder.client("ro");
    let protected = Err(Status::MEDIA_WRITE_PROTECTED);
    for access in [WRITE, 2, 4, 0x10, 0x40, 0x100, DELETE, 0x4_0000, 0x8_0000, 0x4000_0000, 0x1000_0000] {
        assert_eq!(client.open("a", access, 1, 0), protected, "{access:x}");
    }
    for disposition in [0, 4, 5] {
        assert_eq!(client.open("a", READ, disposition, 0), protected);
    }
    for disposition in [0, 2, 3, 5] {
        assert_eq!(client.open("new", READ, disposition, 0), protected);
        assert!(client.open("dir\\new", READ, disposition, DIRECTORY).is_err());
    }
    assert_eq!(client.open("a", READ, 1, DELETE_ON_CLOSE), protected);
    // What is open for reading, or for as much as there is, in every way that could change it.
    for access in [READ, 0x80, 0x0200_0000, 0x8000_0000] {
        for name in ["a", "dir", "link", ""] {
            let file = client.open(name, access, 1, REPARSE).unwrap();
            assert_ne!(client.write(file, 0, b"new"), Status::SUCCESS);
            for class in 0..=u8::MAX {
                for data in [vec![1; 8], vec![0; 40], vec![255; 64]] {
                    assert_eq!(client.set_info(file, 1, class, &data), Status::MEDIA_WRITE_PROTECTED, "{class}");
                }
            }
            assert_eq!(client.rename(file, 10, true, "b"), Status::MEDIA_WRITE_PROTECTED);
            assert_eq!(client.rename(file, 11, false, "b"), Status::MEDIA_WRITE_PROTECTED);
            let mut descriptor = Vec::new();
            let facts = Facts::of(client.connection.opens[&file].file.as_fd()).unwrap();
            security::descriptor(Owner::new(0, 0), &Facts { mode: 0o777, ..facts }, 7, &mut descriptor);
            assert_eq!(client.set_info(file, 3, 0, &descriptor), Status::MEDIA_WRITE_PROTECTED);
            let link = control::symlink_reparse_data("/etc");
            assert_ne!(client.ioctl(file, 0x0009_00a4, &link).status, Status::SUCCESS);
            assert_ne!(
                client.lock(file, 0x12, 0, 1).status,
                Status::SUCCESS,
                "an exclusive lock is a change for others"
            );
            assert_eq!(client.close(file), Status::SUCCESS);
        }
    }
    assert_eq!(snapshot(&folder.path("")), before);
    // A session that has the folder for writing elsewhere makes no difference.
    let mut other = folder.client("rw");
    let file = other.open("a", READ | WRITE | DELETE, 1, 0).unwrap();
    let (tree, session) = (client.tree, client.session);
    client.connection.opens.insert(file, other.connection.opens.remove(&file).unwrap());
    let moved = client.connection.opens.get_mut(&file).unwrap();
    (moved.tree, moved.session) = (tree + 1, session);
    assert_eq!(client.write(file, 0, b"new"), Status::FILE_CLOSED, "the tree has to be the file's own");
}

#[test]
fn no_link_leads_out_of_the_share() {
    let folder = Folder::new();
    let outside = folder.root.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    for (name, target) in [("abs", outside.to_str().unwrap()), ("rel", "../outside"), ("self", "self"), ("root", "/")] {
        symlink(target, folder.path(name)).unwrap();
    }
    symlink("../outside/secret", folder.path("file")).unwrap();
    let mut client = folder.client("rw");
    for name in [
        "abs\\secret",
        "rel\\secret",
        "rel\\..\\outside\\secret",
        "..\\outside\\secret",
        "self\\x",
        "root\\etc\\passwd",
    ] {
        for disposition in 0..=5 {
            for options in [0, DIRECTORY, REPARSE] {
                let result = client.open(name, READ | WRITE | DELETE, disposition, options);
                assert!(result.is_err(), "{name} {disposition}");
            }
        }
    }
    for disposition in [0, 1, 3, 4, 5] {
        let answer = client.create("file", READ | WRITE, disposition, 0);
        assert_eq!(answer.status, Status::STOPPED_ON_SYMLINK);
        let target = utf16("../outside/secret");
        assert!(answer.bytes.windows(target.len()).any(|part| part == target), "the client is told where it leads");
    }
    // The link itself can be opened, and has neither data nor a mode.
    let link = client.open("file", READ | WRITE | DELETE | 0x4_0000, 1, REPARSE).unwrap();
    assert_eq!(client.write(link, 0, b"x"), Status::ACCESS_DENIED);
    assert_eq!(client.read(link, 0, 1), Err(Status::ACCESS_DENIED));
    assert_ne!(client.set_info(link, 1, 20, &[0; 8]), Status::SUCCESS);
    // Names beneath a link, for what takes a new name.
    fs::write(folder.path("mine"), "mine").unwrap();
    let mine = client.open("mine", READ | WRITE | DELETE, 1, 0).unwrap();
    for to in ["rel\\mine", "abs\\mine", "..\\mine", "rel\\secret"] {
        assert_ne!(client.rename(mine, 10, true, to), Status::SUCCESS, "{to}");
        assert_ne!(client.rename(mine, 11, false, to), Status::SUCCESS, "{to}");
    }
    // A directory that becomes a link once it is open.
    fs::create_dir(folder.path("dir")).unwrap();
    fs::write(folder.path("dir/secret"), "mine").unwrap();
    let inner = client.open("dir\\secret", READ | DELETE, 1, 0).unwrap();
    fs::rename(folder.path("dir"), folder.path("moved")).unwrap();
    symlink(&outside, folder.path("dir")).unwrap();
    assert_eq!(client.set_info(inner, 1, 13, &[1]), Status::SUCCESS);
    assert_eq!(client.close(inner), Status::SUCCESS);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn what_is_no_file_is_never_opened() {
    let folder = Folder::new();
    let fifo = folder.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let mut client = folder.client("rw");
    // Nobody writes to it: an open that waited would never end.
    assert_eq!(client.open("fifo", READ, 1, 0), Err(Status::ACCESS_DENIED));
    let known = client.open("fifo", 0x80, 1, 0).unwrap();
    assert_eq!(client.read(known, 0, 1), Err(Status::ACCESS_DENIED));
    assert_eq!(client.open("fifo", 0x80, 4, 0).err(), None, "there is nothing to overwrite");
}

#[test]
fn files_are_renamed_linked_and_removed() {
    let folder = Folder::new();
    fs::create_dir_all(folder.path("dir/sub")).unwrap();
    fs::write(folder.path("a"), "a").unwrap();
    fs::write(folder.path("b"), "b").unwrap();
    let mut client = folder.client("rw");
    let file = client.open("a", READ | DELETE, 1, 0).unwrap();
    assert_eq!(client.rename(file, 10, false, "b"), Status::OBJECT_NAME_COLLISION);
    assert_eq!(client.rename(file, 10, true, "b"), Status::SUCCESS);
    assert_eq!(client.rename(file, 11, false, "dir\\c"), Status::SUCCESS);
    assert_eq!(fs::read_to_string(folder.path("dir/c")).unwrap(), "a");
    assert_eq!(fs::metadata(folder.path("b")).unwrap().nlink(), 2);
    // What is beneath a directory goes with it.
    let inner = client.open("dir\\c", READ | DELETE, 1, 0).unwrap();
    let dir = client.open("dir", READ | DELETE, 1, DIRECTORY).unwrap();
    assert_eq!(client.rename(dir, 10, false, "moved"), Status::SUCCESS);
    assert_eq!(client.set_info(dir, 1, 13, &[1]), Status::DIRECTORY_NOT_EMPTY);
    assert_eq!(client.set_info(inner, 1, 13, &[1]), Status::SUCCESS);
    assert!(folder.path("moved/c").exists(), "until it is closed");
    assert_eq!(client.close(inner), Status::SUCCESS);
    assert!(!folder.path("moved/c").exists());
    let sub = client.open("moved\\sub", DELETE, 1, DIRECTORY | DELETE_ON_CLOSE).unwrap();
    assert_eq!(client.close(sub), Status::SUCCESS);
    assert_eq!(client.set_info(dir, 1, 13, &[1]), Status::SUCCESS);
    assert_eq!(client.close(dir), Status::SUCCESS);
    assert!(!folder.path("moved").exists());
    // A name that is another's by now is left alone.
    fs::write(folder.path("b"), "theirs").unwrap();
    fs::remove_file(folder.path("b")).unwrap();
    fs::write(folder.path("b"), "theirs").unwrap();
    assert_eq!(client.rename(file, 10, true, "mine"), Status::OBJECT_NAME_NOT_FOUND);
    assert_eq!(client.set_info(file, 1, 13, &[1]), Status::SUCCESS);
    assert_eq!(client.close(file), Status::SUCCESS);
    assert_eq!(fs::read_to_string(folder.path("b")).unwrap(), "theirs");
    assert_eq!(client.open("", DELETE, 1, DELETE_ON_CLOSE), Err(Status::CANNOT_DELETE));
}

#[test]
fn modes_and_times_are_set_and_set_id_bits_are_not() {
    let folder = Folder::new();
    fs::write(folder.path("a"), "a").unwrap();
    fs::set_permissions(folder.path("a"), fs::Permissions::from_mode(0o4755)).unwrap();
    let mut client = folder.client("rw");
    let file = client.open("a", 0x0006_0180, 1, 0).unwrap();
    let facts = Facts::of(client.connection.opens[&file].file.as_fd()).unwrap();
    assert_eq!(facts.mode, 0o755, "not shown");
    let mut descriptor = Vec::new();
    security::descriptor(Owner::new(0, 0), &Facts { mode: 0o6640, ..facts }, 7, &mut descriptor);
    assert_eq!(client.set_info(file, 3, 0, &descriptor), Status::SUCCESS);
    assert_eq!(fs::metadata(folder.path("a")).unwrap().mode() & 0o7777, 0o640);
    let mut basic = Vec::new();
    let time = FileTime::from_unix(1_000_000_000, 500);
    for value in [0, 0, time.0, u64::MAX] {
        basic.u64(value);
    }
    basic.u32(1);
    basic.u32(0);
    assert_eq!(client.set_info(file, 1, 4, &basic), Status::SUCCESS);
    let data = fs::metadata(folder.path("a")).unwrap();
    assert_eq!((data.mtime(), data.mtime_nsec()), (1_000_000_000, 500));
    assert_eq!(data.mode() & 0o777, 0o440, "read-only");
}

#[test]
fn a_file_that_stands_for_a_link_becomes_one() {
    let folder = Folder::new();
    let mut client = folder.client("rw");
    // MD5 of `x/y`.
    let mut content = b"XSym\n0003\nd2a33790e5bf28b33cdbf61722a06989\nx/y\n".to_vec();
    content.resize(1067, b' ');
    let file = client.open("link", READ | WRITE, 2, 0).unwrap();
    assert_eq!(client.write(file, 0, &content), Status::SUCCESS);
    let digest: String = {
        use md5::{Digest, Md5};
        Md5::digest("x/y").iter().map(|byte| format!("{byte:02x}")).collect()
    };
    content[10..42].copy_from_slice(digest.as_bytes());
    assert_eq!(client.write(file, 0, &content), Status::SUCCESS);
    assert_eq!(client.close(file), Status::SUCCESS);
    assert_eq!(fs::read_link(folder.path("link")).unwrap(), Path::new("x/y"));
    // One that was there already stays what it is.
    fs::write(folder.path("file"), &content).unwrap();
    let file = client.open("file", READ | WRITE, 1, 0).unwrap();
    assert_eq!(client.close(file), Status::SUCCESS);
    assert!(folder.path("file").is_file());
    // And by the request that is made for this.
    let file = client.open("other", READ | WRITE, 2, REPARSE).unwrap();
    assert_eq!(client.ioctl(file, 0x0009_00a4, &control::symlink_reparse_data("a/b")).status, Status::SUCCESS);
    assert_eq!(fs::read_link(folder.path("other")).unwrap(), Path::new("a/b"));
    let answer = client.ioctl(file, 0x0009_00a8, &[]);
    assert_eq!(answer.bytes[112..], control::symlink_reparse_data("a/b"));
    assert_eq!(client.write(file, 0, b"x"), Status::ACCESS_DENIED);
    let old = client.open("file", READ | WRITE, 1, REPARSE).unwrap();
    let refused = client.ioctl(old, 0x0009_00a4, &control::symlink_reparse_data("a/b"));
    assert_eq!(refused.status, Status::ACCESS_DENIED, "it holds something");
}

#[test]
fn a_directory_comes_whole_in_pages_of_any_size() {
    let folder = Folder::new();
    let mut expected = vec![".".to_owned(), "..".to_owned()];
    for index in 0..50 {
        let name = format!("{}{index}", "n".repeat(index));
        fs::write(folder.path(&name), "").unwrap();
        expected.push(name);
    }
    fs::write(folder.path("back\\slash"), "").unwrap();
    expected.sort();
    let mut client = folder.client("ro");
    for room in [256, 300, 1000, 65_536] {
        let dir = client.open("", READ, 1, DIRECTORY).unwrap();
        let mut names = Vec::new();
        loop {
            match client.list(dir, 0, "*", room) {
                Ok(page) => names.extend(page),
                Err(status) => {
                    assert_eq!(status, Status::NO_MORE_FILES);
                    break;
                }
            }
        }
        names.sort();
        assert_eq!(names, expected, "{room}");
        assert_eq!(client.list(dir, 1, "n1", 4096), Ok(vec!["n1".to_owned()]), "from the beginning again");
        assert_eq!(client.list(dir, 1, "absent", 4096), Err(Status::NO_SUCH_FILE));
        assert_eq!(client.list(dir, 1, "*", 16), Err(Status::INFO_LENGTH_MISMATCH));
        assert_eq!(client.list(dir, 3, "*", 4096).unwrap().len(), 1, "one at a time");
        client.close(dir);
    }
}

#[test]
fn a_lock_holds_against_other_connections_and_waits_for_them() {
    let folder = Folder::new();
    fs::write(folder.path("a"), "a").unwrap();
    let (mut one, mut other) = (folder.client("rw"), folder.client("rw"));
    let mine = one.open("a", READ | WRITE, 1, 0).unwrap();
    let theirs = other.open("a", READ, 1, 0).unwrap();
    assert_eq!(one.lock(mine, 0x12, 0, u64::MAX >> 1).status, Status::SUCCESS);
    assert_eq!(other.lock(theirs, 0x11, 5, 1).status, Status::LOCK_NOT_GRANTED);
    // Exclusive, on a file that is open for reading.
    let waiting = other.lock(theirs, 0x2, 0, 10);
    assert_eq!(waiting.status, Status::PENDING);
    assert!(other.connection.is_waiting());
    let mut out = Vec::new();
    other.connection.handle_timeout(&mut out);
    assert!(out.is_empty());
    assert_eq!(one.lock(mine, 0x4, 0, u64::MAX >> 1).status, Status::SUCCESS);
    assert_eq!(one.lock(mine, 0x4, 0, 10).status, Status::RANGE_NOT_LOCKED);
    other.connection.handle_timeout(&mut out);
    let granted = frames(&out);
    assert_eq!(granted[0].status, Status::SUCCESS);
    assert_eq!(granted[0].bytes[24..40], waiting.bytes[24..40], "the same message and the same asynchronous id");
    assert!(!other.connection.is_waiting());
    assert_eq!(one.lock(mine, 0x12, 9, 1).status, Status::LOCK_NOT_GRANTED);
    assert_eq!(other.close(theirs), Status::SUCCESS);
    assert_eq!(one.lock(mine, 0x12, 9, 1).status, Status::SUCCESS, "closing gives it up");
    assert_eq!(one.lock(mine, 0x12, u64::MAX, 1).status, Status::INVALID_LOCK_RANGE);
}

#[test]
fn locks_are_bounded_for_a_file_and_for_all_of_them() {
    let folder = Folder::new();
    fs::write(folder.path("a"), "a").unwrap();
    let mut client = folder.client("rw");
    let files: Vec<u64> = (0..17).map(|_| client.open("a", READ | WRITE, 1, 0).unwrap()).collect();
    // Shared ones, each of its own byte.
    let fill = |client: &mut Client<'_>, file: u64| {
        (0..1024).take_while(|byte| client.lock(file, 0x11, *byte, 1).status == Status::SUCCESS).count()
    };
    for file in &files[..15] {
        assert_eq!(fill(&mut client, *file), 1024);
    }
    assert_eq!(client.lock(files[0], 0x11, 5000, 1).status, Status::INSUFFICIENT_RESOURCES);
    assert_eq!(fill(&mut client, files[15]), 1024);
    assert_eq!(client.lock(files[16], 0x11, 0, 1).status, Status::INSUFFICIENT_RESOURCES);
    assert_eq!(client.lock(files[3], 0x4, 7, 1).status, Status::SUCCESS);
    assert_eq!(client.lock(files[16], 0x11, 0, 1).status, Status::SUCCESS, "another has gone");
    assert_eq!(client.lock(files[16], 0x11, 1, 1).status, Status::INSUFFICIENT_RESOURCES);
    assert_eq!(client.close(files[4]), Status::SUCCESS);
    assert_eq!(fill(&mut client, files[16]), 1023, "byte 0 is there already, and closing has made room");
}

#[test]
fn a_lock_that_waits_is_cancelled() {
    let folder = Folder::new();
    fs::write(folder.path("a"), "a").unwrap();
    let (mut one, mut other) = (folder.client("rw"), folder.client("rw"));
    let mine = one.open("a", READ | WRITE, 1, 0).unwrap();
    let theirs = other.open("a", READ | WRITE, 1, 0).unwrap();
    assert_eq!(one.lock(mine, 0x12, 0, 1).status, Status::SUCCESS);
    assert_eq!(other.lock(theirs, 0x2, 0, 1).status, Status::PENDING);
    let id = other.message;
    let mut cancel = other.header(12, false);
    cancel[24..32].copy_from_slice(&id.to_le_bytes());
    cancel.put(&[4, 0, 0, 0]);
    let answers = other.answers(&cancel);
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [Status::CANCELLED]);
    // No more than so many wait.
    for _ in 0..MOST_WAITING {
        assert_eq!(other.lock(theirs, 0x2, 0, 1).status, Status::PENDING);
    }
    assert_eq!(other.lock(theirs, 0x2, 0, 1).status, Status::INSUFFICIENT_RESOURCES);
}

#[test]
fn a_share_that_is_removed_is_gone_for_those_who_have_it() {
    let folder = Folder::new();
    fs::write(folder.path("a"), "a").unwrap();
    let mut client = folder.client("rw");
    let file = client.open("a", READ | WRITE | DELETE, 1, DELETE_ON_CLOSE).unwrap();
    assert!(folder.server.shares.remove("RW"));
    assert!(!folder.server.shares.remove("rw"));
    assert_eq!(client.read(file, 0, 1), Err(Status::NETWORK_NAME_DELETED));
    assert_eq!(client.open("a", READ, 1, 0), Err(Status::NETWORK_NAME_DELETED));
    assert_eq!(client.connect("rw"), Err(Status::BAD_NETWORK_NAME));
    assert_eq!(client.close(file), Status::SUCCESS);
    assert!(folder.path("a").exists(), "nothing is done to it any more");
    folder.server.shares.add("rw", &folder.path(""), ShareAccess::ReadOnly).unwrap();
    assert_eq!(client.open("a", READ, 1, 0), Err(Status::NETWORK_NAME_DELETED), "the old tree stays gone");
    client.tree = client.connect("rw").unwrap();
    assert!(client.open("a", READ, 1, 0).is_ok());
}

#[test]
fn requests_in_a_row_share_a_file_and_its_failure() {
    let folder = Folder::new();
    fs::write(folder.path("a"), "hello").unwrap();
    let mut client = folder.client("ro");
    for (name, expected) in [("a", Status::SUCCESS), ("b", Status::OBJECT_NAME_NOT_FOUND)] {
        let mut message = client.header(5, false);
        message.put(&create_body(name, READ, 1, 0));
        let mut parts = vec![message];
        let mut query = client.header(16, false);
        query.put(&[41, 0, 1, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        query.put(&[0xff; 16]);
        parts.push(query);
        let mut close = client.header(6, false);
        close.put(&[24, 0, 0, 0, 0, 0, 0, 0]);
        close.put(&[0xff; 16]);
        parts.push(close);
        let mut all = Vec::new();
        for (index, mut part) in parts.into_iter().enumerate() {
            if index > 0 {
                part[16] |= 4;
            }
            if index < 2 {
                pad(&mut part, 0, 8);
                let len = len32(part.len());
                patch(&mut part, AT_NEXT, &len.to_le_bytes());
            }
            all.extend(part);
        }
        let answers = client.answers(&all);
        assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [expected; 3]);
        assert!(client.connection.opens.is_empty());
    }
}

#[test]
fn tables_have_bounds() {
    let folder = Folder::new();
    let mut client = folder.client("ro");
    while client.connect("ro").is_ok() {}
    assert_eq!(client.connection.trees.len(), MOST_TREES);
    let mut message = client.header(13, false);
    message.put(&[4, 0, 0, 0]);
    client.connection.credits = 63;
    assert_eq!(client.connection.handle_message(&message, &mut Vec::new()), Err(Ended::OutOfCredits));
    client.connection.credits = 1;
    let mut granted = 0;
    for _ in 0..100 {
        let header = Header { credit_charge: 1, credits: u16::MAX, ..Header::parse(&message).unwrap() };
        granted = client.connection.take_credits(&header).unwrap();
    }
    assert_eq!((client.connection.credits, granted), (MOST_CREDITS, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_request_stops_a_connection_or_leaves_its_folder(
        requests in proptest::collection::vec((1_u16..19, proptest::collection::vec(any::<u8>(), 0..160), any::<bool>()), 1..12),
    ) {
        let folder = Folder::new();
        fs::create_dir(folder.path("dir")).unwrap();
        fs::write(folder.path("dir/a"), "a").unwrap();
        let outside = folder.root.path().join("outside");
        fs::write(&outside, "outside").unwrap();
        symlink(&outside, folder.path("link")).unwrap();
        let mut client = folder.client("rw");
        let file = client.open("dir\\a", READ | WRITE | DELETE, 1, 0).unwrap();
        let dir = client.open("dir", READ | DELETE, 1, 0).unwrap();
        for (command, mut body, first) in requests {
            // The right size, and often a file that is there.
            let size: u16 = [36, 25, 4, 9, 4, 57, 24, 24, 49, 49, 48, 57, 4, 4, 33, 32, 41, 33, 24][usize::from(command)];
            patch(&mut body, 0, &size.to_le_bytes());
            let at = match command { 6 | 7 | 10 | 11 | 14 => 8, 8 | 9 => 16, 16 => 24, 17 => 16, _ => usize::MAX };
            let id = if first { file } else { dir };
            patch(&mut body, at, &id.to_le_bytes());
            patch(&mut body, at.saturating_add(8), &id.to_le_bytes());
            let mut message = client.header(command, false);
            message.put(&body);
            let mut out = Vec::new();
            client.connection.credits = 100_000;
            let _ = client.connection.handle_message(&message, &mut out);
            let _ = frames(&out);
        }
        prop_assert_eq!(fs::read_to_string(&outside).unwrap(), "outside");
        prop_assert_eq!(fs::read_dir(folder.root.path()).unwrap().count(), 2);
    }
}
