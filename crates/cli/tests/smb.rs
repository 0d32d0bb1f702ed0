//! `cofferdam smb-serve` against Samba's client, on the loopback of a network namespace of the test's own.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails is meant to panic")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Starts the server for each connection, as QEMU does, and then the client.
const WORLD: &str = r#"
set -eu
ip link set lo up
exec 3< <(exec python3 -c '
import socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", 445))
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    subprocess.Popen(sys.argv[1:], stdin=connection, stdout=connection, stderr=connection)
    connection.close()
' "$SERVER" smb-serve --shares-dir "$FOLDER/list" --password-file "$FOLDER/password")
inetd=$!
trap 'kill $inetd' EXIT
read -r _ <&3
"$@"
"#;

struct Folder(tempfile::TempDir);

impl Folder {
    /// With the shares `src`, which may be written, and `docs`, which is the same folder and may not.
    fn new() -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        fs::create_dir(folder.path("list")).unwrap();
        fs::create_dir(folder.path("shown")).unwrap();
        let shown = folder.path("shown");
        fs::write(folder.path("list/src"), format!("rw {}\n", shown.display())).unwrap();
        fs::write(folder.path("list/docs"), format!("ro {}\n", shown.display())).unwrap();
        folder.secret("password", "correct-horse\n");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file that nobody else reads.
    fn secret(&self, name: &str, content: &str) {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(self.path(name)).unwrap();
        file.write_all(content.as_bytes()).unwrap();
    }

    fn client(&self, share: &str, options: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]);
        command.args(["timeout", "60", "bash", "-c", WORLD, "world", "smbclient", &format!("//127.0.0.1/{share}")]);
        command.args(["-s", "/dev/null", "-U", "root%correct-horse"]).args(options);
        command.env("SERVER", env!("CARGO_BIN_EXE_cofferdam")).env("FOLDER", self.0.path()).current_dir(self.0.path());
        command
    }

    /// What the client says to commands; one that fails does not end the row.
    fn run(&self, share: &str, commands: &str, options: &[&str]) -> String {
        said(&self.client(share, &[options, &["-c", commands]].concat()).output().unwrap())
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Names, sizes and contents.
fn snapshot(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let data = fs::symlink_metadata(&path).unwrap();
        let content = if data.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        all.push(format!("{path:?} {:?} {:?} {content:?}", data.permissions(), data.modified().unwrap()));
        if data.is_dir() {
            all.extend(snapshot(&path));
        }
    }
    all.sort();
    all
}

#[test]
fn files_go_there_and_back_in_both_dialects_signed_and_not() {
    let folder = Folder::new();
    // Several requests of the longest kind, and a rest.
    let content: Vec<u8> = (0..9_000_001_u32).map(|index| (index / 7 % 251) as u8).collect();
    fs::write(folder.path("local"), &content).unwrap();
    for options in [["-m", "SMB3_11", "--client-protection=sign"], ["-m", "SMB3_02", "--client-protection=sign"]] {
        for options in [&options[..], &options[..2]] {
            let text = folder.run("src", "mkdir dir; put local dir\\there; get dir\\there back; ls dir\\*", options);
            assert!(text.contains("there") && text.contains("9000001"), "{options:?}: {text}");
            assert!(fs::read(folder.path("shown/dir/there")).unwrap() == content, "{options:?}");
            assert!(fs::read(folder.path("back")).unwrap() == content, "{options:?}");
            fs::remove_file(folder.path("back")).unwrap();
            let text = folder.run("src", "rename dir\\there dir\\moved; del dir\\moved; rmdir dir; ls", options);
            assert!(!text.contains("NT_STATUS"), "{options:?}: {text}");
            assert_eq!(fs::read_dir(folder.path("shown")).unwrap().count(), 0);
        }
    }
}

#[test]
fn nobody_gets_in_without_the_password() {
    let folder = Folder::new();
    for who in [["-U", "root%wrong"], ["-U", "root%"], ["-N", "-N"], ["-U", "%"]] {
        let text = folder.run("src", "ls", &who);
        assert!(text.contains("NT_STATUS_"), "{who:?}: {text}");
        assert!(!text.contains("blocks"), "{who:?}: {text}");
    }
    let text = folder.run("src", "ls", &["-U", "whoever%correct-horse"]);
    assert!(text.contains("blocks"), "{text}");
    let text = folder.run("src", "ls", &["-m", "SMB2_10"]);
    assert!(!text.contains("blocks"), "an old dialect: {text}");
}

#[test]
fn a_read_only_share_stays_as_it_is() {
    let folder = Folder::new();
    fs::create_dir(folder.path("shown/dir")).unwrap();
    fs::write(folder.path("shown/a"), "old").unwrap();
    fs::write(folder.path("local"), "new").unwrap();
    let before = snapshot(&folder.path("shown"));
    for command in [
        "put local a",
        "put local new",
        "mkdir new",
        "del a",
        "rmdir dir",
        "rename a b",
        "hardlink a b",
        "setmode a +r",
        "utimes a -1 1999:01:01-01:01:01 -1 -1",
        "posix; put local a",
        "deltree dir",
    ] {
        let text = folder.run("docs", command, &[]);
        assert!(text.contains("NT_STATUS_"), "{command}: {text}");
        assert_eq!(snapshot(&folder.path("shown")), before, "{command}");
    }
    let text = folder.run("docs", "get a got", &[]);
    assert_eq!(fs::read_to_string(folder.path("got")).unwrap(), "old", "{text}");
}

#[test]
fn no_path_leads_out_of_a_share() {
    let folder = Folder::new();
    fs::write(folder.path("secret"), "secret").unwrap();
    symlink("..", folder.path("shown/up")).unwrap();
    symlink("../secret", folder.path("shown/link")).unwrap();
    fs::write(folder.path("local"), "new").unwrap();
    // The client takes `..` out of a path by itself; `smb: no_link_leads_out_of_the_share` sends it.
    for name in ["up\\secret", "link", "%2e%2e\\secret", "link::$DATA"] {
        for command in [format!("get {name} got"), format!("put local {name}"), format!("mkdir {name}\\x")] {
            let text = folder.run("src", &command, &[]);
            assert!(text.contains("NT_STATUS_") || text.contains("does not exist"), "{command}: {text}");
        }
        assert!(!folder.path("got").exists(), "{name}");
    }
    assert_eq!(fs::read_to_string(folder.path("secret")).unwrap(), "secret");
    for share in ["C$", "ADMIN$", "list", "src\\..", "none"] {
        let text = folder.run(share, "ls", &[]);
        assert!(!text.contains("blocks"), "{share}: {text}");
    }
}

#[test]
fn names_are_whatever_the_host_has() {
    let folder = Folder::new();
    for name in ["ä 🦀", "A", "a", "CON", "e\u{301}", "é"] {
        fs::write(folder.path("shown").join(name), name).unwrap();
    }
    for name in ["ä 🦀", "A", "a", "CON", "e\u{301}", "é"] {
        let text = folder.run("src", &format!("get \"{name}\" got"), &[]);
        assert_eq!(fs::read_to_string(folder.path("got")).unwrap(), name, "{text}");
    }
}

#[test]
fn a_share_goes_while_it_is_used() {
    let folder = Folder::new();
    fs::write(folder.path("shown/first"), "").unwrap();
    // What comes on standard input may have commands of a shell in between.
    fs::write(folder.path("commands"), "ls first\n!rm list/src\nls first\nput password second\nls\n").unwrap();
    let input = fs::File::open(folder.path("commands")).unwrap();
    let text = said(&folder.client("src", &[]).stdin(input).output().unwrap());
    assert_eq!(text.matches("blocks of size").count(), 1, "{text}");
    assert!(text.contains("NT_STATUS_"), "{text}");
    assert_eq!(fs::read_dir(folder.path("shown")).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_served_is_said_before_anything_is() {
    let folder = Folder::new();
    folder.secret("empty", "");
    folder.secret("long", &"x".repeat(129));
    folder.secret("open", "correct-horse\n");
    fs::set_permissions(folder.path("open"), fs::Permissions::from_mode(0o640)).unwrap();
    // Nobody writes to it, and nobody waits for that.
    assert!(Command::new("mkfifo").arg(folder.path("pipe")).status().unwrap().success());
    let shown = format!("a={}", folder.path("shown").display());
    let password = folder.path("password");
    let (good, empty) = (password.to_str().unwrap(), folder.path("empty"));
    for (options, reason) in [
        (vec!["--password-file", "absent"], "cannot read the password in absent"),
        (vec!["--password-file", empty.to_str().unwrap()], "which a password is"),
        (vec!["--password-file", "long"], "which a password is"),
        (vec!["--password-file", "open"], "the password in open is for others to read or change: chmod 600 open"),
        (vec!["--password-file", "pipe"], "the password in pipe is in no regular file"),
        (vec!["--password-file", good, "--share", "a"], "--share a is not NAME=PATH or NAME=PATH:ro"),
        (vec!["--password-file", good, "--share", "a=absent"], "cannot open the folder absent of share \"a\""),
        (vec!["--password-file", good, "--share", "a=password"], "cannot open the folder password of share \"a\""),
        (vec!["--password-file", good, "--share", "a/b=/"], "share name \"a/b\" is not"),
        (vec!["--password-file", good, "--share", &shown, "--share", &shown], "there is a share \"a\" already"),
        (vec!["--password-file", good, "--shares-dir", "absent"], "cannot read the shares in absent"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cofferdam"));
        let output = command.arg("smb-serve").args(&options).current_dir(folder.0.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{options:?}");
        assert!(output.stdout.is_empty());
        assert!(said(&output).contains(reason), "{options:?}: {}", said(&output));
    }
}
