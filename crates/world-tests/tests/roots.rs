//! Roots of virtual machines: a folder, images of disks, and a Debian with the programs that people use.
//!
//! A guest takes seconds to start, so each runs many cases; what is not as it should be it says itself.

use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, World};

/// Much longer than a guest takes to start on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(240);

/// `vm FLAGS... -- CMD...` runs a guest, and `case NAME WANTED SHELL` inside one says whether a piece of shell did what it should:
/// WANTED is a part of what it prints when it succeeds, or `FAILS`.
const TOOLS: &str = r#"
mkdir -p "$XDG_STATE_HOME/cofferdam"; cp -r "$STATE/cofferdam/vm" "$XDG_STATE_HOME/cofferdam/"
vm() { "$C" run --backend vm --no-cwd --no-record --quiet "$@"; }
case='case_() {
    before=$(date +%s); said=$(eval "$3" 2>&1); status=$?; took=$(($(date +%s) - before))
    if [ "$2" = FAILS ]; then [ $status != 0 ] && [ $took -le 20 ]; else [ $status = 0 ] && case "$said" in *"$2"*) true ;; *) false ;; esac; fi &&
        echo "as it should: $1" || echo "NOT SO: $1: status $status after $took s: $said"
}
'
"#;

/// Runs a script on a host that has guests with the kernel which is in `kernel`'s package, if that is there.
fn story(kernel: &str, script: &str) -> Option<Ran> {
    let world = World::with_guests();
    let state = match kernel {
        "" => world.path("home/.local/state"),
        variable => {
            let Some(package) = std::env::var_os(variable).filter(|package| !package.is_empty()) else {
                println!("SKIP: {variable} names no kernel");
                return None;
            };
            let state = format!("state-{variable}");
            if !world.path(&state).exists() {
                world.set_up_guests(&state, Some(package));
            }
            world.path(&state)
        }
    };
    let text = format!("STATE='{}'\n{TOOLS}\n{script}", state.display());
    Some(world.script_in(world.sandbox().patience(PATIENCE), &text))
}

#[track_caller]
fn is_as_it_should(ran: &Ran, cases: usize) {
    ran.exits(0).never_says("NOT SO");
    assert_eq!(ran.stdout().matches("as it should").count(), cases, "{ran}");
}

#[test]
fn a_folder_is_the_root_of_a_guest_and_stays_as_it_is() {
    let fetches: String = Family::BOTH
        .iter()
        .map(|family| {
            let flag = family.flag();
            format!(
                "case_ 'allowed {flag}' 'hello from the world' 'curl -sS {flag} http://web.wall-test.com/'
                case_ 'denied {flag}' FAILS 'curl -sS {flag} --max-time 10 http://{}/'\n",
                family.in_url(family.other())
            )
        })
        .collect();
    let script = format!(
        r#"
        umask 022; mkdir -p root/etc/ssl root/usr/own data; echo shown >data/file
        for name in bin sbin lib lib64; do ln -s usr/$name root/$name; done
        ln -s ../run/nowhere/resolv.conf root/etc/resolv.conf
        printf 'root:x:0:0:root:/root:/bin/sh\nits:x:77:77::/nowhere:/bin/false' >root/etc/passwd
        echo of the folder >root/kept; chmod 600 root/kept; echo program >root/etc/motd
        before=$(find root -printf '%p %m %s %l %T@\n' | sort; cat root/kept root/etc/*)
        vm --rootfs root --mount /usr:/usr:ro --mount data:/data --user 0 --allow web.wall-test.com:80 -- sh -c "$case"'
            case_ "programs of a mount" "of the folder" "cat /kept"
            case_ "an overlay" "overlay" "grep \" / \" /proc/mounts"
            case_ "what is written" "anew" "echo anew >/kept && rm /etc/motd && mkdir /made && cat /kept"
            case_ "no such place on the host" FAILS "ls /own"
            case_ "resolvers in place of a link" "nameserver" "test ! -L /etc/resolv.conf && cat /etc/resolv.conf"
            case_ "hosts" "localhost" "cat /etc/hosts"
            case_ "a user of its own" "its:x:77" "cat /etc/passwd"
            case_ "nobody else" "nobody:x:65534" "cat /etc/passwd"
            case_ "a place for temporary files" "drwxrwxrwt" "ls -ld /tmp"
            case_ "a read-only mount" FAILS "touch /usr/file"
            case_ "a mount" "shown" "cat /data/file && echo more >/data/new"
            {fetches}'
        [ "$before" = "$(find root -printf '%p %m %s %l %T@\n' | sort; cat root/kept root/etc/*)" ] && echo "the folder is as it was"
        cat data/new"#
    );
    let Some(ran) = story("COFFERDAM_TEST_KERNEL_9P", &script) else { return };
    is_as_it_should(&ran, 15);
    ran.says("the folder is as it was\nmore\n");
}

#[test]
fn a_kernel_without_9p_cannot_have_a_folder_as_root_and_says_what_can() {
    let Some(ran) = story("", "mkdir root; status=0; vm --no-net --rootfs root -- true || status=$?; echo status $status")
    else {
        return;
    };
    ran.exits(0).says("status 125").complains("a directory is a root by 9p").complains("mke2fs -t ext4 -d DIR");
}

/// Makes `disk`, with ext4 and busybox, `parts`, with partitions, and `parts.qcow2`, which is that.
const IMAGES: &str = r#"
    mkdir -p tree/bin; cp "$(PATH=$PATH:/usr/bin:/bin command -v busybox)" tree/bin/; ln -s busybox tree/bin/sh; echo of the image >tree/file
    mke2fs -q -F -t ext4 -d tree disk 16M
    cat >images.py <<'END'
import struct
disk = open("disk", "rb").read()
sector = bytearray(512)
sector[446:462] = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", 2048, len(disk) // 512)
sector[510:] = b"\x55\xaa"
parts = bytes(sector) + bytes(2047 * 512) + disk
open("parts", "wb").write(parts)
# A header, a table of refcounts and its one block, two tables of clusters, the clusters: as qcow2.txt has it.
cluster = 1 << 16
count = -(-len(parts) // cluster)
one = lambda at: at * cluster
header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, len(parts), 0, 1, one(3), one(1), 1, 0, 0, 0, 0, 0, 4, 104)
assert count <= cluster // 8
table = b"".join(struct.pack(">Q", one(5 + at) | 1 << 63) for at in range(count))
pad = lambda part: part + bytes(-len(part) % cluster)
refcounts = struct.pack(">H", 1) * (5 + count)
l1 = struct.pack(">Q", one(4) | 1 << 63)
whole = pad(header) + pad(struct.pack(">Q", one(2))) + pad(refcounts) + pad(l1) + pad(table) + pad(parts)
open("parts.qcow2", "wb").write(whole)
named = bytearray(whole)
name = b"/etc/hostname"
named[8:20] = struct.pack(">QI", 4096, len(name))
named[4096:4096 + len(name)] = name
open("backed.qcow2", "wb").write(named)
elsewhere = bytearray(whole)
elsewhere[72:80] = struct.pack(">Q", 4)
open("elsewhere.qcow2", "wb").write(elsewhere)
END
    python3 images.py
"#;

#[test]
fn an_image_is_the_root_of_several_guests_at_once_and_stays_as_it_is() {
    let script = format!(
        r#"{IMAGES}
        digest=$(cat disk parts.qcow2 | sha256sum)
        in="$case"'
            case_ "its file" "of the image" "busybox cat /file"
            case_ "what is written" "anew" "echo anew >/tmp/file && busybox cat /tmp/file"
            case_ "who it is" user "busybox grep :1000: /etc/passwd || busybox grep root: /etc/passwd && echo user"
            case_ "a full overlay" "No space left" "busybox dd if=/dev/zero of=/tmp/big bs=1M count=20; busybox rm -f /tmp/big"
            case_ "room again" "more" "echo more >/tmp/more && busybox cat /tmp/more"
            case_ "the disk itself is read-only" FAILS "echo x >/dev/vda"
            echo ready'
        in="busybox() {{ /bin/busybox \"\$@\"; }}; date() {{ busybox date \"\$@\"; }}; $in"
        set -- --no-net -e PATH=/bin --disk 8M
        mkfifo go
        "$C" run --backend vm --no-cwd --no-record --quiet "$@" --rootfs disk -- sh -c "$in; read -r _" <go >one & first=$!
        exec 9>go
        n=0; until grep -q ready one; do n=$((n + 1)); [ $n -lt 5000 ] || exit 97; sleep 0.02; done
        # While the first is there.
        vm "$@" --user 0 --rootfs disk -- sh -c "$in" >two
        exec 9>&-; wait $first || true
        vm "$@" --user 0 --rootfs parts.qcow2 -- sh -c "$in" >three
        cat one two three
        [ "$digest" = "$(cat disk parts.qcow2 | sha256sum)" ] && echo "the images are as they were""#
    );
    let Some(ran) = story("", &script) else { return };
    is_as_it_should(&ran, 18);
    ran.says("the images are as they were");
}

#[test]
fn what_is_no_root_is_refused_before_anything_starts() {
    let script = format!(
        r#"{IMAGES}
        refused() {{ status=0; vm --no-net "$@" -- true 2>said || status=$?; echo "$status: $(tr '\n' ' ' <said)"; }}
        refused --rootfs backed.qcow2
        refused --rootfs elsewhere.qcow2
        echo no image >text; refused --rootfs text
        mkfifo pipe; refused --rootfs pipe
        refused --rootfs absent
        refused --rootfs disk --disk 2G
        "$C" run --no-record --quiet --rootfs disk -- true 2>&1 || echo "namespaces: $?"
        "$C" run --no-record --quiet --rootfs tree --disk 1M -- true 2>&1 || echo "namespaces: $?""#
    );
    let Some(ran) = story("", &script) else { return };
    ran.exits(0).within(Duration::from_secs(60));
    for said in [
        "it is a qcow2 image on top of another file",
        "whose data is in another file",
        "neither a qcow2 image nor a raw one",
        "neither a directory nor an image",
        "--disk cannot be used with --backend vm",
        "is a root with --backend vm",
        "use it with --backend vm",
    ] {
        ran.says(said);
    }
    assert_eq!(ran.stdout().matches("125: ").count(), 6, "{ran}");
    assert_eq!(ran.stdout().matches("namespaces: 125").count(), 2, "{ran}");
}
