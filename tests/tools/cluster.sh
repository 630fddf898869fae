#!/usr/bin/env bash
# One real Kubernetes node on this machine, from binaries: etcd, API server, controller manager, scheduler, kubelet with
# containerd and runc, kube-proxy (iptables). Pods run, Services route from this machine too, HPAs act. Needs root, Linux,
# cgroup v1 or v2. It has no image registry, no DNS and nothing that enforces a NetworkPolicy.
# usage: cluster.sh up DIR [FIRST]        starts a node, prints its kubeconfig's path; state and logs lie under DIR;
#                                         with FIRST, the folder of one that runs, as that cluster's second node
#        cluster.sh hold DIR [FIRST]      the same, until the end of standard input; then down
#        cluster.sh load DIR IMAGE...     copies images from the Docker Engine into the node (imagePullPolicy: Never)
#        cluster.sh down DIR              ends the node and removes DIR
# The binaries are taken from PATH: build.sh cluster, Debian's containerd runc containernetworking-plugins conntrack
# iptables iproute2 openssl, and for load a docker client.
#
# The node lives in PID, network and mount namespaces of its own. So the kernel ends all of it with its first process,
# however that ends, and takes its mounts, bridges and iptables chains with it; and nodes can stand beside each other.
set -euo pipefail
usage="usage: cluster.sh up|hold DIR [FIRST], cluster.sh load DIR IMAGE..., cluster.sh down DIR"
[ $# -ge 2 ] || { echo "$usage" >&2; exit 2; }
what=$1 dir=$(realpath -m "$2"); shift 2
config=$dir/kubeconfig containerd=$dir/containerd.sock
fail() { echo "cluster.sh: $*" >&2; exit 1; }
cgroups() { awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/mounts; }   # roots of the hierarchies: one (v2) or many (v1)

addresses() { # NUMBER: sets the networks of the cluster's node, in 198.18.0.0/15, which is nobody's (RFC 2544)
  first_ip=198.18.$((4 * $1)).1 services=198.18.$((4 * $1 + 2)).0/24 second=198.18.$((4 * $1 + 3))
  if [ -z "$first" ]; then name=node node_ip=$first_ip gateway=198.18.$((4 * $1)).2 pods=198.18.$((4 * $1 + 1)).0/24
  else name=node2 node_ip=$second.2 gateway=$second.1 pods=$second.128/25; fi; }

cgroup() { echo "qwen3-node-$(cat "$dir/pid")"; }   # its pods' control group, in every hierarchy

first_process() { # DIR: the PID, on this machine, of that node's first process, while it runs
  local pid; pid=$(cat "$1/pid" 2>/dev/null) && grep -qsF "$1" "/proc/$pid/cmdline" && echo "$pid"; }

remove() { # the node and what outlives its processes
  [ -e "$dir" ] || return 0
  [ -e "$dir/.qwen3-node" ] || fail "$dir holds no node, so it is not removed"
  local pid root; if pid=$(first_process "$dir"); then
    kill -9 "$pid" 2>/dev/null || true
    while [ -e "/proc/$pid" ]; do sleep 0.05; done
  fi
  if [ -f "$dir/link" ]; then   # the kernel removes it a moment later
    for _ in {1..200}; do grep -qsxFf "$dir/link" /sys/class/net/qwen3-node*/ifindex || break; sleep 0.05; done
  fi
  if [ -f "$dir/pid" ]; then
    for root in $(cgroups); do
      [ ! -d "$root/$(cgroup)" ] || find "$root/$(cgroup)" -depth -type d -exec rmdir {} + || true
    done
  fi
  rm -rf --one-file-system "$dir"; }

ended() { ! kill -0 "$outside" 2>/dev/null; }

link() { # between this machine and the node; what goes to its pods and services takes it
  # Its name is claimed by making it, and goes with the node's network: 0 to 15.
  local error; for number in {0..15}; do
    error=$(ip link add "qwen3-node$number" type veth peer name eth0 netns "$1" 2>&1) && break
  done
  [ -z "$error" ] || { kill -9 "$outside"; fail "no network link for the node: $error"; }
  addresses "$number"; cat "/sys/class/net/qwen3-node$number/ifindex" > "$dir/link"
  ip addr add "$gateway/30" dev "qwen3-node$number"; ip link set "qwen3-node$number" up
  local net; for net in "$pods" "$services" "$second.0/24"; do ip route add "$net" via "$node_ip"; done; }

link_to_first() { # the same between the first node and the second
  number=$(cat "$first/number"); addresses "$number"
  nsenter --net="/proc/$(first_process "$first")/ns/net" sh -ec "ip link add node2 type veth peer name eth0 netns $1
    ip addr add $gateway/30 dev node2; ip link set node2 up; ip route add $pods via $node_ip" ||
    { kill -9 "$outside"; fail "no network link to $first: has a second node joined already?"; }; }

launch() { # starts the node and waits until it is ready
  [[ "$dir/" != /run/* ]] || fail "$dir lies under /run, of which a node has its own"
  [ ${#dir} -le 60 ] || fail "the path of DIR is too long for sockets below it: ${#dir} characters, 60 at most"
  [ "$(id -u)" = 0 ] || fail "needs root"
  [ -z "$first" ] || [ -n "$(first_process "$first")" ] || fail "no node runs in $first"
  local program; for program in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl \
    pause containerd ctr runc conntrack iptables ip openssl unshare; do
    command -v $program >/dev/null || fail "no $program on PATH"
  done
  [ ! -e "$dir/.qwen3-node" ] || fail "$dir holds a node already: cluster.sh down $dir"
  [ -z "$(ls -A "$dir" 2>/dev/null)" ] || fail "$dir is not empty"
  mkdir -p "$dir"; chmod 700 "$dir"; : > "$dir/.qwen3-node"; mine=yes
  setsid unshare --pid --net --mount --fork --kill-child \
    bash "$(realpath "$0")" node "$dir" "$first" "$what" <&3 3<&- >"$dir/node.log" 2>&1 &
  outside=$!
  until [ -s "$dir/pid" ] || ended; do sleep 0.05; done
  ! ended || fail "the node did not start: $(tail -n 4 "$dir/node.log")"
  "link${first:+_to_first}" "$(cat "$dir/pid")"
  local root; for root in $(cgroups); do
    mkdir "$root/$(cgroup)"
    [ ! -f "$root/cpuset.cpus" ] || for file in cpuset.cpus cpuset.mems; do cat "$root/$file" > "$root/$(cgroup)/$file"; done
  done
  echo "$number" > "$dir/.number"; mv "$dir/.number" "$dir/number"
  until [ -e "$dir/ready" ]; do
    ended && fail "the node did not start: $(tail -n 4 "$dir/node.log")"
    sleep 0.1
  done; }

# --- inside the node ---------------------------------------------------------------------------------------------------

start() { local name=$1; shift; "$@" </dev/null >"$dir/$name.log" 2>&1 & }
wait_for() { # COMPONENT COMMAND...
  local name=$1 deadline=$((SECONDS + 120)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || fail "$name not ready in 120 s, its log ends with: $(tail -n 3 "$dir/$name.log")"
    sleep 0.2
  done; }

private_mounts() { # what components insist on writing outside DIR, and settings of this machine that kubelet would change
  local folder setting
  mount -t proc proc /proc
  mount -t tmpfs tmpfs /run
  for folder in /var/log /var/lib/cni; do
    mkdir -p "$folder" "$dir$folder"; mount --bind "$dir$folder" "$folder"
  done
  for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
    kernel/keys/root_maxbytes; do
    mkdir -p "$dir/sysctl/${setting%/*}"; cat "/proc/sys/$setting" > "$dir/sysctl/$setting"
    mount --bind "$dir/sysctl/$setting" "/proc/sys/$setting"
  done; }

certificate() { # NAME SUBJECT: signed by the node's CA
  local key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
  openssl req "${key[@]}" -subj "$2" -keyout "$1.key" -out "$1.csr"
  openssl x509 -req -days 30 -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -out "$1.crt"; }

credentials() { ( cd "$certs"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=ca -keyout ca.key -out ca.crt
  openssl ecparam -name prime256v1 -genkey -noout -out accounts.key; openssl ec -in accounts.key -pubout -out accounts.pub
  certificate client /O=system:masters/CN=kube-apiserver
  certificate front-proxy /CN=front-proxy ) 2>/dev/null
  local token; token=$(openssl rand -hex 16); echo "$token,admin,1,system:masters" > "$certs/tokens.csv"
  cat > "$config" <<K
apiVersion: v1
kind: Config
clusters: [{name: node, cluster: {server: "https://$node_ip:6443", certificate-authority: $certs/apiserver.crt}}]
users: [{name: admin, user: {token: $token}}]
contexts: [{name: node, context: {cluster: node, user: admin}}]
current-context: node
K
}

control_plane() {
  local etcd=http://127.0.0.1:2379
  start etcd etcd --data-dir "$dir/etcd" --listen-client-urls $etcd --advertise-client-urls $etcd --unsafe-no-fsync
  start kube-apiserver kube-apiserver --etcd-servers=$etcd --bind-address="$node_ip" --advertise-address="$node_ip" \
    --secure-port=6443 --cert-dir="$certs" --service-cluster-ip-range="$services" --allow-privileged=true \
    --token-auth-file="$certs/tokens.csv" --authorization-mode=Node,RBAC --client-ca-file="$certs/ca.crt" \
    --service-account-issuer=https://kubernetes.default --service-account-key-file="$certs/accounts.pub" \
    --service-account-signing-key-file="$certs/accounts.key" --kubelet-preferred-address-types=InternalIP \
    --kubelet-client-certificate="$certs/client.crt" --kubelet-client-key="$certs/client.key" \
    --requestheader-client-ca-file="$certs/ca.crt" --requestheader-allowed-names=front-proxy \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- --proxy-client-cert-file="$certs/front-proxy.crt" \
    --proxy-client-key-file="$certs/front-proxy.key" --enable-aggregator-routing=true
  wait_for kube-apiserver kubectl get --raw=/readyz
  # HPAs look every 5 s and scale down after 30 s, not 15 s and 5 minutes: a test watches them.
  start kube-controller-manager kube-controller-manager --kubeconfig "$config" --use-service-account-credentials=true \
    --service-account-private-key-file="$certs/accounts.key" --root-ca-file="$certs/apiserver.crt" \
    --horizontal-pod-autoscaler-sync-period=5s --horizontal-pod-autoscaler-downscale-stabilization=30s
  start kube-scheduler kube-scheduler --kubeconfig "$config"; }

runtime() {
  local plugins; for plugins in /usr/lib/cni /opt/cni/bin ""; do [ ! -x "$plugins/bridge" ] || break; done
  [ -n "$plugins" ] || fail "no CNI plugins in /usr/lib/cni or /opt/cni/bin"
  mkdir -p "$dir/cni"; cat > "$dir/cni/10-pods.conflist" <<K
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$dir/ipam", "ranges": [[{"subnet": "$pods"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
K
  cat > "$dir/containerd.toml" <<K
version = 2
root = "$dir/containerd"
state = "/run/containerd"
[grpc]
  address = "$containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/local/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$plugins"
    conf_dir = "$dir/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
K
  start containerd containerd -c "$dir/containerd.toml"
  wait_for containerd ctr -a "$containerd" version
  # The image of every pod's first container, written as `docker save` writes one.
  mkdir "$dir/pause"; cp "$(command -v pause)" "$dir/pause/pause"; tar -C "$dir/pause" -cf "$dir/pause/layer.tar" pause
  echo '[{"Config": "config.json", "RepoTags": ["docker.io/local/pause:1"], "Layers": ["layer.tar"]}]' > "$dir/pause/manifest.json"
  cat > "$dir/pause/config.json" <<K
{"os": "linux", "architecture": "$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')", "config": {"Entrypoint": ["/pause"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sha256sum "$dir/pause/layer.tar" | cut -d' ' -f1)"]}}
K
  tar -C "$dir/pause" -c manifest.json config.json layer.tar | ctr -a "$containerd" -n k8s.io images import - >/dev/null; }

node() {
  : > "$dir/resolv.conf"   # pods have no name server; this machine's would be none of theirs
  cat > "$dir/kubelet.yaml" <<K
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $certs/ca.crt}}
authorization: {mode: Webhook}
address: $node_ip
cgroupDriver: cgroupfs
cgroupRoot: /$(cgroup)
containerRuntimeEndpoint: unix://$containerd
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
failCgroupV1: false
failSwapOn: false
featureGates: {KubeletInUserNamespace: true}  # goes on where a VM or container grants less than a machine would
imageGCHighThresholdPercent: 100
resolvConf: $dir/resolv.conf
K
  cat > "$dir/kube-proxy.yaml" <<K
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $config}
hostnameOverride: $name
mode: iptables
clusterCIDR: $pods
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
K
  start kubelet kubelet --config "$dir/kubelet.yaml" --kubeconfig "$config" --hostname-override $name --node-ip "$node_ip" \
    --root-dir "$dir/kubelet"
  start kube-proxy kube-proxy --config "$dir/kube-proxy.yaml"
  wait_for kubelet kubectl wait --for=condition=Ready "node/$name" --timeout=5s; }

case $what in
up)
  first=${1:+$(realpath -m "$1")}
  exec 3</dev/null; launch; echo "$config" ;;
hold)
  first=${1:+$(realpath -m "$1")}
  exec 3<&0; trap 'exit 143' TERM INT HUP
  mine=; trap '[ -z "$mine" ] || remove' EXIT
  launch; exec 3<&-
  echo "$config"; wait "$outside" || true ;;
load)
  [ -n "$(first_process "$dir")" ] || fail "no node runs in $dir"
  for image in "$@"; do
    docker image inspect -f '{{.Id}}' "$image" >/dev/null
    docker save "$image" | ctr -a "$containerd" -n k8s.io images import - >/dev/null
  done ;;
down) remove ;;
node)   # of launch: the first process of the namespaces
  first=$1
  read -r pid _ </proc/self/stat   # /proc still is this machine's, and so is the number
  echo "$pid" > "$dir/.pid"; mv "$dir/.pid" "$dir/pid"
  until [ -e "$dir/number" ]; do sleep 0.05; done; addresses "$(cat "$dir/number")"
  private_mounts
  ip link set lo up; ip addr add "$node_ip/30" dev eth0; ip link set eth0 up; ip route add default via "$gateway"
  echo 1 > /proc/sys/net/ipv4/ip_forward
  export KUBECONFIG=$config
  if [ -z "$first" ]; then
    certs=$dir/certs; mkdir "$certs"; credentials; control_plane
  else
    certs=$first/certs; cp "$first/kubeconfig" "$config"
  fi
  runtime; node
  [ -n "$first" ] || wait_for kube-controller-manager kubectl get serviceaccount default
  : > "$dir/ready"
  if [ "$2" = hold ]; then cat >/dev/null; else sleep infinity; fi ;;
*) echo "$usage" >&2; exit 2 ;;
esac
