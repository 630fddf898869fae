#!/usr/bin/env bash
# Makes the image that monitoring.log_shipping's DaemonSet runs, where no registry is at hand: Debian 12 with rsyslog (a
# minute the first time, nothing afterwards; needs root and debootstrap). Prints its digest.
# usage: shipper-image.sh
set -euo pipefail
image=qwen3-stack/rsyslog:bookworm
if ! docker image inspect "$image" >/dev/null 2>&1; then
  command -v debootstrap >/dev/null || { echo "shipper-image.sh: no debootstrap: apt-get install debootstrap" >&2; exit 2; }
  root=$(mktemp -d); trap 'rm -rf "$root"' EXIT
  debootstrap --variant=minbase --include=rsyslog,rsyslog-gnutls bookworm "$root" > "$root.log" 2>&1 \
    || { tail -n 5 "$root.log" >&2; exit 1; }
  rm -rf "$root.log" "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/usr/share/{doc,info,locale,man}/*
  tar -C "$root" -c . | docker import - "$image" >/dev/null
fi
docker image inspect -f '{{.Id}}' "$image"
