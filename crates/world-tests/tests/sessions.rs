//! Sandboxes that stay: what runs in them, who sees whom, what outlives what, and what does not.
//!
//! Each test is one [script](World::script) on the world's host.

use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, World};

#[track_caller]
fn script(text: &str) -> Ran {
    World::shared().script(text)
}

#[test]
fn two_runs_at_once_have_two_verdicts() {
    for family in Family::BOTH {
        let (web, other) = (family.web(), family.other());
        let (web_url, other_url) = (family.in_url(web), family.in_url(other));
        let ran = script(&format!(
            r#"
            $C create s --no-cwd --net-rule 'allow@{web_url},allow@{other_url}' --net-default-egress deny
            for target in '{web_url}' '{other_url}'; do
                $C exec --quiet --net-default-egress deny --net-rule "allow@$target" s -- sh -c '
                    touch "$1"; while [ "$(ls /tmp/up-* | wc -l)" -lt 2 ]; do sleep 0.01; done
                    for url in "{web_url}" "{other_url}"; do curl -s -o /dev/null "http://$url/" && echo "$2 may $url" || echo "$2 may not $url"; done
                ' sh "/tmp/up-$RANDOM" "$target" &
            done
            wait
            $C exec s -- sh -c 'for url in "{web_url}" "{other_url}"; do curl -s -o /dev/null "http://$url/" && echo "session may $url"; done'
            "#
        ));
        ran.exits(0);
        for (own, may, may_not) in [(&web_url, &web_url, &other_url), (&other_url, &other_url, &web_url)] {
            ran.says(&format!("{own} may {may}\n")).says(&format!("{own} may not {may_not}\n"));
        }
        ran.says(&format!("session may {web_url}\n")).says(&format!("session may {other_url}\n"));
    }
}

#[test]
fn no_run_gets_more_than_its_session() {
    for family in Family::BOTH {
        let (web, other) = (family.in_url(family.web()), family.in_url(family.other()));
        let ran = script(&format!(
            r#"
            $C create narrow --no-cwd --net-default-egress deny --net-rule 'allow@{web}'
            $C exec --quiet --net all narrow -- sh -c 'curl -s -o /dev/null http://{web}/ && echo web; curl -s -o /dev/null http://{other}/ || echo no other'
            $C exec --quiet --mode check --net-default-egress deny --net-rule 'allow@{other}:tcp:443' narrow -- echo ran || echo "wider $?"
            $C exec --mode check --net-default-egress deny --net-rule 'allow@{web}:tcp:80' narrow -- echo within
            $C exec --quiet narrow -- sh -c 'curl -s -o /dev/null http://{other}/ || true'
            $C stop narrow
            $C log narrow --json --denied | grep -o '"type":"flow.denied"'
            $C create blocked --no-cwd --no-net
            $C exec --net all blocked -- sh -c 'curl -s -o /dev/null http://{web}/ || echo still blocked; tail -n +3 /proc/net/dev | cut -d: -f1'
            $C exec --net all --mode check blocked -- echo ran || echo "refused $?"
            $C exec blocked -- sh -c 'curl -s -o /dev/null http://{web}/ || echo blocked'
            "#
        ));
        ran.exits(0)
            .says("web\nno other\nwider 125\nwithin\n\"type\":\"flow.denied\"\nstill blocked\n")
            .says("lo\nrefused 125\nblocked\n")
            .never_says("ran\n");
        ran.complains("the session has no network").complains("--mode clip");
        let flow = std::net::SocketAddr::new(family.other().parse().expect("an address"), 443);
        ran.complains(&format!("tcp {flow} is allowed by the run but not by the session"));
    }
}

#[test]
fn a_run_in_the_sessions_network_says_what_it_was_denied() {
    for family in Family::BOTH {
        let (web, other) = (family.in_url(family.web()), family.in_url(family.other()));
        let ran = script(&format!(
            r#"
            $C create s --no-cwd --net-default-egress deny --net-rule 'allow@{web}'
            # The denial is the last thing that happens, and is told all the same, every time.
            for n in $(seq 20); do
                $C exec --json-summary "$XDG_STATE_HOME/summary" s -- curl -s -o /dev/null http://{other}/ 2>"$XDG_STATE_HOME/said" || true
                grep -q 'blocked .*default egress deny (session)' "$XDG_STATE_HOME/said" || {{ echo "not told at $n"; cat "$XDG_STATE_HOME/said"; }}
                grep -q '"flows_denied": 1,' "$XDG_STATE_HOME/summary" || {{ echo "not counted at $n"; cat "$XDG_STATE_HOME/summary"; }}
            done
            grep share "$XDG_STATE_HOME/said"
            $C exec --events "$XDG_STATE_HOME/events" --fail-on-deny --quiet s -- curl -s -o /dev/null http://{other}/ || echo "failed $?"
            grep -o '"type":"flow.denied".*"layer":"session"' "$XDG_STATE_HOME/events" | wc -l
            # Names as well, and nothing is said where nothing was denied.
            $C exec s -- getent hosts denied.example 2>&1 | grep -c 'blocked .*denied.example (look-up)'
            $C exec s -- curl -s -o /dev/null http://{web}/
            # A run with a network of its own hears of its own alone.
            $C exec --net-default-egress deny --net-rule 'allow@{web}' s -- sh -c '
                touch /tmp/ready; until [ -e /tmp/done ]; do sleep 0.01; done
            ' 2>"$XDG_STATE_HOME/own" &
            until_ $C exec --quiet s -- test -e /tmp/ready
            $C exec --quiet s -- sh -c 'curl -s -o /dev/null http://{other}/; touch /tmp/done'
            wait
            cat "$XDG_STATE_HOME/own"
            "#
        ));
        ran.exits(0).never_says("not told").never_says("not counted").says("failed 124\n1\n1\n");
        assert_eq!(ran.stdout().matches("share").count(), 1, "{ran:?}");
        assert!(!ran.stdout().contains("blocked"), "{ran:?}");
    }
}

#[test]
fn loopback_is_up_whatever_the_network() {
    let ran = script(
        r#"
        $C create open --no-cwd
        $C create blocked --no-cwd --no-net
        for run in 'open' '--no-net open' '--allow a.example open' 'blocked' '--net all blocked'; do
            $C exec --quiet $run -- python3 -c '
import socket
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    listener = socket.create_server((address, 0), family=family)
    socket.create_connection(listener.getsockname()[:2]).close()
print("up")'
        done
        "#,
    );
    ran.exits(0);
    assert_eq!(ran.stdout(), "up\n".repeat(5), "{ran}");
}

#[test]
fn a_run_without_a_policy_of_its_own_reaches_servers_of_the_session() {
    let ran = script(
        r#"
        $C create s --no-cwd
        $C exec s -- python3 -c '
import socket, pathlib
listener = socket.create_server(("127.0.0.1", 8000))
pathlib.Path("/tmp/ready").touch()
listener.accept()[0].sendall(b"hello\n")' &
        until_ $C exec s -- test -e /tmp/ready
        $C exec s -- bash -c 'cat < /dev/tcp/127.0.0.1/8000'
        $C exec --quiet --no-net s -- bash -c 'cat < /dev/tcp/127.0.0.1/8000' 2>/dev/null || echo "not from its own network"
        wait
        "#,
    );
    ran.exits(0);
    assert_eq!(ran.stdout(), "hello\nnot from its own network\n", "{ran}");
}

#[test]
fn files_stay_over_runs_and_over_stop_and_start() {
    let ran = script(
        r#"
        $C create s --no-cwd
        $C exec s -- sh -c 'for d in ~ /tmp /var/tmp; do echo "kept in $d" > $d/file; done; echo gone > /run/file; umask 077; mkdir ~/private; echo x > ~/private/x'
        $C exec s -- cat /home/user/file /tmp/file /var/tmp/file
        $C stop s; $C stop s
        is s stopped
        $C exec s -- true || echo "not running $?"
        $C start s
        $C start s
        $C exec s -- sh -c 'cat ~/file /tmp/file /var/tmp/file ~/private/x; cat /run/file || echo nothing; stat -c %u ~/file ~ /tmp'
        $C rm s || echo "still running"
        $C rm --force s
        ls -A "$XDG_STATE_HOME/cofferdam/sandboxes"
        "#,
    );
    ran.exits(0).complains("is running already").complains("`cofferdam start s`");
    let kept = "kept in /home/user\nkept in /tmp\nkept in /var/tmp\n";
    let uids = "1000\n".repeat(3);
    assert_eq!(ran.stdout(), format!("{kept}not running 125\n{kept}x\nnothing\n{uids}still running\n"), "{ran}");
}

#[test]
fn a_sandbox_survives_the_shell_that_made_it() {
    let ran = script(
        r#"
        setsid -w bash -c "$C create s --no-cwd -- sh -c 'echo up; exec sleep 1000'; kill -KILL 0" || true
        is s running
        $C exec s -- echo alive
        $C stop --time 0s s
        "#,
    );
    ran.exits(0).says("alive\n");
}

#[test]
fn runs_see_neither_each_other_nor_the_main_command() {
    let ran = script(
        r#"
        $C create s --no-cwd -- sh -c 'echo main; exec sleep 1000'
        $C exec s -- sh -c 'touch /tmp/ready; exec sleep 1000' & run=$!
        until_ $C exec s -- test -e /tmp/ready
        $C exec s -- sh -c 'echo /proc/[0-9]*; kill -KILL -1 2>/dev/null' || true
        $C exec -t s -- sh -c 'ls -1 /dev/pts; tty' < /dev/null | tr -d '\r'
        kill -0 $run && is s running && $C ls
        kill $run
        wait $run || echo "ended with $?"
        $C stop s
        "#,
    );
    ran.exits(0).says("/proc/1 /proc/2\n").says("0\nptmx\n/dev/pts/0\n").says("ended with 143\n");
    ran.says("running      2  sh -c echo main");
}

#[test]
fn what_a_run_has_started_ends_with_its_time() {
    let world = World::shared();
    let marked = world.marked();
    let ran = script(&format!(
        r#"
        $C create s --no-cwd
        $C exec --timeout 500ms s -- bash -c '(setsid sh -c "(trap \"\" TERM; exec sleep {0}) &" &); sleep 0.1; exec sleep {0}' || echo "ended $?"
        "#,
        marked.word()
    ));
    ran.exits(0).says("ended 124\n").within(Duration::from_secs(30));
    assert!(marked.processes().is_empty(), "{:?}", marked.processes());
}

#[test]
fn the_end_of_a_keeper_is_the_end_of_everything_and_what_it_leaves_is_stopped() {
    let world = World::shared();
    let marked = world.marked();
    let ran = script(&format!(
        r#"
        $C create s --no-cwd -- sleep {0}
        $C exec s -- sh -c 'echo kept > ~/file; touch /tmp/ready; setsid sleep {0} & exec sleep {0}' & run=$!
        until_ $C exec s -- test -e /tmp/ready
        kill -KILL $(number s keeper)
        wait $run && echo "went on" || echo "ended with $?"
        until_ is s stopped
        test -S "$XDG_STATE_HOME/cofferdam/sandboxes/s/control" && echo "a socket is left"
        $C exec s -- true 2>/dev/null || echo "not running"
        $C start s
        $C exec s -- cat /home/user/file
        $C stop --time 0s s
        "#,
        marked.word()
    ));
    ran.exits(0);
    assert_eq!(ran.stdout(), "ended with 125\na socket is left\nnot running\nkept\n", "{ran}");
    assert!(marked.processes().is_empty(), "{:?}", marked.processes());
}

#[test]
fn twenty_runs_at_once_each_have_their_own_exit_status() {
    let ran = script(
        r#"
        $C create s --no-cwd
        runs=
        for n in $(seq 20); do $C exec s -- sh -c "echo $n > /tmp/n$n; exit $n" & runs="$runs $!"; done
        n=0
        for run in $runs; do n=$((n + 1)); wait $run && got=0 || got=$?; [ $got = $n ] || echo "$n ended with $got"; done
        $C exec s -- sh -c 'cat /tmp/n* | sort -n | tail -1; ls /tmp/n* | wc -l'
        $C exec s -- no-such-program || echo $?
        $C exec s -- /etc/passwd || echo $?
        "#,
    );
    ran.exits(0);
    assert_eq!(ran.stdout(), "20\n20\n127\n126\n", "{ran}");
}

#[test]
fn a_run_has_a_terminal_of_its_own() {
    let ran = script(
        r#"
        $C create s --no-cwd
        script -qefc "$C exec s -- sh -c 'test -t 0 && tty; stty size'" /dev/null < /dev/null | tr -d '\r'
        "#,
    );
    ran.exits(0).says("/dev/pts/0\n");
}

#[test]
fn a_main_command_is_logged_asked_to_end_and_its_status_kept() {
    let ran = script(
        r#"
        $C create s --no-cwd -e WORD=word -- sh -c 'echo "out $WORD"; echo err >&2; trap "echo asked; exit 7" TERM; while :; do sleep 0.05; done'
        until_ sh -c "$C logs s | grep -q err"
        $C logs --follow s > "$XDG_STATE_HOME/followed" & follow=$!
        $C stop s
        wait $follow
        cat "$XDG_STATE_HOME/followed"
        $C inspect --json s | grep last_exit_status
        $C create --json once --no-cwd -- sh -c 'exit 3'
        until_ is once stopped
        $C inspect once | grep '^exit'
        $C run -d --name detached --no-cwd -- sh -c 'echo from afar; exit 4'
        until_ is detached stopped
        $C logs detached; $C inspect detached | grep '^exit'; $C rm detached
        $C create missing --no-cwd -- no-such-program || echo "missing $?"
        $C create --json bad --no-cwd --mount /no/such:/x || echo "bad $?"
        $C ls --quiet
        "#,
    );
    ran.exits(0)
        .says("out word\nerr\nasked\n")
        .says("\"last_exit_status\": 7")
        .says("exit      3\ndetached\nfrom afar\nexit      4\n")
        .says("missing 127\n");
    ran.says("\"error\": \"").says("bad 125\nonce\ns\n").complains("no-such-program");
}

#[test]
fn the_control_socket_is_out_of_reach() {
    let ran = script(
        r#"
        $C create s --no-cwd
        state=$XDG_STATE_HOME/cofferdam/sandboxes
        for shown in "$state/s" "$state" "$XDG_STATE_HOME/cofferdam" "$XDG_STATE_HOME" "$(dirname "$XDG_STATE_HOME")"; do
            $C run --quiet --no-cwd --no-net --mount "$shown:/x:ro" -- echo shown 2>/dev/null || echo "run refused $?"
            $C create t --no-cwd --mount "$shown:/x" 2>/dev/null || echo "create refused $?"
            (cd "$shown" && $C run --quiet --no-net -- echo shown) 2>/dev/null || echo "project refused $?"
        done
        $C exec s -- sh -c 'find / -xdev -name control -not -path "/proc/*" 2>/dev/null; find / -name "sandbox.json" 2>/dev/null; grep -c @ /proc/net/unix; ls /proc/self/fd'
        # The second wall: somebody who finds the socket all the same, in another user namespace.
        ask="import socket, os
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.chdir('$state/s')
s.connect('control')
try:
    s.send(b'{\"v\":1,\"say\":\"enter\"}')
    print('answered', len(s.recv(65536)) > 0)
except OSError:
    print('answered False')"
        python3 -c "$ask"
        unshare --user --map-root-user python3 -c "$ask"
        stat -c '%a %n' "$state" "$state/s" "$state/s/control" | sed "s|$state|.|"
        "#,
    );
    ran.exits(0).never_says("shown\n").says("0\n0\n1\n2\n3\nanswered True\nanswered False\n");
    assert_eq!(ran.stdout().matches(" refused 125\n").count(), 15, "{ran}");
    ran.says("700 .\n700 ./s\n600 ./s/control\n");
}

#[test]
fn names_are_plain_and_an_entry_is_made_once() {
    let ran = script(
        r#"
        for name in ../x a/b .x A '' "$(printf 'a%.0s' $(seq 64))" "$(printf 'a\nb')" -rf; do
            $C create --no-cwd -- "$name" 2>/dev/null && echo "made $name" || true
            $C rm --force -- "$name" 2>/dev/null && echo "removed $name" || true
        done
        for n in $(seq 8); do $C create same --no-cwd --no-net 2>/dev/null && echo made & done
        wait
        $C ls --quiet
        for n in $(seq 8); do $C rm --force same 2>/dev/null && echo removed & done
        wait
        ls -A "$XDG_STATE_HOME/cofferdam/sandboxes"
        "#,
    );
    ran.exits(0).never_says("made ").never_says("removed ");
    assert_eq!(ran.stdout().matches("made\n").count(), 1, "{ran}");
    assert_eq!(ran.stdout().matches("removed\n").count(), 1, "{ran}");
    ran.says("same\n");
}

#[test]
fn a_specification_comes_as_json_and_is_strict() {
    let ran = script(
        r#"
        echo '{"env": {"A": "b"}, "network": {"preset": "none"}}' | $C create --spec - s
        $C exec s -- sh -c 'echo "$A"; tail -n +3 /proc/net/dev | cut -d: -f1'
        echo '{"netwrok": {}}' | $C create --json --spec - t || echo "refused $?"
        echo '{"v": 2}' | $C create --spec - t 2>/dev/null || echo "newer $?"
        sed -i 's/"v": 1/"v": 2/' "$XDG_STATE_HOME/cofferdam/sandboxes/s/sandbox.json"
        $C stop --time 0s s
        $C start s || echo "newer on disk $?"
        "#,
    );
    ran.exits(0).says("b\n").says("lo\n").says("refused 125\n").says("newer 125\n").says("newer on disk 125\n");
    ran.says("netwrok").complains("version 2");
}

#[test]
fn files_are_copied_both_ways_as_they_are() {
    let ran = script(
        r#"
        $C create s --no-cwd
        work=$(mktemp -d); cd $work
        mkdir -p src/deep/er; head -c 3000000 /dev/urandom > src/deep/er/data; echo '#!/bin/sh' > src/run; chmod 755 src/run; ln -s run src/link
        sum() { (cd "$1" && find . -type f | sort | xargs sha256sum; readlink link; stat -c %a run) | sha256sum; }
        $C cp src s:/tmp
        $C cp src s:renamed
        $C cp s:/tmp/src back
        $C cp s:renamed .
        tar c src | $C cp - s:/var/tmp
        $C cp s:/var/tmp/src - | tar x --one-top-level=streamed
        for copy in back renamed streamed/src; do test "$(sum src)" = "$(sum $copy)" && echo same; done
        $C exec s -- sh -c 'stat -c %U /tmp/src/run; sha256sum < ~/renamed/deep/er/data' | cut -c1-64
        sha256sum < src/deep/er/data | cut -c1-64
        echo one > file; $C cp file s:/tmp/file; echo two > file; $C cp file s:/tmp/file; $C cp s:/tmp/file -  | tar xO
        script -qec "$C cp s:/tmp/file -" /dev/null </dev/null >terminal || echo "terminal $? $(grep -c 'no place for an archive' terminal)"
        $C cp no-such s:/tmp || echo "absent here $?"
        $C cp s:/no/such . || echo "absent inside $?"
        $C cp file s:/usr/x || echo "read-only $?"
        $C cp s:a s:b || echo "both $?"
        $C exec s -- ln -s /usr/bin out
        for at in / .. out/..; do $C cp s:$at $work 2>said || echo "nameless $? $(grep -c 'name what is to be copied' said)"; done
        rm -rf $work
        "#,
    );
    ran.exits(0)
        .says("same\nsame\nsame\nuser\n")
        .says("two\nterminal 1 1\nabsent here 1\nabsent inside 1\nread-only 1\nboth 1\n")
        .says("nameless 1 1\nnameless 1 1\nnameless 1 1\n");
    let stdout = ran.stdout();
    let sums: Vec<&str> = stdout.lines().filter(|line| line.len() == 64).collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{ran}");
}

#[test]
fn a_copy_out_of_a_sandbox_stays_in_its_place() {
    let ran = script(
        r#"
        $C create s --no-cwd
        work=$(mktemp -d); cd $work; echo secret > secret; mkdir place
        $C exec s -- sh -c '
            mkdir -p ~/x/deep ~/x/real && cd ~/x && echo evil > real/file
            ln -s /etc/passwd absolute; ln -s ../../../../etc/passwd up; ln -s .. parent; ln -s real good; ln -s ../real deep/good
            mkfifo fifo; touch "$(printf "new\nline")"; echo ok > -rf; mkdir -p .git/hooks; echo x > .git/hooks/post-checkout'
        ln -s "$work/secret" place/file
        $C cp s:x place || echo "some left out $?"
        find place -type l | sort | xargs ls -l | sed 's/.* \(place.*\)/\1/'
        cat place/x/good/file secret
        # What lies in the way at the destination is replaced, and never written through.
        $C exec s -- sh -c 'echo evil > ~/file'
        $C cp s:file place; cat secret place/file; test -L place/file || echo "a file"
        # A link inside leads inside.
        $C exec s -- ln -s /etc/hostname /tmp/name
        $C cp s:/tmp/name name; cat name
        # A copy in goes where links lead inside.
        $C exec s -- ln -sfn /home/user/x/real /tmp/through
        $C cp secret s:/tmp/through; $C exec s -- cat /home/user/x/real/secret
        rm -rf $work
        "#,
    );
    ran.exits(0).says("some left out 1\n").says("place/x/deep/good -> ../real\n").says("place/x/good -> real\n");
    ran.never_says("absolute ->").never_says("up ->").never_says("parent ->");
    ran.says("evil\nsecret\nsecret\nevil\na file\nsandbox\nsecret\n");
    for left in ["x/absolute", "x/up", "x/parent", "x/fifo"] {
        ran.complains(left);
    }
}

#[test]
fn a_copy_follows_no_link_that_any_sandbox_may_have_left() {
    let ran = script(
        r#"
        work=$(mktemp -d); mkdir $work/project $work/home; echo secret > $work/home/secret
        (cd $work/project; $C create s; $C create other --no-cwd)
        $C exec s -- sh -c "ln -s $work/home out; ln -s $work/home/secret data; ln -s $work/home/new new"
        $C exec other -- sh -c 'echo evil > ~/evil'
        cd $work/home
        $C cp $work/project/data other:taken || echo "out refused $?"
        $C exec other -- test -e taken || echo "not taken"
        $C run --no-cwd --events $work/project/out/secret -- true || echo "events refused $?"
        $C run --no-cwd --json-summary $work/project/new -- true || echo "summary refused $?"
        $C cp other:evil $work/project/out/secret || echo "in refused $?"
        # What lies in the way is replaced.
        $C cp other:evil $work/project/out; cat $work/project/out; ls; cat secret
        # What is no link is copied as ever, and so is what a link of the user's own leads to.
        $C exec s -- sh -c 'echo good > file'
        ln -s $work/project $work/link; cd /; $C cp $work/link/file other:file; $C exec other -- cat file
        rm -rf $work
        "#,
    );
    ran.exits(0).says(
        "out refused 1\nnot taken\nevents refused 125\nsummary refused 125\nin refused 1\nevil\nsecret\nsecret\ngood\n",
    );
}

#[test]
fn a_sandbox_that_starts_again_is_shown_no_link_in_the_place_of_its_directory() {
    let ran = script(
        r#"
        work=$(mktemp -d); mkdir -p $work/project/build $work/home; ln -s $work/project $work/link
        (cd $work/project; $C create s)
        $C create other --no-cwd --mount $work/link/build:/build; $C stop other
        $C exec s -- sh -c "rmdir build; ln -s $work/home build"
        $C start other || echo "refused $?"
        $C exec s -- sh -c 'rm build; mkdir build; echo good > build/file'
        $C start other; $C exec other -- cat /build/file
        rm -rf $work
        "#,
    );
    ran.exits(0).says("refused 125\ngood\n").complains("/project/build is a symbolic link beneath /");
}

#[test]
fn what_a_stopped_sandbox_is_shown_can_change() {
    let ran = script(
        r#"
        work=$(mktemp -d); chmod 755 $work; mkdir $work/a $work/b $work/c; for d in a b c; do echo of $d >$work/$d/file; done; ln -s a $work/link
        shown() { $C exec s -- sh -c 'cat /a/file /b/file /c/file 2>/dev/null' | tr '\n' ' ' || true; echo "after $1"; }
        list() { $C mount ls $1 | sed "s|$work|WORK|" | tr '\n' ' '; echo; }
        refused() { status=0; $C mount "$@" >/dev/null 2>$work/said || status=$?; echo "refused $status"; cat $work/said >&2; }
        $C create s --no-cwd --mount $work/a:/a --mount $work/b:/b:ro
        shown create; refused rm s /a
        $C stop s; $C mount rm s /a; $C mount add s $work/c:/c:ro | sed "s|$work|WORK|"; $C mount add s $work/link/file:/one >/dev/null
        refused rm s /a; refused add s $work/a:/b; refused add s $work/a:/x/../y
        list s; $C start s; shown start; $C exec s -- cat /one
        rm -rf $work
        "#,
    );
    println!("{ran}");
    ran.exits(0).says("of a of b after create\nrefused 1\nWORK/c:/c:ro\nrefused 1\nrefused 1\nrefused 1\n");
    ran.says("WORK/b:/b:ro WORK/c:/c:ro WORK/a/file:/one \nof b of c after start\nof a\n");
    for said in [
        "is decided when it starts; stop it before",
        "what s is shown is not changed: there is no mount at /a",
        "there is a mount at /b already",
        "/x/../y is not an absolute path",
    ] {
        ran.complains(said);
    }
}

#[test]
fn a_policy_that_cannot_be_written_down_is_not_set() {
    for family in Family::BOTH {
        let web = family.in_url(family.web());
        let ran = script(&format!(
            r#"
            $C create s --no-cwd --net all
            try="curl -s -o /dev/null http://{web}/ && echo reached || echo not reached"
            entry=$XDG_STATE_HOME/cofferdam/sandboxes/s
            mkdir $entry/sandbox.json.new
            $C policy set s --net-default-egress deny || echo "refused $?"
            $C exec --quiet s -- sh -c "$try"
            rmdir $entry/sandbox.json.new
            $C policy set s --net-default-egress deny; ls $entry | grep new || true
            $C exec --quiet s -- sh -c "$try"
            $C stop s; $C start s
            $C exec --quiet s -- sh -c "$try"
            "#
        ));
        ran.exits(0).says("refused 1\nreached\nnot reached\nnot reached\n");
        ran.complains("the policy cannot be written down, so nothing was changed");
    }
}

#[test]
fn who_changes_a_policy_knows_the_one_before() {
    let ran = script(
        r#"
        $C create s --no-cwd
        entry=$XDG_STATE_HOME/cofferdam/sandboxes/s
        # As if somebody else had set it after this one has looked.
        cp $entry/sandbox.json before
        $C policy set s --max-connections 3
        cp $entry/sandbox.json after; cp before $entry/sandbox.json
        $C policy set --json s --max-udp-connections 3 || true
        cp after $entry/sandbox.json
        $C policy set s --max-udp-connections 4
        grep -o '"max_[a-z]*_*connections": [34]' $entry/sandbox.json
        rm before after
        "#,
    );
    ran.exits(0).says("\"kind\": \"busy\"").says("\"max_connections\": 3\n\"max_udp_connections\": 4\n");
}

#[test]
fn a_sandbox_that_is_starting_is_not_taken_for_stopped() {
    let ran = script(
        r#"
        $C create s --no-cwd; $C stop s
        # Who starts it holds its lock first and listens later.
        flock $XDG_STATE_HOME/cofferdam/sandboxes/s/lock sh -c "timeout 0.3 $C stop s" || echo "waited $?"
        $C stop s && echo stopped
        "#,
    );
    ran.exits(0).says("waited 124\nstopped\n");
}

#[test]
fn a_main_command_ends_though_another_run_holds_its_output() {
    let ran = script(
        r#"
        $C create s --no-cwd -- python3 -c '
import array, os, socket, time
while not os.path.exists("/tmp/taker"): time.sleep(0.01)
s = socket.socket(socket.AF_UNIX); s.connect("/tmp/taker")
s.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2]))]); s.recv(1)
print("the last word", flush=True); os._exit(7)'
        $C exec s -- python3 -c '
import os, socket, time
l = socket.socket(socket.AF_UNIX); l.bind("/tmp/t"); l.listen(); os.rename("/tmp/t", "/tmp/taker")
c, _ = l.accept(); held = socket.recv_fds(c, 1, 2)[1]; c.send(b"x")
print("held", len(held), flush=True); time.sleep(1000)' || true
        until_ sh -c "$C ls | grep -q stopped"
        $C inspect --json s | grep -o '"last_exit_status": *7'; $C logs s
        "#,
    );
    ran.exits(0).says("held 2\n").says("7\nthe last word\n");
}

#[test]
fn a_changed_policy_holds_for_everything_once_it_is_set() {
    for family in Family::BOTH {
        let (web, other) = (family.in_url(family.web()), family.in_url(family.other()));
        let ran = script(&format!(
            r#"
            $C create s --no-cwd --net-default-egress deny --net-rule 'allow@{web}'
            try='for url in "{web}" "{other}"; do curl -s -o /dev/null "http://$url/" && echo "$0 may $url" || echo "$0 may not $url"; done'
            $C exec --quiet s -- sh -c "$try" before
            go='touch /tmp/up-$0; until test -e /tmp/go; do sleep 0.02; done; '
            $C exec --quiet --net all s -- sh -c "$go$try" own & own=$!
            $C exec --quiet s -- sh -c "$go$try" joined & joined=$!
            $C exec --quiet --no-net s -- sh -c "$go echo none went on" none & none=$!
            $C exec --quiet --net all s -- sh -c "touch /tmp/up-stuck; sleep 1000" & stuck=$!
            until_ $C exec s -- test -e /tmp/up-own -a -e /tmp/up-joined -a -e /tmp/up-none -a -e /tmp/up-stuck
            kill -STOP $stuck
            $C policy set s --net-default-egress deny --net-rule 'allow@{other}'
            wait $stuck || echo "stuck ended with $?"
            $C exec s -- touch /tmp/go
            wait $own $joined $none
            $C exec --quiet s -- sh -c "$try" after
            $C stop s; $C start s
            $C exec --quiet s -- sh -c "$try" restarted
            $C policy set s --no-net
            $C exec --quiet s -- sh -c "$try" blocked
            $C exec --quiet --net all s -- sh -c "$try" own-blocked
            $C stop s
            $C policy set s --net-default-egress deny --net-rule 'allow@{web}'
            $C start s
            $C exec --quiet s -- sh -c "$try" reopened
            $C policy set s --net-rule 'alow@any' 2>/dev/null || echo "bad rule $?"
            $C policy set no-such --no-net 2>/dev/null || echo "no sandbox $?"
            "#
        ));
        ran.exits(0);
        for (who, may_web, may_other) in [
            ("before", true, false),
            ("own", false, true),
            ("joined", false, true),
            ("after", false, true),
            ("restarted", false, true),
            ("blocked", false, false),
            ("own-blocked", false, false),
            ("reopened", true, false),
        ] {
            for (url, may) in [(&web, may_web), (&other, may_other)] {
                ran.says(&format!("{who} {} {url}\n", if may { "may" } else { "may not" }));
            }
        }
        ran.says("none went on\n").says("stuck ended with 137\n").says("bad rule 1\nno sandbox 1\n");
    }
}

#[test]
fn a_changed_policy_leaves_limits_as_they_are_and_resolvers_change_while_it_runs() {
    for family in Family::BOTH {
        let web = family.in_url(family.web());
        let (here, dead) = match family {
            Family::V4 => ("93.184.215.53", "93.184.215.250"),
            Family::V6 => ("2606:2800:21f:cb07::53", "2606:2800:21f:cb07::250"),
        };
        let (here, dead) = (family.in_url(here), family.in_url(dead));
        let ran = script(&format!(
            r#"
            held() {{ $C exec --quiet s -- python3 -c '
import socket
held = []
for n in range(8):
    try: held.append(socket.create_connection(("{address}", 80), 10))
    except OSError: break
print(len(held), "held")'; }}
            $C create s --no-cwd --net all --max-connections 3 --dns-nameserver '{dead}' --dns-query-timeout-ms 1500
            held
            $C policy set s --net all
            held
            $C exec --quiet s -- getent hosts v4.wall-test.com || echo nobody answers
            $C policy set s --net all --max-connections 5 --dns-nameserver '{here}'
            held
            $C exec --quiet s -- getent ahostsv4 v4.wall-test.com | head -n 1
            # A run with a network of its own asks them as well.
            $C exec --quiet --allow v4.wall-test.com s -- getent ahostsv4 v4.wall-test.com | head -n 1
            $C policy set s --net all --dns-nameserver tls://192.0.2.1 || echo "refused $?"
            $C exec --quiet s -- curl -s -o /dev/null http://{web}/ && echo still there
            $C stop s
            $C start s
            held
            "#,
            address = family.web(),
        ));
        ran.exits(0).complains("by their addresses alone");
        let web4 = Family::V4.web();
        let said: Vec<String> =
            ran.stdout().lines().map(|line| line.split("  ").next().unwrap_or(line).trim().to_owned()).collect();
        assert_eq!(
            said,
            ["3 held", "3 held", "nobody answers", "5 held", web4, web4, "refused 1", "still there", "5 held"],
            "{ran:?}"
        );
    }
}

#[test]
fn a_connection_that_a_changed_policy_does_not_allow_is_ended() {
    for family in Family::BOTH {
        let (web, other) = (family.web(), family.other());
        let (web_url, other_url) = (family.in_url(web), family.in_url(other));
        let ran = script(&format!(
            r#"
            $C create s --no-cwd --net-default-egress deny --net-rule 'allow@{web_url},allow@{other_url}'
            for flags in "" "--net all"; do
                $C exec s -- rm -f /tmp/up
                $C exec --quiet $flags s -- python3 -c '
import pathlib, select, socket
web, other = socket.create_connection(("{web}", 80)), socket.create_connection(("{other}", 80))
pathlib.Path("/tmp/up").touch()
try:
    print("closed", web.recv(1))
except ConnectionResetError:
    print("reset")
print("the other lives", select.select([other], [], [], 0.2)[0] == [])' & run=$!
                until_ $C exec s -- test -e /tmp/up
                $C policy set s --net-default-egress deny --net-rule 'allow@{other_url}'
                wait $run
                $C policy set s --net-default-egress deny --net-rule 'allow@{web_url},allow@{other_url}'
            done
            "#
        ));
        ran.exits(0);
        assert_eq!(ran.stdout(), "reset\nthe other lives True\n".repeat(2), "{ran}");
    }
}

#[test]
fn programs_are_told_how_a_run_goes() {
    for family in Family::BOTH {
        let (web, other) = (family.in_url(family.web()), family.in_url(family.other()));
        let ran = script(&format!(
            r#"
            $C create s --no-cwd --net-default-egress deny --net-rule 'allow@{web},allow@{other}'
            report() {{ python3 -c 'import json, sys
for line in sys.stdin: print(*(json.loads(line).get(field) for field in sys.argv[1:]))' "$@"; }}
            # What the run writes, and what is told of it, do not mix.
            echo '{{"command": ["sh", "-c", "curl -s http://{other}/ || echo \"$A\"; ls /proc/self/fd; exit 3"], "env": {{"A": "b"}}, "workdir": "/tmp",
                "network": {{"network_mode": "allowlist", "network_allowlist": ["{web}"]}}}}' > $XDG_STATE_HOME/run.json
            $C exec --quiet --spec $XDG_STATE_HOME/run.json --report-fd 3 s 3> $XDG_STATE_HOME/report || echo "status $?"
            report report ended exit_status network_lost < $XDG_STATE_HOME/report
            tail -n 1 $XDG_STATE_HOME/report | python3 -c 'import json, sys; print(json.load(sys.stdin)["denied"][0]["target"])'
            for command in 'kill -TERM $$' 'sleep 100' 'exit 0'; do
                $C exec --quiet --timeout 500ms --report-fd 3 s -- sh -c "$command" 3>&1 >/dev/null | tail -n 1 | report report ended exit_status
            done
            $C exec --report-fd 3 s -- no-such-program 3>&1 >/dev/null | report report kind exit_status
            $C exec --mode check --net all --report-fd 3 s -- true 3>&1 >/dev/null | report report kind exit_status
            mkfifo $XDG_STATE_HOME/fifo
            $C cp --json $XDG_STATE_HOME/fifo s:/tmp 2>&1 | report left_out
            echo '{{"preset": "none"}}' | $C policy set --json s - | tr -d ' \n'; echo
            printf '[network]\nports = ["0:9"]\n' > $XDG_STATE_HOME/ports.toml
            $C policy set s $XDG_STATE_HOME/ports.toml || echo "ports in a file $?"
            $C stop --json --time 0s s | tr -d ' \n'
            "#
        ));
        ran.exits(0).says("b\n0\n1\n2\n3\nstatus 3\nstarted None None None\n");
        ran.says(&format!("ended {{'exited': 3}} 3 False\n{}\n", family.other()));
        ran.says("ended {'signaled': 15} 143\nended timed_out 124\nended {'exited': 0} 0\n");
        ran.says("failed not_found 127\nfailed wider 125\nfifo: neither a file nor a directory nor a link\n{\"name\":\"s\"}\n").says("ports in a file 1\n[{\"name\":\"s\"}]");
        ran.complains("ports are published with `cofferdam ports add`");
    }
}

#[test]
fn a_suspended_run_does_not_keep_its_sandbox_from_stopping() {
    let ran = script(
        r#"
        $C create s --no-cwd
        $C exec s -- sh -c 'touch /tmp/ready; exec sleep 1000' & run=$!
        until_ $C exec s -- test -e /tmp/ready
        kill -STOP $run
        $C stop --time 0s s
        wait $run || echo "ended with $?"
        is s stopped && $C start s && $C exec s -- echo again
        "#,
    );
    ran.exits(0).says("ended with 137\nagain\n").within(Duration::from_secs(20));
}

#[test]
fn a_removal_has_runs_say_what_became_of_them_and_waits_for_nobody_else() {
    let ran = script(
        r#"
        $C create s --no-cwd
        for n in 1 2; do ($C exec s -- sh -c "trap '' TERM; touch /tmp/ready-$n; exec sleep 1000" || echo "ended with $?" >>"$XDG_STATE_HOME/ended") & done
        until_ $C exec s -- test -e /tmp/ready-1 -a -e /tmp/ready-2
        a=$(date +%s%N); $C rm --force s; b=$(date +%s%N); echo "removed in $(((b - a) / 1000000)) ms"
        wait; cat "$XDG_STATE_HOME/ended"
        "#,
    );
    println!("{ran}");
    ran.exits(0).says("ended with 125\nended with 125\n").complains("the sandbox was killed from outside");
}

/// But not what a program does, and nothing where a report says it.
#[test]
fn a_quiet_run_says_why_it_was_lost() {
    let ran = script(
        r#"
        $C create s --no-cwd
        $C exec --quiet s -- sh -c 'exit 125' || echo "its own $?"
        run() { touch "$1"; chmod 666 "$1"; ($C exec --quiet $2 s -- sh -c "trap '' TERM; touch /tmp/$3; exec sleep 1000" 3>"$XDG_STATE_HOME/report" || echo "ended with $?") >"$1" 2>&1 & }
        run "$XDG_STATE_HOME/said" "" a; run "$XDG_STATE_HOME/told" "--report-fd 3" b
        until_ $C exec s -- test -e /tmp/a -a -e /tmp/b
        $C rm --force s; wait
        sed 's/^/said: /' "$XDG_STATE_HOME/said"; sed 's/^/told: /' "$XDG_STATE_HOME/told"; grep -c 'killed from outside' "$XDG_STATE_HOME/report"
        "#,
    );
    let lost = "cofferdam: the sandbox was killed from outside, and the program with it\n";
    assert_eq!(
        ran.stdout(),
        format!("its own 125\nsaid: {lost}said: ended with 125\ntold: ended with 125\n1\n"),
        "{ran}"
    );
}

#[test]
fn ports_come_and_go_while_a_sandbox_runs() {
    for (bind, loopback, any) in [("127.0.0.1:", "127.0.0.1", "0.0.0.0"), ("[::1]:", "[::1]", "::")] {
        let ran = script(&format!(
            r#"
            $C create --no-cwd --ipv6 -p '{bind}0:8080' s -- python3 -m http.server -d /usr/share/doc --bind {any} 8080
            host() {{ $C ports ls --json s | sed -n 's/^    "host_port": \([0-9]*\).*/\1/p'; }}
            first=$(host)
            until_ curl -s -o /dev/null "http://{loopback}:$first/"
            echo "published $(host | wc -l)"
            $C ports add s '{bind}0:8080' '{bind}0:53/udp' >/dev/null
            for port in $(host | head -n 2); do curl -s -o /dev/null "http://{loopback}:$port/" && echo served; done
            second=$(host | sed -n 2p)
            $C ports add s '{bind}0:9' "{bind}$second:8080" 2>&1 && echo twice || echo "taken $(host | wc -l)"
            $C ports rm s "$second" | sed 's/:[0-9]*:8080/:PORT:8080/'
            curl -s -o /dev/null "http://{loopback}:$second/" || echo "withdrawn $?"
            $C ports rm s "$second" 2>/dev/null || echo "unknown $?"
            $C policy set s --net-rule deny:ingress@any
            curl -s -o /dev/null "http://{loopback}:$first/" || echo denied
            $C policy set s --net-default-ingress allow
            curl -s -o /dev/null "http://{loopback}:$first/" && echo "allowed again"
            $C exec --net public -p '{bind}0:1' s -- true
            $C stop s
            $C ports ls s 2>/dev/null || echo "stopped $?"
            $C start s
            echo "after a start $(host | wc -l)"
            "#
        ));
        ran.exits(0)
            .says("published 1\nserved\nserved\n")
            .says(&format!("taken 3\n{loopback}:PORT:8080/tcp\nwithdrawn 7\nunknown 1\ndenied\nallowed again\n"))
            .says("stopped 1\nafter a start 1\n")
            .never_says("twice")
            .complains("ports are published for the session");
    }
}

#[test]
fn a_program_gets_no_rights_where_a_renamed_way_to_a_mount_leads() {
    // A pipe can be written to on a read-only mount: what forbids it is Landlock alone.
    let ran = script(
        r#"
        D=$(mktemp -d "$XDG_STATE_HOME/XXXXXX")
        mkdir $D/data $D/honest $D/shown $D/linked; mkfifo $D/shown/pipe
        $C create s --no-cwd --mount $D/data:/home/user/m/data --mount $D/honest:/home/user/n/data \
            --mount $D/linked:/var/run/linked --mount $D/shown:/srv/shown:ro
        cat > $D/honest/try <<'END'
for place in m/data n/data gone/data /srv/shown; do
    rm -f $place/file 2>/dev/null
    (: > $place/file) 2>/dev/null && echo "$1: $place is writable" || echo "$1: $place is not"
done
(: > /var/run/linked/file) 2>/dev/null && echo "$1: linked is writable"
(: 1<> /srv/shown/pipe) 2>/dev/null && echo "$1: the pipe is writable" || echo "$1: the pipe is not"
END
        try() { $C exec --quiet -w /home/user s -- sh n/data/try "$1"; }
        try before
        $C exec --quiet -w /home/user s -- sh -ec 'mv m gone; mkdir m; ln -s /srv/shown m/data'
        try link
        # Something of its own in its place.
        $C exec --quiet -w /home/user s -- sh -ec 'rm m/data; mkdir m/data'
        try directory
        $C exec --quiet -w /home/user s -- sh -ec 'rm -r m; mv gone m'
        try after
        $C rm --force s
        "#,
    );
    let said = |when: &str, first: bool, gone: bool| {
        let word = |writable| if writable { "is writable" } else { "is not" };
        format!(
            "{when}: m/data {}\n{when}: n/data is writable\n{when}: gone/data {}\n{when}: /srv/shown is not\n{when}: linked is writable\n{when}: the pipe is not\n",
            word(first),
            word(gone)
        )
    };
    ran.exits(0).says(&said("before", true, false)).says(&said("link", false, true));
    // What is in /home/user is writable with it, mounts too.
    ran.says(&said("directory", true, true)).says(&said("after", true, false));
}
