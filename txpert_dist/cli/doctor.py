"""`txpert doctor`: what works on this machine, what does not, what to do about it."""

import importlib
import platform
import shutil
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from txpert_dist.cli.screen import output, table

PACKAGES = (
    "torch",
    "ray",
    "deepspeed",
    "mlflow",
    "zarr",
    "anndata",
    "pyarrow",
    "safetensors",
    "torch-geometric",
)
DISK_WARNING_GIB = 20


class Finding(NamedTuple):
    """One line of the table: what was looked at, what was found, and whether anything must be done."""

    what: str
    found: str
    remedy: str


def doctor(
    folder: Annotated[Path, typer.Option(help="Folder that runs will be written to.")] = Path("runs"),
) -> None:
    """Check this machine: versions, GPU, disk, ports. Exits with 2 when training cannot work here."""
    findings = [_python(), *map(_package, PACKAGES), _gpu(), _disk(folder), _loopback()]
    rows = [[finding.what, finding.found, finding.remedy or "ok"] for finding in findings]
    output.print(table("This machine", ["part", "found", "to do"], rows, texts=3))
    if any(finding.remedy.startswith("needed") for finding in findings):
        raise typer.Exit(2)


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python", found, "")


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name), "")
    except PackageNotFoundError:
        return Finding(name, "not installed", "needed for training: pip install 'txpert-dist[train]'")


def _gpu() -> Finding:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return Finding("GPU", "unknown without torch", "")
    if not torch.cuda.is_available():
        return Finding("GPU", "none visible: training runs on CPU", "")
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return Finding("GPU", names, "")


def _disk(folder: Path) -> Finding:
    existing = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free / 2**30
    return Finding(
        "free disk", f"{free:.0f} GiB at {folder}", "" if free > DISK_WARNING_GIB else "little: make room"
    )


def _loopback() -> Finding:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return Finding("loopback", f"port {server.getsockname()[1]} could be opened", "")
    except OSError as error:
        return Finding("loopback", str(error), "needed: Ray's processes talk over 127.0.0.1")
