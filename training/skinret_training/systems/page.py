"""The page of all systems: one table, a picture, and a paragraph for each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

Result = Mapping[str, Any]
Grid = Callable[[Sequence[str], Sequence[Sequence[str]]], list[str]]
ARCHIVES = {"training_folds": "training folds", "held_out_fold": "held-out fold"}
FIGURES = ("balanced mAP", "balanced Acc@1", "mAP", "Acc@1", "Acc@4", "shared@5")
USES = {
    "labels": "labels",
    "archive_labels": "archive's labels",
    "archive_words": "archive's words",
    "other_queries": "other queries",
}
_OWN = "skinret"


def table(results: Sequence[Result], archive: str) -> list[list[str]]:
    """Return the rows of an archive, the header first, and the line of chance last.

    A figure in which skinret is behind the row, for the same kind of query, is bold.
    """
    header = ["system", "query", "fidelity", *USES.values(), *FIGURES, "minutes a run"]
    own = next((r for r in results if r["method"] == _OWN), None)
    rows, chance = [], None
    for result in results:
        for kind, summary in result["summary"].get(archive, {}).items():
            ours = own["summary"][archive].get(kind) if own else None
            cells = []
            for figure in FIGURES:
                value = _figure(summary, figure)
                behind = ours is not None and result is not own and _beats(value, _figure(ours, figure))
                cells.append(_bold(_cell(figure, value), behind))
            uses = [("yes" if result["system"]["uses"][name] else "no") for name in USES]
            name, query, minutes = result["experiment"], kind.replace("_", " "), result["minutes"]["a_fold"]
            rows.append([name, query, result["system"]["fidelity"], *uses, *cells, f"{minutes:.1f}"])
            chance = chance or summary.get("random_order")
    if chance:
        cells = [_cell(figure, _figure(chance, figure)) for figure in FIGURES]
        rows.append(["a random order", "any", "", *["no"] * len(USES), *cells, ""])
    return [header, *rows]


def paragraphs(results: Sequence[Result]) -> Iterator[str]:
    """Yield the Markdown lines on what each system is."""
    for result in results:
        system = result["system"]
        yield f"**{result['experiment']}** ({system['fidelity']}): {system['source']}."
        for sentence in system["deviations"]:
            yield f"- {sentence}"
        yield ""


def picture(results: Sequence[Result], figure: str = "mAP") -> str:
    """Return an SVG, a row for each system and query: both archives, ± the std of the folds."""
    rows = [
        (f"{result['experiment']}, {kind.replace('_', ' ')}", result, kind)
        for result in results
        for kind in dict.fromkeys(kind for archive in ARCHIVES for kind in result["summary"][archive])
    ]
    _, first, kind = rows[0]
    chance = _figure(next(s[kind] for s in first["summary"].values() if kind in s)["random_order"], figure)
    left, right, step, top = 330, 40, 26, 56
    width, height = 900, top + step * len(rows) + 40
    values = [
        (value, archive, n)
        for n, (_, result, kind) in enumerate(rows)
        for archive in ARCHIVES
        if (value := _figure(result["summary"][archive].get(kind, {}), figure))
    ]
    least = [v["mean"] - (v["std_folds"] or 0) for v, _, _ in values]
    low = 10 * int((min(*least, chance["mean"]) - 2) // 10)

    def x(value: float) -> float:
        return left + (width - left - right) * (value - low) / (100 - low)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="13" role="img" aria-label="{escape(figure)} of each system in both archives">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="20">{escape(figure)}, per cent, ± standard deviation of the folds</text>',
    ]
    for n, (archive, title) in enumerate(ARCHIVES.items()):
        lines.append(_dot(left + 170 * n + 6, 38, archive))
        lines.append(f'<text x="{left + 170 * n + 18}" y="42">{title}</text>')
    for tick in range(low, 101, 10):
        lines.append(
            f'<path d="M{x(tick):.1f} {top - 6}V{height - 30}" stroke="#ddd"/>'
            f'<text x="{x(tick):.1f}" y="{height - 12}" text-anchor="middle">{tick}</text>'
        )
    lines.append(
        f'<path d="M{x(chance["mean"]):.1f} {top - 6}V{height - 30}" stroke="#555" stroke-dasharray="4 3"/>'
        f'<text x="{x(chance["mean"]) + 6:.1f}" y="{height - 34}" fill="#555">random order</text>'
    )
    for n, (label, _, _) in enumerate(rows):
        lines.append(
            f'<text x="{left - 12}" y="{top + step * n + 15}" text-anchor="end">{escape(label)}</text>'
        )
    for value, archive, n in values:
        y = top + step * n + (7 if archive == "training_folds" else 14)
        spread = value["std_folds"] or 0
        lines.append(
            f'<path d="M{x(value["mean"] - spread):.1f} {y}H{x(min(100, value["mean"] + spread)):.1f}" '
            f'stroke="{_COLOURS[archive]}" stroke-width="2"/>'
        )
        lines.append(_dot(x(value["mean"]), y, archive))
    return "\n".join([*lines, "</svg>", ""])


_COLOURS = {"training_folds": "#0b62a4", "held_out_fold": "#c4570b"}


def _dot(x: float, y: float, archive: str) -> str:
    """Return a disc for the training folds and a square for the held-out one."""
    if archive == "training_folds":
        return f'<circle cx="{x:.1f}" cy="{y}" r="4.5" fill="{_COLOURS[archive]}"/>'
    return f'<rect x="{x - 4:.1f}" y="{y - 4}" width="8" height="8" fill="{_COLOURS[archive]}"/>'


def _figure(summary: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part, figure = ("balanced", name.removeprefix("balanced ")) if "balanced" in name else ("all", name)
    found: Mapping[str, Any] = summary.get(part, {}).get(figure, {})
    return found


def _beats(value: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    return bool(value and ours and value["mean"] > ours["mean"])


def _cell(figure: str, value: Mapping[str, Any]) -> str:
    if not value:
        return "–"
    digits = 2 if figure.startswith("shared") else 1
    text = f"{value['mean']:.{digits}f}"
    return text if value["std_folds"] is None else f"{text} ± {value['std_folds']:.{digits}f}"


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text


def page(results: Sequence[Result], grid: Grid, picture_name: str) -> str:
    """Return the page's text, in Markdown.

    grid : formats a table from its header and rows.
    picture_name : the name of the file with the picture, beside the page.
    """
    lines = ["# All systems", "", f"![mAP of each system in both archives]({picture_name})"]
    for archive, title in ARCHIVES.items():
        header, *rows = table(results, archive)
        lines += ["", f"## Archive: {title}", "", *grid(header, rows)]
    lines += [
        "",
        "- labels: of the training folds, in training. The other three: at search.",
        "- Bold: better than skinret with the same kind of query.",
        "- balanced: the mean over the groups, each counted once. ± is the standard deviation of the folds.",
        "- Acc@4 rewards ignorance: compare it with the random order.",
        "- A system that reads the archive's words has a kind of query of its own.",
        "- The backbones are not those of the publications, so these are no figures of the publications.",
        "",
        "## The systems",
        "",
        *paragraphs(results),
    ]
    return "\n".join(lines)
