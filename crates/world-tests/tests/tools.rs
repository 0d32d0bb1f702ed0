//! The tools people work with: git over three transports, pip, ssh with and without a terminal.

use cofferdam_world_tests::{Family, Ran, Sandbox, World};

/// What git needs to know about this world and its user.
const GIT: &str = "
T=$(mktemp -d)
export GIT_CONFIG_COUNT=3 GIT_TERMINAL_PROMPT=0
export GIT_CONFIG_KEY_0=http.sslCAInfo GIT_CONFIG_VALUE_0=$PWD/ca.pem
export GIT_CONFIG_KEY_1=user.name GIT_CONFIG_VALUE_1=guest GIT_CONFIG_KEY_2=user.email GIT_CONFIG_VALUE_2=guest@wall-test.com
";
/// ssh refuses a key that others may read, and the one in the test's folder has to be readable by whoever runs inside.
const SSH: &str = "
T=$(mktemp -d)
install -m600 key $T/key
SSH=\"ssh -i $T/key -o BatchMode=yes -o ConnectTimeout=5 -o StrictHostKeyChecking=no -o UserKnownHostsFile=$T/known -o LogLevel=ERROR\"
export GIT_SSH_COMMAND=\"$SSH\"
";

/// Clones, adds a commit, pushes it to a branch that no other test uses, and reads it back.
fn clone_and_push(sandbox: Sandbox<'_>, url: &str, flags: &str) -> Ran {
    let branch = format!(
        "pushed-{}",
        sandbox.folder().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    );
    sandbox.sh(&format!(
        "{GIT}{SSH}
        git clone -q {flags} {url} $T/copy
        cd $T/copy; cat README
        echo more >>README; git commit -qam 'Say more'
        git push -q origin HEAD:{branch}
        git ls-remote origin {branch} | grep -q $(git rev-parse HEAD) && echo pushed"
    ))
}

#[test]
fn git_clones_and_pushes_over_https() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--allow git.wall-test.com:443");
        let ran = clone_and_push(sandbox, "https://git.wall-test.com/git/project.git", family.flag());
        ran.exits(0).says("hello from the world").says("pushed");
    }
}

#[test]
fn git_clones_and_pushes_over_ssh() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--allow git.wall-test.com:22");
        let url = format!("ssh://guest@git.wall-test.com{}/git/project.git", git_root(&sandbox));
        let ran = clone_and_push(sandbox, &url, family.flag());
        ran.exits(0).says("hello from the world").says("pushed");
    }
}

#[test]
fn git_clones_from_a_daemon() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--allow git.wall-test.com:9418");
        let script = format!(
            "{GIT} git clone -q {} git://git.wall-test.com/project.git $T/copy; cat $T/copy/README",
            family.flag()
        );
        sandbox.sh(&script).exits(0).says("hello from the world");
    }
}

#[test]
fn denied_git_by_name_cannot_resolve_it() {
    for (url, said) in [
        ("https://git.wall-test.com/git/project.git", "Could not resolve host: git.wall-test.com"),
        ("ssh://guest@git.wall-test.com/git/project.git", "Could not resolve hostname git.wall-test.com"),
        ("git://git.wall-test.com/project.git", "unable to look up git.wall-test.com"),
    ] {
        let sandbox = World::shared().sandbox().flags("--allow other.wall-test.com");
        sandbox.sh(&format!("{GIT}{SSH} git clone {url} $T/copy")).exits(128).complains(said);
    }
}

#[test]
fn denied_git_by_address_is_refused() {
    for family in Family::BOTH {
        let web = family.in_url(family.web());
        for (url, said) in [
            (format!("https://{web}/git/project.git"), "Failed to connect"),
            (format!("ssh://guest@{web}/git/project.git"), "Connection refused"),
            (format!("git://{web}/project.git"), "Connection refused"),
        ] {
            let sandbox = World::shared().sandbox().flags("--allow other.wall-test.com");
            sandbox.sh(&format!("{GIT}{SSH} git clone {url} $T/copy")).exits(128).complains(said);
        }
    }
}

#[test]
fn denied_is_the_port_that_no_rule_names() {
    let sandbox = World::shared().sandbox().flags("--allow git.wall-test.com:443");
    sandbox
        .sh(&format!("{GIT} git clone git://git.wall-test.com/project.git $T/copy"))
        .exits(128)
        .complains("Connection refused");
}

// With one more try, since pip says why the first one failed, and of the last one only that there is no package.
const PIP: &str = "T=$(mktemp -d); python3 -m pip install -q --disable-pip-version-check --no-cache-dir --retries 1 --timeout 5 --cert ca.pem \
    --target $T/site --index-url";

#[test]
fn pip_installs_from_an_allowed_index() {
    for family in Family::BOTH {
        let url = format!("https://{}/simple/", family.in_url(family.web()));
        let allow = format!("--allow {}:443", family.in_url(family.web()));
        let script =
            format!("{PIP} {url} wallpkg; PYTHONPATH=$T/site python3 -c 'import wallpkg; print(wallpkg.GREETING)'");
        World::shared().sandbox().flags(&allow).sh(&script).exits(0).says("hello from a wheel");
    }
    let script = format!(
        "{PIP} https://pypi.wall-test.com/simple/ wallpkg; PYTHONPATH=$T/site python3 -c 'import wallpkg; print(wallpkg.GREETING)'"
    );
    World::shared().sandbox().flags("--allow pypi.wall-test.com").sh(&script).exits(0).says("hello from a wheel");
}

#[test]
fn denied_pip_fails_as_on_any_network() {
    let sandbox = World::shared().sandbox().flags("--allow other.wall-test.com");
    sandbox
        .sh(&format!("{PIP} https://pypi.wall-test.com/simple/ wallpkg"))
        .exits(1)
        .complains("Name or service not known");
    for family in Family::BOTH {
        let url = format!("https://{}/simple/", family.in_url(family.web()));
        let sandbox = World::shared().sandbox().flags("--allow other.wall-test.com");
        sandbox.sh(&format!("{PIP} {url} wallpkg")).exits(1).complains("Connection refused");
    }
}

#[test]
fn ssh_runs_a_command() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--allow web.wall-test.com:22");
        let script =
            format!("{SSH} $SSH {} guest@web.wall-test.com 'id -un; cat >&2; exit 7' </dev/null", family.flag());
        sandbox.sh(&script).exits(7).says("guest");
    }
}

#[test]
fn ssh_gives_a_terminal_that_is_typed_on() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--allow web.wall-test.com:22 --tty");
        let script = format!("{SSH} exec $SSH {} -tt guest@web.wall-test.com", family.flag());
        // `expr` makes what is looked for different from what the terminal echoes.
        let ran = sandbox.input("tty\nexpr 6 '*' 7000\nexit 9\n").on_a_terminal(&["sh", "-ec", &script]);
        ran.exits(9).says("/dev/pts/").says("42000");
    }
}

#[test]
fn denied_ssh_fails_as_on_any_network() {
    let sandbox = World::shared().sandbox().flags("--allow other.wall-test.com");
    sandbox
        .sh(&format!("{SSH} $SSH guest@web.wall-test.com true"))
        .exits(255)
        .complains("Could not resolve hostname web.wall-test.com");
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--allow other.wall-test.com");
        let script = format!("{SSH} $SSH guest@{} true", family.web());
        sandbox.sh(&script).exits(255).complains("Connection refused");
    }
}

/// Where the world's sshd finds the repositories: by path, beside the test's own folder.
fn git_root(sandbox: &Sandbox<'_>) -> String {
    sandbox.folder().join("../..").canonicalize().map(|world| world.display().to_string()).unwrap_or_default()
}
