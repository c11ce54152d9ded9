#!/bin/bash
# The end of every step that writes: nothing is left that depends on when or where it ran, so that the same inputs give the same layer.
set -euo pipefail
# Emptied, not deleted, where a layer below may have the file: the mark that hides it would carry the hour.
rm -rf /tmp/* /var/tmp/* /root/.cache
find /var/log -type f -size +0 -exec truncate --size=0 {} +
for file in /etc/*- /var/lib/dpkg/*-old /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache; do
  [ ! -s "${file}" ] || truncate --size=0 "${file}"
done
# Not what is mounted for the step alone.
here=(find / -xdev "(" -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /etc/resolv.conf -o -path /etc/hosts
  -o -path /var/cache/apt -o -path /var/lib/apt/lists ")" -prune -o)
# No program of these images needs another user's rights.
"${here[@]}" -type f -perm /6000 -exec chmod a-s {} +
# What is younger than the epoch was written now: packages unpack with the dates of their archives, which are no reason to keep these.
"${here[@]}" -newermt "@${SOURCE_DATE_EPOCH}" -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +
