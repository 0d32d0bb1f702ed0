//! What `cofferdam run` needs from the kernel, each tried for real.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_control::{EventLog, Host, ResourceLimits, RunOptions, Sandbox};
use cofferdam_gateway::{GuestEnd, Link6, LinkAddresses, NetnsSpec, build_netns};
use cofferdam_sys::confine::{self, Answer, Call, Filter, Landlock};
use cofferdam_sys::netlink::{Connection, Request};
use cofferdam_sys::ns::{self, Fork, IdMap, NamespaceKind, Namespaces, Setgroups};
use cofferdam_sys::packet;
use cofferdam_sys::process;
use cofferdam_sys::tun::{self, Offloads};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketType, ipproto};
use rustix::pipe::{PipeFlags, SpliceFlags};
use rustix::process::{Signal, WaitOptions};

use super::{Check, State};
use crate::output::chain;

/// How long one check may take. Each takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The interface index of loopback in every network namespace.
const LOOPBACK: u32 = 1;

/// A check's work: what it did, or why it could not.
type Findings = Result<String, String>;

/// Carries out every check.
pub(super) fn all() -> Vec<Check> {
    let host = Host::discover();
    let ipv6 = fs::metadata("/proc/sys/net/ipv6").is_ok();
    vec![
        required("user namespaces", in_child(user_namespace), user_namespace_remedy),
        required("TUN device", in_child(tun_device), tun_remedy),
        required("gateway, IPv4", in_child(|| gateway(false)), nft_remedy),
        optional(
            "gateway, IPv6",
            in_child(move || if ipv6 { gateway(true) } else { Err("this kernel has no IPv6".to_owned()) }),
            gateway6_remedy,
        ),
        required("splice", in_child(splice), splice_remedy),
        required("seccomp", in_child(seccomp), |_| "use a kernel with CONFIG_SECCOMP_FILTER".to_owned()),
        optional("Landlock", in_child(landlock), |_| {
            "add landlock to the kernel's lsm= list (Linux 5.13 and later); until then namespaces and seccomp guard files alone".to_owned()
        }),
        optional("ping sockets", in_child(ping_sockets), |_| {
            "sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'".to_owned()
        }),
        optional("packet capture", in_child(packet_capture), |_| {
            "load the module af_packet (modprobe af_packet); until then --pcap does not work".to_owned()
        }),
        optional("cgroup delegation", in_child(limits), |_| limits_remedy(rustix::process::geteuid().is_root())),
        optional("loopback", in_child(loopback), |_| {
            "sudo ip link set lo up; until then a resolver on 127.0.0.53 and this machine's own services are out of reach"
                .to_owned()
        }),
        optional("IPv6 route", ipv6_route(&host), |_| {
            "sandboxes get IPv4 only on this machine; --ipv6 overrides that".to_owned()
        }),
        optional("resolvers", resolvers(&host), |_| {
            "name a resolver in /etc/resolv.conf, or with --dns-nameserver".to_owned()
        }),
        optional("virtual machines", guests(), |_| {
            "only --backend vm needs them: install QEMU, and run `cofferdam vm setup`".to_owned()
        }),
        optional("virtiofs", virtiofs(), |_| {
            "only --mount-via virtiofs needs it; without it directories are shared with virtual machines by smb or 9p"
                .to_owned()
        }),
        required("a whole sandbox", sandbox(), |_| {
            "the lines above say what is missing; if none does, this is a fault of Cofferdam".to_owned()
        }),
    ]
}

/// What a run in a virtual machine would be made from. Tries KVM where it is not known whether that works.
fn guests() -> Findings {
    let options = crate::vm::options().map_err(|refusal| refusal.text)?;
    let (qemu, kernel) = (options.kit.qemu.display().to_string(), options.kit.kernel.display().to_string());
    let choice = options.accelerator(&mut |_| {}).map_err(|error| chain(&error))?;
    let how = choice.why.map_or_else(|| "with KVM".to_owned(), |why| format!("without KVM, which is slow: {why}"));
    Ok(format!("{qemu} and {kernel}, {how}"))
}

/// What would serve the directories of one by virtiofs.
fn virtiofs() -> Findings {
    let program = crate::vm::virtiofsd().map_err(|error| chain(&error))?;
    Ok(format!("{}, for --mount-via virtiofs", program.path().display()))
}

fn required(name: &'static str, findings: Findings, remedy: impl FnOnce(&str) -> String) -> Check {
    check(name, findings, State::Missing, remedy)
}

fn optional(name: &'static str, findings: Findings, remedy: impl FnOnce(&str) -> String) -> Check {
    check(name, findings, State::Limited, remedy)
}

fn check(name: &'static str, findings: Findings, bad: State, remedy: impl FnOnce(&str) -> String) -> Check {
    match findings {
        Ok(detail) => Check { name, state: State::Good, detail, remedy: None },
        Err(detail) => {
            let remedy = Some(remedy(&detail));
            Check { name, state: bad, detail, remedy }
        }
    }
}

/// Runs `work` in a forked child and brings its findings back, within [`PATIENCE`].
fn in_child(work: impl FnOnce() -> Findings) -> Findings {
    let trouble = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
    let (read, write) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(trouble("make a pipe"))?;
    let child = match ns::fork().map_err(trouble("fork"))? {
        Fork::Child => process::run_and_exit(move || {
            let (mark, text) = match work() {
                Ok(text) => ('+', text),
                Err(text) => ('-', text),
            };
            // The parent takes silence for a failed check.
            let _ = File::from(write).write_all(format!("{mark}{text}").as_bytes());
            0
        }),
        Fork::Parent(child) => child,
    };
    drop(write);
    let mut text = String::new();
    let heard = hear(read, &mut text);
    if heard.is_err() {
        let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
    }
    let ended = rustix::process::waitpid(Some(child.pid), WaitOptions::empty());
    heard.map_err(|error| format!("the check did not end: {error}"))?;
    match text.split_at_checked(1) {
        Some(("+", detail)) => Ok(detail.to_owned()),
        Some(("-", detail)) => Err(detail.to_owned()),
        Some(_) | None => match ended {
            Ok(Some((_, status))) => Err(format!("the check died ({status:?})")),
            Ok(None) | Err(_) => Err("the check died".to_owned()),
        },
    }
}

/// Reads until the writer is gone.
fn hear(read: OwnedFd, text: &mut String) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut file = File::from(read);
    let mut bytes = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::time::Timespec::try_from(left).map_err(|_| io::ErrorKind::TimedOut)?;
        let mut wanted = [PollFd::new(&file, PollFlags::IN)];
        if poll(&mut wanted, Some(&timeout))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut buffer = [0; 1024];
        let read = file.read(&mut buffer)?;
        if read == 0 {
            *text = String::from_utf8_lossy(&bytes).into_owned();
            return Ok(());
        }
        bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
}

/// Moves into user and network namespaces of our own, as root there.
fn enter() -> Result<(), String> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    ns::unshare(Namespaces::USER | Namespaces::NET).map_err(|error| format!("unshare(2) said: {error}"))?;
    ns::write_id_maps(None, &[IdMap::single(0, uid)], &[IdMap::single(0, gid)], Setgroups::Deny)
        .map_err(|error| chain(&error))
}

/// Switches on the loopback of a namespace of our own.
fn set_loopback_up() -> Result<(), String> {
    let mut connection = Connection::open().map_err(|error| chain(&error))?;
    connection.execute(&[Request::SetUp { index: LOOPBACK }]).map_err(|error| chain(&error))
}

fn user_namespace() -> Findings {
    enter()?;
    // AppArmor lets a process make the namespace and then takes every capability in it: only use shows that.
    set_loopback_up()?;
    ns::unshare(Namespaces::USER).map_err(|error| format!("a user namespace below another one: {error}"))?;
    Ok("made one, and another below it, and changed a link inside".to_owned())
}

/// The line that names the switch that is off, found by looking at the switches.
fn user_namespace_remedy(_: &str) -> String {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "sudo sysctl -w kernel.unprivileged_userns_clone=1".to_owned()
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        "sudo sysctl -w user.max_user_namespaces=15000".to_owned()
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with `userns,` for cofferdam".to_owned()
    } else {
        "in a container: start it with a seccomp profile that allows unshare(2) and clone(2) with CLONE_NEWUSER"
            .to_owned()
    }
}

fn tun_device() -> Findings {
    enter()?;
    let device = tun::open().map_err(|error| chain(&error))?;
    // Our choice: far above what a fresh namespace has.
    const INDEX: u32 = 100;
    Ok(match tun::create(&device, "doctor0", INDEX).map_err(|error| chain(&error))? {
        Offloads::ChecksumAndUdpSegmentation => {
            "made an interface with checksum and UDP segmentation offload".to_owned()
        }
        Offloads::Checksum => "made an interface with checksum offload".to_owned(),
    })
}

/// How the system puts it when another kind of file is asked for a TUN interface: ENOTTY.
const NOT_A_TUN: &str = "Inappropriate ioctl";

fn tun_remedy(detail: &str) -> String {
    match fs::metadata("/dev/net/tun") {
        Err(_) => "sudo modprobe tun; in a container: pass the device in (--device /dev/net/tun)".to_owned(),
        Ok(_) if detail.contains("ermission denied") => "sudo chmod 0666 /dev/net/tun".to_owned(),
        Ok(found) if !found.file_type().is_char_device() || detail.contains(NOT_A_TUN) => {
            "something else is at /dev/net/tun: sudo rm -r /dev/net/tun && sudo mknod -m 0666 /dev/net/tun c 10 200; \
             in a container: pass the device in (--device /dev/net/tun)"
                .to_owned()
        }
        Ok(_) => "sudo modprobe tun".to_owned(),
    }
}

/// Builds a gateway as `run` does: veth, TUN, nft with TPROXY, listeners.
fn gateway(ipv6: bool) -> Findings {
    enter()?;
    let sandbox = ns::open(None, NamespaceKind::Net).map_err(|error| error.to_string())?;
    ns::unshare(Namespaces::NET).map_err(|error| format!("a second network namespace: {error}"))?;
    let device = tun::open().map_err(|error| chain(&error))?;
    let spec = NetnsSpec {
        link: LinkAddresses {
            guest4: Ipv4Addr::new(172, 16, 0, 2),
            gateway4: Ipv4Addr::new(172, 16, 0, 1),
            prefix4: 30,
            v6: ipv6.then_some(Link6 {
                guest: Ipv6Addr::new(0xfd42, 0x6d73, 0x62, 0, 0, 0, 0, 2),
                gateway: Ipv6Addr::new(0xfd42, 0x6d73, 0x62, 0, 0, 0, 0, 1),
                prefix: 64,
            }),
        },
        mtu: 1500,
        guest_mac: [0x02, 0, 0, 0, 0, 2],
        gateway_mac: [0x02, 0, 0, 0, 0, 1],
        files: None,
    };
    let fds = build_netns(&spec, device, GuestEnd::Netns(sandbox.as_fd())).map_err(|error| chain(&error))?;
    Ok(match fds.listeners.len() {
        1 => "made veth, TUN, nft with TPROXY and a listener".to_owned(),
        many => format!("made veth, TUN, nft with TPROXY and {many} listeners"),
    })
}

fn nft_remedy(detail: &str) -> String {
    earlier_remedy(detail).unwrap_or_else(|| {
        "sudo modprobe -a nf_tables nft_tproxy; or a kernel with CONFIG_NF_TABLES_INET and CONFIG_NFT_TPROXY".to_owned()
    })
}

fn gateway6_remedy(detail: &str) -> String {
    earlier_remedy(detail).unwrap_or_else(|| {
        "sandboxes will have IPv4 only; load ipv6 and nft_tproxy (sudo modprobe nft_tproxy) to have both".to_owned()
    })
}

/// What to do when the gateway failed at something that comes before nft.
fn earlier_remedy(detail: &str) -> Option<String> {
    if ["unshare(2)", "_map", "a second network namespace"].iter().any(|part| detail.contains(part)) {
        Some("see user namespaces".to_owned())
    } else if detail.contains("/dev/net/tun") {
        Some("see TUN device".to_owned())
    } else if detail.to_lowercase().contains("veth") {
        Some("sudo modprobe veth".to_owned())
    } else {
        None
    }
}

/// Moves bytes from one TCP connection through a pipe into another one; in a namespace of our own, since that of the machine
/// may have its loopback down.
fn splice() -> Findings {
    enter()?;
    set_loopback_up()?;
    move_bytes()
}

fn move_bytes() -> Findings {
    const TEXT: &[u8] = b"through a pipe, uncopied";
    let said = |error: io::Error| error.to_string();
    let (mut source, source_end) = tcp_pair().map_err(said)?;
    let (sink_end, mut sink) = tcp_pair().map_err(said)?;
    source.write_all(TEXT).map_err(said)?;
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| error.to_string())?;
    let flags = SpliceFlags::MOVE;
    let in_pipe =
        rustix::pipe::splice(&source_end, None, &write, None, TEXT.len(), flags).map_err(|error| error.to_string())?;
    rustix::pipe::splice(&read, None, &sink_end, None, in_pipe, flags).map_err(|error| error.to_string())?;
    drop(sink_end);
    let mut text = Vec::new();
    sink.read_to_end(&mut text).map_err(said)?;
    if TEXT.starts_with(&text) && !text.is_empty() {
        Ok("moved bytes from one TCP connection to another".to_owned())
    } else {
        Err("other bytes came out".to_owned())
    }
}

fn splice_remedy(detail: &str) -> String {
    earlier_remedy(detail)
        .unwrap_or_else(|| "a kernel since 2.6.31 has splice(2); a container's seccomp filter may forbid it".to_owned())
}

fn tcp_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    other.set_read_timeout(Some(PATIENCE))?;
    one.set_read_timeout(Some(PATIENCE))?;
    Ok((one, other))
}

/// Connects to this machine over its own loopback.
fn loopback() -> Findings {
    match tcp_pair() {
        Ok(_) => Ok("connected to this machine itself".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NetworkUnreachable => {
            Err(format!("this machine's loopback is down: {error}"))
        }
        Err(error) => Err(format!("this machine cannot connect to itself: {error}")),
    }
}

fn seccomp() -> Findings {
    let answer = rustix::io::Errno::XDEV;
    let filter = Filter::deny(vec![Call::new(libc::SYS_getcwd)], Answer::Errno(answer.raw_os_error()))
        .map_err(|error| chain(&error))?;
    confine::install_seccomp(&filter).map_err(|error| chain(&error))?;
    match std::env::current_dir() {
        Err(error) if error.raw_os_error() == Some(answer.raw_os_error()) => {
            Ok("forbade a call, and it was refused".to_owned())
        }
        Err(error) => Err(format!("forbade a call, and it said something else: {error}")),
        Ok(_) => Err("forbade a call, and it went through".to_owned()),
    }
}

fn landlock() -> Findings {
    let state = confine::landlock_deny_all_fs().map_err(|error| error.to_string())?;
    let open = File::open("/etc/passwd").is_ok();
    match (state, open) {
        (Landlock::Absent, _) => Err("this kernel does not have it, or it is switched off".to_owned()),
        (Landlock::Full | Landlock::Partial, true) => Err("forbade every file, and one could be opened".to_owned()),
        (Landlock::Full, false) => Ok("forbade every file, and none could be opened".to_owned()),
        (Landlock::Partial, false) => {
            Ok("forbade every file, and none could be opened; newer kernels guard more".to_owned())
        }
    }
}

fn ping_sockets() -> Findings {
    let open = |family, protocol| rustix::net::socket(family, SocketType::DGRAM, Some(protocol));
    open(AddressFamily::INET, ipproto::ICMP).map_err(|error| format!("pings will be refused: {error}"))?;
    match open(AddressFamily::INET6, ipproto::ICMPV6) {
        Ok(_) => Ok("opened one for IPv4 and one for IPv6".to_owned()),
        Err(_) => Ok("opened one for IPv4".to_owned()),
    }
}

fn packet_capture() -> Findings {
    enter()?;
    set_loopback_up()?;
    let socket = packet::open(LOOPBACK, None)
        .map_err(|(call, error)| format!("--pcap will be refused: {call} said: {error}"))?;
    packet::Ring::map(socket).map_err(|error| format!("--pcap will be refused: mmap(2) said: {error}"))?;
    Ok("opened a socket with a ring of packets".to_owned())
}

/// Runs a program with limits as `run` does, and listens to what it says about them.
fn limits() -> Findings {
    let mut network = cofferdam_policy::file::default_network();
    network.enabled = false;
    let options = RunOptions {
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        limits: ResourceLimits {
            memory: Some(256 << 20),
            cpus: Some(1.0),
            timeout: Some(PATIENCE / 2),
            ..ResourceLimits::default()
        },
        ..RunOptions::new(vec!["true".into()], network)
    };
    let finished = Sandbox::prepare(options)
        .and_then(|sandbox| sandbox.run(&mut EventLog::none(), &mut |_| {}))
        .map_err(|error| format!("no sandbox to try it with: {}", chain(&error)))?;
    match finished.notices.iter().find_map(|notice| not_enforced(notice)) {
        None => Ok("ran a program with limits on memory and processors".to_owned()),
        Some(reason) => Err(reason.to_owned()),
    }
}

/// The reason in a notice about a limit that holds for nothing, without the advice behind it: that is the remedy's.
fn not_enforced(notice: &str) -> Option<&str> {
    let (_, rest) = notice.split_once("is not enforced")?;
    let (_, reason) = rest.split_once(": ")?;
    Some(reason.split("; `").next().unwrap_or(reason))
}

fn limits_remedy(is_root: bool) -> String {
    // Root has no manager of its own to ask, and may ask the machine's.
    let user = if is_root { "" } else { "--user " };
    format!(
        "--memory and --cpus need a delegated cgroup v2 (--pids does not): start with systemd-run {user}--scope -p Delegate=yes cofferdam run …"
    )
}

fn ipv6_route(host: &io::Result<Host>) -> Findings {
    match host {
        Ok(host) if host.ipv6_route => Ok("this machine has an IPv6 default route".to_owned()),
        Ok(_) => Err("this machine has no IPv6 default route".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn resolvers(host: &io::Result<Host>) -> Findings {
    match host {
        Ok(host) if !host.resolvers.is_empty() => {
            let list: Vec<String> = host.resolvers.iter().map(ToString::to_string).collect();
            Ok(list.join(", "))
        }
        Ok(_) => Err("/etc/resolv.conf names none".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn sandbox() -> Findings {
    let started = Instant::now();
    let output = Command::new("/proc/self/exe")
        .args(["run", "--no-cwd", "--timeout", "10s", "--", "true"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(format!("ran `true` in {} ms", started.elapsed().as_millis()));
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_before_nft_gets_the_remedy_of_its_own_check() {
        let no_tun = "open failed on /dev/net/tun: No such file or directory (os error 2)";
        let no_veth = "cannot set up links, addresses and routes: add link veth: Operation not supported";
        let no_userns = "unshare(2) said: Operation not permitted (os error 1)";
        for remedy in [nft_remedy, gateway6_remedy] {
            assert_eq!(remedy(no_tun), "see TUN device");
            assert_eq!(remedy(no_veth), "sudo modprobe veth");
            assert_eq!(remedy(no_userns), "see user namespaces");
            assert!(remedy("cannot install the packet filter: No such file or directory").contains("nft_tproxy"));
        }
        assert!(gateway6_remedy("this kernel has no IPv6").contains("IPv4 only"));
    }

    #[test]
    fn a_limit_that_does_not_hold_is_explained_without_the_advice() {
        let notice = "the memory limit is not enforced, but for files in memory: /sys/fs/cgroup/a: it holds other \
                      processes; `systemd-run --user --scope -p Delegate=yes cofferdam run …` gives it one";
        assert_eq!(not_enforced(notice), Some("/sys/fs/cgroup/a: it holds other processes"));
        assert_eq!(not_enforced("the processor limit is not enforced: no"), Some("no"));
        assert_eq!(not_enforced("the program's time was up, and it was ended"), None);
    }

    #[test]
    fn root_is_not_sent_to_a_manager_it_does_not_have() {
        assert!(limits_remedy(false).contains("systemd-run --user --scope"));
        assert!(limits_remedy(true).contains("systemd-run --scope"));
        assert!([true, false].map(limits_remedy).iter().all(|remedy| remedy.contains("--pids does not")));
    }
}
