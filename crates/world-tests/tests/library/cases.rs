//! What happens in the process that embeds the library.

use std::error::Error;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use cofferdam_client::model::{EventBody, NetworkConfig};
use cofferdam_client::policy::Policy;
use cofferdam_client::policy::file;
use cofferdam_client::vm::{INITRAMFS, NetworkMode as GuestNetwork};
use cofferdam_client::{
    Error as LibraryError, Mode, NetworkMode, Output, Sandbox, Session, Signal, State, Status, lists,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::examples;

type Done = Result<(), Box<dyn Error>>;

/// What surely is not over before somebody ends it.
const LONG: Duration = Duration::from_secs(60);

pub(crate) fn run(case: &str, arguments: &[String]) -> Done {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build()?;
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    runtime.block_on(async {
        match (case, words.as_slice()) {
            ("denied", [web, other, _]) => denied(web, other).await,
            ("blocked_in_open", [web, ..]) => blocked_in_open(web).await,
            ("open_in_blocked", [web, ..]) => open_in_blocked(web).await,
            ("wider", [web, other, _]) => wider(web, other).await,
            ("set_policy", [web, other, _]) => set_policy(web, other).await,
            ("ports", [_, _, loopback]) => ports(loopback.parse()?).await,
            ("streams", []) => streams().await,
            ("signals", []) => signals().await,
            ("timeout", [word]) => timeout(word).await,
            ("held_output", [word]) => held_output(word).await,
            ("dropped", [word]) => dropped(word).await,
            ("dropped_future", [word]) => dropped_future(word).await,
            ("too_much_output", [word]) => too_much_output(word).await,
            ("files", []) => files().await,
            ("errors", []) => errors().await,
            ("many", []) => many().await,
            ("secrets", [word]) => secrets(word).await,
            ("life", []) => life().await,
            ("lost", [word]) => lost(word).await,
            ("spec", []) => spec().await,
            ("guest", []) => guest().await,
            ("example", [name, ..]) => examples::run(name, &arguments[1..]).await,
            (case, words) => Err(format!("no case is called {case} {words:?}").into()),
        }
    })
}

/// A server's address as it stands in a URL.
fn url(address: &str) -> String {
    let address: IpAddr = address.parse().unwrap();
    format!("http://{}/", SocketAddr::new(address, 80))
}

/// Whether a run reaches a server.
async fn reaches(run: cofferdam_client::Run, address: &str) -> Result<bool, LibraryError> {
    let output = run.args(["-s", "-o", "/dev/null", "-m", "20", &url(address)]).output().await?;
    assert!(matches!(output.status, Status::Exited(_)), "{output:?}");
    Ok(output.success())
}

fn open_to(address: &str) -> impl FnOnce(cofferdam_client::Network) -> cofferdam_client::Network + use<> {
    let policy = Policy::builder().default_deny().egress(|e| e.allow(&bracketed(address))).build().unwrap();
    |network| network.policy(policy)
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

async fn denied(web: &str, other: &str) -> Done {
    let sandbox = Sandbox::builder("s").network(open_to(web)).create().await?;
    assert!(reaches(sandbox.run("curl"), web).await? && !reaches(sandbox.run("curl"), other).await?);
    let told = |event: &cofferdam_client::model::Event| matches!(&event.body, EventBody::FlowDenied { remote, .. } if remote.ip().to_string() == other);
    // The record is written beside the run, a moment after it.
    let mut turns = 0;
    while !sandbox.events().await?.iter().any(told) {
        turns += 1;
        assert!(turns < 200, "{:?}", sandbox.events().await?);
    }

    let own = || sandbox.run("curl").network_mode(NetworkMode::Allowlist).network_allowlist([web]);
    assert!(reaches(own(), web).await?);
    let output = own().args(["-s", &url(other)]).output().await?;
    assert!(!output.success() && output.stdout.is_empty(), "{output:?}");
    let [denied] = output.denied.as_slice() else { panic!("{output:?}") };
    assert_eq!((denied.target.as_str(), denied.port, denied.count), (other, Some(80), 1));
    assert_eq!(denied.protocols, ["tcp"]);
    assert_eq!((denied.rule.text.as_str(), output.totals.flows_denied), ("default egress deny", 1));

    // A program that fails is no error.
    let failed = sandbox.run("sh").args(["-c", "echo out; echo err >&2; exit 3"]).output().await?;
    assert_eq!(
        (failed.status, failed.stdout_text().as_str(), failed.stderr_text().as_str()),
        (Status::Exited(3), "out\n", "err\n")
    );
    let fed = sandbox.run("wc").arg("-c").input(vec![7; 1 << 20]).output().await?;
    assert_eq!(fed.stdout_text().trim(), "1048576");
    // Nor is one that does not read its input.
    assert!(sandbox.run("true").input(vec![7; 1 << 20]).status().await?.success());
    Ok(())
}

async fn blocked_in_open(web: &str) -> Done {
    let session = Session::builder("s")
        .network_mode(NetworkMode::Open)
        .network_denylist([lists::CLOUD_METADATA_DENY])
        .create()
        .await?;
    assert!(reaches(session.run("curl"), web).await?);
    assert!(!reaches(session.run("curl").network_mode(NetworkMode::Blocked), web).await?);
    let links = session.run("sh").args(["-c", "tail -n +3 /proc/net/dev | cut -d: -f1"]);
    assert_eq!(links.network_mode(NetworkMode::Blocked).output().await?.stdout_text().trim(), "lo");
    Ok(())
}

async fn open_in_blocked(web: &str) -> Done {
    let session = Session::builder("s").create().await?;
    assert!(!reaches(session.run("curl"), web).await?);
    let open = session.run("curl").args(["-s", &url(web)]).network_mode(NetworkMode::Open).output().await?;
    assert!(!open.success(), "{open:?}");
    assert!(open.notices.iter().any(|notice| notice.contains("the session has no network")), "{open:?}");
    let refused = session.run("curl").network_mode(NetworkMode::Open).mode(Mode::Check).output().await;
    assert!(matches!(&refused, Err(LibraryError::Wider { flow }) if flow.contains("no network")), "{refused:?}");
    Ok(())
}

async fn wider(web: &str, other: &str) -> Done {
    let sandbox = Sandbox::builder("s").network(open_to(web)).create().await?;
    let asks = |address: &str| sandbox.run("true").network(open_to(address)).mode(Mode::Check);
    let refused = asks(other).spawn().await;
    let Err(LibraryError::Wider { flow }) = &refused else { panic!("{refused:?}") };
    assert!(flow.contains(other) && flow.contains("is allowed by the run but not by the session"), "{flow}");
    assert!(asks(web).output().await?.success());
    let clipped = sandbox.run("true").network(open_to(other)).output().await?;
    assert!(clipped.notices.iter().any(|notice| notice.contains(other)), "{clipped:?}");
    Ok(())
}

async fn set_policy(web: &str, other: &str) -> Done {
    let sandbox = Sandbox::builder("s").network(open_to(web)).create().await?;
    let wants_all = || sandbox.run("curl").network_mode(NetworkMode::Open);
    assert!(reaches(sandbox.run("curl"), web).await? && reaches(wants_all(), web).await?);
    sandbox.set_policy(open_to(other)).await?;
    for run in [sandbox.run("curl"), wants_all()] {
        assert!(!reaches(run, web).await?);
    }
    for run in [sandbox.run("curl"), wants_all()] {
        assert!(reaches(run, other).await?);
    }
    // What cannot be used changes nothing.
    let bad = sandbox.set_policy(|n| n.mode(NetworkMode::Blocked).denylist([web])).await;
    assert!(matches!(bad, Err(LibraryError::Policy(_))), "{bad:?}");
    let lost = sandbox.set_policy(|n| n.port(0, 80)).await;
    assert!(matches!(lost, Err(LibraryError::Policy(_))), "{lost:?}");
    assert!(reaches(sandbox.run("curl"), other).await?);
    sandbox.set_policy(|n| n.mode(NetworkMode::Blocked)).await?;
    assert!(!reaches(sandbox.run("curl"), other).await?);
    Ok(())
}

/// Greets whoever connects, and says so when it can.
const GREETER: &str = "
import socket, sys
listener = socket.create_server(('::', 8000), family=socket.AF_INET6, dualstack_ipv6=True)
print('up', flush=True)
while True:
    peer, _ = listener.accept()
    peer.sendall(b'hello')
    peer.close()
";

async fn ports(loopback: IpAddr) -> Done {
    let builder = Sandbox::builder("s")
        .network(|n| n.port_on(loopback, 0, 8000).adjust(|network| network.interface.ipv6 = Some(true)));
    let sandbox = builder.command(["python3", "-c", GREETER]).create().await?;
    let mut log = BufReader::new(sandbox.follow_logs().await?).lines();
    while log.next_line().await?.ok_or("the server has ended")? != "up" {}
    let [first] = sandbox.ports().await?.try_into().unwrap();
    assert_eq!((first.host_bind, first.guest_port.get()), (loopback, 8000));
    assert_eq!(greeting(first.host()).await?, "hello");

    let bind = bracketed(&loopback.to_string());
    let [second] = sandbox.publish(&format!("{bind}:0:8000")).await?.try_into().unwrap();
    assert_eq!(greeting(second.host()).await?, "hello");
    let taken = sandbox.publish(&format!("{bind}:{}:8000", first.host_port)).await;
    assert!(matches!(taken, Err(LibraryError::Setup { .. })), "{taken:?}");
    sandbox.publish(&format!("{bind}:0:53/udp")).await?;
    sandbox.withdraw(first).await?;
    assert!(TcpStream::connect(first.host()).await.is_err());
    assert_eq!(greeting(second.host()).await?, "hello");
    assert_eq!(sandbox.ports().await?.len(), 2);
    assert!(sandbox.withdraw(first).await.is_err());
    assert!(matches!(sandbox.publish("80").await, Err(LibraryError::Port(_))));
    Ok(())
}

async fn greeting(address: SocketAddr) -> std::io::Result<String> {
    let mut answer = String::new();
    TcpStream::connect(address).await?.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn guest() -> Done {
    let guest = Sandbox::vm(INITRAMFS).port_forward(0, 8000).create().await?;
    let output = guest.execute("echo out; echo err >&2; exit 3").await?;
    assert_eq!((output.status, output.stdout_text().as_str()), (Status::Exited(3), "out\n"));
    assert_eq!(output.stderr_text(), "err\n");
    let ended = guest.execute_within("echo started; setsid sleep 1000 & wait", Duration::from_secs(2)).await;
    let Err(LibraryError::TimedOut { output, .. }) = ended else { panic!("{ended:?}") };
    assert_eq!(output.stdout_text(), "started\n");
    // Whoever is left would be in the list, and a bracket keeps the command itself out of it.
    assert_eq!(guest.execute("ps | grep 'slee[p] 1000'").await?.status, Status::Exited(1));

    let [port] = guest.sandbox().ports().await?.try_into().unwrap();
    let mut server =
        guest.sandbox().run("sh").args(["-c", "while :; do echo hello | nc -l -p 8000; done"]).spawn().await?;
    while greeting(port.host()).await.ok().as_deref() != Some("hello\n") {}
    server.kill()?;
    // Nothing but what is mounted: what is outside is denied.
    let output = guest.execute("timeout 20 nc -w 20 192.0.2.1 80 </dev/null").await?;
    assert!(!output.success() && !output.denied.is_empty(), "{output:?}");
    guest.close().await?;
    assert!(Sandbox::list().await?.is_empty());

    let dropped = Sandbox::vm(INITRAMFS).network_mode(GuestNetwork::None).create().await?;
    assert!(dropped.execute("grep -c : /proc/net/dev | grep -x 1").await?.success());
    drop(dropped);
    while !Sandbox::list().await?.is_empty() {}
    let absent = Sandbox::vm("/there/is/no/such/image").create().await;
    assert!(matches!(absent, Err(LibraryError::Setup { .. })), "{absent:?}");
    Ok(())
}

async fn streams() -> Done {
    let session = Session::builder("s").create().await?;
    let mut run = session.run("cat").spawn().await?;
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    for word in ["one", "two"] {
        run.stdin.as_mut().unwrap().write_all(format!("{word}\n").as_bytes()).await?;
        assert_eq!(lines.next_line().await?.as_deref(), Some(word));
    }
    // Waiting ends its input.
    let finished = run.wait().await?;
    assert_eq!(finished.status, Status::Exited(0));
    assert_eq!(run.wait().await?, finished);
    run.terminate()?;
    run.kill()?;

    // More than any pipe holds, both ways at once.
    let mut run = session.run("cat").spawn().await?;
    let (mut stdin, mut stdout) = (run.stdin.take().unwrap(), run.stdout.take().unwrap());
    let sent = vec![7; 4 << 20];
    let writer = tokio::spawn(async move { stdin.write_all(&sent).await });
    let mut received = Vec::new();
    stdout.read_to_end(&mut received).await?;
    writer.await??;
    assert_eq!((received.len(), run.wait().await?.status), (4 << 20, Status::Exited(0)));

    // Both streams, each where it was sent to; nothing of ours in between.
    let (mut reader, writer) = std::io::pipe()?;
    let run = session.run("sh").args(["-c", "echo out; echo err >&2"]).stdout(writer.try_clone()?).stderr(writer);
    assert!(run.network_mode(NetworkMode::Open).status().await?.success());
    let mut both = String::new();
    reader.read_to_string(&mut both)?;
    assert_eq!(both, "out\nerr\n");
    assert!(matches!(session.run("cat").input("x").spawn().await, Err(LibraryError::Unsayable { .. })));
    Ok(())
}

async fn signals() -> Done {
    let session = Session::builder("s").create().await?;
    let script = "trap 'echo usr1' USR1; trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let mut run = session.run("bash").args(["-c", script]).spawn().await?;
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await?.as_deref(), Some("ready"));
    run.signal(Signal::User1)?;
    assert_eq!(lines.next_line().await?.as_deref(), Some("usr1"));
    run.terminate()?;
    assert_eq!(run.wait().await?.status, Status::Exited(7));

    let mut run = session.run("sh").args(["-c", "echo ready; exec sleep 1000"]).spawn().await?;
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await?.as_deref(), Some("ready"));
    run.signal(Signal::Terminate)?;
    assert_eq!(run.wait().await?.status, Status::Signaled(15));

    let mut run = session.run("sleep").arg("1000").spawn().await?;
    run.kill()?;
    assert_eq!(run.wait().await?.status, Status::Lost);
    Ok(())
}

/// Makes a daemon of itself that ignores every request to end, and holds the standard output.
fn stubborn(word: &str) -> [String; 2] {
    let script = format!(
        "echo started; (setsid sh -c \"trap '' TERM HUP INT; (trap '' TERM HUP INT; sleep {word}) & sleep {word}\" &); exec sleep {word}"
    );
    ["-c".to_owned(), script]
}

async fn timeout(word: &str) -> Done {
    let session = Session::builder("s").create().await?;
    let after = Duration::from_millis(500);
    for mode in [NetworkMode::Blocked, NetworkMode::Open] {
        let ended = session.run("sh").args(stubborn(word)).network_mode(mode).timeout(after).output().await;
        let Err(LibraryError::TimedOut { after: told, output }) = ended else { panic!("{ended:?}") };
        assert_eq!((told, output.stdout_text().as_str()), (after, "started\n"));
    }
    // 124 of its own is no time that is up.
    let own = session.run("sh").args(["-c", "exit 124"]).timeout(LONG).output().await?;
    assert_eq!(own.status, Status::Exited(124));
    let mut run = session.run("sleep").arg(word).timeout(Duration::from_millis(1)).spawn().await?;
    assert!(matches!(run.wait().await, Err(LibraryError::TimedOut { .. })));
    assert!(matches!(run.wait().await, Err(LibraryError::TimedOut { .. })));
    Ok(())
}

async fn held_output(word: &str) -> Done {
    let session = Session::builder("s").create().await?;
    let take = "import os, socket, sys, time
l = socket.socket(socket.AF_UNIX); l.bind('/tmp/t'); l.listen(); os.rename('/tmp/t', '/tmp/taker')
c, _ = l.accept(); held = socket.recv_fds(c, 1, 2)[1]; c.send(b'x'); time.sleep(1000)";
    let give = "import array, os, socket, sys, time
while not os.path.exists('/tmp/taker'): time.sleep(0.01)
s = socket.socket(socket.AF_UNIX); s.connect('/tmp/taker')
s.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [1, 2]))]); s.recv(1)
print('given', flush=True)
if sys.argv[1] == 'stay': time.sleep(1000)";
    let mut taker = session.run("python3").args(["-c", take, word]).stdout(Stdio::null()).spawn().await?;
    let given = session.run("python3").args(["-c", give, "go"]).output().await?;
    assert_eq!((given.status, given.stdout_text().as_str()), (Status::Exited(0), "given\n"));
    taker.kill()?;
    taker.wait().await?;
    session.run("rm").arg("/tmp/taker").status().await?;
    let taker = session.run("python3").args(["-c", take, word]).stdout(Stdio::null()).spawn().await?;
    let after = Duration::from_millis(1500);
    let ended = session.run("python3").args(["-c", give, "stay"]).timeout(after).output().await;
    let Err(LibraryError::TimedOut { output, .. }) = ended else { panic!("{ended:?}") };
    assert_eq!(output.stdout_text(), "given\n");
    drop(taker);
    Ok(())
}

async fn dropped(word: &str) -> Done {
    let session = Session::builder("s").create().await?;
    let mut run = session.run("sh").args(stubborn(word)).spawn().await?;
    let mut stdout = run.stdout.take().unwrap();
    let mut line = [0; 8];
    stdout.read_exact(&mut line).await?;
    assert_eq!(&line, b"started\n");
    drop(run);
    // Its end: everybody who had it is gone.
    assert_eq!(stdout.read(&mut line).await?, 0);
    Ok(())
}

async fn dropped_future(word: &str) -> Done {
    let session = Session::builder("s").create().await?;
    let (mut reader, writer) = std::io::pipe()?;
    let run = session.run("sh").args(stubborn(word)).stdout(writer);
    let output = tokio::spawn(run.output());
    let started = tokio::task::spawn_blocking(move || {
        let mut line = [0; 8];
        reader.read_exact(&mut line).map(|()| (line, reader))
    });
    let (line, mut reader) = started.await??;
    assert_eq!(&line, b"started\n");
    output.abort();
    assert!(output.await.unwrap_err().is_cancelled());
    let rest = tokio::task::spawn_blocking(move || reader.read(&mut [0; 8]));
    assert_eq!(rest.await??, 0);
    Ok(())
}

async fn too_much_output(word: &str) -> Done {
    let session = Session::builder("s").create().await?;
    let yes = session.run("yes").arg(word).output_limit(100_000).output().await;
    assert!(matches!(yes, Err(LibraryError::OutputTooLarge { limit: 100_000 })), "{yes:?}");
    let script = "head -c 100000 /dev/zero; head -c 100000 /dev/zero >&2";
    let fits = session.run("sh").args(["-c", script]).output_limit(100_000).output().await?;
    assert_eq!((fits.stdout.len(), fits.stderr.len()), (100_000, 100_000));
    Ok(())
}

async fn files() -> Done {
    let session = Session::builder("s").create().await?;
    let sh = |script: &str| session.run("sh").args(["-c", script]);
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    for path in ["data", "/tmp/data", "/home/user/data"] {
        session.write(path, &content).await?;
        assert_eq!(session.read(path).await?, content);
    }
    session.write("data", "shorter").await?;
    assert_eq!(session.read("data").await?, b"shorter");
    let sizes = sh("stat -c %s data /tmp/data; stat -c %U data").workdir("/home/user").output().await?;
    assert_eq!(sizes.stdout_text(), "7\n1200000\nuser\n");

    let here = tempfile_directory()?;
    let tree = Path::new(&here).join("tree");
    std::fs::create_dir_all(tree.join("deep"))?;
    std::fs::write(tree.join("deep/file"), &content)?;
    // A name that looks like a place in a sandbox.
    std::fs::write(Path::new(&here).join("s:x"), "colon")?;
    assert_eq!(session.put(&tree, "/tmp").await?, [""; 0]);
    assert!(sh("cmp /tmp/data /tmp/tree/deep/file && mkfifo /tmp/tree/fifo").status().await?.success());
    session.put(Path::new(&here).join("s:x"), "colon").await?;
    assert_eq!(session.read("colon").await?, b"colon");
    let left = session.get("/tmp/tree", Path::new(&here).join("back")).await?;
    assert!(left.len() == 1 && left[0].contains("fifo"), "{left:?}");
    assert_eq!(std::fs::read(Path::new(&here).join("back/deep/file"))?, content);

    // What lies in the way is replaced, and not written through.
    assert!(sh("echo kept > /tmp/kept; ln -s /tmp/kept /tmp/link").status().await?.success());
    session.write("/tmp/link", "new").await?;
    assert_eq!(
        (session.read("/tmp/kept").await?, session.read("/tmp/link").await?),
        (b"kept\n".to_vec(), b"new".to_vec())
    );

    assert!(matches!(session.read("/tmp").await, Err(LibraryError::NotAFile { .. })));
    for error in [
        session.read("/no/such").await.map(|_| ()),
        session.write("/no/such/file", "").await,
        session.write("/usr/file", "").await,
        session.put("/no/such", "x").await.map(|_| ()),
        session.get("/no/such", &here).await.map(|_| ()),
    ] {
        assert!(matches!(&error, Err(LibraryError::Setup { message, .. }) if !message.is_empty()), "{error:?}");
    }
    for path in ["", "/", "/tmp/", "a/.."] {
        assert!(matches!(session.write(path, "").await, Err(LibraryError::NotAFile { .. })), "{path}");
    }
    session.stop(Duration::ZERO).await?;
    let stopped = session.read("data").await;
    assert!(matches!(stopped, Err(LibraryError::Stopped { .. })), "{stopped:?}");
    std::fs::remove_dir_all(here)?;
    Ok(())
}

/// A directory of this test's own.
fn tempfile_directory() -> std::io::Result<String> {
    let made = std::process::Command::new("mktemp").arg("-d").output()?;
    Ok(String::from_utf8_lossy(&made.stdout).trim().to_owned())
}

async fn errors() -> Done {
    let missing = Sandbox::builder("s").program("/no/such/program").create().await;
    let Err(error @ LibraryError::ProgramMissing { .. }) = &missing else { panic!("{missing:?}") };
    assert!(error.to_string().contains("COFFERDAM_PROGRAM"), "{error}");
    // Something else that is a program.
    let other = Sandbox::builder("s").program("/bin/true").create().await;
    assert!(matches!(other, Err(LibraryError::Protocol { .. })), "{other:?}");
    let absent = Sandbox::open("s").await;
    assert!(matches!(absent, Err(LibraryError::Absent { .. })), "{absent:?}");
    let name = Sandbox::builder("../s").create().await;
    assert!(matches!(name, Err(LibraryError::Name { .. })), "{name:?}");
    let mount = Sandbox::builder("s").mount("/no/such", "/x").create().await;
    assert!(
        matches!(&mount, Err(LibraryError::Setup { message, exit_status: 125 }) if message.contains("/no/such")),
        "{mount:?}"
    );
    let policy = Session::builder("s").network_allowlist(["a.example"]).create().await;
    assert!(matches!(&policy, Err(LibraryError::Policy(_))), "{policy:?}");
    let command = Session::builder("s").command(["no-such-program"]).create().await;
    assert!(matches!(command, Err(LibraryError::Execute { exit_status: 127, .. })), "{command:?}");
    let capability = Session::builder("s").capability("FLY").create().await;
    assert!(matches!(capability, Err(LibraryError::Setup { .. })), "{capability:?}");
    // None of these has left anything.
    assert!(Sandbox::list().await?.is_empty());

    let session = Session::builder("s").create().await?;
    let twice = Session::builder("s").create().await;
    assert!(matches!(twice, Err(LibraryError::Exists { .. })), "{twice:?}");
    for (program, status) in [("no-such-program", 127), ("/etc/passwd", 126)] {
        let error = session.run(program).output().await;
        assert!(matches!(error, Err(LibraryError::Execute { exit_status, .. }) if exit_status == status), "{error:?}");
    }
    for run in [session.run("true").env("A=", "b"), session.run("true").env("A", "b\0c"), session.run("a\0b")] {
        let error = run.output().await;
        assert!(matches!(error, Err(LibraryError::Setup { .. } | LibraryError::Execute { .. })), "{error:?}");
    }
    let nowhere = session.run("true").workdir("/no/such").output().await;
    assert!(matches!(nowhere, Err(LibraryError::Setup { .. } | LibraryError::Execute { .. })), "{nowhere:?}");
    session.stop(Duration::ZERO).await?;
    session.stop(Duration::ZERO).await?;
    let stopped = session.run("true").output().await;
    assert!(matches!(stopped, Err(LibraryError::Stopped { .. })), "{stopped:?}");
    assert!(matches!(session.ports().await, Err(LibraryError::Stopped { .. })));
    session.remove().await?;
    for gone in [session.remove().await, session.start().await, session.stop(Duration::ZERO).await] {
        assert!(matches!(gone, Err(LibraryError::Absent { .. })), "{gone:?}");
    }
    assert!(matches!(session.logs().await, Err(LibraryError::Absent { .. })));
    Ok(())
}

async fn many() -> Done {
    let session = Session::builder("s").network_mode(NetworkMode::Open).create().await?;
    let mut runs = JoinSet::new();
    for number in 0..50_u8 {
        let run =
            session.run("sh").args(["-c", &format!("cat; echo {number}; exit {number}")]).input(vec![b'x'; 100_000]);
        // Every other one has a network of its own.
        let run = if number % 2 == 0 { run } else { run.network_mode(NetworkMode::Blocked) };
        runs.spawn(async move { (number, run.output().await) });
    }
    let mut seen = 0;
    while let Some(done) = runs.join_next().await {
        let (number, output): (u8, Result<Output, LibraryError>) = done?;
        let output = output?;
        assert_eq!(output.status, Status::Exited(number));
        assert!(output.stdout.len() > 100_000 && output.stdout.ends_with(format!("x{number}\n").as_bytes()));
        seen += 1;
    }
    assert_eq!(seen, 50);
    assert_eq!(session.inspect().await?.runs, []);
    Ok(())
}

async fn secrets(word: &str) -> Done {
    let secret = format!("secret-{}", std::process::id());
    let session = Session::builder("s").env("OF_ALL", "all").create().await?;
    let script = "echo \"$TOKEN $OF_ALL $HOME\"; ls /proc/self/fd | tr '\\n' ' '; read -r line";
    let mut run = session.run("sh").args(["-c", script, word]).env("TOKEN", &secret).spawn().await?;
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await?.unwrap(), format!("{secret} all /home/user"));
    // The fourth is the directory that is listed.
    let mut descriptors = [0; 8];
    lines.get_mut().read_exact(&mut descriptors).await?;
    assert_eq!(&descriptors, b"0 1 2 3 ");
    let mut seen = 0;
    for process in std::fs::read_dir("/proc")?.flatten() {
        let Ok(line) = std::fs::read(process.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).into_owned();
        seen += usize::from(line.contains(word));
        assert!(!line.contains(&secret), "{line}");
    }
    assert!(seen > 0, "the run is not in sight");
    drop(run.stdin.take());
    run.wait().await?;
    Ok(())
}

async fn life() -> Done {
    let made = Sandbox::builder("s").command([
        "sh",
        "-c",
        "echo up; trap 'echo asked; exit 7' TERM; while :; do sleep 0.05; done",
    ]);
    let sandbox = made.create().await?;
    let mut log = BufReader::new(sandbox.follow_logs().await?).lines();
    assert_eq!(log.next_line().await?.as_deref(), Some("up"));
    let found = Sandbox::open("s").await?;
    let inspected = found.inspect().await?;
    assert_eq!((inspected.state, inspected.name.as_str(), inspected.runs.len()), (State::Running, "s", 1));
    assert!(inspected.runs[0].main && !inspected.guest.is_empty() && inspected.started.is_some());
    found.write("kept", "kept").await?;
    drop(found);
    sandbox.stop(LONG).await?;
    assert_eq!(log.next_line().await?.as_deref(), Some("asked"));
    assert_eq!(log.next_line().await?, None);
    let inspected = sandbox.inspect().await?;
    assert_eq!((inspected.state, inspected.last_exit_status), (State::Stopped, Some(7)));
    assert_eq!(sandbox.logs().await?, b"up\nasked\n");
    sandbox.start().await?;
    sandbox.start().await?;
    assert_eq!(sandbox.read("kept").await?, b"kept");
    assert_eq!(Sandbox::list().await?.len(), 1);
    sandbox.remove().await?;

    let name = Session::builder("t").with(async |sandbox| sandbox.name().to_owned()).await?;
    assert_eq!(name, "t");
    let failed = Sandbox::unnamed().with(async |sandbox| sandbox.run("no-such-program").status().await).await?;
    assert!(matches!(failed, Err(LibraryError::Execute { .. })));
    assert!(Sandbox::list().await?.is_empty());
    Ok(())
}

async fn lost(word: &str) -> Done {
    let session = Session::builder("s").create().await?;
    let mut run = session.run("sh").args(["-c", &format!("echo ready; exec sleep {word}")]).spawn().await?;
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await?.as_deref(), Some("ready"));
    session.remove().await?;
    let finished = run.wait().await?;
    assert!(!finished.success() && finished.status != Status::Exited(0), "{finished:?}");
    Ok(())
}

async fn spec() -> Done {
    let here = tempfile_directory()?;
    std::fs::write(Path::new(&here).join("file"), "content")?;
    let config: NetworkConfig = file::parse("x.json", r#"{"preset": "none"}"#)?;
    let sandbox = Sandbox::builder("s")
        .network(|n| n.config(config))
        .mount_read_only(&here, "/given")
        .user(1234)
        .workdir("/tmp")
        .env("A", "sandbox's")
        .env("B", "sandbox's")
        .pids(200)
        .create()
        .await?;
    let script = "pwd; id -u; cat /given/file; echo; touch /given/new || echo read-only; echo \"$A $B\"";
    let output = sandbox.run("sh").args(["-c", script]).env("A", "run's").output().await?;
    assert_eq!(output.stdout_text(), "/tmp\n1234\ncontent\nread-only\nrun's sandbox's\n", "{output:?}");
    let elsewhere = sandbox.run("pwd").workdir("/usr/share").output().await?;
    assert_eq!(elsewhere.stdout_text(), "/usr/share\n");

    let root = Session::builder("root").capability("NET_RAW").create().await?;
    assert_eq!(root.run("id").arg("-u").output().await?.stdout_text(), "0\n");
    std::fs::remove_dir_all(here)?;
    Ok(())
}
