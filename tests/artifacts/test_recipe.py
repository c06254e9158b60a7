"""Recipes: what a file may say, and how it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport.artifacts.builder_options import parse_capabilities
from sdexport.artifacts.recipe import RecipeDocument, load_recipe, parse_range
from sdexport.errors import UsageError
from sdexport.model.shapes import COMPONENTS, Precision, Range

ROOT = Path(__file__).parent.parent.parent

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
        ("", "checkpoint is missing"),
        (
            'checkpoint = "c"\nprecison = "fp32"',
            "precison is not known; known are: checkpoint, bundle",
        ),
        (
            'checkpoint = "c"\n[profile]\ndepth = 3',
            "profile.depth is not known; known are: batch, height, width",
        ),
        (
            "checkpoint = 3",
            "checkpoint must be text that is not empty, got 3",
        ),
        ('checkpoint = ""', "checkpoint must be text that is not empty, got ''"),
        ('checkpoint = "c"\nprecision = "fp8"', "fp32, fp16, bf16"),
        (
            'checkpoint = "c"\nprecision = 16',
            "precision: unknown precision 16; choose one of: fp32, fp16, bf16",
        ),
        ('checkpoint = "c"\nguidance = "much"', "guidance must be a number, got 'much'"),
        ('checkpoint = "c"\nguidance = true', "guidance must be a number, got True"),
        ('checkpoint = "c"\ntarget = []', "target must be text that is not empty, got []"),
        ('checkpoint = "c"\ncomponents = "unet"', "components must be a list, got 'unet'"),
        (
            'checkpoint = "c"\ncomponents = ["controlnet"]',
            "components[0] must be one of text_encoder, unet, vae_decoder, vae_enc",
        ),
        ('checkpoint = "c"\ncomponents = ["unet"]', "lacks text_encoder, vae_decoder"),
        (
            'checkpoint = "c"\nprofile = 3',
            "profile must be a table or a list of at least 1 item, got 3",
        ),
        ('checkpoint = "c"\n[profile]\nbatch = "4:2"', "profile.batch: a range must satisfy"),
        (
            'checkpoint = "c"\n[profile]\nbatch = 1.5',
            "profile.batch: a range must be one",
        ),
        (
            'checkpoint = "c"\n[profile]\nbatch = true',
            "profile.batch: a range must be one",
        ),
        ('checkpoint = "c"\n[profile]\nbatch = [1, 2, 3, 4]', "[MIN, OPT, MAX], got"),
        ('checkpoint = "c"\n[profile]\nbatch = []', "[MIN, OPT, MAX], got"),
        ("checkpoint = c", "is not TOML"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        load_recipe(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


def test_an_unknown_key_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=", ".join(RecipeDocument.__struct_fields__)):
        load_recipe(write(tmp_path, "nonsense = 1"))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe at"):
        load_recipe(tmp_path / "nothing.toml")
    with pytest.raises(UsageError, match="is a folder, where a regular file is needed"):
        load_recipe(tmp_path)


def test_bytes_are_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not UTF-8"):
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


BASE = 'checkpoint = "c"\n'


def test_several_profiles(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(
            tmp_path,
            BASE + "[[profile]]\nheight = 512\nwidth = 512\n"
            '[[profile]]\nbatch = 1\nheight = "256:512:1024"\nwidth = "256:512:1024"\n',
        )
    )
    assert recipe.profile == {"height": Range(512, 512, 512), "width": Range(512, 512, 512)}
    (other,) = recipe.others
    assert other["width"] == Range(256, 512, 1024)


def test_the_builder(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(
            tmp_path,
            BASE + '[builder]\ncompute_capabilities = ["8.9", "SM_86", 86]\n'
            'workspace = "1.5 GiB"\noptimization_level = 5\nrefittable = true\n'
            'timing_cache = "cache/timing"\nhardware_compatibility = "ampere_plus"\n',
        )
    )
    builder = recipe.builder
    assert builder.compute_capabilities == ("sm86", "sm89")
    assert builder.workspace == 3 << 29
    assert builder.timing_cache == tmp_path / "cache" / "timing"
    assert (builder.optimization_level, builder.refittable) == (5, True)
    assert builder.given() == (
        "compute_capabilities",
        "optimization_level",
        "workspace",
        "hardware_compatibility",
        "refittable",
        "timing_cache",
    )
    assert builder.as_json()["timing_cache"] is True


def test_without_a_builder_nothing_is_given(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, BASE))
    assert (recipe.builder.given(), recipe.builder.as_json()) == ((), {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("builder = 3", "builder must be a table, got 3"),
        (
            "[builder]\nspeed = 1",
            "builder.speed is not known; known are: compute_capabilities, opt",
        ),
        (
            "[builder]\noptimization_level = 6",
            "builder.optimization_level must be a whole number from 0 to 5, got 6",
        ),
        (
            "[builder]\noptimization_level = true",
            "builder.optimization_level must be a whole number from 0 to 5, got True",
        ),
        ('[builder]\nworkspace = "lots"', "builder.workspace: workspace must be a number of bytes"),
        ('[builder]\nworkspace = "4 KiB"', "workspace 4096 is under 1 MiB"),
        ("[builder]\nworkspace = 1000", "under 1 MiB"),
        ("[builder]\nrefittable = 1", "builder.refittable must be true or false, got 1"),
        (
            '[builder]\nhardware_compatibility = "all"',
            "builder.hardware_compatibility must be one of ampere_plus, none, same",
        ),
        (
            "[builder]\ntiming_cache = true",
            "builder.timing_cache must be text that is not empty, got True",
        ),
        (
            '[builder]\ncompute_capabilities = ["ada"]',
            "builder.compute_capabilities: a compute capability must be written as sm89",
        ),
        (
            "[builder]\ncompute_capabilities = []",
            "builder.compute_capabilities must be a list such as",
        ),
        ("[[profile]]\nwidth = 8\n[[profile]]\nwidth = 8\nheight = 8", "number 1 lacks height"),
        ("profile = []", "profile must be a table or a list of at least 1 item, got []"),
    ],
)
def test_what_a_builder_refuses(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, BASE + text)
    with pytest.raises(UsageError) as raised:
        load_recipe(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("path", sorted((ROOT / "engines").glob("*.toml")), ids=lambda p: p.stem)
def test_the_recipes_that_come_along(path: Path) -> None:
    """Every one loads, and its target takes its options."""
    from sdexport.backends.targets import AUTO, find_target

    recipe = load_recipe(path)
    if recipe.target == AUTO:
        assert recipe.builder.given() == ()
        return
    target = find_target(recipe.target)
    recipe.builder.refuse_others(target.name, target.options)
    assert recipe.precision in target.precisions


@given(st.integers(1, 12), st.integers(0, 9))
def test_capabilities_are_written_in_many_ways(major: int, minor: int) -> None:
    expected = (f"sm{major}{minor}",)
    for text in (
        f"sm{major}{minor}",
        f"SM_{major}{minor}",
        f"{major}.{minor}",
        f" sm{major}{minor}",
    ):
        assert parse_capabilities([text]) == expected
