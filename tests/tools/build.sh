#!/usr/bin/env bash
# Builds test tools from pinned Go modules into ~/.cache/qwen3-stack/bin, each only when it is not there yet.
# Needs Go 1.26, or one since 1.21 that may fetch it.
# usage: build.sh NAME...
#   NAME: ollama helm prometheus-adapter etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy
#         kubectl pause pulumi pulumi-language-python pulumi-resource-kubernetes
#         or a set of them: cluster (one Kubernetes node: cluster.sh), engine (Pulumi and its Kubernetes provider)
# On 2 cores, with nothing built before: cluster 11 minutes, engine 21 (half of it the provider, 2 GB of memory),
# helm 4, prometheus-adapter 4, ollama 8.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${QWEN3_STACK_CACHE:-$HOME/.cache/qwen3-stack}/bin; mkdir -p "$bin"; bin=$(realpath "$bin")
kubernetes_version=v1.34.10 pulumi_version=v3.259.0 provider_version=4.25.0
declare -A sets=(
  [cluster]="etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl pause"
  [engine]="pulumi pulumi-language-python pulumi-resource-kubernetes")
staging=; trap 'rm -rf "$staging"' EXIT
export CGO_ENABLED=0

# Each builds into $staging: what lies there is renamed into place once it is whole, so that a build that was
# interrupted leaves no binary behind.
pinned() { # NAME FOLDER PACKAGE [LDFLAGS]: of a module whose go.mod and go.sum are here
  ( cd "$here/$2" && go build -mod=readonly -trimpath -ldflags "-s -w ${4:-}" -o "$staging/$1" "$3" ); }
published() { # PACKAGE@VERSION [LDFLAGS]
  GOBIN=$staging go install -trimpath -ldflags "-s -w ${2:-}" "$1"; }
source_of() { # FOLDER MODULE: where the pinned module's source lies
  ( cd "$here/$1" && go mod download "$2" && go list -mod=readonly -m -f '{{.Dir}}' "$2" ); }

kubernetes() { # NAME: without a version in them the components refuse to work together
  local flags='' package
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags="$flags -X $package.gitVersion=$kubernetes_version -X $package.gitMajor=1 -X $package.gitMinor=34"
    flags="$flags -X $package.gitTreeState=clean"
  done
  pinned "$1" kubernetes "k8s.io/kubernetes/cmd/$1" "$flags"; }

language_host() { # it starts a script that comes with the SDK and lies beside it
  local sdk; sdk=$(source_of pulumi github.com/pulumi/pulumi/sdk/v3)
  install -m 755 "$sdk/python/cmd/pulumi-language-python-exec" "$staging/"
  pinned "$1" "$1" github.com/pulumi/pulumi/sdk/v3/python/cmd/pulumi-language-python; }

provider() { # it embeds its schema, which must name the version that it says of itself; go:embed reads only its folder
  local module=github.com/pulumi/pulumi-kubernetes/provider/v4 source
  source=$(source_of "$1" $module)/cmd/pulumi-resource-kubernetes
  mkdir "$staging/source"; cp "$here/$1"/* "$staging/source/"
  python3 - "$source" "$staging/source" $provider_version <<'P'
import json, sys
source, target, version = sys.argv[1:]
for name, change in ("schema", {"version": version}), ("terraform-mapping", {}):
    with open(f"{source}/{name}.json") as old, open(f"{target}/{name}.json", "w") as new:
        json.dump(json.load(old) | change, new)
P
  # GOGC: less memory for a little more time, on a machine with 4 GB.
  ( cd "$staging/source" && GOGC=50 go build -mod=readonly -trimpath -o "$staging/$1" \
      -ldflags "-s -w -X $module/pkg/version.Version=$provider_version" . )
  rm -r "$staging/source"; }

build() {
  if [ -n "${sets[$1]:-}" ]; then for name in ${sets[$1]}; do build "$name"; done; return; fi
  [ -x "$bin/$1" ] && return
  command -v go >/dev/null || { echo "build.sh: no go on PATH, which builds $1" >&2; exit 2; }
  local start=$SECONDS; echo "building $1 ..." >&2
  staging=$(mktemp -d "$bin/.build.XXXXXX")
  case $1 in
    # The compute kernels are C++ inside the module; without -march=native they use no AVX and are unfairly slow.
    ollama) CGO_ENABLED=1 CGO_CFLAGS='-O3 -march=native' CGO_CXXFLAGS='-O3 -march=native' published \
        github.com/ollama/ollama@v0.11.4 '-X github.com/ollama/ollama/version.Version=0.11.4' ;;
    helm) published helm.sh/helm/v3/cmd/helm@v3.21.4 '-X helm.sh/helm/v3/internal/version.version=v3.21.4' ;;
    prometheus-adapter) pinned "$1" "$1" sigs.k8s.io/prometheus-adapter/cmd/adapter ;;
    etcd) pinned "$1" "$1" go.etcd.io/etcd/server/v3 ;;
    kube-apiserver | kube-controller-manager | kube-scheduler | kubelet | kube-proxy | kubectl) kubernetes "$1" ;;
    pause) pinned "$1" "$1" . ;;
    pulumi) pinned "$1" "$1" github.com/pulumi/pulumi/pkg/v3/cmd/pulumi \
        "-X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=$pulumi_version" ;;
    pulumi-language-python) language_host "$1" ;;
    pulumi-resource-kubernetes) provider "$1" ;;
    *) echo "build.sh: unknown tool '$1'; see the first lines of this file" >&2; exit 2 ;;
  esac
  # The tool itself last: where it is, all of it is.
  find "$staging" -type f ! -name "$1" -exec mv -t "$bin" {} +
  mv "$staging/$1" "$bin/"; rmdir "$staging"; staging=
  echo "built $1 in $((SECONDS - start)) s" >&2
}
[ $# -gt 0 ] || { echo "usage: build.sh NAME... (see its first lines)" >&2; exit 2; }
for tool in "$@"; do build "$tool"; done
