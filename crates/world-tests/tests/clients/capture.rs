//! What can be seen on the network of a run under an allow-list: nothing of a name that no rule allows.

use std::fs;
use std::time::{Duration, Instant};

use cofferdam_world_tests::{Family, World};

use crate::{sandbox, unbound};

/// Every means by which a program may say a name. `$ALLOWED` is a name that leads to the world's web server.
const MEANS: &str = r#"
for type in A AAAA TXT TYPE65 ANY; do
	for transport in +notcp +tcp; do
		dig $Q $transport $NAME $type
		for server in 93.184.215.53 93.184.215.56 2606:2800:21f:cb07::53 2606:2800:21f:cb07::56; do dig $Q $transport @$server $NAME $type; done
	done
done
dig $Q +norecurse +dnssec $NAME; dig $Q +cdflag +noedns $NAME; dig $Q -c CH $NAME TXT; dig $Q $NAME AXFR
for server in 93.184.215.55 2606:2800:21f:cb07::55; do dig $Q +tls @$server $NAME; dig $Q +https @$server -p 8443 $NAME; done
getent ahosts $NAME; ./lookup $NAME; ./golookup addresses $NAME
node -e "require('dns').resolve('$NAME', () => {}); require('dns').lookup('$NAME', () => {})"
curl -sm2 http://$NAME/; wget -qT2 -t1 -O- http://$NAME/; ssh -o ConnectTimeout=2 $NAME; git ls-remote git://$NAME/x; ping -c1 -W1 $NAME
psql "host=$NAME connect_timeout=2"; gtlsclient -q --handshake-timeout=100ms $NAME 443 https://$NAME/
curl -sm2 --connect-to ::$ALLOWED: http://$NAME/; curl -skm2 --connect-to ::$ALLOWED: https://$NAME/
curl -sm2 -x http://$ALLOWED:80 http://$NAME/; curl -sm2 -x http://$ALLOWED:80 https://$NAME/
python3 - $NAME <<'PROGRAM'
import socket, sys
name = sys.argv[1]
question = b''.join(bytes([len(label)]) + label.encode() for label in name.split('.')) + b'\0\0\1\0\1'
query = b'\1\2\1\0\0\1\0\0\0\0\0\0' + question
two = b'\1\2\1\0\0\2\0\0\0\0\0\0' + question * 2
answer = b'\1\2\x81\0\0\1\0\0\0\0\0\0' + question
for address, port in [('93.184.215.53', 53), ('2606:2800:21f:cb07::53', 53), ('93.184.215.56', 53), ('93.184.215.56', 853), ('224.0.0.251', 5353),
                      ('ff02::fb%tap0', 5353), ('224.0.0.252', 5355), ('93.184.215.56', 137), ('93.184.215.14', 443)]:
    for message in (query, two, answer, query[:-3], question):
        try:
            family = socket.AF_INET6 if ':' in address else socket.AF_INET
            socket.socket(family, socket.SOCK_DGRAM).sendto(message, socket.getaddrinfo(address, port)[0][4])
            with socket.create_connection((address, port), 0.2) as stream:
                stream.sendall(len(message).to_bytes(2, 'big') + message)
        except OSError:
            pass
PROGRAM
"#;

#[test]
fn no_label_of_a_denied_name_is_on_the_network() {
    let world = World::with_everything();
    for (family, number) in [(Family::V4, "4"), (Family::V6, "6")] {
        let allowed = format!("v{number}.wall-test.com");
        let last = format!("lasthere{number}");
        let flags = format!(
            "--allow {allowed} --allow {last}.wild.names-test.com --allow 93.184.215.56:53 --allow [2606:2800:21f:cb07::56]:53 --dns-nameserver {}",
            unbound(family)
        );
        let sandbox = sandbox(&flags);
        for program in ["lookup", "golookup"] {
            fs::copy(world.path(&format!("etc/{program}")), sandbox.folder().join(program))
                .expect("the folder is ours");
        }
        let mut script = format!("set +e; ALLOWED={allowed} Q='+tries=1 +time=1'; {{\n");
        for name in [format!("stolen{number}.script-test.com"), format!("more.StoleN{number}.{allowed}")] {
            script.push_str(&format!("NAME={name}\n{MEANS}"));
        }
        script.push_str(&format!("}} >/dev/null 2>&1\ndig +short +tries=1 {last}.wild.names-test.com"));
        sandbox.sh(&script).exits(0).says(Family::V4.web());
        // It is written in order: all of the run is there when its last question is.
        let capture = until_seen(world, &last);
        assert!(!seen(&capture, "FRAMES LOST"), "the capture is not whole");
        assert!(!seen(&capture, &format!("stolen{number}")), "a denied name was seen on the network");
    }
}

fn until_seen(world: &World, label: &str) -> Vec<u8> {
    let began = Instant::now();
    loop {
        let capture = fs::read(world.path("log/lan.frames")).expect("the world has a capture");
        if seen(&capture, label) {
            return capture;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{label} was not seen on the network");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn seen(capture: &[u8], label: &str) -> bool {
    capture.windows(label.len()).any(|window| window.eq_ignore_ascii_case(label.as_bytes()))
}
