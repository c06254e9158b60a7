"""Recipes: what a file may say, and how it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport.errors import UsageError
from sdexport.recipe import KEYS, load_recipe, parse_range
from sdexport.spec import COMPONENTS, Precision, Range

ROOT = Path(__file__).parent.parent

ranges = st.lists(st.integers(1, 10_000), min_size=3, max_size=3).map(
    lambda numbers: Range(*sorted(numbers))
)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_emoji_recipe() -> None:
    recipe = load_recipe(ROOT / "engines" / "emoji.toml")
    assert recipe.checkpoint == str(ROOT / "examples" / "emoji" / "checkpoint")
    assert recipe.bundle == ROOT / "engines" / "emoji"
    assert (recipe.target, recipe.precision, recipe.guidance) == ("auto", None, 2.5)
    assert recipe.components == COMPONENTS
    assert recipe.profile == {
        "batch": Range(1, 1, 8),
        "height": Range(64, 128, 256),
        "width": Range(64, 128, 256),
    }


def test_only_the_checkpoint_has_to_be_there(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, 'checkpoint = "someone/model"'))
    assert recipe.checkpoint == "someone/model"
    assert recipe.bundle == tmp_path / "recipe"
    assert (recipe.target, recipe.precision, recipe.guidance) == ("auto", None, None)
    assert recipe.profile == {}


def test_everything(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = write(
        tmp_path,
        'checkpoint = "model"\nbundle = "out/there"\ntarget = "openvino-cpu"\n'
        'precision = "bf16"\nguidance = 0\ncomponents = ["unet", "text_encoder", "vae_decoder"]\n'
        "[profile]\nbatch = 2\nheight = [64, 128]\n",
    )
    recipe = load_recipe(str(path))
    assert recipe.checkpoint == str(tmp_path / "model")
    assert recipe.bundle == tmp_path / "out" / "there"
    assert (recipe.precision, recipe.guidance) == (Precision.BF16, 0.0)
    assert recipe.components == ("text_encoder", "unet", "vae_decoder")
    assert recipe.profile == {"batch": Range(2, 2, 2), "height": Range(64, 64, 128)}


def test_paths_start_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    write(tmp_path / "recipes", 'checkpoint = "../model"')
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("recipes/recipe.toml")
    assert recipe.checkpoint == str(tmp_path / "model")
    assert recipe.bundle == Path("recipes/recipe")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'checkpoint' is missing"),
        ('checkpoint = "c"\nprecison = "fp32"', "unknown key 'precison'"),
        ('checkpoint = "c"\n[profile]\ndepth = 3', "unknown key 'profile.depth'"),
        ("checkpoint = 3", "checkpoint = 3"),
        ('checkpoint = ""', "checkpoint = ''"),
        ('checkpoint = "c"\nprecision = "fp8"', "fp32, fp16, bf16"),
        ('checkpoint = "c"\nprecision = 16', "precision = 16"),
        ('checkpoint = "c"\nguidance = "much"', "guidance = 'much'"),
        ('checkpoint = "c"\nguidance = true', "guidance = True"),
        ('checkpoint = "c"\ntarget = []', "target = []"),
        ('checkpoint = "c"\ncomponents = "unet"', "components = 'unet'"),
        ('checkpoint = "c"\ncomponents = ["controlnet"]', "components = 'controlnet'"),
        ('checkpoint = "c"\ncomponents = ["unet"]', "lacks text_encoder, vae_decoder"),
        ('checkpoint = "c"\nprofile = 3', "profile = 3"),
        ('checkpoint = "c"\n[profile]\nbatch = "4:2"', "profile.batch: a range needs"),
        ('checkpoint = "c"\n[profile]\nbatch = 1.5', "profile.batch: 1.5 is no range"),
        ('checkpoint = "c"\n[profile]\nbatch = true', "profile.batch: True is no range"),
        ('checkpoint = "c"\n[profile]\nbatch = [1, 2, 3, 4]', "is no range"),
        ('checkpoint = "c"\n[profile]\nbatch = []', "is no range"),
        ("checkpoint = c", "is no TOML"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        load_recipe(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


def test_an_unknown_key_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=", ".join(KEYS)):
        load_recipe(write(tmp_path, "nonsense = 1"))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe at"):
        load_recipe(tmp_path / "nothing.toml")
    with pytest.raises(UsageError, match="cannot read the recipe"):
        load_recipe(tmp_path)


def test_bytes_are_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no TOML"):
        load_recipe(path)


@given(ranges)
def test_a_range_reads_back(limits: Range) -> None:
    numbers = [limits.min, limits.opt, limits.max]
    assert parse_range(str(limits)) in (limits, Range(limits.min, limits.min, limits.max))
    assert parse_range(":".join(map(str, numbers))) == limits
    assert parse_range(numbers) == limits
    assert parse_range([limits.min, limits.max]) == Range(limits.min, limits.min, limits.max)
    assert parse_range(limits.opt) == Range(limits.opt, limits.opt, limits.opt)


@given(st.one_of(st.text(), st.lists(st.integers() | st.booleans()), st.floats(), st.integers()))
def test_a_range_is_a_range_or_a_users_error(value: object) -> None:
    try:
        limits = parse_range(value)
    except UsageError:
        return
    assert 1 <= limits.min <= limits.opt <= limits.max
