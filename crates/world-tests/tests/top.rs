//! `cofferdam top` on a real terminal, over runs that go on.

use cofferdam_world_tests::{Family, World};

/// A run whose program is denied a name, and tries it again whenever it is told to.
const RUN: &str = r#"
        D=$XDG_STATE_HOME
        mkfifo $D/input
        $C run --no-cwd --quiet --allow other.wall-test.com -- sh -c \
            'while read line; do curl -s -m5 -o /dev/null http://NAME/ && echo reached || echo denied; done' < $D/input > $D/out &
        run=$!
        exec 9> $D/input
        echo >&9
        until_ grep -q denied $D/out
        top() { python3 $WORLD/files/top.py $C "$@"; }
"#;

fn script(family: Family, what: &str) -> cofferdam_world_tests::Ran {
    let script = format!("{RUN}\n{what}\nexec 9>&-\nwait $run\n").replace("NAME", family.name());
    World::shared().script(&script)
}

#[test]
fn a_denial_is_seen_and_allowed_by_key_and_the_next_try_works() {
    for family in Family::BOTH {
        let ran = script(
            family,
            r#"
            top allow NAME
            echo >&9
            until_ grep -q reached $D/out
            "#,
        );
        let rule = format!("--net-rule 'allow@{}'\n", family.name());
        ran.exits(0).says("ended 0\nterminal as before True\nscreen left True\n").says("# made for run 2").says(&rule);
    }
}

#[test]
fn the_terminal_is_left_as_it_was_whatever_ends_it() {
    let ran = script(
        Family::V4,
        r#"
        top resize
        top signal TERM
        top signal INT
        top hangup
        "#,
    );
    let as_before = "terminal as before True\nscreen left True\n";
    ran.exits(0)
        .says(&format!("ended 0\n{as_before}ended 143\n{as_before}ended 130\n{as_before}gone with its terminal\n"));
}

#[test]
fn what_is_no_terminal_gets_one_clear_error() {
    let ran = World::shared().script("$C top </dev/null || echo failed $?; $C top | cat");
    ran.says("failed 1\n").complains("top needs a terminal");
}
