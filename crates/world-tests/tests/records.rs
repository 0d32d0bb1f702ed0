//! What runs leave behind: where it goes, who can read it, and what becomes of a run when it has no place.
//!
//! Each test is one [script](World::script) on the world's host.

use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, World, long};

#[track_caller]
fn script(text: &str) -> Ran {
    World::shared().script(text)
}

/// Helpers of the scripts here: `field NAME` reads one of the newest run, `last` is its folder.
const HELPERS: &str = r#"
    store=$XDG_STATE_HOME/cofferdam/runs
    last() { echo "$store/$(ls "$store" | tail -1)"; }
    get() { python3 -c 'import json, sys; print(json.load(sys.stdin)'"$1"')'; }
"#;

#[test]
fn a_run_is_listed_shown_and_explained() {
    for family in Family::BOTH {
        let (web, other) = (family.in_url(family.web()), family.in_url(family.other()));
        let ran = script(&format!(
            r#"{HELPERS}
            $C run --no-cwd --net-default-egress deny --net-rule 'allow@{web}' -- sh -c '
                curl -s -o /dev/null http://{web}/; curl -s -o /dev/null http://{other}/; getent hosts denied.example; true' 2>/dev/null
            $C log | tail -1 | tr -s ' '
            $C log last
            echo "denied"; $C log --denied
            echo "name"; $C log last --name '*.example' | tail -n +2
            echo "since"; $C log last --since 2020-01-01 | wc -l; $C log last --since 2999-01-01 | wc -l
            echo "json"; $C log --json last | cmp - "$(last)/events.000001.jsonl" && echo same
            $C log --json --denied | get '["type"]' 2>/dev/null || $C log --json --denied | head -1 | get '["type"]'
            id=$($C log --json --denied | grep flow.denied | head -1 | get '["decision"]')
            echo "why"; $C why $id
            $C why --json $id | get '["allow_with"]'
            $C why $(echo $id | tr a-z A-Z) | head -1 | grep -c $id
            $C why zzzzzzzzzz || echo "unknown $?"
            echo "summary"; $C log --summary
            stat -c %a "$store" "$(last)" "$(last)/run.json" | tr '\n' ' '
            "#
        ));
        ran.exits(0);
        ran.says(&format!("opened    tcp {web}:80  allow@{web}"));
        ran.says(&format!("denied    tcp {other}:80  default egress deny  why "));
        ran.says("denied    look-up denied.example").says("denied\n").says("same\nflow.denied\n");
        ran.says("because   default egress deny  (no rule matched)\n");
        ran.says(&format!("flow      tcp to {other}:80, from ")).says("group     public\n");
        ran.says(
            &format!("remedy    --allow '{other}:80'\n").replace('\'', if other.starts_with('[') { "'" } else { "" }),
        );
        ran.says("unknown 1\n").complains("is recorded, in 1 runs");
        ran.says("| Denied | Times | By | Allowed by |").says(&format!("| `{web}:80` | 1 | "));
        ran.says("700 700 600 ");
        let named = ran.stdout().split("name\n").nth(1).unwrap_or_default().to_owned();
        let (named, since) = named.split_once("since\n").unwrap_or_default();
        assert!(named.lines().count() > 0 && named.lines().all(|line| line.contains("denied.example")), "{ran}");
        assert!(since.lines().nth(1) == Some("1"), "a header alone\n{ran}");
    }
}

#[test]
fn a_session_and_its_runs_are_recorded_each() {
    for family in Family::BOTH {
        let (web, other) = (family.in_url(family.web()), family.in_url(family.other()));
        let ran = script(&format!(
            r#"{HELPERS}
            $C create s --no-cwd --net-default-egress deny --net-rule 'allow@{web}' -- sleep 1000
            $C exec s -- curl -s -o /dev/null http://{web}/
            $C exec s -- curl -s -o /dev/null http://{other}/ 2>/dev/null || true
            $C log --json | python3 -c '
import json, sys
for run in json.load(sys.stdin): print(run["kind"], run["sandbox"], run["state"], run["command"][0])'
            # The session has everything, the run what it was denied.
            echo "session"; $C log s --json | grep -c -e flow.opened -e flow.denied
            echo "exec"; $C log last --json | grep -c -e flow.opened -e flow.denied
            id=$($C log --denied --json | get '["decision"]')
            $C why $id | grep -e ^run -e ^because -e ^remedy | tr -s ' ' | cut -d' ' -f 1,3-
            # Follows to the end, also over what comes later.
            $C log s --follow >"$XDG_STATE_HOME/followed" & follow=$!
            until_ grep -q opened "$XDG_STATE_HOME/followed"
            $C exec --quiet s -- curl -s -o /dev/null http://{other}/ || true
            until_ test "$(grep -c denied "$XDG_STATE_HOME/followed")" -ge 1
            $C log rm s || echo "running $?"
            $C stop s
            wait $follow && grep -c denied "$XDG_STATE_HOME/followed"
            ls $XDG_STATE_HOME/cofferdam/sandboxes/s | tr '\n' ' '; echo
            $C log rm s && $C log s 2>/dev/null || echo "removed"
            $C log rm --all && $C log | wc -l
            # Nothing of one that wants nothing recorded.
            $C create --no-record quiet --no-cwd
            $C exec quiet -- true; $C run --no-record --no-net --no-cwd -- true
            $C log | wc -l
            "#
        ));
        ran.exits(0)
            .says("exec s ended curl\nexec s ended curl\nsession s running sleep\n")
            .says("session\n2\nexec\n1\n");
        ran.says("run in s: curl").says("because egress deny (no rule of the session matched)\n");
        ran.says("remedy flag of the run; `cofferdam policy set` changes the session's policy\n");
        ran.says("running 1\n2\n").says("ended.json home lock log sandbox.json tmp vartmp \nremoved\n1\n1\n");
        ran.complains("is still running");
    }
}

#[test]
fn events_go_to_a_socket_and_to_the_record_and_neither_waits_for_the_other() {
    let ran = script(&format!(
        r#"{HELPERS}
        cat > listen.py <<'END'
import os, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
# It has its name once it listens.
listener.bind(sys.argv[1] + ".new"); listener.listen(1); os.rename(sys.argv[1] + ".new", sys.argv[1])
peer = listener.accept()[0]
if sys.argv[2] == "read":
    with open(sys.argv[3], "wb") as out:
        while data := peer.recv(65536): out.write(data)
elif sys.argv[2] == "close": peer.close()
else: time.sleep(1000)
END
        listen() {{ rm -f $XDG_STATE_HOME/sock; python3 listen.py $XDG_STATE_HOME/sock "$@" & listener=$!; until_ test -S $XDG_STATE_HOME/sock; }}
        run() {{ $C run --no-cwd --net-default deny --events unix:$XDG_STATE_HOME/sock -- "$@"; }}
        run true || echo "nobody $?"
        touch $XDG_STATE_HOME/sock; run true || echo "file $?"
        listen read $XDG_STATE_HOME/heard
        run true; wait $listener
        cmp $XDG_STATE_HOME/heard "$(last)/events.000001.jsonl" && echo same
        listen close; run sh -c 'sleep 0.2; exit 3' || echo "went on $?"
        # A reader that stands still, and more than its socket takes: a thousand denials a second are told.
        listen still
        run python3 -c '
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + 2
n = 0
while time.monotonic() < end:
    n += 1
    try: s.sendto(b"x", ("203.0.113.%d" % (n % 200), 1000 + n % 60000))
    except OSError: pass' 2>"$XDG_STATE_HOME/said"; kill $listener
        grep -c "event log is incomplete: its reader was too slow" "$XDG_STATE_HOME/said"
        grep -c "record of this run" "$XDG_STATE_HOME/said" || true
        tail -1 "$(last)/events.000001.jsonl" | get '["type"]'
        "#
    ));
    ran.exits(0).says("nobody 125\nfile 125\nsame\nwent on 3\n1\n0\nsandbox.stopped\n");
    ran.complains("cannot write to the socket")
        .complains("is a file and not a socket")
        .complains("the event log is incomplete: ");
    ran.within(Duration::from_secs(30));
}

#[test]
fn a_run_whose_record_has_no_place_goes_on() {
    let ran = script(&format!(
        r#"{HELPERS}
        run() {{ $C run --no-cwd --no-net -- sh -c 'echo ran'; }}
        # Root has a place of its own.
        [ $(id -u) = 0 ] && echo "cofferdam: this run is not recorded: there is no state directory" >&2 || HOME=relative XDG_STATE_HOME= run
        mkdir "$XDG_STATE_HOME/open" && chmod 777 "$XDG_STATE_HOME/open" && mkdir "$XDG_STATE_HOME/open/cofferdam" && chmod 777 "$XDG_STATE_HOME/open/cofferdam"
        XDG_STATE_HOME=$XDG_STATE_HOME/open run
        touch "$XDG_STATE_HOME/file"; XDG_STATE_HOME=$XDG_STATE_HOME/file run
        # A link that somebody put in its place is not followed.
        mkdir -m 700 -p "$XDG_STATE_HOME/linked/cofferdam" "$XDG_STATE_HOME/elsewhere"
        XDG_STATE_HOME=$XDG_STATE_HOME/linked run; ls "$XDG_STATE_HOME/linked/cofferdam/runs" | wc -l
        # Its supervisor is killed: what it wrote is there.
        $C run --no-cwd --no-net -- sleep 1000 & run=$!
        until_ test -e "$store" && until_ test -s "$(last)/events.000001.jsonl"
        kill -KILL $run; wait $run 2>/dev/null || true
        until_ sh -c "$C log | grep -q died"
        $C log last
        # A folder that is removed while it is shown and written.
        $C run --no-cwd --no-net -- sleep 1000 & run=$!
        until_ sh -c "$C log | grep -q running"
        $C log --follow last & follow=$!
        rm -r "$(last)"; wait $follow; kill $run; wait $run || echo "ended $?"
        "#
    ));
    ran.exits(0).says("ran\nran\nran\n1\n").says("ended 143\n");
    ran.complains("this run is not recorded: there is no state directory").complains("nothing can be kept there");
    ran.complains("this run is not recorded: cannot make").complains("the supervisor of this run was killed");
    ran.complains("was removed while it was shown").complains("the record of this run has no end");
}

#[test]
fn a_full_disk_ends_the_record_and_nothing_else() {
    let world = World::shared();
    // Privilege makes the disk; what is small belongs to whoever Cofferdam runs as.
    let sandbox = world
        .sandbox()
        .patience(Duration::from_secs(60))
        .broken(r#"mount -t tmpfs -o size=64k,mode=777 none /mnt || exit 98"#);
    let ran = world.script_in(
        sandbox,
        r#"
        mkdir -m 700 /mnt/state
        rm -rf "$XDG_STATE_HOME"; export XDG_STATE_HOME=/mnt/state
        $C run --no-cwd --net-default deny -- python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(2000):
    try: s.sendto(b"x", ("203.0.113.%d" % (n % 200), 1000 + n))
    except OSError: pass
print("went on")'
        $C log --denied | tail -1 | tr -s " " | cut -d" " -f 3,4
        # Whole lines alone, of as much as there was room for.
        test "$(cat /mnt/state/cofferdam/runs/*/events.* | wc -c)" -gt 20000 && echo "much"
        # And one that begins on a full disk.
        dd if=/dev/zero of=/mnt/state/full 2>/dev/null || true
        $C run --no-cwd --no-net -- echo ran
        $C log | wc -l
        "#,
    );
    ran.exits(0).says("went on\ndenied udp\nmuch\nran\n");
    assert!(!ran.stderr().contains("left out"), "{ran}");
    ran.complains("the record of this run is incomplete: No space left on device")
        .complains("this run is not recorded: cannot");
}

#[test]
fn no_sandbox_sees_the_records() {
    let ran = script(&format!(
        r#"{HELPERS}
        $C run --no-cwd --no-net -- true
        rm -rf "$XDG_STATE_HOME/cofferdam/sandboxes"
        for shown in "$(last)" "$store" "$XDG_STATE_HOME/cofferdam" "$XDG_STATE_HOME"; do
            $C run --no-cwd --no-net --mount "$shown:/x:ro" -- true 2>/dev/null || echo "refused $?"
            (cd "$shown" && $C run --no-net -- true 2>/dev/null || echo "refused $?")
        done
        # Nobody but the supervisor has anything of it open.
        $C run --no-cwd --net-default deny -- sleep 1000 & run=$!
        until_ sh -c "$C log | grep -q running"
        for process in /proc/[0-9]*; do
            ls -l $process/fd 2>/dev/null | grep -q "$store" && echo "opened by $process"
        done | sed "s#/proc/$run\$#the supervisor#"
        kill $run; wait $run || true
        # What somebody chose is shown, and not acted on.
        $C run --no-cwd --no-net -- sh -c : "$(printf '\033[31m\n|`x')"
        for shown in "" last --summary; do $C log $shown | grep -c "$(printf '\033')" || true; $C log $shown | grep -c '\\u{{1b}}'; done | tr '\n' ' '
        "#
    ));
    ran.exits(0);
    assert_eq!(ran.stdout().matches("refused 125").count(), 8, "{ran}");
    ran.says("refused 125\nopened by the supervisor\n0 1 0 1 0 1 ");
}

#[test]
fn a_million_events_are_searched_in_a_moment() {
    if !long() {
        return;
    }
    let ran = script(&format!(
        r#"{HELPERS}
        $C run --no-cwd --no-net -- true
        python3 - "$(last)" <<'END'
import os, sys
folder, number, out, size = sys.argv[1], 0, None, 0
head = '{{"v":1,"time":"2026-11-21T04:59:51.717489Z","mono_ns":46476561,"source":"gateway",'
ends = '"direction":"egress","protocol":"tcp","guest":"172.17.236.34:54486","remote":"93.184.215.14:443","group":"public","names":["name%d.example.com","cdn.example.net"],"rule":{{"index":1,"text":"allow@public"}}}}\n'
for n in range(1000000):
    if out is None or size > 8 << 20:
        number, size = number + 1, 0
        out = open("%s/events.%06d.jsonl" % (folder, number), "w")
    if n % 100 == 0: line = head + '"type":"flow.denied","decision":"d%d",' % n + ends % n
    else: line = head + '"type":"flow.opened","flow":%d,' % n + ends % n
    out.write(line); size += len(line)
END
        $C log --denied | wc -l
        # Processor time, which is the whole time on a machine that does nothing else: others test at the same time.
        TIMEFORMAT='took %U %S %R'
        for n in 1 2 3 4 5; do time $C log --denied >/dev/null; done 2>&1
        TIMEFORMAT='unknown took %U %S %R'
        time $C why nothing 2>&1 || true
        "#
    ));
    ran.exits(0).says("10001\n");
    println!("{}", ran.stdout());
    let seconds = |line: &str| line.split(' ').take(2).filter_map(|time| time.parse::<f64>().ok()).sum::<f64>();
    let best = ran.stdout().lines().filter_map(|line| line.strip_prefix("took ")).map(seconds).reduce(f64::min);
    assert!(best.is_some_and(|seconds| seconds <= 0.2), "{ran}");
}
