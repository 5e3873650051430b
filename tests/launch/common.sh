# shellcheck shell=bash disable=SC2034
# What the scripts of this folder share; they source it.

: "${PYTHON:=python}" # an environment with crystaltune and ray[default]
clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

end() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

say() {
    printf -- '--- %4d s: %s\n' "$SECONDS" "$*"
}

# Puts the interpreter's folder first in PATH, so that `python` and `ray` are those of PYTHON everywhere.
use_python() {
    local bin
    bin=$("$PYTHON" -c 'import os, sys; print(os.path.dirname(sys.executable))') || end "PYTHON=$PYTHON does not run"
    export PATH="$bin:$PATH"
    python -c 'import ray, torch' 2>/dev/null || end "$bin/python has no ray and torch: set PYTHON to one that has"
}

# Makes the folder `temp` for everything that a script leaves. Its path is short: Ray keeps sockets in it.
make_temporary() {
    temp=$(mktemp -d "${TMPDIR:-/tmp}/ct.XXXX")
    [ ${#temp} -le 30 ] || end "$temp is too long a path for Ray's sockets: set TMPDIR to a short one"
    chmod 755 "$temp"
}

# Chooses `program`, which runs a command on the cluster that it finds itself in: the clone's, else a stand-in.
choose_program() {
    program=$clone/launch/submit.py
    [ -f "$program" ] && return
    program=$temp/submit.py
    cat >"$program" <<'PYTHON'
import sys

from orchestrator.cli.entry import main

if __name__ == "__main__":
    sys.argv += ["--address", "auto"]
    main()
PYTHON
}

# Sets `words` to the command to run: the arguments, or a short one.
choose_words() {
    if [ $# -gt 0 ]; then
        words=("$@")
    else
        words=(train jdft2d --limit 60 --folds "0,1" --set optim.epochs=2 --set ensemble.members=2)
    fi
}

free_ports() {
    python - "$1" <<'PYTHON'
import socket
import sys

sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for each in sockets:
    each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))
PYTHON
}
