#!/usr/bin/env bash
# Sees that there is a browser for the tests of the page. Ubuntu has Chromium as a snap only: there E2E_CHROMIUM names another one.
set -euo pipefail
chromium=${E2E_CHROMIUM:-/usr/bin/chromium}
[ -x "$chromium" ] && exit 0

say() { printf '%s\n' "$*" >&2; }

if [ -n "${E2E_CHROMIUM:-}" ]; then
    say "E2E_CHROMIUM is $chromium, which is no program: name one, for example E2E_CHROMIUM=/snap/bin/chromium"
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    say "$chromium is missing, which the tests of the page need: run  sudo apt-get install chromium fonts-dejavu-core  or name a browser in E2E_CHROMIUM"
    exit 1
fi
# Another run of apt may have the lock for minutes.
apt() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq "$@" >/dev/null; }
apt update
apt install -y --no-install-recommends chromium fonts-dejavu-core
say "Installed chromium, for the tests of the page"
