"""The verb generate: a bundle generates images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdexport.artifacts.reading import exists, given_path, is_folder
from sdexport.cli import terminal
from sdexport.cli.complete import complete_bundle, complete_sampler
from sdexport.cli.options import Json
from sdexport.cli.viewer import open_image
from sdexport.errors import StorageError, UsageError, shown
from sdexport.progress import stage

if TYPE_CHECKING:
    from sdexport.pipeline.pipeline import Pipeline
    from sdexport.pipeline.request import Request
    from sdexport.pipeline.result import Result
    from sdexport.sampling import SamplingPlan

STDOUT = "-"
"""The output that is stdout."""


def generate(
    bundle: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="BUNDLE",
            help="A folder of sdexport compile or build.",
            autocompletion=complete_bundle,
        ),
    ],
    prompt: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPT",
            help="What to generate, in quotes; several prompts give several images.",
        ),
    ],
    negative_prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--negative-prompt",
            "-n",
            metavar="TEXT",
            help="What to keep away from: once for all prompts, or once for each.",
            show_default="none",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Steps of the sampler; more take longer. Some samplers evaluate the model more "
            "often than that, see sdexport samplers.",
            show_default="50",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE",
            help="How strongly to follow the prompt; no unit, 7.5 is usual. Up to 1 there is no "
            "guidance, which takes half the time, and negative prompts have no effect.",
            show_default="the bundle's",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="One that sdexport samplers lists.",
            show_default="the checkpoint's",
            autocompletion=complete_sampler,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The same seed generates the same image; the k-th image has SEED + k, from k = 0.",
            show_default="a random one, which is printed",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="In pixels, multiples of 8, within what the bundle was built for.",
            show_default="the bundle's",
        ),
    ] = None,
    noise: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Whose noise a seed stands for: torch-cpu, or torch-cuda, which torch draws on a "
            "GPU.",
        ),
    ] = "torch-cpu",
    count: Annotated[int, typer.Option(metavar="N", help="Images for each prompt.")] = 1,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            parser=given_path,
            metavar="FILE",
            help="An image to start from: once for all prompts, or once for each. Its size is "
            "generated, unless --size says another.",
            show_default="none",
        ),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            parser=given_path,
            metavar="FILE",
            help="Where the image is repainted: white; black is kept. Of the image's size.",
            show_default="none",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="How much of the image is repainted, from 0 to 1; the steps are as much fewer.",
            show_default="0.8, with a mask 1",
        ),
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of fresh noise, from 0 to 1, for samplers that take one, such as ddim.",
            show_default="the sampler's",
        ),
    ] = None,
    timesteps: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="The model's timesteps instead of the sampler's own, for samplers that take any; "
            "leave --steps out.",
            show_default="the sampler's",
        ),
    ] = None,
    sigmas: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,…",
            help="The noise levels instead of the sampler's own, likewise.",
            show_default="the sampler's",
        ),
    ] = None,
    fit: Annotated[
        str,
        typer.Option(
            metavar="exact|resize|crop|pad",
            help="What to do with an image of another size than --size: refuse it, scale it, cut "
            "it around its middle, or continue its edges.",
        ),
    ] = "exact",
    guidance_rescale: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Against overexposure by strong guidance, from 0 (off) to 1."
        ),
    ] = 0.0,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            metavar="BEGIN:END",
            help="The part of the steps with guidance, two numbers from 0 to 1.",
            show_default="0:1",
        ),
    ] = None,
    prompt_syntax: Annotated[
        str,
        typer.Option(
            metavar="plain|long|weights",
            help="How prompts are read: plain, cut off after 77 tokens, as diffusers does; long, "
            "all of it; weights, all of it, with (word:1.2), [word] and BREAK as in web UIs.",
        ),
    ] = "plain",
    clip_skip: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Layers of the text encoder to leave out for the prompt. Web UIs count 1 more.",
        ),
    ] = 0,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="A PNG file, or a folder (ending in /); folders are made, and a file of that name "
            "is overwritten. Several images are numbered: FILE-000.png, FILE-001.png. With - the "
            "PNG's bytes of one image go to stdout, which must not be a terminal.",
            show_default="sdexport-SEED.png here, under a name that is free",
        ),
    ] = None,
    no_clobber: Annotated[
        bool,
        typer.Option(
            "--no-clobber", help="Refuse, before the first step, where a file to write exists."
        ),
    ] = False,
    open_: Annotated[
        bool,
        typer.Option(
            "--open",
            help="Open the image, the first of several, with the system's viewer; where there is "
            "no display, only its name is printed.",
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Processor threads to use.", show_default="the runtime's choice"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Generate images with a bundle.

    The request is checked before the engines are loaded. Prompt, seed, sampler and all else that
    is needed to generate an image again are kept in its PNG file.

    \b
    Example:
      sdexport generate bundles/sd15 "a red apple" --seed 7 -o apple.png
      sdexport generate bundles/sd15 "a fox" "an owl" -n blurry --count 4 --size 512x768
      sdexport generate bundles/sd15 "a (red:1.3) fox" --prompt-syntax weights
      sdexport generate bundles/sd15 "a fox" --image owl.png --strength 0.6
    """
    from sdexport.artifacts.bundle import open_bundle
    from sdexport.backends.targets import check_threads
    from sdexport.pipeline import load as loading
    from sdexport.pipeline.checks import size_of
    from sdexport.pipeline.make_request import make_request
    from sdexport.pipeline.result import output_files, png

    check_threads(threads)
    width, height = (None, None) if size is None else size_of(size)
    with open_bundle(bundle, check=False) as opened:
        bounds = loading.request_bounds(opened)
    with _as_options():
        request = make_request(
            bounds,
            prompt,
            negative_prompt=negative_prompt or None,
            num_inference_steps=steps,
            guidance_scale=guidance,
            sampler=sampler,
            seed=seed,
            width=width,
            height=height,
            num_images_per_prompt=count,
            noise=noise,
            image=image or None,
            mask_image=mask or None,
            strength=strength,
            eta=eta,
            timesteps=_levels(timesteps, "timesteps"),
            sigmas=_levels(sigmas, "sigmas"),
            fit=fit,
            guidance_rescale=guidance_rescale,
            guidance_interval=_interval(guidance_interval),
            prompt_syntax=prompt_syntax,
            clip_skip=clip_skip,
        )
    if output == STDOUT:
        _refuse_for_stdout(request, json=json, open_=open_)
        with terminal.binary_stdout() as stdout:
            result = _generated(request, lambda: loading.load(bundle, threads=threads), quiet=False)
            stdout.write(png(result.images[0], result.metadata(0)))
        for warning in result.warnings:
            terminal.say(f"warning: {warning}")
        terminal.say(f"seed {result.seeds[0]}")
        return
    file = _output(output, request)
    if no_clobber:
        _refuse_existing(output_files(file, request.images))
    result = _generated(request, lambda: loading.load(bundle, threads=threads), quiet=json)
    files = _saved(result, file, keep=no_clobber)
    if json:
        _print_document(result, files)
    else:
        _print_result(result, files)
    if open_ and (why := open_image(files[0])):
        terminal.say(f"not opened: {why}")


def _refuse_for_stdout(request: Request, *, json: bool, open_: bool) -> None:
    """Refuses what does not go with one image's bytes on stdout."""
    if request.images != 1:
        raise UsageError(f"-o - writes exactly one image, got a request for {request.images}")
    for given, option in ((json, "--json"), (open_, "--open")):
        if given:
            raise UsageError(f"-o - writes the image alone to stdout; leave out {option}")


def _refuse_existing(files: Sequence[Path]) -> None:
    """Raises UsageError where one of `files` exists."""
    taken = [file for file in files if exists(file)]
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise UsageError(
            f"{taken[0]}{more} exists; name another file with -o, or leave out --no-clobber"
        )


def _generated(request: Request, load: Callable[[], Pipeline], *, quiet: bool) -> Result:
    """Loads the engines and generates, counting in the steps that were asked for."""
    with terminal.progress(quiet=quiet) as progress:
        with stage(progress, "loading engines"):
            pipeline = load()
        evaluations = pipeline.evaluations(request)
        counter = StepCounter.of(request.plan, evaluations)
        result: Result | None = None
        with (
            stage(progress, "generating", counter.total, unit="step"),
            closing(pipeline.steps(request)) as stream,
        ):
            progress.advance(0, _waits_for(0, evaluations, request))
            for step in stream:
                progress.advance(
                    counter.newly_done(step.index + 1),
                    _waits_for(step.index + 1, evaluations, request),
                )
                result = step.result
    assert result is not None, "the last step carries the result"
    return result


@dataclass(slots=True)
class StepCounter:
    """Turns evaluations of the model into the user's steps, over all batches of a request.

    Attributes:
        each: evaluations of a batch, at least one a step.
        steps: of a batch; those that an image's strength leaves out are none.
        total: steps of the whole request.
        done: of these, those that were told.
    """

    each: int
    steps: int
    total: int
    done: int = 0

    @classmethod
    def of(cls, plan: SamplingPlan, evaluations: int) -> StepCounter:
        """The counter of a request of so many evaluations in all."""
        steps = plan.steps - plan.skipped
        return cls(plan.evaluations, steps, steps * (evaluations // plan.evaluations))

    def newly_done(self, evaluations: int) -> int:
        """Steps that are done after so many evaluations of the request and were not before."""
        batches, rest = divmod(evaluations, self.each)
        before, self.done = self.done, batches * self.steps + rest * self.steps // self.each
        return self.done - before


def _waits_for(done: int, evaluations: int, request: Request) -> str:
    """What comes after `done` evaluations, as a progress line says it."""
    each = request.plan.evaluations
    batches, batch = evaluations // each, min(done, evaluations - 1) // each
    images = f"(batch {batch + 1} of {batches})" if batches > 1 else ""
    if done % each == 0 and done < evaluations:
        return f"encoding the prompt {images}".rstrip()
    if done % each == each - 1:
        return f"and decoding {images}".rstrip()
    return images or " "


@contextmanager
def _as_options() -> Iterator[None]:
    """Calls what an error names as it is called on the command line."""
    from sdexport.pipeline.option_names import COMMAND_LINE

    try:
        yield
    except UsageError as error:
        said = str(error)
        for name, option in COMMAND_LINE.items():
            if "_" in name:  # Width and height are called so on the command line too.
                said = said.replace(name, f"--{option}")
        raise UsageError(said) from error


def _levels(text: str | None, name: str) -> list[float] | None:
    """Numbers with commas between them.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--{name} must be numbers with commas between them, for example 999,749,499,249, got "
            f"{shown(text)}"
        ) from None


def _interval(text: str | None) -> tuple[float, float]:
    """BEGIN:END as two numbers.

    Raises:
        UsageError: anything else.
    """
    try:
        begin, end = (float(part) for part in ("0:1" if text is None else text).split(":"))
    except ValueError:
        raise UsageError(
            "--guidance-interval must be BEGIN:END, two numbers from 0 to 1, for example 0.2:0.8, "
            f"got {shown(text)}"
        ) from None
    return begin, end


def _output(output: str | None, request: Request) -> Path:
    """The file to save under, its folder made; a name of our own choice is one that is free.

    Raises:
        UsageError: no name for a PNG file.
        StorageError: the folder cannot be made or written.
    """
    from sdexport.pipeline.result import check_place, output_files

    named = None if output is None else given_path(output, "the output's path")
    if named is None or str(output).endswith(("/", os.sep)) or is_folder(named):
        folder = named or Path()
        stem, number = f"sdexport-{request.seeds[0]}", 1
        file = folder / f"{stem}.png"
        while any(exists(taken) for taken in output_files(file, request.images)):
            number += 1
            file = folder / f"{stem}-{number}.png"
    else:
        file = named
    # Now, not after minutes of generating.
    check_place(output_files(file, request.images), request)
    return file


def _saved(result: Result, file: Path, *, keep: bool) -> list[Path]:
    """The files of the images.

    Where one cannot be written in the end, all go to a new folder for temporary files as well.

    Args:
        keep: a file that exists by now is not replaced.

    Raises:
        StorageError: one could not be written; says where the images are.
    """
    import tempfile

    from sdexport.pipeline.result import output_files

    files = output_files(file, len(result.images))
    taken = [one for one in files if keep and exists(one)]
    failed: dict[Path, object] = dict.fromkeys(taken, "it was made meanwhile")
    if not taken:
        failed |= result.save_as(files)
    if not failed:
        return files
    said = "; ".join(f"{one} was not saved: {reason}" for one, reason in failed.items())
    try:
        other = Path(tempfile.mkdtemp(prefix="sdexport-"))
    except OSError as error:
        raise StorageError(f"{said}; nor can temporary files be written: {error}") from error
    aside = [other / one.name for one in files]
    lost = result.save_as(aside)
    if lost:
        raise StorageError(f"{said}; nor can {other} be written: {next(iter(lost.values()))}")
    raise StorageError(f"{said}; all images are in {other}")


def _print_document(result: Result, files: Sequence[Path]) -> None:
    parameters = dict(result.parameters)
    own = {"prompt": "prompts", "negative_prompt": "negative_prompts", "seed": "seeds"}
    own |= {"image": "images", "mask": "masks"} if "images" in parameters else {}
    columns = [parameters.pop(many) for many in own.values()]
    terminal.print_json(
        {
            "images": [
                {"file": file} | dict(zip(own, values, strict=True))
                for file, *values in zip(files, *columns, strict=True)
            ],
            "parameters": parameters,
            "seconds": result.timings.as_json(),
            "warnings": list(result.warnings),
        }
    )


def _print_result(result: Result, files: Sequence[Path]) -> None:
    for warning in result.warnings:
        terminal.say(f"warning: {warning}")
    for file, seed in zip(files, result.seeds, strict=True):
        print(f"{file}  seed {seed}")
    timings, parameters = result.timings, result.parameters
    each = timings.denoise / max(1, len(timings.evaluations))
    terminal.print_facts(
        [
            ("size", f"{parameters['width']}x{parameters['height']}"),
            ("sampler", f"{parameters['sampler']}, {terminal.plural(parameters['steps'], 'step')}"),
            ("text encoder", terminal.seconds(timings.text_encoder)),
            (
                "denoising",
                f"{terminal.seconds(timings.denoise)} "
                f"({terminal.plural(len(timings.evaluations), 'evaluation')} of "
                f"{terminal.seconds(each)})",
            ),
            ("VAE decoder", terminal.seconds(timings.vae_decoder)),
            ("load engines", terminal.seconds(timings.rest)),
            ("total", terminal.seconds(timings.total)),
        ]
    )
