"""What a built wheel holds, built in this process: no isolation, no network."""

import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]


def wheel_names(root: Path, folder: Path) -> list[str]:
    (wheel,) = WheelBuilder(str(root)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> list[str]:
    return wheel_names(ROOT, tmp_path_factory.mktemp("wheel"))


def test_wheel_has_one_top_level_package(built):
    tops = {name.split("/")[0] for name in built}
    assert tops == {"memtx", "memtx-0.1.0.dist-info"}


def test_wheel_holds_the_factories_inside_memtx(built):
    shipped = {name for name in built if name.startswith("memtx/_factories/")}
    expected = {f"memtx/_factories/{path.name}" for path in (ROOT / "factories").glob("*.py")}
    assert expected
    assert shipped == expected


def test_wheel_is_typed_and_has_its_command_and_license(built):
    assert "memtx/py.typed" in built
    assert "memtx/cli/__init__.py" in built
    assert "memtx/__main__.py" in built
    assert "memtx-0.1.0.dist-info/entry_points.txt" in built
    assert "memtx-0.1.0.dist-info/licenses/LICENSE" in built


def test_sdist_builds_the_same_wheel(built, tmp_path):
    (sdist,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert wheel_names(unpacked, tmp_path / "wheel") == built
