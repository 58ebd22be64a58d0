"""Tables of variants from what an evaluator declares.

An evaluator whose figures are plain numbers, as `placerec_jax/evaluation/loop_closure.py`, says which of them
tables of variants show:

- `ABLATION_TABLES`: {caption: ((heading, figure of `summarize`, decimals), ...)};
- `ablation_sizes(scores)` → {what: how many}: how many queries stand behind the figures;
- `reference_figure(figure, reference)`: what `summarize` calls that figure of a training-free reference.
"""

import statistics
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

MISSING = "–"


def mean_and_spread(values: Iterable[float], decimals: int = 2) -> str:
    """Mean ± sample standard deviation."""
    values = list(values)
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{spread}"


def markdown_table(header: list[str], body: list[list[str]]) -> list[str]:
    """Lines of a table and an empty one after it."""
    first, *rest = ("| " + " | ".join(cells) + " |" for cells in (header, *body))
    return [first, "|" + "---|" * len(header), *rest, ""]


def kept(evaluator: ModuleType, scores: Mapping[str, Any]) -> dict[str, Any]:
    """What a line of results holds of a report's scores."""
    return {"figures": evaluator.summarize(scores), "sizes": evaluator.ablation_sizes(scores)}


def table_text(
    table: str,
    results: Mapping[str, list[dict[str, Any]]],
    evaluator: ModuleType,
    references: Iterable[str],
) -> str:
    """Markdown of {row: one line of results a seed}: the evaluator's tables, variants above references.

    Columns that nothing has a figure for are left out, as are references that have none in a table.
    References do not depend on a variant or a seed, so one run's are everyone's.
    """
    first = next(iter(results.values()))[0]
    queries, *parts = (f"{count} {what}" for what, count in first["sizes"].items())
    of_them = f", of them {', '.join(parts)}" if parts else ""
    lines = [f"## Table {table}", "", f"{queries}{of_them}. Mean ± standard deviation over the seeds.", ""]
    figures = {row: [result["figures"] for result in seeds] for row, seeds in results.items()}
    for caption, columns in evaluator.ABLATION_TABLES.items():
        known = [
            column for column in columns if any(column[1] in seed for row in figures.values() for seed in row)
        ]
        if not known:
            continue
        body = [
            [
                row,
                str(len(seeds)),
                *(_cell([seed.get(figure) for seed in seeds], d) for _, figure, d in known),
            ]
            for row, seeds in figures.items()
        ]
        for reference in references:
            cells = [
                _cell([first["figures"].get(evaluator.reference_figure(figure, reference))], d)
                for _, figure, d in known
            ]
            if set(cells) != {MISSING}:
                body.append([f"*{reference.replace('_', ' ')}*", "", *cells])
        lines += markdown_table([caption, "seeds", *(heading for heading, _, _ in known)], body)
    return "\n".join(lines)


def _cell(values: list[float | None], decimals: int) -> str:
    """Mean and spread of the seeds for which the figure is defined, and how many those are."""
    defined = [value for value in values if value is not None]
    if not defined:
        return MISSING
    some = f" ({len(defined)} of {len(values)})" if len(defined) < len(values) else ""
    return mean_and_spread(defined, decimals) + some
