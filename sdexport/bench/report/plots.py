"""The report's plots as SVG: one function a plot, from results to a matplotlib figure.

Text stays text in the SVG, and is never interpreted as formulas or markup. `svg` then removes what
a page with several plots cannot hold.
"""

from __future__ import annotations

import io
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sdexport.bench import claims
from sdexport.bench.quality import CLOSE_PSNR, CLOSE_RELATIVE, CLOSE_SSIM, ImageDistance
from sdexport.bench.report import svg
from sdexport.bench.report.text import STAGES, digits, unit_for
from sdexport.bench.results import Results, SystemResult
from sdexport.errors import MissingExtraError
from sdexport.extras import install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import Container
    from matplotlib.figure import Figure

WIDTH = 8.0
"""In inches of 72 units; the height follows from the number of rows."""

ROW, MARGIN = 0.42, 0.85
"""In inches: the height of a row, and of title and axis together."""

KIND_COLOURS = {"bundle": "#1f83c4", "diffusers": "#7f7f7f", "peer": "#d55e00"}
STAGE_COLOURS = {
    "text_encoder": "#cc79a7",
    "evaluation": "#1f83c4",
    "vae_decoder": "#e69f00",
    "rest": "#7f7f7f",
    "total": "#009e73",
}
"""After Okabe and Ito: distinct with colour blindness, on white and on black."""

Measure = Callable[[ImageDistance], float | None]

LABEL_LENGTH = 40
"""The most characters of a system's title beside a row; the tables have it in full."""


@contextmanager
def _style() -> Iterator[Any]:
    """matplotlib's `Figure`, with the report's settings in place of the user's.

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
        # matplotlib measures texts with its own font; the reader's font shows them.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield Figure


def plot(results: Results) -> dict[str, str]:
    """Every plot that the results have values for: an SVG document by its name.

    Text and grid have the placeholder colours of `sdexport.bench.report.svg`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    makers: Mapping[str, Callable[[Any, Results], Figure | None]] = {
        "totals": totals,
        "ratios": ratios,
        "stages": stages,
        "images": images,
        "roofline": roofline,
    }
    plotted = {}
    with _style() as figure:
        for name, make in makers.items():
            made = make(figure, results)
            if made is not None:
                written = io.StringIO()
                made.savefig(written, format="svg", transparent=True, metadata={"Date": None})
                plotted[name] = written.getvalue()
    return plotted


def _label(system: SystemResult) -> str:
    text = claims.title(system)
    return text if len(text) <= LABEL_LENGTH else text[: LABEL_LENGTH - 1] + "…"


def _colour(system: SystemResult) -> str:
    return KIND_COLOURS[system.kind]


def _rows(axes: Axes, systems: Sequence[SystemResult]) -> None:
    """A row for each system, the first on top."""
    axes.set_yticks(range(len(systems)), [_label(one) for one in systems])
    axes.set_ylim(len(systems) - 0.45, -0.55)


def _sheet(make: Any, rows: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = make(figsize=(WIDTH, MARGIN + ROW * max(rows, 1)), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharey=True, **options)
    return figure, list(axes[0])


def _unit(systems: Sequence[SystemResult]) -> tuple[float, str]:
    """The factor from seconds, and the unit's name, as in the tables."""
    factor, unit = unit_for([claims.p50(one) for one in systems])
    return factor, {"s": "seconds", "ms": "milliseconds"}[unit]


def totals(make: Any, results: Results) -> Figure | None:
    """Every round's time: from zero on the left, relative to the own median on the right."""
    found = claims.working(results)
    if not found:
        return None
    figure, (whole, spread) = _sheet(make, len(found), 2, width_ratios=(3, 2))
    every = [[turn.total for turn in system.rounds] for system in found]
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
            # Spread within the row by their order in time, so that equal points stay visible.
            heights = [
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
            axes.scatter(values, heights, s=9, color=_colour(system), alpha=0.75, linewidths=0)
    whole.margins(x=0.12)
    whole.set_xlim(left=0)
    whole.set_xlabel(f"{unit} for one generation")
    spread.set_xlabel("% from the own median")
    _rows(whole, found)
    return figure


def ratios(make: Any, results: Results) -> Figure | None:
    """The claimed speed-ups with their intervals; the reason where none is claimed."""
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
        ratio = system.ratio
        assert ratio is not None, "a claim has a ratio"
        low, middle, high = ratio.low, ratio.median, ratio.high
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
    axes.set_xlabel(f"speed-up over {_label(first)}" if first else "speed-up")
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


def _stage_means(system: SystemResult) -> dict[str, float]:
    """Mean seconds of each stage, all evaluations together; of the whole if a stage is not told."""
    turns = system.rounds
    total = statistics.fmean(turn.total for turn in turns)
    texts = [turn.text_encoder for turn in turns if turn.text_encoder is not None]
    loops = [sum(turn.evaluations) for turn in turns if turn.evaluations is not None]
    decoders = [turn.vae_decoder for turn in turns if turn.vae_decoder is not None]
    if not len(texts) == len(loops) == len(decoders) == len(turns):
        return {"whole": total}
    parts = {
        "text_encoder": statistics.fmean(texts),
        "evaluation": statistics.fmean(loops),
        "vae_decoder": statistics.fmean(decoders),
    }
    return parts | {"rest": max(0.0, total - sum(parts.values()))}


def images(make: Any, results: Results) -> Figure | None:
    """Every image's distance from the baseline's by three measures."""
    found = [
        one
        for one in claims.working(results)
        if not claims.is_baseline(results, one) and one.fidelity is not None and one.fidelity.images
    ]
    if not found:
        return None
    measures: tuple[tuple[Measure, str, float, float | None], ...] = (
        (lambda one: one.ssim, "SSIM", CLOSE_SSIM, 1.0),
        (lambda one: one.psnr, "PSNR, dB", CLOSE_PSNR, None),
        (lambda one: one.relative, "relative difference", CLOSE_RELATIVE, 0.0),
    )
    figure, panels = _sheet(make, len(found), len(measures))
    for axes, (measure, name, allowed, ideal) in zip(panels, measures, strict=True):
        for row, system in enumerate(found):
            compared = () if system.fidelity is None else system.fidelity.images
            values = [value for one in compared if (value := measure(one)) is not None]
            axes.scatter(values, [row] * len(values), s=16, color=_colour(system), alpha=0.6)
        axes.axvline(allowed, color=svg.TEXT, linewidth=0.8, linestyle="--")
        if ideal is not None:
            axes.axvline(ideal, color=svg.GRID, linewidth=0.8)
        axes.set_xlabel(name)
        axes.margins(x=0.1)
    _rows(panels[0], found)
    return figure


def roofline(make: Any, results: Results) -> Figure | None:
    """The share of peak compute that each stage of each system reached."""
    found = [one for one in claims.working(results) if one.roofline is not None]
    bars = [
        (system, stage, reached.share_of_compute)
        for system in found
        for stage, reached in (system.roofline or {}).items()
        if reached.share_of_compute is not None
    ]
    if not bars:
        return None
    present = [stage for stage in STAGES if any(bar[1] == stage for bar in bars)]
    height = 0.8 / len(present)
    figure, (axes,) = _sheet(make, len(found) * max(1.0, len(present) * 0.6) + 0.7)
    for index, stage in enumerate(present):
        for row, system in enumerate(found):
            share = next((one[2] for one in bars if one[0] is system and one[1] == stage), None)
            if share is None:
                continue
            at = row + (index - (len(present) - 1) / 2) * height
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
    handles: list[Container] = []
    labels: list[str] = []
    for container in axes.containers:
        label = str(container.get_label())
        if not label.startswith("_") and label not in labels:
            handles.append(container)
            labels.append(label)
    axes.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(present))
    axes.set_xlabel("% of the measured peak compute")
    _rows(axes, found)
    return figure
