//! Node, Go and Python by name. Node has two resolvers, the C library's for connections and c-ares; Go has its own.

use std::fs;
use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, Sandbox, World};

use crate::{gateway, sandbox, unbound};

const AT_ONCE: Duration = Duration::from_secs(5);

fn node(sandbox: Sandbox<'_>, program: &str) -> Ran {
    sandbox.run(&["env", "NODE_EXTRA_CA_CERTS=ca.pem", "node", "-e", program])
}

fn fetch(flags: &str, url: &str) -> Ran {
    let program = format!(
        "fetch('{url}').then(async answer => console.log(answer.status, await answer.text()), \
         error => {{ console.log(error.message, error.cause.code); process.exit(1) }})"
    );
    node(sandbox(flags), &program)
}

#[test]
fn node_fetches_from_an_allowed_name() {
    for family in Family::BOTH {
        let host = family.name();
        for scheme in ["http", "https"] {
            fetch(&format!("--allow {host}"), &format!("{scheme}://{host}/who"))
                .exits(0)
                .says(&format!("200 {}", family.web()))
                .says(host);
        }
    }
}

#[test]
fn denied_node_sees_what_a_network_would_say() {
    for family in Family::BOTH {
        let host = family.name();
        fetch("--allow other.wall-test.com", &format!("https://{host}/who"))
            .exits(1)
            .says("fetch failed ENOTFOUND")
            .within(AT_ONCE);
        fetch(&format!("--allow {host}"), &format!("https://{}/who", family.in_url(family.web())))
            .exits(1)
            .says("fetch failed ECONNREFUSED")
            .within(AT_ONCE);
        // Another name on the same machine.
        let program = format!(
            "require('https').get('https://{host}/who', {{ servername: 'git.wall-test.com' }}, answer => console.log(answer.statusCode))\
             .on('error', error => {{ console.log(error.message); process.exit(1) }})"
        );
        node(sandbox(&format!("--allow {host}")), &program).exits(1).says("alert access denied").within(AT_ONCE);
    }
}

/// Has c-ares ask the gateway's address of a family.
fn c_ares(flags: &str, family: Family, call: &str) -> Ran {
    let program = format!(
        "const {{ Resolver }} = require('dns').promises, resolver = new Resolver()\n\
         resolver.setServers([process.argv[1]])\n\
         resolver.{call}.then(found => console.log(found.length, found[0]), error => {{ console.log(error.message); process.exit(1) }})"
    );
    sandbox(flags).sh(&format!("node -e \"{program}\" $({})", gateway(family)))
}

#[test]
fn c_ares_looks_names_up() {
    for family in Family::BOTH {
        let flags = format!("--allow *.wall-test.com --allow *.script-test.com --dns-nameserver {}", unbound(family));
        for (call, said) in [
            ("resolve4('web.wall-test.com')", "1 93.184.215.14"),
            ("resolve6('web.wall-test.com')", "1 2606:2800:21f:cb07::14"),
            // Cut over UDP: it comes over TCP.
            ("resolveTxt('txt4000.script-test.com')", "18 "),
        ] {
            c_ares(&flags, family, call).exits(0).says(said);
        }
    }
}

#[test]
fn denied_c_ares_says_that_there_is_no_such_name() {
    for family in Family::BOTH {
        for (call, said) in [
            ("resolve4('web.wall-test.com')", "queryA ENOTFOUND web.wall-test.com"),
            ("resolve6('web.wall-test.com')", "queryAaaa ENOTFOUND web.wall-test.com"),
            ("resolveTxt('txt.wall-test.com')", "queryTxt ENOTFOUND txt.wall-test.com"),
        ] {
            c_ares("--allow other.wall-test.com", family, call).exits(1).says(said).within(AT_ONCE);
        }
    }
}

/// Go's own resolver, asking the gateway's address of a family.
fn go(flags: &str, family: Family, arguments: &str) -> Ran {
    let sandbox = sandbox(flags);
    let program = World::with_everything().path("etc/golookup");
    fs::copy(program, sandbox.folder().join("lookup")).expect("the folder is ours");
    sandbox.sh(&format!("./lookup {arguments}; ./lookup @$({}) {arguments}", gateway(family)))
}

#[test]
fn go_looks_names_up_without_the_c_library() {
    for family in Family::BOTH {
        let flags = format!("--allow *.wall-test.com --allow *.script-test.com --dns-nameserver {}", unbound(family));
        let ran = go(&flags, family, "addresses web.wall-test.com tconly.script-test.com");
        // Two names, asked twice, each with an address of both families.
        for of in Family::BOTH {
            assert_eq!(ran.exits(0).stdout().matches(of.web()).count(), 4, "{ran}");
        }
        let ran = go(&flags, family, "text txt4000.script-test.com");
        assert_eq!(ran.exits(0).stdout(), "18 texts\n18 texts\n", "{ran}");
    }
}

#[test]
fn denied_go_says_that_there_is_no_such_host() {
    for family in Family::BOTH {
        let ran = go("--allow other.wall-test.com", family, "addresses web.wall-test.com || true");
        let out = ran.exits(0).within(AT_ONCE).stdout();
        let told = |line: &str| line.starts_with("lookup web.wall-test.com on ") && line.ends_with(":53: no such host");
        assert!(out.lines().count() == 2 && out.lines().all(told), "{ran}");
    }
}

/// The two clients that Python programs use; pip brings one of them along.
const PYTHON: &str = r"
import sys, urllib.request, ssl
from pip._vendor import requests
for get in (lambda url: requests.get(url, verify='ca.pem', timeout=8).text,
            lambda url: urllib.request.urlopen(url, context=ssl.create_default_context(cafile='ca.pem'), timeout=8).read().decode()):
    try:
        print(get(sys.argv[1]).strip())
    except Exception as error:
        print(error)
";

fn python(flags: &str, url: &str) -> Ran {
    sandbox(flags).run(&["python3", "-c", PYTHON, url])
}

#[test]
fn python_gets_from_an_allowed_name() {
    for family in Family::BOTH {
        let host = family.name();
        for scheme in ["http", "https"] {
            let ran = python(&format!("--allow {host}"), &format!("{scheme}://{host}/who"));
            let expected = format!("{} HTTP/1.1 {host}\n", family.web()).repeat(2);
            assert_eq!(ran.exits(0).stdout(), expected, "{ran}");
        }
    }
}

#[test]
fn denied_python_sees_what_a_network_would_say() {
    for family in Family::BOTH {
        let host = family.name();
        let address = family.in_url(family.web());
        for (url, said) in [
            (format!("https://{host}/who"), "Name or service not known"),
            (format!("https://{address}/who"), "Connection refused"),
        ] {
            let ran = python("--allow other.wall-test.com", &url);
            assert_eq!(ran.exits(0).stdout().matches(said).count(), 2, "{ran}");
        }
    }
}
