//! What a program sees and can do in a sandbox, and how its end is passed on. As root and as a plain user.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test without harness, which clippy does not know as one"
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{Bench, User};

/// How long something that is to happen may take, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);

type Case = (&'static str, fn(&Setting));

const CASES: &[Case] = &[
    ("passes on exit statuses", passes_on_exit_statuses),
    ("says why a program cannot be executed", says_why_a_program_cannot_be_executed),
    ("shows where a program is that it does not see", shows_where_a_program_is_that_it_does_not_see),
    ("starts nothing when a mount cannot be made", starts_nothing_when_a_mount_cannot_be_made),
    ("passes standard streams through", passes_standard_streams_through),
    ("gives only standard descriptors", gives_only_standard_descriptors),
    ("gives only the environment that was asked for", gives_only_the_environment_that_was_asked_for),
    ("has its own host name, hosts and users", has_its_own_names),
    ("writes the project as its owner", writes_the_project_as_its_owner),
    ("leaves no set-id program behind", leaves_no_set_id_program_behind),
    ("keeps the system read-only", keeps_the_system_read_only),
    ("hides secrets", hides_secrets),
    ("hides the host's directories", hides_the_hosts_directories),
    ("has fresh writable directories with one bound", has_fresh_writable_directories),
    ("has harmless devices only", has_harmless_devices_only),
    ("shows its own processes only", shows_its_own_processes_only),
    ("covers what speaks of the machine", covers_what_speaks_of_the_machine),
    ("has no capability and cannot get one", has_no_capability),
    ("has the capability that was asked for, inside", has_the_capability_that_was_asked_for),
    ("denies system calls", denies_system_calls),
    ("makes user namespaces only when allowed", makes_user_namespaces_only_when_allowed),
    ("cannot touch its pid 1", cannot_touch_its_pid_1),
    ("reaps orphans", reaps_orphans),
    ("ends everything with the program", ends_everything_with_the_program),
    ("passes signals on", passes_signals_on),
    ("ends at the second interrupt", ends_at_the_second_interrupt),
    ("ends when its time is up", ends_when_its_time_is_up),
    ("starts with signals as they should be", starts_with_signals_as_they_should_be),
    ("has a terminal of its own when asked", has_a_terminal_of_its_own),
    ("takes nothing from the user's terminal", takes_nothing_from_the_users_terminal),
    ("mounts what was asked for", mounts_what_was_asked_for),
    ("mounts a single file and a socket", mounts_a_single_file_and_a_socket),
    ("keeps sockets of a mount out of reach", keeps_sockets_of_a_mount_out_of_reach),
    ("follows no symbolic link out of the sandbox", follows_no_symbolic_link_out),
    ("runs in a root file system of the user's", runs_in_a_root_file_system),
    ("shows no etc that a root file system only links to", shows_no_etc_that_a_root_file_system_only_links_to),
    ("does not reach abstract sockets of the host", does_not_reach_abstract_sockets),
    ("has loopback and nothing else without a network", has_loopback_and_nothing_else),
    ("has an interface behind a confined gateway", has_an_interface_behind_a_confined_gateway),
    ("says when the gateway has died", says_when_the_gateway_has_died),
    ("limits processes", limits_processes),
    ("says which limit is not enforced", says_which_limit_is_not_enforced),
];

/// What a case runs in.
struct Setting<'a> {
    bench: &'a Bench,
    user: User,
    /// Whether the program runs in a sandbox that stays.
    inside: bool,
    directory: PathBuf,
}

fn main() -> ExitCode {
    support::supervise_if_asked();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let bench = Bench::new();
    let (mut passed, mut failed) = (0, 0);
    if !User::available().contains(&User::Root) {
        println!("SKIP: as root: this is not root");
    }
    for user in User::available() {
        let fresh = CASES.iter().map(|(name, case)| (false, *name, *case));
        for (inside, name, case) in fresh.chain(CASES.iter().map(|(name, case)| (true, *name, *case))) {
            let name = if inside { format!("{name} in one that stays") } else { name.to_owned() };
            if !wanted.is_empty() && !wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
                continue;
            }
            let setting = Setting { bench: &bench, user: *user, inside, directory: bench.directory(*user, &name) };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&setting)));
            println!("test {name} ({user:?}) ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
            passed += u32::from(outcome.is_ok());
            failed += u32::from(outcome.is_err());
        }
    }
    println!("{passed} passed, {failed} failed, 0 skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a supervisor said and how it ended.
#[derive(Debug)]
struct Ran {
    status: i32,
    out: String,
    err: String,
}

impl Setting<'_> {
    fn supervisor(&self, options: &[&str], command: &[&str]) -> Command {
        let mut supervisor = self.bench.supervisor(self.user, &self.directory);
        supervisor
            .args(self.inside.then_some(support::INSIDE))
            .args(options)
            .arg("--")
            .args(command)
            .stdin(Stdio::null());
        supervisor
    }

    fn run(&self, options: &[&str], command: &[&str]) -> Ran {
        let output = self.supervisor(options, command).output().unwrap();
        Ran {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).trim_end().to_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What a shell script wrote, in a sandbox without further options.
    fn shell(&self, script: &str) -> String {
        self.shell_with(&[], script)
    }

    fn shell_with(&self, options: &[&str], script: &str) -> String {
        let ran = self.run(options, &["sh", "-c", script]);
        assert!(!ran.err.contains("error:"), "{ran:?}");
        ran.out
    }
}

fn passes_on_exit_statuses(setting: &Setting) {
    for status in [0, 1, 42, 255] {
        assert_eq!(setting.run(&[], &["sh", "-c", &format!("exit {status}")]).status, status);
    }
    assert_eq!(setting.run(&[], &["sh", "-c", "kill -9 $$"]).status, 128 + 9);
    assert_eq!(setting.run(&[], &["sh", "-c", "kill -SEGV $$"]).status, 128 + 11);
}

fn says_why_a_program_cannot_be_executed(setting: &Setting) {
    assert_eq!(setting.run(&[], &["no-such-program"]).status, 127);
    assert_eq!(setting.run(&[], &["/no/such/program"]).status, 127);
    assert_eq!(setting.run(&[], &["/etc/hostname"]).status, 126);
    assert_eq!(setting.run(&[], &["/etc"]).status, 126);
    let ran = setting.run(&["--workdir", "/no/such/place"], &["true"]);
    assert_eq!(ran.status, 125);
    assert!(ran.err.contains("enter the working directory /no/such/place"), "{ran:?}");
}

fn shows_where_a_program_is_that_it_does_not_see(setting: &Setting) {
    let outside = setting.directory.with_extension("bin");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("tool"), "#!/bin/sh\necho here\n").unwrap();
    std::fs::set_permissions(outside.join("tool"), PermissionsExt::from_mode(0o755)).unwrap();
    let (path, outside) = (format!("PATH=/usr/bin:{}", outside.display()), outside.display());
    let ran = setting.run(&["--env", &path], &["tool"]);
    assert_eq!(ran.status, 127);
    assert!(ran.err.contains(&format!("--mount {outside}:{outside}:ro")), "{ran:?}");
    let mount = format!("{outside}:{outside}:ro");
    assert_eq!(setting.run(&["--env", &path, "--mount", &mount], &["tool"]).out, "here");
}

fn starts_nothing_when_a_mount_cannot_be_made(setting: &Setting) {
    for mount in ["/no/such/source:/mnt", "/usr:/usr/no/such/place", "/usr:/", "/usr:relative", "/usr:/a/../b"] {
        let ran = setting.run(&["--mount", mount], &["sh", "-c", "touch started"]);
        assert_eq!(ran.status, 125, "{mount}: {ran:?}");
        assert!(!setting.directory.join("started").exists(), "{mount}");
    }
}

fn passes_standard_streams_through(setting: &Setting) {
    let mut supervisor = setting.supervisor(&[], &["sh", "-c", "cat; echo bad >&2"]);
    let mut child = supervisor.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"in and out").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"in and out");
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("bad\n"));
}

fn gives_only_standard_descriptors(setting: &Setting) {
    // One that lacks close-on-exec, as a careless caller leaves it.
    let leaked = std::fs::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    // A shell would have its script open; `ls` has the directory it lists.
    let listed = setting.run(&[], &["ls", "/proc/self/fd"]).out;
    assert_eq!(listed, "0\n1\n2\n3");
    let listed = setting.run(&["--network"], &["ls", "/proc/self/fd"]).out;
    assert_eq!(listed, "0\n1\n2\n3");
}

fn gives_only_the_environment_that_was_asked_for(setting: &Setting) {
    let mut supervisor = setting.supervisor(&["--env", "A=b c"], &["env"]);
    supervisor.env("SECRET", "x");
    let output = supervisor.output().unwrap();
    let mut lines: Vec<&str> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=b c", "LANG=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin"]);
}

fn has_its_own_names(setting: &Setting) {
    assert_eq!(
        setting.shell("uname -n; cat /etc/hostname; cat /proc/sys/kernel/domainname"),
        "sandbox\nsandbox\n(none)"
    );
    assert_eq!(setting.shell("id -u; id -g; id -un; id -gn; echo ~user"), "1000\n1000\nuser\nuser\n/home/user");
    let hosts = setting.shell("cat /etc/hosts");
    assert!(hosts.contains("127.0.0.1\tlocalhost") && hosts.contains("127.0.1.1\tsandbox"), "{hosts}");
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if host != "localhost" && host != "sandbox" {
        let found = setting.shell(&format!(
            "grep -lsw -- '{host}' /etc/host* /etc/mailname /etc/machine-info /etc/resolv.conf || true"
        ));
        assert_eq!(found, "", "the host's name {host} is in these files");
    }
}

fn writes_the_project_as_its_owner(setting: &Setting) {
    std::fs::write(setting.directory.join("old"), "old").unwrap();
    std::os::unix::fs::chown(setting.directory.join("old"), Some(setting.user.uid()), Some(setting.user.uid())).ok();
    let seen = setting
        .shell("pwd; echo more >> old; mkdir -p a/b; echo new > a/b/new; mv a/b/new a/moved; stat -c %u old a/moved");
    assert_eq!(seen, format!("{}\n1000\n1000", setting.directory.display()));
    assert_eq!(std::fs::read_to_string(setting.directory.join("old")).unwrap(), "oldmore\n");
    for name in ["old", "a", "a/b", "a/moved"] {
        let metadata = std::fs::metadata(setting.directory.join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (setting.user.uid(), setting.user.uid()), "{name}");
    }
}

/// On the host it would run as the project's owner, for whoever starts it.
fn leaves_no_set_id_program_behind(setting: &Setting) {
    let script = "cp /bin/true p; for mode in 4755 2755 6755 u+s g+s; do chmod $mode p 2>/dev/null; echo $?; done; chmod 755 p; echo $?; \
                  python3 -c 'import os; os.open(\"q\", os.O_CREAT | os.O_WRONLY, 0o4755)' 2>&1 | tail -1; \
                  python3 -c 'import os; os.mknod(\"r\", 0o104755)' 2>&1 | tail -1; ls p q r 2>/dev/null";
    let said = setting.shell(script);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..6], ["1", "1", "1", "1", "1", "0"], "{said}");
    assert!(lines[6].contains("PermissionError") && lines[7].contains("PermissionError"), "{said}");
    assert_eq!(lines[8..], ["p"], "{said}");
}

fn keeps_the_system_read_only(setting: &Setting) {
    for path in ["/x", "/usr/x", "/etc/x", "/etc/ssl/x", "/home/x", "/dev/x", "/proc/sys/kernel/x", "/sys/x", "/var/x"]
    {
        let said = setting.shell(&format!("touch {path} 2>&1 || true"));
        assert!(
            said.contains("Read-only") || said.contains("No such file") || said.contains("denied"),
            "{path}: {said}"
        );
        assert!(!Path::new(path).exists(), "{path}");
    }
    let said = setting.shell("touch /usr/x 2>&1; chmod 777 /usr/bin/env 2>&1; echo x 2>&1 > /usr/bin/env; true");
    assert!(said.lines().filter(|line| line.contains("Read-only")).count() >= 2, "{said}");
    let writable = setting.shell("awk '$6 !~ /^ro/ { print $5 }' /proc/self/mountinfo | sort");
    let mut expected = vec!["/dev/pts", "/dev/shm", "/home/user", "/proc", "/run", "/tmp", "/var/tmp"];
    let project = setting.directory.display().to_string();
    expected.push(&project);
    let devices = ["full", "null", "random", "tty", "urandom", "zero"].map(|name| format!("/dev/{name}"));
    expected.extend(devices.iter().map(String::as_str));
    expected.sort_unstable();
    let mut writable: Vec<&str> = writable.lines().collect();
    // A run in a sandbox that stays has its own on top.
    writable.dedup();
    assert_eq!(writable, expected);
    let able = setting.shell("awk '$6 !~ /nosuid/ { print $5 }' /proc/self/mountinfo");
    assert_eq!(able, "", "set-user-id programs work there");
}

fn hides_secrets(setting: &Setting) {
    for path in
        ["shadow", "gshadow", "shadow-", "passwd-", "machine-id", "sudoers", "ssl/private/*", "ssh/ssh_host_*_key"]
    {
        let said = setting.shell(&format!("cat /etc/{path} 2>/dev/null || true"));
        assert_eq!(said, "", "{path}");
    }
    // As root the sandbox runs as a user that may not read these anyway: so look at what is there, too.
    let sizes = setting.shell("stat -c '%s %F' /etc/ssh/ssh_host_* 2>/dev/null | sort -u");
    assert!(sizes.is_empty() || sizes == "0 character special file", "{sizes}");
    assert!(setting.shell("ls /etc").contains("nsswitch.conf"));
}

fn hides_the_hosts_directories(setting: &Setting) {
    let listed = setting.shell("ls -A /home /tmp /run /var /root /srv /mnt /media /boot 2>/dev/null; true");
    for line in listed.lines().filter(|line| !line.ends_with(':') && !line.is_empty()) {
        let known = ["user", "run", "tmp"].contains(&line) || line.starts_with("cofferdam-test-");
        assert!(known, "{line} in\n{listed}");
    }
}

fn has_fresh_writable_directories(setting: &Setting) {
    let script = "for d in /tmp /var/tmp /home/user /run /dev/shm; do echo x > $d/f || echo $d; stat -c %a $d; done; df --output=target /tmp | wc -l; \
                  printf '#!/bin/sh\\necho ran\\n' > /tmp/p; chmod 755 /tmp/p; /tmp/p";
    assert_eq!(setting.shell(script), "1777\n1777\n755\n755\n1777\n2\nran");
    let full = setting.shell_with(
        &["--memory", "4194304"],
        "dd if=/dev/zero of=/tmp/big bs=1M count=3 2>/dev/null && dd if=/dev/zero of=/home/user/big bs=1M count=3 2>&1 | grep -c 'No space'",
    );
    assert_eq!(full, "1");
}

fn has_harmless_devices_only(setting: &Setting) {
    let found = setting
        .shell("for f in /dev/* /dev/pts/* /dev/shm/*; do [ ! -L $f ] && [ -c $f -o -b $f ] && echo $f; done; true");
    assert_eq!(
        found.lines().collect::<Vec<_>>(),
        ["/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero", "/dev/pts/ptmx"]
    );
    let said = setting.shell(
        "echo x > /dev/null && head -c 4 /dev/urandom | wc -c; mknod /tmp/n c 1 3 2>&1; mknod /tmp/b b 8 0 2>&1; true",
    );
    assert!(said.starts_with("4\n") && said.matches("Operation not permitted").count() == 2, "{said}");
    // Scripts write to these by name. The pipe is this process's, so it is the supervisor's when both are one user.
    if setting.user.uid() == rustix::process::getuid().as_raw() {
        let said = setting.shell("echo a > /dev/stdout; echo b | cat /dev/stdin; echo c > /proc/self/fd/2");
        assert_eq!(said, "a\nb");
    }
}

fn shows_its_own_processes_only(setting: &Setting) {
    let shown =
        setting.run(&[], &["sh", "-c", "echo /proc/[0-9]*; readlink /proc/self; tr '\\0' ' ' < /proc/1/cmdline"]).out;
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], "/proc/1 /proc/2");
    // Nothing of the supervisor's command line.
    assert_eq!(lines[2].trim(), "cofferdam-init");
}

fn covers_what_speaks_of_the_machine(setting: &Setting) {
    for path in ["kcore", "keys", "timer_list", "kmsg", "vmallocinfo", "interrupts", "key-users", "kpageflags"] {
        let size = setting.shell(&format!("cat /proc/{path} 2>/dev/null | head -c 1 | wc -c"));
        assert_eq!(size, "0", "{path}");
    }
    let said = setting.shell("echo h > /proc/sysrq-trigger; echo 1 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/kernel/core_pattern; ls -A /sys/firmware 2>/dev/null | wc -l");
    assert_eq!(said, "0");
}

fn has_no_capability(setting: &Setting) {
    let shown = setting.shell("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status");
    for line in shown.lines().filter(|line| line.starts_with("Cap")) {
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
    assert!(shown.contains("NoNewPrivs:\t1") && shown.contains("Seccomp:\t2"), "{shown}");
    let said = setting.shell("chown 0 . 2>&1; mount -t tmpfs x /tmp 2>&1; unshare -m true 2>&1; hostname x 2>&1; date -s 2000-01-01 2>&1 >/dev/null; chroot / true 2>&1; true");
    assert_eq!(said.lines().count(), 6 + said.lines().filter(|line| line.contains("dmesg(1)")).count(), "{said}");
}

fn has_the_capability_that_was_asked_for(setting: &Setting) {
    let shown = setting.shell_with(
        &["--cap", "NET_RAW", "--cap", "CAP_NET_ADMIN"],
        "id -u; grep ^Cap /proc/self/status; grep -c . /proc/self/uid_map; cat /proc/self/uid_map",
    );
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], "0");
    // Bits 12 and 13.
    assert!(lines[1..6].iter().all(|line| line.ends_with("\t0000000000003000")), "{shown}");
    let said = setting.shell_with(&["--cap", "NET_ADMIN"], "ip link add d0 type veth peer name d1 && ip -br link show d0; ip link set lo down; echo $?; cat /etc/shadow 2>&1; touch /usr/x 2>&1");
    assert!(said.contains("d0") && said.contains("Read-only"), "{said}");
    let ran = setting.run(&["--cap", "SYS_ADMIN", "--userns"], &["true"]);
    assert_eq!(ran.status, 125, "{ran:?}");
    let said = setting.shell_with(
        &["--cap", "SYS_ADMIN"],
        "mount -o remount,rw /usr 2>&1; mount -t tmpfs x /tmp 2>&1; umount /etc/ssl 2>&1; true",
    );
    assert!(said.lines().count() >= 3 && !said.contains("mounted"), "{said}");
}

fn denies_system_calls(setting: &Setting) {
    // name, number on x86-64, arguments, and the errors that are right
    const SCRIPT: &str = r#"
import ctypes, os, socket, struct, fcntl, sys, tty, pty
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *args):
    ctypes.set_errno(0)
    rc = libc.syscall(number, *args)
    print(name, rc, ctypes.get_errno())
call("keyctl", 250, 0, -3, 0)
call("add_key", 248, b"user", b"x", b"y", 1, -3)
call("bpf", 321, 0, 0, 0)
call("perf", 298, 0, 0, 0, 0, 0)
call("userfaultfd", 323, 0)
call("init_module", 175, 0, 0, 0)
call("open_by_handle_at", 304, 0, 0, 0)
call("setns", 308, 0, 0)
call("fsopen", 430, b"tmpfs", 0)
call("open_tree", 428, -100, b"/", 1)
call("unshare", 272, 0x10000000)
call("clone", 56, 0x10000000 | 17, 0, 0, 0, 0)
call("settime", 227, 0, 0)
call("syslog", 103, 3, 0, 0)
call("iopl", 172, 3)
call("clone3", 435, 0, 0)
call("io_uring", 425, 1, 0)
call("x32", 39 | 0x40000000)
for family in (40, 38, 31, 9, 21, 44):
    try:
        socket.socket(family, socket.SOCK_STREAM); print("family", family, "open")
    except OSError as e:
        print("family", e.errno)
a, b = pty.openpty()
for command in (0x5412, 0x541c, 0x5423, 0x1_0000_5412):
    ctypes.set_errno(0)
    rc = libc.syscall(16, b, ctypes.c_ulong(command), b"\0\0\0\0")
    print("ioctl", rc, ctypes.get_errno())
"#;
    if !cfg!(target_arch = "x86_64") || !Path::new("/usr/bin/python3").exists() {
        println!("SKIP: denies system calls: no /usr/bin/python3, or not x86-64");
        return;
    }
    let said = setting.run(&[], &["python3", "-c", SCRIPT]);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines.len(), 28, "{said:?}");
    for line in lines {
        let right = match line.split(' ').next().unwrap() {
            "clone3" | "io_uring" | "x32" => "-1 38",
            "family" => "97",
            _ => "-1 1",
        };
        assert!(line.ends_with(right), "{line}");
    }
    // What everybody needs still works: threads, subprocesses, sockets, tracing one's own children.
    let fine = "import threading, subprocess, socket, multiprocessing\n\
                t = threading.Thread(target=lambda: None); t.start(); t.join()\n\
                subprocess.run(['true'], check=True)\n\
                socket.socketpair(); socket.socket(socket.AF_INET6); socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\n\
                print('fine')";
    assert_eq!(setting.run(&[], &["python3", "-c", fine]).out, "fine");
}

fn makes_user_namespaces_only_when_allowed(setting: &Setting) {
    assert_ne!(setting.run(&[], &["unshare", "-Ur", "true"]).status, 0);
    let said = setting.shell_with(
        &["--userns"],
        "unshare -Urm sh -c 'id -u; mount -t tmpfs x /tmp && echo mounted; mount -o remount,rw,bind /usr 2>&1; touch /usr/x 2>&1'",
    );
    assert!(said.starts_with("0\nmounted"), "{said}");
    assert!(said.lines().last().unwrap().contains("Read-only"), "{said}");
}

fn cannot_touch_its_pid_1(setting: &Setting) {
    let script = "kill -9 1 2>&1; kill -TERM 1 2>&1; cat /proc/1/environ 2>&1; ls /proc/1/fd 2>&1; cat /proc/1/mem 2>&1 | head -c 1; readlink /proc/1/exe; echo alive";
    for options in [&[][..], &["--cap", "SYS_PTRACE", "--cap", "KILL"]] {
        let said = setting.shell_with(options, script);
        assert!(said.ends_with("alive"), "{said}");
        assert!(said.matches("ermission denied").count() >= 2, "{said}");
        assert!(!said.contains("program"), "{said}");
    }
}

fn reaps_orphans(setting: &Setting) {
    let script = "for i in 1 2 3 4 5; do sh -c 'true & exec true' & done; wait; sleep 0.3; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
    assert_eq!(setting.shell(script), "0");
}

fn ends_everything_with_the_program(setting: &Setting) {
    let started = Instant::now();
    // A process of a session of its own, which minds no signal.
    let ran = setting
        .run(&[], &["sh", "-c", "(trap '' HUP TERM INT; setsid sleep 77.001) >/dev/null 2>&1 & sleep 0.2; exit 5"]);
    assert_eq!(ran.status, 5);
    assert!(started.elapsed() < PATIENCE);
    let left = support::processes().into_iter().filter(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("77.001"))
    });
    assert_eq!(left.count(), 0);
}

/// A supervisor whose program says `ready` and then waits; with the reader of its output.
fn started(
    setting: &Setting,
    options: &[&str],
    script: &str,
) -> (std::process::Child, BufReader<std::process::ChildStdout>) {
    let mut supervisor = setting.supervisor(options, &["sh", "-c", script]);
    let mut child = supervisor.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, out)
}

fn signal(child: &std::process::Child, signal: Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

fn passes_signals_on(setting: &Setting) {
    for (sent, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT"), (Signal::HUP, "HUP"), (Signal::USR1, "USR1")] {
        // The shell waits in `wait`, which a trapped signal interrupts.
        let script = format!("trap 'echo got; exit 7' {name}; echo ready; sleep 60 & wait");
        let (mut child, mut out) = started(setting, &[], &script);
        signal(&child, sent);
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "got\n", "{name}");
        assert_eq!(child.wait().unwrap().code(), Some(7), "{name}");
    }
    let (mut child, _out) = started(setting, &[], "echo ready; exec sleep 60");
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

fn ends_at_the_second_interrupt(setting: &Setting) {
    let (mut child, mut out) = started(setting, &[], "trap 'echo got' INT; echo ready; while :; do sleep 0.05; done");
    signal(&child, Signal::INT);
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "got\n");
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 2));
}

fn ends_when_its_time_is_up(setting: &Setting) {
    let begin = Instant::now();
    assert_eq!(setting.run(&["--timeout-ms", "300"], &["sleep", "60"]).status, 124);
    assert!(begin.elapsed() < Duration::from_secs(2), "TERM was enough");
    let ran = setting.run(&["--timeout-ms", "300"], &["sh", "-c", "trap 'echo got; exit 3' TERM; sleep 60 & wait"]);
    assert_eq!((ran.status, ran.out.as_str()), (124, "got"));
    let begin = Instant::now();
    let ran = setting.run(&["--timeout-ms", "300"], &["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]);
    assert_eq!(ran.status, 124);
    assert!(begin.elapsed() >= Duration::from_secs(2), "it had time to clean up");
}

fn starts_with_signals_as_they_should_be(setting: &Setting) {
    // SIGPIPE is ignored in every Rust program and must not be in this one.
    let shown = setting.run(&[], &["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]).out;
    assert_eq!(shown, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000");
    let mut supervisor = setting.bench.supervisor(setting.user, &setting.directory);
    supervisor.args(["--", "grep", "^SigIgn", "/proc/self/status"]);
    let mut nohup = Command::new("nohup");
    nohup.arg(supervisor.get_program()).args(supervisor.get_args()).current_dir(&setting.directory);
    nohup.stdin(Stdio::null());
    if setting.user.uid() != rustix::process::getuid().as_raw() {
        std::os::unix::process::CommandExt::uid(&mut nohup, setting.user.uid());
        std::os::unix::process::CommandExt::gid(&mut nohup, setting.user.uid());
    }
    let output = nohup.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), "SigIgn:\t0000000000000001");
}

/// A terminal for a supervisor: the end that plays the user, and the supervisor's.
fn terminal(rows: u16, columns: u16) -> (OwnedFd, OwnedFd) {
    let pty = cofferdam_sys::tty::open_pty().unwrap();
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    cofferdam_sys::tty::set_size(&pty.controller, size).unwrap();
    (pty.controller, pty.terminal)
}

/// Reads from a terminal until it has shown `wanted`, or is closed, or the time is up.
fn read_until(terminal: &OwnedFd, wanted: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    let mut shown = String::new();
    while !shown.contains(wanted) && Instant::now() < deadline {
        let mut fds = [rustix::event::PollFd::new(terminal, rustix::event::PollFlags::IN)];
        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        if rustix::event::poll(&mut fds, Some(&pause)).unwrap_or(0) == 0 {
            continue;
        }
        let mut buffer = [0; 4096];
        match rustix::io::read(terminal, &mut buffer) {
            Ok(len @ 1..) => shown.push_str(&String::from_utf8_lossy(&buffer[..len])),
            Ok(_) | Err(_) => break,
        }
    }
    shown
}

fn has_a_terminal_of_its_own(setting: &Setting) {
    let (user, supervisors) = terminal(33, 77);
    let script = "tty; stty size; echo typed-$(head -n 1); ps -o tty= -p $$; trap 'echo resized; stty size' WINCH; echo armed; while :; do sleep 0.05; done";
    let before = rustix::termios::tcgetattr(&supervisors).unwrap();
    let mut supervisor = setting.supervisor(&["--pty"], &["sh", "-c", script]);
    supervisor.stdin(supervisors.try_clone().unwrap()).stdout(supervisors.try_clone().unwrap());
    let mut child = supervisor.stderr(Stdio::null()).spawn().unwrap();
    let shown = read_until(&user, "33 77");
    assert!(shown.contains("/dev/pts/0") && shown.contains("33 77"), "{shown}");
    rustix::io::write(&user, b"hello\r").unwrap();
    let shown = read_until(&user, "armed");
    assert!(shown.contains("typed-hello") && shown.contains("pts/0"), "{shown}");
    let size = rustix::termios::Winsize { ws_row: 12, ws_col: 34, ws_xpixel: 0, ws_ypixel: 0 };
    cofferdam_sys::tty::set_size(&user, size).unwrap();
    signal(&child, Signal::WINCH);
    let shown = read_until(&user, "12 34");
    assert!(shown.contains("resized") && shown.contains("12 34"), "{shown}");
    // ^C is a character there, and the program's own terminal makes a signal of it.
    rustix::io::write(&user, b"\x03").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 2));
    let after = rustix::termios::tcgetattr(&supervisors).unwrap();
    assert_eq!(before.local_modes, after.local_modes);
}

fn takes_nothing_from_the_users_terminal(setting: &Setting) {
    let (user, supervisors) = terminal(24, 80);
    // The terminal as standard input, but in a session without it.
    let script = "echo seen; tty; cat /dev/tty 2>&1; ps -o tty= -p $$; echo done";
    let mut supervisor = setting.supervisor(&[], &["sh", "-c", script]);
    supervisor.stdin(supervisors.try_clone().unwrap()).stdout(supervisors.try_clone().unwrap());
    let mut child = supervisor.stderr(Stdio::null()).spawn().unwrap();
    let shown = read_until(&user, "done");
    assert!(shown.contains("seen") && shown.contains("No such device or address") && shown.contains('?'), "{shown}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn mounts_what_was_asked_for(setting: &Setting) {
    let shared = setting.directory.with_extension("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "content").unwrap();
    std::fs::set_permissions(shared.join("file"), PermissionsExt::from_mode(0o600)).unwrap();
    for path in [shared.clone(), shared.join("file")] {
        std::os::unix::fs::chown(path, Some(setting.user.uid()), Some(setting.user.uid())).ok();
    }
    let (writable, read_only) = (format!("{}:/mnt/w", shared.display()), format!("{}:/deep/er/r:ro", shared.display()));
    let script = "cat /mnt/w/file /deep/er/r/file; echo; echo new > /mnt/w/new; for c in 'touch x' 'rm file' 'chmod 777 file' 'mv file g' 'ln file l' 'truncate -s 0 file'; do (cd /deep/er/r; $c) 2>&1 | grep -c Read-only; done";
    let said = setting.shell_with(&["--mount", &writable, "--mount", &read_only], script);
    assert_eq!(said, "contentcontent\n1\n1\n1\n1\n1\n1");
    let metadata = std::fs::metadata(shared.join("new")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (setting.user.uid(), setting.user.uid()));
    // One mount in another, whichever was named first.
    std::fs::create_dir(shared.join("place")).unwrap();
    let (outer, inner) = (format!("{}:/outer:ro", shared.display()), "/usr/share:/outer/place:ro");
    let said = setting.shell_with(&["--mount", inner, "--mount", &outer], "cat /outer/file; ls /outer/place");
    assert!(said.starts_with("content") && said.contains("zoneinfo"), "{said}");
}

fn mounts_a_single_file_and_a_socket(setting: &Setting) {
    let file = setting.directory.with_extension("file");
    std::fs::write(&file, "one file").unwrap();
    let mount = format!("{}:/some/where/file:ro", file.display());
    assert_eq!(setting.shell_with(&["--mount", &mount], "cat /some/where/file"), "one file");
}

fn keeps_sockets_of_a_mount_out_of_reach(setting: &Setting) {
    let socket = setting.directory.join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(std::fs::metadata(&socket).unwrap().file_type().is_socket());
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    std::os::unix::fs::chown(&socket, Some(setting.user.uid()), Some(setting.user.uid())).ok();
    let connect = "import socket\ns = socket.socket(socket.AF_UNIX)\ntry:\n s.connect('socket'); print('connected')\nexcept OSError as e: print(e.errno)";
    let said = setting.run(&[], &["python3", "-c", connect]).out;
    drop(listener);
    // Landlock can forbid this from ABI 9 on; before, a socket that lies in the project is a part of it.
    println!("   a socket in the project: {said}");
    assert!(said == "connected" || said == "13", "{said}");
}

fn follows_no_symbolic_link_out(setting: &Setting) {
    // In a tree of the user's a link that leads to a place of the host's, and a mount that goes through it.
    let root = setting.directory.with_extension("root");
    let victim = setting.directory.with_extension("victim");
    std::fs::create_dir(&victim).unwrap();
    for path in ["usr", "etc", "bin"] {
        std::fs::create_dir_all(root.join(path)).unwrap();
    }
    std::os::unix::fs::symlink(&victim, root.join("link")).unwrap();
    let mount = "/usr/share:/link/sub:ro";
    let ran =
        setting.run(&["--rootfs", root.to_str().unwrap(), "--mount", mount, "--no-cwd", "--workdir", "/"], &["/x"]);
    assert!(ran.status == 125 || ran.status == 127, "{ran:?}");
    assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
}

fn shows_no_etc_that_a_root_file_system_only_links_to(setting: &Setting) {
    let root = setting.directory.with_extension("root");
    let elsewhere = setting.directory.with_extension("elsewhere");
    std::fs::create_dir_all(root.join("usr")).unwrap();
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("secret"), "of the host\n").unwrap();
    let mounts = [
        "--mount",
        "/usr:/usr:ro",
        "--mount",
        "/lib:/lib:ro",
        "--mount",
        "/lib64:/lib64:ro",
        "--mount",
        "/bin:/bin:ro",
    ];
    let options = [&["--rootfs", root.to_str().unwrap(), "--no-cwd"][..], &mounts].concat();
    for path in ["lib", "lib64", "bin"] {
        std::fs::create_dir(root.join(path)).unwrap();
    }
    std::os::unix::fs::symlink(&elsewhere, root.join("etc")).unwrap();
    let said = setting.shell_with(&options, "ls /etc");
    assert!(said.contains("hostname") && !said.contains("secret"), "{said}");
    // The same files are shown when they are the tree's own.
    std::fs::remove_file(root.join("etc")).unwrap();
    std::fs::rename(&elsewhere, root.join("etc")).unwrap();
    let said = setting.shell_with(&options, "ls /etc");
    assert!(said.contains("secret"), "{said}");
}

fn runs_in_a_root_file_system(setting: &Setting) {
    let root = setting.directory.with_extension("root");
    for path in ["usr/bin", "etc/special", "var/tmp", "data"] {
        std::fs::create_dir_all(root.join(path)).unwrap();
    }
    std::fs::write(root.join("etc/mine"), "of the tree\n").unwrap();
    std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
    let Ok(busybox) = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists()).ok_or(())
    else {
        // Without a static program: the host's, mounted over the tree.
        let options = [
            "--rootfs",
            root.to_str().unwrap(),
            "--mount",
            "/usr:/usr:ro",
            "--mount",
            "/lib:/lib:ro",
            "--mount",
            "/lib64:/lib64:ro",
            "--no-cwd",
        ];
        let said = setting.shell_with(&options, "cat /etc/mine; ls /etc/special /data; touch /data/x 2>&1; touch /var/tmp/x /tmp/x; cat /etc/hostname; ls /usr/lib/os-release");
        assert!(said.contains("of the tree") && said.contains("Read-only") && said.contains("sandbox"), "{said}");
        return;
    };
    std::fs::copy(busybox, root.join("usr/bin/busybox")).unwrap();
    let options = ["--rootfs", root.to_str().unwrap(), "--no-cwd"];
    let ran = setting.run(&options, &["/bin/busybox", "sh", "-c", "cat /etc/mine; touch /data/x; cat /etc/hostname"]);
    assert!(ran.out.contains("of the tree") && ran.out.contains("sandbox"), "{ran:?}");
}

fn does_not_reach_abstract_sockets(setting: &Setting) {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("cofferdam-canary-{}-{:?}", std::process::id(), setting.user);
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let connect = format!(
        "import socket\ns = socket.socket(socket.AF_UNIX)\ntry:\n s.connect('\\0{name}'); print('connected')\nexcept OSError as e: print(e.errno)"
    );
    assert_eq!(setting.run(&[], &["python3", "-c", &connect]).out, "111");
}

fn has_loopback_and_nothing_else(setting: &Setting) {
    let shown = setting.shell("cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '; cat /proc/net/route | wc -l");
    assert_eq!(shown, "lo\n1");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let said = setting.shell(&format!("bash -c 'echo > /dev/tcp/127.0.0.1/{port}' 2>&1; true"));
    assert!(said.contains("Connection refused"), "{said}");
}

/// The gateway of a supervisor, which is neither an init nor the keeper of a sandbox that stays.
fn gateway(supervisor: u32) -> u32 {
    let is_gateway = |pid: &u32| {
        support::name(*pid).is_ok_and(|name| !name.starts_with("cofferdam-init")) && support::children(*pid).is_empty()
    };
    support::children(supervisor).into_iter().find(is_gateway).unwrap()
}

fn has_an_interface_behind_a_confined_gateway(setting: &Setting) {
    let (mut child, mut out) = started(
        setting,
        &["--network"],
        "echo ready; tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ' | sort; exec sleep 60",
    );
    let supervisor = child.id();
    let gateway = gateway(supervisor);
    let status = std::fs::read_to_string(format!("/proc/{gateway}/status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let uids: Vec<u32> = field("Uid:").split_ascii_whitespace().map(|uid| uid.parse().unwrap()).collect();
    let expected =
        if setting.user == User::Root { 0x7000_0000..=0x77ff_ffff } else { setting.user.uid()..=setting.user.uid() };
    assert!(uids.iter().all(|uid| expected.contains(uid)), "{uids:?}");
    if setting.user == User::Root {
        assert_eq!(field("Groups:"), "");
    }
    let mut shown = String::new();
    for _ in 0..2 {
        out.read_line(&mut shown).unwrap();
    }
    assert_eq!(shown, "eth0\nlo\n");
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

fn says_when_the_gateway_has_died(setting: &Setting) {
    let (mut child, _out) = started(setting, &["--network"], "echo ready; exec sleep 60");
    let gateway = gateway(child.id());
    let pid = rustix::process::Pid::from_raw(i32::try_from(gateway).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    // Said while the program runs: it would run for a minute.
    let mut said = String::new();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    err.read_line(&mut said).unwrap();
    assert_eq!(said, format!("{}Signaled(9) \n", support::GATEWAY_DIED));
    assert!(child.try_wait().unwrap().is_none(), "the program goes on without a network");
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    err.read_to_string(&mut said).unwrap();
    assert!(said.contains("gateway: Died(Signaled(9))"), "{said}");
}

fn limits_processes(setting: &Setting) {
    let said = setting.shell_with(&["--pids", "5"], "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done 2>&1; wait");
    assert!(said.contains("annot fork"), "{said}");
}

/// Either a cgroup keeps the program from using more, or the user is told that nothing does.
fn says_which_limit_is_not_enforced(setting: &Setting) {
    let eats = "head -c 100M /dev/zero | tail -n 1 >/dev/null && echo ate";
    let ran = setting.run(&["--memory", "33554432"], &["sh", "-c", eats]);
    let said = ran.err.lines().find(|line| line.contains("memory limit is not enforced"));
    println!("   {}", said.unwrap_or("enforced by a cgroup"));
    assert_eq!(ran.out, if said.is_some() { "ate" } else { "" }, "{ran:?}");
}
