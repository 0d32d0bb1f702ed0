//! `cofferdam ui` in a browser, on real runs.
//!
//! Each test is one [script](World::script) on the world's host; `browser.py` does there what a person does. With
//! `COFFERDAM_PICTURES=FOLDER` the pictures of the documentation are made, and without it into a folder that goes.

use std::env;
use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, World};

/// Helpers of the scripts here: `page` starts the page; `link` is its link; `browse` drives a
/// browser, which is a plain user's also where Cofferdam is root's: nothing of it needs more.
const HELPERS: &str = r#"
    page() {
        $C ui </dev/null >link 2>said & ui=$!; servers="$servers $ui"
        until_ grep -qs 'Ctrl-C' said
    }
    link() { cat link; }
    browse() { "$WORLD/files/as_guest.sh" /usr/bin/python3 $WORLD/files/browser.py "$@"; }
    newest() { ls "$XDG_STATE_HOME/cofferdam/runs" | tail -1; }
"#;

#[track_caller]
fn script(text: &str) -> Ran {
    let world = World::shared();
    // A browser on a busy machine takes its time.
    world.script_in(world.sandbox().patience(Duration::from_secs(300)), &format!("{HELPERS}{text}"))
}

/// A program whose name is HTML, with a flow that moves something, one that rests, and denials; it ends with its input.
fn busy(family: Family) -> String {
    let (web, other) = (family.in_url(family.web()), family.in_url(family.other()));
    let (address, port) = (family.web(), 7);
    format!(
        r#"
import os, socket, subprocess, sys, threading, time
open("/proc/self/comm", "w").write("<i>evil</i>")
rests = socket.create_connection(("{address}", 7109))
moves = socket.create_connection(("{address}", {port}))
def move():
    while True:
        moves.sendall(b"x" * 20000)
        got = 0
        while got < 20000: got += len(moves.recv(65536))
        time.sleep(0.1)
threading.Thread(target=move, daemon=True).start()
for refused in ("{other}", "{web}"):
    subprocess.run(["curl", "-s", "-m", "5", "http://" + refused + ":81/"])
subprocess.run(["getent", "hosts", "denied.example"])
print("up", flush=True)
sys.stdin.read()
"#
    )
}

#[test]
fn flows_and_denials_are_shown_as_they_come_and_as_text() {
    for family in Family::BOTH {
        let (web, other) = (family.in_url(family.web()), family.in_url(family.other()));
        let ran = script(&format!(
            r#"
            cat > busy.py <<'END'
{busy}
END
            mkfifo input
            page
            $C run --quiet --net-default-egress deny --net-rule 'allow@{web}:tcp:7+7109' -- python3 busy.py '<img src=x onerror=alert(1)>' <input >out 2>&1 &
            exec 9>input
            until_ grep -q up out
            browse shows "$(link)"
            exec 9>&-
            "#,
            busy = busy(family),
        ));
        ran.exits(0).says("address /\n").says("title python3 busy.py <img src=x onerror=alert(1)>\n");
        ran.says(&format!("flow {web}:7 tcp\n")).says(&format!("flow {web}:7109 tcp\n"));
        // Which program it was is not found every time; what it calls itself is text where it is.
        let said = |before: &str, after: &str| {
            let is_it = |line: &str| line.starts_with(before) && line.ends_with(after);
            assert!(ran.stdout().lines().any(is_it), "{before} … {after}\n{ran}");
        };
        said(&format!("denied {other}:81 | 1 | default egress deny | "), " | Allow…");
        said("denied denied.example (look-up) | 1 | default egress deny | ", " | --allow denied.example | Allow…");
        ran.says("html 0\n").says(&format!("<i>evil</i> to {}: ", family.web()));
        ran.says(&format!(" to {}: denied 1 time", family.other()));
        ran.says("moves True\n").says("nameless 0\n").says("complaints []\n");
    }
}

#[test]
fn a_denial_is_allowed_with_keys_alone_and_the_next_try_goes_through() {
    for family in Family::BOTH {
        let web = family.in_url(family.web());
        let ran = script(&format!(
            r#"
            page
            $C run --no-cwd --quiet --net-default-egress deny -- sh -c '
                until curl -s -m 5 -o /dev/null http://{web}/; do sleep 0.2; done; echo through' >out 2>&1 & run=$!
            browse allows "$(link)" '{web}:80'
            wait $run
            cat out
            $C log last --json | grep -c policy.changed
            "#,
        ));
        ran.exits(0).says("back True\n").says(&format!("rule allow@{web}:tcp:80\n")).says("error \n");
        ran.says("through\n1\n").says("complaints []\n");
    }
}

#[test]
fn the_link_opens_the_page_once_and_nothing_else_does() {
    for family in Family::BOTH {
        // A program's page at another port of the page's own address, where one is that listens everywhere; or of another address.
        let (bind, near) = match family {
            Family::V4 => ("0.0.0.0", "$address"),
            Family::V6 => ("::1", "[::1]"),
        };
        let ran = script(&format!(
            r#"
            page
            at=$(sed 's/?.*//' link)
            address=$(echo "$at" | sed 's/^http:..//; s/:.*//') port=$(echo "$at" | sed 's/.*:\([0-9]*\).$/\1/')
            mkdir near && echo near > near/index.html
            serve python3 -m http.server 21980 --bind '{bind}' --directory near
            until_ curl -s -o /dev/null "http://{near}:21980/"
            browse enters "$(link)" "http://{near}:21980/"
            case $address in 127.0.*) echo near ;; 127.*) echo apart ;; esac
            # Nobody can have its port while it is there.
            $C run --no-cwd -p "0.0.0.0:$port:80" -- true 2>taken || grep -c "is taken" taken
            code() {{ curl -s -o body -w '%{{http_code}}\n' "$@"; }}
            echo "host $(code -H 'Host: rebound.example' "$(link)")"
            echo "post $(code -X POST -H 'Content-Type: application/json' -d '{{}}' "${{at}}api/allow")"
            echo "put $(code -X PUT -d x "$at")"
            echo "head $(code -H "X-Long: $(head -c 20000 /dev/zero | tr '\0' a)" "$at")"
            # Somebody who says nothing is not waited for, and keeps nobody out.
            python3 - "$address" "$port" <<'END'
import socket, sys
slow = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(40)]
for one in slow: one.settimeout(30)
print("slow", sum(one.recv(100)[:12] in (b"", b"HTTP/1.1 408") for one in slow))
END
            echo "after $(code "$at")"
            # No other address, and not from the world.
            echo "lan $(curl -s -m 5 -o /dev/null -w '%{{http_code}}' "http://{outer}:$port/")"
            "#,
            outer = family.in_url(family.host()),
        ));
        ran.exits(0)
            .says("wrong This link is not right\n")
            .says("open True\n")
            .says("twice The page is open already\n");
        ran.says("tab This page is open in another tab or window").says("asks 403\n");
        ran.says("elsewhere This link was used\n").says("without Not without the link\n");
        ran.says("near refused\n").says("blind refused\n").says("reload True\n");
        ran.says("host 403\n").says("post 403\n").says("put 405\n");
        // What was not read when the connection is closed resets it, and that may be faster than the answer.
        assert!(["431", "000"].iter().any(|code| ran.stdout().contains(&format!("head {code}"))), "{ran}");
        ran.says("apart\n1\n");
        ran.says("slow 40\n").says("after 403\n").says("lan 000");
    }
}

#[test]
fn a_run_that_ends_or_is_removed_while_it_is_shown_is_told() {
    let ran = script(
        r#"
        page
        $C run --no-cwd --no-net -- true
        mkfifo input
        browse removed "$(link)" <input >out & browser=$!
        exec 9>input
        until_ grep -q up out
        $C log rm "$(newest)"
        echo >&9
        wait $browser
        kill $ui; wait $ui 2>/dev/null || true
        page
        mkfifo more
        $C run --no-cwd --net-default-egress deny -- sh -c 'read line; exit 3' <more & run=$!
        exec 8>more
        until_ eval '$C log 2>/dev/null | grep -q running'
        browse ends "$(link)" >ended & browser=$!
        until_ grep -q up ended
        echo >&8
        wait $browser
        cat out ended
        "#,
    );
    ran.exits(0).says("notice The record of this run was removed while it was shown.");
    ran.says("status The run has ended: exit 3.\n");
    assert_eq!(ran.stdout().matches("complaints []\n").count(), 2, "{ran}");
}

#[test]
fn a_thousand_flows_do_not_stutter() {
    for family in Family::BOTH {
        let ran = script(&format!(
            r#"
            cat > many.py <<'END'
import random, resource, select, socket, sys, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
many = []
def connect():
    many.append(socket.create_connection(("{address}", 7109)))
    # Faster than its events can be told, on a busy machine, is not what this is about.
    time.sleep(0.003)
for _ in range(1100): connect()
print("up", flush=True)
while not select.select([sys.stdin], [], [], 0.1)[0]:
    for one in random.sample(many, 100): one.send(b"x" * 100)
    # In place of those whose events were too fast all the same.
    for _ in range(10):
        if len(many) < 3500: connect()
END
            mkfifo input
            page
            $C run --quiet -- python3 many.py <input >out 2>&1 &
            exec 9>input
            until_ grep -q up out || until_ grep -q up out
            browse frames "$(link)" 1000
            exec 9>&-
            "#,
            address = family.web(),
        ));
        ran.exits(0).says("complaints []\n").says("news True\n");
        let stdout = ran.stdout();
        let numbers = |word: &str| -> Vec<u64> {
            let line = stdout.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_default();
            line.split_whitespace().filter_map(|number| number.parse().ok()).collect()
        };
        let [rows] = numbers("rows ")[..] else { panic!("{ran}") };
        assert!(rows < 40, "the page has the rows that can be seen and no others\n{ran}");
        // Ten frames a second are what a person sees as moving; where nobody else works it is 17 ms.
        let [median, most, _] = numbers("frames ")[..] else { panic!("{ran}") };
        assert!(median <= 50 && most <= 100, "{ran}");
    }
}

/// What pictures show: something that a person might run.
const STORY: &str = r#"
import random, socket, subprocess, sys, threading, time
open("/proc/self/comm", "w").write("agent")
def transfer(name, size, pause):
    connection = socket.create_connection((name, 7))
    while True:
        connection.sendall(b"\0" * size)
        got = 0
        while got < size: got += len(connection.recv(65536))
        time.sleep(pause * random.uniform(0.3, 1.7))
for transferred in (("web.wall-test.com", 60000, 0.2), ("other.wall-test.com", 9000, 0.5), ("web.wall-test.com", 2000, 1)):
    threading.Thread(target=transfer, args=transferred, daemon=True).start()
rests = [socket.create_connection(("web.wall-test.com", 7109)) for _ in range(4)]
for _ in range(14): subprocess.run(["getent", "ahostsv4", "telemetry.example.com"], stdout=subprocess.DEVNULL)
subprocess.run(["curl", "-s", "http://10.77.0.5:5432/"])
subprocess.run(["curl", "-s", "http://169.254.169.254/latest/meta-data/"])
print("up", flush=True)
sys.stdin.read()
"#;

#[test]
fn it_is_light_and_dark() {
    let folder = env::var("COFFERDAM_PICTURES").unwrap_or_default();
    let ran = script(&format!(
        r#"
        cat > agent.py <<'END'
{STORY}
END
        mkfifo input
        $C create work --no-cwd >/dev/null
        page
        $C run --quiet --allow '*.wall-test.com:7+7109:opaque' -- python3 agent.py <input >out 2>&1 &
        exec 9>input
        until_ grep -q up out
        mkdir -m 777 pictures
        browse pictures "$(link)" "$PWD/pictures"
        for scheme in light dark; do test "$(head -c 4 pictures/ui-$scheme.png | tail -c 3)" = PNG; done
        cmp -s pictures/ui-light.png pictures/ui-dark.png || echo different
        folder='{folder}'
        [ -z "$folder" ] || cp pictures/*.png "$folder/"
        exec 9>&-
        "#,
    ));
    ran.exits(0)
        .says("light rgb(255, 255, 255)\n")
        .says("dark rgb(20, 23, 27)\n")
        .says("different\n")
        .says("fits True\n");
    ran.says("complaints []\n");
}
