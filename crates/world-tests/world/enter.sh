#!/bin/sh
# Runs a command on the world's host, which sees the world's names and users. Started by `nsenter` in the host's network
# namespace, with privilege there, in a mount namespace of its own.
#   enter.sh DIR root|guest CMD [ARG...]
# WORLD_BREAK, if set, is a piece of shell that takes something away from the machine first; it may `exec "$@"` itself.
DIR=$1 WHO=$2
shift 2
for file in resolv.conf passwd group; do
	mount --bind "$DIR/etc/$file" /etc/$file || exit 99
done
if [ -n "${WORLD_BREAK:-}" ]; then
	eval "$WORLD_BREAK" || exit 98
	unset WORLD_BREAK
fi
[ "$WHO" = root ] && exec "$@"
exec "$(dirname "$0")/as_guest.sh" "$@"
