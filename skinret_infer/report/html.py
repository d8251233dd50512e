"""The page of a query and its hits, for a person: one file of HTML, without scripts and without a network."""

import base64
import importlib.resources
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .._extras import missing_extra
from .._files import atomic_write
from .._version import __version__
from ..archive.filters import Filter, Range
from ..descriptor import COSINES, LEVELS
from ..errors import InputError
from ..evidence import ADDS, OPACITY, TAKES_AWAY, Box, Evidence, add_up, tint
from ..imaging.decode import ImageSource
from ..imaging.recipe import Pixels

if TYPE_CHECKING:
    from jinja2 import Template

    from ..results import Hit, HitExplainer, Results

_SHOWN = 20  # hits with their evidence, the first ones; all stand in the list
_NAMED = 20  # case ids left out, or values of a filter, the first ones
_SIDE = 480  # pixels of a picture's longer side
_UNIT = 10_000  # numbers are shown in ten-thousandths
_DETAIL = dict(zip(LEVELS, ("fine", "middle", "coarse"), strict=True))
_WHY = {
    "image-missing": "its file is not there",
    "evidence-image": "its file holds another picture than the one that was indexed",
}


@dataclass(frozen=True, slots=True)
class _Layer:
    """A map that the page can show: some of the parts of the score together."""

    group: str
    label: str
    parts: tuple[str, ...]


def write_report(
    results: "Results",
    path: str | Path,
    image: ImageSource | None = None,
    image_folder: str | Path | None = None,
) -> None:
    """Write the page of a query's results to `path`; the arguments are those of Results.to_html.

    Raises InputError, ArchiveError.
    """
    template, explainer = _template(), results.explainer
    if explainer is None:
        raise InputError(
            "a report of these results cannot be made",
            code="evidence-gone",
            expected="results as Searcher.query returned them",
            found="a copy of them",
        )
    picture = explainer.query_picture(image)
    found = [_evidence(explainer, hit, image_folder) for hit in results.hits[:_SHOWN]]
    layers = _layers(found[0][0].query.maps) if found else {}
    box = found[0][0].query.box if found and picture is not None else None
    page = template.render(
        results=results,
        version=__version__,
        filters={name: _some(_allowed(value)) for name, value in results.where.items()},
        exclude=_some(results.exclude),
        query=_picture(explainer.model_input() if picture is None else picture, box),
        whole=picture is not None,
        cases=[_case(hit, *each, layers) for hit, each in zip(results.hits, found, strict=False)],
        read=any(hit.concepts for hit in results),
        layers=layers,
        detail=_DETAIL,
        opacity=OPACITY,
        adds=ADDS,
        takes=TAKES_AWAY,
        residual=max((evidence.residual for evidence, *_ in found), default=0.0),
    )
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(page.encode("utf-8", "replace"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the report cannot be written to {str(path)!r:.200}",
            code="report-path",
            expected="a file that can be written",
            found=getattr(error, "strerror", None) or str(error),
            cure="name another",
        ) from None


def _template() -> "Template":
    try:
        import jinja2
    except ImportError as error:
        raise missing_extra("a report cannot be written here", error, "report") from None
    pages = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pages.filters |= {"units": _number, "plain": lambda name: str(name).replace("_", " ")}
    return pages.from_string(
        importlib.resources.files(__package__).joinpath("report.html.j2").read_text("utf-8")
    )


def _evidence(
    explainer: "HitExplainer", hit: "Hit", folder: str | Path | None
) -> tuple[Evidence, Pixels | None, str]:
    """Return the evidence of a hit and the picture of the case, or why that is not there."""
    try:
        return *explainer.explain(hit, None, folder, True), ""
    except InputError as error:
        why = f"{_WHY.get(error.code, 'its file cannot be read')} [{error.code}]"
        return explainer.explain(hit, None, folder, False)[0], None, why


def _layers(maps: Collection[str]) -> dict[str, _Layer]:
    """Return the maps that can be shown, by the name that they have in the page."""
    concepts = tuple(name for name in maps if name not in COSINES)
    layers = [_Layer("", "everything", (*COSINES, *concepts))]
    for group, parts in (("Visual", COSINES), ("Concepts", concepts)):
        if parts and concepts:
            layers.append(_Layer(group, "together", parts))
        layers += [_Layer(group, _label(name), (name,)) for name in parts]
    return {f"map-{n}": layer for n, layer in enumerate(layers)}


def _label(part: str) -> str:
    if part not in COSINES:
        return part.replace("_", " ")
    term, level = part.split("_")
    return f"{term}, {_DETAIL[level]}"


def _case(
    hit: "Hit", evidence: Evidence, picture: Pixels | None, missing: str, layers: Mapping[str, _Layer]
) -> dict[str, Any]:
    """Return what the page shows of a hit."""
    groups = [COSINES[:3], COSINES[3:], list(hit.concepts)]
    exact = [[evidence.parts[name] for name in names] for names in groups]
    sums = _round([sum(group) for group in exact], round(hit.score * _UNIT))
    parts = {
        name: units
        for names, group, whole in zip(groups, exact, sums, strict=True)
        for name, units in zip(names, _round(group, whole), strict=True)
    }
    return {
        "hit": hit,
        "score": sum(sums),
        "sums": sums,
        "bar": _bar([sum(group) for group in exact]),
        "parts": parts,
        **_known(hit, evidence),
        "layers": {
            name: _layer(layer.parts, evidence, sum(parts[p] for p in layer.parts))
            for name, layer in layers.items()
        },
        "picture": None
        if picture is None
        else _picture(picture, evidence.case.box if evidence.case else None),
        "missing": missing,
    }


def _known(hit: "Hit", evidence: Evidence) -> dict[str, list[dict[str, Any]]]:
    """Return the group and attributes of a case: concepts and what the words name; the rest."""
    asked = dict.fromkeys(evidence.matching_criteria, "same") | dict.fromkeys(
        evidence.conflicting_criteria, "differs"
    )
    values = dict.fromkeys(asked, "") | dict(hit.attributes)
    concepts = {name: hit.group if name == "group" else values.pop(name, "") for name in hit.concepts}
    table: dict[str, list[dict[str, Any]]] = {"rows": [], "rest": []}
    for read, known in ((True, concepts), (False, values)):
        for name, value in known.items():
            table["rows" if read or name in asked else "rest"].append(
                {
                    "name": name,
                    "value": ("no", "yes")[value] if isinstance(value, bool) else str(value),
                    "asked": asked.get(name),
                    "read": read,
                }
            )
    return table


def _layer(names: Sequence[str], evidence: Evidence, part: int) -> dict[str, Any]:
    """Return a map over the query and over the case in one scale, and its text."""
    sides = {"query": evidence.query} | ({"case": evidence.case} if evidence.case else {})
    maps = {side: add_up(s.maps[name] for name in names) for side, s in sides.items()}
    full = max(float(np.abs(m).max()) for m in maps.values())
    layer: dict[str, Any] = {
        "part": part,
        "full": full,
        "share": full / evidence.score if evidence.score > 0 else None,
    }
    for side, m in maps.items():
        base = sum(sides[side].baseline.get(name, 0.0) for name in names)
        adds, takes, base = _round([float(m[m > 0].sum()), float(m[m < 0].sum()), base], part)
        layer[side] = {
            "png": _url(Image.fromarray(tint(m, full)), "PNG"),
            "adds": adds,
            "takes": -takes,
            "base": base,
        }
    return layer


def _picture(pixels: Pixels, box: Box | None) -> dict[str, Any]:
    """Return a picture, scaled down, with the size that it has in full and the box on which maps lie."""
    height, width, _ = pixels.shape
    full = (0.0, 0.0, float(width), float(height))
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    return {
        "width": width,
        "height": height,
        "url": _url(small, "JPEG"),
        "box": box or full,
        "cut": box not in (None, full),
    }


def _url(image: Image.Image, kind: str) -> str:
    data = io.BytesIO()
    image.save(data, kind, quality=85, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def _round(parts: Sequence[float], whole: int) -> list[int]:
    """Round parts to units that add up to `whole`: those that rounding moved furthest give way."""
    units = [round(part * _UNIT) for part in parts]
    missing = whole - sum(units)
    step = 1 if missing > 0 else -1
    order = sorted(range(len(parts)), key=lambda i: step * (units[i] - parts[i] * _UNIT))
    for i in order[: abs(missing)]:
        units[i] += step
    return units


def _bar(parts: Sequence[float]) -> dict[str, Any]:
    """Lay parts end to end on a line to 1 in per cent of its length; what takes away lies left of zero."""
    below = -sum(part for part in parts if part < 0)
    left, right, pieces = 0.0, below, []
    for part in parts:
        pieces.append((left if part < 0 else right, abs(part)))
        left, right = left + max(-part, 0), right + max(part, 0)
    return {
        "zero": 100 * below / (1 + below),
        "pieces": [(100 * start / (1 + below), 100 * length / (1 + below)) for start, length in pieces],
    }


def _number(units: int) -> str:
    return f"{units / _UNIT:.4f}"


def _allowed(value: Filter) -> list[str]:
    """Return the values that pass a filter, or its range."""
    if isinstance(value, Range):
        ends = [f"{word} {end}" for word, end in value.to_dict().items() if end is not None]
        return [" ".join(ends)]
    return [str(item) for item in (value if isinstance(value, list | tuple) else [value])]


def _some(names: Sequence[str]) -> list[str]:
    more = len(names) - _NAMED
    return [*names[:_NAMED], *([f"and {more:,} more"] if more > 0 else [])]
