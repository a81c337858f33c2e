"""The list of mutants belongs to today's code: every one can be applied, and would be tested."""

from __future__ import annotations

from tests.mutation.mutants import ROOT, read_mutants


def test_every_mutant_changes_one_place_of_todays_code() -> None:
    mutants = read_mutants()
    assert len(mutants) >= 60
    for mutant in mutants:
        source = (ROOT / mutant.file).read_text()
        assert mutant.applied(source) != source
        for test in mutant.tests:
            assert (ROOT / test.partition("::")[0]).exists(), f"{mutant}: no {test}"
