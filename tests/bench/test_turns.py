"""Runs of systems that pretend: equal ones, slow ones, and ones that go wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from sdexport.artifacts.documents import schema
from sdexport.bench import judging, results_file, statistics
from sdexport.bench.results import Effort, Results
from sdexport.bench.systems import System
from sdexport.errors import StorageError, UsageError
from tests.bench.pretending import SCENARIO, measure, pretend

ROOT = Path(__file__).parent.parent.parent
SCHEMA = schema(Results)


def written(folder: Path) -> dict[str, Any]:
    """The JSON values of the results in `folder`, which can be read as results."""
    results_file.read(folder)
    value: dict[str, Any] = json.loads((folder / results_file.FILE).read_text(encoding="utf-8"))
    return value


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def all_end(pids: list[int], within: float = 10) -> bool:
    """Whether all of the processes end within so many seconds."""
    ends = time.monotonic() + within
    while any(alive(pid) for pid in pids):
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


def noted(file: Path) -> list[int]:
    return [int(word) for word in file.read_text().split()]


def test_equal_systems_have_the_ratio_1_and_a_delay_of_5_percent_is_found(tmp_path: Path) -> None:
    """An interval of 95 % misses once in twenty runs; that it misses thrice is a fault."""
    for attempt in range(3):
        found = measure(
            tmp_path / str(attempt),
            pretend("baseline", seconds=0.06),
            pretend("equal", seconds=0.06),
            pretend("slower", seconds=0.063),
            effort=Effort(rounds=12, seconds=0),
        )
        equal, slower = found["equal"]["ratio"], found["slower"]["ratio"]
        assert equal["pairs"] == slower["pairs"] == 12
        if (
            equal["low"] <= 1 <= equal["high"]
            and slower["high"] < 1
            and slower["low"] < 1 / 1.05 < slower["high"]
        ):
            return
        print(attempt, equal, slower)
    pytest.fail("three runs in a row missed")


def test_results_hold_what_was_measured(tmp_path: Path) -> None:
    found = measure(
        tmp_path,
        pretend("baseline", cold=0.2),
        pretend("other", stages=False),
        effort=Effort(rounds=6, seconds=0.05),
    )
    document = written(tmp_path)
    jsonschema.validate(document, SCHEMA, format_checker=jsonschema.FormatChecker())
    assert document["complete"] is True
    assert document["baseline"] == "baseline"
    assert document["scenario"]["prompts"] == ["a", "b"]
    assert len(document["machine"]["load_before"]) == 3
    baseline, other = document["systems"]
    # The baseline has one turn more: every other's turns lie between two of its.
    assert len(baseline["rounds"]) == len(other["rounds"]) + 1 >= 7
    assert sum(turn["total"] for turn in other["rounds"]) >= 0.05
    starts = [turn["at"] for one in (baseline, other) for turn in one["rounds"]]
    assert sorted(starts) == [
        at
        for pair in zip(
            (turn["at"] for turn in baseline["rounds"]),
            [*(turn["at"] for turn in other["rounds"]), None],
            strict=True,
        )
        for at in pair
        if at is not None
    ]
    assert baseline["first_seconds"] > 0.2 > max(baseline["warmup_seconds"])
    assert baseline["load_seconds"] > 0
    assert baseline["model_calls"] == 2
    assert baseline["threads"] == 1
    assert baseline["peak_host_bytes"] > 1e6
    assert baseline["ratio"] is None
    summary = baseline["summary"]
    assert summary["text_encoder"]["p50"] == pytest.approx(1e-4)
    assert summary["evaluation"] | {"mean": 0, "stdev": 0} == pytest.approx(
        {"min": 1e-4, "p50": 1.5e-4, "p90": 2e-4, "p99": 2e-4, "max": 2e-4, "mean": 0, "stdev": 0}
    )
    assert summary["rest"]["p50"] == pytest.approx(summary["total"]["p50"] - 5e-4, abs=1e-4)
    assert summary["images_per_second"] == pytest.approx(2 / summary["total"]["p50"], rel=1e-5)
    assert other["summary"]["evaluation"] is None
    assert other["summary"]["rest"] is None
    assert other["rounds"][0]["evaluations"] is None
    assert found["other"]["name"] == "other"


def test_images_and_latents_lie_beside_the_results(tmp_path: Path) -> None:
    measure(tmp_path, pretend("baseline"), pretend("other"))
    for name in ("baseline", "other"):
        for index in range(2):
            with Image.open(tmp_path / "images" / name / f"{index}.png") as image:
                assert image.size == (24, 16)
                assert np.array_equal(np.asarray(image)[0, :, 0], np.arange(24) * 10)
            latents = np.load(tmp_path / "latents" / name / f"{index}.npy")
            assert latents.shape == (4, 2, 2)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_no_folder_of_this_machine_is_in_the_results(tmp_path: Path) -> None:
    broken = pretend("broken", goes="raise", turn=1)
    measure(tmp_path, pretend("baseline"), broken)
    text = (tmp_path / results_file.FILE).read_text()
    assert "in ./somewhere" in text
    assert "the model is made of cheese" in text
    assert str(Path.cwd()) not in text
    assert sys.prefix not in text


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        ({"goes": "raise", "turn": 0}, "failed", "load: ValueError: the model is made of cheese"),
        ({"goes": "raise", "turn": 4}, "failed", "generate: ValueError"),
        ({"goes": "exit", "turn": 1}, "crashed", "generate: the process ended with exit code 3"),
        ({"goes": "forked", "turn": 2}, "crashed", "generate: the process ended with exit code 4"),
        ({"goes": "killed", "turn": 7}, "crashed", "generate: the process was ended by SIGSEGV"),
        ({"goes": "small"}, "failed", "images must be uint8 (2, 16, 24, 3), got"),
    ],
)
def test_a_system_that_goes_wrong_is_left_behind(
    tmp_path: Path, options: dict[str, Any], status: str, why: str
) -> None:
    pids = tmp_path / "pids"
    found = measure(
        tmp_path / "report",
        pretend("baseline"),
        pretend("broken", pids=str(pids), **options),
        pretend("other"),
    )
    jsonschema.validate(written(tmp_path / "report"), SCHEMA)
    broken = found["broken"]
    assert broken["status"] == status
    assert why in broken["why"]
    # How many turns warm-up takes of those before it depends on the machine.
    assert (broken["ratio"] is None) == (len(broken["rounds"]) < statistics.FEWEST)
    if "turn" in options:
        assert any("about to go wrong" in line for line in broken["stderr_tail"])
    # Turns before it went wrong are kept: the first, those of warm-up, and those that count.
    generated = max(0, options.get("turn", 1) - 1)
    first = broken["first_seconds"] is not None
    assert first + len(broken["warmup_seconds"]) + len(broken["rounds"]) == generated
    for name in ("baseline", "other"):
        assert found[name]["status"] == "ok"
        assert len(found[name]["rounds"]) >= 5
    assert found["other"]["ratio"]["pairs"] == 5
    # Its processes, and what they had started.
    assert all_end(noted(pids))


def test_a_system_that_hangs_is_ended(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    found = measure(
        tmp_path / "report",
        pretend("baseline"),
        pretend("stuck", goes="hang", turn=2, pids=str(pids)),
        pretend("other"),
        effort=Effort(rounds=5, seconds=0, timeout=6),
    )
    assert found["stuck"]["status"] == "hung"
    assert "no answer within 6 s" in found["stuck"]["why"]
    assert found["other"]["ratio"]["pairs"] == 5
    assert all_end(noted(pids))


def test_without_a_baseline_the_rest_is_measured(tmp_path: Path) -> None:
    found = measure(tmp_path, pretend("baseline", goes="exit", turn=1), pretend("other"))
    assert found["baseline"]["status"] == "crashed"
    assert len(found["other"]["rounds"]) == 5
    assert found["other"]["ratio"] is None


def test_an_interpreter_that_is_none_is_said(tmp_path: Path) -> None:
    missing = System("missing", "missing", "peer", Path("x.py"), python=str(tmp_path / "python"))
    found = measure(tmp_path / "report", pretend("baseline"), missing)
    assert found["missing"]["status"] == "failed"
    assert "cannot be started" in found["missing"]["why"]
    assert found["baseline"]["status"] == "ok"


def test_one_that_generates_noise_is_marked(tmp_path: Path) -> None:
    found = measure(tmp_path, pretend("baseline"), pretend("equal"), pretend("noise", noise=True))
    assert any("differ from turn to turn" in note for note in found["noise"]["notes"])
    assert found["equal"]["notes"] == []
    assert found["equal"]["fidelity"]["verdict"] == "same"
    assert found["noise"]["fidelity"]["verdict"] == "different"
    assert [one["seed"] for one in found["noise"]["fidelity"]["images"]] == [0, 1]


def test_one_that_generated_something_else_at_first_is_marked(tmp_path: Path) -> None:
    """Its later images are right; what is claimed must hold of every turn."""
    found = measure(tmp_path, pretend("baseline"), pretend("astray", goes="astray"))
    image = found["astray"]["fidelity"]
    assert image["verdict"] == "different"
    assert image["why"].startswith("in its first turn: ")
    assert [one["largest"] for one in image["images"]] == [0, 0], "the last turn's figures"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("images", "latents", "results.json")
    ]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"says": {"precision": ["fp32"]}},
            "load: AdapterError: describe() gave a wrong precision",
        ),
        ({"says": {"threads": "two"}}, "describe() gave a wrong threads: 'two'"),
        ({"says": {"notes": "one"}}, "describe() must give a list of strings as notes, got 'one'"),
        (
            {"says": {"versions": {"it": [2]}}},
            "describe() must give a string for each of versions, got {'it': [2]}",
        ),
        ({"tells": {"evaluations": [0.1, None]}}, "generate() gave a wrong evaluation 1: None"),
        ({"tells": {"evaluations": 0.1}}, "generate() must give a list as evaluations, got 0.1"),
        (
            {"tells": {"vae_decoder": "fast"}},
            "generate: AdapterError: generate() gave a wrong vae_decoder: 'fast'",
        ),
        ({"tells": {"text_encoder": float("nan")}}, "generate() gave a wrong text_encoder: nan"),
        ({"tells": {"model_calls": 1.5}}, "generate() gave a wrong model_calls: 1.5"),
    ],
)
def test_an_adapter_that_says_nonsense_fails_and_the_rest_goes_on(
    tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    found = measure(
        tmp_path, pretend("baseline"), pretend("odd", **options), pretend("other"),
        effort=Effort(rounds=4, seconds=0),
    )  # fmt: skip
    assert found["odd"]["status"] == "failed"
    assert why in found["odd"]["why"]
    assert found["other"]["ratio"]["pairs"] == 4
    jsonschema.validate(written(tmp_path), SCHEMA)


def test_a_loop_whose_evaluations_are_not_told_has_their_mean(tmp_path: Path) -> None:
    told = {"evaluations": None, "denoise": 3e-4}
    one = measure(tmp_path, pretend("baseline"), pretend("loop", tells=told))["loop"]
    summary = one["summary"]
    assert summary["evaluation"]["p50"] == pytest.approx(1.5e-4)
    assert summary["rest"]["p50"] == pytest.approx(summary["total"]["p50"] - 5e-4, abs=1e-4)
    assert one["rounds"][0]["denoise"] == pytest.approx(3e-4)
    assert any("the time of one is the mean of a turn" in note for note in one["notes"])


def test_batches_are_told_or_follow_from_the_scenario(tmp_path: Path) -> None:
    found = measure(tmp_path, pretend("baseline"), pretend("one", tells={"batches": 1}))
    assert found["baseline"]["batches"] == 2, "two images, generated one by one"
    assert found["one"]["batches"] == 1


def test_what_was_measured_is_kept_when_judging_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(judging.Images, "judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, pretend("baseline"), pretend("other"))
    document = written(tmp_path)
    jsonschema.validate(document, SCHEMA)
    assert document["complete"] is False
    assert [len(one["rounds"]) for one in document["systems"]] == [6, 5]
    assert (tmp_path / "images" / "other" / "0.png").is_file()


def test_the_order_within_a_round_is_generated_anew(tmp_path: Path) -> None:
    found = measure(
        tmp_path,
        *(pretend(name) for name in ("baseline", "a", "b", "c")),
        effort=Effort(rounds=12, seconds=0),
    )
    orders = set()
    for number in range(12):
        at = {name: found[name]["rounds"][number]["at"] for name in ("baseline", "a", "b", "c")}
        order = sorted(at, key=lambda name: at[name])
        assert order[0] == "baseline", "every turn lies between two of the baseline's"
        orders.add(tuple(order))
    assert len(orders) >= 4


def test_at_most_so_many_are_loaded_at_once(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    found = measure(
        tmp_path / "report",
        pretend("baseline", pids=str(pids)),
        *(pretend(name) for name in "abc"),
        effort=Effort(rounds=4, seconds=0, at_once=2),
    )
    assert [found[name]["group"] for name in "abc"] == [0, 1, 2]
    assert all(found[name]["ratio"]["pairs"] == 4 for name in "abc")
    assert len(found["baseline"]["rounds"]) == 3 * 5
    assert len(pids.read_text().splitlines()) == 1, "the baseline is loaded once"
    # One is let go before the next is loaded: no turn of b lies among those of a.
    last = [max(turn["at"] for turn in found[name]["rounds"]) for name in "abc"]
    first = [min(turn["at"] for turn in found[name]["rounds"]) for name in "abc"]
    assert last[0] < first[1]
    assert last[1] < first[2]


def test_a_system_is_stopped_while_it_is_not_its_turn(tmp_path: Path) -> None:
    """What idles in one process (threads that spin, children) takes nothing from the others."""
    from sdexport.bench.process import SystemProcess

    with SystemProcess(pretend("one"), 60) as process:
        process.ask("load", scenario=SCENARIO.for_adapter(), options={})
        process.rest()
        deadline = time.monotonic() + 10
        while "T (stopped)" not in Path(f"/proc/{process.pid}/status").read_text():
            assert time.monotonic() < deadline
        assert process.ask("generate")["seconds"] > 0
        pid = process.pid
        process.rest()
    assert not alive(pid)


def test_what_a_peer_prepares_is_kept_and_its_time_remembered(tmp_path: Path) -> None:
    place = tmp_path / "prepared"
    first = measure(tmp_path / "1", pretend("baseline"), pretend("peer", place))["peer"]
    (kept,) = place.iterdir()
    stamp = (kept / "content" / "model.txt").stat().st_mtime_ns
    again = measure(tmp_path / "2", pretend("baseline"), pretend("peer", place))["peer"]
    assert (kept / "content" / "model.txt").stat().st_mtime_ns == stamp
    assert first["build_seconds"] == again["build_seconds"] > 0
    measure(tmp_path / "3", pretend("baseline"), pretend("peer", place, seconds=0.001))
    (anew,) = place.iterdir()
    assert anew != kept, "other options are prepared anew, in the place of what nothing reads now"
    failed = measure(tmp_path / "4", pretend("baseline"), pretend("peer", place, goes="prepare"))[
        "peer"
    ]
    assert failed["status"] == "failed"
    assert "no converter here" in failed["why"]
    assert list(place.iterdir()) == [anew], "nothing half-prepared looks whole"


def test_an_earlier_run_is_replaced_whole(tmp_path: Path) -> None:
    measure(tmp_path, pretend("baseline"), pretend("old"))
    (tmp_path / "notes.txt").write_text("mine")
    measure(tmp_path, pretend("baseline"), pretend("new"))
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["baseline", "new"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_said_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="choose another place"):
        measure(tmp_path / "file" / "report", pretend("baseline"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"seconds": -1}, "seconds must be at least 0, got -1"),
        ({"at_once": 1}, "at once must be at least 2, the baseline and one other, got 1"),
        ({"timeout": 0}, "timeout must be above 0 seconds, got 0"),
    ],
)
def test_an_effort_out_of_range_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Effort(**options)


RUN = """
import sys
from pathlib import Path
from sdexport.bench.run import run
from sdexport.bench.results import Effort
from tests.bench.pretending import SCENARIO, pretend
folder, pids = Path(sys.argv[1]), sys.argv[2]
systems = [pretend(name, pids=pids, seconds=0.05) for name in ("baseline", "other")]
effort = Effort(rounds=100000, seconds=0)
sys.exit(0 if run(systems, SCENARIO, effort, folder, command="").complete else 130)
"""


Begin = Callable[[Path, Path], subprocess.Popen[bytes]]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Begins a run that would take hours, and waits until all of its systems are loaded."""
    begun: list[subprocess.Popen[bytes]] = []

    def call(folder: Path, pids: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", RUN, str(folder), str(pids)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        begun.append(process)
        deadline = time.monotonic() + 60
        while not pids.exists() or len(pids.read_text().splitlines()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    yield call
    for process in begun:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_cut_short_keeps_what_it_measured(
    tmp_path: Path, begin: Begin, number: signal.Signals
) -> None:
    process = begin(tmp_path / "report", tmp_path / "pids")
    deadline = time.monotonic() + 60
    turns = tmp_path / "pids-turns"
    # The first, at most six of warm-up, and a few rounds of both.
    while not turns.exists() or turns.stat().st_size < 20:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == 130
    assert all_end(noted(tmp_path / "pids"))
    document = written(tmp_path / "report")
    jsonschema.validate(document, SCHEMA)
    assert document["complete"] is False
    assert all(one["rounds"] for one in document["systems"])
    assert all(one["peak_host_bytes"] > 1e6 for one in document["systems"])
    assert (tmp_path / "report" / "images" / "other" / "0.png").is_file()
    left = [path for path in (tmp_path / "report").iterdir() if path.name.startswith(".")]
    assert not left


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's end")
def test_a_run_that_is_killed_leaves_no_process_and_no_results(
    tmp_path: Path, begin: Begin
) -> None:
    process = begin(tmp_path / "report", tmp_path / "pids")
    process.kill()
    process.wait()
    # Systems, what they had started, and the one that is stopped because it is not its turn.
    assert all_end(noted(tmp_path / "pids"))
    assert not (tmp_path / "report" / results_file.FILE).exists()
    measure(tmp_path / "report", pretend("baseline"))
    assert not [path for path in (tmp_path / "report").iterdir() if path.name.startswith(".")]
