"""What can be chosen about a build, and what of it changes an engine's bytes."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field, fields
from numbers import Real

from sdexport import __version__, extras
from sdexport.artifacts.builder_options import BuilderOptions
from sdexport.backends import targets
from sdexport.errors import MissingExtraError, UsageError, shown
from sdexport.graph import GRAPH_VERSION
from sdexport.keywords import explains_fields
from sdexport.model.shapes import Precision, Profile, Ranges
from sdexport.sampling import STATE_SLOTS

CHECK_VERSION = 1
"""Part of the fingerprint of engines whose half precision was checked: raise it when the check
would keep other values in float32 than before."""

DEFAULT_GUIDANCE = 7.5
"""What Stable Diffusion 1.x pipelines use where nobody says otherwise."""


@explains_fields
@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What the caller of a build wants.

    Attributes:
        target: a target's name, or `auto`.
        precision: None chooses what is fastest on this machine's target.
        profile: sizes and batches to serve; of what it leaves open, the model's own size, half and
            double, and one to four images.
        guidance: the bundle's default guidance scale, at least 0.
        builder: how the target's library builds; the CPU targets take none of it.
        half_check: run half-precision graphs on the CPU over real prompts before they are built.
    """

    target: str = "auto"
    precision: Precision | None = None
    profile: Profile | Ranges | None = None
    guidance: float = DEFAULT_GUIDANCE
    builder: BuilderOptions = field(default_factory=BuilderOptions)
    half_check: bool = True

    def __post_init__(self) -> None:
        precisions = ", ".join(f"Precision.{one.name}" for one in Precision)
        for name, value, kind, wanted in (
            ("target", self.target, str, "a text"),
            ("precision", self.precision, Precision | None, f"{precisions} or None"),
            ("profile", self.profile, Profile | Ranges | None, "a Profile or None"),
            ("builder", self.builder, BuilderOptions, "a BuilderOptions"),
            ("half_check", self.half_check, bool, "True or False"),
        ):
            if not isinstance(value, kind):
                raise UsageError(f"{name} must be {wanted}, got {shown(value)}")
        number = isinstance(self.guidance, Real) and not isinstance(self.guidance, bool)
        if not number or not 0 <= self.guidance < 1000:
            raise UsageError(
                f"guidance must be from 0 to below 1000, got {shown(self.guidance)}; 7.5 is usual"
            )


HINTS = {
    **{
        one.name: f"give it as options=BuildOptions(builder=BuilderOptions({one.name}=…))"
        for one in fields(BuilderOptions)
    },
    **{one.name: f"give it as options=BuildOptions({one.name}=…)" for one in fields(BuildOptions)},
    **dict.fromkeys(
        ("batch", "height", "width"), "give it as options=BuildOptions(profile=Profile(…))"
    ),
}
"""What to do with the options of a build that are given to the call itself."""


def checked_options(options: BuildOptions | None) -> BuildOptions:
    """The options that a caller gave, or the usual ones for None; raises UsageError for others."""
    if options is not None and not isinstance(options, BuildOptions):
        raise UsageError(f"options must be BuildOptions, got {shown(options)}")
    return BuildOptions() if options is None else options


@dataclass(frozen=True, slots=True)
class Choice:
    """The options with everything open decided, and why.

    Attributes:
        library: name and version of the target's library, as the manifest keeps it.
        reasons: one sentence a choice, for people.
        builder: the builder options, all that was open decided.
        checked: half precision is checked before it is built, and what overflows kept in float32.
    """

    target: targets.Target
    precision: Precision
    library: str
    reasons: tuple[str, ...]
    builder: BuilderOptions = field(default_factory=BuilderOptions)
    checked: bool = False

    @property
    def graph_precision(self) -> Precision:
        """Of the ONNX graphs: the engine's where they are what types it, else float32.

        bfloat16 of OpenVINO is a matter of how it runs a float32 graph.
        """
        return self.precision if self.target.typed else Precision.FP32

    def settings(self, profile: Profile | None) -> dict[str, object]:
        """Everything but the model's content that changes an engine's bytes.

        This project's version is among it, and that of onnx, which writes the graphs: what an
        engine was made by is never another than the manifest's `built_with`. `GRAPH_VERSION` is
        for changes between two releases.

        Args:
            profile: the shapes to serve. It counts where they are built in; the engines of the
                CPU targets keep batch, height and width open, so there a profile only says what is
                let through.
        """
        value: dict[str, object] = {
            "target": self.target.name,
            "library": self.library,
            "built_with": built_with(),
            "precision": str(self.precision),
            "graph": GRAPH_VERSION,
            "slots": STATE_SLOTS,
        }
        if self.target.typed:
            value["profiles"] = None if profile is None else profile.as_json()
            value["builder"] = self.builder.as_json()
            value["arithmetic"] = dict(self.target.arithmetic)
            value["half_check"] = CHECK_VERSION if self.checked else None
        return value


def built_with() -> dict[str, str]:
    """The versions of this project and of the library that writes its graphs."""
    return {"sdexport": __version__, "onnx": importlib.metadata.version("onnx")}


def decide(options: BuildOptions) -> Choice:
    """Chooses target and precision where the options leave them open.

    Raises:
        UsageError: unknown target, or a precision or builder option that the target has not.
        MissingExtraError: the target's library, or that of the half-precision check, is not
            installed.
        EngineError: the target builds on a GPU, and there is none.
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
    builder = targets.resolve_options(target, options.builder)
    checked = target.typed and precision is Precision.FP16 and options.half_check
    if checked and extras.missing(("onnxruntime",)):
        raise MissingExtraError(
            "the half-precision check runs the graphs on the CPU with ONNX Runtime, which is not "
            f"installed; {extras.install_command('onnxruntime')}, or leave the check out with "
            "--no-half-check"
        )
    return Choice(target, precision, library, tuple(reasons), builder, checked)
