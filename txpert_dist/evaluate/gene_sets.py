"""Gene sets (GMT) that colour a map of genes: one set a line - name, description, genes - tab-separated.

Enters: a file. Leaves: genes by set. Invariant: lines of the same set name are one set; a line that is none
is an ``InputError`` naming file and line.
"""

from pathlib import Path

from txpert_dist.errors import InputError


def read_gene_sets(path: Path) -> dict[str, frozenset[str]]:
    """Genes of each set, sets in the order of the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a GMT file of gene sets") from None
    sets: dict[str, set[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, *fields = (field.strip() for field in line.split("\t"))
        genes = {gene for gene in fields[1:] if gene}
        if not line.strip():
            continue
        if not name or not genes:
            raise InputError(
                f"{path}: line {number} is no gene set; a GMT line is name, description and genes, separated "
                "by tabs"
            )
        sets.setdefault(name, set()).update(genes)
    if not sets:
        raise InputError(f"{path}: is empty; a GMT file has one gene set a line")
    return {name: frozenset(genes) for name, genes in sets.items()}
