"""`sdexport generate`."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sdexport.cli import main
from sdexport.cli.bars import Signs
from sdexport.cli.generate import StepCounter
from sdexport.sampling import samplers
from tests.cli.doubles import PipelineDouble, Ran

Run = Callable[..., Ran]


def test_a_image_is_generated_saved_and_told_of(
    run: Run, bundle: Path, generation: PipelineDouble, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "folder" / "apple.png"
    ended = run(
        "generate", bundle, "a red apple", "-n", "blurry", "--steps", 4, "--guidance", 3,
        "--sampler", "Euler a", "--seed", 0, "--size", "128x64", "-o", file, "--threads", 2,
    )  # fmt: skip
    assert ended.code == 0
    assert f"{file}  seed 0" in ended.out
    assert "4 evaluations" in ended.out
    assert "a library prints something" not in ended.out
    request = generation.requests[0]
    assert request.prompts == ("a red apple",)
    assert request.negative_prompts == ("blurry",)
    assert (request.width, request.height) == (128, 64)
    assert (request.num_inference_steps, request.guidance_scale, request.sampler) == (
        4,
        3.0,
        "euler-a",
    )
    assert request.seeds == (0,)
    assert generation.loads == [(bundle, 2)]
    with Image.open(file) as image:
        assert image.size == (128, 64)
        assert json.loads(image.text["sdexport"])["seed"] == 0  # type: ignore[attr-defined]


def test_what_is_not_said_is_the_bundles(
    run: Run, bundle: Path, generation: PipelineDouble
) -> None:
    assert run("generate", bundle, "x", "-o", bundle.parent / "x.png").code == 0
    request = generation.requests[0]
    assert (request.num_inference_steps, request.guidance_scale, request.sampler) == (
        50,
        2.5,
        "pndm",
    )
    assert (request.width, request.height) == (64, 64)


def test_guidance_0_is_a_value(run: Run, bundle: Path, generation: PipelineDouble) -> None:
    assert run("generate", bundle, "x", "--guidance", 0, "-o", bundle.parent / "x.png").code == 0
    assert generation.requests[0].guidance_scale == 0


def test_json_is_one_document(
    run: Run, bundle: Path, generation: PipelineDouble, tmp_path: Path
) -> None:
    generation.warnings = ("the prompt is too long",)
    ended = run(
        "generate", bundle, "x", "ü", "--seed", 5, "--steps", 3, "--count", 2, "--json",
        "-o", tmp_path / "x.png",
    )  # fmt: skip
    assert ended.code == 0
    document = ended.document
    assert [(i["prompt"], i["seed"]) for i in document["images"]] == [
        ("x", 5), ("x", 6), ("ü", 7), ("ü", 8),
    ]  # fmt: skip
    assert [Path(i["file"]).name for i in document["images"]] == [f"x-00{k}.png" for k in range(4)]
    assert all(Path(image["file"]).is_file() for image in document["images"])
    assert document["parameters"]["steps"] == 3
    assert document["seconds"]["total"] == 1.0
    assert document["warnings"] == ["the prompt is too long"]


def test_warnings_go_to_stderr(run: Run, bundle: Path, generation: PipelineDouble) -> None:
    generation.warnings = ("the prompt is too long",)
    ended = run("generate", bundle, "x", "-o", bundle.parent / "x.png")
    assert "warning: the prompt is too long\n" in ended.err


def test_the_name_is_the_seed_and_nothing_is_overwritten(
    run: Run,
    bundle: Path,
    generation: PipelineDouble,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert run("generate", bundle, "x", "--seed", 7).code == 0
    assert run("generate", bundle, "x", "--seed", 7, "--count", 2).code == 0
    assert sorted(file.name for file in tmp_path.glob("*.png")) == [
        "sdexport-7-000.png", "sdexport-7-001.png", "sdexport-7-2.png", "sdexport-7-3.png",
        "sdexport-7.png",
    ]  # fmt: skip


def test_a_named_file_is_overwritten(
    run: Run, bundle: Path, generation: PipelineDouble, tmp_path: Path
) -> None:
    for size in ("64x64", "128x128"):
        assert run("generate", bundle, "x", "-o", tmp_path / "x", "--size", size).code == 0
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (128, 128)


def test_a_folder_is_filled(
    run: Run, bundle: Path, generation: PipelineDouble, tmp_path: Path
) -> None:
    assert run("generate", bundle, "x", "--seed", 1, "-o", f"{tmp_path}/new/").code == 0
    assert run("generate", bundle, "x", "--seed", 1, "-o", tmp_path / "new").code == 0
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        "sdexport-1-2.png", "sdexport-1.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        ["--size", "60x64"],
        ["--size", "640x64"],
        ["--size", "big"],
        ["--steps", 0],
        ["--steps", 2000],
        ["--count", 0],
        ["--seed", -1],
        ["--guidance", "nan"],
        ["--sampler", "nonsense"],
        ["--threads", 0],
        ["-n", "a", "-n", "b", "-n", "c"],
        ["-o", "image.jpg"],
    ],
)
def test_a_request_is_refused_before_engines_are_loaded(
    run: Run, bundle: Path, generation: PipelineDouble, options: list[object]
) -> None:
    ended = run("generate", bundle, "x", *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err
    assert generation.loads == []


def test_a_file_is_no_folder(
    run: Run, bundle: Path, generation: PipelineDouble, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    ended = run("generate", bundle, "x", "-o", tmp_path / "file" / "x.png")
    assert ended.code == 2
    assert str(tmp_path / "file") in ended.err
    assert generation.loads == []


def test_no_bundle(run: Run, generation: PipelineDouble, tmp_path: Path) -> None:
    ended = run("generate", tmp_path / "nothing", "x")
    assert ended.code == 2
    assert "sdexport compile" in ended.err


def test_steps_are_counted_and_not_evaluations() -> None:
    """Over every sampler: they begin at 0, end at all, and are never ahead of the evaluations."""
    for sampler in samplers():
        for steps, batches in ((1, 1), (2, 3), (7, 2), (50, 1)):
            each = sampler.evaluations(steps)
            plan = SimpleNamespace(steps=steps, skipped=0, evaluations=each)
            counter = StepCounter.of(plan, each * batches)  # type: ignore[arg-type]
            assert counter.total == steps * batches
            told = [counter.newly_done(done) for done in range(1, each * batches + 1)]
            assert sum(told) == counter.done == counter.total
            assert set(told) <= {0, 1}
            assert sum(told[: each - 1]) < steps


def test_steps_that_an_image_leaves_out_are_not_counted() -> None:
    plan = SimpleNamespace(steps=50, skipped=20, evaluations=30)
    counter = StepCounter.of(plan, 60)  # type: ignore[arg-type]
    assert (counter.steps, counter.total) == (30, 60)


def test_progress_is_in_steps(
    run: Run, bundle: Path, generation: PipelineDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int | None, str, int, str]] = []

    class Heard(Signs):
        def advance(self, units: int = 1, note: str = "") -> None:
            super().advance(units, note)
            one = self.stages[-1]
            seen.append((one.total, one.unit, one.done, one.note))

    monkeypatch.setattr("sdexport.cli.bars.Signs", Heard)
    options = ("--sampler", "heun", "--steps", 3, "--count", 3, "-o", bundle.parent / "x.png")
    ended = run("generate", bundle, "x", *options)
    assert ended.code == 0
    assert "(10 evaluations of" in ended.out
    assert seen == [
        (6, "step", 0, "encoding the prompt (batch 1 of 2)"),
        (6, "step", 0, "(batch 1 of 2)"),
        (6, "step", 1, "(batch 1 of 2)"),
        (6, "step", 1, "(batch 1 of 2)"),
        (6, "step", 2, "and decoding (batch 1 of 2)"),
        (6, "step", 3, "encoding the prompt (batch 2 of 2)"),
        (6, "step", 3, "(batch 2 of 2)"),
        (6, "step", 4, "(batch 2 of 2)"),
        (6, "step", 4, "(batch 2 of 2)"),
        (6, "step", 5, "and decoding (batch 2 of 2)"),
        (6, "step", 6, "(batch 2 of 2)"),
    ]


def test_one_of_a_thing_is_singular(run: Run, bundle: Path, generation: PipelineDouble) -> None:
    options = ("--sampler", "euler", "--steps", 1, "-o", bundle.parent / "x.png")
    out = run("generate", bundle, "x", *options).out
    assert "euler, 1 step\n" in out
    assert "(1 evaluation of" in out


def test_stdout_gets_the_image_and_nothing_else(
    bundle: Path, generation: PipelineDouble, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    generation.warnings = ("the prompt is too long",)
    assert main(["generate", str(bundle), "x", "--seed", "3", "-o", "-"]) == 0
    said = capfdbinary.readouterr()
    with Image.open(io.BytesIO(said.out)) as image:
        assert image.size == (64, 64)
        assert json.loads(image.text["sdexport"])["seed"] == 3  # type: ignore[attr-defined]
    assert said.out.endswith(b"IEND\xaeB`\x82")
    assert b"warning: the prompt is too long\n" in said.err
    assert said.err.endswith(b"seed 3\n")
    assert b"a library prints something" in said.err


def test_native_code_cannot_write_into_the_image() -> None:
    code = (
        "import os\n"
        "from sdexport.cli import terminal\n"
        "with terminal.binary_stdout() as stdout:\n"
        "    os.write(1, b'a native library')\n"
        "    stdout.write(b'image')\n"
        "os.write(1, b' and later')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=120, check=True
    )
    assert (done.stdout, done.stderr) == (b"image and later", b"a native library")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--count", 2], "exactly one image, got a request for 2"),
        (["--json"], "leave out --json"),
        (["--open"], "leave out --open"),
    ],
)
def test_stdout_takes_one_image_alone(
    run: Run, bundle: Path, generation: PipelineDouble, options: list[object], said: str
) -> None:
    ended = run("generate", bundle, "x", "-o", "-", *options)
    assert ended.code == 2
    assert said in ended.err
    assert generation.loads == []


def test_a_terminal_gets_no_bytes(
    run: Run, bundle: Path, generation: PipelineDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdexport.cli.terminal.is_watched", lambda stream: True)
    ended = run("generate", bundle, "x", "-o", "-")
    assert (ended.code, ended.out) == (2, "")
    assert "stdout, which is a terminal; redirect it" in ended.err
    assert generation.loads == []


def test_no_clobber_refuses_before_the_first_step(
    run: Run, bundle: Path, generation: PipelineDouble, tmp_path: Path
) -> None:
    (tmp_path / "x-001.png").write_text("mine")
    options = ("--count", 2, "-o", tmp_path / "x.png", "--no-clobber")
    ended = run("generate", bundle, "x", *options)
    assert ended.code == 2
    assert f"{tmp_path / 'x-001.png'} exists" in ended.err
    assert (generation.loads, generation.requests) == ([], [])
    (tmp_path / "x-001.png").unlink()
    assert run("generate", bundle, "x", *options).code == 0
    again = run("generate", bundle, "x", *options)
    assert "x-000.png and 1 more exists" in again.err


def test_no_clobber_keeps_a_file_that_came_meanwhile(
    run: Run,
    bundle: Path,
    generation: PipelineDouble,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, elsewhere = tmp_path / "x.png", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    steps = generation.steps

    def meanwhile(request: Any) -> Any:
        file.write_text("another's")
        return steps(request)

    monkeypatch.setattr(generation, "steps", meanwhile)
    ended = run("generate", bundle, "x", "-o", file, "--no-clobber")
    assert ended.code == 2
    assert "was not saved: it was made meanwhile" in ended.err
    assert file.read_text() == "another's"
    assert [one.name for one in elsewhere.rglob("*.png")] == ["x.png"]


def test_an_image_is_opened_where_somebody_can_see_it(
    run: Run,
    bundle: Path,
    generation: PipelineDouble,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr("sdexport.cli.generate.open_image", lambda file: opened.append(file) or "")
    options = ("--count", 2, "-o", tmp_path / "x.png")
    assert run("generate", bundle, "x", *options).code == 0
    assert opened == []
    assert run("generate", bundle, "x", *options, "--open").code == 0
    assert opened == [tmp_path / "x-000.png"]


def test_where_nobody_can_see_it_the_reason_is_said(
    run: Run, bundle: Path, generation: PipelineDouble, tmp_path: Path
) -> None:
    ended = run("generate", bundle, "x", "-o", tmp_path / "x.png", "--open")
    assert ended.code == 0
    assert ended.err.splitlines()[-1].startswith("not opened: ")


def test_images_whose_place_is_lost_go_elsewhere(
    run: Run,
    bundle: Path,
    generation: PipelineDouble,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sdexport.errors import StorageError
    from sdexport.pipeline import result

    write, elsewhere = result._write, tmp_path / "elsewhere"
    elsewhere.mkdir()

    def full(path: Path, content: bytes) -> None:
        if path == tmp_path / "a-001.png":
            raise StorageError("the disk is full")
        write(path, content)

    monkeypatch.setattr(result, "_write", full)
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    failed = run("generate", bundle, "a", "--count", 2, "-o", tmp_path / "a.png", "--steps", 1)
    assert failed.code == 2
    assert "a-001.png was not saved: the disk is full; all images are in" in failed.err
    assert (tmp_path / "a-000.png").is_file()
    assert sorted(file.name for file in elsewhere.rglob("*.png")) == ["a-000.png", "a-001.png"]


def closed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Nothing can be made in `folder`, as for root no mode has it."""
    opened = Path.open

    def refusing(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.parent == folder and mode != "r":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refusing)


WRONG_PLACES = (
    *("folder", "link", "read-only", "fifo", "full"),
    *("file size", "quota", "linked folder", "long path"),
)


@pytest.mark.parametrize("wrong", WRONG_PLACES)
def test_what_cannot_be_saved_is_seen_before_anything_is_generated(
    run: Run,
    bundle: Path,
    generation: PipelineDouble,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    output, file = tmp_path / "a.png", tmp_path / "a-001.png"
    if wrong == "folder":
        file.mkdir()
    if wrong == "link":
        file.symlink_to(tmp_path / "nothing")
    if wrong == "read-only":
        file.touch(0o444)
    if wrong == "fifo":
        os.mkfifo(file)
    if wrong == "full":
        monkeypatch.setattr("sdexport.pipeline.result.free_bytes", lambda _: 1000)
    if wrong == "quota":

        def refuse(*_: object) -> None:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    if wrong == "linked folder":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "b.png").touch()
        file.symlink_to(tmp_path / "elsewhere" / "b.png")
        closed(monkeypatch, tmp_path / "elsewhere")
    if wrong == "long path":
        # The path is allowed, and that under which it is written aside is not.
        folder = tmp_path
        while len(bytes(folder)) < 3750:
            folder /= "d" * 190
        folder /= "e" * (3970 - len(bytes(folder)))
        output = folder / f"{'f' * 110}.png"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if wrong == "file size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        failed = run("generate", bundle, "a", "--count", 2, "-o", output, "--steps", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failed.code == 2
    assert generation.requests == []
    assert not list(tmp_path.rglob("*.part"))
    assert "Traceback" not in failed.err
