#!/usr/bin/env bash
# Builds the stand-ins for the upstream images: build.sh [target...]. Needs trainyard/base and trainyard/lite (make up builds them).
set -euo pipefail
cd "$(dirname "$0")"
declare -A tags=(
    [server]=clearml/server:2.3.0 [mongo]=mongo:7.0.22 [redis]=redis:7.4.1 [elasticsearch]=elasticsearch:8.17.0 [caddy]=caddy:2.10.2
)
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT
cp "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$secrets/ca.pem"
printf '[global]\ncert = /run/site-ca.pem\n%s\n' "${PIP_INDEX_URL:+index-url = $PIP_INDEX_URL}" >"$secrets/pip.conf"
printf 'Acquire::https::CaInfo "/run/site-ca.pem";\nAcquire::Retries "5";\n' >"$secrets/apt.conf"
for target in "${@:-server mongo redis elasticsearch caddy}"; do
    # Without quotes: the default is several words.
    # shellcheck disable=SC2086
    for one in $target; do
        DOCKER_BUILDKIT=1 docker build --quiet --network=host --target "$one" --tag "${tags[$one]}" \
            --secret "id=ca,src=$secrets/ca.pem" --secret "id=pip,src=$secrets/pip.conf" --secret "id=apt,src=$secrets/apt.conf" . >/dev/null
        echo "${tags[$one]}"
    done
done
