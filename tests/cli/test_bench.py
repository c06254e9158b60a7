"""`sdexport bench run`, `report` and `compare`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdexport.artifacts.documents import to_builtins
from sdexport.bench import results_file, systems
from sdexport.bench import run as runs
from sdexport.bench.results import Effort, Results
from sdexport.bench.scenario import Scenario
from tests.bench.documents import document, typed
from tests.cli.doubles import Ran

Run = Callable[..., Ran]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands in for the measuring; holds what was asked of it."""
    asked: list[tuple[Any, ...]] = []

    def double(
        found: list[systems.System],
        scenario: Scenario,
        effort: Effort,
        folder: Path,
        *,
        command: str,
        progress: Any,
    ) -> Results:
        asked.append((found, scenario, effort, folder))
        value = document(diffusers=1.0, emoji=0.25, noise=0.1)
        value["systems"][1]["ratio"] |= {"median": 4.0, "low": 3.95, "high": 4.05}
        value["systems"][2]["fidelity"] = {
            "verdict": "different", "why": "it is noise", "images": [], "recognised": None,
        }  # fmt: skip
        return typed(value)

    monkeypatch.setattr(runs, "run", double)
    monkeypatch.setattr(runs, "write_report", lambda found, folder: asked.append((folder,)))
    return asked


def test_a_run_is_asked_for_and_shown(
    run: Run, bundle: Path, measured: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    ended = run(
        "bench", "run", bundle, "--checkpoint", "some/checkpoint", "--against", "diffusers-bf16",
        "--prompt", "a", "--prompt", "b", "--seed", 7, "--size", "128x64", "--steps", 3,
        "--sampler", "ddim", "--guidance", 4, "--batch", 2, "--threads", 1, "--rounds", 3,
        "--seconds", 0.5, "--at-once", 2, "--timeout", 9, "--report", tmp_path / "report",
    )  # fmt: skip
    assert ended.code == 0
    (found, scenario, effort, folder), reported = measured
    assert reported == (tmp_path / "report",)
    assert [one.name for one in found] == ["diffusers", "bundle", "diffusers-bf16"]
    assert scenario == Scenario(
        "scenario", "some/checkpoint", ("a", "b"), "", (7, 8), 128, 64, 2, 3, "ddim", 4.0, 1
    )
    assert effort == Effort(3, 0.5, 2, 9)
    assert folder == tmp_path / "report"
    assert "4.00× (3.95 to 4.05)" in ended.out
    # The one that generates something else is fast, and nothing is claimed for it.
    assert "none claimed" in ended.out
    assert "10.0" not in ended.out
    assert "no speed-up is claimed for noise: generates a different image: it is noise" in ended.err


def test_a_system_that_did_not_finish_is_told_by_the_exit_code(
    run: Run, bundle: Path, measured: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    double = runs.run

    def with_a_crash(*given: Any, **named: Any) -> Results:
        value = json.loads(json.dumps(to_builtins(double(*given, **named))))
        value["systems"][2] |= {"status": "crashed", "why": "out of cheese"}
        return typed(value)

    monkeypatch.setattr(runs, "run", with_a_crash)
    ended = run("bench", bundle, "--checkpoint", "some/checkpoint")
    assert ended.code == 1
    assert "CRASHED" in ended.out
    assert "4.00×" in ended.out, "the rest is shown"
    assert "no speed-up is claimed for noise: crashed: out of cheese" in ended.err


def test_run_may_be_left_out_and_the_bundle_fills_in(
    run: Run, bundle: Path, measured: list[tuple[Any, ...]]
) -> None:
    assert run("bench", bundle, "--checkpoint", "some/checkpoint").code == 0
    ((_, scenario, effort, folder),) = measured
    assert scenario == Scenario(
        "scenario", "some/checkpoint", ("a red apple",), "", (0,), 64, 64, 1, 50, "pndm", 2.5
    )
    assert effort == Effort()
    assert not folder.exists(), "without --report nothing is kept"


def test_a_scenario_file_goes_behind_what_is_typed(
    run: Run, bundle: Path, measured: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    file = tmp_path / "two.toml"
    file.write_text('prompts = ["x", "y"]\nseeds = [3, 9]\nsteps = 7\nsize = "64x128"\n')
    assert run("bench", bundle, "--checkpoint", "a/b", "--scenario", file, "--steps", 8).code == 0
    scenario = measured[0][1]
    assert (scenario.name, scenario.prompts, scenario.seeds) == ("two", ("x", "y"), (3, 9))
    assert (scenario.steps, scenario.width, scenario.height) == (8, 64, 128)
    assert (
        run("bench", bundle, "--checkpoint", "a/b", "--scenario", file, "--prompt", "z").code == 0
    )
    assert (measured[1][1].prompts, measured[1][1].seeds) == (("z",), (0,))


def test_a_run_as_json_is_the_document(
    run: Run, bundle: Path, measured: list[tuple[Any, ...]]
) -> None:
    ended = run("bench", bundle, "--checkpoint", "a/b", "--json")
    assert ended.document["baseline"] == "diffusers"
    assert ended.err == ""


def test_a_run_that_was_cut_short_is_shown_and_ends_with_130(
    run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = document(diffusers=1.0, emoji=0.25) | {"complete": False}
    short["machine"]["load_before"] = [5.0, 5.0, 5.0]
    monkeypatch.setattr(runs, "run", lambda *_, **__: typed(short))
    ended = run("bench", bundle, "--checkpoint", "a/b")
    assert ended.code == 130
    assert "emoji" in ended.out
    assert "interrupted" in ended.err
    assert "busy before the run (load 5 on 2 cores)" in ended.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--against", "nonsense"], "known are diffusers, diffusers-channels-last"),
        (["--size", "big"], "size must be WIDTHxHEIGHT in pixels, for example 512x512, got 'big'"),
        (["--size", "129x64"], "width must be a multiple of 8, got 129"),
        (["--size", "1024x1024"], "cannot generate this scenario"),
        (["--batch", 2], "batch must be from 1 to the number of prompts, 1, got 2"),
        (
            ["--prompt", "a", "--prompt", "b", "--prompt", "c", "--batch", 3],
            "batch must be at most 2 for",
        ),
        (["--sampler", "nonsense"], "nonsense"),
        (["--steps", 0], "steps must be at least 1, got 0"),
        (["--rounds", 0], "rounds must be at least 1, got 0"),
        (["--at-once", 1], "at once must be at least 2, the baseline and one other, got 1"),
        (["--threads", 0], "threads must be at least 1, got 0"),
        (["--seed", -1], "seed must be from 0 to 4294967295, got -1"),
        (["--scenario", "none.toml"], "none.toml does not exist; --scenario takes a TOML file"),
        (["--report", "/proc/nothing"], "choose another place"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    run: Run, bundle: Path, options: list[object], said: str
) -> None:
    ended = run("bench", bundle, "--checkpoint", "some/checkpoint", *options)
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompts = 3", "prompts must be a list of at most 65536 items, got 3"),
        ("prompts = [3]", "prompts[0] must be text, got 3"),
        ("seeds = [true]", "seeds[0] must be a whole number from 0 to 4,294,967,295, got True"),
        ("prompt = 'x'", "prompt is not known; known are: name, prompts"),
        ("size = 'big'", "size must be WIDTHxHEIGHT in pixels, for example 512x512, got 'big'"),
        ("guidance = nan", "nan is not a finite number"),
        ("steps = true", "steps must be a whole number from 1 to 1,048,576, got True"),
        (
            "prompts = ['a', 'b']\nseeds = [1]",
            "seeds must have one item for each of the 2 prompts, got 1",
        ),
        ("prompts = []", "prompts must have at least one item, got none"),
        ("prompts = [", "is not TOML"),
    ],
)
def test_a_bad_scenario_file_is_refused(
    run: Run, bundle: Path, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    ended = run("bench", bundle, "--checkpoint", "a/b", "--scenario", file)
    assert ended.code == 2
    assert said in ended.err


def test_a_checkpoint_that_does_not_fit_is_refused(run: Run, bundle: Path, tmp_path: Path) -> None:
    ended = run("bench", bundle, "--checkpoint", tmp_path)
    assert ended.code == 2
    assert "is not a checkpoint: model_index.json is missing" in ended.err
    ended = run("bench", bundle, "--checkpoint", "one/two/three")
    assert ended.code == 2
    assert "one/two/three does not exist; give the diffusers folder or hub id" in ended.err
    other = tmp_path / "other"
    (other / "text_encoder").mkdir(parents=True)
    (other / "model_index.json").write_text("{}")
    (other / "text_encoder" / "config.json").write_text('{"hidden_size": 32}')
    ended = run("bench", bundle, "--checkpoint", other)
    assert ended.code == 2
    assert "text encoder's hidden_size is 32, the bundle's 8" in ended.err


def test_a_peer_without_an_environment_says_how_to_make_one(
    run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems, "PEERS", tmp_path)
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "peer.toml").write_text(
        'title = "Some One"\n[variants.fast]\nspeed = 2\n[variants.slow]\nspeed = 1\n'
    )
    ended = run("bench", bundle, "--checkpoint", "a/b", "--against", "someone")
    assert ended.code == 2
    assert "python benchmarks/peers/setup.py someone" in ended.err
    ended = run("bench", bundle, "--checkpoint", "a/b", "--against", "someone:medium")
    assert "no variant 'medium'; its variants are fast, slow" in ended.err
    (tmp_path / "someone" / "adapter.py").write_text("")
    python = tmp_path / "someone" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/nowhere/python3")
    assert run("bench", bundle, "--checkpoint", "a/b", "--against", "someone").code == 2
    python.unlink()
    python.touch()
    found = systems.find_systems([bundle], ["someone:fast", "someone", "diffusers"])
    assert [one.name for one in found] == [
        "diffusers", "bundle", "someone-fast", "someone-slow",
    ]  # fmt: skip
    assert found[2].title == "Some One fast"
    assert found[2].options == {"speed": 2}
    assert found[2].python == str(python)


def test_two_bundles_of_one_name_are_told_apart(bundle: Path, tmp_path: Path) -> None:
    import shutil

    other = shutil.copytree(bundle, tmp_path / "elsewhere" / "bundle")
    found = systems.find_systems([bundle, other, bundle], [])
    assert [one.name for one in found] == ["diffusers", "bundle", "bundle-2"]


def test_what_is_no_bundle_is_refused(run: Run, tmp_path: Path) -> None:
    ended = run("bench", tmp_path, "--checkpoint", "a/b")
    assert ended.code == 2
    assert "is not a bundle: bundle.json is missing" in ended.err


def test_report_needs_results(run: Run, tmp_path: Path) -> None:
    ended = run("bench", "report", tmp_path)
    assert ended.code == 2
    assert "sdexport bench … --report DIR" in ended.err
    (tmp_path / "results.json").write_text('{"schema": 99}')
    assert "schema must be at most 2, got 99" in run("bench", "report", tmp_path).err


def test_report_is_written_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results_file.write(typed(document(diffusers=1.0, emoji=0.25)), tmp_path)
    written = []

    def write(found: Results, folder: Path) -> None:
        written.append(found.baseline)
        (folder / "report.md").write_text("# Report\n")

    monkeypatch.setattr(runs, "write_report", write)
    assert run("bench", "report", tmp_path).out == f"{tmp_path / 'report.md'}\n"
    assert run("bench", "report", tmp_path, "--json").document == {
        "files": [str(tmp_path / "report.md")]
    }
    assert written == ["diffusers"] * 2


@pytest.mark.parametrize(("speed", "code"), [(1.0, 0), (1.2, 0), (0.8, 1)])
def test_compare_ends_with_1_if_something_became_slower(
    run: Run, tmp_path: Path, speed: float, code: int
) -> None:
    for name, factor in (("old", 1.0), ("new", speed)):
        (tmp_path / name).mkdir()
        results_file.write(typed(document(diffusers=1.0, emoji=0.25 / factor)), tmp_path / name)
    ended = run("bench", "compare", tmp_path / "old", tmp_path / "new")
    assert ended.code == code
    assert ("slower by 25.0%" in ended.out) is (code == 1)
    shown = run("bench", "compare", tmp_path / "old", tmp_path / "new", "--json")
    assert shown.code == code
    assert shown.document["worse"] is (code == 1)
    emoji = shown.document["changes"][1]
    assert emoji["speed"] == pytest.approx(speed, rel=1e-3)
    assert emoji["verdict"] == {1.0: "unchanged", 1.2: "faster", 0.8: "slower"}[speed]


def test_compare_refuses_other_scenarios(run: Run, tmp_path: Path) -> None:
    old, new = document(diffusers=1.0), document(diffusers=1.0)
    new["scenario"]["steps"] = 51
    for name, value in (("old.json", old), ("new.json", new)):
        (tmp_path / name).write_text(json.dumps(value))
    ended = run("bench", "compare", tmp_path / "old.json", tmp_path / "new.json", "--json")
    assert ended.code == 2
    assert "steps: 50 and 51" in ended.err
    assert ended.document["error"]["kind"] == "UsageError"
