"""What a run measured, where, and how each system was set up, as the report's first sections."""

from __future__ import annotations

from collections.abc import Mapping

from sdexport.bench import claims
from sdexport.bench.machine_facts import is_busy
from sdexport.bench.report.content import (
    BAD,
    PLAIN,
    Block,
    Column,
    Command,
    Paragraph,
    Points,
    Row,
    Section,
    Subheading,
    Table,
)
from sdexport.bench.report.text import NONE, clean, load, number, pairs, seconds, some
from sdexport.bench.report.times import generation
from sdexport.bench.results import Effort, Machine, Results, SystemResult

SHOWN = 12
"""Prompts and seeds that are shown; all of them are in results.json."""

LAST_LINES = 12
"""Lines of a failed system's output that are shown."""

FACTS = (Column("", number=False), Column("", number=False))
"""The columns of a table of names and values."""


def processor(machine: Machine) -> str:
    """The processor's model and its number of cores."""
    cores = f", {machine.cores} cores" if machine.cores else ""
    return clean(machine.processor or "unknown processor") + cores


def conditions(results: Results) -> Section:
    """The scenario, the machine and the software."""
    scenario, machine = results.scenario, results.machine
    blocks: list[Block] = [
        Command(clean(results.command)),
        _facts(
            "Scenario",
            {
                "checkpoint": clean(scenario.checkpoint or NONE),
                "images": generation(results),
                "batch": str(scenario.batch),
                "sampler": f"{clean(scenario.sampler)}, {scenario.steps} steps",
                "guidance": f"{scenario.guidance:g}",
                "threads": number(scenario.threads)
                if scenario.threads
                else "each system's own default",
                "negative prompt": clean(scenario.negative_prompt or "none"),
                "effort": _effort(results.effort),
                "prompts": some([f"“{clean(one)}”" for one in scenario.prompts], SHOWN, " · "),
                "seeds": some([str(seed) for seed in scenario.seeds], SHOWN),
            },
        ),
        _facts("Machine", _machine(machine)),
        _facts(
            "Software and threads",
            {
                "Python": clean(machine.python),
                "libraries": pairs(machine.libraries),
                "thread settings": ", ".join(
                    f"{clean(name)}={clean(value)}"
                    for name, value in machine.thread_settings.items()
                )
                or "no environment variable sets any",
            },
        ),
    ]
    if is_busy(machine) and machine.load_before:
        blocks.append(
            Paragraph(
                f"The machine was busy when the run began: {machine.load_before[0]:.2f} processes "
                f"ran or waited for its {machine.cores} cores. This affects times more than "
                "ratios.",
                BAD,
            )
        )
    return Section("Conditions", tuple(blocks))


def setups(results: Results) -> Section:
    """How each system was set up, and how those that failed ended."""
    blocks: list[Block] = [
        Paragraph(
            "Each system ran in a process of its own, set up as its own documentation recommends:"
        )
    ]
    for system in results.systems:
        device = clean(system.device or "device unknown")
        head = [
            clean(system.kind),
            clean(system.precision or "precision unknown"),
            device if system.threads is None else f"{device}, {system.threads} threads",
            *([pairs(system.versions)] if system.versions else []),
        ]
        broken = not claims.works(system)
        blocks += [
            Subheading(claims.title(system)),
            Paragraph(f"{clean(system.name)}: {' · '.join(head)}"),
        ]
        if broken:
            blocks.append(Paragraph(f"It {claims.problem(results, system)}", BAD))
            tail = [clean(line) for line in system.stderr_tail][-LAST_LINES:]
            if tail:
                blocks += [Paragraph("The end of its output:"), *map(Command, filter(None, tail))]
        lines = [clean(line) for line in (*system.setup, *system.notes)]
        if lines:
            blocks.append(Points(tuple(lines)))
        elif not broken:
            blocks.append(Paragraph("It does not tell how it was set up.", BAD))
    return Section("Setup of each system", tuple(blocks))


def one_time_costs(results: Results) -> Section:
    """What happens once and is not part of the other times."""
    table = Table(
        "Happens once, and is not part of the times below",
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
                    seconds(one.build_seconds),
                    seconds(one.load_seconds),
                    seconds(one.first_seconds),
                    _warmup(one),
                    str(len(one.rounds)),
                ),
                PLAIN if claims.works(one) else BAD,
            )
            for one in results.systems
        ),
    )
    return Section("One-time costs", (table,))


def _facts(caption: str, facts: Mapping[str, str]) -> Table:
    return Table(caption, FACTS, tuple(Row((name, value)) for name, value in facts.items()))


def _effort(effort: Effort) -> str:
    text = f"at least {effort.rounds} rounds and {effort.seconds:g} s of each system"
    if effort.at_once:
        text += f", {effort.at_once} systems loaded at once"
    return f"{text}, timeout {effort.timeout:g} s"


def _machine(machine: Machine) -> dict[str, str]:
    memory = machine.memory_bytes
    return {
        "processor": clean(machine.processor or NONE),
        "cores": number(machine.cores),
        "processor threads": number(machine.processor_threads),
        "instruction sets": clean(", ".join(machine.flags) or NONE),
        "memory": f"{number(memory / 2**30)} GiB" if memory else NONE,
        "GPUs": ", ".join(claims.gpu_name(one) for one in machine.gpus) or "none",
        "system": clean(machine.system),
        "load before (1/5/15 min)": load(machine.load_before),
        "load after (1/5/15 min)": load(machine.load_after),
        "energy counters": clean(", ".join(machine.energy_sources) or "none"),
    }


def _warmup(system: SystemResult) -> str:
    found = system.warmup_seconds
    return f"{len(found)}, {seconds(sum(found))} in total" if found else NONE
