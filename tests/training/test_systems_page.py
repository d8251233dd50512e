"""The page of all systems: who is behind whom, chance, and what each row looks at."""

from typing import Any
from xml.etree import ElementTree

import pytest

from skinret_training.crossval_report import grid
from skinret_training.systems import MODELS, SYSTEMS
from skinret_training.systems.page import page, picture, table


def result(name: str, map_: float, *kinds: str) -> dict[str, Any]:
    """The results of a system, with one value for all figures."""

    def spread(value: float, std: float | None = 1.0) -> dict[str, float | None]:
        return {"mean": value, "std_folds": std}

    figures = {"mAP": spread(map_), "Acc@1": spread(70.0), "Acc@4": spread(90.0)}
    random = {name: spread(50.9, None) for name in figures}
    summary = {
        kind: {"all": figures, "balanced": figures, "random_order": {"all": random, "balanced": random}}
        for kind in kinds
    }
    system = (SYSTEMS[name] if name in SYSTEMS else MODELS[name]).facts()
    return {
        "experiment": name, "method": name, "system": system, "minutes": {"a_fold": 2.0},
        "summary": {"training_folds": summary, "held_out_fold": summary},
    }  # fmt: skip


RESULTS = [
    result("skinret", 80.0, "image_words", "image_only"),
    result("tirg", 81.0, "image_words", "image_only"),
    result("snf-dca", 99.0, "image_words_both"),
    result("dahnet", 79.0, "image_only"),
]


def test_a_row_that_is_better_for_the_same_query_is_bold() -> None:
    header, *rows, chance = table(RESULTS, "held_out_fold")
    by_row = {(row[0], row[1]): dict(zip(header, row, strict=True)) for row in rows}
    assert by_row["tirg", "image words"]["mAP"] == "**81.0 ± 1.0**"
    assert by_row["tirg", "image words"]["Acc@1"] == "70.0 ± 1.0"
    assert by_row["dahnet", "image only"]["mAP"] == "79.0 ± 1.0"
    # It reads the archive's words, so it answers another question.
    assert by_row["snf-dca", "image words both"]["mAP"] == "99.0 ± 1.0"
    assert by_row["snf-dca", "image words both"]["archive's words"] == "yes"
    assert by_row["snf-dca", "image words both"]["labels"] == "no"
    assert chance[0] == "a random order" and dict(zip(header, chance, strict=True))["mAP"] == "50.9"


def test_every_row_says_how_close_to_its_source_it_is() -> None:
    text = page(RESULTS, grid, "systems.svg")
    for name in ("tirg", "snf-dca", "dahnet"):
        system = SYSTEMS[name]
        assert f"**{name}** ({system.fidelity}): {system.source}." in text
        assert all(f"- {sentence}" in text for sentence in system.deviations)
    assert "Acc@4 rewards ignorance" in text and "systems.svg" in text


def test_the_picture_has_a_mark_for_each_archive_and_the_line_of_chance() -> None:
    root = ElementTree.fromstring(picture(RESULTS))
    kinds = sum(len(r["summary"]["held_out_fold"]) for r in RESULTS)
    names = [element.tag.split("}")[1] for element in root]
    assert names.count("circle") == kinds + 1 and names.count("rect") == kinds + 2  # and the legend
    texts = [element.text for element in root.iter() if element.text]
    assert "random order" in texts and "snf-dca, image words both" in texts


def test_a_row_without_scores_in_the_held_out_archive_is_in_table_and_picture() -> None:
    alone = result("dahnet-b", 81.0, "image_only")
    alone["summary"]["held_out_fold"] = {}
    root = ElementTree.fromstring(picture([alone]))
    names = [element.tag.split("}")[1] for element in root]
    assert names.count("circle") == 2 and names.count("rect") == 2  # and the legend, and the background
    assert "dahnet-b, image only" in [element.text for element in root.iter()]
    text = page([alone], grid, "systems.svg")
    assert text.index("| dahnet-b") < text.index("## Archive: held-out fold")


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_names_its_source_and_no_publication_that_it_is_not(name: str) -> None:
    system = SYSTEMS[name]
    assert system.source and system.fidelity
    assert bool(system.deviations) == (system.fidelity != "our own")
