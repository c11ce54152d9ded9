#!/bin/bash
# One group of packages into the image's Python, exactly as the lock has them, or the client: install.sh GROUP|client
set -euo pipefail
group=$1
export SSL_CERT_FILE=/run/site-ca.pem UV_CONFIG_FILE=/run/uv.toml UV_CACHE_DIR=/run/cache UV_LINK_MODE=copy UV_NO_PROGRESS=1
[ -s "${SSL_CERT_FILE}" ] || unset SSL_CERT_FILE
install=(/run/uv/bin/uv pip install --python /usr/bin/python3 --break-system-packages --no-deps)
touch /run/begin
if [ "${group}" = client ]; then
  cp -r /run/client /tmp/client
  "${install[@]}" /tmp/client
  # uv's note of when the files were written
  site=$(python3 -c 'import importlib.metadata as m; print(m.distribution("clearml-client").locate_file(""))')
  rm "${site}"/clearml_client-*.dist-info/uv_cache.json
  sed -i '/uv_cache.json/d' "${site}"/clearml_client-*.dist-info/RECORD
  # For pip's -c, so that who adds packages on top leaves these as they are.
  sed -nE 's/^([A-Za-z0-9._-]+)(\[[^]]*\])?(==[^ ;]+).*/\1\3/p' /opt/trainyard/locks/*.txt | sort -u >/opt/trainyard/constraints.txt
elif [[ " ${PACKAGE_GROUPS} " == *" ${group} "* ]]; then
  # The image's own record of what it has.
  "${install[@]}" --require-hashes -r "/run/lists/${group}.txt"
  install -D -m 0644 "/run/lists/${group}.txt" "/opt/trainyard/locks/${group}.txt"
else
  exit 0
fi
# Experiments import compiled modules: each container would compile them again. By hash, since dates are changed below; in lists that are
# always the same ones, since what a process compiled before shows in the next file; -B, -S: nothing imported on the way writes its own.
# Templates that are no Python are left alone.
find /usr/local/lib /opt -name '*.py' -cnewer /run/begin | LC_ALL=C sort |
  PYTHONHASHSEED=0 xargs --no-run-if-empty -P "$(nproc)" -n 400 \
    /usr/bin/python3 -B -S -m compileall -q --invalidation-mode unchecked-hash >/dev/null || true
SOURCE_DATE_EPOCH=${FILES_EPOCH} bash /run/scripts/tidy.sh
