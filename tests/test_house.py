"""The house keeps its shape: imports run one way, Ray stays in its room, no module grows beyond a look."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rayasd

ROOT = Path(rayasd.__file__).parent
MODULES = {
    ".".join(("rayasd", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path.name != "__main__.py"  # which is the command line
}
FLOORS = (
    {"presets"}, {"data"}, {"exposure", "inlier"}, {"evaluation"}, {"sweep"}, {"report", "scoring", "tracking"},
    {"cluster"}, {"study"}, {"cli"},
)  # fmt: skip
"""Rooms import from floors below their own, and from modules that are in no room."""


def imported(module: str) -> Iterator[str]:
    """Modules that a module imports, wherever in it; not what the package only exports, when it is asked for."""
    if module == "rayasd":
        return
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield below if below in MODULES else str(node.module)


def floor(module: str) -> int:
    room = module.split(".")[1:2]
    return next((height for height, rooms in enumerate(FLOORS, 1) if rooms & set(room)), 0)


def test_imports_run_one_way():
    upward = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imported(module)
        if other in MODULES and module.split(".")[1:2] != other.split(".")[1:2] and floor(other) >= floor(module)
        and (floor(module), floor(other)) != (0, 0)
    ]  # fmt: skip
    assert not upward


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: {other for other in imported(module) if other in MODULES} - {module} for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises for a circle, and names it


def test_ray_is_imported_in_its_room_alone():
    users = {module for module in MODULES for other in imported(module) if other.split(".")[0] == "ray"}
    assert users
    assert not [module for module in users if not module.startswith("rayasd.cluster.")]


def test_no_module_is_longer_than_a_reader_s_patience():
    assert not [name for name, path in MODULES.items() if len(path.read_text(encoding="utf-8").splitlines()) > 320]


def test_no_type_name_has_two_meanings():
    places: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
                names = [t.id for t in node.targets if isinstance(t, ast.Name) and not t.id.isupper()]  # an alias
            else:
                names = []
            for name in names:
                places.setdefault(name.lstrip("_"), []).append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_a_sweep_is_refused_before_heavy_imports_are_paid_for(tree: Path):
    code = """if True:
        import sys
        from rayasd.cli.main import main
        try:
            main()
        finally:
            print(*{"torch", "sklearn", "scipy", "ray"} & set(sys.modules))
    """
    command = [sys.executable, "-c", code, "sweep", "--data", str(tree), "--machines", "fann", "--preset", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (2, ["Looking", "at", "the", "data", "…"])
    assert "did you mean 'fan'?" in done.stderr


def test_tests_of_ports_and_hosts_share_one_process(request: pytest.FixtureRequest):
    if os.environ.get("PYTEST_XDIST_WORKER") is None or not request.config.getoption("loadgroup"):
        pytest.skip("not shared out by groups: make test does")
    assert request.node.nodeid.endswith("@test_house")
