"""tests/breaks.py stays usable: its rows are edits of the library as it is, and a break of an assertion is noticed."""

import pytest

from tests.breaks import BREAKS, Break, find, run


@pytest.mark.parametrize("row", BREAKS, ids=lambda row: row.what)
def test_a_break_is_an_edit(row: Break):
    assert find(row.old) and row.old != row.new


def test_a_text_that_is_gone_is_said():
    with pytest.raises(LookupError, match="exactly once, and is there: nowhere"):
        find("what nobody " + "writes")


def test_a_break_is_noticed():
    [row] = [row for row in BREAKS if "max(x, 0.0)" in row.old]
    assert (run(row, ["tests/test_frontier.py"]) or "").startswith("tests/test_frontier.py::")
