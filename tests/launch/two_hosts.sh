#!/usr/bin/env bash
# Runs a command on two hosts that `ray up` makes a cluster over SSH, and looks at what it leaves. Needs root.
#
#     PYTHON=.venv/bin/python tests/launch/two_hosts.sh [--own-cache | --unshared-out] [WORDS...]
#
# The hosts are network namespaces with names, home folders, temporary files and SSH daemons of their own; nothing of
# this machine's network is changed. They share the rest of the file system, as hosts with shared storage do.
# WORDS are a crystaltune command without --out. MATMINER_DATA and CRYSTALTUNE_CACHE are passed on.
#
#   --own-cache     the second host has a cache of its own, empty at first: graphs must be copied to it, each once
#   --unshared-out  the second host does not share the results' folder: it must be refused, with the host's name
set -euo pipefail
# shellcheck source=tests/launch/common.sh
. "$(dirname "$0")/common.sh"

variant=
case ${1:-} in
--own-cache | --unshared-out)
    variant=$1
    shift
    ;;
esac
choose_words "$@"

[ "$(id -u)" -eq 0 ] || end "only root can make network namespaces"
PATH=$PATH:/usr/sbin:/sbin
for tool in ip unshare nsenter sshd ssh ssh-keygen rsync mount; do
    command -v "$tool" >/dev/null || end "$tool is not installed"
done
sshd=$(command -v sshd)
use_python
make_temporary

tag=${temp##*.}
head=ct-$tag-a worker=ct-$tag-b # names of the namespaces, and of the hosts
network=10.213.77
cluster=crystaltune-$tag
user=$(id -un)

exec 3>&1 # where a function is interrupted, its output may go elsewhere
take_down() {
    local code=$? host pids folder
    trap - EXIT INT TERM
    say "taking down" >&3
    for host in "$head" "$worker"; do
        for _ in 1 2 3 4 5; do
            mapfile -t pids < <(ip netns pids "$host" 2>/dev/null)
            [ ${#pids[@]} -gt 0 ] || break
            kill -9 "${pids[@]}" 2>/dev/null || true
            sleep 0.3
        done
        [ ${#pids[@]} -eq 0 ] || echo "still there on $host: ${pids[*]}" >&2
        ip netns del "$host" 2>/dev/null || true
    done
    # Ray keeps its sockets for SSH in a fixed place, in a folder named by the cluster.
    for folder in /tmp/ray_ssh_*/"$(printf %s "$cluster" | sha256sum | cut -c1-10)"; do
        rm -rf "$folder"
        rmdir --ignore-fail-on-non-empty "$(dirname "$folder")" 2>/dev/null || true
    done
    rm -rf "$temp"
    exit "$code"
}
trap take_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
choose_program

# What is shared: the results. What each host has for itself, under the same path: home folder and temporary files.
shared=$temp/shared
own=$temp/own
out="$shared/a run"
cache=$(python -c 'from trainables.data.cache import cache_home; print(cache_home())')
mkdir -p "$shared" "$own" "$temp/me/.ray" "$cache"

say "two hosts"
ip netns add "$head"
ip netns add "$worker"
ip link add name "cta$tag" netns "$head" type veth peer name "ctb$tag" netns "$worker"
number=0
for host in "$head" "$worker"; do
    number=$((number + 1))
    ip -n "$host" link set lo up
    case $host in "$head") link=cta$tag ;; *) link=ctb$tag ;; esac
    ip -n "$host" addr add "$network.$number/24" dev "$link"
    ip -n "$host" link set "$link" up
    # Ray finds a host's own address by looking where the way to the world begins.
    ip -n "$host" route add default via "$network.$((3 - number))"
done
printf '127.0.0.1 localhost\n%s.1 %s\n%s.2 %s\n' "$network" "$head" "$network" "$worker" >"$temp/hosts"
# The home folder of the password file, because ssh looks for it there and not in HOME.
awk -F: -v OFS=: -v user="$user" -v home="$own/home" '$1 == user { $6 = home } { print }' /etc/passwd >"$temp/passwd"

ssh-keygen -q -t ed25519 -N '' -f "$temp/me/key"
cp "$temp/me/key.pub" "$temp/authorized"
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$temp/me/.ray/auth_token")

# What both hosts' shells begin with: Ray starts its commands in interactive login shells.
{
    echo "export RAY_AUTH_MODE=token RAY_TMPDIR=$own/tmp"
    printf 'export PATH=%q PYTHONPATH=%q CRYSTALTUNE_CACHE=%q\n' "$PATH" "$clone" "$cache"
    [ -z "${MATMINER_DATA:-}" ] || printf 'export MATMINER_DATA=%q\n' "$MATMINER_DATA"
} >"$temp/bashrc"

cat >"$temp/host.sh" <<'HOST'
# Becomes a host: name, folders of its own, SSH daemon. Runs in new namespaces for names and mounts.
set -euo pipefail
name=$1 temp=$2 sshd=$3 empty=$4
hostname "$name"
mount -t tmpfs own "$temp/own"
mkdir "$temp/own/home" "$temp/own/tmp"
cp "$temp/bashrc" "$temp/own/home/.bashrc"
mount --bind "$temp/hosts" /etc/hosts
mount --bind "$temp/passwd" /etc/passwd
mount -t tmpfs run /run
mkdir -m 755 /run/sshd
[ -z "$empty" ] || mount -t tmpfs empty "$empty"
ssh-keygen -q -t ed25519 -N '' -f "$temp/own/host_key"
cat >"$temp/own/sshd_config" <<CONFIG
HostKey $temp/own/host_key
AuthorizedKeysFile $temp/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 50
CONFIG
exec "$sshd" -D -e -f "$temp/own/sshd_config"
HOST
start_host() { # name, folder that is empty on it
    ip netns exec "$1" unshare --uts --mount bash "$temp/host.sh" "$1" "$temp" "$sshd" "$2" \
        >"$temp/$1.log" 2>&1 </dev/null &
    disown # bash would tell that it was killed
}
empty=
case $variant in --own-cache) empty=$cache ;; --unshared-out) empty=$shared ;; esac
start_host "$head" ""
start_host "$worker" "$empty"

# The computer of whoever calls Ray is in the head's network, with a home folder of its own. The dumb terminal keeps
# progress bars out of the output.
me() { ip netns exec "$head" env -u RAY_ADDRESS -u RAY_AUTH_MODE TERM=dumb HOME="$temp/me" RAY_TMPDIR="$temp/me" "$@"; }
# A shell on a host, as Ray's are.
on() {
    local number=$1
    shift
    me ssh -q -i "$temp/me/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=5 \
        "$user@$network.$number" "bash --login -c $(printf %q "source ~/.bashrc; $*")"
}
for number in 1 2; do
    for _ in $(seq 50); do
        on "$number" true 2>/dev/null && break
        sleep 0.2
    done
    on "$number" true || { cat "$temp/ct-"*.log >&2 && end "no SSH to $network.$number"; }
done
say "$(on 1 hostname) and $(on 2 hostname) answer"

# No `ray stop` here: the hosts share their process numbers with this machine, and it would end every Ray on it.
cat >"$temp/cluster.yaml" <<YAML
cluster_name: $cluster
provider: {type: local, head_ip: $network.1, worker_ips: [$network.2]}
auth: {ssh_user: $user, ssh_private_key: $temp/me/key}
min_workers: 1
max_workers: 1
file_mounts: {~/.ray/auth_token: ~/.ray/auth_token}
head_start_ray_commands:
  - chmod 600 ~/.ray/auth_token
  - >-
    RAY_enable_autoscaler_v2=0 ray start --head --port=6379 --num-cpus=1 --include-dashboard=false
    --disable-usage-stats --autoscaling-config=~/ray_bootstrap_config.yaml
worker_start_ray_commands:
  - chmod 600 ~/.ray/auth_token
  - ray start --address=\$RAY_HEAD_IP:6379 --num-cpus=1 --disable-usage-stats
YAML

say "ray up"
me ray up -y --no-config-cache "$temp/cluster.yaml" >"$temp/up.log" 2>&1 </dev/null ||
    { cat "$temp/up.log" >&2 && end "ray up failed"; }
say "waiting for the second host"
for _ in $(seq 60); do
    nodes=$({ on 1 ray status 2>/dev/null || true; } |
        awk '/^[A-Z]/ { active = /^Active/ } active && /^ [0-9]/ { n += $1 } END { print n + 0 }')
    [ "$nodes" -lt 2 ] || break
    sleep 1
done
[ "$nodes" -ge 2 ] || {
    nsenter -t "$(ip netns pids "$head" | head -n 1)" -m bash -c "tail -n 15 $own/tmp/ray/session_latest/logs/monitor.{out,err}" >&2 || true
    end "the second host has not joined"
}

say "ray submit: ${words[*]}"
# `ray submit` puts words together with blanks and nothing else: those with a blank must be quoted once more.
code=0
me ray submit --no-config-cache "$temp/cluster.yaml" "$program" -- "${words[@]@Q}" --out "${out@Q}" \
    >"$temp/submit.log" 2>&1 </dev/null || code=$?
cat "$temp/submit.log"
say "exit code $code"

if [ "$variant" = --unshared-out ]; then
    grep -q "error:.*$worker" "$temp/submit.log" || end "the refusal does not name $worker"
    [ "$code" -ne 0 ] || end "the command was not refused"
    # `ray submit` ends with 1 where its command ends with anything but 0: the command's own code is seen over SSH.
    code=0
    on 1 "python ~/submit.py ${words[*]@Q} --out ${out@Q}" >/dev/null 2>&1 || code=$?
    [ "$code" -eq 2 ] || end "the command ended with $code and not with 2"
    say "passed: refused"
    exit
fi
[ "$code" -eq 0 ] || end "the command ended with $code"
on 1 "crystaltune status \"$out\""
python "$(dirname "$0")/check_run.py" "$out" --hosts "$head,$worker"
if [ "$variant" = --own-cache ]; then
    say "graphs on $worker:"
    on 2 "cd ${cache@Q}/graphs && ls -l --time-style=full-iso" | tee "$temp/copied"
    copied=$(grep -c '^d' "$temp/copied" || true)
    [ "$copied" -gt 0 ] || end "no graphs were copied to $worker"
fi
say "passed"
