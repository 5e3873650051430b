"""What a machine's GPU can do by itself, for benchmarks/gpu.py: versions, launches, copies, single operations."""

import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_tools import Bench
from torch.nn import functional as F

from trainables.processes import n_cores

Found = dict[str, Any]


def environment(bench: Bench) -> Found:
    """Versions, and what a launch, a replay and a byte cost here."""
    found: Found = {"torch": torch.__version__, "python": platform.python_version(), "cores": n_cores()}
    found["host"] = _host_processor()
    if bench.device.type != "cuda":
        return found | {"device": "cpu"}
    about = torch.cuda.get_device_properties(bench.device)
    found |= {"device": about.name, "memory_gb": about.total_memory / 1e9, "sms": about.multi_processor_count}
    found |= {"cuda": torch.version.cuda, "driver_and_clocks": _smi(), "arch_list": torch.cuda.get_arch_list()}
    small, host = torch.zeros(8, device=bench.device), torch.zeros(1 << 26)
    begin = time.perf_counter()
    for _ in range(10_000):
        small.add_(1)
    found["launch_us_host"] = (time.perf_counter() - begin) * 100
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(1000):
            small.add_(1)
    found["replay_us_a_kernel"] = bench.queued_us(graph.replay, 10) / 1000
    found["pageable_gb_per_s"] = host.nbytes / bench.median_ms(lambda: host.to(bench.device)) / 1e6
    pinned = host.pin_memory()
    found["pinned_gb_per_s"] = host.nbytes / bench.median_ms(lambda: pinned.to(bench.device)) / 1e6
    return found


def _smi() -> str:
    asked = "driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except OSError:
        return "no nvidia-smi"


def _host_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def operations(bench: Bench) -> Iterator[Found]:
    """A copy, products, gathers, sums and a norm over E rows of 64."""
    device = bench.device
    large = torch.rand(1 << 28, device=device)
    yield {"copy_tb_per_s": 2 * large.nbytes / bench.queued_us(large.clone, 20) / 1e6}
    del large
    weight, norm = torch.rand(128, 64, device=device), torch.nn.LayerNorm(64, device=device)
    for rows in (12_000, 100_000, 400_000):
        values, n_sums = torch.rand(rows, 64, device=device), rows // 24
        places = torch.randint(n_sums, (rows,), device=device)
        ordered, sums = places.sort().values, torch.zeros(n_sums, 64, device=device)
        works: dict[str, Callable[[], Any]] = {
            "product": partial(F.linear, values, weight),
            "product_bf16": partial(F.linear, values.bfloat16(), weight.bfloat16()),
            "gather": partial(sums.index_select, 0, places),
            "sum_sorted": partial(sums.index_add, 0, ordered, values),
            "sum_random": partial(sums.index_add, 0, places, values),
            "sum_to_one_row": partial(sums.index_add, 0, places * 0, values),
            "layer_norm": partial(norm, values),
        }
        yield {"rows": rows, **{f"{name}_us": bench.queued_us(work, 50) for name, work in works.items()}}
