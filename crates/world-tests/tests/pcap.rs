//! `--pcap`: what is in the file, as tshark reads it, and what the user is told when something is not.

use cofferdam_world_tests::{Family, Ran, World};

/// A script on the host, with `pcap` for what reads the file and `$WEB` for a server that may be reached.
#[track_caller]
fn script(family: Family, text: &str) -> Ran {
    let world = World::shared();
    script_in(world, world.sandbox(), family, text)
}

#[track_caller]
fn script_in(world: &World, sandbox: cofferdam_world_tests::Sandbox<'_>, family: Family, text: &str) -> Ran {
    let (reader, web) = (world.path("files/pcap.py"), family.in_url(family.web()));
    let given = format!(
        "pcap() {{ python3 '{}' \"$@\"; }}; WEB={web} NAME={} SILENT={} PRIVATE={}",
        reader.display(),
        family.name(),
        family.in_url(family.silent()),
        family.in_url(family.inside())
    );
    world.script_in(sandbox, &format!("{given}\n{text}"))
}

#[test]
fn every_decision_stands_on_a_packet_of_its_flow() {
    for family in Family::BOTH {
        let ran = script(
            family,
            r#"
            $C run --quiet --ipv6 --deny evil.example --deny "$SILENT" --net-rule "allow@$NAME:tcp:443" --net-rule deny@evil.example \
                --allow "$WEB:80" --pcap out --events events -- bash -c '
                curl -s -m10 -o got -r 0-1048575 '$WEB'/files/big
                curl -s -m10 '$PRIVATE'/ '$SILENT'/
                getent hosts evil.example; getent hosts '$NAME'
                curl -sk -m10 https://'$NAME'/who
                curl -sk -m10 --connect-to other.example:443:'$NAME':443 https://other.example/
                echo x >/dev/udp/'${PRIVATE//[\[\]]/}'/9; ping -c1 -w2 '${PRIVATE//[\[\]]/}'
                curl -s -m10 '$WEB':80/nothing -o /dev/null'  >/dev/null || true
            pcap comments out events; pcap payload out got; pcap whole out
            "#,
        );
        ran.exits(0).says("\nwhole 1048576 ").says("\nend complete\n");
        ran.says("denied ").says("look-up of evil.example by rule deny@evil.example");
        ran.says(&format!("allowed {} by rule allow@{}:tcp:443, flow ", family.name(), family.name()));
        ran.says(" by default egress deny");
    }
}

#[test]
fn connections_into_the_sandbox_have_comments_too() {
    for family in Family::BOTH {
        let ran = script(
            family,
            r#"
            mkfifo said
            for bind in 127.0.0.1 [::1]; do
                $C run --ipv6 -p $bind:0:7 --pcap out --events events -- python3 -c '
import socket
ear = socket.create_server(("::", 7), family=socket.AF_INET6, dualstack_ipv6=True); print("up", flush=True)
peer, _ = ear.accept(); peer.sendall(b"hello"); peer.close()' >said 2>notes &
                read -r up <said
                port=$(sed -n 's/.*:\([0-9]*\) on this machine is .*/\1/p' notes)
                python3 -c 'import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2]))).recv(9))' ${bind//[\[\]]/} $port
                wait %%
                tshark -n -r out -Y 'tcp.flags.syn == 1 && tcp.flags.ack == 0' -T fields -e frame.packet_flags_direction -e frame.comment 2>/dev/null
            done
            "#,
        );
        ran.exits(0);
        assert_eq!(ran.stdout().matches("allowed by ").count(), 2, "{ran}");
    }
}

#[test]
fn the_file_is_whole_however_the_run_ends() {
    let fetch = "curl -s -m10 -o /dev/null $1/files/big -r 0-65535";
    for family in Family::BOTH {
        let ran = script(
            family,
            &format!(
                r#"
            ends() {{ pcap whole $1; tshark -n -r $1 -Y 'tcp.flags.reset == 1 || tcp.flags.fin == 1' 2>/dev/null | wc -l; }}
            run() {{ $C run --ipv6 --quiet --pcap "$@"; }}
            run killed -- bash -c '{fetch}; kill -9 $$' - $WEB || echo "status $?"
            ends killed
            run late --timeout 300ms -- bash -c '{fetch}; sleep 99' - $WEB || echo "status $?"
            ends late
            # A connection that is open at the end is reset.
            run open -- bash -c 'exec 5<>/dev/tcp/$1/7; kill -9 $$' - ${{WEB//[\[\]]/}} || echo "status $?"
            ends open
            $C run --ipv6 --quiet --pcap alone -- bash -c '{fetch}; echo up >up; sleep 99' - $WEB >/dev/null 2>&1 & pid=$!
            until_ test -e up; ours=$(pgrep -P $pid); pgrep -P $pid cofferdam-pcap >/dev/null && echo "there"
            # Nobody reaps here.
            gone() {{ ! ps -o stat= -p $(echo $ours | tr ' ' ,) | grep -qv Z; }}
            kill -9 $pid; wait $pid 2>/dev/null || true; until_ gone
            ends alone
            # One without an end of its own.
            $C run --ipv6 --pcap cut -- bash -c 'echo up >cut.up; until [ -e cut.go ]; do sleep 0.02; done; {fetch}; echo went on' - $WEB 2>said & pid=$!
            until_ test -e cut.up; kill -9 $(pgrep -P $pid cofferdam-pcap); echo go >cut.go; wait $pid
            sed -n 's/.*: cut is incomplete/incomplete/p' said
            "#
            ),
        );
        ran.exits(0);
        let said: Vec<_> = ran.stdout().lines().map(str::to_owned).collect();
        let wholes = said.iter().filter(|line| *line == "end complete").count();
        assert!(wholes == 4 && said.contains(&"there".to_owned()) && !said.contains(&"0".to_owned()), "{ran}");
        ran.says("status 137").says("status 124");
        ran.says("went on\nincomplete: whoever wrote the packets has not come to an end (it was ended by signal 9)\n");
    }
}

#[test]
fn a_file_that_takes_no_more_is_told_and_the_program_does_not_notice() {
    let world = World::shared();
    for family in Family::BOTH {
        let sandbox = world.sandbox().broken("mount -t tmpfs -o size=512k,mode=1777 tmpfs /mnt");
        let ran = script_in(
            world,
            sandbox,
            family,
            r#"
            fetch='curl -s -m20 $1/files/big -o /dev/null -w "%{http_code} %{size_download}\n" -r 0-8388607'
            $C run --ipv6 --pcap /mnt/out -- sh -c "$fetch" - $WEB 2>said
            grep -q '^cofferdam: .*/mnt/out lacks [0-9]* of [0-9]* packets: it could not be written: No space left on device' said || cat said
            # The last block may have had no room either; all that is there is whole.
            pcap whole /mnt/out | sed 's/^no end [0-9]*$/end missing/'
            (ulimit -f 300; $C run --ipv6 --pcap short -- sh -c "$fetch" - $WEB 2>said)
            grep -q 'short lacks [0-9]* of [0-9]* packets: it could not be written: File too large' said || cat said
            pcap whole short
            # Nobody reads the other end.
            mkfifo pipe; exec 4<>pipe
            $C run --ipv6 --pcap /dev/fd/3 -- sh -c "$fetch" - $WEB 3>pipe 2>said
            grep -q '/dev/fd/3 lacks [0-9]* of [0-9]* packets' said || cat said
            "#,
        );
        ran.exits(0);
        assert_eq!(ran.stdout(), "206 8388608\nend missing\n".repeat(2) + "206 8388608\n", "{ran}");
    }
}

#[test]
fn a_pipe_can_be_read_while_the_program_runs() {
    let ran = script(
        Family::V4,
        r#"
        mkfifo pipe; cat <pipe >out & reader=$!
        $C run --quiet --pcap /dev/fd/3 -- curl -s -m10 $WEB/files/big -r 0-1048575 -o got 3>pipe
        wait $reader; pcap whole out; pcap payload out got
        "#,
    );
    ran.exits(0).says("end complete\nwhole 1048576 ");
}

#[test]
fn what_cannot_be_captured_is_refused_before_the_start() {
    let ran = script(
        Family::V4,
        r#"
        refused() { $C "$@" -- touch started 2>said && echo "no refusal of $*"; [ $? != 125 ] || true; [ ! -e started ] || echo "started: $*"; head -1 said; }
        ln -s /tmp/elsewhere link; mkdir closed; chmod 555 closed
        refused run --pcap missing/out
        refused run --pcap link
        refused run --pcap closed
        refused run --pcap /dev/full
        refused run --pcap -
        refused run --pcap out --no-net
        refused run --pcap out --network-mode blocked
        $C create s --no-cwd
        refused exec --pcap out s
        refused exec --pcap out --no-net s
        [ ! -e out ] || echo "out is there"
        $C exec --quiet --pcap out --allow $WEB:80 s -- curl -s -m10 $WEB/who
        pcap whole out; tshark -n -r out -T fields -e frame.comment 2>/dev/null | grep -c 'allowed by rule'
        "#,
    );
    ran.exits(0).never_says("no refusal").never_says("started").never_says("out is there");
    for text in [
        "cannot write missing/out: No such file",
        "cannot write link: it is a symbolic link",
        "cannot write closed: it is a directory",
        "the capture of packets could not write its file: No space left on device",
        "--pcap -: standard output is the program's",
        "there is no network whose packets could be captured",
        "this run would share the session's network",
        "end complete\n1\n",
    ] {
        ran.says(text);
    }
    assert_eq!(ran.stdout().matches("there is no network whose").count(), 3, "{ran}");
}
