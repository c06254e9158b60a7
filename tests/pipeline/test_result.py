"""Images are saved whole, with what is needed to generate them again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport.errors import StorageError, UsageError
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.result import Result


def saved(result: Result, path: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    files = result.save(path)
    texts = []
    for file in files:
        with Image.open(file) as image:
            image.load()
            texts.append(dict(image.text))  # type: ignore[attr-defined]  # PNG's own attribute
    return files, texts


def test_round_trip(pipe: Pipeline, tmp_path: Path) -> None:
    result = pipe.generate(
        "red apple",
        negative_prompt="cat",
        num_inference_steps=2,
        guidance_scale=3.5,
        sampler="euler-a",
        seed=11,
    )
    (file,), (texts,) = saved(result, tmp_path / "image.png")
    assert file == tmp_path / "image.png"
    with Image.open(file) as image:
        assert (np.asarray(image) == np.asarray(result.images[0])).all()
    assert texts["parameters"] == (
        "red apple\n"
        "Negative prompt: cat\n"
        "Steps: 2, Sampler: Euler a, CFG scale: 3.5, Seed: 11, Size: 32x32, Model: fake, "
        "RNG: CPU, Version: sdexport 0.0"
    )
    own = json.loads(texts["sdexport"])
    assert own["about"] == {"model": "fake", "precision": "bf16", "sdexport": "0.0"}
    assert own["evaluations"] == 2
    again = pipe.generate(
        own["prompt"],
        negative_prompt=own["negative_prompt"],
        num_inference_steps=own["steps"],
        guidance_scale=own["guidance"],
        sampler=own["sampler"],
        seed=own["seed"],
        width=own["width"],
        height=own["height"],
    )
    assert again.images[0].tobytes() == result.images[0].tobytes()


def test_several_images_are_numbered(pipe: Pipeline, tmp_path: Path) -> None:
    result = pipe.generate(["apple", "cat"], num_inference_steps=1, seed=[9, 4], guidance_scale=7)
    files, texts = saved(result, tmp_path / "new" / "folder" / "p.png")
    assert [file.name for file in files] == ["p-000.png", "p-001.png"]
    assert [json.loads(text["sdexport"])["seed"] for text in texts] == [9, 4]
    assert texts[1]["parameters"].startswith("cat\nSteps: 1, Sampler: PLMS, CFG scale: 7, Seed: 4")
    assert sorted(p.name for p in files[0].parent.iterdir()) == ["p-000.png", "p-001.png"]


@pytest.mark.parametrize(
    "prompt", ["", "é 漢字 😀", "two\nlines", "NUL \0 inside", 'a, "b": c', "x" * 200_000]
)
def test_any_prompt_comes_back(pipe: Pipeline, tmp_path: Path, prompt: str) -> None:
    _, (texts,) = saved(pipe.generate(prompt, num_inference_steps=1), tmp_path / "p.png")
    assert json.loads(texts["sdexport"])["prompt"] == prompt
    assert texts["parameters"].startswith(prompt + "\nSteps: 1")


def test_a_name_with_separators_is_quoted(pipe: Pipeline) -> None:
    result = pipe.generate("apple", num_inference_steps=1)
    parameters = dict(result.parameters) | {"about": {"model": "a, b: c"}}
    changed = Result(result.images, result.seeds, parameters, result.timings)
    assert 'Model: "a, b: c"' in changed.metadata(0)["parameters"]


def test_the_suffix(pipe: Pipeline, tmp_path: Path) -> None:
    result = pipe.generate("apple", num_inference_steps=1)
    assert result.save(tmp_path / "bare") == [tmp_path / "bare.png"]
    assert result.save(str(tmp_path / "loud.PNG")) == [tmp_path / "loud.PNG"]
    with pytest.raises(UsageError, match=r"'.jpg'; images are saved as PNG"):
        result.save(tmp_path / "p.jpg")
    with pytest.raises(UsageError, match="is a folder"):
        result.save(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = pipe.generate("apple", num_inference_steps=1)
    file = tmp_path / "p.png"
    file.write_bytes(b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            result.save(file)
    assert file.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
    result.save(file)
    assert file.read_bytes()[:4] == b"\x89PNG"


def test_a_name_as_long_as_the_system_allows(pipe: Pipeline, tmp_path: Path) -> None:
    result = pipe.generate("apple", num_inference_steps=1)
    (file,) = result.save(tmp_path / ("n" * 251 + ".png"))
    assert file.is_file()
    with pytest.raises(UsageError, match="is too long: a name may have 255 bytes, got 256"):
        result.save(tmp_path / ("n" * 252 + ".png"))


def test_a_file_in_the_way(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        pipe.generate("apple", num_inference_steps=1).save(tmp_path / "file" / "p.png")


def test_how_it_was_generated_is_kept(pipe: Pipeline, tmp_path: Path) -> None:
    """The options of prompts, guidance and images generate the same image again."""
    image = Image.new("RGB", (32, 32), "orange")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 0, 32, 16))
    result = pipe.generate(
        ["(apple:1.2)", "cat"],
        num_inference_steps=5,
        guidance_scale=6,
        sampler="ddim",
        seed=2,
        image=image,
        mask_image=[mask, Image.new("L", (32, 32), "white")],
        strength=0.6,
        guidance_rescale=0.3,
        guidance_interval=(0.0, 0.5),
        prompt_syntax="weights",
        clip_skip=1,
    )
    _, texts = saved(result, tmp_path / "p.png")
    owns = [json.loads(text["sdexport"]) for text in texts]
    assert owns[0]["image"] == owns[1]["image"]
    assert owns[0]["mask"] != owns[1]["mask"]
    assert "Denoising strength: 0.6, Clip skip: 2" in texts[0]["parameters"]
    own = owns[0]
    names = ("guidance_rescale", "guidance_interval", "prompt_syntax", "clip_skip", "strength")
    again = pipe.generate(
        own["prompt"],
        num_inference_steps=own["steps"],
        guidance_scale=own["guidance"],
        sampler=own["sampler"],
        seed=own["seed"],
        image=image,
        mask_image=mask,
        fit=own["fit"],
        **{name: own[name] for name in names},
    )
    assert again.images[0].tobytes() == result.images[0].tobytes()
    for name, other in (
        ("guidance_rescale", 0.9),
        ("guidance_interval", (0.0, 1.0)),
        ("strength", 0.9),
    ):
        changed = {key: own[key] for key in names} | {name: other}
        differs = pipe.generate(
            own["prompt"],
            num_inference_steps=own["steps"],
            guidance_scale=own["guidance"],
            sampler=own["sampler"],
            seed=own["seed"],
            image=image,
            mask_image=mask,
            **changed,
        )
        assert differs.images[0].tobytes() != result.images[0].tobytes(), name


@pytest.mark.parametrize(
    ("syntax", "told"),
    [
        ("plain", r"a \(red\) \[cat\] \\"),
        ("long", r"a \(red\) \[cat\] \\"),
        ("weights", "a (red) [cat] \\"),
    ],
)
def test_web_uis_read_the_same_prompt(pipe: Pipeline, syntax: str, told: str) -> None:
    from sdexport.pipeline.prompts import parse

    text = "a (red) [cat] \\"
    result = pipe.generate(text, num_inference_steps=1, prompt_syntax=syntax)
    first = result.metadata(0)["parameters"].splitlines()[0]
    assert first == told
    if syntax != "weights":
        assert [(one.text, one.weight) for one in parse(first)] == [(text, 1)]
    assert json.loads(result.metadata(0)["sdexport"])["prompt"] == text
