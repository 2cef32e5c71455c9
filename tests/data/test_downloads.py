"""Downloads from a server of our own: whole, resumed, cut off, replaced, and archives made to harm."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rwkvseg.data.datasets import DATASETS
from rwkvseg.data.downloads import Download, fetch
from rwkvseg.errors import DataError, OutputError
from small import files_below

CONTENT = {"Set/a.txt": b"first", "Set/deep/b.bin": bytes(range(256)) * 900}


def tar_of(files, kind="w:gz"):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=kind) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def zip_of(files):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return archive.getvalue()


class Server:
    """Serves bytes under any path; knows ranges or not, cuts off after so many bytes, remembers requests."""

    def __init__(self):
        self.content, self.ranges, self.cut, self.status, self.asked = b"", True, None, None, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.headers.get("Range"))
                if outer.status:
                    self.send_error(outer.status)
                    return
                start = 0
                if outer.ranges and self.headers.get("Range"):
                    start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                    if start >= len(outer.content):
                        self.send_error(416)
                        return
                rest = outer.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                self.wfile.write(rest if outer.cut is None else rest[: outer.cut])

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def link(self, name="set.tar.gz", checksum=None):
        digest = checksum or "sha256:" + hashlib.sha256(self.content).hexdigest()
        return Download(f"http://127.0.0.1:{self.server.server_port}/{name}", digest, "Set")

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server():
    server = Server()
    server.content = tar_of(CONTENT)
    yield server
    server.close()


def test_an_archive_is_fetched_checked_and_unpacked(server, tmp_path):
    told = []
    folder = fetch(server.link(), tmp_path / "new" / "data", lambda done, total: told.append((done, total)))
    assert folder == tmp_path / "new" / "data" / "Set"
    assert files_below(tmp_path / "new" / "data") == sorted(CONTENT)
    assert {name: (folder.parent / name).read_bytes() for name in CONTENT} == CONTENT
    assert told[-1] == (len(server.content), len(server.content))
    with pytest.raises(DataError, match="Set is there already"):
        fetch(server.link(), folder.parent)
    assert server.asked == [None]


@pytest.mark.parametrize(("name", "pack"), [("set.zip", zip_of), ("set.tar", lambda f: tar_of(f, "w"))])
def test_kinds_of_archives(server, tmp_path, name, pack):
    server.content = pack(CONTENT)
    fetch(server.link(name, "md5:" + hashlib.md5(server.content).hexdigest()), tmp_path)
    assert files_below(tmp_path) == sorted(CONTENT)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on(server, tmp_path, ranges):
    server.cut, server.ranges = 500, ranges
    with pytest.raises(DataError, match=r"500 B of .* came; what came is kept .* same command again"):
        fetch(server.link(), tmp_path)
    part = tmp_path / "set.tar.gz.part"
    assert part.read_bytes() == server.content[:500]
    assert files_below(tmp_path) == ["set.tar.gz.part"]
    with pytest.raises(DataError, match="came"):
        fetch(server.link(), tmp_path)
    assert part.stat().st_size == (1000 if ranges else 500)
    server.cut = None
    fetch(server.link(), tmp_path)
    assert files_below(tmp_path) == sorted(CONTENT)
    assert server.asked == [None, "bytes=500-", f"bytes={1000 if ranges else 500}-"]


def test_what_has_come_whole_is_not_fetched_again(server, tmp_path):
    (tmp_path / "set.tar.gz.part").write_bytes(server.content)
    fetch(server.link(), tmp_path)
    assert files_below(tmp_path) == sorted(CONTENT)
    assert server.asked == [f"bytes={len(server.content)}-"]


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(DataError, match=r"has the sha256 .*, not 00: it was damaged"):
        fetch(server.link(checksum="sha256:00"), tmp_path)
    assert files_below(tmp_path) == []


def test_another_file_under_the_same_name_is_noticed_when_resumed(server, tmp_path):
    (tmp_path / "set.tar.gz.part").write_bytes(b"something else")
    with pytest.raises(DataError, match="damaged on the way, or replaced"):
        fetch(server.link(), tmp_path)
    fetch(server.link(), tmp_path)
    assert files_below(tmp_path) == sorted(CONTENT)


def test_no_server_and_no_file(server, tmp_path):
    server.status = 404
    with pytest.raises(DataError, match="answers 404"):
        fetch(server.link(), tmp_path)
    link = server.link()
    server.server.server_close()
    with pytest.raises(DataError, match=r"connection to .* failed: .*refused"):
        fetch(Download(link.url.replace(str(server.server.server_port), "1"), link.checksum, "Set"), tmp_path)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        tar_of({"../escaped.txt": b"x"}),
        tar_of({"Other/a.txt": b"x"}),
        tar_of(CONTENT)[:400],
        b"no archive",
    ],
)
def test_archives_that_do_not_hold_what_they_should(server, tmp_path, content):
    server.content = content
    with pytest.raises(DataError, match=r"cannot unpack|does not hold a folder Set"):
        fetch(server.link(), tmp_path / "data")
    assert files_below(tmp_path) == ["data/set.tar.gz.part"]


def test_a_full_disk(server, tmp_path, file_size_limit):
    with file_size_limit(100), pytest.raises(OutputError, match="cannot write"):
        fetch(server.link(), tmp_path)
    fetch(server.link(), tmp_path)  # and goes on
    assert files_below(tmp_path) == sorted(CONTENT)


def test_the_command(server, tmp_path, rwkvseg, monkeypatch):
    from dataclasses import replace

    from rwkvseg.data import datasets

    known = dict(DATASETS) | {"glas": replace(DATASETS["glas"], download=server.link())}
    monkeypatch.setattr(datasets, "DATASETS", known)
    code, printed, err = rwkvseg("data", "download", "glas", "-o", tmp_path)
    assert (code, err) == (0, "")
    assert "licence:  research use, cite the authors (not verified)" in printed
    assert f"data:     {tmp_path / 'Set'}" in printed
    code, _, err = rwkvseg("data", "download", "synapse", "-o", tmp_path)
    assert code == 1
    assert "no open link to synapse" in err
    assert DATASETS["synapse"].prepare in err
    assert "owners: Bernal et al., WM-DOVA" in rwkvseg("data", "download", "CVC-ClinicDB", "-o", tmp_path)[2]
    assert (
        "owners: not verified. Licence: not verified."
        in rwkvseg("data", "download", "goals", "-o", tmp_path)[2]
    )
    assert rwkvseg("data", "download", "nothing", "-o", tmp_path)[0] == 2
    assert "Task04_Hippocampus.tar (md5:" in rwkvseg("data", "info", "hippocampus")[1]


def test_links_are_those_of_monai():
    from monai.apps import DecathlonDataset

    link = DATASETS["hippocampus"].download
    assert link.url == DecathlonDataset.resource[link.folder]
    assert link.checksum == "md5:" + DecathlonDataset.md5[link.folder]
    assert [name for name, dataset in DATASETS.items() if dataset.download] == ["hippocampus"]
