//! `cofferdam learn` on real programs: what it writes lets the same happen again, and nothing else.

use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, World};

/// Learns what `command` needs, runs it again under that, and tries to reach one more name. `$1` of the command says which time
/// it is.
#[track_caller]
fn learn(flags: &str, command: &str, extra: &str) -> Ran {
    let text = format!(
        r#"
        cat >job.sh <<'JOB'
        set -e
        {command}
JOB
        chmod 755 job.sh
        $C learn {flags} -o policy.toml -- sh job.sh 1
        echo "--- policy"; cat policy.toml; echo "---"
        $C run --net-conf policy.toml -- sh job.sh 2
        echo "again: $?"
        $C run --quiet --net-conf policy.toml -- {extra} && echo "extra: reached" || echo "extra: blocked"
        $C policy check policy.toml
        $C policy try policy.toml --against last >tried || true; cat tried
        "#
    );
    let world = World::shared();
    world.script_in(world.sandbox().patience(Duration::from_secs(60)), &text)
}

/// The rules of the file, as they stand there, with the reason behind each.
fn rules(ran: &Ran) -> Vec<String> {
    let stdout = ran.stdout();
    let file = stdout.split("--- policy\n").nth(1).and_then(|rest| rest.split("---\n").next()).unwrap_or_default();
    let lines = file.lines().map(str::trim).filter(|line| line.starts_with('"'));
    lines.filter_map(|line| line.split('"').nth(1)).map(str::to_owned).collect()
}

#[test]
fn an_installation_with_a_dependency() {
    let ran = learn(
        "",
        "python3 -m pip install -q --disable-pip-version-check --no-cache-dir --retries 0 --timeout 10 --cert ca.pem \
         --target site$1 --index-url https://pypi.org/simple/ wallapp
        PYTHONPATH=site$1 python3 -c 'import wallapp, walltools; print(\"installed\")'",
        "curl -sS --max-time 5 --cacert ca.pem -o /dev/null https://web.wall-test.com/",
    );
    ran.exits(0).says("again: 0").says("extra: blocked").says("good, 2 rules");
    assert_eq!(rules(&ran), ["allow@files.pythonhosted.org:tcp:443", "allow@pypi.org:tcp:443"], "{ran}");
    assert_eq!(ran.stdout().matches("installed").count(), 2, "{ran}");
}

#[test]
fn an_installation_by_npm_with_a_dependency() {
    for family in Family::BOTH {
        // The registry is at one name and its files are at another, both of one address.
        let (registry, files) = match family {
            Family::V4 => ("v4.wall-test.com", "also4.wall-test.com"),
            Family::V6 => ("v6.wall-test.com", "also6.wall-test.com"),
        };
        let ran = learn(
            "",
            &format!(
                "mkdir site$1; cd site$1; echo '{{\"private\": true}}' >package.json
                npm install --cafile ../ca.pem --cache $PWD/cache --registry https://{registry}/npm/{files}/ \
                    --no-audit --no-fund --no-update-notifier --fetch-retries 0 wall-app
                node node_modules/wall-app"
            ),
            &format!("curl -sS --max-time 5 {} --cacert ca.pem -o /dev/null https://web.wall-test.com/", family.flag()),
        );
        ran.exits(0).says("again: 0").says("extra: blocked").says("good, 2 rules");
        let learned = [format!("allow@{files}:tcp:443"), format!("allow@{registry}:tcp:443")];
        assert_eq!(rules(&ran), learned, "{ran}");
        assert_eq!(ran.stdout().matches("hello from the registry").count(), 2, "{ran}");
    }
}

#[test]
fn a_clone_with_a_submodule() {
    for family in Family::BOTH {
        let ran = learn(
            "",
            &format!(
                "export GIT_TERMINAL_PROMPT=0 GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=http.sslCAInfo GIT_CONFIG_VALUE_0=$PWD/ca.pem
                git clone -q {} --recurse-submodules https://git.wall-test.com/git/whole.git copy$1 && cat copy$1/part/README",
                // The submodule's own clone does not hear of the family.
                family.flag()
            ),
            &format!("curl -sS --max-time 5 {} -o /dev/null http://{}/", family.flag(), family.name()),
        );
        ran.exits(0).says("again: 0").says("extra: blocked");
        assert_eq!(rules(&ran), ["allow@git.wall-test.com:tcp:443", "allow@other.wall-test.com:tcp:443"], "{ran}");
        assert_eq!(ran.stdout().matches("hello from the world").count(), 2, "{ran}");
    }
}

#[test]
fn a_crawler_over_320_names_of_40_domains() {
    let ran = learn(
        "",
        r#"cat >crawl.js <<'JS'
        const say = async (url) => { const got = await fetch(url); await got.text(); return got.status == 200 ? 1 : 0; };
        (async () => {
            let good = 0;
            for (let domain = 0; domain < 40; domain++)
                for (let name = 0; name < 8; name++) good += await say(`http://n${name}.wide${domain}-test.com/who`);
            for (const name of ["", "n0.", "n1."]) good += await say(`https://${name}wide7-test.com/who`);
            console.log(`crawled ${good}`);
            process.exit(good == 323 ? 0 : 1);
        })();
JS
        NODE_NO_WARNINGS=1 NODE_TLS_REJECT_UNAUTHORIZED=0 node crawl.js"#,
        "curl -sS --max-time 5 -o /dev/null http://wide1-test.com/who",
    );
    ran.exits(0).says("again: 0").says("extra: blocked");
    let rules = rules(&ran);
    assert_eq!(rules.len(), 41, "{ran}");
    assert!(rules.contains(&"allow@.wide39-test.com:tcp:80".to_owned()), "{ran}");
    assert!(rules.contains(&"allow@*.wide7-test.com:tcp:443".to_owned()), "{ran}");
    assert_eq!(ran.stdout().matches("crawled 323").count(), 2, "{ran}");
}

#[test]
fn addresses_other_protocols_and_what_is_inside() {
    for family in Family::BOTH {
        let (web, inside, flag) = (family.in_url(family.web()), family.in_url(family.inside()), family.flag());
        let ran = learn(
            "--net private",
            // By an address; a protocol without names; a name that leads inside; a hello that nobody can read; a name on the same
            // address that is looked up and not gone to.
            &format!(
                "getent ahosts also4.wall-test.com >/dev/null || true
                curl -sS {flag} -o /dev/null http://{web}/who
                curl -sS {flag} -o /dev/null http://inside.wall-test.com/who
                ping -c 1 -q {} >/dev/null
                python3 - {} <<'PY'
import socket, sys
s = socket.create_connection((sys.argv[1], 7), 5)
s.sendall(b'\\x16\\x03\\x01\\xff\\xff not a hello'); s.shutdown(socket.SHUT_WR)
print('echoed' if s.recv(64).endswith(b'hello') else 'cut')
PY",
                family.name(),
                family.name(),
            ),
            &format!("curl -sSk --max-time 5 -o /dev/null https://{inside}/who"),
        );
        ran.exits(0).says("again: 0").says("extra: blocked").complains("looked up and not gone to");
        let web_rule = format!("allow@{web}:tcp:7+80");
        // What cannot be read passes by its address, and the name has to be looked up all the same.
        let named = ["icmp", "tcp:7"].map(|service| format!("allow@{}:{service}", family.name()));
        assert!(rules(&ran).contains(&web_rule) && named.iter().all(|rule| rules(&ran).contains(rule)), "{ran}");
        assert!(rules(&ran).contains(&"allow@inside.wall-test.com:tcp:80:allow-private".to_owned()), "{ran}");
        assert_eq!(ran.stdout().matches("echoed").count(), 2, "{ran}");
    }
}

#[test]
fn a_policy_is_added_to_shown_and_verified() {
    let world = World::shared();
    let ran = world.script_in(
        world.sandbox(),
        r#"
        $C learn -o p.toml -- curl -sS -o /dev/null http://web.wall-test.com/
        sed -i 's/^rules = \[/&  # ours/' p.toml
        $C learn --merge p.toml --diff -- curl -sS --cacert ca.pem -o /dev/null https://other.wall-test.com/ 2>/dev/null
        $C learn --merge p.toml -o p.toml --verify -- curl -sS --cacert ca.pem -o /dev/null https://other.wall-test.com/
        echo "verified: $?"
        cat p.toml
        # What changes from run to run is told, and is no success.
        $C learn -o q.toml --verify -- sh -c 'if mkdir once 2>/dev/null; then exit 0; else curl -s -o /dev/null http://web.wall-test.com/; fi' && echo "never" || echo "changed: $?"
        # The program's status is learn's own; what cannot be written does not run.
        $C learn -o r.toml -- sh -c 'exit 7' || echo "status: $?"
        $C learn -o /nowhere/p.toml -- touch ran || echo "refused: $?"
        # What the program leaves in the file's place is replaced, and no link of its is followed.
        ln -s ../elsewhere link.toml
        $C learn -o link.toml -- true || echo "link refused: $?"
        echo keep >elsewhere
        $C learn -o t.toml -- ln -s elsewhere t.toml
        cat elsewhere; head -1 t.toml; test -L t.toml || echo "a file of its own"
        ls -A | tr '\n' ' '
        $C why --net-conf p.toml other.wall-test.com:443 | head -2
        "#,
    );
    ran.exits(0).says("verified: 0").says("changed: 124").says("status: 7").says("refused: 125");
    ran.says("is allowed by `allow@other.wall-test.com:tcp:443`").says("rules = [  # ours");
    ran.says("allow@web.wall-test.com:tcp:80").says("\"allow@other.wall-test.com:tcp:443\"").never_says(" ran ");
    ran.says("verdict   allowed").complains("it passes");
    ran.says("link refused: 125").says("keep\n# Learned from a run of ln.").says("a file of its own");
    // Nothing is left beside the files.
    ran.never_says(".p.toml").never_says("never");
}
