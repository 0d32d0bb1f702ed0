//! psql and PostgreSQL: a protocol of its own, which turns into TLS after a question in the clear.

use cofferdam_world_tests::{Family, Ran};

use crate::sandbox;

const ASK: &str = "SELECT 6 * 7000, (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid())";

fn psql(flags: &str, connection: &str) -> Ran {
    sandbox(flags).run(&[
        "psql",
        "--no-psqlrc",
        "-Atc",
        ASK,
        &format!("{connection} dbname=postgres user=guest connect_timeout=8"),
    ])
}

#[test]
fn psql_works_by_name_in_the_clear_and_over_tls() {
    for family in Family::BOTH {
        let host = family.name();
        for (tls, said) in [
            ("sslmode=disable", "42000|f"),
            ("sslmode=prefer", "42000|t"),
            ("sslmode=verify-full sslrootcert=ca.pem", "42000|t"),
            ("sslmode=verify-full sslrootcert=ca.pem sslsni=0", "42000|t"),
        ] {
            psql(&format!("--allow {host}:5432"), &format!("host={host} {tls}")).exits(0).says(said);
        }
    }
}

#[test]
fn psql_moves_more_than_a_window_both_ways() {
    for family in Family::BOTH {
        let host = family.name();
        let script = format!(
            "export PGHOST={host} PGUSER=guest PGDATABASE=postgres PGSSLMODE=require
            seq 300000 | psql --no-psqlrc -qAtc 'CREATE TEMPORARY TABLE n (i int)' -c '\\copy n FROM pstdin' -c '\\copy n TO pstdout' | sha256sum
            seq 300000 | sha256sum"
        );
        let ran = sandbox(&format!("--allow {host}:5432")).sh(&script);
        let out = ran.exits(0).stdout();
        let sums: Vec<&str> = out.lines().collect();
        assert!(sums.len() == 2 && sums[0] == sums[1], "{ran}");
    }
}

#[test]
fn denied_is_psql_by_another_name_by_address_and_on_another_port() {
    for family in Family::BOTH {
        let host = family.name();
        for tls in ["sslmode=disable", "sslmode=require"] {
            psql("--allow other.wall-test.com", &format!("host={host} {tls}"))
                .exits(2)
                .complains(&format!("could not translate host name \"{host}\" to address: Name or service not known"));
            psql(&format!("--allow {host}:5432"), &format!("hostaddr={} {tls}", family.web()))
                .exits(2)
                .complains("Connection refused");
            psql(&format!("--allow {host}:443"), &format!("host={host} {tls}"))
                .exits(2)
                .complains("Connection refused");
        }
    }
}

#[test]
fn denied_is_another_name_where_tls_comes_first_on_the_port_of_a_database() {
    for family in Family::BOTH {
        let host = family.name();
        let hello = |name: &str| {
            sandbox(&format!("--allow {host}:5432"))
                .sh(&format!("openssl s_client -connect {host}:5432 -servername {name} </dev/null 2>&1 || true"))
        };
        hello("git.wall-test.com").says("alert access denied");
        // This one reaches the server, which waits for its own question first and has no alerts.
        hello(host).says("CONNECTED").never_says("access denied");
    }
}
