from __future__ import annotations

import mmap
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model_server import mapped_weights

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
SIZE = 16 * 2**20


def resident_file_bytes():
    """Resident pages of files, by the kernel's count."""
    return int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.fixture
def mapped(tmp_path):
    """A shared read-only map of a file, read through once."""
    path = tmp_path / "model dir" / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert sum(view[::4096]) == 0
        yield path, view


@pytest.mark.parametrize("whole_directory", [True, False])
def test_released_pages_are_no_longer_resident_and_read_back_the_same(mapped, whole_directory):
    path, view = mapped
    before = resident_file_bytes()
    assert mapped_weights.release(path.parent if whole_directory else path) == SIZE
    assert before - resident_file_bytes() > SIZE * 0.9
    assert view[1000:1300] == (bytes(range(256)) * 8)[1000:1300]


def test_other_maps_stay(mapped):
    path, _ = mapped
    assert mapped_weights.release(path.parent.parent / "model") == 0
    assert mapped_weights.release(path.with_name("weights.bi")) == 0


def test_writable_maps_are_never_touched(tmp_path):
    """Their pages may hold what is on no disk. In a process of its own: a mistake here loses its memory."""
    program = (
        "import mmap, sys\nfrom model_server import mapped_weights\n"
        "path = sys.argv[1]\nopen(path, 'wb').write(bytes(8192))\n"
        "file = open(path, 'r+b')\nview = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)\n"
        "view[:5] = b'hello'\nprint(mapped_weights.release(path), view[:5].decode())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "private.bin")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["0", "hello"]
