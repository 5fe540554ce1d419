"""The fuzz targets, briefly, and what longer runs have found."""

import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayasd.errors import UserError
from rayasd.scoring.packing import read_pack, write_pack
from tests.faults.packs import small_pack
from tests.faults.targets import TARGETS, seeds


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_readers_answer_whatever_they_are_given(target: str, data: st.DataObject, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    valid = data.draw(st.sampled_from(seeds(target, folder)))
    place = data.draw(st.integers(0, len(valid)))
    size = data.draw(st.integers(0, 40))
    TARGETS[target](valid[:place] + data.draw(st.binary(max_size=40)) + valid[place + size :], folder)


def test_a_packed_model_of_a_later_zip_version_is_refused(tmp_path: Path):
    path = tmp_path / "x.rayasd"
    write_pack(path, [small_pack()])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 6] = 241  # version needed to extract
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no packed model, or damaged: zip file version"):
        read_pack(path)


def test_a_packed_model_that_would_unfold_is_refused(tmp_path: Path):
    path = tmp_path / "x.rayasd"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.json", " " * 10_000_000)
    with pytest.raises(UserError, match="its members are compressed"):
        read_pack(path)
