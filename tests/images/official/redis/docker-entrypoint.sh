#!/bin/sh
# STAND-IN for the entry point of redis: options or a configuration file alone mean redis-server, as upstream.
set -e
case ${1:-} in
    -* | *.conf) set -- redis-server "$@" ;;
esac
# Upstream as well: what Redis stores is for its user.
umask 0077
exec "$@"
