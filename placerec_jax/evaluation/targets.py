"""What a config asks of figures of retrieval: multiples of chance, fixed bounds, more than a reference."""

from collections.abc import Callable, Mapping
from typing import Any

from placerec_jax.errors import ConfigError

CHANCE = "chance"


def judge(
    target: Mapping[str, Any],
    flat: Mapping[str, float],
    reference_figure: Callable[[str, str], str],
    queries: int,
    databases: Mapping[str, int],
    min_queries: int,
    min_database: int,
) -> dict[str, Any]:
    """Compares figures of an evaluator's `summarize` (`flat`) with what `config.eval.target` asks.

    `target` is {"times_chance": {figure: factor}, "at_least": {figure: share}, "figures": (figure, ...),
    "references": (name, ...)}, the last two for figures that must exceed those of every reference named.
    `reference_figure(figure, reference)` is what `flat` calls them. Fewer than `min_queries` queries fail,
    and so does a database of `databases` with fewer than `min_database` entries.
    """

    def figure(name: str) -> float:
        if name not in flat:
            known = [name for name in flat if "recall_at" in name and not name.startswith(CHANCE)]
            raise ConfigError(f"config.eval.target: there is no figure {name!r}; expected one of {known}")
        return flat[name]

    checks = []
    for name, factor in dict(target.get("times_chance", {})).items():
        ours, chance = figure(name), figure(reference_figure(name, CHANCE))
        bound = float(factor) * chance
        words = f"at least {factor:g} x {chance:.4f} of chance = {bound:.4f}"
        checks.append(_check(name, ours, bound, words, ours >= bound))
    for name, share in dict(target.get("at_least", {})).items():
        ours, bound = figure(name), float(share)
        checks.append(_check(name, ours, bound, f"at least {bound:.4f}", ours >= bound))
    for name in target.get("figures", ()):
        for reference in target.get("references", ()):
            ours, bound = figure(name), figure(reference_figure(name, reference))
            checks.append(_check(name, ours, bound, f"more than {bound:.4f} of {reference}", ours > bound))
    if not checks:
        raise ConfigError(
            "config.eval.target: expected times_chance, at_least, or figures with references; found "
            f"{sorted(target)} with nothing to check"
        )
    smallest = min(databases.values())
    enough = queries >= min_queries and smallest >= min_database
    return {
        "checks": checks,
        "queries": queries,
        "min_queries": min_queries,
        "smallest_database": smallest,
        "min_database": min_database,
        "enough": enough,
        "passed": enough and all(check["passed"] for check in checks),
    }


def _check(figure: str, ours: float, bound: float, words: str, passed: bool) -> dict[str, Any]:
    return {"figure": figure, "ours": ours, "bound": bound, "words": words, "passed": passed}


def verdict(target: Mapping[str, Any] | None) -> list[str]:
    """What `judge` found in words, a headline and one line a check; empty without a target."""
    if target is None:
        return []
    lines = [f"{'PASS' if target['passed'] else 'FAIL'}: recall against chance, bounds and references"]
    for check in target["checks"]:
        outcome = "met" if check["passed"] else "missed"
        lines.append(f"{check['figure']} {check['ours']:.4f}, {check['words']}: {outcome}")
    for what, found, least in (
        ("queries", target["queries"], target["min_queries"]),
        ("entries in the smallest database", target["smallest_database"], target["min_database"]),
    ):
        lines.append(
            f"{found} {what}, {'at least' if found >= least else 'fewer than'} the {least} asked for"
        )
    return lines
