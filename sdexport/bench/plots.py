"""The report's plots as SVG: one function a plot, from results to a drawing.

matplotlib draws; what it writes is then freed of everything that a page with several of them does
not bear (style sheets, metadata, names that clash), and, for a page, takes the page's text colour.
Text stays text, and is never read as formulas or markup.
"""

from __future__ import annotations

import io
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sdexport.bench import claims, svg
from sdexport.bench.claims import Results, System
from sdexport.bench.quality import CLOSE_PSNR, CLOSE_RELATIVE, CLOSE_SSIM
from sdexport.bench.report_text import STAGES, digits, unit_for
from sdexport.errors import MissingExtraError
from sdexport.extras import install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0
"""Inches, at 72 units each; a plot is as high as its rows need."""

ROW, MARGIN = 0.42, 0.85
"""Inches: of a row's height, and of title and axis together."""

KIND_COLOURS = {"bundle": "#1f83c4", "diffusers": "#7f7f7f", "peer": "#d55e00"}
STAGE_COLOURS = {
    "text_encoder": "#cc79a7",
    "evaluation": "#1f83c4",
    "vae_decoder": "#e69f00",
    "rest": "#7f7f7f",
    "total": "#009e73",
}
"""After Okabe and Ito: told apart by those who see few colours, on white as well as on black."""

LABEL_LENGTH = 40
"""Characters of a system's title beside a row; the tables have it in full."""


@contextmanager
def _style() -> Iterator[Any]:
    """matplotlib, drawing as the report needs it, whatever the user's own settings are.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            f"plots need matplotlib, which is not installed; {install_command('bench')}"
        ) from None
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "sdexport",
        "text.parse_math": False,
        "text.usetex": False,
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "x",
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.formatter.useoffset": False,
        "grid.color": svg.GRID,
        "grid.linewidth": 0.6,
        "ytick.major.size": 0,
        "legend.frameon": False,
    } | dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), svg.TEXT
    )
    with matplotlib.rc_context(), warnings.catch_warnings():
        # matplotlib measures texts with its own font; the reader's font is what shows them.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield Figure


def draw(results: Results) -> dict[str, str]:
    """Every plot that the results have figures for: its name → an SVG document.

    The document's text and grid have the colours of `sdexport.bench.svg`, which makes it fit for
    a page or a file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    makers: Mapping[str, Callable[[Any, Results], Figure | None]] = {
        "totals": totals,
        "ratios": ratios,
        "stages": stages,
        "images": images,
        "limits": limits,
    }
    generated = {}
    with _style() as figure:
        for name, make in makers.items():
            made = make(figure, results)
            if made is not None:
                written = io.StringIO()
                made.savefig(written, format="svg", transparent=True, metadata={"Date": None})
                generated[name] = written.getvalue()
    return generated


def _label(system: System) -> str:
    text = claims.title(system)
    return text if len(text) <= LABEL_LENGTH else text[: LABEL_LENGTH - 1] + "…"


def _colour(system: System) -> str:
    return KIND_COLOURS.get(str(system.get("kind")), KIND_COLOURS["peer"])


def _rows(axes: Axes, systems: Sequence[System]) -> None:
    """A row for each system, the first on top."""
    axes.set_yticks(range(len(systems)), [_label(one) for one in systems])
    axes.set_ylim(len(systems) - 0.45, -0.55)


def _sheet(make: Any, rows: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = make(figsize=(WIDTH, MARGIN + ROW * max(rows, 1)), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharey=True, **options)
    return figure, list(axes[0])


def _unit(systems: Sequence[System]) -> tuple[float, str]:
    """What to multiply seconds with, and the unit's name: that of the tables."""
    factor, unit = unit_for([one["summary"]["total"]["p50"] for one in systems])
    return factor, {"s": "seconds", "ms": "milliseconds"}[unit]


def totals(make: Any, results: Results) -> Figure | None:
    """Every round's time: from zero on the left, against the own median on the right."""
    found = claims.working(results)
    if not found:
        return None
    figure, (whole, spread) = _sheet(make, len(found), 2, width_ratios=(3, 2))
    every = [[one["total"] for one in system["rounds"]] for system in found]
    factor, unit = _unit(found)
    for row, (system, times) in enumerate(zip(found, every, strict=True)):
        middle = statistics.median(times)
        parts = [(time / middle - 1) * 100 for time in times]
        for axes, values in ((whole, [time * factor for time in times]), (spread, parts)):
            axes.boxplot(
                [values],
                positions=[row],
                orientation="horizontal",
                widths=0.55,
                showfliers=False,
                manage_ticks=False,
                boxprops={"color": svg.TEXT, "linewidth": 0.8},
                whiskerprops={"color": svg.TEXT, "linewidth": 0.8},
                capprops={"color": svg.TEXT, "linewidth": 0.8},
                medianprops={"color": svg.TEXT, "linewidth": 1.6},
            )
            # Spread within the row by their order in time, so that equal ones do not hide.
            places = [
                row - 0.2 + 0.4 * index / max(1, len(times) - 1) for index in range(len(times))
            ]
            if axes is whole:
                axes.annotate(
                    digits(middle * factor),
                    (max(values), row),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
            axes.scatter(values, places, s=9, color=_colour(system), alpha=0.75, linewidths=0)
    whole.margins(x=0.12)
    whole.set_xlim(left=0)
    whole.set_xlabel(f"{unit} for one generation")
    spread.set_xlabel("% from the own median")
    _rows(whole, found)
    return figure


def ratios(make: Any, results: Results) -> Figure | None:
    """The ratios that are claimed, with their intervals; in words where none is."""
    found = [one for one in claims.working(results) if not claims.is_baseline(results, one)]
    if not found:
        return None
    figure, (axes,) = _sheet(make, len(found))
    axes.axvline(1, color=svg.TEXT, linewidth=0.8, linestyle="--")
    largest = 1.0
    for row, system in enumerate(found):
        if (reason := claims.problem(results, system)) is not None:
            short = "no speed-up claimed: " + reason.split(":", 1)[0]
            axes.annotate(
                short, (1, row), (6, 0), textcoords="offset points", va="center", fontsize=8
            )
            continue
        ratio = system["ratio"]
        low, middle, high = ratio["low"], ratio["median"], ratio["high"]
        largest = max(largest, high)
        axes.errorbar(
            [middle],
            [row],
            xerr=[[middle - low], [high - middle]],
            fmt="o",
            markersize=5,
            capsize=4,
            color=_colour(system),
        )
        axes.annotate(
            f"{middle:.2f}×", (high, row), (7, 0), textcoords="offset points", va="center"
        )
    axes.set_xlim(0, max(largest * 1.12, 2))
    first = claims.baseline(results)
    axes.set_xlabel(f"times faster than {_label(first)}" if first else "times faster")
    _rows(axes, found)
    return figure


def stages(make: Any, results: Results) -> Figure | None:
    """Mean seconds of a generation, stage by stage."""
    found = claims.working(results)
    if not found:
        return None
    figure, (axes,) = _sheet(make, len(found) + 0.7)
    divided = [_stage_means(system) for system in found]
    factor, unit = _unit(found)
    whole_colour = "#999999"
    names = STAGES | {"evaluation": "evaluations", "whole": "not divided"}
    seen: dict[str, Any] = {}
    for row, parts in enumerate(divided):
        left = 0.0
        for stage, seconds in parts.items():
            bar = axes.barh(
                row,
                seconds * factor,
                left=left,
                height=0.6,
                color=STAGE_COLOURS.get(stage, whole_colour),
                hatch="///" if stage == "whole" else None,
                edgecolor=svg.PAPER,
                linewidth=0.5,
            )
            seen.setdefault(stage, bar)
            left += seconds * factor
        axes.annotate(
            digits(left), (left, row), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    order = [stage for stage in (*STAGES, "whole") if stage in seen]
    axes.legend(
        [seen[stage] for stage in order],
        [names[stage] for stage in order],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(order),
    )
    axes.margins(x=0.08)
    axes.set_xlabel(f"{unit} for one generation (mean)")
    _rows(axes, found)
    return figure


def _stage_means(system: System) -> dict[str, float]:
    """Mean seconds of each stage, the evaluations together; of the whole where it is not told."""
    rounds = system["rounds"]
    total = statistics.fmean(one["total"] for one in rounds)
    if any(
        one.get(stage) is None
        for one in rounds
        for stage in ("text_encoder", "evaluations", "vae_decoder")
    ):
        return {"whole": total}
    parts = {
        "text_encoder": statistics.fmean(one["text_encoder"] for one in rounds),
        "evaluation": statistics.fmean(sum(one["evaluations"]) for one in rounds),
        "vae_decoder": statistics.fmean(one["vae_decoder"] for one in rounds),
    }
    return parts | {"rest": max(0.0, total - sum(parts.values()))}


def images(make: Any, results: Results) -> Figure | None:
    """Every image's distance from the baseline's by three measures."""
    found = [
        one
        for one in claims.working(results)
        if not claims.is_baseline(results, one) and (one.get("fidelity") or {}).get("images")
    ]
    if not found:
        return None
    measures = (
        ("ssim", "SSIM", CLOSE_SSIM, 1.0),
        ("psnr", "PSNR, dB", CLOSE_PSNR, None),
        ("relative", "relative difference", CLOSE_RELATIVE, 0.0),
    )
    figure, panels = _sheet(make, len(found), len(measures))
    for axes, (key, name, allowed, ideal) in zip(panels, measures, strict=True):
        for row, system in enumerate(found):
            values = [one[key] for one in system["fidelity"]["images"] if one.get(key) is not None]
            axes.scatter(values, [row] * len(values), s=16, color=_colour(system), alpha=0.6)
        axes.axvline(allowed, color=svg.TEXT, linewidth=0.8, linestyle="--")
        if ideal is not None:
            axes.axvline(ideal, color=svg.GRID, linewidth=0.8)
        axes.set_xlabel(name)
        axes.margins(x=0.1)
    _rows(panels[0], found)
    return figure


def limits(make: Any, results: Results) -> Figure | None:
    """The share of the compute ceiling that each stage of each system reached."""
    found = [one for one in claims.working(results) if one.get("limit")]
    bars = [
        (system, stage, cost["share_of_compute"])
        for system in found
        for stage, cost in system["limit"]["stages"].items()
        if cost and cost.get("share_of_compute") is not None
    ]
    if not bars:
        return None
    present = [stage for stage in STAGES if any(bar[1] == stage for bar in bars)]
    height = 0.8 / len(present)
    figure, (axes,) = _sheet(make, len(found) * max(1.0, len(present) * 0.6) + 0.7)
    for place, stage in enumerate(present):
        for row, system in enumerate(found):
            share = next((one[2] for one in bars if one[0] is system and one[1] == stage), None)
            if share is None:
                continue
            at = row + (place - (len(present) - 1) / 2) * height
            axes.barh(
                at,
                share * 100,
                height=height * 0.9,
                color=STAGE_COLOURS[stage],
                label=STAGES[stage],
            )
            axes.annotate(
                f"{share:.0%}",
                (share * 100, at),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    axes.axvline(100, color=svg.TEXT, linewidth=0.8, linestyle="--")
    axes.set_xlim(0, max(110, max(bar[2] for bar in bars) * 110))
    handles = [axes.containers[0]] * 0
    labels: list[str] = []
    for container in axes.containers:
        label = str(container.get_label())
        if not label.startswith("_") and label not in labels:
            handles.append(container)
            labels.append(label)
    axes.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(present))
    axes.set_xlabel("% of the measured compute ceiling")
    _rows(axes, found)
    return figure
