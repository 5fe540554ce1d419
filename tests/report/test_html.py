"""The page of a run: what it shows, that it holds together without network, and that no name in the data breaks it."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile
from sklearn.metrics import roc_auc_score

from rayasd.cli.report import report as report_command
from rayasd.evaluation.decisions import Decided
from rayasd.evaluation.scores import SectionScores
from rayasd.report.html import figures
from rayasd.report.html.evidence import FPR, SectionResult, mean_roc, most_wrong
from rayasd.report.html.heat import heat_table
from rayasd.report.html.maps import MAX_POINTS, draw_sample
from rayasd.report.html.summary import published_rank
from rayasd.report.html.svg import drawing, log_ticks, tag, ticks
from rayasd.report.run_report import RunReport
from rayasd.unit import RunDirectory, Unit
from tests.command import call
from tests.conftest import run_locally, small_sweep, write_tree

HOSTILE_MACHINE = '<img src=x onerror=alert(1)> & "co" \'é🔊'
HOSTILE_WORDS = "<script>alert(2)<😀>\"'&{{7*7}}"
SECTIONS = ("summary", "leaderboard", "overview", "machines", "origin")


class Page(HTMLParser):
    """Elements of a page, and the text of each section."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.section = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        self.texts[self.section] = self.texts.get(self.section, "") + data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def report(run: Path, **options: bool) -> Page:
    default = dict.fromkeys(("all_systems", "oracle", "sections", "attributes", "with_audio"), False)
    report_command.callback(run=run, ground_truth=None, overrides=(), out=None, **(default | options))
    return Page(RunDirectory(run).html)


def write_hard_tree(root: Path, machines: tuple[str, ...]) -> Path:
    """Write a tree in which some test clips have the wrong label, and all have names that no page should trust."""
    names = {"normal_0000": "anomaly_0000", "anomaly_0000": "normal_0000"}
    for path in sorted(write_tree(root, machines).rglob("*_test_*.wav")):
        stem = re.sub("|".join(names), lambda match: names[match[0]], path.stem)
        path.rename(path.with_name(f"{stem}_{HOSTILE_WORDS}.wav"))
    return root


@pytest.fixture(scope="module")
def swept(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of two variants, one of them a control, on two machines with names that no page should trust."""
    folder = tmp_path_factory.mktemp("html")
    tree = write_hard_tree(folder / "tree", ("fan", HOSTILE_MACHINE))
    return run_locally(tree, cache, folder / "a <b>run", "--variants", "both,statistics")


@pytest.fixture(scope="module")
def page(swept: Path) -> Page:
    return report(swept)


@pytest.mark.slow
def test_all_sections_are_there_and_filled(page: Page, swept: Path):
    assert [attrs["id"] for name, attrs in page.elements if name == "section"] == list(SECTIONS)
    assert "8/8 of the best" in page.texts["origin"]  # 2 machines x 2 sections x 2 domains
    assert "cpu" in page.texts["origin"]
    assert "exposure" in page.texts["origin"]
    assert page.count("article") == 2
    assert "data are not DCASE 2021 Task 2" in page.texts["leaderboard"]
    charts = [attrs["aria-label"] for name, attrs in page.elements if name == "svg" and "aria-label" in attrs]
    for start, number in (("ROC curves of", 2), ("Scores of", 4), ("Embeddings of", 2),
                          ("Training and validation loss", 2)):  # fmt: skip
        assert sum(label.startswith(start) for label in charts) == number, start
    assert sum(label.startswith("Log-mel spectrogram of") for label in charts) == page.count("image") > 4
    assert all(attrs["href"].startswith("data:image/png") for name, attrs in page.elements if name == "image")
    assert sum(attrs.get("class") == "window" for _, attrs in page.elements) == page.count("image")
    assert page.count("audio") == 4  # two per machine
    assert len(page.source) < 500_000
    drawn = {path.name for path in (swept / "plots").iterdir()}
    assert {"roc-fan.svg", "scores-fan-00.svg", "training-fan.svg"} <= drawn
    charts_alone = [ElementTree.parse(path).getroot() for path in (swept / "plots").glob("*.svg")]
    assert [root.tag for root in charts_alone] == ["{http://www.w3.org/2000/svg}svg"] * 8


@pytest.mark.slow
def test_names_from_the_data_are_text_and_nothing_else(page: Page):
    assert page.count("script") == 1
    assert not [attrs for _, attrs in page.elements if any(key.startswith("on") for key in attrs)]
    assert all(name in figures_and_page_elements() for name, _ in page.elements), {n for n, _ in page.elements}
    assert HOSTILE_WORDS in page.texts["machines"]
    assert HOSTILE_MACHINE in page.texts["leaderboard"]
    assert HOSTILE_MACHINE in page.texts["overview"]
    assert "<b>" not in page.source


def figures_and_page_elements() -> set[str]:
    layout = "html head meta title style body header h1 h2 h3 h4 p strong nav main article section footer script a div"
    text = "span br ul li dl dt dd details summary pre figure figcaption fieldset legend label input output button"
    return set(f"{layout} {text} table thead tbody tr th td svg g path rect image text audio".split())


@pytest.mark.slow
def test_the_page_needs_no_network(page: Page):
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert page.count("link") == page.count("iframe") == page.count("object") == 0
    for _, attrs in page.elements:
        assert (attrs.get("src") or "data:").startswith("data:")
        assert (attrs.get("href") or "#").startswith(("#", "data:"))
    assert not re.findall(r"url\(|@import", page.source)
    policy = next(attrs["content"] for name, attrs in page.elements if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


@pytest.mark.slow
def test_all_sounds_are_mono_flac_if_asked_for(swept: Path, tmp_path: Path):
    heard = report(shutil.copytree(swept, tmp_path / "run"), with_audio=True)
    sounds = [attrs["src"] for name, attrs in heard.elements if name == "audio"]
    assert len(sounds) == heard.count("image")
    with soundfile.SoundFile(io.BytesIO(base64.b64decode(sounds[0].partition(",")[2]))) as sound:
        assert (sound.channels, sound.samplerate, sound.frames, sound.format) == (1, 16000, 16000, "FLAC")


@pytest.mark.slow
def test_runs_are_compared_on_a_page_with_their_trends(swept: Path, tmp_path: Path, cache: Path):
    later, out = shutil.copytree(swept, tmp_path / "later"), tmp_path / "page.html"
    shown = call("compare", swept, later, "--variants", "both,statistics", "--html", out, cache=cache)
    assert shown.returncode == 0, shown.stderr
    page = Page(out)
    assert "a <b>run both" in page.texts["summary"]
    assert "Paired bootstrap over the test clips of" in page.texts["summary"]
    lines = [" ".join(text.split()) for text in page.texts["overview"].split("\n")]
    for beginning in ("1 a <b>run both ", "2 later statistics ", HOSTILE_MACHINE):  # then the detector
        assert any(line.startswith(beginning) for line in lines), beginning
    drawn = [attrs["aria-label"] for name, attrs in page.elements if name == "svg"]
    assert sorted(drawn) == ["both, by run", "statistics, by run"]
    assert page.count("script") == 1
    assert "<b>" not in page.source


@pytest.mark.slow
def test_recordings_in_other_units_are_drawn(cache: Path, tmp_path: Path):
    tree = write_hard_tree(tmp_path / "tree", ("fan",))
    for path in tree.rglob("*.wav"):
        soundfile.write(path, 100 * soundfile.read(path)[0], 16000, subtype="FLOAT")
    shown = report(run_locally(tree, cache, tmp_path / "run", "--variants", "statistics"))
    assert shown.count("image") > 0
    assert "beyond full scale" not in shown.texts["machines"]


@pytest.mark.slow
def test_a_run_with_missing_units_says_what_is_missing(swept: Path, tmp_path: Path):
    run = shutil.copytree(swept, tmp_path / "run")
    lost = RunDirectory(run)
    for stage in ("train", "embed", "detect"):
        lost.marker(Unit(stage, "both", "fan", 0), "DONE").unlink()
    shown = report(run)
    assert "7 of 10 done" in shown.texts["origin"]
    assert "train fan both seed 0 has not been done" in shown.texts["origin"]
    assert "Missing or failed: 3" in shown.texts["summary"]
    assert "Incomplete" in shown.texts["summary"]
    assert "4/8" in shown.texts["leaderboard"]
    assert "points above" not in shown.texts["summary"]  # no lead of an entry whose cells are not all there


@pytest.mark.slow
def test_a_copy_without_weights_and_embeddings_is_reported(swept: Path, tmp_path: Path):
    run = shutil.copytree(swept, tmp_path / "run")
    for folder in ("models", "embeddings"):
        shutil.rmtree(run / folder)
    shown, whole = report(run), report(swept)
    assert shown.texts["leaderboard"] == whole.texts["leaderboard"]
    assert "10 of 10 done" in shown.texts["origin"]
    assert "Missing" not in shown.texts["summary"]


@pytest.mark.slow
def test_a_run_without_labels_has_its_scores_and_embeddings(swept: Path, tmp_path: Path):
    run = shutil.copytree(swept, tmp_path / "run")
    catalog = pq.read_table(run / "catalog.parquet")
    label = pc.if_else(pc.equal(catalog["split"], "test"), pa.scalar(None, pa.int8()), catalog["label"])
    pq.write_table(catalog.set_column(catalog.schema.get_field_index("label"), "label", label), run / "catalog.parquet")
    shown = report(run)
    assert "there is no ROC curve" in shown.texts["machines"]
    assert "No labelled clip" in shown.texts["machines"]
    assert sum(attrs.get("aria-label", "").startswith("Scores of") for n, attrs in shown.elements if n == "svg") == 4
    assert "unlabelled: 6 of 6 clips have no label" in {attrs.get("title") for _, attrs in shown.elements}


@pytest.mark.slow
def test_one_machine_a_control_alone_and_recordings_that_are_gone(cache: Path, tmp_path: Path):
    tree = write_hard_tree(tmp_path / "tree", ("fan",))
    run = run_locally(tree, cache, tmp_path / "run", "--variants", "level")
    shutil.rmtree(tree / "fan/source_test")
    for path in (tree / "fan/target_test").iterdir():
        path.write_bytes(path.read_bytes() + b"\0\0")
    shown = report(run)
    assert "Nothing was trained" in shown.texts["machines"]
    assert "its file is gone" in shown.texts["machines"]
    assert "its file has changed since the sweep" in shown.texts["machines"]
    assert shown.count("image") == 0
    assert shown.count("section") == len(SECTIONS)


@pytest.mark.slow
def test_a_run_whose_detector_fails_everywhere_says_why(cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    tree = write_tree(tmp_path / "tree", ("fan",))
    failed = call(*small_sweep(tree, run, "--variants", "statistics", "--detectors", "gmm-512"), cache=cache)
    assert failed.returncode == 1
    shown = report(run)
    assert "statistics fan section 00: 2 cells" in shown.texts["origin"]
    assert "n_components = 512" in shown.texts["origin"]
    assert "The best entry has no scores" in shown.texts["machines"]


CHECKS = """
<script>
const rows = () => [...document.querySelectorAll("#leaderboard table.board tbody tr")].filter((row) => !row.hidden);
const column = (i) => rows().map((row) => row.cells[i].textContent);
const heads = [...document.querySelectorAll("#leaderboard table.board th")];
const titles = heads.map((head) => head.textContent.trim());
const of = (title) => titles.indexOf(title);
const filter = document.querySelector("#leaderboard input[type=search]");
const outcome = { chosen: rows().length };
document.querySelector("#leaderboard input[type=checkbox]").click();
outcome.all = rows().length;
heads[of("AUC on all")].querySelector("button").click();
outcome.falling = column(of("AUC on all"));
outcome.sort = heads.map((head) => head.getAttribute("aria-sort"))[of("AUC on all")];
heads[of("AUC on all")].querySelector("button").click();
outcome.rising = column(of("AUC on all"));
heads[of("detector")].querySelector("button").click();
outcome.words = column(of("detector"));
filter.value = "KNN max";
filter.dispatchEvent(new Event("input"));
outcome.filtered = [...new Set(column(of("detector")).concat(column(of("pooling"))))];
outcome.count = document.querySelector("#leaderboard output").textContent;
const colour = () => getComputedStyle(document.querySelector("#machines figure .by-label-1")).stroke;
const before = colour();
document.querySelector("#machines input[value=label]").click();
outcome.recoloured = colour() !== before && before !== "none";
outcome.legends = [...document.querySelectorAll("#machine-0 [data-legend]")]
  .filter((each) => getComputedStyle(each).display !== "none").map((each) => each.dataset.legend);
const heat = document.querySelector("#overview table.heat");
heat.querySelectorAll("th button")[1].click();
outcome.means = [...heat.tBodies[0].rows].map((row) => parseFloat(row.cells[1].textContent));
outcome.scoreEnds = heads[of("score")].getBoundingClientRect().right;
outcome.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
outcome.errors = errors;
const shown = document.createElement("pre");
shown.id = "outcome";
shown.textContent = JSON.stringify(outcome);
document.body.append(shown);
</script>
"""
LISTEN = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(String(event.message)), true);
addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective));
console.error = (...words) => errors.push(words.join(" "));
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1280])
def test_a_browser_sorts_filters_and_recolours_without_an_error(page: Page, tmp_path: Path, width: int):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium on this host")
    copy = tmp_path / "page.html"
    listening = page.source.replace("<title>", f"{LISTEN}<title>", 1)
    copy.write_text(listening.replace("</body>", f"{CHECKS}</body>"), encoding="utf-8")
    quiet = ("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update",
             "disable-sync", "no-sandbox", "headless", "dump-dom")  # fmt: skip
    options = [f"--{name}" for name in (*quiet, f"user-data-dir={tmp_path / 'profile'}", f"window-size={width},900")]
    done = subprocess.run([browser, *options, copy.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, flags=re.S)
    assert found is not None, done.stdout[-2000:]
    outcome = json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert outcome["errors"] == []
    assert outcome["chosen"] == 2
    assert outcome["all"] == 8  # variants x detectors x poolings
    falling = [float(value) for value in outcome["falling"]]
    assert falling == sorted(falling, reverse=True)
    assert outcome["sort"] == "descending"
    assert [float(value) for value in outcome["rising"]] == sorted(falling)
    assert outcome["words"] == sorted(outcome["words"])
    assert outcome["filtered"] == ["knn-1", "max"]
    assert outcome["count"] == "2 of 8 shown"
    assert outcome["recoloured"]
    assert outcome["legends"] == ["label"]
    assert outcome["means"] == sorted(outcome["means"], reverse=True)
    assert outcome["scoreEnds"] < width
    assert outcome["overflow"] <= 0  # wide tables and charts scroll by themselves


def result(num_clips: int, section: str = "00", seed: int = 0, **fields: object) -> SectionResult:
    """Scores of a section's clips in two domains, every second one anomalous."""
    rng = np.random.default_rng(seed)
    clips = np.array([f"{section}/{i}" for i in range(num_clips)], dtype=object)
    domains = np.array(["source" if i % 4 < 2 else "target" for i in range(num_clips)], dtype=object)
    labels = np.array([i % 2 for i in range(num_clips)], dtype=object)
    none = clips[:0]
    scores = np.round(rng.standard_normal(num_clips) + 0.8 * labels.astype(float), 1)  # some are equal
    given = {
        "labels": labels,
        "threshold": 1.0,
        "p_values": np.full(num_clips, 0.5),
        "domains": ("source", "target"),
        "part": "evaluation",
        **fields,
    }
    return SectionResult(machine="fan", section=section, seed=seed, **given,
                         scores=SectionScores(clips, domains, scores, None, clips, none, scores[:0], none, none))  # type: ignore[arg-type] # fmt: skip


def labels_of(*results: SectionResult) -> dict[str, int | None]:
    return {clip: label for r in results for clip, label in zip(r.scores.clips, r.labels, strict=True)}


def aucs(of: SectionResult) -> list[float]:
    cells = [of.scores.domains == domain for domain in of.domains]
    return [roc_auc_score(of.labels[cell].astype(int), of.scores.scores[cell]) for cell in cells]


@pytest.mark.slow
def test_figures_beside_the_best_entry_count_the_sections_that_rank(swept: Path):
    found = RunReport.of(swept)
    best = found.results.leaderboard.ranked[0]
    cells = found.ranking_cells.filter(pc.field("selected") & (pc.field("variant") == best.variant))
    assert set(cells["part"].to_pylist()) == {found.results.leaderboard.ranked_on}
    assert Decided.of(cells.to_pylist()) == best.decided
    assert len(found.ranking_cells) < len(found.results.cells)


def test_a_cell_of_several_sections_names_their_number_not_seeds():
    cell = {"auc": 0.8, "pauc": None, "domain": "source", "num_normal": 4, "num_anomaly": 5}
    several = [cell | {"section": f"0{n}", "seed": 0} for n in range(4)]
    seeds = [cell | {"section": "00", "seed": seed} for seed in range(3)]
    table = heat_table({"one": {("fan", "", ""): several}, "two": {("fan", "", ""): seeds}})
    notes = [cells[1].note for _, cells in table.rows]  # the first is the mean
    assert notes == ["4 sections and domains", "4 normal and 5 anomalous clips, mean of 3 seeds"]


def test_the_area_of_the_mean_curve_is_the_mean_auc():
    results = [result(400, "00"), result(200, "01", 1)]
    tpr = mean_roc(results, 2021, labels_of(*results))
    assert tpr is not None
    assert np.trapezoid(tpr, FPR) == pytest.approx(np.mean([a for r in results for a in aucs(r)]), abs=0.005)
    assert mean_roc([result(8, domains=())], 2021, {}) is None


def test_a_clips_wrongness_is_what_it_costs_the_auc():
    of = result(80)
    wrong = most_wrong([of], 2021, labels_of(of), 80)
    for domain, auc in zip(of.domains, aucs(of), strict=True):
        for anomalous in (False, True):
            costs = [w.wrongness for w in wrong if w.domain == domain and w.anomalous is anomalous]
            assert sum(costs) / 20 == pytest.approx(1 - auc)
    assert [w.wrongness for w in wrong] == sorted((w.wrongness for w in wrong), reverse=True)
    assert len(most_wrong([of], 2021, labels_of(of), 10)) == 10
    assert most_wrong([result(8, domains=())], 2021, {}, 10) == []


def test_scores_are_drawn_whatever_is_known_of_them():
    unknown = result(20, labels=np.full(20, None, dtype=object), threshold=None, domains=())
    assert "no threshold" in figures.histogram(unknown)
    assert "c7" in figures.histogram(unknown)
    same = result(20)
    same.scores.scores[:] = 3.0
    same.scores.scores[0] = np.nan
    assert "nan" not in figures.histogram(same)


def test_text_in_charts_is_escaped():
    hostile = "<script>alert('1')</script>\""
    drawn = drawing(10, 10, hostile, tag("text", hostile, class_=hostile))
    assert "<script" not in drawn
    assert drawn.count("&lt;script&gt;") == 4
    assert drawn.count("&#34;") == 4


def test_a_run_on_the_benchmark_has_a_place_among_published_systems():
    entries = [SimpleNamespace(variant="both", evaluation=0.99, evaluation_std=0.01, complete=True),
               SimpleNamespace(variant="part", evaluation=0.995, evaluation_std=None, complete=False)]  # fmt: skip
    board = SimpleNamespace(part="evaluation", ranked=entries)
    rules = SimpleNamespace(rule_year=2021)
    run = SimpleNamespace(
        why_not_published=lambda part: None, results=SimpleNamespace(leaderboard=board), evaluation=rules
    )
    sentence, lines = published_rank(run)  # type: ignore[arg-type]
    assert sentence.startswith("both is number 1 of ")
    assert lines[0] == ("both", "99.00 ± 1.00", "this run", True)
    run.why_not_published = lambda part: "the data are synthetic"
    assert published_rank(run) == ("Published systems are not listed: the data are synthetic.", [])  # type: ignore[arg-type]


def test_ticks_are_round_and_within_the_range():
    assert [label for _, label in ticks(0, 1)] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert ticks(2, 2) == [(2, "2")]
    assert [label for _, label in log_ticks(0.005, 30)] == ["0.01", "0.1", "1", "10"]
    assert all(4 <= value <= 7 for value, _ in log_ticks(4, 7))
    assert len(log_ticks(4, 7)) > 2


def test_the_sample_of_a_map_is_bounded_and_even():
    rows = [{"clip": str(i), "section": f"{i % 6:02}", "domain": "target" if i % 300 < 6 else "source",
             "split": "train" if i < 6000 else "test", "label": 0} for i in range(9000)]  # fmt: skip
    sample = draw_sample(pa.Table.from_pylist(rows), "fan")
    assert 0.9 * MAX_POINTS < sample.num_rows <= MAX_POINTS
    assert sample.equals(draw_sample(pa.Table.from_pylist(rows), "fan"))
    counts = sample.group_by(["section", "domain", "split"]).aggregate([("clip", "count")])["clip_count"].to_pylist()
    assert sorted(set(counts)) == [10, 20, 26]  # all there are of the rare ones, and as many of all others
