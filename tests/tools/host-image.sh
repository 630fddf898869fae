#!/usr/bin/env bash
# Makes the image of a bare Debian server with systemd as PID 1 and sshd, for playbooks to be run against over SSH (two
# minutes the first time, nothing afterwards; needs root and debootstrap). Of this machine it has the CA bundle and where
# packages come from.
# usage: host-image.sh [IMAGE]
set -euo pipefail
image=${1:-qwen3-stack/host:bookworm}
docker image inspect "$image" >/dev/null 2>&1 && exit 0
command -v debootstrap >/dev/null || { echo "host-image.sh: no debootstrap: apt-get install debootstrap" >&2; exit 2; }
root=$(mktemp -d); trap 'rm -rf "$root"' EXIT
packages=systemd,systemd-sysv,dbus,openssh-server,python3,python3-apt,sudo,ca-certificates,iproute2,procps,curl
debootstrap --variant=minbase --include="$packages" bookworm "$root" > "$root.log" 2>&1 || { tail -n 5 "$root.log" >&2; exit 1; }
rm -f "$root.log"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
if cp /etc/apt/sources.list.d/*.sources "$root/etc/apt/sources.list.d/" 2>/dev/null; then rm -f "$root/etc/apt/sources.list"; fi
cp /etc/apt/apt.conf.d/*prox* "$root/etc/apt/apt.conf.d/" 2>/dev/null || true
printf 'PermitRootLogin prohibit-password\nUseDNS no\n' > "$root/etc/ssh/sshd_config.d/tests.conf"
# Keys of its own for each host, at its first boot.
rm -f "$root"/etc/ssh/ssh_host_*
printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' \
  | install -m 644 -D /dev/stdin "$root/etc/systemd/system/ssh.service.d/keys.conf"
# What a container has no device or seat for.
for unit in getty.target console-getty.service systemd-udevd.service systemd-logind.service systemd-resolved.service; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
tar -C "$root" -c . | docker import -c 'CMD ["/lib/systemd/systemd"]' - "$image" >/dev/null
