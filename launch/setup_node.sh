#!/usr/bin/env bash
# Prepares a node of a cluster: the token, the variables, the environment. The cluster files run it on every node.
#
#     bash setup_node.sh SHARED [ENVIRONMENT]
#
# SHARED is the folder that all nodes see. ENVIRONMENT is a virtual environment that has crystaltune and Ray already
# (on shared storage, for example); without it, one is made in the home folder with the versions of pyproject.toml.
set -euo pipefail

shared=${1:?usage: setup_node.sh SHARED [ENVIRONMENT]}
environment=${2:-$HOME/crystaltune-env}
clone=$(cd "$(dirname "$0")/.." && pwd)
ray_version=2.60.0

# Nodes whose home folder is one and the same must not install at the same time.
exec 9>"$HOME/.crystaltune.lock"
flock 9

if [ ! -s "$HOME/.ray/auth_token" ]; then
    echo "no ~/.ray/auth_token: run \`ray get-auth-token --generate\` where you call \`ray up\`, then call it again" >&2
    exit 1
fi
chmod 700 "$HOME/.ray"
chmod 600 "$HOME/.ray/auth_token"

if ! mkdir -p "$shared/crystaltune/runs" "$shared/crystaltune/cache"; then
    echo "$shared is not there or cannot be written: mount the storage that all nodes share" >&2
    exit 1
fi

# Ray starts commands in interactive login shells, which read .bashrc: drivers and workers get the same variables.
cat >"$HOME/.crystaltune.sh" <<EOF
export RAY_AUTH_MODE=token
export CRYSTALTUNE_CACHE="$shared/crystaltune/cache"
export PATH="$environment/bin:\$HOME/.local/bin:\$PATH"
EOF
grep -qsF .crystaltune.sh "$HOME/.bashrc" || echo '. ~/.crystaltune.sh' >>"$HOME/.bashrc"
. "$HOME/.crystaltune.sh"

if [ $# -lt 2 ]; then
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    [ -x "$environment/bin/python" ] || uv venv --python 3.12 "$environment"
    # In the clone, because uv takes the versions of everything else from its pyproject.toml.
    cd "$clone"
    uv pip install --quiet --python "$environment/bin/python" . "ray[default]==$ray_version"
fi

found=$("$environment/bin/python" -c 'import importlib.metadata as m; m.version("crystaltune"); print(m.version("ray"))')
if [ "$found" != "$ray_version" ]; then
    echo "$environment has Ray $found, but the cluster needs $ray_version on every node" >&2
    exit 1
fi
