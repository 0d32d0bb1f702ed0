//! Directories of the host in a virtual machine: over the guest's network, and by 9p where it has none.
//!
//! A guest takes seconds to start, so one goes through many cases; each says what it is at, and what came instead.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use cofferdam_world_tests::{Ran, World, skip};

/// Much longer than a guest takes to start on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(240);

/// In a guest and on the host: a case that is to succeed, and one that is to fail.
const CASES: &str = r#"
must() { case=$1; shift; if said=$("$@" 2>&1); then echo "as it should: $case"; else echo "NOT SO: $case: $said"; fi; }
never() { case=$1; shift; if said=$("$@" 2>&1); then echo "NOT SO: $case: $said"; else echo "as it should: $case"; fi; }
is() { [ "$1" = "$2" ] || { echo "$1 is not $2"; false; }; }
upto() { n=0; until "$@"; do n=$((n + 1)); [ $n -lt 5000 ] || return 1; sleep 0.02; done; }
has() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }
# One says a number, the other answers with it: each sees what the other writes.
speak() { for i in 1 2 3; do echo $i >.$1 && mv .$1 $1 && upto has $2 $i || return 1; done; }
answer() { for i in 1 2 3; do upto has $2 $i && echo $i >.$1 && mv .$1 $1 || return 1; done; }
# Every other piece of one file: both write at once.
pieces() { i=$1; while [ $i -lt 40 ]; do printf "%04095d\n" $1 | dd of=both bs=4096 seek=$i conv=notrunc 2>/dev/null || return 1; i=$((i + 2)); done; }
"#;

/// What every guest is to find in the current directory and `/data`, whichever way it has them. `$1` is the directory's path.
const INSIDE: &str = r#"
# Of the guest's own where there are others: those that are mounted take longer to start.
PATH=/bin:$PATH
must "it starts in the directory" is "$PWD" "$1"
must "a file of the host" has file here
must "a new file" sh -c 'echo inside >new && mkdir d && mv file d/moved && ln -s d l && chmod 600 new && rm key'
must "whose they are" is "$(stat -c %u:%g new d l d/moved | sort -u)" "$(id -u):$(id -g)"
must "a link that is one" is "$(readlink l)" d
must "a mode that was changed" is "$(stat -c %a new)" 600
must "a size beyond 4 GiB" is "$(stat -c %s big)" 5368709120
must "what is there" is "$(dd if=big bs=1M skip=5119 count=1 2>/dev/null | tail -c 4)" last
must "a write there" sh -c 'printf guest | dd of=big bs=4096 seek=1200000 conv=notrunc'
never "a link out by an absolute path" cat absolute
never "a link out by a relative path" cat relative
never "a link to a directory outside" cat directory/secret
never "a link to a file of the system" grep -q HOST-ONLY system
must "an exchange" answer guest host
must "a file that both write" pieces 1
touch done-inside
must "the other mount" has /data/file outside
for attempt in 1 2; do
    for try in "touch /data/x" "rm /data/file" "mv /data/file /data/y" "chmod 777 /data/file" "mkdir /data/d" "ln -s a /data/l" "truncate -s 0 /data/file"; do
        never "read-only: $try" $try
    done
    never "read-only: writing" sh -c 'echo more >>/data/file'
    # Root may take it for writable. The host does not.
    mount -o remount,rw /data 2>/dev/null
done
"#;

/// Before and after on the host. `$FLAGS` are those of `run`.
const OUTSIDE: &str = r#"
mkdir shown outside; echo outside >shown/file; echo secret >outside/secret; chmod 700 outside
mkdir p; mv key p/; cd p; echo here >file
truncate -s 5G big; printf last | dd of=big bs=1 seek=5368709116 conv=notrunc 2>/dev/null
ln -s "$PWD/../outside/secret" absolute; ln -s ../outside/secret relative; ln -s ../outside directory; ln -s /etc/hostname system
truncate -s 163840 both
$BEFORE
"$C" run --backend vm --no-record --quiet $FLAGS --mount ../shown:/data:ro -- sh -c "$CASES$INSIDE$MORE" in "$PWD" >../said 2>&1 & run=$!
must "the other end of the exchange" speak host guest
must "the other pieces" pieces 0
must "the guest has written its own" upto test -e done-inside
# What a guest has to be seen by while it runs.
$MEANWHILE
wait $run && status=0 || status=$?
cat ../said
must "the guest's exit status" is $status ${STATUS:-0}
must "what it left" is "$(cat new d/moved; readlink l; stat -c %a new)" "inside
here
d
600"
must "whose that is" is "$(stat -c %u:%g new d d/moved l | sort -u)" "$(id -u):$(id -g)"
must "every piece is whole" is "$(sort both | uniq -c | awk '{ print $1, substr($2, length($2)) }')" "20 0
20 1"
must "what it wrote beyond 4 GiB" is "$(dd if=big bs=4096 skip=1200000 count=1 2>/dev/null | head -c 5)" guest
must "nothing that was read-only" is "$(cd ../shown; ls -A; cat file; stat -c %a file)" "file
outside
644"
must "nothing outside" is "$(ls -A ../outside)" secret
never "what it removed" test -e key
"#;

#[track_caller]
fn run_cases(state: &str, flags: &str, (before, more): (&str, &str), meanwhile: &str) -> Ran {
    let world = World::with_guests();
    let sandbox = world.sandbox().patience(PATIENCE);
    let guests = world.path(state);
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let script = format!(
        "mkdir \"$XDG_STATE_HOME/cofferdam\"; cp -r {guests}/cofferdam/vm \"$XDG_STATE_HOME/cofferdam/\"; set +e; umask 022\n\
         FLAGS={}; CASES={}; INSIDE={}; MORE={}\n{CASES}{}",
        quoted(flags),
        quoted(CASES),
        quoted(INSIDE),
        quoted(more),
        OUTSIDE.replace("$BEFORE", before).replace("$MEANWHILE", meanwhile),
        guests = quoted(&guests.display().to_string()),
    );
    let ran = world.script_in(sandbox, &script);
    ran.exits(0).never_says("NOT SO").says("as it should: nothing that was read-only");
    ran
}

const STATE: &str = "home/.local/state";

/// As the user that is the default, and with nothing of a network but that.
#[test]
fn a_guest_has_its_directories_over_a_network_on_which_nothing_else_is_let_through() {
    let more = r#"
        # Programs of the host, from a mount as well.
        tree=$(git -C tree status --porcelain 2>&1) || echo "NOT SO: git: $tree"
        must "git sees what the host sees" is "$tree" "$(cat expected)"
        must "what make makes" make -s -C project
        must "is made" is "$(cat project/joined)" "FIRST
SECOND"
        never "and that is new enough" sh -c 'make -C project all | grep -v -e Nothing -e directory'
        must "one mount per directory" is "$(grep -c ' cifs ' /proc/mounts)" 5
        never "a password that everybody sees" grep -q 'pass' /proc/mounts
        never "the web" nc -w 3 192.0.2.80 80 </dev/null
        never "a name" nslookup web.wall-test.com
        never "another port of that address" nc -w 3 10.0.2.100 446 </dev/null
        never "the gateway by that port" sh -c 'nc -w 3 $(ip route | sed -n "s/default via \([^ ]*\).*/\1/p") 445 </dev/null'
        upto test -e looked
    "#;
    let meanwhile = r#"
        init=$(pgrep -x cofferdam-init -P $run); files=$(pgrep -x cofferdam-files -P "$init")
        must "one process for five mounts" is "$(echo "$files" | wc -w)" 1
        never "a port of the host" sh -c "ss -ltnH | grep ':445 '"
        never "a way to it from the host" timeout 3 bash -c 'exec 3<>/dev/tcp/10.0.2.100/445'
        must "no capability" is "$(sed -n 's/^CapEff:\t//p' /proc/$files/status)" 0000000000000000
        must "a filter" is "$(sed -n 's/^Seccomp:\t//p' /proc/$files/status)" 2
        touch looked
    "#;
    let flags = "--net mounts-only --mount /usr:/usr:ro --mount /usr/lib:/lib:ro --mount /usr/lib64:/lib64:ro";
    run_cases(STATE, flags, (TREE, more), meanwhile);
}

/// A repository of 10,000 files, of which some are not as they were, and a project of make.
const TREE: &str = r#"
mkdir tree project
(cd tree && git init -q . && git config core.checkStat minimal && for d in $(seq 100); do
    mkdir $d && (cd $d && for f in $(seq 100); do echo $d $f >$f; done)
done; git add . && git -c user.name=n -c user.email=e commit -qm all; echo changed >>7/7; rm 8/8; echo new >9/new; ln -sf x 10/10; chmod +x 11/11)
git -C tree status --porcelain >expected
printf 'all: joined\njoined: one.up two.up\n\tcat $^ >$@\n%%.up: %%\n\ttr a-z A-Z <$< >$@\n' >project/Makefile
echo first >project/one; echo second >project/two
"#;

/// Root there may do as it likes.
#[test]
fn what_root_in_a_guest_does_gains_it_nothing() {
    let more = r#"
        server='//10.0.2.100/share1 /mnt -o vers=3.1.1,ip=10.0.2.100,username=any'
        for password in password=wrong password= guest sec=none; do
            never "a session with $password" mount -t cifs $server,$password
        done
        # Far more than are served at a time, of those who say nothing.
        for n in $(seq 60); do sleep 1000 | nc 10.0.2.100 445 >/dev/null 2>&1 & done
        must "a file while others knock" has new inside
        must "a new one" sh -c 'echo more >another'
        killall sleep
    "#;
    run_cases(STATE, "--user 0", ("", more), "");
}

/// Each packet costs an emulated processor as much as tens of thousands of bytes. The server's address is one beyond the link, and the
/// gateway's own where the link has that one.
#[test]
fn what_a_guest_writes_goes_in_packets_that_are_larger_than_its_link_has_them() {
    let world = World::with_guests();
    let script = r#"
        set -e; cd /m; s=/sys/class/net/eth0/statistics
        [ "$(cat /sys/class/net/eth0/mtu)" = 1500 ]
        before=$(cat $s/tx_packets); dd if=/dev/zero of=w bs=1M count=16 conv=fsync 2>/dev/null; after=$(cat $s/tx_packets)
        echo "$((after - before)) packets"
        [ $((after - before)) -lt 1024 ] && [ "$(dd if=w bs=1M 2>/dev/null | wc -c)" = 16777216 ] && echo few
    "#;
    for link in ["", "--ipv4-pool 10.0.2.100/30"] {
        let shown = world.path("shown");
        fs::create_dir_all(&shown).unwrap();
        fs::set_permissions(&shown, Permissions::from_mode(0o777)).unwrap();
        let mount = format!("{}:/m", shown.display());
        let flags = format!("--backend vm --no-cwd --quiet --net mounts-only {link} --mount {mount}");
        let ran = world.sandbox().patience(PATIENCE).flags(&flags).run(&["sh", "-c", script]);
        ran.exits(0).says("few");
    }
}

#[test]
fn a_guest_without_a_network_has_its_directories_by_9p() {
    let Some(kernel) = std::env::var_os("COFFERDAM_TEST_KERNEL_9P").filter(|package| !package.is_empty()) else {
        skip("COFFERDAM_TEST_KERNEL_9P names no kernel with 9p");
        return;
    };
    World::with_guests().set_up_guests("state-9p", Some(kernel));
    run_cases("state-9p", "--no-net --user 0", ("", ""), "");
}

/// By programs that are installed, one for each. Root there may do as it likes, and goes on until one of them is killed.
#[test]
fn a_guest_without_a_network_has_its_directories_by_virtiofs_until_one_of_its_servers_ends() {
    let more = r#"
        tree=$(git -C tree status --porcelain 2>&1) || echo "NOT SO: git: $tree"
        must "git sees what the host sees" is "$tree" "$(cat expected)"
        must "one mount per directory" is "$(grep -c ' virtiofs ' /proc/mounts)" 5
        must "somebody else's file" sh -c 'mkdir -m 777 all && su -s /bin/sh nobody -c "echo theirs >all/f; mkdir all/g; ln -s f all/l"'
        must "whose that is" is "$(stat -c %u:%g all/f all/g all/l | sort -u)" 0:0
        must "links and names" sh -c 'ln all/f all/hard && mv all/hard all/ünï && test "$(cat all/ünï)" = theirs'
        must "memory that is the file's" git -C tree fsck
        never "a set-user-ID program for the host" sh -c 'cp /bin/busybox all/s && chmod 4755 all/s'
        never "a device" mknod all/d c 1 3
        mkdir -p /mnt; for tag in share5 root share99; do never "another device, $tag" mount -t virtiofs $tag /mnt; done
        touch finished; sleep 1000
    "#;
    let meanwhile = r#"
        must "the guest has finished" upto test -e finished
        init=$(pgrep -x cofferdam-init -P $run); servers=$(pgrep -x virtiofsd -P "$init")
        must "a process for each of five mounts" is "$(echo "$servers" | wc -w)" 5
        for server in $servers; do
            must "no capability" is "$(sed -n 's/^Cap\(Prm\|Eff\|Bnd\|Amb\):\t//p' /proc/$server/status | sort -u)" 0000000000000000
            must "nothing to be gained" is "$(sed -n 's/^NoNewPrivs:\t//p' /proc/$server/status)" 1
            must "a filter" is "$(sed -n 's/^Seccomp:\t//p' /proc/$server/status)" 2
        done
        must "whose that is as well" is "$(stat -c %u:%g all/f all/g all/l all/ünï | sort -u)" "$(id -u):$(id -g)"
        kill -9 $(echo "$servers" | head -n 1); STATUS=125
    "#;
    let flags = "--no-net --user 0 --mount-via virtiofs --mount /usr:/usr:ro --mount /usr/lib:/lib:ro --mount /usr/lib64:/lib64:ro";
    let ran = run_cases(STATE, flags, (TREE, more), meanwhile);
    ran.says("virtiofsd, which serves the guest's files, has ended: signal 9");
}

#[test]
fn a_kernel_without_9p_is_told_of_in_one_message() {
    let world = World::with_guests();
    let flags = "--backend vm --no-record --no-net";
    let ran = world.sandbox().patience(PATIENCE).flags(flags).run(&["true"]);
    ran.exits(125).complains("type 9p").complains("--no-cwd");
    let ran = world.sandbox().flags(flags).flags("--mount-via smb").run(&["true"]);
    ran.exits(125).complains("--mount-via smb cannot be used with --no-net");
    let ran = world.sandbox().flags("--mount-via smb").run(&["true"]);
    ran.exits(125).complains("--mount-via is for --backend vm");
}
