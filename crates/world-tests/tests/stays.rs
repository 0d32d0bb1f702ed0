//! Virtual machines that stay: runs in them, copies, ports, policies, and how they end.
//!
//! A guest takes seconds to start, so one story is told with one guest, and says which part it is at.

use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, World};

/// What every script here begins with: what guests start from, and runs in the guest `g`.
const PRELUDE: &str = r#"
mkdir -p "$XDG_STATE_HOME/cofferdam"; cp -r "$WORLD/home/.local/state/cofferdam/vm" "$XDG_STATE_HOME/cofferdam/"
g() { $C exec --quiet g "$@"; }
# Whether something of this name sleeps in the guest; the bracket keeps it from finding itself.
asleep() { g sh -c 'cat /proc/[0-9]*/cmdline 2>/dev/null | tr "\\0" " " | grep -q "slee[p] '"$1"'"'; }
awake() { ! asleep "$1"; }
# The processes of the machine that runs, and whether one of them is left.
note() { machine="$(number g keeper) $(number g init) $(pgrep -d ' ' -f 'cofferdam-vm' -P "$(number g init)")"; machine="$machine $(pgrep -d ' ' -P "$(pgrep -f 'cofferdam-vm' -P "$(number g init)")")"; }
tree() { echo "$1"; for child in $(pgrep -P "$1"); do tree "$child"; done; }
# MiB of the host that a process and its children have beyond the memory of a guest of 1 GiB and the code that QEMU has translated for
# it, as far as one may look.
beyond() { for one in $(tree "$1"); do cat "/proc/$one/smaps" 2>/dev/null; done | awk '/^[0-9a-f]+-/ { code = $2 ~ /wx/ } /^Size:/ { size = $2 } /^Pss:/ && !code && size < 1048576 { sum += $2 } END { print int(sum / 1024) }'; }
none_left() { for one in $machine; do ! kill -0 "$one" 2>/dev/null || return 1; done; }
"#;

#[track_caller]
fn script(text: &str) -> Ran {
    let world = World::with_guests();
    let sandbox = world.sandbox().patience(Duration::from_secs(240));
    world.script_in(sandbox, &format!("{PRELUDE}\n{text}"))
}

#[test]
fn a_guest_that_stays_takes_many_runs() {
    let (web, other) = (Family::V4.in_url(Family::V4.web()), Family::V4.in_url(Family::V4.other()));
    let (web6, other6) = (Family::V6.in_url(Family::V6.web()), Family::V6.in_url(Family::V6.other()));
    let ran = script(&format!(
        r#"
        $C create g --backend vm --no-cwd -e GIVEN=1 --net-default-egress deny --net-rule 'allow@{web},allow@{web6}'
        echo "a kernel of its own: $(g cat /proc/cmdline | grep -c console=ttyS0)"

        # Streams, statuses, variables and places.
        echo "in and out: $(printf 'abc' | g tr a-z A-Z)"
        echo "much: $(head -c 3000000 /dev/zero | g sh -c 'cat; echo end >&2' 2>"$XDG_STATE_HOME/err" | wc -c) $(cat "$XDG_STATE_HOME/err")"
        g sh -c 'exit 7' || echo "status $?"
        g sh -c 'kill -9 $$' || echo "signal $?"
        g absent 2>/dev/null || echo "absent $?"
        g /etc/passwd 2>/dev/null || echo "not executable $?"
        echo "variables: $($C exec --quiet -e OWN=2 -w /tmp g -- sh -c 'echo $GIVEN $OWN $PWD')"
        g sh -c 'echo kept >file'; echo "files: $(g cat file)"
        echo "who: $(g id -u)"

        # A terminal with the size of ours, and its signals.
        size=$(script -qefc "stty rows 33 cols 44; $C exec -t g stty size" /dev/null </dev/null | grep -o '[0-9]* [0-9]*')
        echo "terminal: $size"
        $C exec --quiet g -- sh -c 'trap "echo trapped; exit 5" TERM; touch ready; while :; do sleep 0.1; done' >"$XDG_STATE_HOME/trapped" &
        run=$!
        until_ g test -e ready
        kill -TERM $run; status=0; wait $run || status=$?; echo "$(cat "$XDG_STATE_HOME/trapped") $status"

        # Time that is up ends everybody, in whatever session, and so does the end of who asked.
        $C exec --quiet --timeout 500ms g -- sh -c 'setsid sleep 1001 & setsid sh -c "trap : TERM; sleep 1002; sleep 1003" & wait' || echo "timeout $?"
        until_ awake 100
        $C exec --quiet g -- sh -c 'setsid sleep 1004 & touch asked; wait' &
        run=$!
        until_ g test -e asked
        kill -9 $run; wait $run 2>/dev/null || true
        until_ awake 100
        echo "nobody left"

        # Several at a time, and one that reads nothing holds up nobody.
        g sh -c 'yes | head -c 4000000' | (until_ test -e "$XDG_STATE_HOME/eight"; wc -c >"$XDG_STATE_HOME/slow") &
        slow=$!
        runs=
        for n in 1 2 3 4 5 6 7 8; do g sh -c "touch up-$n; until [ -e up-1 -a -e up-8 ]; do sleep 0.05; done; echo $n" >"$XDG_STATE_HOME/run-$n" & runs="$runs $!"; done
        wait $runs
        touch "$XDG_STATE_HOME/eight"; wait $slow
        echo "eight: $(cat "$XDG_STATE_HOME"/run-* | tr -d '\n') $(cat "$XDG_STATE_HOME/slow")"

        # Copies.
        cd "$XDG_STATE_HOME"; mkdir -p tree/in; echo a >tree/a; head -c 200000 /dev/urandom >tree/in/b; ln -s a tree/link
        $C cp tree g:; $C cp tree g:/tmp/named; $C cp g:/tmp/named back; diff -r tree back && echo "copied: $(readlink back/link)"
        tar c tree | $C cp - g:/tmp; $C cp g:/tmp/tree - | tar t | sort | tr '\n' ' '; echo
        g sh -c 'mkdir out; ln -s /etc/passwd out/evil; ln -s ../../../up out/up; echo fine >out/fine'
        $C cp g:out . 2>left || echo "left out: $(grep -c 'leads out' left) $(ls out)"
        $C cp g:nowhere . 2>said || echo "no copy $? $(grep -c '^cofferdam: the guest says: .*nowhere' said)"
        for at in / out/..; do $C cp g:$at . 2>said || echo "nameless $? $(grep -c 'name what is to be copied' said)"; done

        # The network is the machine's, and a policy set while it runs holds at once.
        $C exec --allow a.example g true 2>narrow || echo "narrow $?: $(grep -c 'share one network card' narrow)"
        fetch() {{ g timeout 5 wget -qO- "http://$1/" >/dev/null 2>&1 && echo "$1 yes" || echo "$1 no"; }}
        for at in '{web}' '{web6}' '{other}' '{other6}'; do fetch "$at"; done
        $C policy set g --net-default-egress deny --net-rule 'allow@{other},allow@{other6}'
        for at in '{web}' '{web6}' '{other}' '{other6}'; do echo "then $(fetch "$at")"; done
        echo "logged: $($C log g --json --denied | grep -c '"type":"flow.denied"')"

        # Ports, while it runs.
        g sh -c 'echo page >index.html'
        g sh -c 'httpd -f -p 8080 -h /home/user' & server=$!
        until_ g timeout 5 wget -qO /dev/null http://127.0.0.1:8080/
        for at in 127.0.0.1 '[::1]'; do
            port=$($C ports add g "$at:0:8080" | sed 's|/tcp||; s|.*:\([0-9]*\):8080|\1|')
            echo "port: $(curl -s --max-time 20 "http://$at:$port/")"
            $C ports rm g "$at:$port" >/dev/null
            curl -s --max-time 5 "http://$at:$port/" || echo "port gone"
        done
        kill $server; wait $server 2>/dev/null || true

        echo "inspected: $(state g) $($C ls --quiet)"
        # How long a run takes. Those that follow at once profit from what the guest's kernel has just done.
        for n in $(seq 40); do sleep 0.1; a=$(date +%s%N); g true; b=$(date +%s%N); echo $(((b - a) / 1000000)); done | sort -n | sed -n 20p | sed 's/^/median ms: /'

        memory=$(beyond "$(number g keeper)"); echo "beyond the guest: $memory MiB"
        [ "$memory" -ge 20 ] && [ "$memory" -le 96 ] && echo "within bounds"

        note; echo "noted: $(echo $machine | wc -w)"
        $C stop g; until_ none_left; echo "stopped: $(state g)"
        $C exec g true 2>/dev/null || echo "not there $?"
        $C rm g; echo "left: $($C ls --quiet)."
        "#
    ));
    println!("{ran}");
    ran.exits(0);
    for said in [
        "a kernel of its own: 1\n",
        "in and out: ABC\n",
        "much: 3000000 end\n",
        "status 7\nsignal 137\nabsent 127\nnot executable 126\nvariables: 1 2 /tmp\nfiles: kept\nwho: 1000\n",
        "terminal: 33 44\n",
        "trapped 5\n",
        "timeout 124\nnobody left\n",
        "eight: 12345678 4000000\n",
        "copied: a\n",
        "tree/ tree/a tree/in/ tree/in/b tree/link \n",
        "left out: 2 fine\nno copy 1 1\nnameless 1 1\nnameless 1 1\n",
        "narrow 125: 1\n",
        &format!("{web} yes\n{web6} yes\n{other} no\n{other6} no\n"),
        &format!("then {web} no\nthen {web6} no\nthen {other} yes\nthen {other6} yes\n"),
        "port: page\nport gone\nport: page\nport gone\n",
        "inspected: running g\n",
        "within bounds\n",
        "noted: 4\n",
        "stopped: stopped\nnot there 125\nleft: .\n",
    ] {
        ran.says(said);
    }
}

/// Root in the guest, who may do as it likes there.
#[test]
fn what_a_guest_is_shown_changes_while_it_runs() {
    let ran = script(
        r#"
        cd "$XDG_STATE_HOME"; mkdir mounts; cd mounts; umask 022
        mkdir rw ro more outside; echo of rw >rw/file; echo of ro >ro/file; echo secret >outside/secret
        ln -s ../outside/secret rw/relative; ln -s "$PWD/outside/secret" rw/absolute;
        $C create g --backend vm --no-cwd --net mounts-only --user 0
        refused() { status=0; $C mount "$@" >/dev/null 2>said || status=$?; [ $status = 1 ] && cat said || echo "NOT SO: $status $*"; }
        files() { pgrep -x cofferdam-files -P "$(number g init)"; }
        echo "before: $(g grep -c ' cifs ' /proc/mounts || true) $($C mount ls g)."

        # A program that runs already sees what comes, and what it writes is the caller's.
        $C exec --quiet g -- sh -c 'touch /tmp/runs; until [ -e /data/file ]; do sleep 0.1; done; cat /data/file; echo by it >/data/new; mkdir /data/d; mv /data/new /data/d/moved' >ran & run=$!
        until_ g test -e /tmp/runs
        $C mount add g rw:/data | sed "s|$PWD|HERE|"
        wait $run; echo "seen: $(cat ran), $(cat rw/d/moved) $([ "$(stat -c %u:%g rw/d/moved)" = "$(id -u):$(id -g)" ] && echo its owner)"
        g sh -c 'for way in relative absolute ../outside/secret; do cat /data/$way 2>/dev/null && echo "NOT SO: $way" || echo "no way out"; done'

        # One that is read-only stays so.
        $C mount add g ro:/only:ro >/dev/null
        before=$(find ro -printf '%p %m %s %T@ %i\n' | sort)
        # Root may take it for writable, or mount it once more. The host does not.
        g sh -c 'cd /only; for attempt in 1 2; do
            for try in "touch x" "rm file" "mv file y" "chmod 777 file" "mkdir d" "ln -s a l" "truncate -s 0 file" "echo x >>file" "touch /again/x"; do sh -c "$try" 2>/dev/null && echo "NOT SO: $try"; done
            mount -o remount,rw /only; mkdir -p /again; mount --bind /only /again; mount -o remount,rw,bind /again
        done; true' 2>/dev/null
        [ "$before" = "$(find ro -printf '%p %m %s %T@ %i\n' | sort)" ] && echo "read-only: $(g cat /only/file)"
        g umount /again

        # Nothing else is shown, under whatever name.
        g sh -c 'mkdir -p /mnt; for name in share0 share2 share99 rw "C$" "share0/.."; do
            mount -t cifs "//10.0.2.100/$name" /mnt -o vers=3.1.1,ip=10.0.2.100,username=any,password=guess 2>/dev/null && echo "NOT SO: $name"
        done; true'
        echo "of its server: $(ls -A "/proc/$(files)/root" 2>/dev/null | wc -l) $(wc -w <<<"$(files)") $(sed -n 's/^CapEff:\t//p' "/proc/$(files)/status")"
        echo "listed: $($C mount ls g | sed "s|$PWD|HERE|" | tr '\n' ' ')$($C inspect g | grep -c '^mount .*:/only:ro')"

        # What cannot be.
        refused add g rw/file:/file; refused add g rw:/data; refused add g more:/data/sub; refused add g more:/; refused add g more:/a/../b
        refused add g absent:/x; refused add g "$XDG_STATE_HOME:/state"; refused rm g /nowhere; refused add none more:/x
        $C mount add g more:/deep/in >/dev/null; refused add g ro:/deep; $C mount rm g /deep/in
        # Within what a guest may write to no link is followed.
        g ln -s ../outside /data/trap; refused add g rw/trap:/x; g rm /data/trap

        # One goes that nobody uses, and what was written is there.
        g sh -c 'echo last >/data/last'; $C mount rm g /data
        echo "gone: $(cat rw/last) $(g ls -A /data | wc -l) $(g grep -c ' /data cifs ' /proc/mounts || true)"

        # And one that is held all the same.
        $C mount add g more:/held >/dev/null
        $C exec --quiet g -- sh -c 'cd /held; exec 3>open; echo one >&3; touch /tmp/holds; until [ -e /tmp/removed ]; do sleep 0.1; done
            for try in "echo two >>new" "cat old" "ls | grep old" "mkdir d" "mv open else" "echo three >open"; do sh -c "$try" >/dev/null 2>&1 && echo "NOT SO: $try"; done; echo "errors alone"' & run=$!
        until_ g test -e /tmp/holds; echo old >more/old
        refused rm g /held
        left=$(find more -printf '%p %s %T@\n' | sort); g touch /tmp/removed; wait $run
        [ "$left" = "$(find more -printf '%p %s %T@\n' | sort)" ] && echo "untouched: $(ls more | tr '\n' ' ')"
        $C mount add g rw:/held >/dev/null; echo "anew: $(g cat /held/file)"
        # Several at once: one after the other, or told to wait.
        for n in 1 2 3; do mkdir n$n; (if $C mount add g n$n:/n$n 2>said$n >/dev/null; then echo added; else grep 'somebody else is' said$n; fi) >added$n & done; wait
        echo "at once: $(cat added1 added2 added3 | wc -l) of $($C mount ls g | grep -c ':/n[123]$' | sed 's/[123]/some/')"

        $C stop g; refused add g more:/only
        echo "kept: $($C mount ls g | grep -v /n | sed "s|$PWD|HERE|" | tr '\n' ' ')"
        $C mount rm g /held; $C mount add g more:/there >/dev/null
        echo "stopped: $($C mount ls g | grep -v /n | sed "s|$PWD|HERE|" | tr '\n' ' ')"
        $C rm g
        $C create spaces --no-cwd --no-net; refused add spaces more:/x; refused rm spaces /x; $C rm --force spaces
        "#,
    );
    println!("{ran}");
    ran.exits(0).never_says("NOT SO");
    for said in [
        "before: 0 .\n",
        "HERE/rw:/data\nseen: of rw, by it its owner\n",
        "no way out\nno way out\nno way out\n",
        "read-only: of ro\n",
        "of its server: 0 1 0000000000000000\n",
        "listed: HERE/rw:/data HERE/ro:/only:ro 1\n",
        "rw/file is no directory, and a guest is shown whole ones",
        "there is a mount at /data already",
        "/data/sub is in /data, of which root in a guest sees everything",
        "/ cannot be a mount target",
        "the mount target /a/../b is not an absolute path",
        "there is no mount at /nowhere",
        "there is no sandbox named none",
        "/deep/in is in /deep, and would be hidden",
        "rw/trap is a symbolic link beneath",
        "gone: last 0 0\n",
        "it is not shown any more, but the guest could not unmount it",
        "errors alone\n",
        "untouched: old open \n",
        "anew: of rw\n",
        "at once: 3 of some\n",
        "kept: HERE/ro:/only:ro HERE/rw:/held \n",
        "stopped: HERE/ro:/only:ro HERE/more:/there \n",
        "what a sandbox of namespaces is shown is decided when it starts; stop it before, or copy files",
    ] {
        ran.says(said);
    }
}

#[test]
fn whatever_ends_first_nothing_is_left_and_one_line_says_why() {
    let ran = script(
        r#"
        # A main command, whose end is that of the machine.
        $C run --detach --name g --backend vm --no-cwd --no-net -- sh -c 'echo from inside; until [ -e /tmp/end ]; do sleep 0.1; done; exit 3' >/dev/null
        until_ sh -c "$C logs g | grep -q 'from inside'"
        g touch /tmp/end
        until_ is g stopped; echo "main: $(number g last_exit_status)"; $C rm g

        # QEMU.
        $C create g --backend vm --no-cwd --no-net
        $C mount add g "$WORLD:/x" 2>"$XDG_STATE_HOME/said" || echo "no mount $?: $(grep -c 'it has no network.*--net mounts-only' "$XDG_STATE_HOME/said")"
        ($C exec g -- sleep 1000 2>"$XDG_STATE_HOME/said" || echo "exec $?") & run=$!
        until_ asleep 1000
        note; kill -9 ${machine##* }
        wait $run; grep -c 'QEMU has ended (signal 9)' "$XDG_STATE_HOME/said" || { cat "$XDG_STATE_HOME/said" >&2; exit 96; }
        until_ is g stopped; echo "logged: $($C logs g | grep -c 'QEMU has ended')"
        until_ none_left

        # Its keeper, after a start anew.
        $C start g
        ($C exec g -- sleep 1000 2>/dev/null || echo "exec $?") & run=$!
        until_ asleep 1000
        note; kill -9 "$(number g keeper)"
        wait $run; until_ is g stopped; until_ none_left; echo "keeper gone"
        $C rm --force g; echo "left: $($C ls --quiet)."
        $C create bad --backend vm --no-cwd --pids 5 || echo "refused $?: $($C ls --quiet)."
        "#,
    );
    ran.exits(0)
        .says("main: 3\n")
        .says("no mount 1: 1\n")
        .says("exec 125\n1\nlogged: 1\n")
        .says("keeper gone\nleft: .\nrefused 125: .\n")
        .complains("--pids cannot be used with --backend vm");
}
