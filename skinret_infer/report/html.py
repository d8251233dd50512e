"""The page of a query and its hits: one file of HTML that runs no script and needs no network."""

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

_MAX_HITS = 20  # hits with pictures and evidence; the list names all hits
_MAX_NAMES = 20  # excluded case ids, or values of one filter
_SIDE = 480  # pixels of a picture's longer side
_UNIT = 10_000  # numbers are shown in ten-thousandths
_DETAIL = dict(zip(LEVELS, ("fine", "middle", "coarse"), strict=True))
_REASONS = {
    "image-missing": "its file does not exist",
    "evidence-image": "its file holds another picture than the one that was indexed",
}


@dataclass(frozen=True, slots=True)
class _Layer:
    """A map that the page can show: the sum of the maps of these parts of the score."""

    group: str
    label: str
    parts: tuple[str, ...]


def write_report(
    results: "Results",
    path: str | Path,
    image: ImageSource | None = None,
    image_folder: str | Path | None = None,
) -> list[str]:
    """Write the page of a query's results to `path`; the arguments are those of Results.to_html.

    Return, for each hit whose picture the page lacks, the reason. Raises InputError, ArchiveError.
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
    explained = [_explain(explainer, hit, image_folder) for hit in results.hits[:_MAX_HITS]]
    first = explained[0][0] if explained else None
    shown = (first.query or first.case) if first else None
    layers = _layers(shown.maps) if shown else {}
    box = first.query.box if first and first.query and picture is not None else None
    model_input = explainer.model_input()
    page = template.render(
        results=results,
        pieces=_pieces(results),
        recorded=results.recorded_findings,
        version=__version__,
        filters={name: _shorten(_filter_values(value)) for name, value in results.where.items()},
        exclude=_shorten(results.exclude),
        query=None if model_input is None else _picture(model_input if picture is None else picture, box),
        has_picture=picture is not None,
        cases=[
            _case_content(hit, evidence, case_picture, reason, layers)
            for hit, (evidence, case_picture, reason) in zip(results.hits, explained, strict=False)
        ],
        has_concepts=any(hit.concepts for hit in results),
        layers=layers,
        detail=_DETAIL,
        opacity=OPACITY,
        adds=ADDS,
        takes=TAKES_AWAY,
        residual=max((evidence.residual for evidence, _, _ in explained), default=0.0),
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
            cure="name another file",
        ) from None
    return [
        f"case {hit.case_id!r}: {reason}"
        for hit, (_, _, reason) in zip(results.hits, explained, strict=False)
        if reason
    ]


def _pieces(results: "Results") -> list[dict[str, str]]:
    """Return the text in pieces, each with the finding that it states, or "" for none."""
    pieces, place = [], 0
    for finding in sorted(results.findings, key=lambda f: f.start):
        start = max(finding.start, place)
        pieces.append({"text": results.text[place:start], "finding": ""})
        name = finding.criterion.replace("_", " ")
        pieces.append(
            {"text": results.text[start : finding.end], "finding": f"{name}: {' or '.join(finding.values)}"}
        )
        place = max(place, finding.end)
    return [*(piece for piece in pieces if piece["text"]), {"text": results.text[place:], "finding": ""}]


def _template() -> "Template":
    try:
        import jinja2
    except ImportError as error:
        raise missing_extra("a report cannot be written here", error, "report") from None
    folder = importlib.resources.files(__package__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"units": _format_units, "plain": lambda name: str(name).replace("_", " ")}
    return environment.get_template("report.html.j2")


def _explain(
    explainer: "HitExplainer", hit: "Hit", folder: str | Path | None
) -> tuple[Evidence, Pixels | None, str]:
    """Return the evidence of a hit and the picture of the case, or the reason why there is no picture."""
    try:
        return *explainer.explain(hit, None, folder, True), ""
    except InputError as error:
        reason = f"{_REASONS.get(error.code, 'its file cannot be read')} [{error.code}]"
        return explainer.explain(hit, None, folder, False)[0], None, reason


def _layers(maps: Collection[str]) -> dict[str, _Layer]:
    """Return the maps that can be shown, by their names in the page."""
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


def _case_content(
    hit: "Hit", evidence: Evidence, picture: Pixels | None, missing: str, layers: Mapping[str, _Layer]
) -> dict[str, Any]:
    """Return what the page shows of a hit."""
    groups = [COSINES[:3], COSINES[3:], list(hit.concepts)]
    exact = [[evidence.parts[name] for name in names] for names in groups]
    exact_sums = [sum(values) for values in exact]
    sums = _round(exact_sums, round(hit.score * _UNIT))
    parts = {
        name: units
        for names, values, total in zip(groups, exact, sums, strict=True)
        for name, units in zip(names, _round(values, total), strict=True)
    }
    return {
        "hit": hit,
        "score": sum(sums),
        "sums": sums,
        "bar": _bar(exact_sums),
        "parts": parts,
        **_attribute_rows(hit, evidence),
        "layers": {
            name: _layer_content(layer.parts, evidence, sum(parts[p] for p in layer.parts))
            for name, layer in layers.items()
        },
        "picture": None
        if picture is None
        else _picture(picture, evidence.case.box if evidence.case else None),
        "missing": missing,
    }


def _attribute_rows(hit: "Hit", evidence: Evidence) -> dict[str, list[dict[str, Any]]]:
    """Return the group and attributes of a case: as rows if concepts or words name them, else as the rest."""
    verdicts = dict.fromkeys(evidence.matching_criteria, "matches")
    verdicts |= dict.fromkeys(evidence.conflicting_criteria, "conflicts")
    attributes = dict.fromkeys(verdicts, "") | dict(hit.attributes)
    concepts = {name: hit.group if name == "group" else attributes.pop(name, "") for name in hit.concepts}
    table: dict[str, list[dict[str, Any]]] = {"rows": [], "rest": []}
    for is_concept, values in ((True, concepts), (False, attributes)):
        for name, value in values.items():
            text = str(value)
            if isinstance(value, bool):
                text = "yes" if value else "no"
            row = {"name": name, "value": text, "verdict": verdicts.get(name), "is_concept": is_concept}
            table["rows" if is_concept or name in verdicts else "rest"].append(row)
    return table


def _layer_content(names: Sequence[str], evidence: Evidence, total: int) -> dict[str, Any]:
    """Return a map over the query and over the case, in one scale, and its numbers."""
    both = {"query": evidence.query, "case": evidence.case}
    sides = {side: s for side, s in both.items() if s}
    maps = {side: add_up(s.maps[name] for name in names) for side, s in sides.items()}
    full = max((float(np.abs(m).max()) for m in maps.values()), default=0.0)
    layer: dict[str, Any] = {
        "sum": total,
        "full": full,
        "share": full / evidence.score if evidence.score > 0 else None,
    }
    for side, m in maps.items():
        exact_baseline = sum(sides[side].baseline.get(name, 0.0) for name in names)
        terms = [float(m[m > 0].sum()), float(m[m < 0].sum()), exact_baseline]
        adds, takes, baseline = _round(terms, total)
        layer[side] = {
            "png": _url(Image.fromarray(tint(m, full)), "PNG"),
            "adds": adds,
            "takes": -takes,
            "baseline": baseline,
        }
    return layer


def _picture(pixels: Pixels, box: Box | None) -> dict[str, Any]:
    """Return a picture, scaled down, with its full size and the box that the maps cover."""
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


def _url(image: Image.Image, file_format: str) -> str:
    data = io.BytesIO()
    image.save(data, file_format, quality=85, optimize=True)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def _round(parts: Sequence[float], total: int) -> list[int]:
    """Round parts to units that add up to `total`, with the smallest rounding errors."""
    units = [round(part * _UNIT) for part in parts]
    difference = total - sum(units)
    step = 1 if difference > 0 else -1
    order = sorted(range(len(parts)), key=lambda i: step * (units[i] - parts[i] * _UNIT))
    for i in order[: abs(difference)]:
        units[i] += step
    return units


def _bar(parts: Sequence[float]) -> dict[str, Any]:
    """Lay parts end to end on a line that ends at 1, in per cent of it. Negative ones lie left of zero."""
    zero = -sum(part for part in parts if part < 0)
    left, right, pieces = 0.0, zero, []
    for part in parts:
        pieces.append((left if part < 0 else right, abs(part)))
        left, right = left + max(-part, 0), right + max(part, 0)
    return {
        "zero": 100 * zero / (1 + zero),
        "pieces": [(100 * start / (1 + zero), 100 * length / (1 + zero)) for start, length in pieces],
    }


def _format_units(units: int) -> str:
    return f"{units / _UNIT:.4f}"


def _filter_values(value: Filter) -> list[str]:
    """Return the values that a filter accepts, or its range."""
    if isinstance(value, Range):
        ends = [f"{word} {end}" for word, end in value.to_dict().items() if end is not None]
        return [" ".join(ends)]
    return [str(item) for item in (value if isinstance(value, list | tuple) else [value])]


def _shorten(names: Sequence[str]) -> list[str]:
    """Return the first names, and the number of the others."""
    more = len(names) - _MAX_NAMES
    return [*names[:_MAX_NAMES], f"and {more:,} more"] if more > 0 else list(names)
