#!/bin/sh
# Runs a command as the unprivileged user `guest`: as root by taking its id, otherwise in a user namespace where the
# caller has that id and no capability.
#   as_guest.sh CMD [ARG...]
if [ "$WORLD_HAS_ROOT" = 1 ]; then
	exec setpriv --reuid 1500 --regid 1500 --clear-groups -- "$@"
fi
exec unshare --user --map-user=1500 --map-group=1500 -- "$@"
