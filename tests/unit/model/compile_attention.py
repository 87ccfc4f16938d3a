"""Graph attention on a CUDA device that is not there: kernels are compiled as they are launched, but not run.

    python -m tests.unit.model.compile_attention CAPABILITY WIDTH...

Prints as JSON what each kernel takes in each of its variants: a thread's registers, bytes of its stack and of
local memory, of which a kernel whose numbers fit the registers has none.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

from tests.unit.model.test_attention_cpu import Problem, gradients, hub_graph

NODES, EDGES = 40, 800


class Absent:
    """Stands in for Triton's driver of a device of some capability, as far as launching goes."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.utils = self
        self.used: dict[str, list[dict[str, int]]] = defaultdict(list)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 48 * 1024}

    def load_binary(
        self, name: str, code: bytes, shared: int, device: int
    ) -> tuple[object, int, int, int, int]:
        self.used[name].append(resources(code))
        return object(), 0, 0, 0, 1024

    def unload_module(self, module: object) -> None:
        pass

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        return lambda *arguments: None


def resources(code: bytes) -> dict[str, int]:
    """What cuobjdump, which comes with Triton, reads in the machine code."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [str(tools / "cuobjdump"), "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)}
    return {"registers": found["REG"], "stack": found["STACK"], "local": found["LOCAL"]}


def launch_all(kind: str, width: int, dtype: torch.dtype) -> None:
    """Forward and backward of one kind of attention, over rows that are cut in parts."""
    problem = Problem(kind, NODES, hub_graph(NODES, EDGES), width=width, dtype=torch.float32)
    for leaf in problem.leaves:
        leaf.data = leaf.data.to(dtype)
    gradients(problem.run("triton"), problem.leaves)


def main() -> None:
    """Launch all kernels."""
    capability, *widths = map(int, sys.argv[1:])
    device = Absent(capability)
    triton.runtime.driver.set_active(device)
    for width in widths:
        for kind in ("gatv2 with everything", "gatv1", "pattern with gates"):
            launch_all(kind, width, torch.float32)
    for kind in ("gatv2", "sum", "pattern"):
        launch_all(kind, widths[-1], torch.bfloat16)
    print(json.dumps(device.used))


if __name__ == "__main__":
    main()
