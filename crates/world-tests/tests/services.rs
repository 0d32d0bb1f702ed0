//! Services that people run, behind a published port and behind the host's alias, with the clients that people use: nginx
//! with curl and wrk, PostgreSQL with psql and pgbench, Redis with redis-cli and its bench, sshd with git.
//!
//! The benches are here for their many connections at once: what counts is that none of their requests fails.

use std::fs;

use cofferdam_world_tests::{Family, Ran, Sandbox, Served, World};

/// Becomes an nginx in the current directory, on the port and the addresses of its arguments: PORT ADDRESS...
const NGINX: &str = r#"
port=$1; shift
mkdir -p nginx
cat >nginx/conf <<END
daemon off; worker_processes 2; pid $PWD/nginx/pid; error_log stderr; events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path $PWD/nginx/body; proxy_temp_path $PWD/nginx/proxy; fastcgi_temp_path $PWD/nginx/fastcgi;
	uwsgi_temp_path $PWD/nginx/uwsgi; scgi_temp_path $PWD/nginx/scgi;
	server {
		$(for address; do echo "listen $address:$port backlog=1024;"; done)
		location / { return 200 "hello to \$remote_addr\n"; }
	}
}
END
exec nginx -e stderr -c $PWD/nginx/conf
"#;

/// Becomes a Redis that keeps nothing: PORT ADDRESS...
const REDIS: &str =
    r#"port=$1; shift; exec redis-server --port $port --bind "$@" --protected-mode no --save '' --dir "$PWD""#;

/// Becomes a PostgreSQL on every address and this port: PORT.
const POSTGRES: &str = r#"exec sh postgres.sh "$PWD/db" -c port=$1"#;

/// What every call of it begins with.
const PGBENCH: &str = "pgbench -n -U guest postgres";

/// Puts the scripts of the servers into the folder that they run in.
fn install(world: &World, sandbox: &Sandbox<'_>) {
    let scripts = [("nginx.sh", NGINX), ("redis.sh", REDIS), ("db.sh", POSTGRES)];
    for (name, text) in scripts.into_iter().chain([("postgres.sh", world.program("postgres.sh"))]) {
        fs::write(sandbox.folder().join(name), text).expect("the folder is ours");
    }
}

/// A server in a sandbox with these flags, once `ready` holds.
#[track_caller]
fn inside(flags: &str, server: &str, ready: &str) -> Served {
    let world = World::shared();
    let sandbox = world.sandbox().flags(flags);
    install(world, &sandbox);
    let script = format!(
        "sh -e {server} >log 2>&1 & until {ready} >/dev/null 2>&1; do kill -0 $! || {{ cat log >&2; exit 1; }}; sleep 0.05; done
        echo up; cat; kill $!; wait"
    );
    Served::start(&sandbox, &["sh", "-ec", &script])
}

#[track_caller]
fn on_the_host(script: &str) -> Ran {
    World::shared().on_the_host(&["bash", "-euc", script])
}

/// wrk was answered, and nothing went wrong.
#[track_caller]
fn assert_wrk(ran: &Ran) {
    ran.exits(0)
        .says(" requests in ")
        .never_says("\n  0 requests in")
        .never_says("Socket errors")
        .never_says("Non-2xx");
}

/// pgbench did so many transactions, and none failed.
#[track_caller]
fn assert_pgbench(ran: &Ran, transactions: &[u32]) {
    ran.exits(0);
    for count in transactions {
        ran.says(&format!(
            "number of transactions actually processed: {count}/{count}\nnumber of failed transactions: 0 "
        ));
    }
}

#[test]
fn nginx_inside_is_reached_with_curl_and_wrk() {
    let ready = "curl -sf http://[::1]/";
    let served = inside("-p 22080:80 -p [::1]:22080:80", "nginx.sh 80 0.0.0.0 [::]", ready);
    for family in Family::BOTH {
        let url = format!("http://{}:22080/", family.in_url(family.loopback()));
        let ran = on_the_host(&format!("curl -sS {url}"));
        ran.exits(0).says("hello to ").never_says("to 127.0.0.1").never_says("to ::1");
        assert_wrk(&on_the_host(&format!("wrk -t2 -c100 -d1s --timeout 20s {url}")));
        // A connection for each request.
        assert_wrk(&on_the_host(&format!("wrk -t2 -c100 -d1s --timeout 20s -H 'Connection: close' {url}")));
    }
    drop(served);
}

#[test]
fn postgresql_inside_is_reached_with_psql_and_pgbench() {
    let served = inside("-p 22432:5432 -p [::1]:22432:5432", "db.sh 5432", "pg_isready -qh ::1");
    on_the_host("pgbench -i -q -h 127.0.0.1 -p 22432 -U guest postgres").exits(0);
    for family in Family::BOTH {
        let at = format!("-h {} -p 22432", family.loopback());
        let ask = "select 6 * 7000, inet_client_addr()";
        let ran = on_the_host(&format!("psql --no-psqlrc {at} -U guest -Atc '{ask}' postgres"));
        ran.exits(0).says("42000|").never_says("|127.0.0.1\n").never_says("|::1\n");
        // On four connections, and on a new one for each transaction.
        let ran = on_the_host(&format!("{PGBENCH} {at} -c4 -j2 -t100; {PGBENCH} {at} -SC -c4 -j2 -t25"));
        assert_pgbench(&ran, &[400, 100]);
    }
    drop(served);
}

#[test]
fn redis_inside_is_reached_with_redis_cli() {
    let served = inside("-p 22379:6379 -p [::1]:22379:6379", "redis.sh 6379 0.0.0.0 ::", "redis-cli -h ::1 ping");
    for family in Family::BOTH {
        on_the_host(&redis_clients(&format!("-h {} -p 22379", family.loopback()))).exits(0).says(REDIS_SAYS);
        let ran = on_the_host(&format!("redis-cli -h {} -p 22379 client list", family.loopback()));
        ran.exits(0).says("cmd=client").never_says(" addr=127.0.0.1").never_says(" addr=[::1]");
    }
    drop(served);
}

/// A small value, many of them down one pipe, a large one both ways, and fifty connections.
fn redis_clients(at: &str) -> String {
    format!(
        "redis-cli {at} set word hello; redis-cli {at} get word
        seq 20000 | sed 's/.*/SET n& &/' | redis-cli {at} --pipe; redis-cli {at} get n20000
        seq 1000000 | redis-cli {at} -x set large; redis-cli {at} get large | head -n 1000000 | cmp - <(seq 1000000) && echo same
        redis-benchmark {at} -q -c 50 -n 10000 -t set,get | tr '\\r' '\\n' | grep -c '^.ET: [0-9.]* requests per second'"
    )
}

const REDIS_SAYS: &str = "OK\nhello\nAll data transferred. Waiting for the last reply...\nLast reply received from server.\n\
                          errors: 0, replies: 20000\n20000\nOK\nsame\n2\n";

/// Runs clients on the host's services by its alias, in a sandbox that may reach these ports of it.
#[track_caller]
fn by_the_alias(family: Family, servers: &str, ports: &str, clients: &str) -> Ran {
    let world = World::shared();
    let sandbox = world.sandbox();
    install(world, &sandbox);
    let version = family.flag().trim_start_matches('-');
    fs::write(sandbox.folder().join("clients"), format!("{ALIAS}{clients}")).expect("the folder is ours");
    world.script_in(
        sandbox,
        &format!(
            "V={version}; {servers}
            $C run --quiet --net-rule allow@host:tcp:{ports} -e V=$V -- bash -eu ./clients
            $C run --quiet -e V=$V -- bash -eu ./clients >/dev/null 2>&1 && echo 'without the rule' || true"
        ),
    )
}

/// What clients inside call the host: a name that has both families, and its address of the one they are to use.
const ALIAS: &str = r#"
name=host.cofferdam.internal
address=$(getent ahostsv$V $name | { read -r first rest; echo $first; })
if [ $V = 6 ]; then url="[$address]"; else url=$address; fi
"#;

#[test]
fn nginx_on_the_host_is_reached_by_its_alias() {
    for (family, port) in [(Family::V4, 23080), (Family::V6, 23081)] {
        let address = family.in_url(family.loopback());
        let servers =
            format!("serve sh -e nginx.sh {port} {address}; until_ curl -sf -o /dev/null http://{address}:{port}/");
        let clients = format!(
            "curl -sS -$V http://$name:{port}/; curl -sS http://$url:{port}/; wrk -t2 -c100 -d1s --timeout 20s http://$url:{port}/"
        );
        let ran = by_the_alias(family, &servers, &port.to_string(), &clients);
        // Whichever of the host's loopbacks it listens on.
        ran.says(&format!("hello to {0}\nhello to {0}\n", family.loopback())).never_says("without the rule");
        assert_wrk(&ran);
    }
}

#[test]
fn postgresql_on_the_host_is_reached_by_its_alias() {
    for (family, port) in [(Family::V4, 23432), (Family::V6, 23433)] {
        let servers = format!("serve sh -e db.sh {port}; until_ pg_isready -qh 127.0.0.1 -p {port}");
        let clients = format!(
            "at='-p {port} -U guest postgres'
            psql --no-psqlrc -h $name -Atc 'select 6 * 7000' $at
            pgbench -i -q -h $address $at
            pgbench -n -h $address -c4 -j2 -t100 $at
            pgbench -n -h $address -SC -c4 -j2 -t25 $at"
        );
        let ran = by_the_alias(family, &servers, &port.to_string(), &clients);
        assert_pgbench(&ran, &[400, 100]);
        ran.says("42000\n").never_says("without the rule");
    }
}

#[test]
fn redis_on_the_host_is_reached_by_its_alias() {
    for (family, port) in [(Family::V4, 23379), (Family::V6, 23380)] {
        let servers = format!("serve sh -e redis.sh {port} 127.0.0.1 ::1; until_ redis-cli -p {port} ping");
        let clients = redis_clients(&format!("-h $address -p {port}"));
        let ran = by_the_alias(family, &servers, &port.to_string(), &clients);
        ran.exits(0).says(REDIS_SAYS).never_says("without the rule");
    }
}

#[test]
fn git_pushes_to_the_hosts_sshd_by_a_rule() {
    for (family, port) in [(Family::V4, 23022), (Family::V6, 23023)] {
        let address = family.loopback();
        let servers = format!(
            "serve /usr/sbin/sshd -D -e -f $WORLD/etc/sshd.conf -p {port} -o ListenAddress={address}
            until_ sh -c 'ss -Hltn sport = :{port} | grep -q .'"
        );
        let clients = format!(
            "T=$(mktemp -d); install -m600 key $T/key; branch=by-the-alias-$V
            export GIT_SSH_COMMAND=\"ssh -i $T/key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=$T/known\"
            git clone -q -$V ssh://guest@$name:{port}{repository} $T/copy; cd $T/copy
            echo more >>README
            git -c user.name=guest -c user.email=guest@wall-test.com commit -qam 'Say more'
            git push -q -$V origin HEAD:$branch
            git ls-remote origin $branch | grep -q $(git rev-parse HEAD) && echo pushed",
            repository = World::shared().path("git/project.git").display(),
        );
        let ran = by_the_alias(family, &servers, &port.to_string(), &clients);
        ran.exits(0).says("pushed\n").never_says("without the rule");
    }
}
