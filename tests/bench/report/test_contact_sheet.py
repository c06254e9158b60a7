"""The contact sheet shows each system's own images, in order, and what is different in them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport.bench.report import contact_sheet
from sdexport.bench.report.contact_sheet import AMPLIFIED, HEAD, LABEL, LINE, MOST_ROWS
from tests.bench import synthetic
from tests.bench.documents import typed

CELL = 2 * synthetic.SIDE  # 64 pixels are shown twice as large
STEP = 128 + 16
ROW = 2 * CELL + LINE + 16


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    made = synthetic.results()
    synthetic.write_images(made, tmp_path)
    return made


def cell(sheet: Image.Image, row: int, column: int, below: bool = False) -> np.ndarray[Any, Any]:
    left, top = LABEL + column * STEP, HEAD + row * ROW + (CELL + LINE) * below
    return np.asarray(sheet.crop((left, top, left + CELL, top + CELL)))[::2, ::2]


def generated(found: dict[str, Any], folder: Path) -> Image.Image:
    sheet = contact_sheet.compose(typed(found), folder)
    assert sheet is not None
    return sheet


def test_images_and_differences_are_where_they_belong(
    found: dict[str, Any], tmp_path: Path
) -> None:
    path = contact_sheet.write(typed(found), tmp_path)
    assert path == tmp_path / "contact_sheet.png"
    with Image.open(path) as opened:
        sheet = opened.convert("RGB")
    columns = ["diffusers", "emoji-bf16", "emoji-fp32", "openvino-genai-bf16", "diffusers-compile"]
    for row in range(3):
        reference = synthetic.image(row)
        np.testing.assert_array_equal(cell(sheet, row, 0), reference)
        for column, name in enumerate(columns[1:], 1):
            with Image.open(tmp_path / "images" / name / f"{row}.png") as image:
                own = np.asarray(image)
            np.testing.assert_array_equal(cell(sheet, row, column), own)
            apart = np.abs(own.astype(int) - reference) * AMPLIFIED
            np.testing.assert_array_equal(cell(sheet, row, column, below=True), apart.clip(0, 255))


def test_the_baseline_is_first_wherever_it_stands(found: dict[str, Any], tmp_path: Path) -> None:
    found["systems"].reverse()
    np.testing.assert_array_equal(cell(generated(found, tmp_path), 0, 0), synthetic.image(0))


def test_systems_without_images_have_no_column(found: dict[str, Any], tmp_path: Path) -> None:
    before = generated(found, tmp_path).width
    (tmp_path / "images" / "emoji-bf16" / "1.png").unlink()
    assert generated(found, tmp_path).width == before - STEP


def test_without_the_baselines_images_there_is_no_sheet(
    found: dict[str, Any], tmp_path: Path
) -> None:
    path = contact_sheet.write(typed(found), tmp_path)
    assert path is not None
    (tmp_path / "images" / "diffusers" / "0.png").unlink()
    assert contact_sheet.write(typed(found), tmp_path) is None
    assert not path.exists(), "an earlier run's sheet would be taken for this one's"


def test_images_of_another_size_have_no_difference(found: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "images" / "emoji-bf16" / "0.png"
    Image.new("RGB", (32, 64), "red").save(file)
    sheet = generated(found, tmp_path)
    assert (cell(sheet, 0, 1)[2:-2, 2:-2] == (255, 0, 0)).all()
    assert (cell(sheet, 0, 1, below=True)[8:] == 255).all()


def test_large_images_are_shown_smaller_and_many_rows_are_cut(tmp_path: Path) -> None:
    found = synthetic.results()
    count = MOST_ROWS + 5
    found["scenario"] |= {"prompts": ["words " * 60] * count, "seeds": list(range(count))}
    folder = tmp_path / "images" / "diffusers"
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (512, 384), (index, 0, 0)).save(folder / f"{index}.png")
    sheet = generated(found, tmp_path)
    assert sheet.width < 400
    assert sheet.height < HEAD + MOST_ROWS * (2 * 144 + 60)


@pytest.mark.parametrize("name", ["../images/diffusers", "/etc", "..", "", "a\\b", "a\0b"])
def test_names_that_lead_elsewhere_are_not_followed(
    found: dict[str, Any], tmp_path: Path, name: str
) -> None:
    assert contact_sheet.image_files(tmp_path, name, 3) == []


@pytest.mark.parametrize("text", ["<b>", "\x00\x1b[31m", "日本語 🍎", "\u202e", "w" * 400, "", " "])
def test_any_prompt_and_title_can_be_written(
    found: dict[str, Any], tmp_path: Path, text: str
) -> None:
    found["scenario"]["prompts"][0] = text
    found["systems"][1]["title"] = text
    assert generated(found, tmp_path).size == generated(synthetic.results(), tmp_path).size


def test_images_of_a_report_of_schema_1_are_found(found: dict[str, Any], tmp_path: Path) -> None:
    sheet = generated(found, tmp_path)
    (tmp_path / "images").rename(tmp_path / "pictures")
    assert generated(found, tmp_path).tobytes() == sheet.tobytes()


def test_a_report_kept_without_images_keeps_its_sheet(
    found: dict[str, Any], tmp_path: Path
) -> None:
    path = contact_sheet.write(typed(found), tmp_path)
    assert path is not None
    shutil.rmtree(tmp_path / "images")
    assert contact_sheet.write(typed(found), tmp_path) is None
    assert path.exists()
