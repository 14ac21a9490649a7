"""A small Hugging Face hub on this machine: the real client downloads from it and uploads to it, with no network.

It keeps data set and model repositories in memory, with one branch, main. Large files are served from a second address,
as on the real hub, so the client must not send its token there. Not offered: Xet, pull requests, tags, private
repositories, folders in listings, listings in pages.
"""

import base64
import hashlib
import json
import re
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote

LFS_SUFFIXES = ".zip", ".pt", ".parquet", ".safetensors"


class Stored(namedtuple("Stored", "name data")):
    """A file of a repository, as the hub describes it."""

    @property
    def lfs(self):
        """Whether the file is too large, or of a kind, to be kept in git; empty files never are."""
        return bool(self.data) and (len(self.data) > 1000 or self.name.endswith(LFS_SUFFIXES))

    @property
    def sha256(self):
        """Hash by which a large file is stored."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def blob(self):
        """Hash by which git knows the content."""
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def listed(self):
        """Its entry in a listing."""
        entry = {"type": "file", "path": self.name, "size": len(self.data), "oid": self.blob}
        return entry | ({"lfs": {"oid": self.sha256, "size": len(self.data), "pointerSize": 130}} if self.lfs else {})


class Refused(Exception):
    """A request that the hub turns down: status, code and message of the answer, and the commit that was looked at."""

    def __init__(self, status, message, code=None, commit=None):
        super().__init__(message)
        self.status = status
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self.headers = {name: value for name, value in headers.items() if value}


class LocalHub:
    """A hub that runs while the context is open.

    Attributes: `address`, the endpoint; `storage`, the address of large files; `token`, which uploads need; `requests`,
    a list of (method, path, range header or None); `lies`, headers that replace the right ones, by the name of a file;
    `faults`, for the name of a file a list of what goes wrong, used up in order: "404" answers a HEAD, "500" a HEAD or
    a GET, "cut" (half of the bytes, then the end), "stall" (half of the bytes, then nothing until the hub stops) and
    "wrong" (other bytes, as many) a GET. A fault waits for a request that it fits. `stalled` is an event, set when a
    download stalls.
    """

    token = "hf_test"

    def __init__(self):
        self.requests, self.faults, self.lies, self.blobs, self.offered = [], {}, {}, {}, set()
        self.stalled, self.stopped = threading.Event(), threading.Event()
        self.repos, self._lock = {}, threading.Lock()  # (type, id) -> {commit: {name: bytes}}, oldest first

    def __enter__(self):
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        for server in self._servers:
            server.hub = self
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.address, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def page(self, key):
        """Where a person would look at the repository."""
        kind, repo = key
        return f"{self.address}/{'' if kind == 'model' else kind + 's/'}{repo}"

    def put(self, repo_id, name, data, repo_type="dataset"):
        """Write a file on main, in a repository made if need be; gives the new commit, 40 hex digits."""
        return self.change((repo_type, repo_id), {name: data})

    def files(self, repo_id, repo_type="dataset"):
        """Names and bytes on main; none if there is no such repository."""
        key = repo_type, repo_id
        return dict(self.look_up(key, "main")[1]) if key in self.repos else {}

    def change(self, key, changes):
        """Commit names with their new bytes, None for a file that goes."""
        with self._lock:
            kind, repo = key
            changed = {**self.files(repo, kind), **changes}
            files = {name: data for name, data in sorted(changed.items()) if data is not None}
            self.blobs.update({Stored(*item).sha256: item[1] for item in files.items()})
            blobs = [(name, Stored(name, data).blob) for name, data in files.items()]
            commits = self.repos.get(key, {})
            commit = hashlib.sha1(repr((key, len(commits), blobs)).encode()).hexdigest()
            self.repos[key] = {**commits, commit: files}
        return commit

    def look_up(self, key, revision):
        """Commit and files of a revision: main, or a commit."""
        if key not in self.repos:
            raise Refused(404, "Repository not found", "RepoNotFound")
        commits = self.repos[key]
        commit = next(reversed(commits)) if revision in {None, "main"} else revision
        if commit not in commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, commits[commit]

    def fault(self, name, *fitting):
        """The next fault of the file if it fits, which uses it up; otherwise None."""
        with self._lock:
            waiting = self.faults.get(name)
            return waiting.pop(0) if waiting and waiting[0] in fitting else None


class Handler(BaseHTTPRequestHandler):
    """The answers, one method per route."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: the second must not wait for an acknowledgement

    def handle_request(self):
        """Find the route of the request, and answer it."""
        path, _, self.query = self.path.partition("?")
        self.hub = self.server.hub
        self.hub.requests.append((self.command, unquote(path), self.headers["Range"]))
        self.body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        try:
            if self.command == "POST" and self.headers["Authorization"] != f"Bearer {self.hub.token}":
                wrong = "Invalid credentials in Authorization header"
                raise Refused(401, wrong if self.headers["Authorization"] else "Invalid username or password.")
            if path.startswith("/cdn/") and self.headers["Authorization"]:
                raise Refused(400, "Only one auth mechanism allowed: storage must not be sent the token")
            for methods, pattern, answer in ROUTES:
                if self.command in methods and (found := re.fullmatch(pattern, path)):
                    parts = {name: part and unquote(part) for name, part in found.groupdict().items()}
                    if "repo" in parts:
                        parts["key"] = (parts.pop("kind") or "models").strip("/")[:-1], parts.pop("repo")
                    answer(self, **parts)
                    return
            raise Refused(404, f"Not a route of the hub: {self.command} {path}")
        except Refused as refused:
            self.answer_json({"error": str(refused)}, refused.status, **refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def answer(self, status, body=b"", *, sent=None, **headers):
        """Send an answer; `sent` is what arrives of the body, if not all of it."""
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else sent)

    def answer_json(self, content, status=200, **headers):
        """Send an answer in JSON."""
        self.answer(status, json.dumps(content).encode(), Content_Type="application/json", **headers)

    def answer_file(self, name, data, **headers):
        """Send a file, or the range asked for, with the faults it has."""
        fault = self.hub.fault(name, "cut", "stall", "wrong", "500") if self.command == "GET" else None
        if fault == "500":
            raise Refused(500, "Internal Error")
        if fault == "wrong":
            data = bytes(byte ^ 0xFF for byte in data)
        status, size, headers = 200, len(data), {"Accept-Ranges": "bytes", **headers}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or ""):
            first, last = int(found[1]), min(int(found[2] or size), size - 1)
            if first > last:
                self.answer(416, Content_Range=f"bytes */{size}")
                return
            status, data, headers["Content-Range"] = 206, data[first : last + 1], f"bytes {first}-{last}/{size}"
        half = fault in {"cut", "stall"}
        self.close_connection = half or self.close_connection
        self.answer(status, data, sent=data[: len(data) // 2] if half else None, **headers)
        if fault == "stall":
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.stopped.wait()

    def resolve(self, key, revision, name):
        """A file: in place if it is small, else where it is stored."""
        commit, files = self.hub.look_up(key, revision)
        if name not in files or (self.command == "HEAD" and self.hub.fault(name, "404")):
            raise Refused(404, "Entry not found", "EntryNotFound", commit)
        file = Stored(name, files[name])
        if (self.command == "HEAD" or file.lfs) and self.hub.fault(name, "500"):
            raise Refused(500, "Internal Error")
        if file.lfs:
            where = f"{self.hub.storage}/cdn/{file.sha256}?name={quote(name)}"
            linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": len(file.data)}
            headers = {**linked, "X-Repo-Commit": commit, "Accept-Ranges": "bytes", **self.hub.lies.get(name, {})}
            self.answer(302, Location=where, **headers)
        else:
            headers = {"ETag": f'"{file.blob}"', "X-Repo-Commit": commit, **self.hub.lies.get(name, {})}
            self.answer_file(name, file.data, **headers)

    def stored(self, sha256):
        """A large file."""
        if sha256 not in self.hub.blobs:
            raise Refused(403, "AccessDenied")
        name = parse_qs(self.query).get("name", [None])[0]
        self.answer_file(name, self.hub.blobs[sha256], ETag=f'"{sha256}"')

    def info(self, key, revision=None):
        """What there is to say of a repository."""
        commit, files = self.hub.look_up(key, revision)
        about = {"_id": commit[:24], "id": key[1], "sha": commit, "private": False, "gated": False, "disabled": False}
        self.answer_json(about | {"tags": [], "siblings": [{"rfilename": name} for name in files]})

    def tree(self, key, revision, folder):
        """The files in a folder, or under it if asked to be recursive."""
        commit, files = self.hub.look_up(key, revision)
        start = f"{folder}/" if folder else ""
        inside = [Stored(*item) for item in files.items() if item[0].startswith(start)]
        if folder and not inside:
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound", commit)
        deep = parse_qs(self.query).get("recursive", ["false"])[0].lower() in {"true", "1"}
        self.answer_json([file.listed() for file in inside if deep or "/" not in file.name[len(start) :]])

    def create(self):
        """A new repository, empty."""
        asked = json.loads(self.body)
        key = asked.get("type") or "model", f"{asked.get('organization') or 'user'}/{asked['name']}"
        place = {"url": self.hub.page(key), "name": key[1]}
        if key in self.hub.repos:
            self.answer_json(place | {"error": "You already created this repo"}, 409)
        else:
            self.hub.change(key, {})
            self.answer_json(place)

    def validate(self):
        """A dataset or model card: any will do."""
        self.answer_json({"errors": [], "warnings": []})

    def preupload(self, key, revision):
        """How each file is to be uploaded, and what is there already."""
        _, files = self.hub.look_up(key, revision)
        modes = []
        for asked in json.loads(self.body)["files"]:
            name = asked["path"]
            lfs = Stored(name, b" " * asked["size"]).lfs
            there = Stored(name, files[name]) if name in files else None
            oid = there and (there.sha256 if there.lfs else there.blob)
            modes.append({"path": name, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
        self.answer_json({"files": modes})

    def batch(self, key):
        """Where to put large files; nowhere if they are stored already."""
        self.hub.look_up(key, None)
        objects = json.loads(self.body)["objects"]
        for each in objects:
            if each["oid"] not in self.hub.blobs:
                self.hub.offered.add(each["oid"])
                each["actions"] = {"upload": {"href": f"{self.hub.storage}/cdn/{each['oid']}"}}
        self.answer_json({"transfer": "basic", "objects": objects})

    def store(self, sha256):
        """A large file, which a batch announced."""
        if sha256 not in self.hub.offered or hashlib.sha256(self.body).hexdigest() != sha256:
            raise Refused(403, "AccessDenied")
        self.hub.blobs[sha256] = self.body
        self.answer(200)

    def commit(self, key, revision):
        """A commit: one JSON object per line, a header and then the changes."""
        self.hub.look_up(key, revision)
        changes = {}
        for line in self.body.splitlines():
            kind, value = (json.loads(line)[part] for part in ("key", "value"))
            if kind == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile" and value["oid"] in self.hub.blobs:
                changes[value["path"]] = self.hub.blobs[value["oid"]]
            elif kind == "deletedFile":
                changes[value["path"]] = None
            elif kind != "header":
                raise Refused(400, f"This hub cannot commit {value}: it is a {kind}, or was not uploaded")
        commit = self.hub.change(key, changes)
        self.answer_json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.page(key)}/commit/{commit}"})

    def log_message(self, *_):
        """Nothing is printed."""


FILES = r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)"
API = r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)"
ROUTES = (
    ({"HEAD", "GET"}, FILES + "/resolve/(?P<revision>[^/]+)/(?P<name>.+)", Handler.resolve),
    ({"HEAD", "GET"}, "/cdn/(?P<sha256>[0-9a-f]{64})", Handler.stored),
    ({"GET"}, API + "(?:/revision/(?P<revision>[^/]+))?", Handler.info),
    ({"GET"}, API + "/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    ({"POST"}, "/api/repos/create", Handler.create),
    ({"POST"}, "/api/validate-yaml", Handler.validate),
    ({"POST"}, API + "/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ({"POST"}, FILES + r"\.git/info/lfs/objects/batch", Handler.batch),
    ({"PUT"}, "/cdn/(?P<sha256>[0-9a-f]{64})", Handler.store),
    ({"POST"}, API + "/commit/(?P<revision>[^/]+)", Handler.commit),
)
