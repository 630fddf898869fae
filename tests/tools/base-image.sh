#!/usr/bin/env bash
# Makes the two images that infra/image/Dockerfile builds on, for machines that reach Debian's and Python's packages
# but no image registry (2 minutes the first time, nothing afterwards; needs root and debootstrap):
#   qwen3-stack/base:bookworm      Debian 12 with Python and CA certificates; what the server's image starts from
#   qwen3-stack/builder:bookworm   the same with this machine's CA bundle and package index; builds, is never shipped
# usage: base-image.sh
set -euo pipefail
base=qwen3-stack/base:bookworm builder=qwen3-stack/builder:bookworm
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT

if ! docker image inspect "$base" >/dev/null 2>&1; then
  command -v debootstrap >/dev/null || { echo "base-image.sh: no debootstrap: apt-get install debootstrap" >&2; exit 2; }
  root=$scratch/root
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root" > "$scratch/log" 2>&1 \
    || { tail -n 5 "$scratch/log" >&2; exit 1; }
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/cache/debconf/*-old "$root"/var/log/* \
    "$root"/usr/share/{doc,info,locale,man}/* "$root"/var/lib/dpkg/*-old
  tar -C "$root" -c . | docker import -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    -c 'CMD ["python3"]' - "$base" >/dev/null
fi

if ! docker image inspect "$builder" >/dev/null 2>&1; then
  context=$scratch/builder; mkdir "$context"
  cp /etc/ssl/certs/ca-certificates.crt "$context/"
  { echo '[global]'; python3 -m pip config list 2>/dev/null \
      | sed -En "s/^(global|:env:)\.(index-url|extra-index-url|trusted-host)='(.*)'$/\2 = \3/p"; } > "$context/pip.conf"
  cat > "$context/Dockerfile" <<DOCKERFILE
FROM $base
COPY ca-certificates.crt /etc/ssl/certs/
COPY pip.conf /etc/
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
DOCKERFILE
  docker build -q -t "$builder" "$context" > "$scratch/log" 2>&1 || { tail -n 5 "$scratch/log" >&2; exit 1; }
fi
