"""What can be chosen about a build, and what of it changes an engine's bytes."""

from __future__ import annotations

from dataclasses import dataclass

from sdexport.backends import targets
from sdexport.errors import UsageError
from sdexport.graph import GRAPH_VERSION
from sdexport.sampling import STATE_SLOTS
from sdexport.spec import Precision, Profile

DEFAULT_GUIDANCE = 7.5
"""What Stable Diffusion 1.x pipelines use where nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What the caller of a build wants.

    Attributes:
        target: a target's name, or `auto`.
        precision: None chooses what is fastest on this machine's target.
        profile: sizes and batches to serve; None takes the checkpoint's own size, half and double.
        guidance: the bundle's default guidance scale, at least 0.
    """

    target: str = "auto"
    precision: Precision | None = None
    profile: Profile | None = None
    guidance: float = DEFAULT_GUIDANCE

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < 1000:
            raise UsageError(f"guidance {self.guidance} is outside 0 to 1000; 7.5 is usual")


@dataclass(frozen=True, slots=True)
class Choice:
    """The options with everything open decided, and why.

    Attributes:
        library: name and version of the target's library, as the manifest keeps it.
        reasons: one sentence a choice, for people.
    """

    target: targets.Target
    precision: Precision
    library: str
    reasons: tuple[str, ...]

    def settings(self) -> dict[str, object]:
        """Everything but the model's content that changes an engine's bytes.

        The profile is not among it: the engines of the CPU targets keep batch, height and width
        dynamic, so a profile only says what is let through.
        """
        return {
            "target": self.target.name,
            "library": self.library,
            "precision": str(self.precision),
            "graph": GRAPH_VERSION,
            "slots": STATE_SLOTS,
        }


def decide(options: BuildOptions) -> Choice:
    """Chooses target and precision where the options leave them open.

    Raises:
        UsageError: unknown target, or a precision that the target has not.
        MissingExtraError: the target's library is not installed.
    """
    chosen = targets.choose(options.target)
    target = chosen.target
    reasons = [f"target {target.name}: {chosen.reason}"]
    precision = options.precision
    if precision is None:
        precision, why = targets.default_precision(target)
        reasons.append(f"precision {precision}: {why}")
    if precision not in target.precisions:
        raise UsageError(
            f"target {target.name} has no precision {precision}; "
            f"choose one of: {', '.join(target.precisions)}"
        )
    library = f"{target.library} {targets.library_version(target)}"
    return Choice(target, precision, library, tuple(reasons))
