"""Reports of every kind of result: complete, honest about what failed, and safe to open."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from sdexport.bench import claims, results_file, versus
from sdexport.bench.report import (
    contact_sheet,
    html,
    markdown,
    plots,
    rendering,
    runs_page,
    svg,
)
from sdexport.bench.report.build import report as report_of
from sdexport.bench.report.content import Report
from sdexport.bench.report.text import clean, digits, seconds, size
from sdexport.errors import DocumentError, MissingExtraError
from tests.bench import synthetic
from tests.bench.documents import typed
from tests.conftest import ROOT

HOSTILE = "<script>alert(1)</script>"
ATTACKS = [
    HOSTILE,
    '"><img src=x onerror=alert(1)>',
    "'; DROP --",
    "</style></svg><iframe src=//evil.example>",
    "{{ 7 * 7 }} {% for x in y %}",
    "$\\frac{a}{b$ $x$ _ ^",
    "| a | b |\n|---|---|\n# heading\n```\n<b>",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png) ftp://evil.net www.evil.net",
    "\x00\x07\x1b[31mred\u202egnp.exe\u2028\ufffe",
    "&lt;b&gt; &#60; 日本語 🍎 éà",
]


class Page(HTMLParser):
    """Collects what a browser would make of a page: elements, attributes and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    found = synthetic.results()
    synthetic.write_images(found, folder)
    for module in (contact_sheet, markdown, html):
        module.write(typed(found), folder)
    return folder


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page((written / "report.html").read_text(encoding="utf-8"))


def html_of(found: dict[str, Any], folder: Path) -> str:
    return html.write(typed(found), folder).read_text(encoding="utf-8")


def markdown_of(found: dict[str, Any], folder: Path) -> str:
    return markdown.write(typed(found), folder).read_text(encoding="utf-8")


def report(found: dict[str, Any]) -> Report:
    return report_of(typed(found))


def problem(found: dict[str, Any], name: str) -> str | None:
    """The reason why no speed-up is claimed for the system `name`."""
    results = typed(found)
    (system,) = (one for one in results.systems if one.name == name)
    return claims.problem(results, system)


def of(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in found["systems"] if one["name"] == name)


# What it says


def test_the_conditions_come_before_the_figures(page: Page) -> None:
    headings = [one.heading for one in report(synthetic.results()).sections]
    assert headings == [
        "Conditions",
        "Setup of each system",
        "One-time costs",
        "Times",
        "Memory and size",
        "Images",
        "Roofline",
        "GPU",
        "How to read this report",
    ]
    anchors = [one.anchor for one in report(synthetic.results()).sections]
    assert [one["href"] for one in page.all("a")] == [f"#{anchor}" for anchor in anchors]
    assert [one["id"] for one in page.all("section")] == anchors
    assert all(heading in page.text for heading in headings)


@pytest.mark.parametrize(
    "said",
    [
        "sdexport bench run emoji-bf16 emoji-fp32 --checkpoint checkpoint --rounds 12",
        "A Processor That Does Not Exist",
        "avx2, avx512_bf16, avx512f",
        "0.10 / 0.30 / 0.40",
        "2.00 / 1.70 / 1.10",
        "numpy 2.4.6, openvino 2026.4.1",
        "OMP_NUM_THREADS=2, KMP_AFFINITY=granularity=fine",
        "“slice of pizza”",
        "openvino_genai.Text2ImagePipeline(models, 'CPU')",
        "61.30 s",
        "3 images of 64×64 pixels, 5 steps",
        "No GPU was used: this machine has none",
        "4.17× (4.02 to 4.28)",
        "ended with signal 11 (SIGSEGV) in round 3",
        "no answer for 120 s while generating",
        "matrix product, bf16",
        "3 of 3",
        "a note on this stage",
    ],
)
def test_both_reports_say(written: Path, page: Page, said: str) -> None:
    assert said in page.text
    markdown = (written / "report.md").read_text(encoding="utf-8")
    assert said.replace("_", "") in re.sub(r"[\\_]", "", markdown)


def test_nothing_is_claimed_for_what_generates_something_else_or_fails() -> None:
    found = synthetic.results()
    claimed = [one["name"] for one in found["systems"] if problem(found, one["name"]) is None]
    assert claimed == ["diffusers", "emoji-bf16", "emoji-fp32", "diffusers-compile"]
    times = next(one for one in report(found).sections if one.heading == "Times")
    cells = {row.cells[0]: row.cells for row in times.blocks[0].rows}  # type: ignore[union-attr]
    assert cells["sdexport openvino-cpu bf16"][9:] == ("4.17", "4.02 to 4.28", "close")
    assert cells["diffusers, torch.compile"][9:] == (
        "1.00 (none shown)",
        "0.98 to 1.03",
        "same",
    )
    assert cells["OpenVINO GenAI (bf16)"][9:] == ("–", "–", "different")
    assert cells["stable-diffusion.cpp"][9:] == ("–", "–", "unknown")
    assert cells["optimum-onnx"][9:] == ("–", "–", "crashed")
    assert cells["optimum-intel-int8"][9:] == ("–", "–", "hung")
    assert cells["optimum-intel-late"][9:] == ("–", "–", "not reached")
    assert "3.18" not in markdown.render(report(found), {})  # GenAI's ratio


def test_fewer_evaluations_than_the_baseline_are_found() -> None:
    found = synthetic.results()
    of(found, "emoji-bf16")["model_calls"] = synthetic.EVALUATIONS - 1
    reason = problem(found, "emoji-bf16")
    assert reason == "evaluates the model 5 times for an image, the baseline 6 times"
    assert versus.leaders(typed(found))[0].name == "emoji-fp32"
    # One that generates a batch's images one by one calls the model as often for each of them.
    slow = of(found, "emoji-bf16")
    slow |= {"model_calls": 2 * synthetic.EVALUATIONS - 2, "batches": 2}
    assert "evaluates the model 5 times" in (problem(found, "emoji-bf16") or "")
    slow["model_calls"] = 2 * synthetic.EVALUATIONS
    assert problem(found, "emoji-bf16") is None


def test_a_slower_system_is_not_called_the_fastest() -> None:
    found = synthetic.results()
    for one in found["systems"]:
        if one["ratio"]:
            one["ratio"] |= {"median": 0.9, "low": 0.85, "high": 1.1}
    assert versus.leaders(typed(found)) == []
    assert "No system is shown to be faster than diffusers" in report(found).findings[0].text


def test_a_baseline_that_fails_leaves_nothing_to_claim(tmp_path: Path) -> None:
    found = synthetic.results()
    of(found, "diffusers").update(status="crashed", why="out of memory", rounds=[], summary=None)
    for one in found["systems"]:
        one |= {"ratio": None}
        if one["fidelity"]:
            one["fidelity"] = {"verdict": "unknown", "why": "", "images": [], "recognised": None}
    assert "The baseline did not finish" in report(found).findings[0].text
    assert "no speed-up is claimed" in Page(html_of(found, tmp_path)).text
    assert versus.leaders(typed(found)) == []


def test_a_baseline_that_fails_late_leaves_nothing_to_claim_either() -> None:
    """Its rounds until then give ratios; it may have been ill before it died."""
    found = synthetic.results()
    of(found, "diffusers").update(status="crashed", why="out of memory")
    assert versus.leaders(typed(found)) == []
    assert versus.duels(typed(found)) == []
    reason = problem(found, "emoji-fp32")
    assert reason == "the baseline did not finish: it crashed: out of memory"
    results = typed(found)
    assert claims.ratio(results, results.systems[2]) == "none claimed"


def test_everything_failed(tmp_path: Path) -> None:
    found = synthetic.results()
    found["systems"] = [
        one | {"status": "crashed", "why": "all of it", "rounds": [], "summary": None}
        for one in found["systems"]
    ]
    found["peaks"] = None
    assert contact_sheet.write(typed(found), tmp_path) is None
    assert "crashed: all of it" in Page(html_of(found, tmp_path)).text
    assert "crashed: all of it" in markdown_of(found, tmp_path)
    assert plots.plot(typed(found)) == {}


def test_gpus_are_reported_where_they_were_used() -> None:
    found = synthetic.results(gpu=True)
    rendered = markdown.render(report(found), {})
    assert "No GPU was used" not in rendered
    assert "GPU: A GPU That Does Not Exist." in rendered
    assert "1.74 GB" in rendered  # device memory
    assert "9.1 J" in rendered


def test_a_gpu_that_was_there_and_not_used_is_said_so() -> None:
    found = synthetic.results()
    found["machine"]["gpus"] = [{"name": "A GPU", "capability": "sm90", "bytes": 80 * 2**30}]
    said = claims.gpu_sentence(typed(found))
    assert "No GPU was used, although the machine has one (A GPU, sm90, 80 GiB)" in said


def test_without_a_gpu_the_table_is_empty_and_the_command_there(page: Page) -> None:
    assert "GPU times: not measured" in page.text
    assert (
        "sdexport bench run BUNDLE --checkpoint checkpoint --against diffusers-fp16 --report DIR"
        in page.text
    )


def test_a_busy_machine_a_cut_run_and_last_words_are_told() -> None:
    found = synthetic.results() | {
        "complete": False,
        "effort": {"rounds": 10, "seconds": 10.0, "at_once": 3, "timeout": 600.0},
    }
    found["machine"]["load_before"] = [1.9, 1.0, 1.0]
    of(found, "optimum-onnx")["stderr_tail"] = ["Fatal Python error", "", "Segmentation fault"]
    rendered = markdown.render(report(found), {})
    assert "The run was cut short" in rendered
    assert "busy when the run began: 1.90 processes" in rendered
    assert "    Segmentation fault" in rendered
    assert "at least 10 rounds and 10 s of each system, 3 systems loaded at once" in rendered


def test_long_scenarios_are_cut_and_what_is_not_recognised_is_named() -> None:
    found = synthetic.results()
    found["scenario"] |= {"prompts": [f"prompt {k}" for k in range(256)], "seeds": [*range(256)]}
    of(found, "emoji-bf16")["fidelity"]["recognised"] = {
        "of": 256,
        "right": 242,
        "wrong": [{"prompt": f"prompt {k}", "looks_like": "pizza"} for k in range(14)],
    }
    rendered = markdown.render(report(found), {})
    assert "“prompt 11” and 244 more" in rendered
    assert "11 and 244 more" in rendered
    assert "“prompt 0” (looks like pizza), “prompt 1” (looks" in rendered
    assert "(looks like pizza) and 2 more" in rendered
    assert "242 of 256" in rendered
    of(found, "diffusers")["fidelity"]["recognised"] = {"of": 256, "right": 255, "wrong": []}
    assert "| baseline | 3 | – | – | – | – | – | 255 of 256 |" in markdown.render(report(found), {})


def test_results_that_lack_what_is_optional(tmp_path: Path) -> None:
    """As written by hand, by an older harness, or after a failure half way."""
    found = synthetic.results()
    for one in found["systems"]:
        for key in ("fidelity", "roofline", "ratio", "build_seconds", "notes", "setup"):
            one.pop(key, None)
        if one["summary"]:
            one["summary"] |= {"text_encoder": None, "evaluation": None, "vae_decoder": None}
            one["summary"] |= {"rest": None}
    del found["peaks"]
    found["machine"] |= {"processor": None, "cores": None, "memory_bytes": None}
    found["machine"] |= {"load_before": None, "load_after": None, "libraries": {}}
    assert "No images were compared" in Page(html_of(found, tmp_path)).text
    assert "No images were compared" in markdown_of(found, tmp_path)
    assert "unknown processor" in markdown_of(found, tmp_path)


@pytest.mark.parametrize("gone", ["complete", "effort", "machine", "scenario", "systems"])
def test_results_that_lack_what_a_report_needs_are_refused(gone: str) -> None:
    found = synthetic.results()
    del found[gone]
    with pytest.raises(DocumentError, match=f"{gone} is missing; measure again"):
        report(found)


@pytest.mark.parametrize("gpu", [False, True])
def test_what_the_reports_are_tested_with_follows_the_schema(gpu: bool) -> None:
    schema = json.loads((ROOT / "docs" / "results.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(synthetic.results(gpu=gpu))


def test_what_is_no_result_is_refused() -> None:
    with pytest.raises(DocumentError, match="schema must be from 1 to 2, got None"):
        report({})


# That it is safe and self-contained


CHECKED = ("status", "kind", "verdict", "device", "bound", "name", "baseline")
"""Fields of a few values, and names of systems, which name folders."""


def attacked(attack: str) -> dict[str, Any]:
    """Results that hold `attack` at every place that somebody else's text comes from.

    Not in names, which are checked when results are read.
    """

    def replaced(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {
                (attack if key in ("libraries", "versions", "thread_settings") else name): replaced(
                    item, name
                )
                for name, item in value.items()
            }
        if isinstance(value, list):
            return [replaced(item, key) for item in value]
        if isinstance(value, str) and key not in CHECKED:
            return f"{value} {attack}"
        return value

    found = synthetic.results(gpu=True)
    result: dict[str, Any] = replaced(found)
    result["scenario"]["name"] += f" {attack}"
    result["machine"]["gpus"][0]["name"] += f" {attack}"
    return result


ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section", "a"),
    *("h1", "h2", "h3", "p", "ul", "li", "pre", "code", "div", "figure", "figcaption", "img"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
    *("svg", "g", "path", "defs", "use", "text", "clippath", "rect", "pattern", "tspan"),
}


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_no_name_or_prompt_becomes_markup(page: Page, tmp_path: Path, attack: str) -> None:
    text = html_of(attacked(attack), tmp_path)
    hostile = Page(text)
    assert {tag for tag, _ in hostile.elements} <= ALLOWED
    for tag in ("style", "meta"):
        assert hostile.all(tag) == page.all(tag)
    for tag, attributes in hostile.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "src"):
            if value := attributes.get(name):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, value)
    assert clean(attack) in hostile.text  # shown as it is, neither lost nor computed
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2066-\u2069]", text)


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_markdown_stays_a_report(attack: str) -> None:
    figures = dict.fromkeys(("totals", "ratios", "stages", "images", "roofline"), "plots/x.svg")

    def rendered(attack: str) -> list[str]:
        return markdown.render(report(attacked(attack)), figures).splitlines()

    def outline(lines: list[str]) -> list[str]:
        """What each line is, and of a table's how many cells it has."""
        kinds = []
        for line in lines:
            if line.startswith("|"):
                bars = len(re.findall(r"(?<!\\)\|", line))
                kinds.append(f"{bars} bars")
            elif line.startswith(("#", "- ", "    ", "![", "*")):
                kinds.append(line.split(" ", 1)[0][:3])
        return kinds

    lines = rendered(attack)
    assert outline(lines) == outline(rendered("harmless"))
    for line in lines:
        if line.startswith("    "):
            continue  # code, where nothing has a meaning
        assert "<" not in line
        assert not re.search(r"(?<!\\)\]\((?!plots/)", line)
        assert not re.search(r"(?i)(https?|ftp):|www\.", line)


def test_the_page_needs_nothing_from_elsewhere(written: Path, page: Page) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    policy = page.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert "default-src 'none'" in (policy["content"] or "")
    assert set(re.findall(r"https?://[^\"' <]+", text)) == {svg.NAMESPACE}
    assert "url(" not in re.sub(r"url\(#", "", text)
    assert "@import" not in text
    assert not page.all("script")
    assert not page.all("link")


def test_the_page_can_be_read_without_seeing_it(page: Page) -> None:
    assert page.elements[0] == ("html", {"lang": "en"})
    assert all(one.get("alt") for one in page.all("img"))
    generations = page.all("svg")
    assert len(generations) == 5
    assert all(one.get("role") == "img" and one.get("aria-label") for one in generations)
    assert all(one.get("scope") in ("col", "row") for one in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    anchors = {one["href"] for one in page.all("a")}
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert anchors == {f"#{one['id']}" for one in page.all("section")}
    assert len(ids) == len(set(ids)), "two elements with one id"


def test_references_inside_plots_lead_somewhere(page: Page) -> None:
    ids = {attributes.get("id") for _, attributes in page.elements}
    used = set()
    for _, attributes in page.elements:
        for value in attributes.values():
            used |= set(re.findall(r"url\(#([^)]+)\)", value or ""))
        used |= {(attributes.get("href") or "#").removeprefix("#")} - {""}
    assert used
    assert used <= ids


# Its parts


def test_plots_are_the_same_each_time_and_well_formed() -> None:
    found = synthetic.results()
    first, second = plots.plot(typed(found)), plots.plot(typed(copy.deepcopy(found)))
    assert set(first) == {"totals", "ratios", "stages", "images", "roofline"}
    for name, document in first.items():
        file = svg.for_file(document, "what it shows")
        assert file == svg.for_file(second[name], "what it shows")
        root = ElementTree.fromstring(file)
        assert root[0].text == "what it shows"
        texts = "".join(root.itertext())
        assert "sdexport openvino-cpu bf16" in texts


def test_plots_show_what_the_results_say() -> None:
    generated = {
        name: "|".join(ElementTree.fromstring(document).itertext())
        for name, document in plots.plot(typed(synthetic.results())).items()
    }
    assert "4.17×" in generated["ratios"]
    assert "3.18×" not in generated["ratios"]
    assert "no speed-up claimed: generates a different image" in generated["ratios"]
    assert "not divided" in generated["stages"]
    assert "91%" in generated["roofline"]


def test_plots_ignore_the_users_own_settings() -> None:
    import matplotlib

    found = typed(synthetic.results())
    plain = plots.plot(found)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        assert plots.plot(found) == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_importing_the_reports_loads_neither_matplotlib_nor_jinja() -> None:
    code = (
        "import sys; from sdexport.bench import quality, recognise; "
        "from sdexport.bench.report import contact_sheet, html, markdown, plots, runs_page; "
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "jinja2", "torch", "onnx"} & set(done.stdout.split())


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_a_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
) -> None:
    for name in [one for one in sys.modules if one.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[bench\]"):
        html.write(typed(synthetic.results()), tmp_path)


def test_results_survive_json() -> None:
    """What is rendered is what was read back."""
    found = synthetic.results()
    assert report(found) == report(json.loads(json.dumps(found)))


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "–"), (4.2e-5, "42.00 µs"), (0.0311, "31.10 ms"), (1.75, "1.750 s"), (525, "525.0 s")],
)
def test_times_have_a_unit_that_suits_them(value: float | None, said: str) -> None:
    assert seconds(value) == said


def test_numbers_have_the_digits_that_tell() -> None:
    assert digits(1750.0) == "1,750"
    assert digits(0.042123) == "0.04212"
    assert digits(0) == "0"
    assert size(25_000_000) == "25.0 MB"
    assert size(None) == "–"


def test_markdown_escapes_whatever_a_template_is_given() -> None:
    assert rendering.escape("a|b *c* <d> www.e.f") == r"a\|b \*c\* &lt;d> www&#8203;.e.f".replace(
        "d>", "d\\>"
    )


# The page over several runs


def test_the_page_over_runs(tmp_path: Path) -> None:
    found = synthetic.results()
    folder = tmp_path / "emoji-cpu"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(found))
    markdown.write(typed(found), folder)
    (tmp_path / "no-results").mkdir()
    assert runs_page.find(tmp_path) == [folder]
    text = runs_page.page([folder])
    assert "[report](emoji-cpu/report.md), [every measurement](emoji-cpu/results.json)" in text
    assert "| sdexport openvino-cpu bf16 | bf16 | 422.6 | 4.17 | 4.02 to 4.28 | close |" in text
    assert "| ✗ optimum-onnx | – | – | – | – | crashed |" in text
    assert "No GPU was used for any run on this page" in text
    assert "    sdexport bench run engines/emoji-rtx" in text


def test_the_page_says_what_a_table_does_not(tmp_path: Path) -> None:
    found = synthetic.results() | {"complete": False}
    found["machine"]["load_before"] = [1.9, 1.0, 1.0]
    peer = of(found, "openvino-genai-bf16")
    peer["fidelity"]["verdict"], peer["model_calls"] = "close", synthetic.EVALUATIONS
    folder = tmp_path / "emoji-cpu"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(found))
    (folder / "note.md").write_text("Measured in [two parts](../other/report.md).\n")
    text = runs_page.page([folder])
    assert "✗ This run was cut short." in text
    assert "✗ The machine was busy" in text
    assert "Fastest: sdexport openvino-cpu bf16, 4.17× (4.02 to 4.28)." in text
    assert "as fast as the fastest other in its precision, OpenVINO GenAI (bf16)." in text
    assert "Measured in [two parts](../other/report.md)." in text


def test_the_page_over_runs_of_gpus_and_of_none(tmp_path: Path) -> None:
    folder = tmp_path / "gpu"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(synthetic.results(gpu=True)))
    text = runs_page.page([folder])
    assert "No GPU was used" not in text
    assert "A GPU That Does Not Exist" in text
    assert "None so far." in text
    assert "No GPU was used for any run on this page" in runs_page.page([])


def test_results_of_another_schema_are_no_part_of_the_page(tmp_path: Path) -> None:
    (tmp_path / results_file.FILE).write_text('{"schema": 3}')
    with pytest.raises(DocumentError, match="schema must be at most 2, got 3"):
        runs_page.page([tmp_path])


def test_the_commands_for_gpus_are_possible() -> None:
    """The recipe is there, and what it names as its bundle is what is measured."""
    recipe = ROOT / "engines" / "emoji-rtx.toml"
    assert recipe.is_file()
    assert str(recipe.relative_to(ROOT)) in runs_page.GPU_COMMANDS[0]
    assert "engines/emoji-rtx " in runs_page.GPU_COMMANDS[1]
