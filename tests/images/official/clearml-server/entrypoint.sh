#!/usr/bin/env bash
# STAND-IN for the entry point of clearml/server, with its three commands.
set -euo pipefail
case ${1:-} in
    # By its path, as upstream's own commands need no PYTHONPATH: the stack may set it to something else.
    apiserver | fileserver | webserver) exec python3 /opt/clearml/apiserver/commands.py "$1" ;;
    *)
        echo "Server type '${1:-}' is invalid. Please choose either apiserver, webserver or fileserver." >&2
        exit 1
        ;;
esac
