"""The files that start clusters: valid for what reads them, one version of Ray, tokens everywhere, nothing left behind.

Only what can be read is checked here; nothing is started.
"""

import logging
import os
import re
import stat
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
CLUSTERS = sorted(LAUNCH.glob("cluster-*.yaml"))
CLOUDS = [path for path in CLUSTERS if path.stem != "cluster-onprem"]
SHELLS = [LAUNCH / "setup_node.sh", LAUNCH / "slurm.sbatch"]
SHARED = "/mnt/shared"
RAY = next(
    constraint.removeprefix("ray==")
    for constraint in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    if constraint.startswith("ray==")
)


def name_of(path: Path) -> str:
    return path.name


def loaded(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def kubernetes() -> tuple[dict[str, Any], dict[str, Any]]:
    claim, job = yaml.safe_load_all((LAUNCH / "kuberay-rayjob.yaml").read_text())
    return claim, job


def pods() -> list[dict[str, Any]]:
    cluster = kubernetes()[1]["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def start_commands(cluster: dict[str, Any]) -> list[str]:
    return [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]


def all_commands(cluster: dict[str, Any]) -> list[str]:
    kinds = ("setup_commands", "head_setup_commands", "worker_setup_commands")
    return [*(command for kind in kinds for command in cluster.get(kind, [])), *start_commands(cluster)]


def test_there_is_a_file_for_each_kind_of_cluster() -> None:
    assert [path.stem for path in CLUSTERS] == ["cluster-aws", "cluster-gcp", "cluster-onprem"]


@pytest.mark.parametrize("path", CLUSTERS, ids=name_of)
def test_ray_itself_takes_the_cluster_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import orchestrator  # noqa: F401 # it sets what ray reads when it is imported

    # isort: split
    from ray.autoscaler._private.util import prepare_config, validate_config

    with caplog.at_level(logging.ERROR):
        prepared = prepare_config(loaded(path))
        validate_config(prepared)
    types = prepared["available_node_types"]
    assert sum(kind["max_workers"] for kind in types.values()) >= prepared["max_workers"] > 0


@pytest.mark.parametrize("path", CLUSTERS, ids=name_of)
def test_every_start_of_ray_wants_a_token_and_every_node_gets_it(path: Path) -> None:
    cluster = loaded(path)
    starts = [command for command in start_commands(cluster) if "ray start" in command]
    assert len(starts) == 2
    for command in starts:
        assert command.index("export RAY_AUTH_MODE=token;") < command.index("ray start")
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in path.read_text()


@pytest.mark.parametrize("path", CLUSTERS, ids=name_of)
def test_the_dashboard_is_seen_from_the_head_only(path: Path) -> None:
    head = next(command for command in loaded(path)["head_start_ray_commands"] if "ray start --head" in command)
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in path.read_text()


@pytest.mark.parametrize("path", CLUSTERS, ids=name_of)
def test_nodes_get_the_clone_without_results_and_history(path: Path) -> None:
    cluster = loaded(path)
    assert cluster["file_mounts"]["~/crystaltune"] == "."
    # With a slash in front they mean the clone's own: a run's folder is fetched whole, whatever its folders are called.
    assert {"/runs/", "/.git/", "/.venv/"} <= set(cluster["rsync_exclude"])


@pytest.mark.parametrize("path", CLUSTERS, ids=name_of)
def test_every_node_is_prepared_in_the_same_way_on_the_shared_storage(path: Path) -> None:
    cluster = loaded(path)
    assert cluster["setup_commands"][-1] == f"bash ~/crystaltune/launch/setup_node.sh {SHARED}"
    assert not cluster.get("worker_setup_commands")
    assert f"--out {SHARED}/crystaltune/runs/" in path.read_text()


@pytest.mark.parametrize("path", CLOUDS, ids=name_of)
def test_in_a_cloud_the_storage_is_mounted_before_and_gpus_are_spot_machines_that_end(path: Path) -> None:
    cluster = loaded(path)
    mounts = [place for place, command in enumerate(cluster["setup_commands"]) if "sudo mount -t nfs" in command]
    assert mounts
    assert max(mounts) < len(cluster["setup_commands"]) - 1
    worker = cluster["available_node_types"]["gpu_worker"]
    assert worker["min_workers"] == 0
    assert 0 < worker["max_workers"] <= cluster["max_workers"]
    assert 0 < cluster["idle_timeout_minutes"] <= 15
    assert "spot" in str(worker["node_config"]).lower()
    assert "spot" not in str(cluster["available_node_types"]["head"]).lower()


def test_workers_of_ones_own_machines_join_only_with_the_first_autoscaler() -> None:
    cluster = loaded(LAUNCH / "cluster-onprem.yaml")
    assert "RAY_enable_autoscaler_v2=0 ray start --head" in cluster["head_start_ray_commands"][-1]
    assert cluster["min_workers"] == cluster["max_workers"] == len(cluster["provider"]["worker_ips"])


@pytest.mark.parametrize("path", [*CLUSTERS, *SHELLS[1:], LAUNCH / "kuberay-rayjob.yaml"], ids=name_of)
def test_what_has_to_be_filled_in_is_marked(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert any("# FILL IN" in line for line in lines)
    for place, line in enumerate(lines):
        if "FILL-IN" in line or "192.0.2." in line:  # the second are addresses that stand for others
            assert "# FILL IN" in "".join(lines[max(0, place - 4) : place + 1]), line


@pytest.mark.parametrize("path", SHELLS, ids=name_of)
def test_shell_scripts_parse(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("path", CLUSTERS, ids=name_of)
def test_commands_of_the_cluster_files_parse(path: Path) -> None:
    for command in all_commands(loaded(path)):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def prepare_node(home: Path, shared: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", str(LAUNCH / "setup_node.sh"), str(shared), *more]
    return subprocess.run(words, env=os.environ | {"HOME": str(home)}, capture_output=True, text=True)


def environment_with(folder: Path, ray: str) -> Path:
    """An environment whose Python says only which Ray it has."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho {ray}\n")
    python.chmod(0o755)
    return folder


def test_a_node_is_prepared_with_variables_for_its_login_shells_once(tmp_path: Path) -> None:
    home, shared = tmp_path / "home", tmp_path / "shared"
    token = home / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("secret")
    token.chmod(0o644)
    environment = environment_with(tmp_path / "env", RAY)
    for _ in range(2):
        done = prepare_node(home, shared, str(environment))
        assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert (home / ".bashrc").read_text() == ". ~/.crystaltune.sh\n"
    shown = subprocess.run(
        ["bash", "-c", '. ~/.bashrc; echo "$RAY_AUTH_MODE|$CRYSTALTUNE_CACHE|$(command -v python)"'],
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert shown.stdout == f"token|{shared}/crystaltune/cache|{environment}/bin/python\n"
    assert (shared / "crystaltune" / "runs").is_dir()


def test_a_node_without_a_token_or_with_another_ray_is_refused(tmp_path: Path) -> None:
    home, environment = tmp_path / "home", environment_with(tmp_path / "env", "2.0.0")
    (home / ".ray").mkdir(parents=True)
    done = prepare_node(home, tmp_path / "shared", str(environment))
    assert done.returncode == 1
    assert "ray get-auth-token --generate" in done.stderr
    (home / ".ray" / "auth_token").write_text("secret")
    done = prepare_node(home, tmp_path / "shared", str(environment))
    assert done.returncode == 1
    assert f"has Ray 2.0.0, but the cluster needs {RAY}" in done.stderr


def test_slurm_stops_in_order_and_passes_the_command_on() -> None:
    script = (LAUNCH / "slurm.sbatch").read_text()
    directives = re.findall(r"^#SBATCH (--[a-z-]+)(?:=(\S+))?$", script, re.MULTILINE)
    assert {
        ("--signal", "B:TERM@120"),
        ("--requeue", ""),
        ("--exclusive", ""),
        ("--ntasks-per-node", "1"),
    } <= set(directives)
    body = script[script.rindex("#SBATCH") :]
    assert body.index("export RAY_AUTH_MODE=token") < body.index("ray symmetric-run")
    assert 'chmod 600 "$HOME/.ray/auth_token"' in body
    assert 'exec python launch/submit.py "$@"' in body
    assert len("/tmp/ct4294967294/ray") <= 40  # orchestrator.ray_environment has the longest that Ray's sockets allow


def fake_slurm(folder: Path, command: str) -> dict[str, str]:
    """Programs that stand for Slurm's and Ray's on one node, and the variables of a job."""
    programs = {
        "scontrol": "echo node1",
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "ray": 'if [ "$1" = symmetric-run ]; then echo "$*" >"$HOME/asked"; '
        'while [ "$1" != -- ]; do shift; done; shift; "$@"; exit; fi\n'
        'mkdir -p "$HOME/.ray"; echo secret >"$HOME/.ray/auth_token"',
    }
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, body in programs.items():
        (binaries / name).write_text(f"#!/bin/bash\n{body}\n")
        (binaries / name).chmod(0o755)
    (binaries / "activate").write_text(f'export PATH="{binaries}:$PATH"\n')
    (folder / "launch").mkdir()
    (folder / "launch" / "submit.py").write_text(command)
    return os.environ | {
        "HOME": str(folder),
        "SLURM_JOB_ID": str(os.getpid() + 10_000_000),  # no job's folder is that of another test
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_GPUS_ON_NODE": "0",
    }


def test_the_slurm_script_runs_the_command_and_ends_with_its_code(tmp_path: Path) -> None:
    env = fake_slurm(tmp_path, "import sys; print(sys.argv[1:]); sys.exit(7)")
    words = ["bash", str(LAUNCH / "slurm.sbatch"), "train", "two words"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "['train', 'two words']\n"), done.stderr
    asked = (tmp_path / "asked").read_text()
    port = 20000 + int(env["SLURM_JOB_ID"]) % 10000
    assert asked.startswith(f"symmetric-run --address node1:{port} --min-nodes 1 --num-cpus=2 --num-gpus=0 -- bash ")
    assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o600
    assert not Path(f"/tmp/ct{env['SLURM_JOB_ID']}").exists()


def test_at_the_end_of_its_time_the_slurm_script_lets_the_command_stop_in_order(tmp_path: Path) -> None:
    env = fake_slurm(
        tmp_path,
        "import signal, sys, time\n"
        "def stop(*_):\n    time.sleep(0.5)\n    print('stopped in order')\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)\n",
    )
    words = ["bash", str(LAUNCH / "slurm.sbatch"), "train"]
    with subprocess.Popen(words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as job:
        end = time.monotonic() + 30
        while not (tmp_path / "ready").exists() and time.monotonic() < end:
            time.sleep(0.05)
        job.terminate()  # as --signal=B:TERM: the script alone
        assert job.communicate(timeout=30)[0] == "stopped in order\n"
    assert job.returncode == 143


def test_kuberay_s_job_has_the_documented_form() -> None:
    claim, job = kubernetes()
    assert (claim["kind"], claim["spec"]["accessModes"]) == ("PersistentVolumeClaim", ["ReadWriteMany"])
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["entrypoint"].startswith("python /opt/crystaltune/launch/submit.py ")
    assert f"--out {SHARED}/" in spec["entrypoint"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["authOptions"] == {"mode": "token", "secretName": "crystaltune-ray-token"}
    assert "generic crystaltune-ray-token --from-literal=auth_token=" in (LAUNCH / "kuberay-rayjob.yaml").read_text()
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert [pod["containers"][0]["name"] for pod in pods()] == ["ray-head", "ray-worker"]


def test_kuberay_s_pods_share_one_image_the_storage_and_have_room_in_memory() -> None:
    claim = kubernetes()[0]
    assert len({pod["containers"][0]["image"] for pod in pods()}) == 1
    for pod in pods():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == set(volumes)
        assert volumes[mounts[SHARED]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        variables = {variable["name"]: variable["value"] for variable in container["env"]}
        assert variables["CRYSTALTUNE_CACHE"].startswith(f"{SHARED}/")
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_only_kuberay_s_workers_have_gpus_and_their_number_grows_from_none() -> None:
    head, worker = (pod["containers"][0]["resources"] for pod in pods())
    assert "nvidia.com/gpu" not in head["limits"]
    assert worker["limits"]["nvidia.com/gpu"] == worker["requests"]["nvidia.com/gpu"] == "1"
    (group,) = kubernetes()[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]


def test_the_image_is_made_from_what_is_there_for_another_user_than_root() -> None:
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM")] == ["FROM python:3.12-slim"]
    sources = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    assert {"pyproject.toml", "crystaltune/", "launch/"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {f"{package}/" for package in packages["packages"]} <= set(sources)
    user = next(line.split()[1] for line in lines if line.startswith("USER"))
    assert {int(user)} == {pod["securityContext"]["runAsUser"] for pod in pods()} != {0}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"runs", ".git", ".venv", "**/__pycache__"} <= set(ignored)


def test_every_file_names_the_version_of_ray_that_the_project_is_measured_with() -> None:
    pins = {
        "setup_node.sh": rf"ray_version={re.escape(RAY)}$",
        "Dockerfile": re.escape(f'"ray[default]=={RAY}"'),
        "slurm.sbatch": re.escape(f"ray[default]=={RAY}"),
        "kuberay-rayjob.yaml": re.escape(f'rayVersion: "{RAY}"'),
        "README.md": re.escape(f"ray[default]=={RAY}"),
    }
    for name, pin in pins.items():
        assert re.search(pin, (LAUNCH / name).read_text(), re.MULTILINE), name
    for path in LAUNCH.iterdir():
        for found in re.findall(r"ray(?:\[\w+\])?==([\d.]+\d)", path.read_text()) if path.is_file() else []:
            assert found == RAY, path


def test_no_token_lies_in_the_repository_s_files() -> None:
    for path in [*CLUSTERS, *SHELLS, LAUNCH / "kuberay-rayjob.yaml", LAUNCH / "Dockerfile"]:
        assert not re.search(r"RAY_AUTH_TOKEN=|auth_token: [0-9a-f]{16}", path.read_text()), path


def test_the_page_s_uploads_leave_out_results_and_history() -> None:
    page = (LAUNCH / "README.md").read_text()
    uploads = re.findall(r"--runtime-env-json '(\{.*?\})'", page)
    assert uploads
    for upload in uploads:
        assert {"runs/", ".git/"} <= set(yaml.safe_load(upload)["excludes"])


def test_the_page_leads_to_every_file_of_the_folder_that_starts_something() -> None:
    page = (LAUNCH / "README.md").read_text()
    for path in [*CLUSTERS, *SHELLS, LAUNCH / "kuberay-rayjob.yaml", LAUNCH / "Dockerfile", LAUNCH / "submit.py"]:
        assert path.name in page, path.name
