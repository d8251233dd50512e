"""One picture of queries and their hits, in the manner of the paper's Fig. 3."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .._files import atomic_write, find_file
from ..errors import InputError
from ..imaging.decode import ImageSource, decode
from ..results import Results

_TILE, _GAP, _BORDER, _TEXT = 190, 14, 7, 44
_INK, _FAINT, _PAPER = "#1a1a1a", "#666666", "#ffffff"
# Okabe and Ito's colours, which colour-blind readers can tell apart; the paper's groups have fixed colours.
_PALETTE = ("#D55E00", "#009E73", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_NAMED = {"mel": _PALETTE[0], "nevus": _PALETTE[1], "bkl": _PALETTE[2]}


def draw_results(
    rows: Sequence[tuple[ImageSource, Results]],
    images: str | Path,
    path: str | Path,
    *,
    groups: Sequence[str] | None = None,
) -> None:
    """Draw each query, its words and its hits as one row of a PNG, a hit's border in its group's colour.

    rows : the query image and its results.
    images : the folder to which the archive's image references are relative.
    groups : the true group of each query, where it is known; it colours the query's border.
    """
    columns = max(len(results) for _, results in rows)
    names = sorted({hit.group for _, results in rows for hit in results} | set(groups or ()))
    free = [c for c in _PALETTE if c not in {_NAMED.get(n) for n in names}]
    unnamed = [n for n in names if n not in _NAMED]
    colours = _NAMED | {name: free[i % len(free)] for i, name in enumerate(unnamed)}
    words_width = 240
    left = 2 * _GAP + _TILE + words_width
    width, row_height = left + columns * (_TILE + _GAP), _TILE + _TEXT + _GAP
    page = Image.new("RGB", (width, 34 + len(rows) * row_height + 34), _PAPER)
    pen = ImageDraw.Draw(page)
    small, normal, bold = (ImageFont.load_default(size) for size in (13, 15, 17))
    pen.text((_GAP, 9), "query", _INK, bold)
    pen.text((2 * _GAP + _TILE, 9), "words", _INK, bold)
    pen.text((left, 9), f"the {columns} most similar cases, best first", _INK, bold)
    for n, (image, results) in enumerate(rows):
        top = 34 + n * row_height
        _tile(page, pen, image, (_GAP, top), colours.get(groups[n], _FAINT) if groups else _FAINT)
        if groups:
            pen.text((_GAP, top + _TILE + 4), _fit(pen, groups[n], normal, _TILE), _INK, normal)
        words = _wrap(pen, results.text or "(the image alone)", normal, words_width - _GAP)
        pen.multiline_text((2 * _GAP + _TILE, top + 4), words, _INK, normal, spacing=5)
        for hit in results:
            x = left + (hit.rank - 1) * (_TILE + _GAP)
            _tile(page, pen, _case_image(images, hit.image_ref), (x, top), colours[hit.group])
            caption = _fit(pen, f"{hit.score:.3f}  {hit.group}", normal, _TILE)
            pen.text((x, top + _TILE + 4), caption, _INK, normal)
            caption = _fit(pen, f"{hit.case_id}: {hit.diagnosis}", small, _TILE)
            pen.text((x, top + _TILE + 23), caption, _FAINT, small)
    x, y = _GAP, page.height - 28
    for name in names:
        pen.rectangle((x, y + 2, x + 14, y + 16), colours[name])
        label = _fit(pen, name, normal, _TILE)
        pen.text((x + 20, y), label, _INK, normal)
        x += 44 + int(pen.textlength(label, normal))
    pen.text((x + 10, y), "Score: similarity, not probability.", _FAINT, normal)
    with atomic_write(path) as temporary:
        page.save(temporary, "PNG")


def _case_image(images: str | Path, name: str) -> ImageSource:
    """Return the path of a case's image, or no bytes if the archive names a file outside the folder."""
    try:
        return find_file(images, name)
    except InputError:
        return b""


def _tile(
    page: Image.Image, pen: ImageDraw.ImageDraw, image: ImageSource, corner: tuple[int, int], colour: str
) -> None:
    """Draw an image, cropped to its central square, with a border, at an upper left corner."""
    x, y = corner
    pen.rectangle((x, y, x + _TILE - 1, y + _TILE - 1), colour)
    inner = _TILE - 2 * _BORDER
    try:
        picture = Image.fromarray(decode(image))
    except InputError:
        pen.rectangle((x + _BORDER, y + _BORDER, x + _TILE - _BORDER - 1, y + _TILE - _BORDER - 1), "#eeeeee")
        pen.text((x + 24, y + _TILE // 2 - 8), "image not found", _FAINT, ImageFont.load_default(15))
        return
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    page.paste(
        picture.resize((inner, inner), Image.Resampling.LANCZOS, (left, top, left + side, top + side)),
        (x + _BORDER, y + _BORDER),
    )


def _wrap(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """Break text into at most nine lines of a width in pixels; "..." stands for the rest."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines[:9] + (["..."] if len(lines) > 9 else []))


def _fit(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """Cut text to one line of a width in pixels."""
    text = " ".join(text.split())
    while pen.textlength(text, font) > width:
        text = text[:-2].rstrip() + "…"
    return text
