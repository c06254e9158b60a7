"""`sdexport generate` and `sdexport samplers`."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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
    assert (request.steps, request.guidance, request.sampler) == (4, 3.0, "euler-a")
    assert request.seeds == (0,)
    assert generation.loaded == [(bundle, 2)]
    with Image.open(file) as image:
        assert image.size == (128, 64)
        assert json.loads(image.text["sdexport"])["seed"] == 0  # type: ignore[attr-defined]


def test_what_is_not_said_is_the_bundles(
    run: Run, bundle: Path, generation: PipelineDouble
) -> None:
    assert run("generate", bundle, "x", "-o", bundle.parent / "x.png").code == 0
    request = generation.requests[0]
    assert (request.steps, request.guidance, request.sampler) == (50, 2.5, "pndm")
    assert (request.width, request.height) == (64, 64)


def test_guidance_0_is_a_value(run: Run, bundle: Path, generation: PipelineDouble) -> None:
    assert run("generate", bundle, "x", "--guidance", 0, "-o", bundle.parent / "x.png").code == 0
    assert generation.requests[0].guidance == 0


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
    assert generation.loaded == []


def test_a_file_is_no_folder(
    run: Run, bundle: Path, generation: PipelineDouble, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    ended = run("generate", bundle, "x", "-o", tmp_path / "file" / "x.png")
    assert ended.code == 2
    assert str(tmp_path / "file") in ended.err
    assert generation.loaded == []


def test_no_bundle(run: Run, generation: PipelineDouble, tmp_path: Path) -> None:
    ended = run("generate", tmp_path / "nothing", "x")
    assert ended.code == 2
    assert "sdexport compile" in ended.err


def test_samplers_lists_all(run: Run) -> None:
    text = run("samplers", "--steps", 20).out
    document = run("samplers", "--steps", 20, "--json").document
    assert [one["name"] for one in document] == [sampler.name for sampler in samplers()]
    pndm = next(one for one in document if one["name"] == "pndm")
    assert (pndm["steps"], pndm["evaluations"], pndm["order"]) == (20, 21, 4)
    for one in document:
        assert set(one) == {
            "name", "title", "aliases", "diffusers", "spacings", "order", "steps", "evaluations",
            "draws_noise", "family", "origin",
        }  # fmt: skip
        line = next(line for line in text.splitlines() if line.startswith(f"{one['name']} "))
        assert (one["diffusers"] or "-").removesuffix("Scheduler") in line
        assert f" {one['evaluations']} " in line


def test_evaluations_are_for_steps_that_can_be(run: Run) -> None:
    failed = run("samplers", "--steps", 0)
    assert failed.code == 2
    assert "steps 0 is not possible" in failed.err


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
