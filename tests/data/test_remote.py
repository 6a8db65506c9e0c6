import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from tars import file, uneven, write

from gnothi.contracts import DataError
from gnothi.data import DataSpec, inspect, remote
from gnothi.data import open as open_data


class Server:
    """A web server of a folder; what it knows and how it fails is set from outside."""

    def __init__(self, folder):
        self.folder, self.parts, self.failing, self.cut = folder, True, 0, False
        self.failing_whole, self.slow, self.end = 0, 0, threading.Event()
        self.asked = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler):
        path, asked = self.folder / handler.path.lstrip("/").partition("?")[0], handler.headers.get("Range")
        self.asked.append((path.name, asked))
        if self.failing:
            self.failing -= 1
            handler.send_error(503)
            return
        if self.failing_whole and asked is None:
            self.failing_whole -= 1
            handler.send_error(503)
            return
        if not path.is_file():
            handler.send_error(404)
            return
        data = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "") if self.parts else None
        part = data[int(found[1]) : int(found[2]) + 1] if found else data
        handler.send_response(206 if found else 200)
        if found:
            handler.send_header("Content-Range", f"bytes {found[1]}-{found[2]}/{len(data)}")
        handler.send_header("ETag", f'"{hash(data)}"')
        handler.send_header("Content-Length", str(len(part)))
        handler.end_headers()
        if self.slow and asked is None:
            self.slow -= 1
            handler.wfile.write(part[: len(part) // 2])
            self.end.wait(60)
            return
        handler.wfile.write(part[: len(part) // 2] if self.cut else part)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "_recent", remote._Recent())
    uneven(tmp_path / "in")
    server = Server(tmp_path / "in")
    yield server
    server.end.set()
    server.http.shutdown()
    server.http.server_close()


def pattern(server):
    return f"shards:{server.url}/part-{{00..02}}.tar"


def same(a, b):
    assert [a.name(r) for r in range(len(a))] == [b.name(r) for r in range(len(b))]
    assert all(torch.equal(a.image(r), b.image(r)) for r in range(len(a)))
    assert a.labels.tolist() == b.labels.tolist() and a.classes == b.classes and a.groups.tolist() == b.groups.tolist()


def test_shards_on_a_server_are_the_same_images_read_in_parts(server):
    there, here = open_data(pattern(server)), open_data(f"shards:{server.folder}")
    same(there, here)
    assert inspect(there).to_dict() == inspect(here).to_dict()
    assert all(asked is not None for _, asked in server.asked)


def test_the_index_of_a_remote_shard_is_kept_and_an_image_is_one_request(server, monkeypatch):
    open_data(pattern(server))
    monkeypatch.setattr(remote, "_recent", remote._Recent())
    server.asked.clear()
    source = open_data(pattern(server))
    assert len(server.asked) == 3 + 13  # a look at each shard, and the headers of the images that decide on the layout
    server.asked.clear()
    assert source.shape(4) == source.image(4).shape[1:] and server.asked == []
    monkeypatch.setattr(remote, "_recent", remote._Recent())
    source.shape(4), source.image(4)
    assert server.asked == [("part-00.tar", f"bytes={source.offsets[4]}-{source.offsets[4] + source.sizes[4] - 1}")]


def test_what_was_read_last_is_remembered_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(remote, "RECENT", 100)
    recent = remote._Recent()
    for i in range(5):
        recent.put(("a", i, 40), bytes(40))
    assert [recent.get(("a", i, 40)) is not None for i in range(5)] == [False, False, False, True, True] and recent.bytes == 80


def test_a_server_that_sends_no_parts_is_copied_where_that_is_asked_for(server, tmp_path):
    server.parts = False
    with pytest.raises(
        DataError, match="part-0..tar: the server sends no parts of files; set data.download=true to copy the shards to .*/copies/shards first"
    ):
        open_data(pattern(server), settings=DataSpec(root=str(tmp_path / "copies")))
    asked = DataSpec(root=str(tmp_path / "copies"), download=True)
    same(open_data(pattern(server), settings=asked), open_data(f"shards:{server.folder}"))
    server.asked.clear()
    again = open_data(pattern(server), settings=asked)
    assert [what for _, what in server.asked] == ["bytes=0-0"] * 3 and (again.image(12) == 120).all()
    assert not [p for p in (tmp_path / "copies").rglob("*.tmp")]


def test_a_failure_that_passes_is_waited_for(server):
    server.failing = 3
    assert len(open_data(f"shards:{server.url}/part-01.tar")) == 1
    assert [what for _, what in server.asked[:4]] == ["bytes=0-0"] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: setattr(s, "failing", 99), "^part-00.tar/d/003.tif: http://.*: the server says 503 Service Unavailable$"),
        (lambda s: setattr(s, "cut", True), r"^part-00.tar/d/003.tif: http://.* cannot be reached: IncompleteRead"),
        (lambda s: (s.folder / "part-00.tar").unlink(), "^part-00.tar/d/003.tif: http://.*: the server says 404 Not Found$"),
        (lambda s: write(s.folder / "part-00.tar", [("x.png", file(1))]), "^part-00.tar/d/003.tif: is another file by now than it was"),
        (lambda s: (s.http.shutdown(), s.http.server_close()), "^part-00.tar/d/003.tif: http://.* cannot be reached: .*refused"),
    ],
)
def test_an_image_that_cannot_be_fetched_is_named(server, monkeypatch, change, message):
    source = open_data(pattern(server))
    monkeypatch.setattr(remote, "_recent", remote._Recent())
    change(server)
    with pytest.raises(DataError, match=message) as caught:
        source.image(3)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_not_there_or_no_server_is_said_in_a_line(server):
    with pytest.raises(DataError, match="^http://.*/part-09.tar: the server says 404 Not Found$"):
        open_data(f"shards:{server.url}/part-09.tar")
    with pytest.raises(DataError, match=r"^http://127.0.0.1:1/a.tar cannot be reached: .*refused$"):
        open_data("shards:http://127.0.0.1:1/a.tar")
    with pytest.raises(DataError, match="^http://ho st/a.tar cannot be reached: "):
        open_data("shards:http://ho st/a.tar")


def test_a_copy_that_fails_for_a_reason_that_passes_is_waited_for_and_never_blamed_on_the_disk(server, tmp_path, monkeypatch):
    """After the look at the shard, which asks for a part: a server's errors are errors of the system to Python, without a number."""
    monkeypatch.setattr(remote, "TIMEOUT", 2.0)
    server.parts = False
    url, asked = f"shards:{server.url}/part-01.tar", DataSpec(root=str(tmp_path / "copies"), download=True)
    server.failing_whole, server.slow = 2, 1
    assert (open_data(url, settings=asked).image(0) == 50).all()
    assert [what for _, what in server.asked] == ["bytes=0-0", None, None, None, None]
    server.failing_whole = 99
    with pytest.raises(DataError, match=r"^http://.*/part-00.tar: the server says 503 Service Unavailable$"):
        open_data(f"shards:{server.url}/part-00.tar", settings=asked)
    server.failing_whole, server.slow = 0, 99
    monkeypatch.setattr(remote, "TIMEOUT", 0.5)
    with pytest.raises(DataError, match=r"^http://.*/part-02.tar cannot be reached: .*timed out$"):
        open_data(f"shards:{server.url}/part-02.tar", settings=asked)
    assert not [p for p in (tmp_path / "copies").rglob("*.tmp")]


def test_a_copy_that_breaks_off_leaves_nothing(server, tmp_path):
    server.parts, server.cut = False, True
    with pytest.raises(DataError, match="cannot be reached: IncompleteRead"):
        open_data(f"shards:{server.url}/part-00.tar", settings=DataSpec(root=str(tmp_path / "copies"), download=True))
    assert [p.name for p in (tmp_path / "copies").rglob("*") if p.is_file()] == [".lock"]
