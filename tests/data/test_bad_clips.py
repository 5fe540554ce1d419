"""Every kind of bad data has an answer: refused in one line, left out and counted, used as said, or ignored."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from rayasd.cli.data import check
from rayasd.config import DataConfig
from rayasd.data import decoding
from rayasd.data.audio import read_samples
from rayasd.data.catalog import Catalog, scan
from rayasd.data.waveforms import decode, open_waveforms
from rayasd.errors import BadClipError, UserError
from tests.conftest import write_tree
from tests.data.bad_clips import CASES, RATE, TRAIN, Case, put, remove, signal, wav

SETTINGS = {"resample": ("resample", True), "mean": ("channel", "mean")}
PAGE = Path(__file__).parents[2] / "docs/bad-data.md"

LARGE = ("two hours", "tree deeper than Python's stack", "thousands of empty folders")
each_case = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (name in LARGE), id=name) for name, case in CASES.items()]
)
pytestmark = pytest.mark.timeout(120)  # what hangs, fails


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tree(tmp_path_factory.mktemp("good"), ("fan", "pump"))
    for clip in root.rglob("*_000[1-9]*"):
        clip.unlink()  # one of each kind will do
    return root


@pytest.fixture
def root(good: Path) -> Iterator[Path]:
    """Tree of two machines, for one bad thing; not below pytest's folder, for pytest could not remove all of them."""
    folder = Path(tempfile.mkdtemp(prefix="rayasd-bad-"))
    shutil.copytree(good, folder / "tree", copy_function=os.link)
    yield folder / "tree"
    remove(folder)


def config(case: Case, on_bad_clip: str) -> DataConfig:
    return DataConfig(on_bad_clip=on_bad_clip, **dict(SETTINGS[name] for name in case.sets))  # type: ignore[arg-type]


@contextmanager
def subject_to_permissions(tree: Path) -> Iterator[None]:
    """Be somebody who may not read everything, also where root runs the tests."""
    if os.geteuid():
        yield
        return
    cache = tree.parent / "cache"
    cache.mkdir(exist_ok=True)
    cache.chmod(0o777)
    for folder in (tree, *tree.parents):
        if folder.stat().st_mode & 0o077 == 0:
            folder.chmod(0o711 if folder != tree else 0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def reader(case: Case, tree: Path) -> AbstractContextManager[None]:
    return subject_to_permissions(tree) if case.says == "Permission denied" else nullcontext()


def decoded(case: Case, root: Path, on_bad_clip: str) -> Catalog:
    """Write the case, and catalog and decode the tree."""
    with reader(case, root):
        catalog = scan(root)
        if case.after_scan:
            case.after_scan(root)
        return decode(catalog, config(case, on_bad_clip), root.parent / "cache")


def samples(catalog: Catalog, clip: str, cache: Path) -> np.ndarray:
    machine = clip.split("/")[-3]
    clips = catalog.table.filter(pc.field("machine") == machine)["clip"].to_pylist()
    mapped = open_waveforms(catalog, machine, DataConfig(), cache)
    out = np.empty(mapped.frames[clips.index(clip)], np.int16)
    mapped.window(clips.index(clip), 0, len(out), out)
    return out


@each_case
def test_every_case_has_its_answer(case: Case, good: Path, root: Path):
    number = scan(good).table.num_rows
    paths = case.write(root)
    if case.answer.endswith("refused"):
        with pytest.raises(UserError) as refusal:
            decoded(case, root, "fail")
        assert paths[0] in str(refusal.value) or case.answer == "always refused"
        assert case.says in str(refusal.value)
        assert str(refusal.value).isprintable()  # one line, and nothing that a terminal obeys
    else:
        catalog = decoded(case, root, "fail")
        used = case.answer == "used"
        assert catalog.table.num_rows == number + len(paths) * used
        assert not [odd for odd in catalog.oddities if odd.unusable]
        for path in paths * used:
            held = samples(catalog, path, root.parent / "cache")
            if case.tolerance is not None:
                np.testing.assert_allclose(held.astype(int), signal(), atol=case.tolerance, rtol=0)


@each_case
def test_skipping_leaves_out_what_is_refused_and_nothing_else(case: Case, good: Path, root: Path):
    before = decode(scan(good), DataConfig(), root.parent / "cache").table.select(["clip", "digest"]).to_pylist()
    paths = case.write(root)
    if case.answer == "always refused":
        with pytest.raises(UserError, match=re.escape(case.says)):
            decoded(case, root, "skip")
        return
    catalog = decoded(case, root, "skip")
    bad = [odd for odd in catalog.oddities if odd.unusable]
    after = catalog.table.select(["clip", "digest"]).to_pylist()
    assert [row for row in after if row in before] == before
    assert len(after) == len(before) + len(paths) * (case.answer == "used")
    if case.answer == "refused":
        (odd,) = bad
        assert odd.path.startswith(paths[0])
        assert case.says in odd.problem
    else:
        assert not bad


@each_case
def test_checking_says_it(case: Case, root: Path, capsys: pytest.CaptureFixture[str]):
    paths = case.write(root)
    if case.after_scan:
        pytest.skip("nothing is wrong yet when all is listed and read at once")
    words = {"resample": "data.resample=true", "mean": "data.channel=mean"}
    sets = ["front_end.window_seconds=0.5", *(words[name] for name in case.sets)]
    with reader(case, root):
        if case.answer == "always refused":
            with pytest.raises(UserError, match=re.escape(case.says)):
                check.callback(root=root, ground_truth=None, overrides=sets)
            return
        with pytest.raises(SystemExit) as ended:
            check.callback(root=root, ground_truth=None, overrides=sets)
    printed = capsys.readouterr().out
    assert ended.value.code == (case.answer == "refused")
    assert case.says in printed
    if case.says:
        line = next(line for line in printed.splitlines() if case.says in line)
        assert line.isprintable()
        assert paths[0] in line
    else:
        assert not any(path in printed for path in paths)


@pytest.mark.parametrize("name", ["pipe", "device", "folder named like a clip"])
def test_what_is_no_file_is_not_waited_for(root: Path, name: str):
    CASES[name].write(root)
    with pytest.raises(BadClipError, match=CASES[name].says):
        read_samples(root / TRAIN, DataConfig())  # as rayasd score does, without a catalog


def test_a_clip_that_grows_while_it_is_read_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch):
    put(root, wav())
    read = decoding.read_facts

    def grow(path: Path, *rules: object):
        facts = read(path, *rules)
        if path == root / TRAIN and facts.frames == RATE:
            path.write_bytes(wav(signal(1.5)))  # its place in the memory map ends before
        return facts

    monkeypatch.setattr(decoding, "read_facts", grow)
    with pytest.raises(UserError, match=f"{TRAIN} changed while it was read: is it still being written"):
        decode(scan(root), DataConfig(), root.parent / "cache")


def test_a_clip_that_changes_in_the_middle_of_reading_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch):
    import soundfile

    put(root, wav())
    whole = soundfile.SoundFile.read

    def read(file, *arguments, **options):
        found = whole(file, *arguments, **options)
        if len(found) and np.array_equal(found.ravel(), signal()):
            os.utime(root / TRAIN, (1, 1))
        return found

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    with pytest.raises(UserError, match=f"{TRAIN} changed while it was read: is it still being written"):
        decode(scan(root), DataConfig(), root.parent / "cache")


@pytest.mark.parametrize("on_bad_clip", ["fail", "skip"])
def test_a_clip_that_was_mended_without_a_new_time_is_read_again(root: Path, on_bad_clip: str):
    put(root, wav())
    (root / TRAIN).chmod(0)
    with subject_to_permissions(root):
        catalog = decode(scan(root), DataConfig(on_bad_clip="skip"), root.parent / "cache")
    assert TRAIN not in catalog.table["clip"].to_pylist()
    (root / TRAIN).chmod(0o644)
    with subject_to_permissions(root):
        catalog = decode(scan(root), DataConfig(on_bad_clip=on_bad_clip), root.parent / "cache")
    assert TRAIN in catalog.table["clip"].to_pylist()


def test_a_tree_of_nothing_but_bad_clips_says_what_is_odd(tmp_path: Path):
    (tmp_path / TRAIN).mkdir(parents=True)
    with pytest.raises(UserError, match=r"no clips in .*; fan/train/.* is a folder, not a file: expected"):
        scan(tmp_path)


@pytest.mark.parametrize("name", ["caf\udce9", "a\nb", "\x1b[31mred"])
def test_roots_and_manifests_with_names_that_cannot_be_shown_are_refused(tmp_path: Path, name: str):
    put(tmp_path / name, wav())
    with pytest.raises(UserError, match="control character|not UTF-8") as refusal:
        scan(tmp_path / name)
    assert str(refusal.value).isprintable()
    if "\udce9" not in name:
        manifest = tmp_path / "clips.csv"
        manifest.write_text(f'path,machine,section,domain,split,label\na.wav,"x{name}y",00,source,train,normal\n')
        with pytest.raises(UserError, match="row 1: .* has a control character in its name"):
            scan(manifest)


def test_the_page_has_a_row_for_every_case_and_says_what_is_so():
    rows = [
        line.strip("|").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    told = {name.strip(): (fail.strip(), skip.strip()) for name, fail, skip in rows}
    words = {
        "refused": ("refused", "left out"),
        "always refused": ("refused", "refused"),
        "used": ("used", "used"),
        "ignored": ("ignored", "ignored"),
    }
    assert told.keys() - {"case"} == CASES.keys()
    for name, case in CASES.items():
        assert tuple(text.partition(":")[0] for text in told[name]) == words[case.answer], name
