"""The real Derm7pt, where SKINRET_DERM7PT names its release_v0 folder; nothing of it is in the repository."""

from collections import Counter
from pathlib import Path

import pytest

from skinret_infer.tables import read_cases
from skinret_infer.text import TextEncoderInput, TextRecipe
from skinret_infer.words.checklist import Checklist

SEVEN_POINT = Checklist.seven_point()

pytestmark = pytest.mark.derm7pt


def test_the_three_groups_of_the_paper_are_888_cases(derm7pt: Path) -> None:
    table = read_cases(derm7pt)
    assert Counter(case.group for case in table.cases) == {"mel": 252, "nevus": 575, "bkl": 61}
    assert table.notes[0].startswith("123 cases outside the groups")
    assert {case.confirmed_by for case in table.cases} == {"unknown"}


def test_the_words_never_tell_the_diagnosis(derm7pt: Path, tokenizer: str) -> None:
    for case in read_cases(derm7pt).cases:
        said = SEVEN_POINT.text_of(case.attributes)
        assert not any(word in said for word in ("melanoma", "nevus", "keratosis", "melanosis", "excision"))
        assert not TextEncoderInput(tokenizer, TextRecipe(length=128))([said])[2][0]
