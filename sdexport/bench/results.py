"""The types of results.json: what one run of `sdexport bench run` measured.

Times are in seconds, sizes in bytes. docs/benchmark_results.md explains every field; the JSON
Schema docs/results.schema.json is generated from these types by scripts/results_schema.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sdexport.artifacts.documents import Number
from sdexport.bench.quality import ImageDistance, Verdict
from sdexport.bench.recognise import Recognised
from sdexport.bench.scenario import Scenario, Text, Threads
from sdexport.bench.statistics import Distribution, Interval
from sdexport.errors import UsageError
from sdexport.model.bounds import Count, Length

SCHEMA = 2
"""The version of this format."""

MOST_ROUNDS = 1 << 20

Seconds = Annotated[float, Meta(ge=0, le=1e300)]
Elapsed = Annotated[float, Meta(gt=0, le=1e300)]
Rate = Annotated[float, Meta(gt=0, le=1e300)]
"""In operations or bytes a second."""

Speed = Annotated[float, Meta(ge=0, le=1e300)]
"""As `Rate`, or 0 for a stage without operations."""

Share = Annotated[float, Meta(ge=0, le=1e300)]
"""1 is the whole; a share of a peak that was measured too low may be above 1."""

Rates = Annotated[tuple[Rate, ...], Meta(max_length=MOST_ROUNDS)]
Load = tuple[Number, Number, Number]
Lines = Annotated[tuple[Text, ...], Meta(max_length=MOST_ROUNDS)]
Strings = dict[Text, Text]
Kind = Literal["bundle", "diffusers", "peer"]
Status = Literal["ok", "crashed", "hung", "failed"]
Stage = Literal["text_encoder", "evaluation", "vae_decoder", "total"]
SystemName = Annotated[
    str,
    Meta(
        pattern=r"^(?!\.)[\w.+-]+$",
        max_length=255,
        description="the name of a folder: letters, digits, and _ . + -",
    ),
]


class Effort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a run measures.

    Attributes:
        rounds: least number of turns of every system.
        seconds: least sum of the turns of every system.
        at_once: systems loaded at a time, the baseline one of them; None: all.
        timeout: seconds that any one answer of a system may take.

    Raises:
        UsageError: a value out of range.
    """

    rounds: Annotated[int, Meta(ge=1, le=MOST_ROUNDS)] = 10
    seconds: Seconds = 10.0
    at_once: Annotated[int, Meta(ge=2, le=MOST_ROUNDS)] | None = None
    timeout: Elapsed = 900.0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"rounds must be at least 1, got {self.rounds}")
        if not self.seconds >= 0:
            raise UsageError(f"seconds must be at least 0, got {self.seconds:g}")
        if self.at_once is not None and self.at_once < 2:
            raise UsageError(
                f"at once must be at least 2, the baseline and one other, got {self.at_once}"
            )
        if not self.timeout > 0:
            raise UsageError(f"timeout must be above 0 seconds, got {self.timeout:g}")


class Gpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A GPU of the machine.

    Attributes:
        name: from the driver.
        capability: compute capability, such as `sm89`.
        bytes: of its memory.
        ordinal: its number among the GPUs that CUDA shows.
    """

    name: Text
    capability: Text | None = None
    bytes: Count | None = None
    ordinal: Count | None = None


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The machine and the software that measured.

    Attributes:
        system: the operating system.
        processor: its model.
        cores: physical cores that the run might use.
        processor_threads: hardware threads.
        flags: instruction sets.
        memory_bytes: of the machine or of its container.
        gpus: NVIDIA GPUs.
        load_before: load averages over 1, 5 and 15 minutes.
        load_after: the same after the run.
        python: version.
        libraries: version by name.
        thread_settings: environment variables that speed depends on.
        energy_sources: the energy counters that were read.
    """

    system: Text
    processor: Text | None
    cores: Length | None
    processor_threads: Length | None = None
    flags: Lines
    memory_bytes: Count | None
    gpus: tuple[Gpu, ...]
    load_before: Load | None
    load_after: Load | None
    python: Text
    libraries: Strings
    thread_settings: Strings
    energy_sources: Lines = ()


class MatrixProduct(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """The rate of a library's matrix product in one number format.

    Attributes:
        flops_per_second: of the best sample.
        library: name and version.
        size: n of the n × n matrices.
        samples: operations a second, in order.
        others: the slower libraries and sizes.
    """

    flops_per_second: Rate
    library: Text
    size: Length
    samples: Rates
    others: tuple[MatrixProduct, ...] = ()


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The bandwidth of memory.

    Attributes:
        bytes_per_second: of the best sample of the fastest operation.
        how: how it was measured.
        operations: samples of each operation, bytes a second.
    """

    bytes_per_second: Rate
    how: Text
    operations: dict[Text, Rates]


class Peaks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The machine's side of the roofline: its peak rates, measured in the run.

    Attributes:
        device: `cpu`, or the GPU's name.
        threads: of the processor.
        compute: the fastest matrix product, by number format.
        memory: its bandwidth.
        load_of_others: the share of all processors' time that other processes took, of each
            attempt; None where the system does not tell.
        seconds: that the measurement took.
    """

    device: Text | None = None
    threads: Threads | None = None
    compute: dict[Text, MatrixProduct]
    memory: Memory | None
    load_of_others: tuple[Share | None, ...] = ()
    seconds: Seconds | None = None


class StageRoofline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The work of a stage, its time, and the share of the machine's peaks that it reached.

    Attributes:
        flops: operations of the stage.
        bytes: least bytes moved, in the system's precision.
        seconds: the median time.
        flops_per_second: operations over the median time.
        share_of_compute: of the peak of the system's precision; None where that is not known.
        share_of_bandwidth: of the peak bandwidth of memory; None where that is not known.
        bound: the peak at which the stage needs the longer time.
        note: what a reader must know of these shares; None where nothing.
    """

    flops: Count
    bytes: Count
    seconds: Elapsed
    flops_per_second: Speed
    share_of_compute: Share | None
    share_of_bandwidth: Share | None
    bound: Literal["compute", "memory"] | None
    note: Text | None = None


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One generation of the scenario by one system; times in seconds.

    Attributes:
        at: start, since the run began.
        total: the whole turn.
        text_encoder: None where the system does not tell, as for the following ones.
        evaluations: each call of the model, in order.
        denoise: the whole loop, from systems that do not tell each evaluation.
        vae_decoder: decoding of the images.
        joules: energy that the machine used meanwhile; None where it does not tell.
    """

    at: Seconds
    total: Elapsed
    text_encoder: Seconds | None = None
    evaluations: Annotated[tuple[Seconds, ...], Meta(max_length=MOST_ROUNDS)] | None = None
    denoise: Seconds | None = None
    vae_decoder: Seconds | None = None
    joules: Seconds | None = None


class Summary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The distributions of a system's times, seconds, by stage; None where not told.

    Attributes:
        total: whole turns.
        text_encoder: of each turn.
        evaluation: of all evaluations of all turns.
        vae_decoder: of each turn.
        rest: what a turn took beside its stages.
        images_per_second: by the median turn.
    """

    total: Distribution
    text_encoder: Distribution | None
    evaluation: Distribution | None
    vae_decoder: Distribution | None
    rest: Distribution | None
    images_per_second: Rate


class Fidelity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a system's images compare with the baseline's.

    Attributes:
        verdict: of the farthest image.
        why: the reason, empty for `same`.
        images: the distance of each image.
        recognised: None where the checkpoint's training images are not known.
    """

    verdict: Verdict
    why: Text
    images: tuple[ImageDistance, ...] = ()
    recognised: Recognised | None = None


class SystemResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One system of a run; None is not known.

    Attributes:
        name: of its folders in `images/` and `latents/`.
        title: for people.
        kind: of the system.
        status: how it ended.
        why: the reason of another status than `ok`.
        stderr_tail: the last lines that it wrote.
        group: of the systems loaded together; the baseline is in all groups.
        precision: that it computes in.
        device: `cpu` or `cuda`.
        threads: of the processor.
        versions: of its libraries.
        setup: how it was set up, line by line.
        notes: what a reader must know of it.
        bytes: of the model's files.
        build_seconds: to convert or build, once.
        load_seconds: to load.
        first_seconds: the first generation.
        warmup_seconds: the generations after it that were not counted.
        rounds: the turns that were counted.
        model_calls: calls of the model in one turn.
        batches: of images in one turn.
        peak_host_bytes: of its process, over its whole life.
        peak_device_bytes: of the device's memory.
        summary: None without a turn.
        ratio: the baseline's time over the system's; None of the baseline and of too few pairs.
        fidelity: None where no image was compared.
        roofline: the share of the machine's peaks that each stage reached.
    """

    name: SystemName
    title: Text
    kind: Kind
    status: Status
    why: Text
    stderr_tail: Lines
    group: Annotated[int, Meta(ge=0, le=MOST_ROUNDS)]
    precision: Text | None
    device: Text | None
    threads: Threads | None
    versions: Strings
    setup: Lines = ()
    notes: Lines = ()
    bytes: Count | None
    build_seconds: Seconds | None = None
    load_seconds: Seconds | None
    first_seconds: Seconds | None
    warmup_seconds: Annotated[tuple[Seconds, ...], Meta(max_length=MOST_ROUNDS)]
    rounds: Annotated[tuple[Turn, ...], Meta(max_length=MOST_ROUNDS)]
    model_calls: Count | None
    batches: Count | None = None
    peak_host_bytes: Count | None
    peak_device_bytes: Count | None
    summary: Summary | None
    ratio: Interval | None = None
    fidelity: Fidelity | None = None
    roofline: dict[Stage, StageRoofline] | None = None

    @property
    def joules(self) -> list[float] | None:
        """Energy of every turn; None where the machine did not tell it of all."""
        told = [turn.joules for turn in self.rounds if turn.joules is not None]
        return told if told and len(told) == len(self.rounds) else None


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run.

    Attributes:
        schema: the version of this format.
        created: time in UTC, ISO 8601.
        command: the command line of the run.
        complete: False where the run was cut short.
        effort: as asked for.
        scenario: what was generated.
        machine: what measured.
        peaks: the machine's side of the roofline; None where it was not measured.
        roofline_problem: why peaks or work are not known; empty where they are.
        baseline: the name of the system that ratios are to.
        systems: in the order of the command line.
    """

    schema: Literal[2] = 2
    created: Annotated[Text, Meta(extra_json_schema={"format": "date-time"})]
    command: Text
    complete: bool
    effort: Effort
    scenario: Scenario
    machine: Machine
    peaks: Peaks | None = None
    roofline_problem: Text = ""
    baseline: Text
    systems: Annotated[tuple[SystemResult, ...], Meta(min_length=1, max_length=1 << 12)]

    def __post_init__(self) -> None:
        names = [one.name for one in self.systems]
        if len(set(names)) < len(names):
            raise UsageError("systems must have different names")
