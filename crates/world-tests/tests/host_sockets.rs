//! Sockets of the host: real servers on the world's host, real clients in a sandbox.
//!
//! Each test is one script there, since servers and sandboxes have to be of one user in one user namespace.

use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, World};

/// `$C` is the program, `$D` a fresh directory of the user's, and `$P` is `host_sockets.py`, which sandboxes see at `/tmp/p`.
const PRELUDE: &str = r#"
set -eu
D=$(mktemp -d)
export XDG_STATE_HOME=$D/state
mkdir -m 700 $XDG_STATE_HOME
trap '$C ls --quiet | xargs -r $C rm --force >/dev/null 2>&1 || true; jobs -p | xargs -r kill 2>/dev/null || true; rm -rf "$D"' EXIT
# Waits until a condition holds; there is no event to wait for where another process has to come up.
until_() { n=0; until "$@" 2>/dev/null; do n=$((n + 1)); [ $n -lt 500 ] || { echo "never: $*" >&2; exit 97; }; sleep 0.02; done; }
# Starts a server, and waits until it listens.
serve() { rm -f $D/log; python3 $P "$@" > $D/log 3>&- & SERVER=$!; until_ grep -q up $D/log; }
run() { $C run --no-cwd --mount $P:/tmp/p:ro "$@"; }
"#;

#[track_caller]
fn script(script: &str) -> Ran {
    let world = World::shared();
    let sandbox = world.sandbox().patience(Duration::from_secs(120));
    let program = world.path("files/host_sockets.py");
    let text = format!("C='{}' P='{}'\n{PRELUDE}\n{script}", world.cofferdam().display(), program.display());
    sandbox.without_a_sandbox(&["bash", "-c", &text])
}

#[test]
fn bytes_pass_whole_and_ends_one_by_one() {
    let ran = script(
        r#"
        serve serve $D/s
        run --events $D/events --json-summary $D/summary --host-socket $D/s:/run/deep/er/s -- sh -ec '
            python3 /tmp/p halfclose /run/deep/er/s
            python3 /tmp/p bulk /run/deep/er/s 8
            stat -c "%A %U" /run/deep/er/s; id -un'
        grep -o '"type":"socket[^}]*' $D/events | grep -v bytes
        grep -o '"bytes_out":[0-9]*,"bytes_in":[0-9]*' $D/events
        tr -d ' \n' < $D/summary | grep -o '"socket[a-z_]*":[0-9]*' | sort
        cat $D/log
        "#,
    );
    ran.exits(0).says("whole\n8388608 exact\nsrw------- user\nuser\n");
    ran.says("\"host\":\"/").says("/s\",\"guest\":\"/run/deep/er/s\"").says("after the end: later");
    ran.says(
        "\"bytes_out\":3,\"bytes_in\":3\n\"bytes_out\":6,\"bytes_in\":5\n\"bytes_out\":8388608,\"bytes_in\":8388608\n",
    );
    ran.says("\"socket_bytes_in\":8388616\n\"socket_bytes_out\":8388617\n\"sockets_failed\":0\n\"sockets_opened\":3\n");
}

#[test]
fn two_hundred_connections_at_once_wait_for_a_server_with_a_short_queue() {
    let ran = script(
        r#"
        serve serve $D/s
        run --quiet --host-socket $D/s:/run/s -- python3 /tmp/p hold /run/s 200
        "#,
    );
    ran.exits(0).says("200 good, 0 ended");
}

#[test]
fn at_the_bound_connections_end_at_once_and_those_before_go_on() {
    let ran = script(
        r#"
        serve serve $D/s
        run --quiet --events $D/events --max-connections 3 --host-socket $D/s:/run/s -- sh -ec '
            python3 /tmp/p hold /run/s 5
            python3 /tmp/p halfclose /run/s'
        grep -o '"limit":"connections","bound":3' $D/events
        "#,
    );
    ran.exits(0).says("3 good, 2 ended\nwhole\n\"limit\":\"connections\",\"bound\":3");
}

#[test]
fn a_server_that_is_gone_is_an_end_and_one_that_comes_back_is_found() {
    let ran = script(
        r#"
        serve serve $D/s
        mkfifo $D/in
        run --events $D/events --host-socket $D/s:/run/s -- sh -c 'while read line; do echo "$line: $(python3 /tmp/p ask /run/s)"; done' < $D/in > $D/out 2> $D/err &
        exec 3> $D/in
        tell() { echo "$1" >&3; until_ grep -q "$1:" $D/out; }
        tell there
        kill $SERVER; wait $SERVER || true
        tell dead
        rm $D/s
        tell missing
        serve serve $D/other
        ln -s other $D/s
        tell link
        kill $SERVER; wait $SERVER || true
        rm $D/s
        serve serve $D/s
        tell back
        exec 3>&-
        wait %2 2>/dev/null || true
        until_ grep -q sandbox.stopped $D/events
        cat $D/out $D/err
        grep -o '"type":"socket.failed".*"error":"[^"]*"' $D/events | grep -o '"error".*'
        "#,
    );
    ran.exits(0).says("there: hello\ndead: end\nmissing: end\nlink: end\nback: hello\n");
    ran.says("\"error\":\"nobody listens on it\"\n\"error\":\"it is not there\"\n\"error\":\"it is not a socket any more\"\n");
    ran.says("/s was not reached: nobody listens on it");
}

#[test]
fn a_server_that_takes_nothing_ends_its_clients_after_ten_seconds() {
    let ran = script(
        r#"
        mkfifo $D/hold
        exec 4<> $D/hold
        python3 $P full $D/s <&4 > $D/log & until_ grep -q up $D/log
        run --host-socket $D/s:/run/s -- python3 /tmp/p ask /run/s
        "#,
    );
    ran.exits(0).says("end").complains("its queue is full").within(Duration::from_secs(40));
}

#[test]
fn no_descriptor_passes_either_way_and_the_server_sees_who_called() {
    let ran = script(
        r#"
        serve serve_descriptors $D/s
        run --quiet --host-socket $D/s:/run/s -- python3 /tmp/p crossing /run/s
        wait $SERVER
        cat $D/log
        "#,
    );
    ran.exits(0).says("from the host and more 0 came, closed\n");
    ran.says("up\npeer is me\nfrom inside and more 0 came, closed\n");
}

#[test]
fn an_answer_is_whole_though_the_server_closed_before_it_had_heard_all() {
    // The one talks until that fails and reads only then; the other only listens.
    let ran = script(
        r#"
        serve abrupt $D/s 280000
        echo "direct: $(python3 $P listen $D/s)"
        for way in upload listen; do
            run --quiet --events $D/events-$way --host-socket $D/s:/run/s -- python3 /tmp/p $way /run/s
            grep -o '"by":"[a-z_]*"' $D/events-$way
            grep -o '"bytes_in":[0-9]*' $D/events-$way
        done
        "#,
    );
    let told = "\"by\":\"remote_reset\"\n\"bytes_in\":280000\n";
    ran.exits(0).says("direct: came 280000 reset\n");
    // Which of writing and reading is told of the reset is a question of who is first.
    let said = ran.stdout().replace("came 280000 reset\n", "came 280000 end\n");
    assert!(said.contains(&format!("came 280000 end\n{told}came 280000 end\n{told}")), "{ran}");
}

#[test]
fn a_server_hears_all_though_the_client_closed_before_it_had_heard_all() {
    let ran = script(
        r#"
        mkfifo $D/hold $D/in
        python3 $P late $D/s < $D/hold > $D/log & SERVER=$!
        exec 5> $D/hold
        until_ grep -q up $D/log
        run --quiet --events $D/events --host-socket $D/s:/run/s -- sh -c 'python3 /tmp/p deaf /run/s 280000; cat' < $D/in > $D/out 5>&- & RUN=$!
        exec 3> $D/in
        until_ grep -q closed $D/out
        exec 5>&-
        wait $SERVER
        exec 3>&-
        wait $RUN
        cat $D/log
        grep -o '"bytes_out":[0-9]*,"bytes_in":[0-9]*' $D/events
        "#,
    );
    ran.exits(0).says("came 280000 end\n\"bytes_out\":280000,\"bytes_in\":5\n");
}

#[test]
fn over_tcp_what_came_before_a_reset_is_whole_for_who_listens() {
    for family in Family::BOTH {
        let (host, port) = (family.host(), if family == Family::V4 { 21811 } else { 21812 });
        let ran = script(&format!(
            r#"
            serve abrupt tcp:{host}:{port} 600000
            run --quiet --events $D/events --net all -- python3 /tmp/p listen tcp:{host}:{port}
            run --quiet --net all -- python3 /tmp/p upload tcp:{host}:{port}
            grep -o '"by":"[a-z_]*"' $D/events
            "#
        ));
        ran.exits(0).says("came 600000 reset\n").says("\"by\":\"remote_reset\"");
        // Who reads only when writing fails has what its kernel has got by then, as without a relay.
        let came: Vec<u64> = ran.stdout().lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect();
        assert!(matches!(came[..], [600_000, 1..=600_000]), "{ran}");
    }
}

#[test]
fn an_ssh_agent_of_the_hosts_is_asked_from_inside() {
    let ran = script(
        r#"
        ssh-keygen -q -t ed25519 -N '' -C of-the-test -f $D/key
        ssh-agent -D -a $D/agent > $D/log & until_ test -S $D/agent
        SSH_AUTH_SOCK=$D/agent ssh-add -q $D/key
        run --quiet --net-default deny --host-socket $D/agent:/run/agent -e SSH_AUTH_SOCK=/run/agent -- ssh-add -l
        "#,
    );
    ran.exits(0).says("of-the-test (ED25519)");
}

#[test]
fn curl_talks_to_nginx_on_a_socket_of_the_hosts() {
    let ran = script(
        r#"
        cat > $D/nginx.conf <<END
        daemon off; pid $D/pid; error_log stderr; events { }
        http { access_log off; client_body_temp_path $D/b; proxy_temp_path $D/p; fastcgi_temp_path $D/f; uwsgi_temp_path $D/u; scgi_temp_path $D/c;
        server { listen unix:$D/s; location / { return 200 'from the host\n'; } } }
END
        nginx -e stderr -c $D/nginx.conf & until_ test -S $D/s
        run --quiet --net-default deny --host-socket $D/s:/run/web -- curl -sS --unix-socket /run/web http://any/ http://any/
        "#,
    );
    ran.exits(0).says("from the host\nfrom the host\n");
}

#[test]
fn connections_end_with_the_sandbox_and_nothing_is_left() {
    // The last one: what is connected stays so when the dialer ends, and that is told.
    let without_dialer =
        "kill -KILL $(cat $D/dialer); until_ grep -q 'no new connections to them' $D/events; exec 3>&-";
    for end in ["exec 3>&-", "kill -KILL $RUN", without_dialer] {
        let ran = script(&format!(
            r#"
            serve serve $D/s
            mkfifo $D/in
            $C run --quiet --events $D/events --no-cwd --mount $P:/tmp/p:ro --host-socket $D/s:/run/s -- python3 /tmp/p wait /run/s < $D/in > $D/out & RUN=$!
            exec 3> $D/in
            until_ grep -q holding $D/out
            pgrep -P $RUN -x cofferdam-dial > $D/dialer
            {end}
            wait $RUN 2>/dev/null || true
            until_ grep -q 'after the end' $D/log
            gone() {{ ! kill -0 $(cat $D/dialer) 2>/dev/null; }}
            until_ gone
            echo gone
            "#
        ));
        ran.exits(0).says("gone");
    }
}

#[test]
fn a_session_has_its_sockets_and_a_run_with_a_network_of_its_own_does_not() {
    let ran = script(
        r#"
        serve serve $D/s
        $C create w --no-cwd --mount $P:/home/user/p:ro --host-socket $D/s:/tmp/d/s
        ask() { $C exec --quiet "$@" python3 /home/user/p ask /tmp/d/s; }
        echo "session $(ask w)"
        echo "none $(ask --no-net w)"
        echo "own $(ask --net public w)"
        # Neither it nor what it is in can be moved away, to be there for the other kind of run.
        $C exec w sh -c 'mv /tmp/d /tmp/e; mv /tmp/d/s /tmp/s; rm /tmp/d/s; ln /tmp/d/s /tmp/l; ls /tmp' 2>/dev/null || true
        echo "none $(ask --no-net w)"
        $C policy set w --net host
        $C stop w
        $C start w
        echo "again $(ask w)"
        $C exec --host-socket $D/s:/run/y w true
        $C policy set --host-socket $D/s:/run/y w || echo "refused $?"
        echo "{\"network\": {\"host_sockets\": [\"$D/s:/run/y\"]}}" > $D/more.json
        $C policy set w $D/more.json || echo "refused $?"
        $C policy set --no-net w || echo "refused $?"
        $C log w --json | grep -c socket.opened
        # The way there is no link that a program has left.
        $C create v --no-cwd --no-start --host-socket $D/s:/tmp/d/s
        ln -s /etc $XDG_STATE_HOME/cofferdam/sandboxes/v/tmp/d
        $C start v || echo "link $?"
        "#,
    );
    ran.exits(0).says("session hello\nnone ConnectionRefusedError\nown ConnectionRefusedError\nd\n");
    ran.says("s\nnone ConnectionRefusedError\nagain hello\nrefused 1\nrefused 1\nrefused 1\n1\nlink 125\n");
    ran.complains("host sockets are the session's")
        .complains("named when a sandbox is made")
        .complains("symbolic link inside");
    ran.complains("leads through the gateway");
}

#[test]
fn what_cannot_be_shared_starts_nothing() {
    let cases = [
        ("$D/none:/run/s", "there is no"),
        ("$D/none/none:/run/s", "there is no"),
        ("$P:/run/s", "is no socket"),
        ("$D:/run/s", "is no socket"),
        ("$D/datagram:/run/s", "is a datagram socket"),
        ("$D/left:/run/s", "nobody listens on"),
        ("@abstract:/run/s", "abstract"),
        ("$D/s:run/s", "is not absolute"),
        ("$D/s:/run/../s", "`..`"),
        ("$D/s", "is not a host socket"),
        ("$D/s:/tmp/p", "something is there already"),
        ("$D/s:/tmp", "something is there already"),
        ("$D/s:/usr/lib/s", "choose another path"),
        ("$D/s:/proc/s", "nothing can be made there"),
        (
            "$D/s:/run/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789abcd",
            "bytes",
        ),
        ("$D/s:/run/s --host-socket $D/s:/run/s", "takes the same place"),
        ("$D/s:/run/s --no-net", "leads through the gateway"),
        ("$D/w/s:/run/s --mount $D/w:/tmp/w", "put another socket in its place"),
        ("$XDG_STATE_HOME/cofferdam/sandboxes/w/control:/run/s", "where the sandboxes that stay are kept"),
    ];
    let runs: String = cases
        .iter()
        .map(|(socket, _)| format!("run --host-socket {socket} -- echo started || echo \"status $?\"\n"))
        .collect();
    let ran = script(&format!(
        r#"
        serve serve $D/s
        mkdir $D/w
        python3 $P serve $D/w/s > $D/log3 & until_ grep -q up $D/log3
        python3 $P others $D/datagram $D/left > $D/log2 & until_ grep -q up $D/log2
        $C create w --no-cwd
        {runs}
        "#
    ));
    ran.exits(0).never_says("started");
    assert_eq!(ran.stdout().matches("status 125\n").count(), cases.len(), "{ran}");
    for (socket, said) in cases {
        assert!(ran.stderr().contains(said), "{socket}: {said}\n{ran}");
    }
}
