"""The run directory as a whole: its configuration and data, its locks, its events."""

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from rayasd.config import Config, from_dict
from rayasd.data.catalog import Catalog, changes, read_catalog, write_catalog
from rayasd.errors import UserError
from rayasd.files import digest, no_links, now, read_json, remove_unfinished, suppress_full, write_json, write_text
from rayasd.host import describe_invocation
from rayasd.nested import changed_settings, flatten
from rayasd.pretrained import weight_paths
from rayasd.sweep.lock import holder_of, locked, refuse_if_held
from rayasd.sweep.plan import Plan
from rayasd.unit import RunDirectory, Unit, UnitSpec

_CHECKSUM = "sha256"  # key whose value is the digest of the manifest's other keys
_CHECKSUM_LINE = "\n# sha256 of the lines above: "


class RunStore:
    """Reads and writes the files of a run that belong to no single unit."""

    def __init__(self, root: Path, part: Sequence[str] | None = None) -> None:
        """Take the run in ``root``; ``part``: only these machines or this share of it, while others do the rest."""
        self.paths = RunDirectory(root.absolute())
        self.part = part
        self._locks = [self.paths.lock] if part is None else [self.paths.part_lock(machine) for machine in part]
        self.events_file = self.paths.of_driver("events.jsonl", part)
        """Events, one JSON line each; hosts must not write into one file."""
        self.stop_file = _stop_file(self._locks[0])
        """While it exists, this driver starts nothing more, and its units save their state and end."""
        self.token_file = self.paths.of_driver("ray-token", part)
        """Secret of this driver's own Ray."""
        self._checks: list[Callable[[], None]] = []

    @property
    def exists(self) -> bool:
        """Whether a run has been set up here."""
        return self.paths.manifest.exists()

    def manifest(self) -> dict[str, Any]:
        """Read the manifest. Raises UserError: this is not a run directory, or the file is damaged."""
        try:
            manifest = read_json(self.paths.manifest)
        except ValueError:
            manifest = {}
        if manifest is None:
            raise UserError(f"{self.paths.root} is not a run directory: it has no manifest.json")
        whole = isinstance(manifest, dict) and manifest.pop(_CHECKSUM, None) in (None, digest(manifest))
        if not whole or not {"data", "plans", "invocations"} <= manifest.keys():
            raise UserError(f"{self.paths.manifest} is damaged: restore it or choose another --run-dir")
        return manifest

    def config(self) -> Config:
        """Read the run's resolved configuration. Raises UserError: the file is missing or damaged."""
        try:
            text, _, checksum = self.paths.config.read_text(encoding="utf-8").partition(_CHECKSUM_LINE)
            if checksum and checksum.strip() != digest(text):
                raise ValueError("it is not what was written")
            values = tomllib.loads(text)
        except (ValueError, OSError) as error:
            reason = f"{self.paths.config} is damaged ({error})"
            raise UserError(f"{reason}: restore it or choose another --run-dir") from None
        try:
            return from_dict(values)
        except UserError as error:
            raise UserError(f"{self.paths.config} is of another version of rayasd ({error}): choose another --run-dir"
                            ) from None  # fmt: skip

    def catalog(self) -> Catalog:
        """Read the decoded catalog, with the labels as they are known now.

        Raises UserError: it is missing or damaged.
        """
        return read_catalog(self.paths.catalog, Path(self.manifest()["data"]["root"]))

    def plans(self) -> list[Plan]:
        """Read all that has been asked of this run so far."""
        return [
            Plan(tuple(plan["machines"]), tuple(plan["variants"]), tuple(plan["seeds"]))
            for plan in self.manifest()["plans"]
        ]

    def set_up(
        self, config: Config, catalog: Catalog, data: Mapping[str, Any], plan: Plan, command: Sequence[str], *,
        accept_changes: bool = False,
    ) -> None:  # fmt: skip
        """Create the run directory, or check that it holds a run of this configuration and data and let its plan grow.

        Variants that ``config`` no longer defines stay as they were. ``data``: what the manifest says about the data,
        with ``fingerprint`` and ``pretrained``. ``accept_changes``: go on in a run of another configuration or other
        data.

        Raises UserError: another configuration or other data, with the differences; or a part of a run that is not set
        up.
        """
        manifest: dict[str, Any] = {"created": now(), "invocations": []}
        plans = [plan]
        if self.part is not None and (not self.exists or plan not in self.plans()):
            raise UserError(
                f"{self.paths.root} has not been set up for this: the same command with --set-up-only first"
            )
        if self.exists:
            manifest, before = self.manifest(), self.config()
            found = differences(before.as_dict(), config.as_dict())
            found += differences({"weights": manifest["data"]["pretrained"]}, {"weights": data["pretrained"]})
            if manifest["data"]["fingerprint"] != data["fingerprint"]:
                found += changes(read_catalog(self.paths.catalog, catalog.root), catalog)
            if found and not accept_changes:
                raise UserError(
                    f"{self.paths.root} holds a run of another configuration or other data:\n  "
                    + "\n  ".join(found)
                    + "\nChoose another --run-dir, or --accept-changes to redo only what these change."
                )
            if self.part is not None:
                return  # other drivers read what is there
            plans = list(dict.fromkeys([*self.plans(), plan]))
            old = {name: table for name, table in before.variants.items() if name not in config.variants}
            config = from_dict({**config.as_dict(), "variants": {**old, **config.variants}})
        invocation = describe_invocation(command)
        manifest |= {
            "data": dict(data),
            "plans": [asdict(each) for each in plans],
            "invocations": [*manifest["invocations"], invocation],
        }
        text = tomli_w.dumps(config.as_dict())
        write_text(self.paths.config, f"{text}{_CHECKSUM_LINE}{digest(text)}\n")
        write_catalog(self.paths.catalog, catalog)
        write_json(self.paths.manifest, manifest | {_CHECKSUM: digest(manifest)})

    @contextmanager
    def held(self, remedy: str = "choose another --run-dir", *, trust: bool = False) -> Iterator[None]:
        """Keep every other driver out of this run, or out of our part of it, while the block lasts.

        ``remedy``: what to do where the folder cannot be written. ``trust``: it may be another user's, who could
        exchange folders below it by links.

        Raises UserError: another one is at work (the message names it), or the folder cannot be written or trusted.
        """
        paths, locks, whole = self.paths, self._locks, self.part is None
        with ExitStack() as stack:
            stack.callback(self._checks.clear)
            try:
                paths.root.mkdir(parents=True, exist_ok=True)
                writable = os.access(paths.root, os.W_OK, effective_ids=True)  # else the next write raises
                if writable and not trust and (owner := paths.root.stat().st_uid) != os.geteuid():
                    raise UserError(
                        f"{paths.root} belongs to user {owner}, not to you: {remedy}; sweep, train, "
                        "embed and detect take --trust"
                    )
                stack.callback(_if_possible, paths.root.rmdir)  # if nothing was written
                for lock in locks:
                    self._checks.append(stack.enter_context(locked(lock)))
                    _stop_file(lock).unlink(missing_ok=True)
                    stack.callback(_if_possible, _stop_file(lock).unlink)
                for other in paths.locks:
                    if other not in locks and (whole or other == paths.lock or _division(other) != _division(locks[0])):
                        refuse_if_held(other)
            except OSError as error:
                raise UserError(f"cannot write the run directory {paths.root}: {error.strerror}; {remedy}") from None
            if whole:
                for pattern in (".*.part", "ensembles/**/.*.part", "plots/**/.*.part"):
                    remove_unfinished(paths.root, pattern)
            self.token_file.unlink(missing_ok=True)  # a driver that was killed leaves it
            yield

    def check_held(self) -> None:
        """Make sure that another process has not taken the run over meanwhile.

        Raises Interrupted: one has: this process was suspended or cut off, and counted as gone.
        """
        for check in self._checks:
            check()

    def stop(self) -> None:
        """Ask all who drive the run, or parts of it, to stop and to stay so."""
        for lock in filter(holder_of, self.paths.locks):  # a driver of several machines looks at the first one's
            with open(_stop_file(lock), "w", encoding="utf-8", opener=no_links) as file:
                file.write("by rayasd stop\n")

    def holders(self) -> list[dict[str, Any]]:
        """List who drives the run, or parts of it, now: host, pid, since, seconds of silence."""
        return [holder for lock in self.paths.locks if (holder := holder_of(lock))]

    def record(self, event: str, **details: Any) -> None:
        """Append one event."""
        line = json.dumps({"time": now(), "event": event, **details}, ensure_ascii=False) + "\n"
        with suppress_full(), open(self.events_file, "ab+", opener=no_links) as file:  # no unit is lost with a line
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = "\n" + line  # whoever wrote the last one was killed in the middle of it
            file.write(line.encode())

    def events(self) -> list[dict[str, Any]]:
        """Read all events, in the order of their times; a line that is not whole (yet) is left out."""
        events = []
        for path in self.paths.root.glob("events*.jsonl"):
            for line in path.read_bytes().splitlines():
                with suppress(ValueError):
                    events.append(json.loads(line))
        return sorted(events, key=lambda event: str(event["time"]))

    def specs(
        self, *, device: str = "auto", cache: Path = Path(), num_threads: int = 1, num_ranks: int = 1
    ) -> dict[Unit, UnitSpec]:
        """Spell out every unit of the plan, each after the one it builds on."""
        data, config = self.manifest()["data"], self.config()
        plans = self.plans()
        resolved = {variant: config.variant(variant) for plan in plans for variant in plan.variants}
        weights = {v: _weights(c, data["pretrained"]) for v, c in resolved.items()}
        labels = {v: self._labels() if c.exposure.anomalies_aside else None for v, c in resolved.items()}
        prints = {v: digest([data["fingerprint"], weights[v], labels[v]]) for v in resolved}
        return {
            unit: UnitSpec(
                unit=unit, config=resolved[unit.variant], run=self.paths, cache=cache, data_root=Path(data["root"]),
                data=prints[unit.variant], device=device, num_threads=num_threads, num_ranks=num_ranks,
                stop=self.stop_file,
            )
            for plan in plans
            for unit in plan.units(config)
        }  # fmt: skip

    def _labels(self) -> str:
        """Digest of the test clips' labels, which decide what is learned where anomalies are trained on."""
        table = self.catalog().table
        return digest([table[name].to_pylist() for name in ("clip", "label")])


def dashboards(holders: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """List the Ray dashboards of those who hold a run: address and, where there are any, tunnel and token's file."""
    since = min((holder["since"] for holder in holders), default="9")
    shown = [event["dashboard"] for event in events if event.get("dashboard") and event["time"] >= since]
    return list({place["address"]: place for place in shown}.values())


def _stop_file(lock: Path) -> Path:
    """Return the file that asks a lock's holder to stop: stop, or stop-fan of lock-fan.json."""
    return lock.with_name(lock.stem.replace("lock", "stop", 1))


def _weights(config: Config, known: Mapping[str, str]) -> Any:
    """Fingerprints of a variant's pretrained weights, as its units' identities have them."""
    found = [known.get(path) for path in weight_paths(config)]
    return found if len(found) > 1 else next(iter(found), None)


def _division(lock: Path) -> str:
    """Return how a run is divided, from the lock of one part: by machine (empty), or into so many shares."""
    return lock.stem.rpartition("of")[2] if re.fullmatch(r"lock-\d+of\d+", lock.stem) else ""


def _if_possible(remove: Callable[[], None]) -> None:
    with suppress(OSError):  # it is not there or not empty, or its file system is read-only by now
        remove()


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Lines that say which settings differ, old value first. A variant that only one side defines is no difference."""
    both = before.get("variants", {}).keys() & after.get("variants", {}).keys()
    old, new = (
        flatten({**side, "variants": {name: v for name, v in side.get("variants", {}).items() if name in both}})
        for side in (before, after)
    )
    return changed_settings(old, new, "absent")
