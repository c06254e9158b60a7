"""The options of a build, and the settings that determine an engine's bytes."""

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
"""Part of the fingerprint of engines whose half precision was checked: increase it when the check
keeps other values in float32."""

DEFAULT_GUIDANCE = 7.5
"""The default guidance scale of Stable Diffusion 1.x pipelines."""


@explains_fields
@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The options of a build.

    Attributes:
        target: a target's name, or `auto` for the fastest that runs on this machine.
        precision: None selects the target's fastest precision on this machine.
        profile: the sizes and batches to serve; by default half to double the model's native size,
            and 1 to 4 images.
        guidance: the bundle's default guidance scale, from 0 to below 1000.
        builder: options of the target's library; the CPU targets accept none.
        half_check: whether half-precision graphs are checked on the CPU before they are built.
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
            ("target", self.target, str, "a string"),
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


KEYWORD_HINTS = {
    **{
        one.name: f"give it as options=BuildOptions(builder=BuilderOptions({one.name}=…))"
        for one in fields(BuilderOptions)
    },
    **{one.name: f"give it as options=BuildOptions({one.name}=…)" for one in fields(BuildOptions)},
    **dict.fromkeys(
        ("batch", "height", "width"), "give it as options=BuildOptions(profile=Profile(…))"
    ),
}
"""The remedy for each build option that is passed as a keyword of the call itself."""


def checked_options(options: BuildOptions | None) -> BuildOptions:
    """`options`, or the defaults if None; raises UsageError if it is of another type."""
    if options is not None and not isinstance(options, BuildOptions):
        raise UsageError(f"options must be BuildOptions, got {shown(options)}")
    return BuildOptions() if options is None else options


@dataclass(frozen=True, slots=True)
class Choice:
    """The options of a build with all defaults resolved.

    Attributes:
        library: name and version of the target's library, as in the manifest.
        reasons: the reason of each choice, one sentence each, for users.
        builder: the builder options with all defaults resolved.
        checked: whether half precision is checked before the build.
    """

    target: targets.Target
    precision: Precision
    library: str
    reasons: tuple[str, ...]
    builder: BuilderOptions = field(default_factory=BuilderOptions)
    checked: bool = False

    @property
    def graph_precision(self) -> Precision:
        """The ONNX graphs' precision: the engine's for typed targets, else float32.

        OpenVINO applies bfloat16 when it runs a float32 graph.
        """
        return self.precision if self.target.typed else Precision.FP32

    def settings(self, profile: Profile | None) -> dict[str, object]:
        """Everything but the model's content that determines an engine's bytes.

        It includes the versions of this project and of onnx, which writes the graphs, so that the
        manifest's `built_with` holds for every engine. `GRAPH_VERSION` covers changes between two
        releases.

        Args:
            profile: the shapes to serve. Only typed targets build them into engines; the engines of
                CPU targets are dynamic, and a profile only limits requests.
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
            value["user_allocation"] = self.target.suffix == ".plan"
            value["half_check"] = CHECK_VERSION if self.checked else None
        return value


def built_with() -> dict[str, str]:
    """The versions of this project and of onnx, which writes the graphs."""
    return {"sdexport": __version__, "onnx": importlib.metadata.version("onnx")}


def decide(options: BuildOptions) -> Choice:
    """Resolves the defaults of target, precision and builder options.

    Raises:
        UsageError: the target is unknown, or does not support the precision or a builder option.
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
            f"target {target.name} does not support precision {precision}; "
            f"choose one of: {', '.join(target.precisions)}"
        )
    library = f"{target.library} {targets.library_version(target)}"
    builder = targets.resolve_options(target, options.builder)
    checked = target.typed and precision is Precision.FP16 and options.half_check
    if checked and extras.missing(("onnxruntime",)):
        raise MissingExtraError(
            "the half-precision check needs ONNX Runtime, which is not installed; "
            f"{extras.install_command('onnxruntime')}, or skip the check with --no-half-check"
        )
    return Choice(target, precision, library, tuple(reasons), builder, checked)
