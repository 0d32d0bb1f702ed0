//! Virtual machines behind the same wall: QEMU without KVM, a kernel of the distribution, busybox as the clients.
//!
//! A guest takes seconds to start, so one runs many cases in a row, and says which it is at: a case that does not end as it should
//! shows what came out instead.
//!
//! Of the distribution's busybox: `ping` is for root, and `wget` with a time limit (`-T`) breaks. `timeout` has one for it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, Sandbox, World};

/// Much longer than a guest takes to start on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(180);

fn guest(flags: &str) -> Sandbox<'static> {
    let sandbox = World::with_guests().sandbox().patience(PATIENCE);
    sandbox.flags("--backend vm --no-cwd --no-record").flags(flags)
}

/// What a case is to come to.
enum Come {
    /// Its output has this, and it succeeds.
    Says(&'static str),
    /// It fails within ten seconds: what waits for an answer that does not come waits for a minute.
    Fails,
}
use Come::{Fails, Says};

/// Runs cases in one guest: each a name, a piece of shell, and what it is to come to.
#[track_caller]
fn run_cases(flags: &str, cases: &[(String, String, Come)]) -> (Ran, PathBuf) {
    let mut script = String::new();
    for (name, shell, come) in cases {
        let expected = match come {
            Says(text) => format!(r#"[ $status = 0 ] && case "$said" in *"{text}"*) true ;; *) false ;; esac"#),
            Fails => r#"[ $status != 0 ] && [ $((now - before)) -le 10 ]"#.to_owned(),
        };
        // A String takes everything.
        let _ = writeln!(
            script,
            r#"before=$(date +%s); said=$({{ {shell} ; }} 2>&1); status=$?; now=$(date +%s)
if {expected}; then echo "as it should: {name}"; else echo "NOT SO: {name}: status $status after $((now - before)) s: $said"; fi"#
        );
    }
    let sandbox = guest(flags);
    let folder = sandbox.folder().to_owned();
    let ran = sandbox.run(&["sh", "-c", &script]);
    ran.exits(0).never_says("NOT SO");
    assert_eq!(ran.stdout().matches("as it should").count(), cases.len(), "{ran}");
    (ran, folder)
}

fn case(name: impl Into<String>, shell: impl Into<String>, come: Come) -> (String, String, Come) {
    (name.into(), shell.into(), come)
}

/// A client of HTTP that is led to an address, and asks for a name there.
fn fetch(family: Family, address: &str, name: &str) -> String {
    format!("timeout 20 wget -qO- --header 'Host: {name}' http://{}/", family.in_url(address))
}

#[test]
fn a_guest_reaches_what_is_allowed_and_nothing_else() {
    let mut cases = Vec::new();
    for family in Family::BOTH {
        let (web, other, inside) = (family.web(), family.other(), family.inside());
        let asked = fetch(family, web, "web.wall-test.com");
        if family == Family::V4 {
            // An answer pins the addresses of both families.
            cases.push(case("by address before the name is asked for", asked.clone(), Fails));
        }
        cases.extend([
            case(format!("{family:?} the name"), "nslookup web.wall-test.com", Says(web)),
            case(format!("{family:?} by address when the name has it"), asked, Says("hello from the world")),
            case(format!("{family:?} another name there"), fetch(family, web, "other.wall-test.com"), Fails),
            case(format!("{family:?} another port there"), format!("nc -w 60 {web} 81 </dev/null"), Fails),
            case(format!("{family:?} another address"), fetch(family, other, "web.wall-test.com"), Fails),
            case(format!("{family:?} a private address"), fetch(family, inside, "web.wall-test.com"), Fails),
            case(format!("{family:?} the host"), format!("nc -w 60 {} 22 </dev/null", family.host()), Fails),
            case(format!("{family:?} ping"), format!("ping -c 1 -W 1 {other}"), Fails),
        ]);
    }
    cases.extend([
        case("by name", "timeout 20 wget -qO- http://web.wall-test.com/", Says("hello from the world")),
        case("a denied name", "nslookup other.wall-test.com", Fails),
        case("a name that there is not", "nslookup absent.wall-test.com", Fails),
        case("credentials of clouds", "timeout 20 wget -qO- http://169.254.169.254/", Fails),
        case("the host by its alias", "nc -w 60 host.cofferdam.internal 22 </dev/null", Fails),
        case("its own name", "ping -c 1 sandbox", Says("1 packets received")),
    ]);
    let (ran, folder) = run_cases(
        "--user 0 --allow web.wall-test.com:80 --events events.jsonl --json-summary summary.json --verbose",
        &cases,
    );
    ran.complains("15 denied").complains("blocked  other.wall-test.com:80          ×2  default egress deny");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("it was asked for");
    let (summary, events) = (read("summary.json"), read("events.jsonl"));
    for family in Family::BOTH {
        assert!(summary.contains(family.other()) && events.contains(family.other()), "{summary}\n{events}");
        assert!(events.contains(family.inside()), "{events}");
    }
    assert!(events.contains("sandbox.started") && events.contains("sandbox.stopped"), "{events}");
}

#[test]
fn a_guest_reaches_the_public_internet_by_default_and_the_host_by_a_rule() {
    let mut cases = Vec::new();
    for family in Family::BOTH {
        let (web, inside) = (family.web(), family.inside());
        cases.extend([
            case(format!("{family:?} the web"), fetch(family, web, "web.wall-test.com"), Says("hello from the world")),
            case(format!("{family:?} ping"), format!("ping -c 1 -W 5 {web}"), Says("1 packets received")),
            case(format!("{family:?} a private address"), fetch(family, inside, "web.wall-test.com"), Fails),
            case(format!("{family:?} a port that is closed"), format!("nc -w 10 {web} 4 </dev/null"), Fails),
            case(
                format!("{family:?} a large file"),
                format!("wget -qO- http://{}/files/big | sha256sum", family.in_url(web)),
                Says("-"),
            ),
        ]);
    }
    cases.push(case("metadata", "timeout 20 wget -qO- http://169.254.169.254/", Fails));
    let digest = World::with_guests().big_file_digest();
    let script = format!("wget -qO- http://{}/files/big | sha256sum", Family::V6.in_url(Family::V6.web()));
    cases.push(case("every byte of it", format!("{script} | grep {digest}"), Says("-")));
    run_cases("--user 0", &cases);
}

#[test]
fn a_guest_without_a_network_has_no_interface_and_runs_programs_all_the_same() {
    let cases = [
        case("interfaces", "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' \n'; echo .", Says("lo.")),
        case("addresses", fetch(Family::V4, Family::V4.web(), "web.wall-test.com"), Fails),
        case("addresses of the other family", fetch(Family::V6, Family::V6.web(), "web.wall-test.com"), Fails),
        case("who it is", "id -u; id -un; pwd; touch here && ls", Says("1000\nuser\n/home/user\nhere")),
        case("a kernel of its own", "uname -v; cat /proc/cmdline", Says("console=ttyS0")),
        case("no token", "grep -r token /proc/cmdline /cofferdam; ls /cofferdam/token", Fails),
    ];
    run_cases("--no-net", &cases);
}

#[test]
fn the_demo_shows_the_same_in_guests_and_says_so_before_they_are_set_up() {
    let world = World::with_guests();
    let script = r#"
        $C demo --backend vm >out 2>err && echo 0 || echo "ended $?"
        wc -l <err; cat out err
        mkdir -p "$XDG_STATE_HOME/cofferdam"; cp -r "$HOME/.local/state/cofferdam/vm" "$XDG_STATE_HOME/cofferdam/"
        $C demo --backend vm"#;
    let ran = world.script_in(world.sandbox().patience(PATIENCE), script);
    ran.exits(0).says("ended 1\n1\n").says("`cofferdam vm setup` puts it there");
    let rows = [
        "http://example.com            reached      reached      reached      no such name reached",
        "http://telemetry.example.net  reached      no such name no such name no such name reached",
        "ping example.com              reached      silence      reached      no such name reached",
        "http://ipv6.example.org       reached      no such name reached      no such name reached",
        "a neighbour on your LAN       refused      refused      refused      no network   refused",
        "a cloud's metadata service    refused      refused      refused      no network   refused",
        "port 9000 of your machine     refused      refused      refused      no such name reached",
        "2  cofferdam run --backend vm --allow example.com -- program",
        "blocked  192.168.50.10:80",
    ];
    for row in rows {
        ran.says(row);
    }
}

#[test]
fn a_guest_with_another_kind_of_processor_is_behind_the_same_wall() {
    let world = World::with_guests();
    let given = |name: &str| std::env::var(name).ok().filter(|path| !path.is_empty());
    let (Some(kernel), Some(busybox)) = (given("COFFERDAM_TEST_KERNEL_ARM64"), given("COFFERDAM_TEST_BUSYBOX_ARM64"))
    else {
        println!("SKIP: COFFERDAM_TEST_KERNEL_ARM64 and COFFERDAM_TEST_BUSYBOX_ARM64 name no machine of another kind");
        return;
    };
    let mut inside = "uname -m; timeout 20 wget -qO- http://web.wall-test.com/".to_owned();
    for family in Family::BOTH {
        let (reached, denied) = (family.web(), family.other());
        inside += &format!("; {}", fetch(family, reached, "web.wall-test.com"));
        inside += &format!("; {} && echo NOT SO: {denied}", fetch(family, denied, "web.wall-test.com"));
    }
    let script = format!(
        r#"
        $C vm setup --arch aarch64 --from-deb '{kernel}' --busybox '{busybox}'
        $C run --backend vm --arch aarch64 --no-cwd --no-record --allow web.wall-test.com:80 -- sh -c "{inside}; true"
        "#
    );
    let ran = world.script_in(world.sandbox().patience(PATIENCE), &script);
    ran.exits(0).says("aarch64\nhello from the world").never_says("NOT SO").complains("another kind of processor");
    assert_eq!(ran.stdout().matches("hello from the world").count(), 3, "{ran}");
    for family in Family::BOTH {
        ran.complains(family.other());
    }
}

#[test]
fn streams_are_whole_and_the_exit_status_is_the_programs() {
    // More than every window and pipe on the way, both ways.
    let input = "0123456789abcdef".repeat(1 << 17);
    let ran = guest("--no-net").input(&input).run(&[
        "sh",
        "-c",
        "cat; head -c 3000000 /dev/zero | tr '\\0' e >&2; cat; exit 37",
    ]);
    ran.exits(37);
    assert_eq!(ran.stdout().len(), input.len(), "{}", ran.stderr().len());
    assert_eq!(ran.stdout(), input);
    assert_eq!(ran.stderr().matches('e').count() / 1_000_000, 3);
    let ran = guest("--no-net --quiet").run(&["sh", "-c", "kill -9 $$"]);
    ran.exits(137);
    let ran = guest("--no-net").run(&["no-such-program"]);
    ran.exits(127).complains("cannot execute \"no-such-program\"");
}

#[test]
fn a_program_has_a_terminal_of_the_users_size() {
    let ran = guest("--no-net --tty").input("stty size; tty; exit 5\n").on_a_terminal(&["sh"]);
    ran.exits(5).says("/dev/pts/");
}

#[test]
fn signals_reach_the_program_and_time_is_up_in_the_guest_too() {
    let world = World::with_guests();
    let ran = world.script_in(
        world.sandbox().patience(PATIENCE),
        r#"
        mkdir "$XDG_STATE_HOME/cofferdam"; cp -r "$HOME/.local/state/cofferdam/vm" "$XDG_STATE_HOME/cofferdam/"
        $C run --backend vm --no-cwd --no-net --no-record --quiet -- \
            sh -c 'trap "echo asked to end; exit 9" TERM; echo ready; while :; do sleep 0.1; done' >out & run=$!
        until_long() { n=0; until "$@"; do n=$((n + 1)); [ $n -lt 5000 ] || exit 97; sleep 0.02; done; }
        until_long grep -q ready out
        kill $run; wait $run && echo 0 || echo "ended $?"
        cat out
        "#,
    );
    ran.exits(0).says("ended 9").says("asked to end");
    let ran = guest("--no-net --timeout 2s").run(&["sh", "-c", "trap '' TERM; sleep 1000"]);
    ran.exits(124).complains("time was up");
}

#[test]
fn a_published_port_leads_into_a_guest() {
    let world = World::with_guests();
    let ran = world.script_in(
        world.sandbox().patience(PATIENCE),
        r#"
        mkdir "$XDG_STATE_HOME/cofferdam"; cp -r "$HOME/.local/state/cofferdam/vm" "$XDG_STATE_HOME/cofferdam/"
        # Each connection is answered by one more.
        serve_in='for n in 1 2 3 4 5 6; do echo "answer $n" | nc -l -p 8080; done'
        $C run --backend vm --no-cwd --no-record --quiet -p 23080:8080 -p '[::1]:23080:8080' -- sh -c "echo up; $serve_in" >out & run=$!
        n=0; until grep -q up out; do n=$((n + 1)); [ $n -lt 5000 ] || exit 97; sleep 0.02; done
        for address in 127.0.0.1 ::1; do
            python3 -c '
import socket, sys, time
for _ in range(100):
    try:
        said = socket.create_connection((sys.argv[1], 23080), 5).makefile().read()
        if said: print(sys.argv[1], said.strip()); break
    except OSError: pass
    time.sleep(0.1)' $address
        done
        kill $run; wait $run || true
        "#,
    );
    ran.exits(0).says("127.0.0.1 answer").says("::1 answer");
}

#[test]
fn a_guest_that_floods_its_card_disturbs_nobody() {
    let mut cases = Vec::new();
    for family in Family::BOTH {
        let (web, other) = (family.web(), family.other());
        // To where it may and to where it may not: 41 fragments a time, as fast as the guest can for two seconds each.
        // One that begins while the card's queue is full ends at once (ENOBUFS), and is begun again.
        for to in [web, other] {
            let flood = format!(
                "for n in 1 2 3 4; do {{ tries=0; until ping -q -s 60000 -i 0.001 -w 2 {to} | grep transmitted; do tries=$((tries + 1)); [ $tries = 100 ] && break; done; }} & done 2>&1 | awk '/transmitted/ {{ sent += $1 }} END {{ print (sent > 100) ? \"flooded\" : \"sent \" sent }}'"
            );
            cases.push(case(format!("{family:?} a flood to {to}"), flood, Says("flooded")));
        }
        cases.push(case(
            format!("{family:?} the web after it"),
            fetch(family, web, "web.wall-test.com"),
            Says("hello from the world"),
        ));
    }
    run_cases(&format!("--allow {}:80 --allow [{}]:80 --quiet --user 0", Family::V4.web(), Family::V6.web()), &cases);
}

#[test]
fn a_kernel_that_panics_is_told_in_one_message() {
    let ran = guest("--no-net --user 0").run(&["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000"]);
    ran.exits(125).complains("the guest's kernel has panicked").complains("Kernel panic");
    assert_eq!(ran.stderr().matches("ended before the program did").count(), 1, "{ran}");
    let ran = guest("--no-net --user 0").run(&["busybox", "poweroff", "-f"]);
    ran.exits(125).complains("the guest switched itself off");
}

#[test]
fn nothing_is_left_of_a_guest_of_which_one_process_is_killed() {
    let world = World::with_guests();
    // A machine is known by its memory; another user's tests may run beside these.
    let memory = if world.has_root() { 333 } else { 334 };
    let story = |flags: &str, victim: &str, then: &str| {
        let script = format!(
            r#"
            mkdir "$XDG_STATE_HOME/cofferdam"; cp -r "$HOME/.local/state/cofferdam/vm" "$XDG_STATE_HOME/cofferdam/"
            mkdir shown
            $C run --backend vm --no-cwd --no-record --memory {memory}M {flags} -- sh -c 'echo ready; sleep 1000' >out 2>err & run=$!
            n=0; until grep -q ready out; do n=$((n + 1)); [ $n -lt 5000 ] || exit 97; sleep 0.02; done
            qemu=$(pgrep -f '[-]m {memory}M'); [ -n "$qemu" ]
            init=$(pgrep -x cofferdam-init -P $run); files=$(pgrep -x cofferdam-files -P $init || true)
            machine="$qemu $init $(pgrep -d ' ' -P $init)"
            none_left() {{ for one in $machine; do ! kill -0 "$one" 2>/dev/null || return 1; done; }}
            kill -9 {victim}
            wait $run && echo 0 || echo "ended $?"
            until_ none_left; echo "nothing left of $(echo $machine | wc -w)"
            cat err
            "#
        );
        let ran = world.script_in(world.sandbox().patience(PATIENCE), &script);
        ran.exits(0).says(then);
        ran
    };
    let qemu = story("", "$qemu", "ended 125\nnothing left of 3\n");
    qemu.says("the virtual machine ended before the program did").says("QEMU has ended (signal 9)");
    let files = story("--net mounts-only --mount $PWD/shown:/data", "$files", "ended 125\nnothing left of 4\n");
    files.says("the process that serves the guest's files has ended");
    story("", "$run", "ended 137\nnothing left of 3\n");
}

#[test]
fn a_qemu_that_is_taken_over_without_namespaces_starts_nothing_and_changes_nothing() {
    let world = World::with_guests();
    let mark = if world.has_root() { 1_000_335 } else { 1_000_336 };
    // In QEMU's place from the start, it may do what a guest could have QEMU do.
    let script = format!(
        r#"
        mkdir "$XDG_STATE_HOME/cofferdam"; cp -r "$HOME/.local/state/cofferdam/vm" "$XDG_STATE_HOME/cofferdam/"
        cat >hostile <<'PYTHON'
#!/usr/bin/python3
import errno, os, sys
def tried(act):
    try: act()
    except OSError as error: return errno.errorcode[error.errno]
    return "done"
def stay(child):
    if child == 0:
        os.setsid()
        os.execv("/bin/sleep", ["sleep", "{mark}"])
kernel = sys.argv[sys.argv.index("-kernel") + 1]
print("it says: fork", tried(lambda: stay(os.fork())),
    "spawn", tried(lambda: os.posix_spawn("/bin/sleep", ["sleep", "{mark}"], {{}}, setsid=True)),
    "read", tried(lambda: open(kernel, "rb").read(1)),
    "truncate", tried(lambda: os.truncate(kernel, 0)), "write", tried(lambda: open(kernel, "wb")), flush=True)
PYTHON
        chmod 755 hostile
        unshare --user --map-root-user --mount sh -c 'mount --bind hostile "$1"; shift
            echo 1 >/proc/sys/user/max_user_namespaces
            exec unshare --user --map-user=1500 --map-group=1500 -- "$@"' in "$(command -v qemu-system-$(uname -m))"             $C run --backend vm --no-cwd --no-record --engine slirp -- true || echo "ended $?"
        pgrep -f 'slee[p] {mark}' || echo "nothing left"
        find "$XDG_STATE_HOME/cofferdam/vm" -name 'kernel*' -size 0 | grep . || echo "nothing changed"
        "#
    );
    let ran = world.script_in(world.sandbox().patience(PATIENCE), &script);
    ran.exits(0).says("ended 125\nnothing left\nnothing changed\n");
    ran.complains("it says: fork EPERM spawn EPERM read done truncate EPERM write EACCES");
}

#[test]
fn a_kvm_that_hangs_or_is_closed_costs_a_deadline_once_and_then_nothing() {
    let world = World::with_guests();
    if !world.has_root() {
        // Nobody else can make a device.
        guest("--no-net").run(&["true"]).exits(0).complains("the guest runs without KVM");
        return;
    }
    // The machine's own KVM, open to the user that a sandbox of root runs as. Whether it works is for the machine to say; and
    // what it says is noted and believed.
    let state = world.path("kvm-state");
    let hanging = r#"mkdir -p "$DIR/kvm-state/cofferdam" && cp -r "$DIR/home/.local/state/cofferdam/vm" "$DIR/kvm-state/cofferdam/" &&
        mknod -m 666 "$DIR/kvm" c 10 232 && mount --bind "$DIR/kvm" /dev/kvm && export XDG_STATE_HOME="$DIR/kvm-state""#;
    let again = r#"mount --bind "$DIR/kvm" /dev/kvm && export XDG_STATE_HOME="$DIR/kvm-state""#;
    let first = guest("--no-net").broken(hanging).run(&["echo", "there"]);
    first.exits(0).says("there");
    let note =
        std::fs::read_to_string(state.join("cofferdam/vm/x86_64/kvm.json")).expect("it is noted what came of it");
    let works = note.contains(r#""fault":null"#);
    first.complains("trying whether KVM works");
    assert_eq!(first.stderr().contains("did not come up"), !works, "{first}{note}");
    let second = guest("--no-net").broken(again).run(&["echo", "there"]);
    second.exits(0).says("there");
    assert!(!second.stderr().contains("trying whether KVM works"), "{second}");
    assert_eq!(second.stderr().contains("did not come up"), !works, "{second}");
}

#[test]
fn where_there_are_no_user_namespaces_there_is_qemus_own_network_for_who_asks_for_it() {
    let world = World::with_guests();
    let script = format!(
        r#"
        mkdir "$XDG_STATE_HOME/cofferdam"; cp -r "$HOME/.local/state/cofferdam/vm" "$XDG_STATE_HOME/cofferdam/"
        # An ordinary user in a namespace that may have no more of them.
        without() {{ unshare --user --map-root-user sh -c 'echo 1 >/proc/sys/user/max_user_namespaces
            exec unshare --user --map-user=1500 --map-group=1500 -- "$@"' without "$@"; }}
        run() {{ without $C run --backend vm --no-cwd --no-record --memory 222M "$@"; }}
        run -- true && echo "NOT SO: chosen by itself" || echo "ended $?"
        unshare --user --map-root-user $C run --backend vm --no-cwd --engine slirp --mode none -- true && echo "NOT SO: as root" || echo "ended $?"

        web() {{ echo "timeout 20 wget -qO- --header 'Host: web.wall-test.com' http://$1/"; }}
        run --engine slirp --mode full -- sh -c "timeout 20 wget -qO- http://web.wall-test.com/; $(web {web4})"

        in="$(web {web4}) && echo 'NOT SO: it reaches the world'
            nc -w 5 10.0.2.2 22 </dev/null && echo 'NOT SO: it reaches the host'
            echo up; for n in 1 2 3 4 5 6; do echo answer \$n | nc -l -p 8080; done"
        run --engine slirp -p 23081:8080 -- sh -c "$in" >out & run=$!
        n=0; until grep -q up out; do n=$((n + 1)); [ $n -lt 5000 ] || exit 97; sleep 0.02; done
        cat out
        python3 -c '
import socket, time
for _ in range(100):
    try:
        said = socket.create_connection(("127.0.0.1", 23081), 5).makefile().read()
        if said: print("by the port", said.strip()); break
    except OSError: pass
    time.sleep(0.1)'
        qemu=$(pgrep -f '[-]m 222M'); [ -n "$qemu" ]
        echo "qemu: $(grep -h -e NoNewPrivs -e 'Seccomp:' -e CapEff /proc/$qemu/status | tr -d '	
')"
        # The process that started it, by which its own would know that it is gone.
        kill -9 $(pgrep -P $run); wait $run || true
        until_ sh -c '! pgrep -f "[-]m 222M"' >/dev/null; echo "nothing left"
        "#,
        web4 = Family::V4.web(),
    );
    let ran = world.script_in(world.sandbox().patience(PATIENCE), &script);
    ran.exits(0).never_says("NOT SO").says("ended 125\nended 125\n").says("by the port answer").says("nothing left");
    assert_eq!(ran.stdout().matches("hello from the world").count(), 2, "{ran}");
    assert_eq!(ran.stderr().matches("no gateway decides here and nothing is recorded per flow").count(), 2, "{ran}");
    ran.says("qemu: CapEff:0000000000000000NoNewPrivs:1Seccomp:2");
    ran.complains("user namespace");
}

#[test]
fn what_a_guest_cannot_be_given_is_refused_by_name() {
    for (flags, name) in [
        ("--pids 10", "--pids"),
        ("--cap-add NET_RAW", "--cap-add"),
        ("--allow-userns", "--allow-userns"),
        ("--host-socket /tmp/nowhere:/run/s", "--host-socket"),
        ("--rootfs /etc/os-release", "--rootfs"),
        ("--rootfs /dev/null", "--rootfs"),
        ("--memory 16M", "--memory"),
        ("--mount /etc/os-release:/mnt/release", "--mount"),
        // Root in the guest would take the inner one away.
        ("--mount /usr:/mnt/a --mount /usr/lib:/mnt/a/b:ro", "--mount"),
        ("--mount /usr:/mnt/a --mount /usr/lib:/mnt/a:ro", "--mount"),
    ] {
        let ran = guest(flags).run(&["true"]);
        ran.exits(125).complains(name).within(Duration::from_secs(10));
    }
}
