"""What travels to a cluster with a job: this software as it is installed here, and the job's configuration.

Enters: the configuration's text. Leaves: a zip file, the working directory of a Ray Job. Invariants: same
code and configuration, same bytes, so that Ray keeps one copy; the dependencies are the cluster's own;
nothing of this machine's environment, and no file that is not code of this package, goes in.
"""

import json
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import graph_store
import txpert_dist

CONFIG = "job.yaml"
"""The configuration, in the job's working directory."""

_PACKAGES = (txpert_dist, graph_store)
_KEPT = (".py", ".typed", ".yaml", ".html", ".css", ".js")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_package(out: Path, config: str, commit: str) -> None:
    """Write the zip file: the packages, their metadata as pip would install it, the configuration."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [*_code(), *_metadata(commit), (CONFIG, config.encode())]:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


def _code() -> Iterator[tuple[str, bytes]]:
    for package in _PACKAGES:
        (folder,) = package.__path__
        root = Path(folder)
        for file in sorted(root.rglob("*")):
            if file.suffix in _KEPT and file.is_file():
                yield str(file.relative_to(root.parent)), file.read_bytes()


def _metadata(commit: str) -> Iterator[tuple[str, bytes]]:
    """Name and version, which the registry's tags show, and the commit, where pip puts it (PEP 610)."""
    try:
        installed = distribution("txpert-dist")
    except PackageNotFoundError:
        return
    folder = f"txpert_dist-{installed.version}.dist-info"
    name = f"Metadata-Version: 2.1\nName: txpert-dist\nVersion: {installed.version}\n"
    yield f"{folder}/METADATA", name.encode()
    origin = {"url": "", "vcs_info": {"vcs": "git", "commit_id": commit}}
    yield f"{folder}/direct_url.json", json.dumps(origin).encode()
