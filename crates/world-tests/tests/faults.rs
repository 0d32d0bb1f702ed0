//! Faults that sandboxes have had elsewhere, each as a test with its name. Where another file has one already, it stands in
//! that file's words; here is what the others do not try.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, Sandbox, Served, World};

/// Held where a program fills the user's room for descriptors on their way, and where a sandbox is started under a low limit: the kernel
/// counts them by user and holds each sender to its own limit (unix(7), ETOOMANYREFS), so the second cannot start beside the first.
static ON_THEIR_WAY: Mutex<()> = Mutex::new(());

fn sandbox(flags: &str) -> Sandbox<'static> {
    World::shared().sandbox().flags(flags)
}

/// Where `ports.py` is, outside of a sandbox.
fn program() -> String {
    World::shared().path("files/ports.py").display().to_string()
}

/// A client of `ports.py` on the host.
#[track_caller]
fn client(words: &[&str]) -> Ran {
    World::shared().on_the_host(&[&["python3", &program()], words].concat())
}

#[test]
fn a_run_in_a_blocked_session_that_asks_for_open_stays_blocked() {
    let [v4, v6] = Family::BOTH.map(|family| format!("http://{}/", family.in_url(family.web())));
    let ran = World::shared().script(&format!(
        r#"
        printf '[network]\nnetwork_mode = "open"\n' >open.toml
        try='curl -s -m10 {v4} {v6} && echo out || echo "in $(tail -n +3 /proc/net/dev | tr -d " " | cut -d: -f1 | tr "\n" " ")"'
        $C create s --no-cwd --network-mode blocked
        $C exec --quiet s -- sh -c "$try"
        for ask in '--network-mode open' '--net all' '--net public,private,host' '--allow 0.0.0.0/0 --allow [::/0]' \
            '--net-default allow' '--net-rule allow@any' '--net-conf open.toml' '--ipv6 --net all'; do
            $C exec --quiet $ask s -- sh -c "$try" || echo "refused $ask"
            $C exec --quiet --mode check $ask s -- sh -c "$try" 2>/dev/null || echo "checked $?"
        done
        $C policy set s --network-mode open 2>/dev/null || echo "set $?"
        $C exec --quiet s -- sh -c "$try"
        "#
    ));
    ran.exits(0).never_says("out\n").never_says("refused").says("set 1\nin lo \n");
    assert_eq!(ran.stdout().matches("in lo \n").count(), 10, "{ran}");
    assert_eq!(ran.stdout().matches("checked 125\n").count(), 8, "{ran}");
}

#[test]
fn loopback_is_up_in_a_blocked_run() {
    let program = "
import socket
for family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET, '127.9.9.9'), (socket.AF_INET6, '::1')):
    listener = socket.create_server((address, 0), family=family)
    client = socket.create_connection(listener.getsockname()[:2], 5)
    listener.accept()[0].sendall(b'up'); print(client.recv(2))";
    for flags in ["--no-net", "--network-mode blocked", "--net none", ""] {
        let ran = sandbox(flags).run(&["python3", "-c", program]);
        assert_eq!(ran.exits(0).stdout(), "b'up'\n".repeat(3), "{ran}");
    }
}

/// No address of any kind, and nothing that a program inside can signal: as a plain user it has the id of those that guard it.
#[test]
fn what_controls_a_sandbox_is_not_reachable_from_inside() {
    let world = World::start();
    let marked = world.marked();
    let ran = world.script(&format!(
        r#"
        listening() {{ ss -Hlntuw; ss -Hlx | grep " @" || true; }}
        listening >before
        $C create s --no-cwd --net all --net-rule allow@host -- sleep {word}
        $C create root --no-cwd --net all --cap-add KILL -- sleep {word}
        listening | diff before - && echo "no address"
        ours="$$ $(number s keeper) $(number root keeper) $(pgrep -f {word})"
        for name in s root; do
            $C exec --quiet $name -- python3 -c '
import os, sys
for pid in map(int, sys.argv[1:]):
    # The number, the group of that number; as a descriptor; and in the end everybody that there is to signal.
    for attempt in (os.kill, lambda pid, _: os.kill(-pid, 9), lambda pid, _: os.pidfd_open(pid)):
        try: pid != os.getpid() and attempt(pid, 9)
        except (ProcessLookupError, PermissionError): pass
try: os.kill(-1, 9)
except ProcessLookupError: pass
print("tried")' $ours
            kill -0 $ours && is $name running && $C exec $name -- echo alive
        done
        "#,
        word = marked.word()
    ));
    ran.exits(0);
    assert_eq!(ran.stdout(), "no address\ntried\nalive\ntried\nalive\n", "{ran}");
}

#[test]
fn a_timeout_leaves_no_grandchildren() {
    let world = World::shared();
    for flags in ["", "--no-net"] {
        let marked = world.marked();
        let script = format!(
            "(setsid sh -c '(trap \"\" TERM HUP INT; exec sleep {0}) &' &); nohup sleep {0} >/dev/null 2>&1 & disown; exec sleep {0}",
            marked.word()
        );
        let ran = world.sandbox().flags(flags).flags("--timeout 500ms").run(&["bash", "-c", &script]);
        ran.exits(124).within(Duration::from_secs(10));
        assert!(marked.processes().is_empty(), "{:?}", marked.processes());
    }
}

#[test]
fn sockets_of_the_host_in_its_temporary_folders_are_not_there() {
    let ran = World::shared().script(
        r#"
        cat >serve.py <<'END'
import os, socket, sys
ears = []
for name in sys.argv[1:]:
    ears.append(socket.socket(socket.AF_UNIX)); ears[-1].bind(name.replace("@", "\0")); ears[-1].listen()
    if "@" not in name: os.chmod(name, 0o777)
print("up", flush=True); sys.stdin.read()
END
        cat >try.py <<'END'
import socket, sys
for name in sys.argv[1:]:
    try:
        socket.socket(socket.AF_UNIX).connect(name.replace("@", "\0")); print("connected")
    except OSError as error:
        print(type(error).__name__)
END
        folders=; names=
        for folder in /tmp /var/tmp /dev/shm; do
            folder=$(mktemp -d $folder/world-XXXXXX); chmod 755 $folder
            folders="$folders $folder"; names="$names $folder/socket"
        done
        names="$names @world-$$"
        mkfifo hold; coproc SERVE { exec python3 serve.py $names; }
        read -r up <&${SERVE[0]}
        python3 try.py $names
        export TMPDIR=${folders##* } XDG_RUNTIME_DIR=${folders##* }
        program=$(cat try.py)
        echo run; $C run --no-cwd --net all --env-pass TMPDIR --env-pass XDG_RUNTIME_DIR -- python3 -c "$program" $names
        echo session; $C create s --no-cwd --env-pass TMPDIR; $C exec s -- python3 -c "$program" $names
        kill $SERVE_PID; rm -rf $folders
        "#,
    );
    let inside = "FileNotFoundError\nFileNotFoundError\nFileNotFoundError\nConnectionRefusedError\n";
    assert_eq!(ran.exits(0).stdout(), format!("{}run\n{inside}session\n{inside}", "connected\n".repeat(4)), "{ran}");
}

#[test]
fn a_listener_goes_on_after_it_has_run_out_of_descriptors() {
    let _alone = ON_THEIR_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::shared();
    // With a few, and with fewer than what the gateway keeps in reserve.
    for (limit, most) in [("ulimit -n 512", "79 good"), ("ulimit -n 60", "")] {
        let sandbox = sandbox("--quiet -p 24107:7 -p [::1]:24107:7 --events events").broken(limit);
        let events = sandbox.folder().join("events");
        let served = Served::start(&sandbox, &["python3", "-c", world.program("ports.py"), "serve"]);
        for family in Family::BOTH.repeat(2) {
            let ran = client(&["burst", family.loopback(), "24107", "100"]);
            ran.exits(0).says(" 0 broken ");
            assert!(ran.stdout().starts_with(most), "{ran}");
            // When those have gone there is room again.
            let again = "for n in $(seq 100); do python3 \"$0\" halfclose $1 24107 2>/dev/null && exit; done; exit 1";
            world.on_the_host(&["bash", "-c", again, &program(), family.loopback()]).exits(0).says("whole");
        }
        let _ = served.end();
        let events = fs::read_to_string(events).expect("events were written");
        assert!(events.contains("\"limit\":\"inbound_connections\""), "{events}");
    }
}

#[test]
fn descriptors_that_a_program_has_on_its_way_stop_nobody_else() {
    let _alone = ON_THEIR_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    let ran = World::shared().script(
        r#"
        $C create s --no-cwd; $C create other --no-cwd
        $C exec s -- python3 -c '
import array, os, resource, socket, time
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
null, kept, count = os.open("/dev/null", os.O_RDONLY), [], 0
try:
    while True:
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        a.setblocking(False); kept += [a, b]
        try:
            for _ in range(8):
                a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 250))]); count += 250
        except BlockingIOError: pass
except OSError as e: print("no more", e.errno, flush=True)
open("/tmp/full", "w").close(); time.sleep(1000)' & full=$!
        until_ $C exec s -- test -e /tmp/full
        $C exec other -- echo runs
        $C policy set s --net-default-egress deny && echo narrowed
        $C run --no-cwd -- echo another
        $C create third --no-cwd -p 24300:80 && echo created
        kill $full
        "#,
    );
    ran.exits(0).says("no more 109\nruns\nnarrowed\nanother\ncreated\n");
}

#[test]
fn a_burst_of_connections_loses_none() {
    let world = World::shared();
    let sandbox = sandbox("-p 24207:7 -p [::1]:24207:7");
    let served = Served::start(&sandbox, &["python3", "-c", world.program("ports.py"), "serve"]);
    for family in Family::BOTH {
        for count in ["130", "1000"] {
            let ran = client(&["burst", family.loopback(), "24207", count]);
            ran.exits(0).says(&format!("{count} good 0 broken 0 lost"));
            // And out, to a server in the world.
            let ran =
                world.sandbox().run(&["python3", "-c", world.program("ports.py"), "burst", family.web(), "7", count]);
            ran.exits(0).says(&format!("{count} good 0 broken 0 lost"));
        }
    }
    drop(served);
}

/// Tries to reach each target over TCP, and prints the word that comes with it and what came of it.
const REACH: &str = "
import errno, socket, sys
for target in sys.argv[1:]:
    word, address, port = target.split(',')
    try:
        socket.create_connection((address, int(port)), 10); print(word, 'reached')
    except OSError as error:
        print(word, errno.errorcode.get(error.errno, error))
";

#[test]
fn an_allow_list_of_everything_opens_neither_the_machine_nor_its_credentials() {
    let world = World::shared();
    let everything = "0.0.0.0/0\", \"::/0";
    for (number, how) in [
        "--allow 0.0.0.0/0 --allow [::/0]",
        "--network-mode allowlist --allow 0.0.0.0/0 --allow [::/0]",
        "--net-rule allow@0.0.0.0/0,allow@[::/0] --net-default-egress deny",
        "--net-rule allow@0.0.0.0/1,allow@128.0.0.0/1,allow@[::/1],allow@[8000::/1] --net-default-egress deny",
        "--net-conf everything.toml",
    ]
    .into_iter()
    .enumerate()
    {
        let sandbox = world.sandbox();
        let file = format!("[network]\nnetwork_mode = \"allowlist\"\nnetwork_allowlist = [\"{everything}\"]\n");
        fs::write(sandbox.folder().join("everything.toml"), file).expect("the folder is ours");
        fs::write(sandbox.folder().join("reach.py"), REACH).expect("the folder is ours");
        let (echo, who) = (24310 + 2 * number, 24311 + 2 * number);
        let (web4, web6) = (Family::V4.web(), Family::V6.web());
        let (host4, host6) = (Family::V4.host(), Family::V6.host());
        let ran = world.script_in(
            sandbox,
            &format!(
                r#"
                serve python3 "$WORLD/files/ports.py" serve {echo} {who}
                until_ sh -c 'ss -Hltn sport = :{who} | grep -c . | grep -qx 2'
                cat >reach <<'END'
aliases=$(getent ahosts host.cofferdam.internal | sed -n 's/ *STREAM.*/,{who}/p' | sort -u | sed 's/^/alias,/')
python3 reach.py $aliases "$@"
END
                $C run --quiet {how} --events events -- bash reach web,{web4},80 web,{web6},80 \
                    local,127.0.0.1,{who} local,::1,{who} local,::ffff:127.0.0.1,{who} any,0.0.0.0,{who} any,::,{who} \
                    own,{host4},{who} own,{host6},{who} own,::ffff:{host4},{who} \
                    meta,169.254.169.254,80 meta,::ffff:169.254.169.254,80 meta,fd00:ec2::254,80 meta,64:ff9b::a9fe:a9fe,80
                grep -o '"flow.denied".*"group":"[a-z]*"' events | sed 's/.*"group"/group/' | sort | uniq -c | tr -s ' '
                "#
            ),
        );
        ran.exits(0);
        let lines = ran.stdout();
        for (word, count) in [("web", 2), ("local", 3), ("own", 3), ("meta", 4), ("any", 2), ("alias", 2)] {
            let said: Vec<&str> = lines.lines().filter(|line| line.starts_with(word)).collect();
            let expected = if word == "web" { "web reached".to_owned() } else { format!("{word} ECONNREFUSED") };
            assert!(said.len() == count && said.iter().all(|line| *line == expected), "{how}\n{ran}");
        }
        // Refused by the wall, each of them, and not for want of a server.
        ran.says(" 5 group:\"host\"\n").says(" 4 group:\"metadata\"\n");
    }
}

#[test]
fn credentials_are_denied_in_every_form_of_their_address() {
    let forms = "meta,169.254.169.254,80 meta,::ffff:169.254.169.254,80 meta,::ffff:a9fe:a9fe,80";
    let embedded = "meta,64:ff9b::a9fe:a9fe,80 meta,2002:a9fe:a9fe::1,80 meta,::169.254.169.254,80";
    let run = |flags: &str, targets: &str| {
        let sandbox = sandbox(flags).flags("--quiet --events events");
        let events = sandbox.folder().join("events");
        let words: Vec<&str> = targets.split(' ').collect();
        let ran = sandbox.run(&[&["python3", "-c", REACH][..], &words].concat());
        (ran, fs::read_to_string(events).unwrap_or_default())
    };
    // All of them lead to a server, where nothing is denied.
    let (ran, _) = run("--network-mode open", forms);
    assert_eq!(ran.exits(0).stdout(), "meta reached\n".repeat(3), "{ran}");
    // Behind a translator the embedded forms would lead there too. A group knows them; an address or a network is what it says.
    let every = format!("{forms} {embedded}");
    for (deny, targets) in [
        ("@metadata", every.as_str()),
        ("metadata", every.as_str()),
        ("169.254.169.254", forms),
        ("169.254.0.0/16", forms),
        ("[::ffff:169.254.169.254]", forms),
    ] {
        let (ran, events) = run(&format!("--network-mode open --deny {deny}"), targets);
        let count = targets.split(' ').count();
        assert_eq!(ran.exits(0).stdout(), "meta ECONNREFUSED\n".repeat(count), "{deny}\n{ran}");
        assert_eq!(events.matches("\"flow.denied\"").count(), count, "{deny}\n{events}");
    }
}

#[test]
fn a_malformed_pattern_starts_nothing_by_whichever_door() {
    let malformed = "* *.com a.*.example.org *example.org a..example.org http://example.org example.org/x 10.0.0.0/33 10.0.0.1/8 \
                     [::1 300.1.1.1 0x7f.0.0.1 127.1 010.0.0.1 10.0.0.0-10.0.0.9 example.org:99999 example.org:0 \
                     example.org:443-80 @nope localhost";
    let script = r#"
        refused() { out=$("$@" 2>&1 </dev/null) && status=0 || status=$?; [ $status = 125 ] && [ -n "$out" ] || echo "$status: $*: $out"; case $out in *begun*) echo "begun: $*";; esac; }
        while IFS= read -r pattern; do
            for flag in --allow --deny; do refused $C run --no-cwd --net public $flag "$pattern" -- echo begun; done
            refused $C run --no-cwd --net-rule "allow@good.example,allow@$pattern" -- echo begun
            for list in network_allowlist network_denylist; do
                printf '[network]\nnetwork_mode = "allowlist"\n%s = ["good.example", "%s"]\n' $list "$pattern" >bad.toml
                refused $C run --no-cwd --net-conf bad.toml -- echo begun
            done
            printf '{"network": {"network_mode": "allowlist", "network_allowlist": ["good.example", "%s"]}}' "$pattern" >bad.json
            refused $C create bad --spec bad.json
            refused $C exec good --allow "$pattern" -- echo begun
            $C policy set good --net all --deny "$pattern" 2>/dev/null && echo "set $pattern" || true
        done
        $C ls --quiet
    "#;
    let world = World::shared();
    let sandbox = world.sandbox().input(&(malformed.replace(' ', "\n") + "\n\n"));
    let ran = world.script_in(sandbox, &format!("$C create good --no-cwd --no-net </dev/null\n{script}"));
    assert_eq!(ran.exits(0).stdout(), "good\n", "{ran}");
}
