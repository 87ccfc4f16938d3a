"""Public screens and knowledge graphs that `txpert fetch` knows by name.

Leaves: ``CATALOGUE``. Invariant: a checksum is what the publisher gives for exactly this file; files that
change in place (a database's current release) have none.
"""

from typing import NamedTuple


class Asset(NamedTuple):
    """One file."""

    url: str
    file: str
    """Name to keep it under."""
    checksum: str | None = None
    """As its publisher gives it: algorithm, colon, hexadecimal digest."""
    member: str | None = None
    """Of a zip: the file in it that is wanted, found by the end of its path."""


class Entry(NamedTuple):
    """What one name stands for."""

    title: str
    assets: tuple[Asset, ...]
    then: str
    """The command that reads it; {} stands for the file."""


def _scperturb(title: str, file: str, md5: str, options: str = "") -> Entry:
    url = f"https://zenodo.org/records/13350497/files/{file}?download=1"
    then = f"txpert ingest {{}} --store screen.zarr --preset scperturb{options}"
    return Entry(f"{title} (scPerturb, counts)", (Asset(url, file, f"md5:{md5}"),), then)


_STRING = "https://stringdb-downloads.org/download"
_TXPERT = "https://zenodo.org/records/15420279/files"

CATALOGUE: dict[str, Entry] = {
    "norman": _scperturb(
        "Norman 2019, K562, CRISPRa, singles and doubles",
        "NormanWeissman2019_filtered.h5ad",
        "c870e6967d91c017d9da827bab183cd6",
        " --separator _",
    ),
    "k562_essential": _scperturb(
        "Replogle 2022, K562, essential genes",
        "ReplogleWeissman2022_K562_essential.h5ad",
        "d8cba17576d1a8afc0f7d71b79cad0f7",
    ),
    "k562_gwps": _scperturb(
        "Replogle 2022, K562, genome-wide",
        "ReplogleWeissman2022_K562_gwps.h5ad",
        "13db594f8f1d2ccb88fec44a13e414dc",
    ),
    "rpe1": _scperturb(
        "Replogle 2022, RPE1, essential genes",
        "ReplogleWeissman2022_rpe1.h5ad",
        "cc7f1ec50aeb3a3e1b4a6cfa713d80fa",
    ),
    "hepg2": _scperturb(
        "Nadig 2025, HepG2, essential genes",
        "NadigOConner2024_hepg2.h5ad",
        "af2be47f7477cf32fa6e4bec1c6a4868",
    ),
    "jurkat": _scperturb(
        "Nadig 2025, Jurkat, essential genes",
        "NadigOConner2024_jurkat.h5ad",
        "d8b05d00bfbd686d37ffdd4293bc6c8c",
    ),
    "norman_gears": Entry(
        "Norman 2019 as GEARS has it (log1p values)",
        (
            Asset(
                "https://dataverse.harvard.edu/api/access/datafile/6154020",
                "norman_gears.h5ad",
                member="perturb_processed.h5ad",
            ),
        ),
        "txpert ingest {} --store screen.zarr --preset gears --input-scale log1p",
    ),
    "txpert_k562": Entry(
        "The TxPert release, one cell line (zip of log1p values, splits and graphs)",
        (
            Asset(
                f"{_TXPERT}/K562_single_cell_line.zip?download=1",
                "K562_single_cell_line.zip",
                "md5:6be4c8239fd7e6b70d2ffe7b80c3c7bc",
            ),
        ),
        "unzip {}; then txpert ingest FILE.h5ad --store screen.zarr --preset txpert --input-scale log1p",
    ),
    "string": Entry(
        "STRING 12.0, human protein links and names",
        (
            Asset(
                f"{_STRING}/protein.links.detailed.v12.0/9606.protein.links.detailed.v12.0.txt.gz",
                "9606.protein.links.detailed.v12.0.txt.gz",
            ),
            Asset(
                f"{_STRING}/protein.info.v12.0/9606.protein.info.v12.0.txt.gz",
                "9606.protein.info.v12.0.txt.gz",
            ),
        ),
        "name {} as a source of kind string in graphs.yaml",
    ),
    "go": Entry(
        "Gene Ontology and its human annotations, current release",
        (
            Asset("https://current.geneontology.org/ontology/go-basic.obo", "go-basic.obo"),
            Asset("https://current.geneontology.org/annotations/goa_human.gaf.gz", "goa_human.gaf.gz"),
        ),
        "name {} as a source of kind go in graphs.yaml",
    ),
    "reactome": Entry(
        "Reactome pathways, current release",
        (
            Asset(
                "https://reactome.org/download/current/ReactomePathways.gmt.zip",
                "ReactomePathways.gmt",
                member="ReactomePathways.gmt",
            ),
        ),
        "name {} as a source of kind gmt in graphs.yaml",
    ),
}
