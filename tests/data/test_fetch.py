"""Data sets fetched from a server of this host that can be as bad as servers are."""

import hashlib
import io
import json
import os
import shutil
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayasd.cli import data as commands
from rayasd.data import download, fetch, zenodo
from rayasd.data.catalog import scan
from rayasd.data.ground_truth import scan_labelled
from rayasd.data.zenodo import RECORDS, Archive, list_archives
from rayasd.errors import UserError
from rayasd.files import FREE_SPACE_MARGIN
from tests.conftest import write_clip

DEV, EVAL_TRAIN, EVAL_TEST, TRUTH = 4562016, 4660992, 4884786, 5257674
FAN, TRUTH_ZIP = "dev_data_fan.zip", "dcase2021_task2_evaluator-v1.0.zip"
Content = dict[int, dict[str, bytes]]


def zipped(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Archives of two machines as DCASE packs them: record -> name -> bytes."""
    clip = tmp_path_factory.mktemp("clips") / "clip.wav"
    write_clip(clip, 300, seconds=0.1)
    test = [(domain, label) for domain in ("source", "target") for label in ("_normal", "_anomaly")]

    def zipped_clips(machine: str, *names: str) -> bytes:
        members = {f"{machine}/": b"", f"__MACOSX/{machine}/train/._x.wav": b"finder"}
        return zipped(members | {f"{machine}/{name}_0000.wav": clip.read_bytes() for name in names})

    truth = {
        f"y-kawagu-dcase2021-1a2b/ground_truth_data/ground_truth_{machine}_section_03_{domain}_test.csv": (
            f"section_03_{domain}_test_0000.wav,1\r\n".encode()
        )
        for machine in ("fan", "pump")
        for domain in ("source", "target")
    }
    made: Content = {DEV: {}, EVAL_TRAIN: {}, EVAL_TEST: {}, TRUTH: {}}
    for machine in ("fan", "pump"):
        tests = [f"{domain}_test/section_00_{domain}_test{label}" for domain, label in test]
        unnamed = [f"{domain}_test/section_03_{domain}_test" for domain in ("source", "target")]
        made[DEV][f"dev_data_{machine}.zip"] = zipped_clips(machine, "train/section_00_source_train_normal", *tests)
        made[EVAL_TRAIN][f"eval_data_{machine}_train.zip"] = zipped_clips(
            machine, "train/section_03_source_train_normal"
        )
        made[EVAL_TEST][f"eval_data_test_{machine}.zip"] = zipped_clips(machine, *unnamed)
    made[DEV]["readme.md"] = b"no archive"
    made[TRUTH][f"y-kawagu/{TRUTH_ZIP}"] = zipped({**truth, "y-kawagu-dcase2021-1a2b/evaluator.py": b"import os"})
    return made


class Site:
    """A Zenodo, and what is wrong with it."""

    def __init__(self, content: Content) -> None:
        self.content = {record: dict(files) for record, files in content.items()}
        self.listed: dict[str, dict[str, object]] = {}
        """File -> what its record says of it instead of the truth."""
        self.breaks_after: dict[str, list[int]] = {}
        """File -> bytes after which each answer but the last breaks off."""
        self.statuses: dict[str, list[int]] = {}
        """File -> status of each answer but the last."""
        self.knows_ranges, self.shifts_ranges = True, False
        self.sent: Counter[str] = Counter()
        self.asked: list[tuple[str, str | None]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        words = request.path.partition("?")[0].removeprefix("/api/records/").split("/")
        record = int(words[0])
        if len(words) == 1:
            self._send(request, json.dumps(self._record(record)).encode())
            return
        key = "/".join(words[2:-1])
        name = key.rpartition("/")[2]
        wanted = request.headers.get("Range")
        self.asked.append((name, wanted))
        if self.statuses.get(name):
            request.send_error(self.statuses[name].pop(0))
            return
        body, first = self.content[record][key], 0
        if wanted and self.knows_ranges:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= len(body):
                request.send_error(416)
                return
        self._send(request, body, name, first)

    def _record(self, record: int) -> dict[str, object]:
        files = [
            {
                "key": key,
                "size": len(body),
                "checksum": f"md5:{hashlib.md5(body).hexdigest()}",
                "links": {"self": f"{self.url}/api/records/{record}/files/{key}/content"},
            }
            | self.listed.get(key.rpartition("/")[2], {})
            for key, body in self.content[record].items()
        ]
        return {"id": record, "files": files}

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, name: str = "", first: int = 0) -> None:
        request.send_response(206 if first else 200)
        if first:
            shift = 1 if self.shifts_ranges else 0
            request.send_header("Content-Range", f"bytes {first - shift}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Length", str(len(body) - first))
        request.end_headers()
        most = self.breaks_after[name].pop(0) if self.breaks_after.get(name) else len(body)
        part = body[first : first + most]
        self.sent[name] += len(part)
        request.wfile.write(part)


@pytest.fixture
def site(content: Content, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "RETRY_PAUSE", 0.0)
    monkeypatch.setattr(download, "_CHUNK", 100)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = Site(content)
    monkeypatch.setattr(zenodo, "ZENODO", site.url)
    yield site
    site.close()


Get = Callable[..., None]


@pytest.fixture
def get(site: Site, tmp_path: Path) -> Get:
    """Fetch what ``rayasd data fetch`` would; fan's development clips if nothing else is said."""

    def run(dataset: str = "dcase2021", machines: str = "fan", parts: str = "dev", keep_archives: bool = False) -> None:
        commands.fetch.callback(
            dataset=dataset, out=tmp_path / "root", machines=machines, parts=parts, keep_archives=keep_archives
        )

    return run


def refused(get: Get, said: str, **options: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        get(**options)
    assert "\n" not in str(error.value)


def files_below(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def nothing_left(root: Path) -> bool:
    """Whether no clip, no archive, no part of one and no record says that anything is there."""
    return not files_below(root)


def test_a_whole_data_set_passes_the_check_and_comes_once(
    get: Get, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "root"
    get(machines="all", parts="all")
    catalog = scan(root)
    assert not catalog.oddities
    assert catalog.table.num_rows == 2 * (1 + 4 + 1 + 2)
    assert set(catalog.table["label"].to_pylist()) == {0, 1, None}
    assert None not in scan_labelled(root, None).table["label"].to_pylist()
    assert {path.name for path in root.iterdir()} == {"dev_data", "eval_data", "ground_truth_data", "fetched.json"}
    assert len(files_below(root / "ground_truth_data")) == 4
    with pytest.raises(SystemExit) as ended:
        commands.check.callback(root=root, ground_truth=None, overrides=())
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "7 archives unpacked" in said
    site.asked.clear()
    get(machines="all", parts="all")
    assert not site.asked
    assert "0 archives unpacked" in capsys.readouterr().out


def test_only_the_machines_and_parts_that_were_asked_for_come(get: Get, site: Site, tmp_path: Path):
    get(machines="pump", parts="eval")
    assert scan(tmp_path / "root").machines == ["pump"]
    assert {name for name, _ in site.asked} == {"eval_data_pump_train.zip", "eval_data_test_pump.zip"}
    get(machines="pump", parts="dev,eval")
    assert site.asked[2:] == [("dev_data_pump.zip", None)]
    assert (tmp_path / "root/dev_data/pump/source_test").is_dir()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"machines": "fann"}, "unknown machine 'fann': did you mean 'fan'"),
        ({"parts": "evil"}, "unknown part 'evil': did you mean 'eval'"),
        ({"dataset": "dcase2012"}, "unknown data set 'dcase2012': did you mean 'dcase20"),
        ({"dataset": "dcase2022", "parts": "ground-truth"}, "there are: dev, eval"),
        ({"parts": "ground-truth"}, "one archive of all machines: leave --machines out"),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(
    get: Get, site: Site, tmp_path: Path, options: dict[str, str], said: str
):
    refused(get, said, **options)
    assert not (tmp_path / "root").exists()
    assert not site.asked


def test_archives_are_known_by_the_names_of_all_years(site: Site):
    names = {
        DEV: ["dev_data_fan.zip", "dev_ToyCar.zip", "eval_data_fan_train.zip", "dev_fan.tar"],
        EVAL_TRAIN: ["eval_data_3DPrinter_train_r2.zip", "eval_data_3DPrinter_train.zip", "eval_data_train_fan.zip"],
        EVAL_TEST: ["eval_data_3DPrinter_test.zip", "eval_data_test_fan.zip", "../eval_data_test_x.zip"],
    }
    for record, listed in names.items():
        site.content[record] = dict.fromkeys(listed, b"x")
    found = {archive.file.name: archive.machine for archive in list_archives("dcase2021", ("dev", "eval"))}
    assert found == {
        "dev_data_fan.zip": "fan",
        "dev_ToyCar.zip": "ToyCar",
        "eval_data_3DPrinter_train_r2.zip": "3DPrinter",
        "eval_data_train_fan.zip": "fan",
        "eval_data_3DPrinter_test.zip": "3DPrinter",
        "eval_data_test_fan.zip": "fan",
        "eval_data_test_x.zip": "x",
    }


def test_no_record_serves_two_data_sets():
    records = [record for parts in RECORDS.values() for of_part in parts.values() for record in of_part]
    assert len(records) == len(set(records))


def test_a_broken_connection_costs_only_the_rest(get: Get, site: Site, tmp_path: Path):
    size = len(site.content[DEV][FAN])
    site.breaks_after[FAN] = [1000, 500]
    get()
    assert site.sent[FAN] == size
    assert [wanted for _, wanted in site.asked] == [None, "bytes=1000-", "bytes=1500-"]
    assert scan(tmp_path / "root").machines == ["fan"]


@pytest.mark.parametrize("shifts", [False, True])
def test_a_server_without_ranges_or_with_others_starts_over(get: Get, site: Site, tmp_path: Path, shifts: bool):
    site.knows_ranges = site.shifts_ranges = shifts
    site.breaks_after[FAN] = [1000]
    get()
    assert [wanted for _, wanted in site.asked] == [None, "bytes=1000-", *([None] if shifts else [])]
    assert scan(tmp_path / "root").machines == ["fan"]


def test_a_server_that_never_gets_further_is_given_up_and_resumed_by_the_next_call(
    get: Get, site: Site, tmp_path: Path
):
    size = len(site.content[DEV][FAN])
    site.breaks_after[FAN] = [1000] + [0] * (download.MAX_ATTEMPTS - 1)
    refused(get, r"/content: IncompleteRead\(.*\); tried 5 times: run the same command again later")
    assert files_below(tmp_path / "root") == {f"archives/{FAN}.part"}
    site.breaks_after.clear()
    site.sent.clear()
    get()
    assert site.sent[FAN] == size - 1000


def test_an_interrupted_call_is_continued(get: Get, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "sync", interrupted)  # all is downloaded and unpacked beside
        get()
    assert files_below(tmp_path / "root") == {f"archives/{FAN}"}
    get()
    assert len(site.asked) == 1
    assert scan(tmp_path / "root").machines == ["fan"]


def test_what_an_older_version_left_does_not_get_in_the_way(get: Get, site: Site, tmp_path: Path):
    size = len(site.content[DEV][FAN])
    for left in (b"x" * (size + 10), b"x" * size, b"x" * 100):
        shutil.rmtree(tmp_path / "root", ignore_errors=True)
        (tmp_path / "root/archives").mkdir(parents=True)
        (tmp_path / f"root/archives/{FAN}.part").write_bytes(left)
        if len(left) <= size:
            refused(get, "its md5 is not")
        get()
        assert scan(tmp_path / "root").machines == ["fan"]


@pytest.mark.parametrize(("more", "said"), [(7, "longer than the .* bytes of its record"), (-7, "tried 5 times")])
def test_a_size_that_is_not_the_declared_one_is_refused(get: Get, site: Site, tmp_path: Path, more: int, said: str):
    size = len(site.content[DEV][FAN]) - more
    site.listed[FAN] = {"size": size}
    refused(get, said)
    assert all(path.stat().st_size <= size for path in tmp_path.rglob("*") if path.is_file())
    assert not (tmp_path / "root/dev_data").exists()


def test_a_wrong_checksum_removes_the_file(get: Get, site: Site, tmp_path: Path):
    site.listed[FAN] = {"checksum": "md5:" + "0" * 32}
    refused(get, f"{FAN}/content: its md5 is not 000.* of its record: removed; run the same command again")
    assert nothing_left(tmp_path / "root")
    site.listed.clear()
    get()
    assert scan(tmp_path / "root").machines == ["fan"]


def test_refusals_end_at_once_and_failures_that_may_pass_do_not(get: Get, site: Site, tmp_path: Path):
    site.statuses[FAN] = [404]
    refused(get, "HTTP 404 Not Found: does not exist, or needs a login")
    assert len(site.asked) == 1
    site.statuses[FAN] = [500, 429, 503]
    get()
    assert scan(tmp_path / "root").machines == ["fan"]
    shutil.rmtree(tmp_path / "root")
    site.statuses[FAN] = [500] * 9
    refused(get, "HTTP 500 Internal Server Error; tried 5 times")
    assert nothing_left(tmp_path / "root")


def test_one_archive_that_fails_does_not_stop_the_others(get: Get, site: Site, tmp_path: Path):
    site.statuses |= {FAN: [404], "eval_data_fan_train.zip": [404]}
    refused(get, r"HTTP 404.*\(1 more archive failed too\)", machines="all", parts="all")
    assert set(json.loads((tmp_path / "root/fetched.json").read_text())["archives"]) == {
        "dev_data_pump.zip", "eval_data_pump_train.zip", "eval_data_test_fan.zip", "eval_data_test_pump.zip", TRUTH_ZIP,
    }  # fmt: skip
    site.asked.clear()
    get(machines="all", parts="all")
    assert len(site.asked) == 2


def test_a_server_that_does_not_answer_is_named(get: Get, site: Site):
    site.close()
    refused(get, rf"{site.url}/api/records/{DEV}: .*; tried 5 times: run the same command again later")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"size": -1}, "does not give a link, a size and an md5"),
        ({"size": True}, "does not give"),
        ({"checksum": "sha1:00"}, "does not give"),
        ({"links": None}, "does not give"),
        ({"key": 7}, "no zip archive with a name that part dev uses"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(
    get: Get, site: Site, tmp_path: Path, entry: dict[str, object], said: str
):
    site.listed = {FAN: entry, "dev_data_pump.zip": entry}
    refused(get, said)
    assert not (tmp_path / "root").exists()


def test_a_page_that_is_no_record_is_refused(get: Get, site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Site, "_record", lambda *_: ["hello"])
    refused(get, "lists no files: does a proxy answer instead of Zenodo")
    monkeypatch.setattr(json, "dumps", lambda _: "<html>")
    refused(get, "does a proxy answer instead of Zenodo")


def with_member(name: str, kind: int = 0, **fields: int) -> bytes:
    """Zip a clip, and a member that no archive should have."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("fan/train/section_00_source_train_normal_0000.wav", b"RIFF")
        info = zipfile.ZipInfo(name)
        info.external_attr = (kind | 0o644) << 16
        archive.writestr(info, b"/etc/passwd")
        for field, value in fields.items():
            setattr(archive.filelist[-1], field, value)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("archive", "said"),
    [
        (with_member("../evil.wav"), r"its member '\.\./evil\.wav' leads out of the folder"),
        (with_member("fan/train/../../../../evil.wav"), "leads out of the folder"),
        (with_member("fan\\..\\evil.wav"), "leads out of the folder"),
        (with_member("/tmp/rayasd-evil.wav"), "its member '/tmp/rayasd-evil.wav' leads out of the folder"),
        (with_member("fan/train/link.wav", stat.S_IFLNK), "its member 'fan/train/link.wav' is a link or a device"),
        (with_member("fan/train/null.wav", stat.S_IFCHR), "is a link or a device"),
        (with_member("fan/train/a\nb.wav"), "has a name that no clip has"),
        (with_member("fan/train/" + "a" * 300), "has a name that no clip has"),
        (with_member("fan/train/secret.wav", flag_bits=1), "is damaged .*encrypted"),
        (with_member("fan/train/odd.wav", compress_type=12), "is packed by method 12"),
        (with_member("fan/train/short.wav", file_size=10), "is damaged"),
        (with_member("fan/train/wrong.wav", CRC=1), "is damaged"),
        (with_member("fan/train/section_00_source_train_normal_0000.wav/x.wav"), "holds the same path twice"),
        (with_member("old/fan/train/section_00_source_train_normal_0000.wav"), "holds the same path twice"),
        (zipped({"pump/train/x.wav": b"RIFF"}), "holds nothing that belongs here"),
        (b"no zip at all", "is damaged"),
    ],
    ids=lambda value: "archive" if isinstance(value, bytes) else None,  # it holds the time
)
def test_an_archive_that_cannot_be_trusted_leaves_nothing(
    get: Get, site: Site, tmp_path: Path, archive: bytes, said: str
):
    site.content[DEV][FAN] = archive
    refused(get, f"{FAN}/content: .*(?:{said}).*removed, and nothing of it was kept")
    assert nothing_left(tmp_path / "root")
    assert {path.name for path in tmp_path.iterdir()} == {"root"}
    assert not Path("/tmp/rayasd-evil.wav").exists()


@given(st.text("a./\\:~\0", min_size=1, max_size=12))
def test_no_name_leads_out_of_the_folder(name: str):
    info = zipfile.ZipInfo(f"fan/{name}")
    archive = Archive(download.RemoteFile(FAN, "", 1, ""), DEV, "dev", "fan")
    try:
        place = fetch._checked(info, archive)
    except fetch.BadArchiveError:
        return
    assert place is None or os.path.normpath(f"/root/into/{place}").startswith("/root/into/dev_data/fan/")


def free_space(monkeypatch: pytest.MonkeyPatch, folder: Path, free: int) -> None:
    usage = shutil.disk_usage(folder)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_a_bomb_is_measured_before_it_is_unpacked(
    get: Get, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    site.content[DEV][FAN] = zipped({"fan/train/section_00_source_train_normal_0000.wav": bytes(20 << 20)})
    with monkeypatch.context() as patch:
        free_space(patch, tmp_path, FREE_SPACE_MARGIN + (10 << 20))
        refused(get, "unpacked, needs 21 MB in .*root, 77.6 MB are free: make room")
    assert files_below(tmp_path / "root") == {f"archives/{FAN}"}
    site.asked.clear()
    get()
    assert not site.asked
    assert scan(tmp_path / "root").machines == ["fan"]


def test_too_little_space_is_said_before_anything_comes(
    get: Get, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    free_space(monkeypatch, tmp_path, FREE_SPACE_MARGIN)
    refused(get, r"needs [\d.]+ kB in .*root, 67.1 MB are free: make room")
    assert not site.asked


def test_a_full_disk_keeps_what_came(get: Get, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch, "unpack", full)
    refused(get, "no space is left in .*root: make room, then the same command continues")
    assert files_below(tmp_path / "root") == {f"archives/{FAN}"}


def test_what_a_killed_call_left_is_cleaned_and_done_again(get: Get, site: Site, tmp_path: Path):
    root = tmp_path / "root"
    name = "section_00_source_train_normal_0000.wav"
    for half in (f".unpacking/{FAN}/dev_data/fan/train/{name}", f"dev_data/fan/train/{name}"):
        (root / half).parent.mkdir(parents=True)
        (root / half).write_bytes(b"half")
    get()
    assert len(files_below(root / "dev_data")) == scan(root).table.num_rows == 5
    assert (root / f"dev_data/fan/train/{name}").read_bytes() != b"half"
    assert not (root / ".unpacking").exists()


def test_what_was_deleted_or_has_a_new_version_comes_again(get: Get, site: Site, tmp_path: Path):
    get()
    next((tmp_path / "root/dev_data/fan/train").iterdir()).unlink()
    get()
    assert len(site.asked) == 2
    with zipfile.ZipFile(changed := io.BytesIO(site.content[DEV][FAN]), "a") as archive:
        archive.writestr("fan/attributes_00.csv", "x")
    site.content[DEV][FAN] = changed.getvalue()
    get()
    assert (tmp_path / "root/dev_data/fan/attributes_00.csv").exists()
    (tmp_path / "root/fetched.json").write_text("{")
    get()
    assert len(site.asked) == 4


def test_kept_archives_need_no_second_download(get: Get, site: Site, tmp_path: Path):
    get(keep_archives=True)
    kept = tmp_path / f"root/archives/{FAN}"
    assert kept.read_bytes() == site.content[DEV][FAN]
    (tmp_path / "root/fetched.json").unlink()
    get(keep_archives=True)
    assert len(site.asked) == 1
    kept.write_bytes(bytes(kept.stat().st_size))
    shutil.rmtree(tmp_path / "root/dev_data")
    get()
    assert len(site.asked) == 2
    assert not kept.parent.exists()


def test_a_root_holds_one_data_set(get: Get, site: Site, tmp_path: Path):
    get()
    site.content |= {record: {FAN: b"x"} for record in RECORDS["dcase2020"]["dev"]}
    refused(get, "root holds dcase2021: choose another --out for dcase2020", dataset="dcase2020")
