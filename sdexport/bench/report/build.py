"""The report of a run: its conditions first, then the times, and what they are worth."""

from __future__ import annotations

from sdexport.bench import claims, versus
from sdexport.bench.report import conditions, guide, images, roofline, times
from sdexport.bench.report.content import BAD, GOOD, PLAIN, Paragraph, Report
from sdexport.bench.report.text import clean, seconds, words
from sdexport.bench.results import Results, SystemResult


def report(results: Results) -> Report:
    """The content of the report, the same for every format."""
    return Report(
        title=f"Benchmark: {clean(results.scenario.name or 'unnamed')}",
        subtitle=(
            f"{times.generation(results)} · {conditions.processor(results.machine)} · "
            f"{clean(results.created)}"
        ),
        findings=_findings(results),
        sections=(
            conditions.conditions(results),
            conditions.setups(results),
            conditions.one_time_costs(results),
            times.times(results),
            times.resources(results),
            images.section(results),
            roofline.section(results),
            guide.gpu(results),
            guide.guide(results),
        ),
    )


def fastest(results: Results, first: SystemResult) -> Paragraph:
    """The fastest system, and the systems that it is not shown to be faster than."""
    leaders = versus.leaders(results)
    if not leaders:
        return Paragraph(f"No system is shown to be faster than {claims.title(first)}.")
    best, *level = leaders
    text = (
        f"Fastest with the same or close images: {claims.title(best)}, "
        f"{claims.ratio(results, best)} as fast as {claims.title(first)}: "
        f"{seconds(claims.p50(best))} against {seconds(claims.p50(first))}."
    )
    if level:
        names = words([claims.title(one) for one in level])
        text += f" It is not shown to be faster than {names}."
    return Paragraph(text, GOOD)


def _findings(results: Results) -> tuple[Paragraph, ...]:
    found = []
    if not results.complete:
        found.append(
            Paragraph("The run was cut short: the times are of the rounds until then.", BAD)
        )
    first = claims.baseline(results)
    if first is None or not claims.works(first):
        found.append(Paragraph("The baseline did not finish, so no speed-up is claimed.", BAD))
    else:
        found.append(fastest(results, first))
    found += [
        Paragraph(versus.in_words(duel), {1: GOOD, 0: PLAIN, -1: BAD}[versus.outcome(duel)])
        for duel in versus.duels(results)
    ]
    broken = [one for one in results.systems if not claims.works(one)]
    if broken:
        names = words([f"{claims.title(one)} ({claims.ended(one)})" for one in broken])
        found.append(Paragraph(f"Without times: {names}.", BAD))
    other = [
        claims.title(one)
        for one in results.systems
        if claims.works(one) and claims.problem(results, one) is not None
    ]
    if other:
        found.append(Paragraph(f"Timed, but no speed-up is claimed for: {words(other)}.", BAD))
    found.append(Paragraph(claims.gpu_sentence(results)))
    return tuple(found)
