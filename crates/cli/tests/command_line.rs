//! What the command line says, to whom, and with which exit status. Nothing here starts a sandbox.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails is meant to panic")]

mod common;

use common::{cofferdam, finish, run, run_in};

/// Every way to ask for help.
const PAGES: [&[&str]; 35] = [
    &[],
    &["run"],
    &["create"],
    &["start"],
    &["exec"],
    &["stop"],
    &["rm"],
    &["ls"],
    &["inspect"],
    &["logs"],
    &["cp"],
    &["ports", "add"],
    &["ports", "rm"],
    &["ports", "ls"],
    &["log"],
    &["log", "rm"],
    &["ui"],
    &["why"],
    &["demo"],
    &["doctor"],
    &["policy", "check"],
    &["policy", "fmt"],
    &["policy", "subset"],
    &["policy", "diff"],
    &["policy", "set"],
    &["policy", "show"],
    &["policy", "explain"],
    &["policy", "test"],
    &["policy", "try"],
    &["learn"],
    &["top"],
    &["schema"],
    &["completions"],
    &["version"],
    &["vm", "setup"],
];

#[test]
fn help_says_this() {
    for page in PAGES {
        let name = if page.is_empty() { "help".to_owned() } else { format!("help-{}", page.join("-")) };
        let help = run(&[page, &["--help"]].concat());
        assert_eq!((help.status, help.stderr.as_str()), (0, ""), "{name}");
        insta::assert_snapshot!(name, help.stdout);
    }
}

#[test]
fn short_help_fits_a_screen() {
    for page in PAGES {
        let help = run(&[page, &["-h"]].concat());
        assert!(help.stdout.lines().count() <= 24, "{page:?} has {} lines", help.stdout.lines().count());
        assert!(help.stdout.lines().all(|line| line.chars().count() <= 80), "{page:?}: {}", help.stdout);
    }
}

#[test]
fn long_help_has_an_example_per_verb() {
    for page in PAGES.iter().filter(|page| !page.is_empty()) {
        let help = run(&[page, &["--help"][..]].concat());
        assert!(help.stdout.contains(&format!("  cofferdam {}", page.join(" "))), "{page:?}: {}", help.stdout);
    }
}

#[test]
fn hidden_verbs_stay_hidden() {
    assert!(!run(&["--help"]).stdout.contains("internal"));
}

#[test]
fn mistakes_in_flags_are_explained() {
    for (name, args) in [
        ("unknown-flag", &["run", "--alow", "x.y", "--", "true"][..]),
        ("unknown-verb", &["rnu"]),
        ("unknown-second-verb", &["ports", "sl"]),
        ("no-command", &["run"]),
        ("bad-size", &["run", "--memory", "5x", "--", "true"]),
        ("conflict", &["run", "--no-net", "--allow", "x.example", "--", "true"]),
        ("blocked-with-rules", &["run", "--network-mode", "blocked", "--allow", "[fd00::5]", "--", "true"]),
        ("blocked-with-ports", &["run", "--network-mode", "blocked", "-p", "8080:80", "--", "true"]),
        ("mode-with-net", &["run", "--network-mode", "open", "--net", "public", "--", "true"]),
        ("unknown-mode", &["run", "--network-mode", "opne", "--", "true"]),
        ("bad-rules", &["run", "--net-rule", "alow@x.example,deny@an", "--allow", "10.0.0.5/8", "--", "true"]),
        ("bad-profile", &["run", "--net", "pubic", "--", "true"]),
        ("bad-pool", &["run", "--ipv4-pool", "10.0.0.0/31", "--", "true"]),
        ("bad-variable", &["run", "-e", "NAME", "--", "true"]),
        ("bad-capability", &["run", "--cap-add", "FLY", "--", "true"]),
        ("no-mount-source", &["run", "--mount", "/no/such/file:/x", "--", "true"]),
        ("no-place-for-events", &["run", "--events", "/no/such/folder/events", "--", "true"]),
        ("pcap-without-network", &["run", "--no-cwd", "--no-net", "--pcap", "out.pcapng", "--", "true"]),
        ("pcap-to-stdout", &["run", "--no-cwd", "--pcap", "-", "--", "true"]),
        ("pcap-of-what-stays", &["run", "--detach", "--pcap", "out.pcapng", "--", "true"]),
        ("no-configuration", &["run", "--net-conf", "no-such-file.toml", "--", "true"]),
    ] {
        let output = run(args);
        assert_eq!(output.stdout, "", "{name}");
        assert_eq!(output.status, if args[0] == "run" { 125 } else { 2 }, "{name}");
        assert!(!output.stderr.contains('\u{1b}'), "colour without a terminal: {name}");
        insta::assert_snapshot!(format!("mistake-{name}"), output.stderr);
    }
}

/// Each mistake is found before anything is fetched, and leaves no machine.
#[test]
fn a_machine_that_cannot_be_set_up_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    // What is no program, what needs libraries as every program of a test does, and what is linked statically.
    let file = |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content).unwrap();
    file("text", b"#!/bin/sh\n");
    file("kernel", b"MZ");
    std::fs::copy(env!("CARGO_BIN_EXE_cofferdam"), dir.path().join("dynamic")).unwrap();
    let mut headers = b"\x7fELF\x02\x01\x01".to_vec();
    headers.resize(64, 0);
    headers[0x12] = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    file("static", &headers);
    std::fs::create_dir(dir.path().join("modules")).unwrap();
    for (name, flags) in [
        ("no-agent", "--agent nowhere"),
        ("agent-is-no-program", "--agent text"),
        ("agent-needs-libraries", "--agent dynamic"),
        ("no-kernel", "--agent static --kernel nowhere --busybox static"),
        ("no-package", "--agent static --from-deb nowhere.deb"),
        ("busybox-needs-libraries", "--agent static --kernel kernel --busybox dynamic"),
        ("no-modules", "--agent static --kernel kernel --busybox static --modules modules"),
    ] {
        let flags = flags.split(' ').map(str::to_owned);
        let args: Vec<String> = ["vm", "setup"].map(str::to_owned).into_iter().chain(flags).collect();
        let state = dir.path().join("state");
        let output = finish(cofferdam(&args).current_dir(dir.path()).env("XDG_STATE_HOME", &state), b"");
        assert_eq!((output.status, output.stdout.as_str()), (1, ""), "{name}");
        insta::assert_snapshot!(format!("vm-setup-{name}"), output.stderr);
        let left: Vec<_> = std::fs::read_dir(state.join("cofferdam/vm")).unwrap().collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
}

#[test]
fn what_follows_the_program_is_the_programs() {
    // The unknown flag comes before the program in the first and after it in the second.
    assert!(run(&["run", "--bogus", "x"]).stderr.contains("unexpected argument '--bogus'"));
    let output = run(&["run", "--cap-add", "FLY", "program", "--bogus", "--help"]);
    assert!(output.stderr.contains("--cap-add"), "{}", output.stderr);
}

#[test]
fn the_current_directory_must_be_a_project() {
    let home = tempfile::tempdir().unwrap();
    let output = finish(cofferdam(&["run", "--", "true"]).env("HOME", home.path()).current_dir(home.path()), b"");
    assert_eq!(output.status, 125);
    assert!(
        output.stderr.contains("holds the home directory") && output.stderr.contains("--no-cwd"),
        "{}",
        output.stderr
    );
    let output = finish(cofferdam(&["run", "--", "true"]).current_dir("/"), b"");
    assert_eq!(output.status, 125);
    assert!(output.stderr.contains("--no-cwd"), "{}", output.stderr);
}

#[test]
fn says_what_virtual_machines_lack_and_refuses_a_backend_that_there_is_not() {
    // There is no QEMU on this path, and nothing in the state directory.
    let output = finish(cofferdam(&["run", "--backend", "vm", "--no-cwd", "--", "true"]).env("PATH", "/nowhere"), b"");
    assert_eq!((output.status, output.stdout.as_str()), (125, ""));
    assert!(output.stderr.contains("apt-get install --no-install-recommends qemu-system"), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    let output = finish(cofferdam(&["demo", "--backend", "vm"]).env("PATH", "/nowhere"), b"");
    assert_eq!((output.status, output.stdout.as_str()), (1, ""));
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    let create = ["create", "--backend", "vm", "--no-cwd", "--no-start", "work"];
    let output = finish(cofferdam(&create).env("PATH", "/nowhere"), b"");
    assert_eq!(output.status, 125, "{}", output.stderr);
    assert!(output.stderr.contains("apt-get install --no-install-recommends qemu-system"), "{}", output.stderr);
    let output = run(&["run", "--backend", "jail", "--", "true"]);
    assert_eq!(output.status, 125, "{}", output.stderr);
    assert!(output.stderr.contains("[possible values: namespace, vm]"), "{}", output.stderr);
}

#[test]
fn shows_what_a_machine_is_started_with_and_refuses_rules_where_none_would_hold() {
    let args = [
        "vm", "args", "--arch", "aarch64", "--engine", "slirp", "--cpus", "2", "-p", "8080:80", "--kernel", "/k",
        "--initrd", "/i i",
    ];
    let output = run(&args);
    assert_eq!(output.status, 0, "{}", output.stderr);
    assert!(output.stdout.starts_with("qemu-system-aarch64 -machine virt "), "{}", output.stdout);
    assert!(output.stdout.contains(" -initrd '/i i' "), "{}", output.stdout);
    let netdev =
        "-netdev user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:8080-:80 -device virtio-net-device,netdev=net0";
    assert!(output.stdout.contains(netdev), "{}", output.stdout);
    let words: Vec<String> = serde_json::from_str(&run(&[&args[..], &["--json"]].concat()).stdout).unwrap();
    assert_eq!(words[0], "qemu-system-aarch64");
    assert!(words.contains(&"/i i".to_owned()));
    let output = run(&[&args[..], &["--allow", "example.org"]].concat());
    assert_eq!((output.status, output.stdout.as_str()), (125, ""));
    assert!(output.stderr.contains("no place for rules"), "{}", output.stderr);
}

#[test]
fn evidence_is_never_written_through_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    std::fs::write(&target, "mine").unwrap();
    std::os::unix::fs::symlink(&target, dir.path().join("events")).unwrap();
    let output = run_in(dir.path(), &["run", "--events", "events", "--", "true"]);
    assert_eq!(output.status, 125);
    assert!(output.stderr.contains("symbolic link"), "{}", output.stderr);
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "mine");
}

/// What an earlier run may have left in the current directory: links out of it, in the middle and at the end of a path.
#[test]
fn links_that_a_program_may_have_left_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (project, secret) = (dir.path().join("project"), dir.path().join("secret"));
    std::fs::create_dir_all(project.join("rootfs")).unwrap();
    std::fs::create_dir_all(secret.join("deeper")).unwrap();
    std::os::unix::fs::symlink(&secret, project.join("out")).unwrap();
    let refused = |args: &[&str]| {
        for flags in [&["run", "--no-net"][..], &["run", "--no-net", "--no-cwd"]] {
            let output = run_in(&project, &[flags, args, &["--", "true"]].concat());
            assert_eq!(output.status, 125, "{args:?}: {}", output.stderr);
            assert!(output.stderr.contains("/project/out is a symbolic link beneath"), "{args:?}: {}", output.stderr);
            assert_eq!(output.stderr.lines().count(), 1, "{args:?}: {}", output.stderr);
        }
    };
    for mount in ["./out:/x", "./out:/x:ro", "out/deeper:/x", "rootfs/../out/deeper:/x"] {
        refused(&["--mount", mount]);
    }
    refused(&["--rootfs", "out"]);
    refused(&["--events", "out/events.jsonl"]);
    refused(&["--json-summary", "out/deeper/../summary.json"]);
    assert_eq!(std::fs::read_dir(&secret).unwrap().count(), 1, "nothing was written");
    // A writable mount is as much the program's as the current directory.
    let mount = format!("{}:/x", project.display());
    let inner = format!("{}:/y", project.join("out").display());
    let output = run_in(&secret, &["run", "--no-net", "--mount", &inner, "--mount", &mount, "--", "true"]);
    assert_eq!(output.status, 125, "{}", output.stderr);
    // A link of the user's own, elsewhere, is followed.
    std::os::unix::fs::symlink(&secret, dir.path().join("mine")).unwrap();
    let mine = format!("{}:/x:ro", dir.path().join("mine").display());
    let output = run_in(&project, &["run", "--no-net", "--mount", &mine, "--", "ls", "/x"]);
    assert_eq!((output.status, output.stdout.as_str()), (0, "deeper\n"), "{}", output.stderr);
}

#[test]
fn evidence_goes_to_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    for (name, kind) in [("fifo", "a FIFO"), ("socket", "a socket"), (".", "a directory")] {
        for flag in ["--events", "--json-summary"] {
            let output = run_in(dir.path(), &["run", "--no-net", flag, name, "--", "true"]);
            assert_eq!(output.status, 125, "{name}");
            let said = format!(
                "cofferdam: error: cannot write {name}: it is {kind} and not a regular file; name a file, or - for standard output\n"
            );
            assert_eq!(output.stderr, said);
        }
    }
    let output = run_in(dir.path(), &["run", "--no-net", "--events", "/dev/stdout", "--", "true"]);
    assert!(output.stdout.contains("sandbox.stopped"), "{}", output.stderr);
}

#[test]
fn control_characters_of_arguments_do_not_reach_the_terminal() {
    let output = run(&["run", "--mount", "/no/\u{1b}]52;c;eA==\u{7}:/x", "--", "true"]);
    assert!(output.stderr.contains("\\u{1b}]52"), "{:?}", output.stderr);
    let output = run(&["policy", "fmt", "allow@\u{1b}[2J"]);
    assert!(!output.stderr.contains('\u{1b}'), "{:?}", output.stderr);
}

#[test]
fn policy_check_finds_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("good.toml", "[network]\nrules = [\"deny@any:tcp:25\", \"deny@10.0.0.1:tcp:25\"]\n");
    write("bad.toml", "[network]\npresett = \"public-only\"\n");
    write("rules.toml", "[network]\nrules = [\"alow@x.example\", \"deny@any:tcp:99999\"]\n");
    let good = run_in(dir.path(), &["policy", "check", "good.toml"]);
    assert_eq!(good.status, 0, "{}", good.stderr);
    insta::assert_snapshot!("check-good", format!("{}{}", good.stdout, good.stderr));
    for (name, file) in [("check-bad", "bad.toml"), ("check-rules", "rules.toml"), ("check-missing", "missing.toml")] {
        let bad = run_in(dir.path(), &["policy", "check", file]);
        assert_eq!((bad.status, bad.stdout.as_str()), (1, ""), "{file}");
        insta::assert_snapshot!(name, bad.stderr);
    }
}

#[test]
fn a_policy_is_explained_tested_and_tried() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "p.toml",
        "[network]\ndefault_egress = \"deny\"\nrules = [\"deny@any:tcp:25\", \"allow@*.example.org\", \"allow@10.0.0.0/8:tcp:5432\", \"allow@[fd00::/8]:tcp:5432\"]\n",
    );
    write(
        "in.toml",
        "[network]\ndefault_ingress = \"deny\"\nrules = [\"allow:ingress@10.0.0.0/8:tcp:8080\", \"allow:ingress@[fd00::/8]:tcp:8080\"]\n",
    );
    write(
        "in.txt",
        "allow ingress 10.0.0.5:8080\nallow ingress [fd00::5]:8080\ndeny ingress [2001:db8::5]\nallow ingress [fd00::5]:53/udp\ndeny ingress 10.0.0.5\n",
    );
    write(
        "in-rows.toml",
        "allow = [\"ingress 10.0.0.5:8080\"]\ndeny = [\"ingress 10.0.0.5:8081\", \"ingress [2001:db8::5]:8080\"]\n",
    );
    write("in-bad.txt", "allow ingress\nallow ingres 10.0.0.5\nallow ingress 10.0.0.5/icmp\n");
    write(
        "good.txt",
        "# rows\nallow www.example.org:443\nallow [fd00::5]:5432\ndeny 169.254.169.254\ndeny [fd00:ec2::254]\ndeny example.org:25\n",
    );
    write("fails.txt", "allow 10.0.0.5\ndeny www.example.org:443\n");
    write("bad.txt", "allow example.org:443\nalow example.org\ndeny example.org:htps\n");
    write("bad.toml", "allow = [\"example.org:443\"]\ndeny = [\"https://example.net/\"]\n");
    let event = |body: &str| format!("{{\"v\":1,\"time\":\"\",\"mono_ns\":0,\"source\":\"gateway\",{body}}}\n");
    let flow = |number: u32, remote: &str| {
        event(&format!(
            "\"type\":\"flow.opened\",\"flow\":{number},\"direction\":\"egress\",\"protocol\":\"tcp\",\"guest\":\"172.16.0.2:4000\",\"remote\":\"{remote}\",\"group\":\"public\",\"names\":[],\"rule\":{{\"index\":1,\"text\":\"allow@public\"}}"
        ))
    };
    let events = [flow(1, "93.184.215.14:443"), flow(2, "93.184.215.14:443"), flow(3, "[2606:4700::1]:80")].concat();
    write("events.jsonl", &(events + "no event\n"));
    for (name, status, args) in [
        ("explain", 0, &["policy", "explain", "p.toml"][..]),
        (
            "explain-targets",
            0,
            &["policy", "explain", "p.toml", "www.example.org", "10.1.2.3:22", "smtp.example.org:25", "[fd00::5]:5432"],
        ),
        ("explain-json", 0, &["policy", "explain", "--json", "p.toml", "www.example.org:443"]),
        ("explain-bad-target", 1, &["policy", "explain", "p.toml", "www.example.org:https"]),
        ("test-good", 0, &["policy", "test", "p.toml", "good.txt"]),
        ("test-fails", 1, &["policy", "test", "p.toml", "fails.txt"]),
        ("test-ingress", 1, &["policy", "test", "in.toml", "in.txt"]),
        ("test-ingress-toml", 0, &["policy", "test", "in.toml", "in-rows.toml"]),
        ("test-ingress-bad", 2, &["policy", "test", "in.toml", "in-bad.txt"]),
        ("test-bad", 2, &["policy", "test", "p.toml", "bad.txt"]),
        ("test-bad-toml", 2, &["policy", "test", "p.toml", "bad.toml"]),
        ("test-no-table", 2, &["policy", "test", "p.toml", "no-such-table"]),
        ("try", 1, &["policy", "try", "p.toml", "--against", "events.jsonl"]),
        ("try-no-run", 2, &["policy", "try", "p.toml", "--against", "no-such-run"]),
        ("why-target", 0, &["why", "--net-conf", "p.toml", "example.net:443"]),
        ("why-flags", 0, &["why", "--allow", "example.net", "10.0.0.5:22/udp"]),
        ("learn-bad-group", 125, &["learn", "--net", "metadata", "--", "true"]),
        ("learn-no-merge", 125, &["learn", "--merge", "no-such.toml", "--", "true"]),
        ("learn-no-place", 125, &["learn", "-o", "/no/such/folder/p.toml", "--no-cwd", "--", "true"]),
    ] {
        let state = dir.path().join("state");
        let output = finish(cofferdam(args).env("XDG_STATE_HOME", &state).current_dir(dir.path()), b"");
        assert_eq!(output.status, status, "{name}: {}", output.stderr);
        insta::assert_snapshot!(format!("policy-{name}"), format!("{}{}", output.stdout, output.stderr));
    }
    let piped =
        finish(cofferdam(&["policy", "test", "p.toml"]).current_dir(dir.path()), b"allow www.example.org:443\n");
    assert_eq!((piped.status, piped.stdout.as_str()), (0, "stdin: 1 row holds\n"));
}

#[cfg(not(feature = "otlp"))]
#[test]
fn a_program_without_a_feature_says_how_to_build_one_with_it() {
    for verb in [&["run"][..], &["learn"]] {
        let args = [verb, &["--no-cwd", "--otlp", "http://localhost:4318", "--", "true"]].concat();
        let output = run_in(std::path::Path::new("/"), &args);
        assert_eq!((output.status, output.stdout.as_str()), (125, ""));
        assert!(output.stderr.contains("cargo build --release --features otlp"), "{}", output.stderr);
    }
}

#[test]
fn programs_are_told_why_nothing_was_done() {
    let state = tempfile::tempdir().unwrap();
    let ask = |args: &[&str]| finish(cofferdam(args).env("XDG_STATE_HOME", state.path()).current_dir("/tmp"), b"{}");
    for (args, status) in [
        (&["stop", "--json", "none"][..], 1),
        (&["rm", "--json", "none"], 1),
        (&["inspect", "--json", "none"], 1),
        (&["ports", "ls", "--json", "none"], 1),
        (&["policy", "set", "--json", "none", "-"], 1),
        (&["start", "--json", "none"], 125),
        (&["exec", "--json", "none", "true"], 125),
    ] {
        let output = ask(args);
        let said: serde_json::Value = json(&output, status);
        let said = if said.is_array() { &said[0] } else { &said };
        assert_eq!((&said["kind"], &said["exit_status"]), (&"absent".into(), &status.into()), "{args:?}");
        assert!(said["error"].as_str().unwrap().contains("no sandbox named none"), "{args:?}: {said}");
    }
    // Where stdout may be an archive, it is said on stderr.
    let copied = ask(&["cp", "--json", "none:x", "-"]);
    assert_eq!((copied.status, copied.stdout.as_str()), (1, ""));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&copied.stderr).unwrap()["kind"], "absent");
    assert_eq!(finish(&mut cofferdam(&["policy", "check", "-"]), br#"{"preset": "none"}"#).status, 0);
}

#[test]
fn what_is_not_recorded_is_said_to_be() {
    let state = tempfile::tempdir().unwrap();
    let ask = |args: &[&str]| finish(cofferdam(args).env("XDG_STATE_HOME", state.path()).current_dir("/tmp"), b"");
    for (args, said) in [
        (&["log", "last"][..], "nothing is recorded yet"),
        (&["log", "--denied"], "nothing is recorded yet"),
        (&["log", "none"], "there is no record of a run \"none\""),
        (&["log", "--follow", "\u{1b}[2J"], "there is no record of a run \"\\u{1b}[2J\""),
        (&["log", "rm", "../sandboxes"], "there is no record of a run \"../sandboxes\""),
        (&["why", "7k"], "no decision 7k is recorded, in 0 runs"),
    ] {
        let output = ask(args);
        assert_eq!((output.status, output.stdout.as_str()), (1, ""), "{args:?}");
        assert!(output.stderr.contains(said) && output.stderr.lines().count() == 1, "{args:?}: {}", output.stderr);
    }
    assert_eq!(ask(&["log", "--json", "none"]).stdout.matches("\"kind\": \"absent\"").count(), 1);
    assert_eq!(json(&ask(&["log", "--json"]), 0), serde_json::json!([]));
    assert_eq!(json(&ask(&["log", "rm", "--json", "none"]), 1)[0]["run"], "none");
    assert_eq!(ask(&["log", "--since", "5m"]).stdout.lines().count(), 1);
    assert_eq!(ask(&["log", "rm", "--all"]).status, 0);
    for args in [
        &["log", "--since", "yesterday"][..],
        &["log", "--summary", "--denied"],
        &["log", "rm"],
        &["log", "rm", "--all", "x"],
    ] {
        assert_eq!(ask(args).status, 2, "{args:?}");
    }
    // Nothing was made by looking.
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
    let output = finish(cofferdam(&["log"]).env_remove("XDG_STATE_HOME").env("HOME", "relative"), b"");
    if !rustix::process::geteuid().is_root() {
        assert!(output.stderr.contains("there is no state directory: set HOME or XDG_STATE_HOME"), "{}", output.stderr);
    }
}

#[test]
fn a_report_is_written_where_it_was_asked_for_and_nothing_beside_it() {
    let state = tempfile::tempdir().unwrap();
    let run = |arguments: &str, input: &str| {
        let script = format!("exec {} exec {arguments} 3>&1 >/dev/null", env!("CARGO_BIN_EXE_cofferdam"));
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg(script).env("XDG_STATE_HOME", state.path()).env_remove("NO_COLOR");
        finish(&mut shell, input.as_bytes())
    };
    let absent = run("--report-fd 3 none true", "");
    assert_eq!((absent.status, absent.stderr.as_str()), (125, ""));
    let line: serde_json::Value = serde_json::from_str(&absent.stdout).unwrap();
    assert_eq!((&line["report"], &line["kind"], &line["v"]), (&"failed".into(), &"absent".into(), &1.into()));
    let bad = run("--report-fd 3 --spec - none", r#"{"command": ["true"], "network": {"rules": ["alow@any"]}}"#);
    let line: serde_json::Value = serde_json::from_str(&bad.stdout).unwrap();
    assert!(line["error"].as_str().unwrap().contains("unknown action"), "{line}");
    // Behind what a file has already.
    let file = state.path().join("reports");
    let script = format!("exec {} exec --report-fd 3 none true 3>>\"$0\"", env!("CARGO_BIN_EXE_cofferdam"));
    for _ in 0..2 {
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg(&script).arg(&file).env("XDG_STATE_HOME", state.path());
        assert_eq!(finish(&mut shell, b"").status, 125);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 2);
    assert_eq!(run("--report-fd 9 none true", "").status, 125);
    assert_eq!(run("--report-fd 1 none true", "").status, 125);
}

#[test]
fn a_specification_is_everything_and_goes_with_no_flag() {
    for args in [
        &["create", "--spec", "-", "--allow", "x.example", "s"][..],
        &["create", "--spec", "-", "--memory", "1G", "s"],
        &["create", "--spec", "-", "--no-cwd", "s"],
        &["create", "--spec", "-", "s", "--", "true"],
        &["exec", "--spec", "-", "--no-net", "s"],
        &["exec", "--spec", "-", "--mode", "check", "s"],
        &["exec", "--spec", "-", "--timeout", "1s", "s"],
        &["exec", "--spec", "-", "s", "true"],
    ] {
        let output = run(args);
        assert_eq!(output.status, 125, "{args:?}");
        assert!(output.stderr.contains("cannot be used with"), "{args:?}: {}", output.stderr);
    }
}

#[test]
fn policy_check_speaks_json() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.toml"), "[network]\nrules = [\"deny@any\", \"allow@x.example\"]\n").unwrap();
    std::fs::write(dir.path().join("b.toml"), "nonsense = 1\n").unwrap();
    let good: serde_json::Value = json(&run_in(dir.path(), &["policy", "check", "--json", "a.toml"]), 0);
    assert_eq!(good["ok"], true);
    assert_eq!(good["warnings"][0]["kind"], "contradicted");
    assert_eq!((&good["warnings"][0]["rule"], &good["warnings"][0]["by"]), (&1.into(), &0.into()));
    let bad: serde_json::Value = json(&run_in(dir.path(), &["policy", "check", "--json", "b.toml"]), 1);
    assert_eq!(bad["ok"], false);
    assert!(!bad["errors"].as_array().unwrap().is_empty());
}

#[test]
fn policy_subset_gives_a_counterexample() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, rules: &str| {
        std::fs::write(dir.path().join(name), format!("[network]\nrules = [\"{rules}\"]\n")).unwrap();
    };
    write("run4.toml", "allow@10.0.0.0/8:udp:53");
    write("run6.toml", "allow@[fd00::/8]:udp:53");
    write("session.toml", "allow@public");
    write("bad.toml", "alow@public");
    let same = run_in(dir.path(), &["policy", "subset", "session.toml", "session.toml"]);
    assert_eq!((same.status, &*same.stdout), (0, "session.toml allows nothing that session.toml denies\n"));
    for (file, flow) in [("run4.toml", "udp 10.0.0.1:53"), ("run6.toml", "udp [fd00::1]:53")] {
        let wider = run_in(dir.path(), &["policy", "subset", file, "session.toml"]);
        assert_eq!(wider.status, 1);
        let words = format!("{flow} is allowed by the {file} but not by the session.toml");
        assert!(wider.stdout.starts_with(&words), "{}", wider.stdout);
        let value = json(&run_in(dir.path(), &["policy", "subset", "--json", file, "session.toml"]), 1);
        assert_eq!((&value["subset"], &value["counterexample"]["example"]["port"]), (&false.into(), &53.into()));
    }
    for file in ["bad.toml", "missing.toml"] {
        assert_eq!(run_in(dir.path(), &["policy", "subset", file, "session.toml"]).status, 2);
    }
}

#[test]
fn what_a_sandbox_that_stays_cannot_have_is_refused() {
    let terminal = "a sandbox that stays has no terminal of its own; exec --tty has one";
    let machine = "a sandbox that stays has no --disk and --arch; a run that ends has them, with --backend vm";
    let create = ["create", "s", "--no-cwd"];
    let detach = ["run", "--detach", "--no-cwd"];
    let arch = ["--backend", "vm", "--arch", "x86_64"];
    let via = "--mount-via is for --backend vm";
    for (args, text) in [
        ([&create[..], &["--tty"]].concat(), terminal),
        ([&create[..], &arch].concat(), machine),
        ([&create[..], &["--mount-via", "virtiofs"]].concat(), via),
        ([&detach[..], &arch, &["--", "true"]].concat(), machine),
    ] {
        let refused = run(&args);
        assert_eq!((refused.status, refused.stdout.as_str()), (125, ""), "{args:?}");
        assert!(refused.stderr.contains(text), "{args:?}: {}", refused.stderr);
    }
}

#[test]
fn policy_diff_tells_what_changes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("old.toml"), "[network]\nrules = [\"allow@public\"]\n").unwrap();
    std::fs::write(dir.path().join("new.toml"), "[network]\nrules = [\"deny@any:tcp:25\", \"allow@public\"]\n")
        .unwrap();
    let same = run_in(dir.path(), &["policy", "diff", "old.toml", "old.toml"]);
    assert_eq!((same.status, &*same.stdout), (0, ""));
    let changed = run_in(dir.path(), &["policy", "diff", "old.toml", "new.toml"]);
    assert_eq!(changed.status, 1);
    assert_eq!(changed.stdout, "tcp 1.0.0.0:25 was allowed by `allow@public`, is denied by `deny@any:tcp:25`\n");
    let value = json(&run_in(dir.path(), &["policy", "diff", "--json", "old.toml", "new.toml"]), 1);
    assert_eq!(value["differences"][0]["b"]["rule"]["text"], "deny@any:tcp:25");
}

#[test]
fn policy_fmt_is_stable() {
    let rules =
        " allow@API.Example.COM.:tcp:443, ,deny@10.0.0.0/8 , allow:ingress@[2001:DB8::1]:udp:53+1000-2000,allow@dns";
    let once = run(&["policy", "fmt", rules]);
    assert_eq!(once.status, 0, "{}", once.stderr);
    insta::assert_snapshot!("fmt", once.stdout);
    let twice = finish(&mut cofferdam(&["policy", "fmt", "-f", "-"]), once.stdout.as_bytes());
    assert_eq!((twice.status, twice.stdout), (0, once.stdout));
}

#[test]
fn schemas_are_json_schemas() {
    for what in ["policy", "event"] {
        let schema = json(&run(&["schema", what]), 0);
        assert!(schema["$schema"].as_str().unwrap().contains("json-schema.org"), "{what}");
    }
}

#[test]
fn completions_exist_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status, 0);
        assert!(output.stdout.contains("no-cwd"), "{shell}");
    }
}

#[test]
fn version_speaks_both_ways() {
    assert_eq!(run(&["version"]).stdout, concat!("cofferdam ", env!("CARGO_PKG_VERSION"), "\n"));
    assert_eq!(json(&run(&["version", "--json"]), 0)["version"], env!("CARGO_PKG_VERSION"));
}

fn json(output: &common::Output, status: i32) -> serde_json::Value {
    assert_eq!(output.status, status, "{}", output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}
