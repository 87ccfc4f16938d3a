"""Perturbation labels: many spellings in, one canonical name out.

Enters: labels as files have them. Leaves: "control", or gene symbols sorted and joined with "+". Invariant:
the order of genes, repeats and any attached control spelling make no difference, so that one perturbation
never stands in two splits under two names.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

from txpert_dist.errors import InputError
from txpert_dist.store.splits import CONTROL

JOIN = "+"
_CONTROL_SPELLINGS = frozenset(
    (
        *("ctrl", "control", "controls", "nontargeting", "nontargetingcontrol", "nontarget", "nt", "ntc"),
        *("neg", "negctrl", "negativecontrol", "safetargeting", "unperturbed"),
    )
)
"""Lower case, without dashes, underscores and spaces."""
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec|march|april|june|july|august|september"
_DATE = re.compile(rf"\d{{1,2}}[-/ ]({_MONTHS})|({_MONTHS})[-/ ]\d{{1,2}}|\d{{4}}-\d\d-\d\d.*", re.IGNORECASE)
_CONTROL_MARKS = re.compile(
    r"ctrl|control|non.?target|\bnt|neg|safe|aavs|scrambl|mock|none|\bwt|empty|untreat|unpert|parental|vehicle",
    re.IGNORECASE,
)
_MULTI_GUIDE = re.compile(r"[_,;|]")


def is_control_spelling(label: str) -> bool:
    """Whether ``label`` is one of the usual ways to write control, whatever its case, dashes and spaces."""
    return re.sub(r"[-_ ]", "", label).lower() in _CONTROL_SPELLINGS


def canonical_perturbation(label: str, *, control_label: str | None, separator: str | None) -> str:
    """The canonical name of ``label``; ``ValueError`` saying what is wrong with it."""
    if label.strip() == control_label or is_control_spelling(label):
        return CONTROL
    joined = label.replace(separator, JOIN) if separator else label
    genes = [token.strip() for token in joined.split(JOIN)]
    if not all(genes):
        raise ValueError("a gene is missing in it")
    for gene in genes:
        check_name(gene)
        if gene.isdigit():
            raise ValueError(
                f"{gene} is a number, not a gene; is it a guide's number rather than a second gene?"
            )
    perturbed = {gene for gene in genes if gene != control_label and not is_control_spelling(gene)}
    return JOIN.join(sorted(perturbed)) or CONTROL


def check_name(name: str) -> None:
    """``ValueError`` when a name could not stand in a path, table or report, or is a spreadsheet's date."""
    if not name.isprintable():
        raise ValueError("it holds control characters")
    if "/" in name or "\\" in name:
        raise ValueError("it holds a path separator")
    if is_date(name):
        raise ValueError("a spreadsheet turned a gene symbol into this date")


def is_date(name: str) -> bool:
    """Whether ``name`` looks like what a spreadsheet makes of MARCH1, SEPT2 or DEC1 (1-Mar, Sep-02, ...)."""
    return _DATE.fullmatch(name.strip()) is not None


def looks_like_several_guides(label: str) -> bool:
    """Whether ``label`` holds a character that some files put between guides or genes."""
    return _MULTI_GUIDE.search(label) is not None and not is_control_spelling(label)


def require_control(
    labels: Sequence[str], canonical: Iterable[str], *, given: str | None, where: str
) -> None:
    """``InputError`` when no cell is a control, or the label given for control is not among ``labels``."""
    if given is not None and not is_control_spelling(given):
        found = any(given in (part.strip() for part in label.split(JOIN)) for label in labels)
    else:
        found = CONTROL in set(canonical)
    if found:
        return
    what = (
        f"no cell is labelled {given!r}" if given is not None else "no label is a known spelling of control"
    )
    raise InputError(
        f"{where}: {what}; {_candidates(labels, given)}; name the right one with --control-label"
    )


def _candidates(labels: Sequence[str], given: str | None) -> str:
    looks = [label for label in labels if _CONTROL_MARKS.search(label)]
    looks += [
        label for label in difflib.get_close_matches(given or "control", labels, 3, 0.6) if label not in looks
    ]
    if looks:
        return f"labels that look like controls: {listing(looks)}"
    return f"the labels are {listing(labels)}"


def listing(names: Sequence[str], most: int = 5) -> str:
    """Up to ``most`` names for a message, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
