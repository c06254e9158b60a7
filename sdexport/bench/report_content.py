"""A results.json as a report: the conditions first, then what was found, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdexport.bench import claims, report_images, report_limits, report_results, statistics, versus
from sdexport.bench.claims import Results, System
from sdexport.bench.machine_facts import is_busy
from sdexport.bench.report_blocks import (
    BAD,
    GOOD,
    PLAIN,
    Block,
    Column,
    Command,
    Paragraph,
    Points,
    Report,
    Row,
    Section,
    Subheading,
    Table,
)
from sdexport.bench.report_text import (
    NONE,
    clean,
    load,
    number,
    pairs,
    seconds,
    size,
    some,
    words,
)

SHOWN = 12
"""Of prompts and seeds that are shown; all of them are in results.json."""

LAST_LINES = 12
"""Of what a broken system wrote, that are shown."""

FACTS = (Column("", number=False), Column("", number=False))
"""The columns of a table of names and values."""


def report(results: Results) -> Report:
    """The report of one run, for whichever renderer.

    Raises:
        KeyError: `results` is no results.json of this schema.
    """
    scenario = results["scenario"]
    return Report(
        title=f"Benchmark: {clean(scenario.get('name') or 'unnamed')}",
        subtitle=(
            f"{report_results.generation(results)} · {_place(results)} · "
            f"{clean(results['created'])}"
        ),
        findings=_findings(results),
        sections=(
            _conditions(results),
            _setups(results),
            _excluded(results),
            report_results.times(results),
            report_results.resources(results),
            report_images.section(results),
            report_limits.section(results),
            _gpu(results),
            _method(results),
        ),
    )


def _findings(results: Results) -> tuple[Paragraph, ...]:
    found = []
    if results.get("complete") is False:
        found.append(Paragraph("The run was cut short: these are the rounds until then.", BAD))
    first = claims.baseline(results)
    if first is None or not claims.works(first):
        found.append(Paragraph("The baseline did not finish, so no speed-up is claimed.", BAD))
    elif leaders := versus.leaders(results):
        best, *level = leaders
        said = (
            f"Fastest with the same or a close image: {claims.title(best)}, "
            f"{claims.ratio(results, best)} as fast as {claims.title(first)}: "
            f"{seconds(best['summary']['total']['p50'])} against "
            f"{seconds(first['summary']['total']['p50'])}."
        )
        if level:
            said += f" No difference to it is shown for {words([claims.title(o) for o in level])}."
        found.append(Paragraph(said, GOOD))
    else:
        found.append(Paragraph(f"Nothing is shown to be faster than {claims.title(first)}."))
    found += [
        Paragraph(versus.in_words(duel), {1: GOOD, 0: PLAIN, -1: BAD}[versus.outcome(duel)])
        for duel in versus.duels(results)
    ]
    broken = [one for one in results["systems"] if not claims.works(one)]
    if broken:
        found.append(
            Paragraph(
                "Without figures: "
                + words([f"{claims.title(one)} ({claims.ended(one)})" for one in broken])
                + ".",
                BAD,
            )
        )
    other = [
        claims.title(one)
        for one in results["systems"]
        if claims.works(one) and claims.problem(results, one) is not None
    ]
    if other:
        found.append(Paragraph(f"Timed, but no speed-up is claimed for: {words(other)}.", BAD))
    found.append(Paragraph(claims.gpu_sentence(results)))
    return tuple(found)


def _place(results: Results) -> str:
    machine = results.get("machine") or {}
    cores = machine.get("cores")
    return clean(machine.get("processor") or "unknown processor") + (
        f", {cores} cores" if cores else ""
    )


def _facts(caption: str, facts: Mapping[str, str]) -> Table:
    return Table(caption, FACTS, tuple(Row((name, value)) for name, value in facts.items()))


def _conditions(results: Results) -> Section:
    scenario, machine = results["scenario"], results.get("machine") or {}
    prompts, seeds = scenario["prompts"], scenario.get("seeds") or []
    blocks: list[Block] = [
        Command(clean(results.get("command") or "")),
        _facts(
            "Scenario",
            {
                "checkpoint": clean(scenario.get("checkpoint", NONE)),
                "images": report_results.generation(results),
                "generated together": str(scenario.get("batch", 1)),
                "sampler": f"{clean(scenario['sampler'])}, {scenario['steps']} steps",
                "guidance": f"{scenario['guidance']:g}",
                "threads asked for": number(scenario.get("threads"))
                if scenario.get("threads")
                else "each system's own default",
                "negative prompt": clean(scenario.get("negative_prompt") or "none"),
                "effort": _effort(results.get("effort")),
                "prompts": some([f"“{clean(prompt)}”" for prompt in prompts], SHOWN, " · "),
                "seeds": some([str(seed) for seed in seeds], SHOWN),
            },
        ),
        _facts("Machine", _machine(machine)),
        _facts(
            "Software and threads",
            {
                "Python": clean(machine.get("python", NONE)),
                "libraries": pairs(machine.get("libraries")),
                "thread settings": _thread_settings(machine.get("thread_settings") or {}),
            },
        ),
    ]
    if is_busy(machine):
        before, cores = machine["load_before"], machine["cores"]
        blocks.append(
            Paragraph(
                f"The machine was not quiet when the run began: {before[0]:.2f} processes wanted "
                f"its {cores} cores. Ratios suffer less from it than times do.",
                BAD,
            )
        )
    return Section("Conditions", tuple(blocks))


def _effort(effort: Mapping[str, Any] | None) -> str:
    if not effort:
        return NONE
    text = f"at least {effort['rounds']} rounds and {effort['seconds']:g} s of each system"
    if effort.get("at_once"):
        text += f", {effort['at_once']} systems loaded at once"
    return text + (f", hung after {effort['timeout']:g} s" if effort.get("timeout") else "")


def _thread_settings(settings: Mapping[str, Any]) -> str:
    said = [
        f"{clean(name)} is not set" if value is None else f"{clean(name)}={clean(value)}"
        for name, value in settings.items()
    ]
    return ", ".join(said) or "no environment variable sets any"


def _machine(machine: Mapping[str, Any]) -> dict[str, str]:
    memory = machine.get("memory_bytes")
    gpus = machine.get("gpus") or []
    return {
        "processor": clean(machine.get("processor") or NONE),
        "cores": number(machine.get("cores")),
        "processor threads": number(machine.get("processor_threads")),
        "instruction sets": clean(", ".join(machine.get("flags") or []) or NONE),
        "memory": f"{number(memory / 2**30)} GiB" if memory else NONE,
        "GPUs": ", ".join(claims.gpu_name(one) for one in gpus) or "none",
        "system": clean(machine.get("system", NONE)),
        "load before (1/5/15 min)": load(machine.get("load_before")),
        "load after": load(machine.get("load_after")),
    }


def _setups(results: Results) -> Section:
    blocks: list[Block] = [
        Paragraph(
            "Each system ran in a process of its own, set up as its own documentation recommends:"
        )
    ]
    for system in results["systems"]:
        device = clean(system.get("device") or "device unknown")
        threads = system.get("threads")
        head = [
            clean(system["kind"]),
            clean(system.get("precision") or "precision unknown"),
            device if threads is None else f"{device}, {threads} threads",
            *([pairs(system["versions"])] if system.get("versions") else []),
        ]
        broken = not claims.works(system)
        blocks += [
            Subheading(claims.title(system)),
            Paragraph(f"{clean(system['name'])}: {' · '.join(head)}"),
        ]
        if broken:
            reason = claims.problem(results, system)
            blocks.append(Paragraph(f"It {reason}", BAD))
            tail = [clean(line) for line in system.get("stderr_tail") or ()][-LAST_LINES:]
            if tail:
                blocks += [Paragraph("The last that it said:"), *map(Command, filter(None, tail))]
        lines = [clean(line) for line in (*system.get("setup", ()), *system.get("notes", ()))]
        if lines:
            blocks.append(Points(tuple(lines)))
        elif not broken:
            blocks.append(Paragraph("It says nothing of how it was set up.", BAD))
    return Section("How each system was set up", tuple(blocks))


def _excluded(results: Results) -> Section:
    table = Table(
        "Happens once and is no part of any figure below",
        (
            Column("system", number=False),
            Column("build or conversion"),
            Column("load"),
            Column("first generation"),
            Column("warm-up generations"),
            Column("rounds counted"),
        ),
        tuple(
            Row(
                (
                    claims.title(one),
                    seconds(one.get("build_seconds")),
                    seconds(one.get("load_seconds")),
                    seconds(one.get("first_seconds")),
                    _warmup(one),
                    str(len(one.get("rounds") or ())),
                ),
                PLAIN if claims.works(one) else BAD,
            )
            for one in results["systems"]
        ),
    )
    return Section("Kept out of the steady state", (table,))


def _warmup(system: System) -> str:
    found = system.get("warmup_seconds") or ()
    return f"{len(found)}, {seconds(sum(found))} in all" if found else NONE


def _gpu(results: Results) -> Section:
    if claims.used_gpu(results):
        return Section(
            "On a GPU",
            (Paragraph("GPUs are among the systems above; their device is cuda."),),
        )
    columns = ("system", "precision", "p50", "p90", "p99", "times faster", "image")
    checkpoint = clean(results["scenario"].get("checkpoint", "CHECKPOINT"))
    return Section(
        "On a GPU",
        (
            Paragraph(claims.gpu_sentence(results)),
            Table(
                "GPU times: not measured",
                tuple(Column(name, number=False) for name in columns),
                (Row((NONE,) * len(columns)),),
            ),
            Paragraph(
                "On a machine with an NVIDIA GPU this fills it, with a bundle that was built for "
                "that GPU and the scenario's options as above:"
            ),
            Command(
                f"sdexport bench run BUNDLE --checkpoint {checkpoint} --against diffusers-fp16 "
                "--report DIR"
            ),
        ),
    )


def _method(results: Results) -> Section:
    groups = report_results.groups(results)
    turns = (
        "All systems were loaded at the same time and took turns, one generation each: the "
        "baseline, then the others in an order that is new in every round"
        if len(groups) < 2
        else f"Memory is finite, so the systems ran in {len(groups)} groups, the baseline in each "
        "of them again; those of a group took turns, one generation each: the baseline, then the "
        "others in an order that is new in every round. Times of different groups are "
        "hours apart: compare their ratios"
    )
    confidence = next(
        (one["ratio"].get("confidence", 0.95) for one in results["systems"] if one.get("ratio")),
        0.95,
    )
    return Section(
        "How to read this",
        (
            Points(
                (
                    turns + ": a machine that becomes slower does so for all.",
                    "A time reaches from the prompt as text to the images as pixels in host "
                    "memory. Saving them is not part of it.",
                    "p50, p90 and p99 are percentiles over the rounds; the spread is one standard "
                    "deviation in percent of the mean.",
                    "Times faster is the median over rounds of the baseline's time at the moment "
                    "of a system's turn, interpolated between its turns before and after, divided "
                    f"by the system's time, with the {confidence:.0%} confidence interval of that "
                    "median. A difference is shown where the interval does not hold 1 and the "
                    f"median is more than {statistics.LEAST:.0%} from it: two processes of one "
                    "program differ by as much, by their luck with memory and clocks, which no "
                    "run can see in itself.",
                    "No speed-up is claimed for a system that generates something else, was not "
                    "compared, or evaluates the model less often than the baseline.",
                    "PSNR: 255² over the mean squared difference, in dB. SSIM: Wang et al. 2004, "
                    "11×11 Gaussian window, mean of the three colours. Relative: the RMS of the "
                    "difference over the standard deviation of the baseline's image, so that "
                    "pale images are not alike by being pale. Latent cosine: of what the decoder "
                    "is given.",
                    "Peak host memory is the process's largest resident set (VmHWM).",
                    f"Memory sizes: {size(1e9)} is 10⁹ bytes.",
                )
            ),
            Paragraph(
                "Every single measurement is in results.json beside this report; its schema "
                f"is version {clean(results.get('schema', NONE))}."
            ),
        ),
    )
