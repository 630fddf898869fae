#!/usr/bin/env bash
# Makes the two images that infra/image/Dockerfile builds on, for machines that reach Debian's and Python's packages
# but no image registry (about 1 minute the first time, nothing afterwards):
#   qwen3-stack/base:bookworm      Debian 12 with Python and CA certificates; what the server's image starts from
#   qwen3-stack/builder:bookworm   the same and this machine's CA bundle and pip settings; builds, is never shipped
# usage: base-image.sh
set -euo pipefail
base=qwen3-stack/base:bookworm builder=qwen3-stack/builder:bookworm

if ! docker image inspect "$base" >/dev/null 2>&1; then
  root=$(mktemp -d); trap 'rm -rf "$root"' EXIT
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root" >/dev/null
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/cache/debconf/*-old "$root"/var/log/* \
    "$root"/usr/share/{doc,info,locale,man}/* "$root"/var/lib/dpkg/*-old
  find "$root/usr" -name __pycache__ -prune -exec rm -rf {} +
  tar -C "$root" -c . | docker import -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    -c 'CMD ["python3"]' - "$base" >/dev/null
fi

if ! docker image inspect "$builder" >/dev/null 2>&1; then
  context=$(mktemp -d); trap 'rm -rf "${root:-}" "$context"' EXIT
  cp /etc/ssl/certs/ca-certificates.crt "$context/"
  python3 -m pip config list 2>/dev/null | sed -n "s/^global\.\(index-url\|extra-index-url\|trusted-host\)=/\1=/p" \
    | { echo '[global]'; cat; } | tr -d "'" > "$context/pip.conf"
  printf '%s\n' "FROM $base" 'COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt' 'COPY pip.conf /etc/pip.conf' \
    'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' > "$context/Dockerfile"
  DOCKER_BUILDKIT=0 docker build -q -t "$builder" "$context" >/dev/null 2>&1
fi
