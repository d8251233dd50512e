"""The figure of hits: border colours by group, and no crash by any words or a missing image."""

import dataclasses
from pathlib import Path

from PIL import Image, ImageColor

from skinret_infer import Case, Searcher
from skinret_infer.report.figure import draw_results


def test_a_hits_border_has_its_groups_colour(
    searcher: Searcher, cases: list[Case], data: Path, tmp_path: Path
) -> None:
    colours = {"mel": "#D55E00", "nevus": "#009E73", "bkl": "#0072B2"}
    results = searcher.query(cases[50].image, "irregular streaks", k=5)
    draw_results(
        [(cases[50].image, results)] * 2, data / "images", tmp_path / "hits.png", groups=["mel", "bkl"]
    )
    with Image.open(tmp_path / "hits.png") as page:
        picture = page.convert("RGB")
    borders = [colour for _, colour in picture.crop((400, 34, picture.width, 38)).getcolors(4096)]
    assert {ImageColor.getrgb(colours[hit.group]) for hit in results} <= set(borders)
    assert picture.getpixel((16, 36)) == ImageColor.getrgb(colours["mel"])
    inner = picture.crop((470, 50, 600, 180)).getcolors(100_000)
    assert len(inner) > 100, "the first hit's image is not drawn"


def test_odd_words_and_missing_images_are_drawn(
    searcher: Searcher, cases: list[Case], tmp_path: Path
) -> None:
    results = searcher.query(cases[50].image, k=3)
    odd = dataclasses.replace(
        results,
        text="word " * 200 + "\n" + "x" * 500,
        hits=tuple(
            dataclasses.replace(
                h, group=f"a\nvery long {'group ' * 30}{h.rank}", diagnosis="\n\t" * 9, image_ref="gone.jpg"
            )
            for h in results
        ),
    )
    empty = dataclasses.replace(results, hits=())
    draw_results([(cases[50].image, odd), (cases[51].image, empty)], tmp_path, tmp_path / "odd.png")
    with Image.open(tmp_path / "odd.png") as page:
        assert page.width > 600
