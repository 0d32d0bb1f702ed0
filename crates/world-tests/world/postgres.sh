#!/bin/sh
# A PostgreSQL for everybody in a folder that it makes: postgres.sh FOLDER [OPTION...]. Debian keeps its programs by version.
set -eu
FOLDER=$1
shift
PATH=$(echo /usr/lib/postgresql/*/bin | tr " " "\n" | tail -n 1):$PATH
initdb -D "$FOLDER" --auth=trust --username=guest --encoding=UTF8 --locale=C.UTF-8 --no-sync
printf 'host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n' >>"$FOLDER/pg_hba.conf"
exec postgres -D "$FOLDER" -k "$FOLDER" -h '*' -p 5432 -F -c shared_buffers=8MB -c max_connections=20 "$@"
