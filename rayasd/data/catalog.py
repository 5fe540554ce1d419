"""The catalog: one Arrow table row a clip, from a folder tree in a DCASE layout or from a manifest."""

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from rayasd.config import ExposureConfig
from rayasd.data.audio import uncut, what_it_is
from rayasd.data.folders import blame_disk, folders, is_audio, is_folder
from rayasd.data.manifest import read_manifest
from rayasd.data.naming import SPLIT_FOLDERS, name_problem, parse_clip_name, shown
from rayasd.data.oddities import Oddity
from rayasd.errors import UserError
from rayasd.files import read_record
from rayasd.parquet import read_parquet, write_parquet

SCHEMA = pa.schema(
    [
        ("clip", pa.string()),  # path below the root, with forward slashes: the clip's identity
        ("machine", pa.string()),
        ("section", pa.string()),
        ("domain", pa.string()),  # source, target, unknown
        ("split", pa.string()),  # train, test; noise, clean, supplemental: neither
        ("label", pa.int8()),  # 0 normal, 1 anomalous, null unknown
        ("attributes", pa.string()),
        ("group", pa.string()),  # what belongs together within a machine; null: the clip is alone
        ("size", pa.int64()),  # bytes
        ("mtime_ns", pa.int64()),
    ]
)

ONE_MACHINE = (
    "one machine type: variants that train against others' clips take its own, transformed (exposure.pseudo_anomalies)"
    "; --variants statistics,untrained need none"
)
ONE_SECTION = "one section: the product loss learns nothing"
SCALED = "floats are divided by {:g}: they do not go from -1 to 1"
_LONGEST_MACHINE = 150  # bytes of UTF-8: names of cache files hold it, and file systems end at 255


@dataclass(frozen=True)
class Catalog:
    """Every clip below one root."""

    root: Path
    table: pa.Table  # columns of ``SCHEMA``; the waveform cache adds frames, digest and sums
    oddities: tuple[Oddity, ...] = ()
    signals: tuple[int, str] = (0, "")  # ``data.signal_rate`` and ``data.signal_column`` of the manifest

    @property
    def machines(self) -> list[str]:
        """Machine types that the root holds, sorted."""
        return sorted(pc.unique(self.table["machine"]).to_pylist())

    @property
    def trained(self) -> set[str]:
        """Machine types with training clips."""
        return set(self.table.filter(self.is_train)["machine"].to_pylist())

    @property
    def has_tests(self) -> bool:
        """Whether there are test clips."""
        return "test" in pc.unique(self.table["split"]).to_pylist()

    def of(self, machine: str) -> pa.Table:
        """Rows of one machine type's clips."""
        return self.table.filter(pc.field("machine") == machine)

    @property
    def is_train(self) -> pc.Expression:
        """Filter expression of the training clips."""
        return pc.field("split") == "train"

    @property
    def dataset(self) -> str | None:
        """Name that ``rayasd data fetch`` wrote beside the clips, such as dcase2021; None without it."""
        found = [read_record(folder / "fetched.json").get("dataset") for folder in (self.root, self.root.parent)]
        return next((str(name) for name in found if name), None)

    @property
    def synthetic(self) -> bool:
        """Whether the clips were made by ``rayasd data synth``."""
        below = (self.root / clip.partition("/")[0] for clip in self.table["clip"].to_pylist())
        return any((folder / "SYNTHETIC.json").exists() for folder in {self.root, self.root.parent, *below})


def scan(source: Path) -> Catalog:
    """Catalog a DCASE tree, or the clips of a manifest (CSV or Parquet). Audio is not opened.

    Raises UserError: there is no such place, it holds no clips, or its machines' names cannot be told apart.
    """
    if not source.exists():
        raise UserError(f"no such data folder or manifest: {shown(str(source))}")
    source = source.resolve()
    if problem := name_problem(str(source)):
        raise UserError(f"{shown(str(source))} {problem}: rename it")
    if source.is_file() and source.suffix.lower() in (".csv", ".parquet"):
        rows, root, signals = read_manifest(source)
        oddities: list[Oddity] = []
        for row in rows:
            try:
                status = uncut(root / row["clip"])[0].stat()
            except OSError as error:
                blame_disk(root / row["clip"], error)
                problem = f"listed in {source.name}, cannot be opened: {error.strerror}"
                oddities.append(Oddity(row["clip"], problem, True))
            else:
                row.update(size=status.st_size, mtime_ns=status.st_mtime_ns)
        rows = [row for row in rows if "size" in row]
    elif source.is_dir():
        root, rows, oddities, signals = source, [], [], (0, "")
        for entry in _split_folder_entries(source, oddities):
            _catalog_entry(entry, source, rows, oddities)
    else:
        raise UserError(f"{source} is neither a folder nor a manifest (.csv or .parquet)")
    if not rows:
        if source.is_file():
            raise UserError(f"{source} lists no clips that are there")
        odd = "; " + f"{oddities[0].path} {oddities[0].problem}".removeprefix(". ") if oddities else ""
        raise UserError(
            f"no clips in {source}{odd}: expected <machine>/train/*.wav and <machine>/source_test/*.wav, as DCASE lays "
            "them out; other layouts come in by a manifest (rayasd data index --help)"
        )
    _check_machines({str(row["machine"]) for row in rows})
    rows.sort(key=lambda row: (row["machine"], row["clip"]))
    return Catalog(root, pa.Table.from_pylist(rows, SCHEMA), tuple(oddities), signals)


def write_catalog(path: Path, catalog: Catalog) -> None:
    """Write a decoded catalog as Parquet, from which every unit reads what clips there are."""
    write_parquet(catalog.table, path)


def read_catalog(path: Path, root: Path) -> Catalog:
    """Read a decoded catalog whose clips lie below ``root``. Raises UserError: the file is missing or damaged."""
    remedy = "restore it or choose another --run-dir"
    try:
        return Catalog(root, read_parquet(path, remedy))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {remedy}") from None


def with_columns(catalog: Catalog, columns: Mapping[str, Sequence[object]]) -> Catalog:
    """Replace columns of the catalog by other values, one for each clip."""
    return replace(catalog, table=replaced(catalog.table, columns))


def replaced(table: pa.Table, columns: Mapping[str, Sequence[object]]) -> pa.Table:
    """Replace columns of a catalog's table."""
    for name, values in columns.items():
        field = SCHEMA.field(name)
        table = table.set_column(table.column_names.index(name), field, pa.array(values, field.type))
    return table


def changes(before: Catalog, after: Catalog) -> list[str]:
    """Lines that say which clips of two decoded catalogs differ, machine by machine; test labels aside."""
    columns = ["clip", "machine", "section", "domain", "attributes", "split", "group", "digest"]
    old, new = ({row["clip"]: row for row in c.table.select(columns).to_pylist()} for c in (before, after))
    found = {
        "added": [clip for clip in new if clip not in old],
        "removed": [clip for clip in old if clip not in new],
        "changed": [clip for clip in new if clip in old and new[clip] != old[clip]],
    }
    return [f"data: {len(clips)} clips {what}, {clips[0]} first" for what, clips in found.items() if clips]


def check_outlier_exposure(catalog: Catalog, machines: Iterable[str], pseudo_anomalies: str) -> None:
    """Make sure that outlier exposure has something to learn from: every machine's own training clips and another's.

    Raises UserError: a machine has none, or is the only one though ``pseudo_anomalies`` wants others.
    """
    trained = catalog.trained
    for machine in machines:
        if machine not in trained:
            raise UserError(f"{machine} has no training clips in {catalog.root}: --machines leaves it out")
        if trained == {machine} and pseudo_anomalies == "machines":
            raise UserError(
                f"{catalog.root} has training clips of {machine} alone: exposure.pseudo_anomalies = auto or transforms "
                "lets its own clips, transformed, stand in for those of others"
            )


def check_supplemental(catalog: Catalog, exposure: ExposureConfig) -> None:
    """Make sure that there are supplemental clips of the kinds that ``exposure`` uses. Raises UserError: not so."""
    used = {"supplemental_noise": ["noise"] if exposure.supplemental_noise else [],
            "supplemental_anomalies": exposure.supplemental_anomalies}  # fmt: skip
    there = pc.unique(catalog.table["split"]).to_pylist()
    for name, kinds in used.items():
        if missing := [kind for kind in kinds if kind not in there]:
            raise UserError(
                f"exposure.{name}: {catalog.root} has no {missing[0]} clips: they lie in folders named supplemental "
                "(DCASE 2025), or a manifest names them in its column split"
            )


def _check_machines(machines: Iterable[str]) -> None:
    """Make sure that machines' names can be names of files, and differ by more than what some file systems see."""
    alike: dict[str, str] = {}
    for machine in sorted(machines):
        if (size := len(machine.encode())) > _LONGEST_MACHINE:
            raise UserError(f"a machine's name takes {size} bytes, {_LONGEST_MACHINE} at most: rename {machine[:20]}…")
        other = alike.setdefault(unicodedata.normalize("NFC", machine).casefold(), machine)
        if other != machine:
            raise UserError(f"machines {other!r} and {machine!r} differ in case or accents' encoding alone: rename one")


def _split_folder_entries(root: Path, oddities: list[Oddity]) -> Iterator[os.DirEntry[str]]:
    def below(folder: str) -> str:
        return shown(Path(folder).relative_to(root).as_posix())

    def unreadable(folder: str, error: OSError) -> None:
        blame_disk(folder, error)
        oddities.append(Oddity(below(folder), f"cannot be opened: {error.strerror}", True))

    for folder, entries in folders(root, unreadable):
        name = os.path.basename(folder)  # noqa: PTH119 - hot loop
        if name == "test" and Path(folder).with_name("test_rename").is_dir():
            continue  # the same clips, by names that tell less
        if name in SPLIT_FOLDERS and Path(folder) != root:
            yield from entries
        elif audio := [entry.name for entry in entries if is_audio(entry.name) and not is_folder(entry)]:
            problem = f"{len(audio)} audio files outside a folder named {', '.join(SPLIT_FOLDERS)}: ignored"
            oddities.append(Oddity(below(folder), problem))


def _catalog_entry(entry: os.DirEntry[str], root: Path, rows: list[dict[str, object]], oddities: list[Oddity]) -> None:
    path = Path(entry.path)
    clip = path.relative_to(root).as_posix()
    if entry.name.startswith("."):  # macOS leaves such files beside others
        return
    if not is_audio(entry.name):
        oddities.append(Oddity(shown(clip), "not an audio file: ignored"))
        return
    try:
        status = entry.stat()
        problem = name_problem(clip)
        if kind := what_it_is(status.st_mode):
            problem = f"is {kind}, not a file"
        name = parse_clip_name(path.stem, path.parent.name)
        if name.split == "train" and name.label == 1:
            problem = "an anomalous clip among the training clips"
    except ValueError as error:
        problem = problem or str(error)
    except OSError as error:
        blame_disk(path, error)
        problem = f"cannot be opened: {error.strerror}"
    if problem:
        oddities.append(Oddity(shown(clip), problem, True))
        return
    machine = path.parent.parent.name
    rows.append(
        {"clip": clip, "machine": machine, **vars(name), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    )
