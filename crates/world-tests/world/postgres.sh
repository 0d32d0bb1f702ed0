#!/bin/sh
# A PostgreSQL for everybody, in a folder of its own: postgres.sh DIR. Debian keeps its programs by version.
set -eu
DIR=$1
PATH=$(echo /usr/lib/postgresql/*/bin | tr " " "\n" | tail -n 1):$PATH
initdb -D "$DIR/run/postgres" --auth=trust --username=guest --encoding=UTF8 --locale=C.UTF-8 --no-sync
printf 'host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n' >>"$DIR/run/postgres/pg_hba.conf"
exec postgres -D "$DIR/run/postgres" -k "$DIR/run" -h '*' -p 5432 -F -c shared_buffers=8MB -c max_connections=20 \
	-c ssl=on -c ssl_cert_file="$DIR/etc/web.pem" -c ssl_key_file="$DIR/etc/web.key"
