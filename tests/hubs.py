"""The Hugging Face hub and Civitai as far as this program speaks to them, on this machine.

Both keep large files on another host and send whoever may have them there, as the real ones do; and that other host
refuses a request that carries a token, as the stores of the real ones do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from dataclasses import dataclass, field
from typing import Any

from servers import LocalServer, Reply, Request

LARGE = (".safetensors", ".ckpt", ".bin", ".parquet", ".zip", ".png", ".jpg", ".onnx")


def safetensors(
    shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None, fill: bytes = b"\0"
) -> bytes:
    """A safetensors file with tensors of these shapes in half precision, all of `fill`."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + (fill * end)[:end]


@dataclass
class Repository:
    """A repository on the hub. access: "open", "gated" (the page must be accepted) or "private"."""

    files: dict[str, bytes]
    access: str = "open"
    kind: str = "models"
    revisions: tuple[str, ...] = ("main",)

    @property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()


class Hub(LocalServer):
    """The hub: repositories by name. `members` are the tokens that may read what is gated or private."""

    def __init__(self, **repositories: Repository) -> None:
        super().__init__()
        self.repositories: dict[str, Repository] = dict(repositories)
        self.members = {"hf_member"}
        self.known = {"hf_member", "hf_stranger"}

    def reply(self, request: Request) -> Reply:
        if found := re.fullmatch(r"/cdn/([0-9a-f]{64})", request.path):
            return self._stored(request, found[1])
        found = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?", request.path)
        if found:
            return self._info(request, *found.groups())
        found = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", request.path)
        if found:
            kind, name, revision, path = found.groups()
            return self._resolve(request, "datasets" if kind else "models", name, revision, path)
        return Reply(404)

    def _refusal(self, request: Request, kind: str, name: str, revision: str | None, file: bool) -> Reply | None:
        repository = self.repositories.get(name)
        if request.token is not None and request.token not in self.known:
            return _error(401, "", "Invalid credentials in Authorization header")
        unseen = repository is None or (repository.access == "private" and request.token not in self.members)
        if unseen or repository is None or repository.kind != kind:
            if request.token is None:
                return _error(401, "RepoNotFound" if kind == "models" else "", "Invalid username or password.")
            return _error(404, "RepoNotFound", "Repository not found")
        if file and repository.access == "gated" and request.token not in self.members:
            return _error(401 if request.token is None else 403, "GatedRepo", f"Access to {name} is restricted.")
        if revision is not None and revision not in (*repository.revisions, repository.commit):
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _info(self, request: Request, kind: str, name: str, revision: str | None) -> Reply:
        refused = self._refusal(request, kind, name, revision, file=False)
        if refused:
            return refused
        repository = self.repositories[name]
        siblings = []
        for path, content in repository.files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": _blob(content)}
            if path.endswith(LARGE):
                entry["lfs"] = {"sha256": _sha256(content), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        document = {
            "id": name,
            "sha": repository.commit,
            "private": repository.access == "private",
            "gated": "manual" if repository.access == "gated" else False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }
        return Reply(body=json.dumps(document).encode(), headers={"Content-Type": "application/json"})

    def _resolve(self, request: Request, kind: str, name: str, revision: str, path: str) -> Reply:
        refused = self._refusal(request, kind, name, revision, file=True)
        if refused:
            return refused
        repository = self.repositories[name]
        content = repository.files.get(path)
        if content is None:
            return _error(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if not path.endswith(LARGE):
            return Reply(body=content, headers={**headers, "ETag": f'"{_blob(content)}"'}, ranges=True)
        digest = _sha256(content)
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        return Reply(302, headers={**headers, **linked, "Location": f"{self.elsewhere}/cdn/{digest}?Signature=s3cret"})

    def _stored(self, request: Request, digest: str) -> Reply:
        if "Authorization" in request.headers:
            return Reply(400, b"Only one auth mechanism allowed")
        for repository in self.repositories.values():
            for content in repository.files.values():
                if _sha256(content) == digest:
                    return Reply(body=content, headers={"ETag": f'"{digest[:32]}"'}, ranges=True)
        return Reply(403)


class WritableHub(Hub):
    """The hub for those who publish: repositories can be made and written to. `stored` are large files by sha256.

    Large files are put into a store on another host, which is told their content and never a token; a file that is in
    the store already is not asked for again.
    """

    def __init__(self, **repositories: Repository) -> None:
        super().__init__(**repositories)
        self.stored: dict[str, bytes] = {}
        self.readers: set[str] = set()  # tokens of members that may not write

    def reply(self, request: Request) -> Reply:
        if request.method == "PUT" and (found := re.fullmatch(r"/store/([0-9a-f]{64})", request.path)):
            if "Authorization" in request.headers or _sha256(request.body) != found[1]:
                return Reply(400)
            self.stored[found[1]] = request.body
            return Reply()
        if request.path == "/api/whoami-v2":
            known = request.token in self.members
            return _json({"name": "mila", "type": "user"}) if known else _error(401, "", "Invalid credentials")
        if request.method == "POST":
            return self._written(request)
        return super().reply(request)

    def _written(self, request: Request) -> Reply:
        if request.token not in self.members:
            return _error(401, "", "Invalid credentials in Authorization header")
        if request.token in self.readers:
            return _error(403, "", "You don't have the rights to write here")
        if request.path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if request.path == "/api/repos/create":
            asked = json.loads(request.body)
            name = f"{asked.get('organization') or 'mila'}/{asked['name']}"
            private = asked.get("private") is True or asked.get("visibility") == "private"
            self.repositories[name] = Repository({}, "private" if private else "open")
            return _json({"url": f"{self.address}/{name}", "name": name})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", request.path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(request.body)["files"]
            ]
            return _json({"files": files})
        if re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", request.path):
            objects = []
            for one in json.loads(request.body)["objects"]:
                href = f"{self.elsewhere}/store/{one['oid']}"
                new = {} if one["oid"] in self.stored else {"actions": {"upload": {"href": href}}}
                objects.append({**one, **new})
            return _json({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", request.path):
            self._commit(self.repositories[found[1]], [json.loads(line) for line in request.body.splitlines()])
            return _json({"commitUrl": f"{self.address}/{found[1]}/commit/1", "commitOid": "1" * 40})
        return Reply(404)

    def _commit(self, repository: Repository, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.stored[value["oid"]]


def _error(status: int, code: str, message: str) -> Reply:
    return Reply(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob(content: bytes) -> str:
    """Git's name for a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Version:
    """A version of a model on Civitai. access: "open", "login" or "early" (may be had by members only, later)."""

    number: int
    model: int
    files: dict[str, bytes]
    name: str = "v1.0"
    model_name: str = "Dream Shape"
    kind: str = "Checkpoint"
    base_model: str = "SDXL 1.0"
    access: str = "open"
    claimed: dict[str, str] = field(default_factory=dict)  # what it says of a file's SHA256, where that is a lie


class Civitai(LocalServer):
    """Civitai: versions of models, and the store to which downloads are sent."""

    def __init__(self, *versions: Version) -> None:
        super().__init__()
        self.versions = list(versions)
        self.members = {"civ_member"}

    def reply(self, request: Request) -> Reply:
        if found := re.fullmatch(r"/api/v1/model-versions/(\d+)", request.path):
            return next(
                (_json(self._version(v)) for v in self.versions if v.number == int(found[1])), _missing("version")
            )
        if found := re.fullmatch(r"/api/v1/models/(\d+)", request.path):
            own = [version for version in self.versions if version.model == int(found[1])]
            if not own:
                return _missing("model")
            head = {"id": own[0].model, "name": own[0].model_name, "type": own[0].kind}
            return _json(head | {"modelVersions": [self._version(version) for version in own]})
        if found := re.fullmatch(r"/api/download/models/(\d+)", request.path):
            return self._download(request, int(found[1]))
        if found := re.fullmatch(r"/store/(\d+)/(.+)", request.path):
            return self._stored(request, int(found[1]), found[2])
        return Reply(404)

    def _version(self, version: Version) -> dict[str, Any]:
        files = []
        for number, (name, content) in enumerate(version.files.items()):
            query = "" if number == 0 else f"?type=Model&format=SafeTensor&file={number}"
            files.append(
                {
                    "id": 1000 + number,
                    "name": name,
                    "sizeKB": len(content) / 1024,
                    "type": "VAE" if "vae" in name else "Model",
                    "primary": number == 0,
                    "metadata": {"format": "SafeTensor" if name.endswith(".safetensors") else "PickleTensor"},
                    "pickleScanResult": "Success",
                    "hashes": {"SHA256": version.claimed.get(name, _sha256(content)).upper()},
                    "downloadUrl": f"{self.address}/api/download/models/{version.number}{query}",
                }
            )
        return {
            "id": version.number,
            "modelId": version.model,
            "name": version.name,
            "baseModel": version.base_model,
            "trainedWords": [],
            "model": {"name": version.model_name, "type": version.kind},
            "files": files,
            "downloadUrl": f"{self.address}/api/download/models/{version.number}",
        }

    def _download(self, request: Request, number: int) -> Reply:
        version = next((version for version in self.versions if version.number == number), None)
        if version is None:
            return _missing("version")
        if version.access == "login" and request.token not in self.members:
            return _json(
                {"error": "Unauthorized", "message": "The creator of this asset requires you to be logged in"}, 401
            )
        if version.access == "early":
            return _json({"error": "Early Access", "message": "This asset is in Early Access"}, 403)
        which = int(request.query.get("file", ["0"])[0])
        name = list(version.files)[which]
        return Reply(307, headers={"Location": f"{self.elsewhere}/store/{number}/{name}?X-Amz-Signature=s3cret"})

    def _stored(self, request: Request, number: int, name: str) -> Reply:
        if "Authorization" in request.headers:
            return Reply(400, b"Only one auth mechanism allowed")
        version = next(version for version in self.versions if version.number == number)
        headers = {
            "ETag": f'"{hashlib.md5(version.files[name]).hexdigest()}"',
            "Content-Disposition": f'attachment; filename="{name}"',
        }
        return Reply(body=version.files[name], headers=headers, ranges=True)


def _json(document: dict[str, Any], status: int = 200) -> Reply:
    return Reply(status, json.dumps(document).encode(), {"Content-Type": "application/json"})


def _missing(what: str) -> Reply:
    return _json({"error": f"No {what} with that id"}, 404)
