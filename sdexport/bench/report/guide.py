"""What was measured on GPUs, and how to read the report: its last sections."""

from __future__ import annotations

from sdexport.bench import claims, statistics
from sdexport.bench.report.content import Column, Command, Paragraph, Points, Row, Section, Table
from sdexport.bench.report.text import NONE, clean, size
from sdexport.bench.report.times import confidence, groups
from sdexport.bench.results import Results

COLUMNS = ("system", "precision", "p50", "p90", "p99", "speed-up", "images")


def gpu(results: Results) -> Section:
    """Whether a GPU was used; where none was, the command that measures one."""
    if claims.used_gpu(results):
        return Section("GPU", (Paragraph("The systems above whose device is cuda ran on a GPU."),))
    checkpoint = clean(results.scenario.checkpoint or "CHECKPOINT")
    return Section(
        "GPU",
        (
            Paragraph(claims.gpu_sentence(results)),
            Table(
                "GPU times: not measured",
                tuple(Column(name, number=False) for name in COLUMNS),
                (Row((NONE,) * len(COLUMNS)),),
            ),
            Paragraph(
                "On a machine with an NVIDIA GPU this command measures them, with a bundle built "
                "for that GPU and the scenario's options as above:"
            ),
            Command(
                f"sdexport bench run BUNDLE --checkpoint {checkpoint} --against diffusers-fp16 "
                "--report DIR"
            ),
        ),
    )


def guide(results: Results) -> Section:
    """How the run measured, and what the measures mean."""
    found = groups(results)
    order = (
        "took turns, one generation each: the baseline, then the others in an order that is new in "
        "every round. A machine that becomes slower becomes slower for all of them."
    )
    turns = (
        f"All systems were loaded at the same time and {order}"
        if len(found) < 2
        else f"Memory does not hold all systems, so they ran in {len(found)} groups, with the "
        f"baseline in each of them. The systems of a group {order} Groups ran one after another: "
        "compare systems of different groups by their ratios only."
    )
    return Section(
        "How to read this report",
        (
            Points(
                (
                    turns,
                    "A time is that from the prompts as text to the images as pixels in host "
                    "memory. Saving the images is not part of it.",
                    "p50, p90 and p99 are percentiles over the rounds. The spread is the standard "
                    "deviation in percent of the mean.",
                    "The speed-up is the median over rounds of the baseline's time at the moment "
                    "of a system's turn, interpolated between its turns before and after, divided "
                    f"by the system's time, with the {confidence(results)}% confidence interval "
                    "of that median. A difference is shown where the interval does not hold 1 and "
                    f"the median is more than {statistics.LEAST:.0%} from it: two processes of one "
                    "program differ by as much because of memory placement and clocks, which a run "
                    "cannot see in itself.",
                    "No speed-up is claimed for a system whose images are different or were not "
                    "compared, or that evaluates the model less often than the baseline.",
                    "PSNR: 255² over the mean squared difference, in dB. SSIM: Wang et al. 2004, "
                    "11×11 Gaussian window, mean of the three colours. Relative difference: the "
                    "RMS of the difference over the standard deviation of the baseline's image, "
                    "which accounts for images of low contrast. Latent cosine: of the decoder's "
                    "inputs.",
                    "Peak host memory is the largest resident set of the process (VmHWM).",
                    f"Memory sizes: {size(1e9)} is 10⁹ bytes.",
                )
            ),
            Paragraph(
                "results.json beside this report holds every single measurement; its schema is "
                f"version {results.schema}."
            ),
        ),
    )
