"""What arrives is what was published, whole and once, however the connection behaves; only this machine is asked."""

import hashlib
import json
import multiprocessing
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained import download as module
from gantransfer.pretrained.catalogue import CATALOGUE, GLYPHS, Entry, fetch
from gantransfer.pretrained.download import PublishedFile, cache_folder, download, unpack
from gantransfer.pretrained.export import export
from gantransfer.pretrained.load import load
from gantransfer.pretrained.source import latents

BODY = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Host:
    """What the local server says; tests change these while it runs."""

    def __init__(self):
        self.body, self.etag, self.modified = BODY, '"one"', ""
        self.bodies: dict[str, bytes] = {}  # by path, where they differ
        self.ranges, self.kind, self.status = True, "application/octet-stream", 200
        self.cut_after: list[int] = []  # for the next requests: bytes of the body until the connection is cut
        self.claim: int | None = None
        self.redirect = ""
        self.asked: list[dict[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        host: Host = self.server.host
        host.asked.append(dict(self.headers))
        host.body = host.bodies.get(self.path, host.body)
        self.close_connection = True
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", host.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if host.status != 200:
            self.send_error(host.status)
            return
        start, wanted = 0, self.headers.get("Range", "")
        valid = self.headers.get("If-Range", host.etag or host.modified) in (host.etag, host.modified)
        if wanted and host.ranges and valid:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(host.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(host.body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(host.body) - 1}/{len(host.body)}")
        else:
            self.send_response(200)
        rest = host.body[start:]
        self.send_header("Content-Length", str(host.claim or len(rest)))
        self.send_header("Content-Type", host.kind)
        for name, value in (("ETag", host.etag), ("Last-Modified", host.modified)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(rest[: host.cut_after.pop(0)] if host.cut_after else rest)

    def log_message(self, *arguments):
        """Says nothing."""


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    monkeypatch.delenv("GANTRANSFER_OFFLINE", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.host = Host()
    server.host.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server.host
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def said():
    return []


@pytest.fixture
def get(host, tmp_path, said):
    """Downloads to tmp_path/f.pth and returns it; words of the catalogue by name."""

    def run(path="/f.pth", then=lambda: None, **words):
        """`then` is called whenever another attempt is announced."""

        def say(line):
            said.append(line)
            if "trying again" in line:
                then()

        file = PublishedFile("f.pth", host.url + path, **words)
        download(file, tmp_path / "f.pth", page="https://page.example/", log=say)
        return tmp_path / "f.pth"

    return run


def left(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_documented_file_arrives_whole_and_is_not_asked_for_again(host, get, tmp_path):
    assert get(sha256=DIGEST, bytes=len(BODY)).read_bytes() == BODY
    assert get(sha256=DIGEST, bytes=len(BODY)).read_bytes() == BODY
    assert len(host.asked) == 1
    assert left(tmp_path) == [".f.pth.record.json", "f.pth"]


def test_the_checksum_that_was_found_is_said_and_later_downloads_must_give_it(host, get, said, tmp_path):
    get().unlink()
    assert any(DIGEST in line and "not documented" in line for line in said)
    host.body = BODY[::-1]
    with pytest.raises(UserError, match="as the first time") as caught:
        get()
    assert DIGEST in str(caught.value) and ".f.pth.record.json" in str(caught.value)
    assert not (tmp_path / "f.pth").exists()


def test_a_connection_cut_at_60_percent_goes_on_from_there(host, get, said):
    at = len(BODY) * 6 // 10
    host.cut_after = [at]
    assert get(sha256=DIGEST).read_bytes() == BODY
    assert [asked.get("Range") for asked in host.asked] == [None, f"bytes={at}-"]
    assert host.asked[1]["If-Range"] == '"one"'
    assert any(f"cut at {at:,} bytes" in line for line in said)


def test_a_later_process_goes_on_from_what_an_earlier_one_left(host, get, tmp_path):
    at = len(BODY) * 6 // 10
    (tmp_path / ".f.pth.part").write_bytes(BODY[:at])
    (tmp_path / ".f.pth.part.json").write_text(json.dumps({"etag": '"one"', "modified": ""}))
    assert get(sha256=DIGEST).read_bytes() == BODY
    assert [asked.get("Range") for asked in host.asked] == [f"bytes={at}-"]


def test_a_complete_part_needs_no_more_bytes(host, get, tmp_path):
    (tmp_path / ".f.pth.part").write_bytes(BODY)
    (tmp_path / ".f.pth.part.json").write_text(json.dumps({"etag": '"one"', "modified": ""}))
    assert get(sha256=DIGEST).read_bytes() == BODY


@pytest.mark.parametrize("same", [{"etag": '"old"', "modified": ""}, {"etag": 'W/"weak"', "modified": ""}, "nonsense"])
def test_a_part_of_another_version_is_dropped(host, get, tmp_path, same):
    (tmp_path / ".f.pth.part").write_bytes(b"x" * (len(BODY) // 2))
    (tmp_path / ".f.pth.part.json").write_text(json.dumps(same))
    assert get(sha256=DIGEST).read_bytes() == BODY


def test_a_file_that_changed_between_attempts_starts_again(host, get, said):
    new = BODY[::-1] + b"more"
    host.cut_after = [len(BODY) // 2]

    def change():
        host.body, host.etag = new, '"two"'

    assert get(then=change).read_bytes() == new
    assert any("changed" in line for line in said)


def test_a_date_stands_in_for_a_weak_tag(host, get):
    host.etag, host.modified = 'W/"weak"', "Wed, 21 Oct 2015 07:28:00 GMT"
    host.cut_after = [1000]
    assert get(sha256=DIGEST).read_bytes() == BODY
    assert host.asked[1]["If-Range"] == host.modified


def test_a_server_without_ranges_is_asked_for_everything_again(host, get, said):
    host.ranges = False
    host.cut_after = [len(BODY) // 2]
    assert get(sha256=DIGEST).read_bytes() == BODY
    assert len(host.asked) == 2
    assert any("starts again" in line for line in said)


def test_a_server_that_names_no_version_is_asked_for_everything_again(host, get):
    host.etag = ""
    host.cut_after = [len(BODY) // 2]
    assert get(sha256=DIGEST).read_bytes() == BODY
    assert "Range" not in host.asked[1]


def test_a_server_that_always_cuts_is_given_up_with_the_place_to_put_the_file(host, get, tmp_path):
    host.ranges = False
    host.cut_after = [1000] * 20
    with pytest.raises(UserError, match="run again to go on") as caught:
        get()
    assert str(tmp_path / "f.pth") in str(caught.value) and "https://page.example/" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(host.asked) == 1 + module.ATTEMPTS


def test_a_wrong_checksum_leaves_nothing(host, get, tmp_path):
    with pytest.raises(UserError, match="SHA-256") as caught:
        get(sha256="0" * 64)
    assert DIGEST in str(caught.value)
    assert left(tmp_path) == []


def test_another_size_than_documented_is_refused_before_anything_is_written(host, get, tmp_path):
    with pytest.raises(UserError, match="5 bytes; the host has one of"):
        get(bytes=5)
    assert left(tmp_path) == []


def test_a_size_beyond_the_free_room_is_refused_before_anything_is_written(host, get, tmp_path):
    host.claim = 10**17
    with pytest.raises(UserError, match="the room in"):
        get()
    assert left(tmp_path) == []


def test_a_redirect_is_followed_with_its_range(host, get):
    host.redirect = host.url + "/f.pth"
    host.cut_after = [1000]
    assert get("/moved", sha256=DIGEST).read_bytes() == BODY
    assert [asked.get("Range") for asked in host.asked] == [None, None, "bytes=1000-", "bytes=1000-"]


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/f"])
def test_a_redirect_out_of_the_web_is_refused(host, get, to, tmp_path):
    host.redirect = to
    with pytest.raises(UserError, match="leads there|is not allowed"):
        get("/moved")
    assert len(host.asked) == 1
    assert left(tmp_path) == []


def test_only_web_addresses_are_opened(host, tmp_path):
    (tmp_path / "secret").write_text("x")
    with pytest.raises(UserError, match="unknown url type"):
        download(PublishedFile("f", f"file://{tmp_path}/secret"), tmp_path / "f", page="p", log=lambda line: None)


def test_a_missing_file_is_said_at_once_with_the_way_around(host, get, tmp_path):
    host.status = 404
    with pytest.raises(UserError, match="404") as caught:
        get()
    assert str(tmp_path / "f.pth") in str(caught.value)
    assert len(host.asked) == 1


def test_a_busy_server_is_asked_again(host, get):
    host.status = 503
    assert get(then=lambda: setattr(host, "status", 200), sha256=DIGEST).read_bytes() == BODY
    assert len(host.asked) == 2


def test_a_web_page_in_the_place_of_a_file_is_refused(host, get, tmp_path):
    host.kind = "text/html; charset=utf-8"
    with pytest.raises(UserError, match="web page"):
        get()
    assert left(tmp_path) == []


def test_without_a_connection_the_file_and_its_place_are_named(get, host, tmp_path, monkeypatch):
    file = PublishedFile("f.pth", "http://127.0.0.1:9/f.pth", megabytes=201)
    with pytest.raises(UserError, match="no connection to 127.0.0.1:9") as caught:
        download(file, tmp_path / "f.pth", page="https://page.example/", log=lambda line: None)
    assert all(word in str(caught.value) for word in ("f.pth (201 MB)", str(tmp_path / "f.pth"), "page.example"))
    monkeypatch.setenv("GANTRANSFER_OFFLINE", "1")
    with pytest.raises(UserError, match="GANTRANSFER_OFFLINE is set"):
        get()
    assert not host.asked


def test_a_file_put_there_by_hand_is_checked_and_taken(host, get, tmp_path):
    (tmp_path / "f.pth").write_bytes(BODY)
    assert get(sha256=DIGEST) and not host.asked
    (tmp_path / "f.pth").write_bytes(BODY[:-1])
    with pytest.raises(UserError, match="SHA-256"):
        get(sha256=DIGEST)
    assert (tmp_path / "f.pth").exists(), "what a user put there is not ours to remove"


def test_a_cached_file_that_was_altered_is_noticed(host, get):
    path = get()
    path.write_bytes(BODY[:-1] + b"!")
    with pytest.raises(UserError, match="as the first time"):
        get()


def _download(url, folder, queue):
    lines = []
    download(PublishedFile("f.pth", url, sha256=DIGEST), folder / "f.pth", page="p", log=lines.append)
    queue.put(lines)


def test_two_processes_download_once(host, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_download, args=(host.url + "/f.pth", tmp_path, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert len(host.asked) == 1
    assert (tmp_path / "f.pth").read_bytes() == BODY


# ----------------------------------------------------------------------------------------------------------- entries


@pytest.fixture
def entry(host, tmp_path, monkeypatch):
    monkeypatch.setenv("GANTRANSFER_CACHE", str(tmp_path / "cache"))

    def make(files, **fields):
        words = {name: getattr(GLYPHS, name) for name in Entry.__dataclass_fields__} | {"folder": None, "name": "e"}
        return Entry(**words | {"files": tuple(PublishedFile(n, f"{host.url}/{n}") for n in files)} | fields)

    return make


def test_one_file_is_returned_itself_and_several_as_their_folder(entry, tmp_path):
    place = tmp_path / "cache" / "sources" / "e"
    assert fetch(entry(["a.pkl"]), log=lambda line: None) == place / "a.pkl"
    assert fetch(entry(["a.pkl", "b.bin"]), log=lambda line: None) == place
    assert (place / "b.bin").read_bytes() == BODY


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("GANTRANSFER_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("GANTRANSFER_CACHE")
    assert cache_folder() == tmp_path / "b" / "gantransfer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "gantransfer"


def test_what_is_only_to_be_had_by_hand_names_its_page(entry):
    with pytest.raises(UserError, match="get them from docs/results/glyphs.md"):
        fetch(entry([]))


def archive(path, members):
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return path


def test_a_packed_entry_gives_the_folder_of_the_members_wanted(entry, host, tmp_path):
    members = {"138k/G.pth": b"g", "138k/G_ema.pth": b"ema", "138k/D.pth": b"d", "138k/G_optim.pth": b"o" * 1000}
    host.body = archive(tmp_path / "made.zip", members).read_bytes()
    folder = fetch(entry(["e.zip"], unpack=("*/G.pth", "*/G_ema.pth", "*/D.pth")), log=lambda line: None)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "G.pth": b"g",
        "G_ema.pth": b"ema",
        "D.pth": b"d",
    }


def test_no_member_leaves_its_folder(tmp_path):
    hostile = archive(tmp_path / "h.zip", {"../../G.pth": b"g", "/etc/D.pth": b"d"})
    folder = unpack(hostile, ("*G.pth", "*D.pth"))
    assert sorted(path.name for path in folder.iterdir()) == ["D.pth", "G.pth"]
    assert not (tmp_path.parent / "G.pth").exists()


@pytest.mark.parametrize(
    ("members", "words"),
    [({"readme.txt": b""}, "it has readme.txt"), ({"a/G.pth": b"1", "b/G.pth": b"2"}, "each once")],
)
def test_an_archive_with_other_members_is_refused(tmp_path, members, words):
    with pytest.raises(UserError, match=words):
        unpack(archive(tmp_path / "h.zip", members), ("*/G.pth",))
    assert not (tmp_path / "h-files").exists()


def test_a_broken_archive_is_refused(tmp_path):
    (tmp_path / "h.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(UserError, match="a zip archive"):
        unpack(tmp_path / "h.zip", ("*",))


def test_the_bar_is_for_terminals_only(get, monkeypatch, capsys):
    get().unlink()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    get()
    captured = capsys.readouterr()
    assert captured.out == "" and "f.pth" in captured.err


def test_a_catalogue_name_loads_what_was_published_under_it(entry, host, tmp_path, tiny, monkeypatch, capsys):
    """From a packed archive on a server to pictures, and a second time from the cache alone."""
    made = tiny.make_of("biggan", ("0", "1", "2"), resolution=32, width=8, z_dim=20, shared_dim=8, spectral_g=True)
    export(made, "biggan-pytorch", tmp_path / "138k")
    members = {f"138k/{path.name}": path.read_bytes() for path in (tmp_path / "138k").iterdir()}
    host.body = archive(tmp_path / "made.zip", members | {"138k/G_optim.pth": b"not a checkpoint"}).read_bytes()
    files = {"layout": "biggan-pytorch", "unpack": ("*/G.pth", "*/G_ema.pth", "*/D.pth"), "licence": "MIT", "page": "p"}
    monkeypatch.setitem(CATALOGUE, "toy-128", entry(["e.zip"], name="toy-128", **files))
    z = latents(4, 20, seed=1)
    for _ in range(2):
        found = load("toy-128")
        np.testing.assert_allclose(found.generate(z, [0, 1, 2, 0]), made.generate(z, [0, 1, 2, 0]), atol=1e-6)
        assert found.discriminator is not None and found.generator is not found.ema
        assert (found.info.name, found.info.licence, found.info.origin) == ("toy-128", "MIT", "p")
    assert len(host.asked) == 1
    assert capsys.readouterr().out == ""


def test_several_files_are_read_as_one_checkpoint_beside_what_the_cache_keeps(entry, host, tmp_path, tiny, monkeypatch):
    made = tiny.make_of("biggan", ("0", "1", "2"), resolution=32, width=8, z_dim=20, shared_dim=8, spectral_g=True)
    export(made, "biggan-pytorch", tmp_path / "out")
    names = ["G.pth", "G_ema.pth", "D.pth"]
    host.bodies = {f"/{name}": (tmp_path / "out" / name).read_bytes() for name in names}
    monkeypatch.setitem(CATALOGUE, "toy", entry(names, name="toy", layout="biggan-pytorch"))
    z = latents(4, 20, seed=1)
    np.testing.assert_allclose(load("toy").generate(z, [0, 1, 2, 0]), made.generate(z, [0, 1, 2, 0]), atol=1e-6)
