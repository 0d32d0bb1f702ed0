//! Roots of virtual machines: a folder, images of disks, and a Debian with the programs that people use.
//!
//! A guest takes seconds to start, so each runs many cases; what is not as it should be it says itself.

use std::fmt::Write as _;
use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, World, skip};

/// The image of a Debian root, which `tests/debian-root` makes.
const DEBIAN: &str = "COFFERDAM_TEST_ROOT";

/// Much longer than a guest takes for all of this on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(480);

/// `vm FLAGS... -- CMD...` runs a guest, and `case NAME WANTED SHELL` inside one says whether a piece of shell did what it should:
/// WANTED is a part of what it prints when it succeeds, or `FAILS`: within a minute, and what waits for an answer that does not come waits longer.
const TOOLS: &str = r#"
mkdir -p "$XDG_STATE_HOME/cofferdam"; cp -r "$STATE/cofferdam/vm" "$XDG_STATE_HOME/cofferdam/"
vm() { "$C" run --backend vm --no-cwd --no-record --quiet "$@"; }
case='CASES'
"#;

/// See [`TOOLS`].
const CASES_ARE: &str = r#"case_() {
    read -r before _ </proc/uptime; said=$(eval "$3" 2>&1); status=$?; read -r now _ </proc/uptime
    took=$((${now%.*} - ${before%.*}))
    if [ "$2" = FAILS ]; then [ $status != 0 ] && [ $took -le 60 ]; else [ $status = 0 ] && case "$said" in *"$2"*) true ;; *) false ;; esac; fi &&
        echo "as it should: $1 ($took s)" || echo "NOT SO: $1: status $status after $took s: $said"
}"#;

/// Runs a script on a host that has guests with the kernel which is in `kernel`'s package, if that is there.
fn story(kernel: &str, script: &str) -> Option<Ran> {
    let world = World::with_guests();
    let state = match kernel {
        "" => world.path("home/.local/state"),
        variable => {
            let Some(package) = std::env::var_os(variable).filter(|package| !package.is_empty()) else {
                skip(&format!("{variable} names no kernel"));
                return None;
            };
            let state = format!("state-{variable}");
            if !world.path(&state).exists() {
                world.set_up_guests(&state, Some(package));
            }
            world.path(&state)
        }
    };
    let tools = TOOLS.replace("CASES", CASES_ARE);
    let text = format!("STATE='{}'\n{tools}\n{script}", state.display());
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
                r#"case_ "allowed {flag}" "hello from the world" "curl -sS {flag} http://web.wall-test.com/"
                case_ "denied {flag}" FAILS "curl -sS {flag} http://{}/"
                "#,
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
        before=$(find root -printf '%p %m %s %l %T@\n' | sort; cat root/kept root/etc/passwd root/etc/motd)
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
        [ "$before" = "$(find root -printf '%p %m %s %l %T@\n' | sort; cat root/kept root/etc/passwd root/etc/motd)" ] && echo "the folder is as it was"
        cat data/new
        # An image is one with this kernel as well, whose ext4 and the sums that it wants are modules.
        {IMAGES}
        vm --no-net -e PATH=/bin --rootfs disk -- sh -c "busybox cat /file && busybox grep ' / ' /proc/mounts""#
    );
    let Some(ran) = story("COFFERDAM_TEST_KERNEL_9P", &script) else { return };
    is_as_it_should(&ran, 15);
    ran.says("the folder is as it was\nmore\n").says("of the image\noverlay / overlay ");
}

#[test]
fn a_kernel_without_9p_cannot_have_a_folder_as_root_and_says_what_can() {
    let Some(ran) =
        story("", "mkdir root; status=0; vm --no-net --rootfs root -- true || status=$?; echo status $status")
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
        in="busybox() {{ /bin/busybox \"\$@\"; }}; $in"
        set -- --no-net -e PATH=/bin --disk 8M
        mkfifo go
        "$C" run --backend vm --no-cwd --no-record --quiet "$@" --rootfs disk -- sh -c "$in; read -r _" <go >one & first=$!
        exec 9>go
        n=0; until grep -q ready one; do n=$((n + 1)); [ $n -lt 5000 ] || exit 97; sleep 0.02; done
        # While the first is there.
        vm "$@" --user 0 --rootfs disk -- sh -c "$in" >two
        exec 9>&-; wait $first || true
        status=0
        "$C" run --backend vm --no-cwd --no-record "$@" --user 0 --rootfs parts.qcow2 -- \
            sh -c "$in; busybox dd if=/dev/zero of=/tmp/big bs=1M count=20 2>/dev/null; exit 3" >three 2>said || status=$?
        echo "at the end: $status $(grep -c "the guest.s disk was full: 8192 KiB are all" said)"
        cat one two three
        [ "$digest" = "$(cat disk parts.qcow2 | sha256sum)" ] && echo "the images are as they were""#
    );
    let Some(ran) = story("", &script) else { return };
    is_as_it_should(&ran, 18);
    ran.says("at the end: 3 1\n").says("the images are as they were");
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

#[test]
fn debian_in_a_guest_does_what_people_do_with_it() {
    let Some(image) = std::env::var_os(DEBIAN).filter(|image| !image.is_empty()) else {
        skip(&format!("{DEBIAN} names no image of a Debian root"));
        return;
    };
    let mut cases = String::new();
    for family in Family::BOTH {
        let (flag, web, other, inside) =
            (family.flag(), family.in_url(family.web()), family.in_url(family.other()), family.in_url(family.inside()));
        let (iperf, git) = (family.web(), "https://git.wall-test.com/git/project.git");
        // A String takes everything.
        let _ = write!(
            cases,
            r#"
            case_ "curl {flag}" "hello from the world" "curl -sS {flag} --cacert /ca.pem https://web.wall-test.com/"
            case_ "curl {flag} to what is denied" FAILS "curl -sS http://{other}/"
            case_ "curl {flag} to a private address" FAILS "curl -sS http://{inside}/"
            case_ "git {flag}" "hello from the world" "git -c http.sslCAInfo=/ca.pem clone -q {flag} {git} /copy{flag} && cat /copy{flag}/README"
            case_ "pip {flag}" "hello from a wheel" "python3 -m pip install -q --disable-pip-version-check --no-cache-dir --cert /ca.pem --target /site{flag} --index-url https://{web}/simple/ wallpkg && PYTHONPATH=/site{flag} python3 -c \"import wallpkg; print(wallpkg.GREETING)\""
            case_ "iperf3 {flag}" "receiver" "iperf3 {flag} -c {iperf} -t 1"
            "#
        );
    }
    let script = format!(
        r#"
        # A mirror with one package, flat.
        mkdir -p "$WORLD/www/files/debian" package/DEBIAN package/opt
        printf 'Package: wallpkg\nVersion: 1\nArchitecture: all\nMaintainer: W <w@wall-test.com>\nDescription: of the mirror\n' >package/DEBIAN/control
        echo hello from a package >package/opt/wallpkg
        dpkg-deb --root-owner-group -b package "$WORLD/www/files/debian/wallpkg.deb" >/dev/null
        (cd "$WORLD/www/files/debian"; cat "$OLDPWD/package/DEBIAN/control"
            echo "Filename: ./wallpkg.deb"; echo "Size: $(stat -c %s wallpkg.deb)"; echo "SHA256: $(sha256sum wallpkg.deb | cut -d ' ' -f 1)") >packages
        cp packages "$WORLD/www/files/debian/Packages"
        cat >inside <<'END'
            {CASES_ARE}
            cat >/ca.pem
            case_ "the same system" "bookworm" "cat /etc/os-release"
            {cases}
            echo "deb [trusted=yes] http://web.wall-test.com/files/debian ./" >/etc/apt/sources.list; rm -f /etc/apt/sources.list.d/*
            case_ "apt" "hello from a package" "apt-get -qq update && apt-get -qqy install wallpkg && cat /opt/wallpkg"
            case_ "PostgreSQL" "42" "pg_ctlcluster \$(pg_lsclusters -h | cut -c1-2) main start && su postgres -c \"psql -Atc \\\"select 6*7\\\"\""
            # What several write to a directory of the host, with calls and through memory, is what they read there.
            fio() {{ command fio --directory=/work --rw=randrw --bs=4k --fallocate=none --verify=crc32c --verify_fatal=1 --verify_state_save=0 --group_reporting "$@"; }}
            case_ "fio with calls" "err= 0" "fio --name=calls --ioengine=psync --numjobs=3 --size=256k"
            case_ "fio through memory" "err= 0" "fio --name=memory --ioengine=mmap --numjobs=2 --size=256k"
            echo "hello from the guest" >/var/www/html/index.html
            nginx && echo ready
            sleep 1000
END
        mkdir work
        # Its input is the authority that the world's servers are certified by.
        began=$(date +%s%N)
        "$C" run --backend vm --no-cwd --quiet --no-record --user 0 --memory 2047M --rootfs "$IMAGE" --mount "$PWD/work:/work" --allow web.wall-test.com --allow git.wall-test.com \
            --allow {v4} --allow '[{v6}]' -p 23180:80 -p '[::1]:23180:80' \
            -- bash -c "echo first; $(cat inside)" <ca.pem >said 2>errors & run=$!
        n=0; until grep -qs first said; do n=$((n + 1)); [ $n -lt 5000 ] && kill -0 $run || {{ cat errors; exit 97; }}; sleep 0.02; done
        # What others do on this machine is not in the time that QEMU computes, in ticks of 10 ms.
        computed=$(awk '{{ print ($14 + $15) * 10 }}' "/proc/$(pgrep -f '[-]m 2047M')/stat")
        echo "boot to first exec: $((($(date +%s%N) - began) / 1000000)) ms, of which QEMU computed $computed ms"
        n=0; until grep -q ready said; do n=$((n + 1)); [ $n -lt 20000 ] && kill -0 $run || {{ cat said errors; exit 98; }}; sleep 0.02; done
        cat said
        for address in 127.0.0.1 '[::1]'; do curl -sS --retry 5 --retry-all-errors "http://$address:23180/"; done
        kill $run; wait $run || true
        [ "$(stat -c %s work/* | sort | uniq -c | tr -s ' ')" = " 5 262144" ] || echo "NOT SO: $(ls -l work)""#,
        v4 = Family::V4.web(),
        v6 = Family::V6.web(),
    );
    let script = script.replace("$IMAGE", &image.to_string_lossy());
    let Some(ran) = story("", &script) else { return };
    is_as_it_should(&ran, 17);
    assert_eq!(ran.stdout().matches("hello from the guest").count(), 2, "{ran}");
    let said = ran.stdout();
    let line = said.lines().find(|line| line.starts_with("boot to first exec")).expect("it was timed");
    println!("Debian, {line}\n{said}");
    let computed: u64 =
        line.rsplit(' ').nth(1).and_then(|number| number.parse().ok()).expect("a number of milliseconds");
    assert!(computed < 8000, "{line}");
}
