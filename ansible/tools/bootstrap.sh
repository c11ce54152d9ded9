#!/usr/bin/env bash
# Makes the tool environment from uv.lock: bootstrap.sh VENV main|dev. Needs Python 3.11 and, for its venv module, perhaps apt.
set -euo pipefail
venv=$1
group=$2
cd "$(dirname "$0")/../.."

say() { printf '%s\n' "$*" >&2; }

# A version manager's shim may point nowhere: ask the interpreter for its own path.
python=""
for candidate in "${PYTHON:-python3}" /usr/bin/python3 python3.13 python3.12 python3.11; do
    if path=$("$candidate" -c 'import sys; assert sys.version_info >= (3, 11); print(sys.executable)' 2>/dev/null); then
        python=$path
        break
    fi
done
if [ -z "$python" ]; then
    say "No Python from 3.11 on was found: install python3, or run make with PYTHON=/path/to/python3.11"
    exit 1
fi

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        # Debian and Ubuntu ship the module apart.
        version=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        say "Python's venv module is missing: installing $version"
        if [ "$(id -u)" != 0 ]; then
            say "This needs root: run  apt-get install $version  first"
            exit 1
        fi
        apt-get -o DPkg::Lock::Timeout=600 update -qq
        DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "$version" ca-certificates >/dev/null
    fi
    "$python" -m venv "$venv"
fi

# uv itself, in the version that the lock file names.
wanted=$(sed -n '/^name = "uv"$/{n;s/^version = "\(.*\)"$/\1/p}' uv.lock)
have=$("$venv/bin/uv" --version 2>/dev/null | cut -d' ' -f2 || true)
if [ "$have" != "$wanted" ]; then
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
    "$venv/bin/python" -m pip install --quiet "uv==$wanted"
fi

# `main` is what deploys, `dev` adds what tests; a dev environment stays one.
extra=()
if [ "$group" = main ] && [ ! -e "$venv/.tools-dev" ]; then
    extra+=(--no-dev)
fi
if [ -n "${PIP_INDEX_URL:-}${UV_DEFAULT_INDEX:-}" ]; then
    # The lock names the usual index in every address; on a mirror only names, versions and hashes count.
    list=$(mktemp)
    trap 'rm -f "$list"' EXIT
    "$venv/bin/uv" export --quiet --frozen --no-editable "${extra[@]}" --format requirements-txt --output-file "$list"
    VIRTUAL_ENV=$venv "$venv/bin/uv" pip sync --quiet --default-index "${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}" "$list"
else
    VIRTUAL_ENV=$venv UV_PROJECT_ENVIRONMENT=$venv "$venv/bin/uv" sync --quiet --frozen "${extra[@]}"
fi
touch "$venv/.tools-$group"
