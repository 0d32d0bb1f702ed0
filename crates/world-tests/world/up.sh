#!/bin/sh
# Makes the closed world of these tests, prints `up`, and keeps it until stdin ends. It is process 1 of a pid namespace,
# so that everything started here ends with it. WORLD_HAS_ROOT=1 says that it has the machine's root and not just a user
# namespace's.
#
#   up.sh DIR        DIR: an empty folder, for everything that the world needs and leaves
#
# The network namespace that this starts in is the *host*: the machine that runs Cofferdam. It makes a second one, the
# *world*, with every server in it. One veth joins the two; neither has an uplink.
#
#   host   lan0 192.168.77.2/24, 2606:4700:77::2/64, default routes into the world
#   world  lan0 192.168.77.1/24, 2606:4700:77::1/64; on its loopback the addresses below
#
#   web     93.184.215.14  2606:2800:21f:cb07::14    every server
#   dns     93.184.215.53  2606:2800:21f:cb07::53    dnsmasq, the host's resolver
#   other   151.101.1.69   2a04:4e42::645            the same servers, another public address
#   inside  10.77.0.5      fd12:3456:789a::5         the same servers on a private address
#   meta    169.254.169.254                          the same servers where clouds keep their credentials
#   lan     192.168.77.50                            the same servers on the host's own network
#   prohibited, unreachable, silent: 93.184.215.97, .98, .99 and 2606:2800:21f:cb07::97, ::98, ::99
#
# web is wide0-test.com to wide39-test.com and every name below them, too.
#
# web is pypi.org as well, whose pages lead to files.pythonhosted.org, which is other.
#
# With WORLD_RESOLVERS=1 there are more resolvers, each with both families, 2606:2800:21f:cb07::54 and so on:
#
#   93.184.215.54  knot: names-test.com, and signed-test.com which it signs
#   93.184.215.55  unbound: a recursive resolver for these, script-test.com and what dnsmasq knows; over TLS
#                  (853) and HTTPS (8443) as well, where it is dns.wall-test.com too
#   93.184.215.56  names.py: script-test.com; over TLS as well, once with a bad certificate
#   93.184.215.57  nothing listens
#   93.184.215.58  named, of bind9: a recursive resolver as unbound is
#
# With WORLD_NO_IPV4=1 or WORLD_NO_IPV6=1 the host has neither address nor route of that family beyond its loopback, and asks the
# resolver over the other. The world has both all the same.
#
# With WORLD_EVERYTHING=1 there are these too, and a capture of all that passes between the two, log/lan.frames:
#
#   web     PostgreSQL on TCP 5432, with and without TLS; a server of HTTP/3 on UDP 443
#
# Public addresses are from real public space, so that any classifier takes them for public. They exist only here.
set -eu
DIR=$1 FILES=$(cd "$(dirname "$0")" && pwd)
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
umask 022
chmod 0755 "$DIR"
mkdir -p "$DIR/etc" "$DIR/log" "$DIR/run/nginx" "$DIR/home/.ssh" "$DIR/work" "$DIR/www/files" "$DIR/www/upload" \
	"$DIR/www/simple/wallpkg" "$DIR/pypi/simple" "$DIR/pythonhosted/packages" "$DIR/git"
exec 2>"$DIR/log/up"
set -x

# ---- the two namespaces ----
unshare --net sleep infinity </dev/null >/dev/null &
WORLD=$!
until [ "$(readlink /proc/$WORLD/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
world() { nsenter -t $WORLD -n -- "$@"; }

for in_namespace in "" world; do
	$in_namespace ip link set lo up
	$in_namespace sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.accept_dad=0 \
		net.ipv6.conf.default.accept_ra=0 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
done
ip link add lan0 type veth peer name lan0 netns $WORLD
world ip addr add 192.168.77.1/24 dev lan0
world ip -6 addr add 2606:4700:77::1/64 dev lan0 nodad
ip link set lan0 up
world ip link set lan0 up
resolver=93.184.215.53
if [ "${WORLD_NO_IPV4:-0}" = 1 ]; then
	resolver=2606:2800:21f:cb07::53
else
	ip addr add 192.168.77.2/24 dev lan0
	ip route add default via 192.168.77.1
fi
if [ "${WORLD_NO_IPV6:-0}" != 1 ]; then
	ip -6 addr add 2606:4700:77::2/64 dev lan0 nodad
	ip -6 route add default via 2606:4700:77::1
fi
# Distributions open ping sockets to everyone by this; a fresh namespace has them closed.
if [ "$WORLD_HAS_ROOT" = 1 ]; then ping_groups="0 2147483647"; else ping_groups="0 0"; fi
sysctl -qw "net.ipv4.ping_group_range=$ping_groups"

for address in 93.184.215.14 93.184.215.53 151.101.1.69 10.77.0.5 169.254.169.254 192.168.77.50; do
	world ip addr add $address/32 dev lo
done
for address in 2606:2800:21f:cb07::14 2606:2800:21f:cb07::53 2a04:4e42::645 fd12:3456:789a::5; do
	world ip -6 addr add $address/128 dev lo nodad
done
if [ "${WORLD_RESOLVERS:-0}" = 1 ]; then
	for last in 54 55 56 57 58; do
		world ip addr add 93.184.215.$last/32 dev lo
		world ip -6 addr add 2606:2800:21f:cb07::$last/128 dev lo nodad
	done
fi
world ip route add prohibit 93.184.215.97
world ip route add unreachable 93.184.215.98
world ip route add blackhole 93.184.215.99
world ip -6 route add prohibit 2606:2800:21f:cb07::97
world ip -6 route add unreachable 2606:2800:21f:cb07::98
world ip -6 route add blackhole 2606:2800:21f:cb07::99
world sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0 \
	net.ipv6.icmp.ratelimit=0 net.ipv4.ip_unprivileged_port_start=0

# ---- what its machines know ----
printf 'nameserver %s\noptions timeout:2 attempts:2\n' $resolver >"$DIR/etc/resolv.conf"
{ cat /etc/passwd; echo "guest:x:1500:1500::$DIR/home:/bin/bash"; } >"$DIR/etc/passwd"
# Without a group `tty`, sshd leaves a terminal to its user's group and needs no privilege for it.
{ grep -v ^tty: /etc/group; echo "guest:x:1500:"; } >"$DIR/etc/group"
for file in resolv.conf passwd group; do mount --bind "$DIR/etc/$file" /etc/$file; done
for file in dnsmasq.conf nginx.conf sshd.conf knot.conf unbound.conf named.conf names-test.com.zone signed-test.com.zone; do sed "s|@DIR@|$DIR|g" "$FILES/$file" >"$DIR/etc/$file"; done

# A wide web: 40 domains with any number of names each, the even ones over IPv4 alone, the odd ones over IPv6 alone.
for number in $(seq 0 2 38); do
	echo "address=/wide$number-test.com/93.184.215.14"
	echo "address=/wide$((number + 1))-test.com/2606:2800:21f:cb07::14"
done >>"$DIR/etc/dnsmasq.conf"

# ---- keys and content ----
names=DNS:wall-test.com,DNS:*.wall-test.com,DNS:pypi.org,DNS:files.pythonhosted.org,IP:93.184.215.14,IP:151.101.1.69,IP:10.77.0.5
names=$names,IP:93.184.215.55,IP:93.184.215.56,IP:2606:2800:21f:cb07::55,IP:2606:2800:21f:cb07::56
names=$names,IP:2606:2800:21f:cb07::14,IP:2a04:4e42::645,IP:fd12:3456:789a::5
curve="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
openssl req -x509 $curve -days 30 -subj "/CN=world authority" -keyout "$DIR/etc/ca.key" -out "$DIR/etc/ca.pem"
openssl req $curve -subj "/CN=wall-test.com" -keyout "$DIR/etc/web.key" -out "$DIR/etc/web.csr"
echo "subjectAltName=$names" >"$DIR/etc/web.ext"
openssl x509 -req -days 30 -in "$DIR/etc/web.csr" -CA "$DIR/etc/ca.pem" -CAkey "$DIR/etc/ca.key" -CAcreateserial \
	-extfile "$DIR/etc/web.ext" -out "$DIR/etc/web.pem"
openssl req -x509 $curve -days 30 -subj "/CN=nobody" -addext "subjectAltName=$names" -keyout "$DIR/etc/bad.key" \
	-out "$DIR/etc/bad.pem"
ssh-keygen -q -t ed25519 -N "" -f "$DIR/etc/ssh_host_key"
ssh-keygen -q -t ed25519 -N "" -f "$DIR/etc/client_key"
cp "$DIR/etc/client_key.pub" "$DIR/home/.ssh/authorized_keys"
echo "hello from the world" >"$DIR/www/index.html"
# Neither compressible nor periodic, so that a block that is swapped, lost or repeated shows in the checksum.
head -c "$WORLD_BIG_FILE_BYTES" /dev/zero | openssl enc -aes-128-ctr -pass pass:world -pbkdf2 -nosalt >"$DIR/www/files/big"
sha256sum <"$DIR/www/files/big" | cut -d" " -f1 >"$DIR/etc/big.sha256"
python3 "$FILES/make_wheel.py" wallpkg "$DIR/www/simple/wallpkg"
# An index and its files on two machines, as pypi.org has them.
for package in wallpkg walltools wallapp; do
	mkdir "$DIR/pypi/simple/$package"
	requires=
	if [ $package = wallapp ]; then requires=walltools; fi
	WHEEL_REQUIRES=$requires python3 "$FILES/make_wheel.py" $package "$DIR/pypi/simple/$package" https://files.pythonhosted.org/packages/
	mv "$DIR/pypi/simple/$package"/*.whl "$DIR/pythonhosted/packages"
done

# Registries of npm, on every name of web; the files of each are at another name, of one family.
python3 "$FILES/make_npm.py" "$DIR/www" also4.wall-test.com also6.wall-test.com

GIT_CONFIG_GLOBAL=$DIR/etc/gitconfig GIT_CONFIG_SYSTEM=/dev/null HOME=$DIR/home
export GIT_CONFIG_GLOBAL GIT_CONFIG_SYSTEM HOME
printf '[init]\n\tdefaultBranch = main\n[user]\n\tname = world\n\temail = world@wall-test.com\n' >"$GIT_CONFIG_GLOBAL"
git init -q "$DIR/run/seed"
echo "hello from the world" >"$DIR/run/seed/README"
git -C "$DIR/run/seed" add README
git -C "$DIR/run/seed" commit -qm "Say hello"
git clone -q --bare "$DIR/run/seed" "$DIR/git/project.git"
git -C "$DIR/git/project.git" config http.receivepack true
# A project with another one in it, which is fetched from another name.
git init -q "$DIR/run/whole"
printf '[submodule "part"]\n\tpath = part\n\turl = https://other.wall-test.com/git/project.git\n' >"$DIR/run/whole/.gitmodules"
git -C "$DIR/run/whole" add .gitmodules
git -C "$DIR/run/whole" update-index --add --cacheinfo "160000,$(git -C "$DIR/run/seed" rev-parse HEAD),part"
git -C "$DIR/run/whole" commit -qm "Take a part in"
git clone -q --bare "$DIR/run/whole" "$DIR/git/whole.git"
chmod 0600 "$DIR/etc/ssh_host_key" "$DIR/etc/client_key"
chmod 0777 "$DIR/work"
if [ "$WORLD_HAS_ROOT" = 1 ]; then
	chown -R 1500:1500 "$DIR/home" "$DIR/run" "$DIR/log" "$DIR/git" "$DIR/www/upload" "$DIR/etc/ssh_host_key" "$DIR/etc/web.key" "$DIR/etc/bad.key"
fi

# ---- the servers: none has privilege ----
serve() {
	log=$DIR/log/$1
	shift
	world "$FILES/as_guest.sh" "$@" </dev/null >"$log" 2>&1 &
}
wait_for() {
	tries=0
	until "$@"; do
		tries=$((tries + 1))
		if [ $tries -gt 300 ]; then echo "not so after fifteen seconds: $*" >&2; exit 1; fi
		sleep 0.05
	done
}
# The protocol, -t or -u, and what `ss` filters by.
listens() { world ss -Hln "$1" "$2" | grep -q .; }
serve dnsmasq dnsmasq --keep-in-foreground --conf-file="$DIR/etc/dnsmasq.conf"
serve nginx nginx -e "$DIR/log/nginx.error" -c "$DIR/etc/nginx.conf"
serve fcgiwrap fcgiwrap -c 2 -s "unix:$DIR/run/fcgi"
serve sshd /usr/sbin/sshd -D -e -f "$DIR/etc/sshd.conf"
serve git git daemon --reuseaddr --export-all --base-path="$DIR/git"
serve iperf3 iperf3 -s -p 5201
serve manners python3 "$FILES/manners.py"
if [ "${WORLD_RESOLVERS:-0}" = 1 ]; then
	for program in lookup dnsload; do musl-gcc -static -O2 -o "$DIR/etc/$program" "$FILES/$program.c"; done
	mkdir "$DIR/run/knot"
	if [ "$WORLD_HAS_ROOT" = 1 ]; then chown 1500:1500 "$DIR/run/knot"; fi
	serve knot knotd -c "$DIR/etc/knot.conf"
	serve unbound unbound -d -c "$DIR/etc/unbound.conf"
	# A copy, since AppArmor lets the original read its configuration in /etc alone.
	cp /usr/sbin/named "$DIR/run/named"
	serve named "$DIR/run/named" -g -n 1 -c "$DIR/etc/named.conf"
	serve names python3 "$FILES/names.py" "$DIR"
	for address in 93.184.215.54:53 93.184.215.55:53 93.184.215.55:853 93.184.215.55:8443 93.184.215.56:53 93.184.215.56:8853 93.184.215.58:53; do
		wait_for listens -t "src $address"
	done
fi
if [ "${WORLD_EVERYTHING:-0}" = 1 ]; then
	world python3 "$FILES/capture.py" lan0 "$DIR/log/lan.frames" </dev/null >/dev/null 2>"$DIR/log/capture" &
	gccgo -static-libgo -O1 -o "$DIR/etc/golookup" "$FILES/lookup.go"
	serve postgres "$FILES/postgres.sh" "$DIR/run/postgres" -c ssl=on -c ssl_cert_file="$DIR/etc/web.pem" -c ssl_key_file="$DIR/etc/web.key"
	for address in 93.184.215.14 2606:2800:21f:cb07::14; do
		serve "quic.$address" gtlsserver -q -d "$DIR/www" $address 443 "$DIR/etc/web.key" "$DIR/etc/web.pem"
	done
	for address in 93.184.215.14 [2606:2800:21f:cb07::14]; do wait_for listens -u "src $address:443"; done
	wait_for listens -t "sport = :5432"
	wait_for [ -s "$DIR/log/lan.frames" ]
fi
# "TCP port" for each server that has to be there before the first test.
for port in 53 80 443 22 9418 5201 7; do wait_for listens -t "sport = :$port"; done
echo up
cat >/dev/null
if [ "${WORLD_KEEP:-0}" != 1 ]; then rm -rf "$DIR"; fi
