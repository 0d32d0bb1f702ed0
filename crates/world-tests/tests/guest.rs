//! The agent in a machine of its own, driven over its channel: no network, no backend, the protocol's host alone.
//!
//! | Environment | Means |
//! |---|---|
//! | `COFFERDAM_BIN` | its `vm setup` makes what the machine starts from, with the agent beside it |
//! | `COFFERDAM_TEST_KERNEL` | the Debian package of a kernel; without it `vm setup` fetches one |

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test stops where it fails"
)]

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cofferdam_guest_protocol::{
    CallId, Event, Exec, Failure, FailureKind, Host, Leftover, Mount, MountKind, Neighbour, Network, Put, Route, Size,
    Status, Stream, Token, Violation,
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// Longer than anything here takes on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(180);

/// A machine and its host.
struct Guest {
    qemu: Child,
    socket: UnixStream,
    host: Host,
    events: VecDeque<Event>,
}

/// What became of a program.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    out: String,
    err: String,
    end: Result<Status, Failure>,
}

/// What machines start from. On disk it has no name any more.
struct Files {
    kernel: File,
    initramfs: Vec<u8>,
}

/// Makes it once.
fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let state = Folder::new("state");
        let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/release/cofferdam");
        let program = std::env::var_os("COFFERDAM_BIN").unwrap_or(workspace.into());
        let mut setup = Command::new(program);
        setup.args(["vm", "setup"]).env("XDG_STATE_HOME", &state.0);
        if let Some(package) = std::env::var_os("COFFERDAM_TEST_KERNEL").filter(|package| !package.is_empty()) {
            setup.arg("--from-deb").arg(package);
        }
        let done = setup.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let made = state.0.join("cofferdam/vm").join(std::env::consts::ARCH);
        Files { kernel: File::open(made.join("kernel")).unwrap(), initramfs: fs::read(made.join("initramfs")).unwrap() }
    })
}

/// A folder of a test, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("cofferdam-guest-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Guest {
    /// A machine whose agent has been greeted.
    fn boot(append: &str, devices: &[&str]) -> Guest {
        let mut guest = Guest::start(append, devices, [9; Token::LENGTH], [9; Token::LENGTH]);
        match guest.try_event() {
            Ok(Some(event)) => assert_eq!(event, Event::Ready),
            other => panic!("{other:?}, and then {:?}", guest.last_words()),
        }
        guest
    }

    fn start(append: &str, devices: &[&str], known: [u8; Token::LENGTH], told: [u8; Token::LENGTH]) -> Guest {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let folder = Folder::new(&format!("boot-{}", STARTED.fetch_add(1, Ordering::Relaxed)));
        let files = files();
        let path = folder.0.join("initrd");
        let boot = cofferdam_initramfs::boot_archive(&told);
        fs::write(&path, [&files.initramfs, cofferdam_initramfs::padding(files.initramfs.len()), &boot].concat())
            .unwrap();
        let (kernel, initrd) = (files.kernel.try_clone().unwrap(), File::open(path).unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut qemu = Command::new(format!("qemu-system-{}", std::env::consts::ARCH));
        // As a run has them (`backend-vm/src/arguments.rs`).
        let (machine, processor) = match std::env::consts::ARCH {
            "x86_64" => ("q35", "max,-erms,-fsrm,level-func7=0"),
            _ => ("virt", "max,pauth-impdef=on"),
        };
        qemu.args(["-machine", machine, "-accel", "tcg", "-cpu", processor, "-m", "256", "-smp", "1"]);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
        qemu.args(["-kernel", &format!("/proc/self/fd/{}", kernel.as_raw_fd())]);
        qemu.args(["-initrd", &format!("/proc/self/fd/{}", initrd.as_raw_fd())]);
        let words = "console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check mitigations=off init_on_alloc=0 \
            virtio_net.napi_tx=0";
        qemu.args(["-append", &format!("{words} {append}")]);
        qemu.args(["-chardev", &format!("socket,id=agent,fd={}", theirs.as_raw_fd())]);
        qemu.args(["-device", "virtio-serial", "-device", "virtserialport,chardev=agent,name=cofferdam.agent"]);
        qemu.args(devices);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        cofferdam_sys::process::inherit(&mut qemu, vec![theirs.into(), kernel.into(), initrd.into()]);
        let qemu = qemu.spawn().unwrap();
        Guest { qemu, socket: ours, host: Host::new(Token::new(known)), events: VecDeque::new() }
    }

    /// The next event. Sends what there is to send meanwhile.
    #[track_caller]
    fn event(&mut self) -> Event {
        self.try_event().unwrap().expect("the machine is there")
    }

    /// `None` when the machine has gone.
    fn try_event(&mut self) -> Result<Option<Event>, Violation> {
        let began = Instant::now();
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            self.flush();
            self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
            match self.socket.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(read) => self.host.handle_bytes(&buffer[..read])?,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => panic!("nothing after {:?}: {error}", began.elapsed()),
            }
            while let Some(event) = self.host.poll_event() {
                self.events.push_back(event);
            }
        }
    }

    fn flush(&mut self) {
        let output = self.host.output().to_vec();
        // A machine that is gone is seen by reading.
        let _ = self.socket.write_all(&output);
        self.host.sent(output.len());
    }

    fn run(&mut self, exec: Exec) -> Ran {
        self.run_with(exec, b"")
    }

    fn run_with(&mut self, exec: Exec, input: &[u8]) -> Ran {
        let call = self.host.exec(exec).unwrap();
        self.finish(call, input)
    }

    /// Feeds a program and reads what it says, to its end.
    fn finish(&mut self, call: CallId, mut input: &[u8]) -> Ran {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let end = loop {
            let written = self.host.write(call, input);
            input = &input[written..];
            if input.is_empty() {
                self.host.end(call);
            }
            match self.event() {
                Event::Data { call: of, stream, bytes } if of == call => {
                    self.host.taken(call, stream, bytes.len());
                    match stream {
                        Stream::Output => out.extend(bytes),
                        Stream::Error => err.extend(bytes),
                    }
                }
                Event::Exited { call: of, status } if of == call => break Ok(status),
                Event::Failed { call: of, failure } if of == call => break Err(failure),
                _ => {}
            }
        };
        Ran { out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap(), end }
    }

    /// The end of a call without streams.
    fn done(&mut self, call: CallId) -> Result<(), Failure> {
        loop {
            match self.event() {
                Event::Done { call: of } if of == call => return Ok(()),
                Event::Failed { call: of, failure } if of == call => return Err(failure),
                _ => {}
            }
        }
    }

    /// Waits until a program has said a word.
    fn await_word(&mut self, call: CallId, word: &str) -> String {
        let mut said = String::new();
        while !said.contains(word) {
            match self.event() {
                Event::Data { call: of, stream, bytes } if of == call => {
                    self.host.taken(call, stream, bytes.len());
                    said.push_str(&String::from_utf8_lossy(&bytes));
                }
                Event::Exited { status, .. } => panic!("it ended with {status:?} after {said:?}"),
                Event::Failed { failure, .. } => panic!("it failed: {failure:?}"),
                _ => {}
            }
        }
        said
    }

    /// How long QEMU has computed; proc_pid_stat(5): fields 14 and 15, in hundredths of a second.
    fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.qemu.id())).unwrap();
        let fields = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
        Duration::from_millis(10) * fields.map(|field| field.parse::<u32>().unwrap()).sum::<u32>()
    }

    /// The agent's last words and what the machine's console has, of one that goes down by itself.
    fn last_words(mut self) -> (Option<Violation>, String) {
        let violation = loop {
            match self.try_event() {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(violation) => break Some(violation),
            }
        };
        let mut stdout = self.qemu.stdout.take().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stdout.read_to_end(&mut bytes);
            let _ = tell.send(String::from_utf8_lossy(&bytes).into_owned());
        });
        let console = told.recv_timeout(PATIENCE).expect("the machine goes down");
        assert!(self.qemu.wait().unwrap().success(), "{console}");
        (violation, console)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A machine that the tests use in turn.
fn shared() -> MutexGuard<'static, Guest> {
    static GUEST: OnceLock<Mutex<Guest>> = OnceLock::new();
    let boot = || {
        let card = format!("virtio-net-pci,netdev=n,romfile=,mac={}", MAC.map(|byte| format!("{byte:02x}")).join(":"));
        Mutex::new(Guest::boot("", &["-netdev", "hubport,id=n,hubid=0", "-device", &card]))
    };
    GUEST.get_or_init(boot).lock().unwrap_or_else(PoisonError::into_inner)
}

fn exec(argv: &[&str]) -> Exec {
    Exec {
        argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/bin".to_vec(), b"WORD=a b".to_vec()],
        cwd: b"/".to_vec(),
        uid: 0,
        gid: 0,
        terminal: None,
        leftover: Leftover::Kill,
    }
}

fn shell(script: &str) -> Exec {
    exec(&["sh", "-c", script])
}

fn ran(out: &str, end: Status) -> Ran {
    Ran { out: out.to_owned(), err: String::new(), end: Ok(end) }
}

#[test]
fn a_program_has_its_streams_and_its_exit_status() {
    let ran = shared().run(shell("echo out; echo err >&2; exit 3"));
    assert_eq!(ran, Ran { out: "out\n".into(), err: "err\n".into(), end: Ok(Status::Code(3)) });
}

#[test]
fn a_program_has_its_environment_its_folder_and_its_user() {
    let exec = Exec {
        cwd: b"/tmp".to_vec(),
        uid: 1000,
        gid: 1001,
        ..shell("echo $WORD; pwd; id -u; id -g; id -G; echo x >/dev/stderr")
    };
    let ran = shared().run(exec);
    assert_eq!(ran, Ran { out: "a b\n/tmp\n1000\n1001\n1001\n".into(), err: "x\n".into(), end: Ok(Status::Code(0)) });
}

#[test]
fn more_than_a_window_goes_in_and_comes_out() {
    let input: String = (0..400_000).map(|number| format!("{number}\n")).collect();
    let ran = shared().run_with(exec(&["cat"]), input.as_bytes());
    assert_eq!(ran.end, Ok(Status::Code(0)));
    assert!(ran.out == input, "{} of {} bytes came back", ran.out.len(), input.len());
}

#[test]
fn input_that_nobody_reads_holds_nothing_up() {
    let input = vec![b'x'; 3 << 20];
    assert_eq!(shared().run_with(exec(&["true"]), &input), ran("", Status::Code(0)));
}

#[test]
fn what_cannot_be_executed_says_why() {
    let mut guest = shared();
    let mut failed = |exec| guest.run(exec).end.unwrap_err();
    assert_eq!(failed(exec(&["no-such-program"])).kind, FailureKind::NotFound);
    let failure = failed(exec(&["/etc/passwd"]));
    assert_eq!(failure.kind, FailureKind::NotExecutable);
    assert_eq!(failure.text, "cannot execute /etc/passwd: Permission denied (os error 13)");
    let failure = failed(Exec { cwd: b"/nowhere".to_vec(), ..exec(&["true"]) });
    assert_eq!(failure.text, "cannot enter the working directory /nowhere: No such file or directory (os error 2)");
    let failure = failed(Exec { argv: Vec::new(), ..exec(&[]) });
    assert_eq!(failure.kind, FailureKind::NotFound);
}

#[test]
fn a_terminal_has_a_size_that_changes() {
    let mut guest = shared();
    let size = Size { rows: 12, columns: 34 };
    let script = "trap 'stty size' WINCH; tty; stty size; while read line; do echo got $line; done; echo over";
    let call = guest.host.exec(Exec { terminal: Some(size), ..shell(script) }).unwrap();
    let said = guest.await_word(call, "12 34");
    assert!(said.contains("/dev/pts/"), "{said}");
    guest.host.resize(call, Size { rows: 56, columns: 78 });
    // A shell that reads acts on the signal when it has read.
    guest.host.write(call, b"x\n");
    guest.await_word(call, "56 78");
    guest.host.end(call);
    let ran = guest.finish(call, b"");
    assert!(ran.out.contains("over"), "{ran:?}");
    assert_eq!(ran.end, Ok(Status::Code(0)));
}

#[test]
fn control_c_on_a_terminal_is_an_interrupt() {
    let mut guest = shared();
    let size = Size { rows: 25, columns: 80 };
    let call = guest.host.exec(Exec { terminal: Some(size), ..shell("echo ready; exec sleep 1000") }).unwrap();
    guest.await_word(call, "ready");
    guest.host.write(call, b"\x03");
    assert_eq!(guest.finish(call, b"").end, Ok(Status::Signal(2)));
}

#[test]
fn a_signal_reaches_the_group_of_a_program() {
    let mut guest = shared();
    let call = guest
        .host
        .exec(shell(
            "trap 'wait; exit 7' USR1; (trap 'echo child; exit' USR1; echo ready; while :; do sleep 0.1; done) & wait",
        ))
        .unwrap();
    guest.await_word(call, "ready");
    guest.host.signal(call, 10);
    let ran = guest.finish(call, b"");
    assert_eq!((ran.out.as_str(), ran.end), ("child\n", Ok(Status::Code(7))));
    let call = guest.host.exec(shell("echo ready; exec sleep 1000")).unwrap();
    guest.await_word(call, "ready");
    guest.host.signal(call, 15);
    assert_eq!(guest.finish(call, b"").end, Ok(Status::Signal(15)));
}

/// How many processes are there whose arguments have a word.
fn count(guest: &mut Guest, word: &str) -> usize {
    let list = guest.run(exec(&["ps"]));
    list.out.lines().filter(|line| line.contains(word)).count()
}

#[test]
fn killing_a_call_leaves_nobody() {
    let mut guest = shared();
    // Out of its session, out of its parent's hands, deaf to what can be ignored.
    let script =
        "trap '' TERM HUP; setsid sleep 7777 & (setsid sh -c 'sleep 7777 & sleep 7777' &) ; echo ready; sleep 7777";
    let call = guest.host.exec(shell(script)).unwrap();
    guest.await_word(call, "ready");
    assert!(count(&mut guest, "sleep 7777") >= 3);
    guest.host.kill(call);
    assert_eq!(guest.finish(call, b"").end, Ok(Status::Signal(9)));
    assert_eq!(count(&mut guest, "sleep 7777"), 0);
}

#[test]
fn whom_a_program_leaves_goes_with_it_or_stays_as_asked() {
    let mut guest = shared();
    // It holds the streams, which must keep nobody from ending.
    assert_eq!(guest.run(shell("sleep 8888 & echo done")), ran("done\n", Status::Code(0)));
    assert_eq!(count(&mut guest, "sleep 8888"), 0);
    let stays = Exec { leftover: Leftover::Keep, ..shell("sleep 9999 & echo done") };
    assert_eq!(guest.run(stays), ran("done\n", Status::Code(0)));
    assert_eq!(count(&mut guest, "sleep 9999"), 1);
    assert_eq!(guest.run(shell("kill $(pidof sleep)")).end, Ok(Status::Code(0)));
}

#[test]
fn a_reader_that_does_not_read_holds_up_its_own_stream_alone() {
    let mut guest = shared();
    let call = guest.host.exec(shell("yes & yes x >&2")).unwrap();
    let mut come = [0, 0];
    // Nothing of it is taken: it comes to two windows and stops.
    let window = usize::try_from(cofferdam_guest_protocol::WINDOW).unwrap();
    while come != [window, window] {
        if let Event::Data { stream, bytes, .. } = guest.event() {
            come[usize::from(stream == Stream::Error)] += bytes.len();
        }
    }
    assert_eq!(guest.run(exec(&["echo", "meanwhile"])), ran("meanwhile\n", Status::Code(0)));
    guest.host.kill(call);
    guest.host.taken(call, Stream::Output, window);
    guest.host.taken(call, Stream::Error, window);
    assert!(guest.finish(call, b"").end.is_ok());
}

fn put(path: &str) -> Put {
    Put { path: path.as_bytes().to_vec(), mode: 0o640, uid: 3, gid: 4 }
}

#[test]
fn a_file_goes_in_and_comes_out() {
    let mut guest = shared();
    let content: Vec<u8> = (0..3_000_000u32).map(|number| (number * 7 / 3).to_le_bytes()[0]).collect();
    let call = guest.host.put(put("/tmp/file ä")).unwrap();
    let mut rest = &content[..];
    while !rest.is_empty() {
        let written = guest.host.write(call, rest);
        rest = &rest[written..];
        if !rest.is_empty() {
            guest.event();
        }
    }
    guest.host.end(call);
    guest.done(call).unwrap();
    assert_eq!(guest.run(shell("stat -c '%a %u %g %s' /tmp/file*; ls -A /tmp | wc -l")).out, "640 3 4 3000000\n1\n");
    let call = guest.host.get("/tmp/file ä".into()).unwrap();
    let mut come = Vec::new();
    loop {
        match guest.event() {
            Event::Opened { mode, size, .. } => assert_eq!((mode, size), (0o640, 3_000_000)),
            Event::Data { stream, bytes, .. } => {
                guest.host.taken(call, stream, bytes.len());
                come.extend(bytes);
            }
            Event::Done { .. } => break,
            Event::Failed { failure, .. } => panic!("{failure:?}"),
            _ => {}
        }
    }
    assert!(come == content);
    guest.run(shell("rm /tmp/file*"));
}

#[test]
fn a_file_that_cannot_be_written_or_read_says_why() {
    let mut guest = shared();
    let call = guest.host.put(put("/nowhere/file")).unwrap();
    let failure = guest.done(call).unwrap_err();
    assert_eq!(
        (failure.kind, failure.text.as_str()),
        (FailureKind::NotFound, "cannot write /nowhere/file: No such file or directory (os error 2)")
    );
    let call = guest.host.put(put("/tmp")).unwrap();
    guest.host.end(call);
    assert_eq!(guest.done(call).unwrap_err().kind, FailureKind::Refused);
    let call = guest.host.get(b"/tmp".to_vec()).unwrap();
    assert_eq!(guest.done(call).unwrap_err().text, "cannot read /tmp: it is no regular file");
    guest.run(exec(&["mkfifo", "/tmp/pipe"]));
    let call = guest.host.get(b"/tmp/pipe".to_vec()).unwrap();
    assert_eq!(guest.done(call).unwrap_err().text, "cannot read /tmp/pipe: it is no regular file");
    guest.run(exec(&["rm", "/tmp/pipe"]));
}

#[test]
fn a_file_that_is_not_written_to_its_end_leaves_nothing() {
    let mut guest = shared();
    guest.run(shell("echo before >/run/file"));
    let call = guest.host.put(put("/run/file")).unwrap();
    guest.host.write(call, b"half");
    while !matches!(guest.event(), Event::Started { .. }) {}
    guest.host.kill(call);
    assert_eq!(guest.done(call).unwrap_err().kind, FailureKind::Killed);
    assert_eq!(guest.run(shell("cat /run/file; ls -A /run; rm /run/file")).out, "before\nfile\n");
}

#[test]
fn a_file_system_is_mounted_where_it_is_asked_for() {
    let mut guest = shared();
    let mount = |read_only| Mount {
        kind: MountKind::Tmpfs,
        source: b"tmpfs".to_vec(),
        target: b"/mnt/deep/er".to_vec(),
        options: b"size=1m".to_vec(),
        read_only,
    };
    let call = guest.host.mount(mount(true)).unwrap();
    guest.done(call).unwrap();
    assert_eq!(
        guest
            .run(shell("touch /mnt/deep/er/x 2>/dev/null || echo refused; df -m /mnt/deep/er | tail -n 1"))
            .out
            .lines()
            .next(),
        Some("refused")
    );
    // Where nothing is mounted any more it is done already.
    for target in ["/mnt/deep/er", "/mnt/deep/er", "/mnt/nowhere"] {
        let call = guest.host.unmount(target.into()).unwrap();
        guest.done(call).unwrap();
    }
    let call = guest.host.unmount(b"/dev".to_vec()).unwrap();
    assert!(guest.done(call).unwrap_err().text.starts_with("cannot unmount /dev: "));
    let call =
        guest.host.mount(Mount { kind: MountKind::Ext4, source: b"/dev/none".to_vec(), ..mount(false) }).unwrap();
    assert!(guest.done(call).unwrap_err().text.starts_with("cannot mount /dev/none of type ext4 at /mnt/deep/er: "));
}

/// With everything that the kernel wants for it, down to the ciphers: then it is the server that is not there.
#[test]
fn a_share_of_the_network_is_missed_for_its_server_alone() {
    let mut guest = shared();
    let mount = Mount {
        kind: MountKind::Cifs,
        source: b"//127.0.0.1/share".to_vec(),
        target: b"/mnt/share".to_vec(),
        options: b"ip=127.0.0.1,vers=3.1.1,username=x,password=y".to_vec(),
        read_only: false,
    };
    let call = guest.host.mount(mount).unwrap();
    let text = guest.done(call).unwrap_err().text;
    assert!(text.starts_with("cannot mount //127.0.0.1/share of type cifs at /mnt/share: "), "{text}");
    assert!(text.contains("refused"), "{text}");
    let loaded = guest.run(exec(&["cat", "/proc/modules"])).out;
    for module in ["cifs", "cmac", "gcm", "ccm", "virtio_rng"] {
        assert!(loaded.lines().any(|line| line.starts_with(&format!("{module} "))), "no {module} in {loaded}");
    }
}

#[test]
fn the_network_is_what_the_host_says() {
    let mut guest = shared();
    let network = Network {
        mac: MAC,
        mtu: 9000,
        addresses: vec![("172.16.9.2".parse().unwrap(), 30), ("fd42::2".parse().unwrap(), 64)],
        routes: vec![Route { gateway: "172.16.9.1".parse().unwrap() }, Route { gateway: "fd42::1".parse().unwrap() }],
        neighbours: vec![
            Neighbour { address: "172.16.9.1".parse().unwrap(), mac: [2; 6] },
            Neighbour { address: "fd42::1".parse().unwrap(), mac: [2; 6] },
        ],
        resolv_conf: Some(b"nameserver 172.16.9.1\n".to_vec()),
        hosts: Some(b"127.0.0.1 localhost\n".to_vec()),
        host_name: Some(b"machine".to_vec()),
    };
    let wrong = Network { mac: [2, 9, 9, 9, 9, 9], ..network.clone() };
    let call = guest.host.network(wrong).unwrap();
    assert!(guest.done(call).unwrap_err().text.contains("02:09:09:09:09:09"));
    let call = guest.host.network(network).unwrap();
    guest.done(call).unwrap();
    let ran = guest.run(shell("ip addr; ip route; ip -6 route; ip neigh; cat /etc/resolv.conf /etc/hosts; hostname"));
    for word in [
        "LOOPBACK,UP",
        "mtu 9000",
        "inet 172.16.9.2/30",
        "inet6 fd42::2/64",
        "default via 172.16.9.1",
        "default via fd42::1",
        "172.16.9.1 dev eth0 lladdr 02:02:02:02:02:02",
        "fd42::1 dev eth0 lladdr 02:02:02:02:02:02",
        "nameserver 172.16.9.1",
        "127.0.0.1 localhost",
        "machine",
    ] {
        assert!(ran.out.contains(word), "no {word:?} in {}", ran.out);
    }
    // Nothing but that.
    assert!(!ran.out.contains("fe80::"), "{}", ran.out);
    // The card's driver has what the kernel's command line says for it.
    assert_eq!(guest.run(exec(&["cat", "/sys/module/virtio_net/parameters/napi_tx"])).out, "N\n");
}

#[test]
fn the_clock_is_what_the_host_says() {
    let mut guest = shared();
    let call = guest.host.set_time(Duration::from_secs(2_000_000_000)).unwrap();
    guest.done(call).unwrap();
    let now: u64 = guest.run(exec(&["date", "+%s"])).out.trim().parse().unwrap();
    assert!((2_000_000_000..2_000_000_600).contains(&now), "{now}");
}

#[test]
fn the_channel_and_the_token_are_the_agents_alone() {
    let mut guest = shared();
    let seen = guest.run(shell("ls /cofferdam/token; cat /proc/cmdline; ls /dev/vport*"));
    assert!(!seen.out.contains("token"), "{seen:?}");
    assert!(!seen.out.contains(&"09".repeat(4)), "{seen:?}");
    let port = seen.out.split_whitespace().last().unwrap().to_owned();
    let open = |uid| Exec { uid, ..shell(&format!("cat <{port}")) };
    assert!(guest.run(open(1000)).err.contains("Permission denied"));
    // A port is opened once, also by root.
    assert!(guest.run(open(0)).err.contains("busy"));
    let ended = guest.run(Exec { uid: 1000, ..shell("ls /cofferdam; kill -9 1") });
    assert_eq!(ended.end, Ok(Status::Code(1)), "{ended:?}");
    guest.run(shell("kill -9 1"));
    assert_eq!(guest.run(exec(&["echo", "alive"])), ran("alive\n", Status::Code(0)));
}

#[test]
fn a_machine_is_ready_soon_and_executes_fast() {
    const EXECS: u32 = 40;
    let began = Instant::now();
    let mut guest = Guest::boot("", &[]);
    let exec_one = |guest: &mut Guest| assert_eq!(guest.run(exec(&["true"])).end, Ok(Status::Code(0)));
    exec_one(&mut guest);
    let (boot, boot_time) = (guest.processor_time(), began.elapsed());
    let mut times: Vec<Duration> = (0..EXECS)
        .map(|_| {
            let began = Instant::now();
            exec_one(&mut guest);
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    let per_exec = (guest.processor_time() - boot) / EXECS;
    let median = times[times.len() / 2];
    println!(
        "boot to first exec {boot_time:?}, of which QEMU computed {boot:?}; exec {median:?}, computed {per_exec:?}"
    );
    // The goals are 4 s and 30 ms on the clock; what others do on this machine is not in the time that QEMU computes.
    assert!(boot < Duration::from_secs(4), "{boot:?}");
    assert!(per_exec < Duration::from_millis(30), "{per_exec:?}");
    // It goes down when it is asked to.
    guest.host.shutdown().unwrap();
    let (violation, _) = guest.last_words();
    assert_eq!(violation, None);
}

#[test]
fn garbage_from_the_host_ends_the_machine_with_a_reason() {
    let mut guest = Guest::boot("", &[]);
    guest.socket.write_all(&[0xff; 64]).unwrap();
    let (violation, console) = guest.last_words();
    let text = "cannot understand the host: Protocol error (os error 71)";
    assert_eq!(violation, Some(Violation::Ended { text: text.to_owned() }));
    assert!(console.contains(text), "{console}");
}

#[test]
fn a_machine_of_another_boot_is_not_believed() {
    let guest = Guest::start("", &[], [9; Token::LENGTH], [8; Token::LENGTH]);
    // The host says nothing to it, and ends the machine.
    let mut guest = guest;
    assert_eq!(guest.try_event(), Err(Violation::Token));
}

#[test]
fn a_root_that_is_not_there_ends_the_machine_with_a_reason() {
    let guest = Guest::start("cofferdam.root=nfs:x", &[], [9; Token::LENGTH], [9; Token::LENGTH]);
    let (violation, console) = guest.last_words();
    let text = "cannot understand cofferdam.root=nfs:x of the kernel's command line: invalid input parameter";
    assert_eq!(violation, Some(Violation::Ended { text: text.to_owned() }), "{console}");
    assert!(console.contains(text), "{console}");
}

#[test]
fn a_disk_is_the_root_and_is_not_written_unless_that_is_said() {
    let own = Folder::new("disk");
    let folder = own.0.join("root");
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::copy(
        ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| PathBuf::from(path).exists()).unwrap(),
        folder.join("bin/busybox"),
    )
    .unwrap();
    std::os::unix::fs::symlink("busybox", folder.join("bin/sh")).unwrap();
    let image = own.0.join("image");
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&folder).arg(&image).arg("16M");
    assert!(make.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").status().unwrap().success());
    let before = fs::read(&image).unwrap();
    let drive = format!("if=none,id=d,format=raw,file={}", image.display());
    let disk = ["-drive", &drive, "-device", "virtio-blk,drive=d"];
    let script =
        "echo word >/file; busybox cat /file; busybox grep ' / ' /proc/mounts; busybox ls /dev/pts /run /cofferdam";
    let mut guest = Guest::boot("cofferdam.root=disk:vda", &disk);
    let seen = guest.run(shell(script));
    assert!(seen.out.starts_with("word\noverlay / overlay"), "{seen:?}");
    assert!(seen.out.contains("ptmx") && seen.err.contains("/cofferdam: No such file"), "{seen:?}");
    guest.host.shutdown().unwrap();
    assert_eq!(guest.last_words().0, None);
    assert!(fs::read(&image).unwrap() == before);
    let mut guest = Guest::boot("cofferdam.root=disk:vda,rw", &disk);
    let seen = guest.run(shell(script));
    assert!(seen.out.starts_with("word\n/dev/vda / ext4 rw"), "{seen:?}");
    guest.host.shutdown().unwrap();
    assert_eq!(guest.last_words().0, None);
    let mut guest = Guest::boot("cofferdam.root=disk:vda", &disk);
    assert_eq!(guest.run(exec(&["busybox", "cat", "/file"])).out, "word\n");
}
