"""Tell which GPUs this experiment sees, and on demand train on them for some seconds.

A standalone script: Python's own library, and the image's clearml to report with. Workers run it as an experiment that
ansible/plugins/module_utils/gpu_probe.py sends; run by hand, outside any worker, it prints what it sees.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIRST_PROCESS = Path("/proc/1/environ")
VARIABLE = "NVIDIA_VISIBLE_DEVICES"
# A driver that hangs must not hold the worker.
SMI_TIMEOUT_SEC = 60
CUDA_NO_DEVICE = 100
MEGABYTE = 1 << 20


def visible() -> str | None:
    """Give what the container was started with, None when nothing was said.

    The agent starts the experiment itself with NVIDIA_VISIBLE_DEVICES=all, whatever the worker is pinned to: this
    site's clearml.conf keeps Docker's value in a variable of its own, and in a stock container the first process tells.
    The agent asks Docker for "all" too, so it may be there twice; Docker's own comes last and counts.
    """
    kept = os.environ.get("TRAINYARD_GPUS")
    if kept:
        return kept
    try:
        pairs = FIRST_PROCESS.read_bytes().split(b"\0")
    except OSError:  # the experiment does not run as root
        return os.environ.get(VARIABLE)
    values = [pair.partition(b"=")[2].decode() for pair in pairs if pair.startswith(VARIABLE.encode() + b"=")]
    return values[-1] if values else None


def ask_nvidia_smi() -> list[dict[str, str]] | None:
    """Give the GPUs that the driver's tool lists; None without the tool."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=index,uuid,name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_SEC, check=False)
    said = (done.stdout + done.stderr).strip()
    if "No devices were found" in said:
        return []
    if done.returncode != 0:
        raise RuntimeError(f"exit status {done.returncode}: {said}")
    rows = [[field.strip() for field in line.split(",", 2)] for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(("index", "uuid", "name"), row)) for row in rows]  # noqa: B905  Python 3.8 knows no strict


def ask_torch() -> list[str] | None:
    """Give the UUIDs of PyTorch's GPUs, empty where an old PyTorch does not tell them; None without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    cuda = torch.cuda
    return [str(getattr(cuda.get_device_properties(index), "uuid", "")) for index in range(cuda.device_count())]


class Cuda:
    """The CUDA driver's own library, which every GPU container has, whatever its image holds."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the library; its error is an exception."""
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise RuntimeError(f"{function}: CUDA error {status}")

    def devices(self) -> list[int]:
        """Give a handle for each GPU."""
        if self._library.cuInit(0) == CUDA_NO_DEVICE:
            return []
        self.call("cuInit", 0)
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        handles = []
        for index in range(count.value):
            device = ctypes.c_int()
            self.call("cuDeviceGet", ctypes.byref(device), index)
            handles.append(device.value)
        return handles

    def uuid(self, device: int) -> str:
        """Give a GPU's UUID; that of the instance on a GPU in MIG mode."""
        raw = (ctypes.c_ubyte * 16)()
        self.call("cuDeviceGetUuid_v2", ctypes.byref(raw), device)
        return str(uuid.UUID(bytes=bytes(raw)))

    def train(self, seconds: float) -> int:
        """Fill 64 MB of each GPU's memory again and again, and read it back; give the number of rounds."""
        held = []
        for device in self.devices():
            context, memory = ctypes.c_void_p(), ctypes.c_uint64()
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
            self.call("cuCtxSetCurrent", context)
            self.call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(64 * MEGABYTE))
            held.append((context, memory))
        rounds, until = 0, time.monotonic() + seconds
        while rounds == 0 or time.monotonic() < until:
            rounds += 1
            for context, memory in held:
                self.call("cuCtxSetCurrent", context)
                self.call("cuMemsetD32_v2", memory, ctypes.c_uint(rounds), ctypes.c_size_t(16 * MEGABYTE))
                self.call("cuCtxSynchronize")
                read = ctypes.c_uint()
                self.call("cuMemcpyDtoH_v2", ctypes.byref(read), memory, ctypes.c_size_t(4))
                if read.value != rounds:
                    raise RuntimeError(f"the GPU's memory holds {read.value}, written was {rounds}")
        return rounds


def load_cuda() -> Cuda | None:
    """Load the driver's library; None where the container has none."""
    try:
        return Cuda(ctypes.CDLL("libcuda.so.1"))
    except OSError:
        return None


def ask_cuda() -> list[str] | None:
    """Give the UUIDs of the GPUs on which CUDA programs run; None without the driver's library."""
    cuda = load_cuda()
    return None if cuda is None else [cuda.uuid(device) for device in cuda.devices()]


def train_with_torch(seconds: float) -> int:
    """Fit a linear layer on each GPU; give the number of rounds."""
    import torch

    fits = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        inputs = torch.randn(4096, 1024, device=device)
        goal = inputs @ torch.randn(1024, 1, device=device)
        weights = torch.zeros(1024, 1, device=device, requires_grad=True)
        fits.append((inputs, goal, weights, torch.optim.SGD([weights], lr=0.1)))
    rounds, until = 0, time.monotonic() + seconds
    while rounds == 0 or time.monotonic() < until:
        rounds += 1
        for inputs, goal, weights, optimizer in fits:
            optimizer.zero_grad()
            loss = ((inputs @ weights - goal) ** 2).mean()
            loss.backward()
            optimizer.step()
            if not loss.item() < float("inf"):  # also waits for the GPU
                raise RuntimeError(f"the loss became {loss.item()}")
    return rounds


def train(seconds: float) -> dict[str, Any] | None:
    """Train on every GPU; None where there is nothing to train with."""
    cuda = load_cuda()
    if ask_torch():
        name, work = "torch", train_with_torch
    elif cuda is not None and cuda.devices():
        name, work = "CUDA driver", cuda.train
    else:
        return None
    begun = time.time()
    return {"with": name, "rounds": work(seconds), "from": begun, "to": time.time()}


def look(seconds: float = 0.0) -> dict[str, Any]:
    """Ask everything that knows GPUs, then train; what failed is told under ``errors``."""
    errors: list[str] = []

    def tried(name: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as error:  # whatever a broken driver does: the other answers are worth having
            errors.append(f"{name}: {error}")
            return None

    seen = {
        "visible": visible(),
        "smi": tried("nvidia-smi", ask_nvidia_smi),
        "torch": tried("torch", ask_torch),
        "cuda": tried("libcuda", ask_cuda),
        "trained": tried("training", lambda: train(seconds)) if seconds > 0 else None,
    }
    return {**seen, "errors": errors}


def main() -> None:
    """Look, print, and tell the server when this is an experiment."""
    if "CLEARML_TASK_ID" not in os.environ:
        print(json.dumps(look(), indent=2))
        return
    from clearml import Task

    task: Any = Task.init(auto_connect_frameworks=False, auto_connect_arg_parser=False, auto_resource_monitoring=False)
    seen = look(float(task.get_parameter("probe/train_seconds", 0)))
    print(json.dumps(seen, indent=2))
    # A user property: text that lies in the task itself, so whoever asks for the task has it at once, and the one
    # section that the official server and lite let a running task write without force. Scalars hold numbers only and
    # come late, through the events' index; an artifact needs the file server; runtime values have no documented call.
    if not task.set_user_properties(gpus=json.dumps(seen)):
        raise SystemExit("the server did not take what the probe saw")


if __name__ == "__main__":
    main()
