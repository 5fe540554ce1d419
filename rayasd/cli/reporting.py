"""The leaderboard of a run, written and shown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from rayasd import __version__, presets
from rayasd.cli.display import counted, wide_console
from rayasd.config import Config, EvaluationConfig, from_dict
from rayasd.data.catalog import Catalog, read_catalog, with_ground_truth, write_catalog
from rayasd.data.oddities import counted_problems, odd_contents
from rayasd.errors import UserError
from rayasd.evaluation.cells import labels_of
from rayasd.evaluation.leaderboard import Leaderboard
from rayasd.evaluation.published import why_not_benchmark
from rayasd.evaluation.scores import Scored
from rayasd.files import digest
from rayasd.nested import merge, nest
from rayasd.parquet import read_parquet
from rayasd.report.curves import find_curves
from rayasd.report.terminal import print_curve, print_leaderboard, print_sections
from rayasd.report.write import write_report
from rayasd.sweep.driver import State, Sweep, survey
from rayasd.sweep.markers import forget
from rayasd.sweep.store import RunStore
from rayasd.unit import RESULTS_VERSION


def report_run(
    run_dir: Path,
    ground_truth: Path | None,
    overrides: Sequence[str],
    *,
    all_systems: bool,
    oracle: bool,
    sections: bool,
    with_audio: bool,
) -> None:
    """Write and print a run's leaderboard from what stands, with labels and rules that may have come since."""
    console = wide_console()
    store, catalog, sweep = open_run(run_dir)
    if ground_truth is not None:
        catalog = with_ground_truth(catalog, ground_truth)
        write_catalog(store.paths.catalog, catalog)  # every later report and sweep knows these labels
    evaluation = with_overrides(store.config(), overrides)
    board = show_report(console, store, sweep, catalog, evaluation, all_systems=all_systems, oracle=oracle)
    if sections:
        print_sections(console, read_parquet(store.paths.cells), board.standings[0].variant)
    size = write_html(store, sweep, catalog, evaluation, board, with_audio=with_audio)
    sounds = ", most of it sounds: mono, 16 bits" if with_audio else ""
    written = f"written: {store.paths.html} ({size / 1e6:.1f} MB{sounds})"
    console.print(written, highlight=False, soft_wrap=True)
    if missing := len(sweep.states) - sweep.count(State.DONE):
        console.print(f"{counted(missing, 'unit')} not done or damaged: rayasd sweep goes on", style="yellow")


def with_overrides(config: Config, overrides: Sequence[str]) -> EvaluationConfig:
    """Change the rules of a run's report."""
    changes = presets.parse_overrides(overrides)
    for key in changes:
        if not key.startswith("evaluation."):
            raise UserError(f"--set {key}: a report can change evaluation.* alone, the rest is settled by the sweep")
    return from_dict(merge(config.as_dict(), nest(changes))).evaluation


def ensembles(store: RunStore) -> list[Scored]:
    """List the scores files of a run's ensembles, as its last report wrote them."""
    found = []
    for path in sorted(store.paths.root.glob("ensembles/*/*/*/part-0.parquet")):
        variant, machine, seed = (folder.name.partition("=")[2] for folder in reversed(path.parents[:3]))
        found.append(Scored(variant, machine, None if seed == "all" else int(seed), path))
    return found


def why_not_published(
    store: RunStore, sweep: Sweep, catalog: Catalog, evaluation: EvaluationConfig, part: str
) -> str | None:
    """Say why a run's systems cannot stand among published ones; None when they can."""
    config = store.config()
    if any(config.variant(variant).exposure.anomalies_aside for variant in {unit.variant for unit in sweep.states}):
        return "anomalies of its test clips were set aside, which the benchmark does not allow"
    return why_not_benchmark(catalog.table, part, evaluation, synthetic=store.manifest()["data"]["synthetic"])


def write_html(
    store: RunStore,
    sweep: Sweep,
    catalog: Catalog,
    evaluation: EvaluationConfig,
    board: Leaderboard,
    *,
    with_audio: bool = False,
) -> int:
    """Write report.html of a run whose leaderboard has just been written; returns its size in bytes."""
    from rayasd.report.html.page import write_page  # charts and sounds, which no other command needs
    from rayasd.report.html.run import ReportedRun

    run = ReportedRun(
        paths=store.paths,
        config=store.config(),
        evaluation=evaluation,
        catalog=catalog,
        labels=labels_of(catalog.table),
        leaderboard=board,
        cells=read_parquet(store.paths.cells),
        scored=[*scored_units(store, sweep), *ensembles(store)],
        done=sweep.units(State.DONE),
        problems={u: sweep.reasons.get(u, state) for u, state in sweep.states.items() if state is not State.DONE},
        provenance=_provenance(store, sweep, catalog, evaluation),
        why_not_published=why_not_published(store, sweep, catalog, evaluation, board.part),
    )
    return write_page(run, with_audio=with_audio)


def show_report(
    console: Console,
    store: RunStore,
    sweep: Sweep,
    catalog: Catalog,
    evaluation: EvaluationConfig,
    *,
    all_systems: bool = False,
    oracle: bool = False,
) -> Leaderboard:
    """Write the leaderboard's files and print it."""
    leaderboard = write_leaderboard(store, sweep, catalog, evaluation)
    machines = sorted(leaderboard.standings[0].machines)
    title = f"{store.paths.root.name}: {counted(len(machines), 'machine type')}"
    synthetic = store.manifest()["data"]["synthetic"]
    remarks = _remarks(store, catalog)
    print_leaderboard(
        console, leaderboard, machines, title=title, synthetic=synthetic, all_systems=all_systems, oracle=oracle,
        remarks=[f"{name}: {text}" for name, text in remarks.items() if text != "none"],
    )  # fmt: skip
    for curve in find_curves(store.config().variants, leaderboard):
        print_curve(console, curve, leaderboard)
    written = f"written: {store.paths.leaderboard('md')} (.csv, .parquet), {store.paths.cells}"
    console.print(written, highlight=False, soft_wrap=True)
    return leaderboard


def report_stands(store: RunStore, sweep: Sweep, catalog: Catalog, evaluation: EvaluationConfig) -> bool:
    """Whether the run's leaderboard was made from just these scores, labels and rules: it need not be made again."""
    files = [store.paths.leaderboard(suffix) for suffix in ("parquet", "csv", "md")]
    if not all(path.exists() for path in [*files, store.paths.cells]):
        return False
    try:
        read_parquet(store.paths.cells)
        board = read_parquet(files[0])
    except UserError:
        return False
    inputs = _inputs(store, sweep, catalog, evaluation)
    return (board.schema.metadata or {}).get(b"inputs") == inputs.encode()


def ranked_entries(
    store: RunStore, sweep: Sweep, catalog: Catalog, evaluation: EvaluationConfig
) -> dict[str, dict[str, Any]]:
    """Read the ranked rows of leaderboard.parquet by variant, best first; writes the report first if it is stale."""
    if not report_stands(store, sweep, catalog, evaluation):
        write_leaderboard(store, sweep, catalog, evaluation)
    rows = read_parquet(store.paths.leaderboard("parquet"), filters=[("rank", ">", 0)]).to_pylist()
    return {row["variant"]: row for row in sorted(rows, key=lambda row: row["rank"])}


def coverage(entry: Mapping[str, Any]) -> str:
    """Say how many of an entry's cells there are."""
    return f"{entry['cells_ok']}/{entry['cells_expected']} cells"


def _inputs(store: RunStore, sweep: Sweep, catalog: Catalog, evaluation: EvaluationConfig) -> str:
    """Digest of all that decides a leaderboard: which scores, which labels, which rules."""
    scores = {
        str(unit): [state, sweep.specs[unit].identity] for unit, state in sweep.states.items() if unit.stage == "detect"
    }
    labels = [catalog.table[name].to_pylist() for name in ("clip", "label")]
    skipped = store.manifest()["data"].get("skipped", [])
    return digest([__version__, RESULTS_VERSION, scores, labels, skipped, asdict(evaluation)])


def open_run(run_dir: Path) -> tuple[RunStore, Catalog, Sweep]:
    """Read a run as it stands; nothing is to be done."""
    store = RunStore(run_dir)
    catalog = read_catalog(store.paths.catalog, Path(store.manifest()["data"]["root"]))
    return store, catalog, survey(store, store.specs(), (), retry_failed=False)


def write_leaderboard(store: RunStore, sweep: Sweep, catalog: Catalog, evaluation: EvaluationConfig) -> Leaderboard:
    """Write cells and leaderboard of what stands, with their provenance."""
    planned: dict[str, list[str]] = {}
    for unit in sweep.states:
        if unit.stage == "detect":
            planned.setdefault(unit.variant, []).append(unit.machine)
    scored = scored_units(store, sweep)  # before anybody says what stands
    provenance = _provenance(store, sweep, catalog, evaluation)
    return write_report(store.paths, scored, catalog.table, evaluation, planned, provenance,
                        store.config().variants)  # fmt: skip


def _provenance(store: RunStore, sweep: Sweep, catalog: Catalog, evaluation: EvaluationConfig) -> dict[str, Any]:
    """Say what made a report, and of what."""
    manifest = store.manifest()
    last = manifest["invocations"][-1]
    return {
        "run": store.paths.root.name,
        "command": " ".join(last["command"]),
        "rayasd": last["rayasd"],
        "revision": last["revision"],
        "data": manifest["data"]["root"],
        "data_fingerprint": digest(manifest["data"]["fingerprint"])[:12],
        **_remarks(store, catalog),
        "synthetic": manifest["data"]["synthetic"],
        "evaluation": ", ".join(f"{name}={value}" for name, value in asdict(evaluation).items()),
        "inputs": _inputs(store, sweep, catalog, evaluation),
    }


def _remarks(store: RunStore, catalog: Catalog) -> dict[str, str]:
    """Say in a line each what was left out of the data, and what is odd about what was not."""
    data = store.manifest()["data"]
    lost = [f"nothing is left of {', '.join(data['emptied'])}"] if data.get("emptied") else []
    return {
        "clips left out": "; ".join([counted_problems(data.get("skipped", ())), *lost]),
        "odd in the data": "; ".join(map(str, odd_contents(catalog.table))) or "none",
    }


def scored_units(store: RunStore, sweep: Sweep) -> list[Scored]:
    """List the finished detect units with their scores; those whose scores are damaged are no longer done."""
    for unit in sweep.units(State.DONE):
        if unit.stage == "detect" and (why := store.damage(unit)):
            forget(store.paths, unit)
            sweep.move(unit, State.FAILED, why)
            sweep.damaged.add(unit)
    return [
        Scored(unit.variant, unit.machine, unit.seed, store.paths.table(unit))
        for unit in sweep.units(State.DONE)
        if unit.stage == "detect"
    ]
