//! What is the same on both backends: one list of what programs do with a network, tried in namespaces and in a virtual machine.
//!
//! A list has stages. Each has a policy, which `policy set` gives the sandbox while it runs, since a guest takes seconds to start;
//! cases that the program inside tries one after another (`world/conformance.py`), and cases that a client outside tries. What comes
//! of a case stands in the list, and is the same everywhere: so are the events of what was denied.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use cofferdam_world_tests::{Family, World, skip};

/// Much longer than a guest takes on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(400);

const LISTED: &str = "git.wall-test.com";
/// At the same addresses.
const UNLISTED: &str = "web.wall-test.com";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Namespaces,
    Machine,
}

impl Backend {
    fn flags(self) -> &'static str {
        match self {
            Backend::Namespaces => "",
            // The host's programs in a root that is empty but for links to them.
            Backend::Machine => "--backend vm --rootfs root --mount /usr:/usr:ro --user 0",
        }
    }
}

/// What somebody does, as an expression of `conformance.py`, and what comes of it.
struct Case {
    name: String,
    does: String,
    comes: String,
}

#[derive(Default)]
struct Stage {
    flags: String,
    inside: Vec<Case>,
    outside: Vec<Case>,
}

impl Stage {
    fn rule(&mut self, rule: &str) {
        let _ = write!(self.flags, " --net-rule {rule}");
    }

    fn inside(&mut self, name: impl Into<String>, does: impl Into<String>, comes: impl Into<String>) {
        self.inside.push(Case { name: name.into(), does: does.into(), comes: comes.into() });
    }

    fn outside(&mut self, name: impl Into<String>, does: impl Into<String>, comes: impl Into<String>) {
        self.outside.push(Case { name: name.into(), does: does.into(), comes: comes.into() });
    }
}

/// What a family's words are in rules, in `conformance.py`, and where it is denied.
struct Words {
    family: Family,
    rules: [String; 4],
    network: &'static str,
    python: &'static str,
    kind: &'static str,
    /// What Linux makes of "administratively prohibited" differs by family: icmp(7) and RFC 4443, section 3.1.
    prohibited: &'static str,
}

fn words(family: Family) -> Words {
    let rules = [family.web(), family.other(), family.inside(), family.host()].map(|address| family.in_url(address));
    match family {
        Family::V4 => {
            Words { family, rules, network: "151.101.0.0/16", python: "V4", kind: "A", prohibited: "EHOSTUNREACH" }
        }
        Family::V6 => {
            Words { family, rules, network: "[2a04:4e42::/32]", python: "V6", kind: "AAAA", prohibited: "EACCES" }
        }
    }
}

/// Nothing but what is listed: by address, network, name, suffix and group, with ports and protocols.
fn listed() -> Stage {
    let mut stage = Stage { flags: "--net-default-egress deny".to_owned(), ..Stage::default() };
    for Words { family, rules: [web, other, _, host], network, python, kind, prohibited } in Family::BOTH.map(words) {
        let v = python.to_lowercase();
        stage.rule(&format!("allow@{web}:tcp+udp:7,allow@{web}:icmp"));
        stage.rule(&format!("deny@{other}:tcp:22,allow@{network}:tcp"));
        // What comes in is allowed but from where the host is one of many.
        stage.rule(&format!("deny:ingress@{host}"));
        let (web, other, inside, host) = (family.web(), family.other(), family.inside(), family.host());
        for (name, does, comes) in [
            ("an address, a port and TCP", format!("tcp('{web}', 7)"), "hello"),
            ("an address, a port and UDP", format!("udp('{web}', 7)"), "hello"),
            ("ping", format!("ping('{web}')"), "hello"),
            ("another port", format!("tcp('{web}', 22)"), "ECONNREFUSED"),
            ("another port of UDP", format!("udp('{web}', 123)"), prohibited),
            ("a network", format!("tcp('{other}', 7)"), "hello"),
            ("a network but for a port", format!("tcp('{other}', 22)"), "ECONNREFUSED"),
            ("another protocol", format!("udp('{other}', 7)"), prohibited),
            ("ping that no rule allows", format!("ping('{other}')"), prohibited),
            ("a private address", format!("tcp('{inside}', 7)"), "ECONNREFUSED"),
            ("the host's own address", format!("tcp('{host}', 22)"), "ECONNREFUSED"),
            ("a name before it is looked up", format!("http('{web}', '{LISTED}')"), "ECONNREFUSED"),
        ] {
            // An answer pins the addresses of both families.
            if !(name.ends_with("looked up") && family == Family::V6) {
                stage.inside(format!("{v} {name}"), does, comes);
            }
        }
        for over in ["udp", "tcp"] {
            let ask = |name: &str| format!("dns('{name}', '{kind}', '{over}', {python})");
            stage.inside(format!("{v} a name over {over}"), ask(LISTED), format!("NOERROR {web}"));
            stage.inside(format!("{v} a denied name over {over}"), ask(UNLISTED), "NXDOMAIN");
            stage.inside(format!("{v} a name that leads inside over {over}"), ask("inside.wall-test.com"), "NXDOMAIN");
        }
        let suffix = if family == Family::V4 { "wide0-test.com" } else { "wide1-test.com" };
        let below = format!("deep.below.{suffix}");
        stage.rule(&format!("allow@suffix={suffix}"));
        for (name, does, comes) in [
            ("a request for the name", format!("http('{web}', '{LISTED}')"), format!("200 {LISTED}")),
            (
                "a request for another name there",
                format!("http('{web}', '{UNLISTED}')"),
                format!("403 network_policy_denied {UNLISTED}"),
            ),
            ("TLS for the name", format!("tls('{web}', '{LISTED}')"), "verified".to_owned()),
            (
                "TLS for another name there",
                format!("tls('{web}', '{UNLISTED}')"),
                "TLSV1_ALERT_ACCESS_DENIED".to_owned(),
            ),
            ("a name below a suffix", format!("http(lookup('{below}', {python}), '{below}')"), format!("200 {below}")),
            (
                "the host by its alias",
                format!("at('host.cofferdam.internal', {python}, PORT_OF_HOST)"),
                "hello".to_owned(),
            ),
            (
                "another port of the host",
                format!("at('host.cofferdam.internal', {python}, 22)"),
                "ECONNREFUSED".to_owned(),
            ),
        ] {
            stage.inside(format!("{v} {name}"), does, comes);
        }
        let loopback = family.loopback();
        for over in ["tcp", "udp"] {
            stage.outside(
                format!("{v} a published port of {over}"),
                format!("{over}('{loopback}', PUBLISHED)"),
                "HELLO",
            );
        }
        stage.outside(format!("{v} a client that is denied"), format!("tcp('{host}', PUBLISHED)"), "ECONNRESET");
        let silent = format!("silent(udp, '{host}', PUBLISHED)");
        stage.outside(format!("{v} a client of UDP that is denied"), silent, "silence");
    }
    stage.rule(&format!(
        "allow@domain={LISTED}:tcp:80+443,allow@domain=inside.wall-test.com,allow@host:tcp:PORT_OF_HOST"
    ));
    stage.inside("credentials of clouds", "tcp('169.254.169.254', 80)", "ECONNREFUSED");
    stage.inside("a resolver of its own", "dns('git.wall-test.com', 'A', 'udp', '93.184.215.53')", "EHOSTUNREACH");
    stage
}

/// Denials with another answer, or with none.
fn answered(with: &str) -> Stage {
    let mut stage = Stage { flags: format!("--net-default-egress deny --deny-with {with}"), ..Stage::default() };
    for Words { family, python, prohibited, .. } in Family::BOTH.map(words) {
        let v = python.to_lowercase();
        let web = family.web();
        // What was open under another policy is denied with this one, if it is still there: so each is tried anew.
        for over in ["tcp", "udp", "ping"] {
            let attempt = if over == "ping" { format!("'{web}'") } else { format!("'{web}', 7") };
            let name = format!("{v} {over}, {with}");
            match with {
                "drop" => stage.inside(name, format!("silent({over}, {attempt})"), "silence"),
                _ => stage.inside(name, format!("{over}({attempt})"), prohibited),
            }
        }
    }
    stage
}

/// What a run has that nobody gives a policy, groups, and bounds.
fn open() -> Stage {
    let mut stage = Stage { flags: "--net public --net-rule allow@private:tcp:7".to_owned(), ..Stage::default() };
    for Words { family, python, kind, .. } in Family::BOTH.map(words) {
        let v = python.to_lowercase();
        let (web, inside) = (family.web(), family.inside());
        for (name, does, comes) in [
            ("the public internet", format!("http('{web}', '{UNLISTED}')"), format!("200 {UNLISTED}")),
            ("any name", format!("dns('{UNLISTED}', '{kind}', 'udp', {python})"), format!("NOERROR {web}")),
            ("a group", format!("tcp('{inside}', 7)"), "hello".to_owned()),
            ("another port of the group", format!("tcp('{inside}', 80)"), "ECONNREFUSED".to_owned()),
        ] {
            stage.inside(format!("{v} {name}"), does, comes);
        }
    }
    let does = format!("hold({:?}, 7109, 20)", Family::BOTH.map(Family::web));
    stage.inside("a bound of connections", does, "20, then ECONNREFUSED ECONNREFUSED");
    stage
}

#[test]
fn what_a_network_allows_is_the_same_in_namespaces_and_in_a_virtual_machine() {
    let stages = || [listed(), answered("icmp"), answered("drop"), open()];
    let namespaces = try_all(Backend::Namespaces, &stages());
    let Some(kernel) = env::var_os("COFFERDAM_TEST_KERNEL_9P").filter(|package| !package.is_empty()) else {
        skip("COFFERDAM_TEST_KERNEL_9P names no kernel with 9p");
        return;
    };
    World::shared().set_up_guests("state-9p", Some(kernel));
    let machine = try_all(Backend::Machine, &stages());
    assert!(namespaces.len() > 20, "{namespaces:#?}");
    let only_one: Vec<_> = namespaces.symmetric_difference(&machine).collect();
    assert!(only_one.is_empty(), "{only_one:#?} of {namespaces:#?}");
}

/// Tries every case in one sandbox, and returns what its events say was denied.
#[track_caller]
fn try_all(backend: Backend, stages: &[Stage]) -> BTreeSet<String> {
    let world = World::shared();
    let sandbox = world.sandbox().patience(PATIENCE);
    let folder = sandbox.folder().to_owned();
    let mut script = format!(
        r#"
        [ ! -d "$WORLD/state-9p" ] || {{ mkdir "$XDG_STATE_HOME/cofferdam"; cp -r "$WORLD/state-9p/cofferdam/vm" "$XDG_STATE_HOME/cofferdam/"; }}
        mkdir -p root/etc root/usr; for name in bin sbin lib lib64; do ln -s usr/$name root/$name; done
        try="$WORLD/files/conformance.py"
        serve python3 -c '{HOST_SERVER}'
        until_ sh -c 'ss -Htln "sport = :{PORT_OF_HOST}" | grep -q .'
        ports=; for port in 8080 8080/udp; do ports="$ports -p 0.0.0.0:{PUBLISHED}:$port -p [::]:{PUBLISHED}:$port"; done
        mkfifo in; : >out
        $C run {} --no-cwd --quiet --events events --max-connections 20 $ports -- python3 -c "$(cat "$try")" <in >out 2>err & run=$!
        exec 9>in
        has() {{ kill -0 $run || {{ cat out err >&2; exit 97; }}; [ "$(grep -c "^$2\$" out)" -ge $1 ]; }}
        until_long() {{ n=0; until "$@"; do n=$((n + 1)); [ $n -lt 10000 ] || {{ cat out err >&2; exit 97; }}; sleep 0.02; done; }}
        python3 -c 'import json; print(json.dumps(open("ca.pem").read()))' >&9
        until_long has 1 up"#,
        backend.flags(),
    );
    for (number, stage) in stages.iter().enumerate() {
        let pairs = |case: &Case| format!("[{:?}, {:?}]", case.name, case.does);
        let cases: Vec<String> = stage.inside.iter().map(pairs).collect();
        fs::write(folder.join(format!("stage-{number}")), filled(&format!("[{}]\n", cases.join(", ")))).unwrap();
        let done = number + 1;
        let _ =
            write!(script, "\n$C policy set last {}; cat stage-{number} >&9; until_long has {done} done", stage.flags);
        for Case { name, does, .. } in &stage.outside {
            let _ = write!(script, "\necho \"{name}: $(python3 $try \"{does}\")\"");
        }
    }
    script.push_str("\nexec 9>&-; wait $run; cat out; cat err >&2");
    let ran = world.script_in(sandbox, &filled(&script));
    ran.exits(0);
    let out = ran.stdout();
    let wrong: Vec<String> = stages
        .iter()
        .flat_map(|stage| stage.inside.iter().chain(&stage.outside))
        .filter_map(|Case { name, comes, .. }| {
            let came = out.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or("nothing");
            (came != comes).then(|| format!("{name}: {came}, not {comes}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{backend:?}: {wrong:#?}\n{ran}");
    let events = fs::read_to_string(folder.join("events")).unwrap();
    let decisions = || out.lines().filter_map(|line| line.strip_prefix("decision "));
    assert_eq!(decisions().count(), 2, "{ran}");
    for decision in decisions() {
        assert!(events.contains(&format!("\"decision\":\"{decision}\"")), "{decision}: {events}");
    }
    events.lines().filter_map(denied).collect()
}

/// What one event says of a denial, without what differs from run to run.
fn denied(event: &str) -> Option<String> {
    let field = |name: &str| {
        let (_, rest) = event.split_once(&format!("\"{name}\":\""))?;
        rest.split('"').next()
    };
    let is_denied = event.contains("\"flow.denied\"") || (event.contains("\"dns.query\"") && event.contains("deny"));
    is_denied.then(|| {
        let remote = field("remote").unwrap_or_default();
        // The other end of the sandbox's own link, which is the host by its alias.
        let is_link = remote.starts_with("172.") || remote.starts_with("[fd42:");
        let remote = if event.contains("\"direction\":\"ingress\"") {
            ""
        } else if is_link {
            "link"
        } else {
            remote
        };
        let words = ["type", "protocol", "name", "text"].map(|name| field(name).unwrap_or_default());
        format!("{} {remote}", words.join(" "))
    })
}

const PUBLISHED: &str = "PUBLISHED";
const PORT_OF_HOST: &str = "PORT_OF_HOST";
/// An echo on the host's loopback, in both families.
const HOST_SERVER: &str = r#"
import socket, threading
def serve(family, address):
    server = socket.create_server((address, PORT_OF_HOST), family=family)
    while True:
        with server.accept()[0] as client: client.sendall(client.recv(100))
threading.Thread(target=serve, args=(socket.AF_INET6, "::1")).start()
serve(socket.AF_INET, "127.0.0.1")"#;

/// The numbers of ports.
fn filled(text: &str) -> String {
    text.replace(PUBLISHED, "24080").replace(PORT_OF_HOST, "24081")
}
