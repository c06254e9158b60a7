"""What is known of one system while it is measured, and its entry in the results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdexport.bench import statistics
from sdexport.bench.paths import without_paths
from sdexport.bench.results import Effort, Status, Summary, SystemResult, Turn
from sdexport.bench.systems import System


@dataclass(slots=True)
class Measured:
    """What is known of one system so far.

    Attributes:
        status: `ok`, or how it ended: `crashed`, `hung`, `failed`; `why` gives the reason.
        images: that it generates in a turn.
        group: of the systems that were loaded together; the baseline is in all groups.
        about: from its adapter's `describe()`.
        warm: whether its warm-up has ended.
        model_calls: of one generation.
        batches: of one generation.
        digest: of the first turn's images.
        digests: of the images of every turn but the first; the last turn's images are kept.
    """

    system: System
    images: int
    group: int = 0
    status: Status = "ok"
    why: str = ""
    stderr_tail: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    build_seconds: float | None = None
    load_seconds: float | None = None
    first_seconds: float | None = None
    warmup_seconds: list[float] = field(default_factory=list)
    rounds: list[Turn] = field(default_factory=list)
    warm: bool = False
    model_calls: int | None = None
    batches: int | None = None
    host_bytes: int | None = None
    device_bytes: int | None = None
    digest: str | None = None
    digests: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def enough(self, effort: Effort) -> bool:
        """Whether it was measured as long as `effort` asks for."""
        total = sum(turn.total for turn in self.rounds)
        return len(self.rounds) >= effort.rounds and total >= effort.seconds


def system_result(one: Measured, baseline: Measured) -> SystemResult:
    """The entry of one system, without fidelity and roofline."""
    about, system = one.about, one.system
    notes = [*about.get("notes", []), *notes_of(one)]
    ratio = None
    if one is not baseline:
        turns = [[(turn.at, turn.total) for turn in each.rounds] for each in (baseline, one)]
        ratio = statistics.ratio(*turns)
        drift = statistics.trend(statistics.paired_logs(*turns))
        if drift is not None:
            notes.append(
                f"its speed against the baseline changed by a factor of {drift:.2f} from the first "
                "third of its rounds to the last: measure longer, on a machine with less load"
            )
    if one.rounds and one.rounds[-1].evaluations is None and one.rounds[-1].denoise is not None:
        notes.append(
            "it tells the time of all evaluations together: the time of one is the mean of a turn"
        )
    return SystemResult(
        name=system.name,
        title=system.title,
        kind=system.kind,
        status=one.status,
        why=without_paths(one.why),
        stderr_tail=_lines(one.stderr_tail),
        group=one.group,
        precision=about.get("precision"),
        device=about.get("device"),
        threads=about.get("threads"),
        versions=about.get("versions", {}),
        setup=_lines(about.get("setup", [])),
        notes=_lines(notes),
        bytes=about.get("bytes"),
        build_seconds=(
            about.get("build_seconds") if one.build_seconds is None else one.build_seconds
        ),
        load_seconds=one.load_seconds,
        first_seconds=one.first_seconds,
        warmup_seconds=tuple(one.warmup_seconds),
        rounds=tuple(one.rounds),
        model_calls=one.model_calls,
        batches=one.batches,
        peak_host_bytes=one.host_bytes,
        peak_device_bytes=one.device_bytes,
        summary=summary_of(one.rounds, one.images, one.model_calls),
        ratio=ratio,
    )


def _lines(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(without_paths(line) for line in lines)


def notes_of(one: Measured) -> list[str]:
    """What a reader must know of how a system behaved while it was measured."""
    notes = list(one.notes)
    if one.digests - {one.digest}:
        notes.append(
            "its images differ from turn to turn: the first and the last are judged, the last are "
            "shown"
        )
    return notes


def summary_of(rounds: Sequence[Turn], images: int, calls: int | None) -> Summary | None:
    """The distributions of whole turns and of each stage; None without a turn.

    Args:
        images: of a turn.
        calls: evaluations of the model in a turn.
    """
    total = statistics.distribution([turn.total for turn in rounds])
    if total is None:
        return None
    return Summary(
        total=total,
        text_encoder=statistics.distribution(_told(turn.text_encoder for turn in rounds)),
        evaluation=statistics.distribution(_evaluations(rounds, calls)),
        vae_decoder=statistics.distribution(_told(turn.vae_decoder for turn in rounds)),
        rest=statistics.distribution(_told(_rest(turn) for turn in rounds)),
        images_per_second=images / total.p50,
    )


def _evaluations(rounds: Sequence[Turn], calls: int | None) -> list[float]:
    """Seconds of every evaluation; the mean of a turn that tells the loop alone."""
    found: list[float] = []
    for turn in rounds:
        if turn.evaluations is not None:
            found += turn.evaluations
        elif turn.denoise is not None and calls:
            found.append(turn.denoise / calls)
    return found


def _told(seconds: Iterable[float | None]) -> list[float]:
    return [one for one in seconds if one is not None]


def _rest(turn: Turn) -> float | None:
    """What a turn took beside its stages; None where a stage is not told."""
    denoise = turn.denoise if turn.evaluations is None else sum(turn.evaluations)
    if turn.text_encoder is None or denoise is None or turn.vae_decoder is None:
        return None
    return turn.total - turn.text_encoder - denoise - turn.vae_decoder
