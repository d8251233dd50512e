"""How well sentences are read that clinicians could write, labelled without a look at the lexicon."""

import csv
from pathlib import Path

import pytest
from helpers import SEVEN_POINT

from skinret_infer.words.reading import reader_of

SENTENCES = Path(__file__).with_name("sentences")
LANGUAGES = ["en", "de", "fr", "es", "it"]
LEAST, PRECISION, RECALL = 400, 0.99, 0.95

Label = dict[str, tuple[str, ...]]


def read_sentences(language: str) -> list[tuple[str, Label]]:
    """Return the texts of a language with the values that each allows by criterion."""
    path = SENTENCES / f"{language}.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row["text"], _label(row["findings"])) for row in rows]


def _label(findings: str) -> Label:
    pairs = [item.strip().split("=", 1) for item in findings.split(";") if item.strip()]
    return {name: tuple(values.split("|")) for name, values in pairs}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_sentences_of_a_language_are_many_and_labelled_with_the_checklist(language: str) -> None:
    sentences = read_sentences(language)
    assert len({text for text, _ in sentences}) == len(sentences) >= LEAST
    assert sum(not label for _, label in sentences) >= len(sentences) // 10, "texts without a finding"
    for text, label in sentences:
        assert list(label) == [name for name in SEVEN_POINT.criteria if name in label], text
        for name, values in label.items():
            known = SEVEN_POINT.criteria[name].values
            assert values == tuple(v for v in known if v in values) and len(values) < len(known), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_sentences_of_a_language_are_read_with_few_errors(language: str) -> None:
    """A criterion is right if exactly the labelled values are allowed."""
    right = read = stated = 0
    false, missed = list[str](), list[str]()
    for text, label in read_sentences(language):
        allowed = dict(reader_of(SEVEN_POINT).read(text).allowed)
        good = {name for name in label if allowed.get(name) == label[name]}
        right, read, stated = right + len(good), read + len(allowed), stated + len(label)
        if wrong := {name: values for name, values in allowed.items() if name not in good}:
            false.append(f"{text!r}: read {wrong}, labelled { {n: label.get(n) for n in wrong} }")
        elif len(good) < len(label):
            missed.append(f"{text!r}: missed { {n: label[n] for n in label if n not in good} }")
    precision, recall = right / read, right / stated
    wrong_rows = "\n".join(["", *false[:10], *missed[: 10 - len(false[:10])]])
    assert precision >= PRECISION, f"precision {precision:.4f}{wrong_rows}"
    assert recall >= RECALL, f"recall {recall:.4f}{wrong_rows}"
