#!/usr/bin/env bash
# Builds test tools from pinned Go modules into ~/.cache/qwen3-stack/bin, each only when it is not there yet.
# usage: build.sh NAME...     NAME: ollama
set -euo pipefail
bin=${QWEN3_STACK_CACHE:-$HOME/.cache/qwen3-stack}/bin; mkdir -p "$bin"

install_module() { # PACKAGE@VERSION LDFLAGS
  # Built beside the target and renamed, so that a build that was interrupted leaves no binary behind.
  local staging; staging=$(mktemp -d "$bin/.build.XXXXXX")
  GOBIN=$staging go install -trimpath -ldflags "-s -w $2" "$1"
  mv "$staging"/* "$bin/"; rmdir "$staging"; }

build() {
  [ -x "$bin/$1" ] && return
  local start=$SECONDS; echo "building $1 ..." >&2
  case $1 in
    # The compute kernels are C++ inside the module; without -march=native they use no AVX and are unfairly slow.
    ollama) CGO_ENABLED=1 CGO_CFLAGS='-O3 -march=native' CGO_CXXFLAGS='-O3 -march=native' install_module \
        github.com/ollama/ollama@v0.11.4 '-X github.com/ollama/ollama/version.Version=0.11.4' ;;
    *) echo "build.sh: unknown tool '$1'; known: ollama" >&2; exit 2 ;;
  esac
  echo "built $1 in $((SECONDS - start)) s" >&2
}
for name in "$@"; do build "$name"; done
