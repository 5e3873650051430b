#!/usr/bin/env bash
# Runs a command as a Ray job on a cluster of this machine's own, with a token, and looks at what it leaves.
#
#     PYTHON=.venv/bin/python tests/launch/job_submit.sh [--kill-worker] [WORDS...]
#
# WORDS are a crystaltune command without --out. With --kill-worker, a worker is killed in the middle of its first
# model, which must be put back. MATMINER_DATA and CRYSTALTUNE_CACHE are passed on.
set -euo pipefail
# shellcheck source=tests/launch/common.sh
. "$(dirname "$0")/common.sh"

kill_worker=''
killer=''
if [ "${1:-}" = --kill-worker ]; then
    kill_worker=yes
    shift
fi
choose_words "$@"
if [ -n "$kill_worker" ] && [ $# -eq 0 ]; then
    words+=(--set optim.epochs=40) # long enough to be killed in the middle
fi
use_python
python -c 'import ray.job_submission, ray.dashboard.modules.job.sdk, aiohttp, opencensus' 2>/dev/null ||
    end "ray job needs ray[default]: pip install 'ray[default]=='\$(ray --version | cut -d' ' -f3)"
make_temporary

# Everything that is started here, by its process number: `ray stop` would end every cluster of this machine. Ray's
# own processes name the folder in their command lines, and what they start is their child or has it in its variables.
ours() {
    local folder
    for folder in /proc/[0-9]*; do
        [ "${folder#/proc/}" != $$ ] || continue
        if grep -qsF "$temp/" "$folder/cmdline" "$folder/environ" 2>/dev/null; then
            echo "${folder#/proc/}"
        fi
    done
}

exec 3>&1 # where a function is interrupted, its output may go elsewhere
take_down() {
    local code=$? pids
    trap - EXIT INT TERM
    say "taking down" >&3
    [ -z "$killer" ] || kill "$killer" 2>/dev/null || true
    for _ in 1 2 3 4 5; do
        mapfile -t pids < <(ours)
        [ ${#pids[@]} -gt 0 ] || break
        kill -9 "${pids[@]}" 2>/dev/null || true
        sleep 1 # workers end when they miss their raylet
    done
    mapfile -t pids < <(ours)
    [ ${#pids[@]} -eq 0 ] || echo "still there: ${pids[*]}" >&2
    rm -rf "$temp"
    exit "$code"
}
trap take_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
choose_program

(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$temp/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$temp/token RAY_TMPDIR=$temp
unset RAY_ADDRESS
read -r port dashboard agent client <<<"$(free_ports 4)"

say "ray start"
# As a job has its own copy of the clone, the cluster's processes begin elsewhere.
(cd "$temp" && ray start --head --port="$port" --node-ip-address=127.0.0.1 --num-cpus=2 --temp-dir="$temp/ray" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --dashboard-agent-listen-port="$agent" \
    --ray-client-server-port="$client" --disable-usage-stats >"$temp/start.log" 2>&1) ||
    { cat "$temp/start.log" >&2 && end "ray start failed"; }

out="$temp/shared/a run"
script=launch/submit.py
if [ "$program" != "$clone/$script" ]; then
    script=$program
fi
address=http://127.0.0.1:$dashboard

say "without the token nothing is accepted"
echo -n 0000 >"$temp/wrong"
if RAY_AUTH_TOKEN_PATH=$temp/wrong ray job list --address "$address" >"$temp/wrong.log" 2>&1; then
    end "a wrong token was accepted"
fi
code=0
(cd "$temp" && env -u RAY_AUTH_TOKEN_PATH RAY_AUTH_MODE=disabled PYTHONPATH="$clone" timeout 120 \
    crystaltune "${words[@]}" --out "$temp/refused" --address "127.0.0.1:$port" >"$temp/refused.log" 2>&1) || code=$?
tail -n 3 "$temp/refused.log"
[ "$code" -eq 2 ] || end "a driver without the token ended with $code and not with 2"

# Kills the worker that makes a model, once the model has begun to train.
kill_one() {
    local raylet worker
    until [ -n "$(find "$out" -path '*/checkpoints*/*' 2>/dev/null | head -n 1)" ]; do
        sleep 0.2
    done
    raylet=$(pgrep -f "raylet/raylet .*$temp/")
    worker=$(pgrep -P "$raylet" -f 'ray::Worker.run' | head -n 1)
    say "killing worker $worker, which works in $(readlink "/proc/$worker/cwd")"
    kill -9 "$worker"
}
if [ -n "$kill_worker" ]; then
    kill_one &
    killer=$!
fi

say "ray job submit: ${words[*]}"
code=0
(cd "$clone" && ray job submit --address "$address" --working-dir "$clone" \
    --runtime-env-json '{"excludes": ["runs/", ".git/", ".venv/"]}' \
    -- python "$script" "${words[@]}" --out "$out") || code=$?
say "exit code $code"
[ "$code" -eq 0 ] || end "the job ended with $code"

PYTHONPATH=$clone crystaltune status "$out"
python "$(dirname "$0")/check_run.py" "$out" ${kill_worker:+--put-back}
say "passed"
