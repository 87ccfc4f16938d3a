"""Which controls stand beside each context."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from txpert_dist.errors import InputError
from txpert_dist.store.controls import Context, build_control_index

CONTEXTS = (Context("HepG2", "1"), Context("K562", "1"), Context("K562", "2"), Context("K562", "3"))


@given(data=st.data())
def test_every_context_gets_its_own_controls_or_its_cell_lines(data: st.DataObject) -> None:
    num_cells = data.draw(st.integers(2, 60))
    context = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=num_cells, max_size=num_cells)), np.int32
    )
    control = np.array(data.draw(st.lists(st.booleans(), min_size=num_cells, max_size=num_cells)), bool)
    context, control = np.append(context, [0, 1]).astype(np.int32), np.append(control, [True, True])
    index = build_control_index(context, control, CONTEXTS)
    for code, (line, _batch) in enumerate(CONTEXTS):
        own = [row for row in range(len(context)) if control[row] and context[row] == code]
        of_line = [
            row for row in range(len(context)) if control[row] and CONTEXTS[context[row]].cell_line == line
        ]
        found = index.rows[index.indptr[code] : index.indptr[code + 1]].tolist()
        assert found == (own or of_line)
        assert bool(index.fallback[code]) == (not own)


def test_a_cell_line_without_any_control_is_named() -> None:
    context = np.array([0, 1, 1, 2], np.int32)
    with pytest.raises(InputError, match=r"no control cell in cell line K562:"):
        build_control_index(context, np.array([True, False, False, False]), CONTEXTS[:3])
