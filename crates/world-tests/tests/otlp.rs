//! `--otlp`: a collector gets every event and the totals, and one that is no good keeps nobody waiting.
//!
//! The binary under test has the feature `otlp`; the collector takes nothing that the protocol does not have (`otlp.py`).

use std::time::Duration;

use cofferdam_world_tests::{Ran, World};

/// For both families: `collector MANNER` starts one, and `run` runs a program that is allowed one thing and denied another.
#[track_caller]
fn script(text: &str) -> Ran {
    World::shared().script(&format!(
        r#"
        D=$XDG_STATE_HOME
        collector() {{
            rm -f $D/out $D/said
            python3 $WORLD/files/otlp.py $1 $address 0 $D/out >$D/said 2>&1 & servers="$servers $!"
            until_ grep -qs up $D/said
            at=$(sed -n 's/^up //p' $D/said)
            case $address in *:*) at="[$address]:$at" ;; *) at=$address:$at ;; esac
        }}
        run() {{
            $C run --no-cwd --no-record --otlp http://$at/base "$@" -- sh -c '
                curl -s -o /dev/null http://web.wall-test.com/
                curl -s -o /dev/null http://10.77.0.5/ || true
                echo ran' 2>$D/err
        }}
        # What the run says of the collector, once.
        told() {{ grep -o 'what was sent to .*' $D/err | sed 's/^what was sent to [^ ]* is incomplete: //; s/^[0-9]* events/N events/'; }}
        for address in 127.0.0.1 ::1; do
        {text}
        done
        "#
    ))
}

#[test]
fn a_collector_gets_every_event_and_the_totals() {
    let ran = script(
        r#"
        for manner in good busy; do
            collector $manner
            run --quiet --events $D/events.jsonl
            test ! -s $D/err
            python3 - $D/out $D/events.jsonl <<'PY'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
print("wrong", [line["wrong"] for line in lines if "wrong" in line])
def inside(line, kind, scopes, list):
    return [one for part in line["body"][kind] for scope in part[scopes] for one in scope[list]]
records = [record for line in lines if line["path"].endswith("logs") for record in inside(line, "resourceLogs", "scopeLogs", "logRecords")]
events = [json.loads(line) for line in open(sys.argv[2])]
print("records", [record["eventName"] for record in records] == ["cofferdam." + event["type"] for event in events])
denied = next(record for record in records if record["eventName"] == "cofferdam.flow.denied")
attributes = {pair["key"]: pair["value"] for pair in denied["attributes"]}
event = next(event for event in events if event["type"] == "flow.denied")
print("denied", denied["severityText"], attributes["cofferdam.remote"], attributes["cofferdam.decision"]["stringValue"] == event["decision"])
last = [line for line in lines if line["path"].endswith("metrics")][-1]
for metric in inside(last, "resourceMetrics", "scopeMetrics", "metrics"):
    for point in metric["sum"]["dataPoints"]:
        value = point["attributes"][0]["value"]["stringValue"] if point["attributes"] else ""
        print(metric["name"], value, point["asInt"] if "io" not in metric["name"] else int(point["asInt"]) > 0)
PY
        done
        "#,
    );
    let each = "ran\nwrong []\nrecords True\ndenied WARN {'stringValue': '10.77.0.5:80'} True\n\
        cofferdam.network.io transmit True\ncofferdam.network.io receive True\n\
        cofferdam.flows opened 1\ncofferdam.flows denied 1\ncofferdam.flows failed 0\n\
        cofferdam.dns.queries allow 2\ncofferdam.dns.queries deny 0\ncofferdam.events.lost  0\n";
    assert_eq!(ran.exits(0).stdout(), each.repeat(4), "{ran}");
}

#[test]
fn a_collector_that_is_no_good_is_told_of_once_and_keeps_nobody_waiting() {
    let ran = script(
        r#"
        for manner in picky silent rejects; do
            collector $manner
            run
            told
        done
        # Nobody is there any more.
        kill ${servers##* }
        until_ eval '! kill -0 ${servers##* } 2>/dev/null'
        run
        told
        "#,
    );
    let each = "ran\nN events were not taken: it answers with status 400\n\
        ran\nN events were not taken: it did not answer within 2 s\n\
        ran\n1 event was not taken: one too many\n\
        ran\nN events were not taken: connection refused\n";
    let stdout = ran.exits(0).within(Duration::from_secs(60)).stdout();
    // How many requests the events came in is a matter of time.
    let stdout = stdout.replace("N events were not taken: one too many", "1 event was not taken: one too many");
    assert_eq!(stdout, each.repeat(2), "{ran}");
}

#[test]
fn an_endpoint_that_is_none_starts_nothing() {
    let ran = World::shared().script(
        r#"
        for endpoint in localhost:4318 ftp://localhost http://localhost:0 http://me:secret@localhost/; do
            $C run --no-cwd --no-record --otlp $endpoint -- echo ran || echo "exit $?"
        done
        "#,
    );
    assert_eq!(ran.exits(0).stdout(), "exit 125\n".repeat(4), "{ran}");
    ran.complains("--otlp: \"localhost:4318\" is no endpoint; expected http://HOST:PORT");
    ran.complains("a password in it would be there for everybody to read");
    assert!(!ran.stderr().contains("secret"), "{ran}");
}
