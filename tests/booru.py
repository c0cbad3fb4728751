"""Gelbooru as far as this program speaks to it, on this machine: its JSON, its key in the address, its picture host."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from PIL import Image
from servers import LocalServer, Reply, Request

KEY, USER = "a1b2c3secretkey", "98765"


def picture(seed: int, form: str = "PNG", width: int = 48) -> bytes:
    """A picture of noise, small unless asked otherwise, another one for each seed."""
    content = io.BytesIO()
    Image.frombytes("RGB", (width, 32), random.Random(seed).randbytes(width * 32 * 3)).save(content, form)
    return content.getvalue()


@dataclass
class Upload:
    """A post and its file. `named` is the file's ending there, whatever is in it; `md5` overrules the true one."""

    id: int
    content: bytes
    tags: str = "1girl long_hair smile"
    rating: str = "general"
    named: str = ".png"
    md5: str | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return hashlib.md5(self.content).hexdigest() if self.md5 is None else self.md5


class Gelbooru(LocalServer):
    """The newest post first, as many on a page as are asked for and never more than 100.

    members: key by user. Searches without a key are refused where there are any. Files lie on another host, which
    refuses whoever brings a key there or does not say from which page it comes.
    """

    def __init__(self, uploads: list[Upload] | None = None) -> None:
        super().__init__()
        self.uploads = uploads if uploads is not None else [Upload(n, picture(n)) for n in range(1, 6)]
        self.members = {USER: KEY}
        self.times: list[float] = []

    def reply(self, request: Request) -> Reply:
        self.times.append(time.monotonic())
        if found := re.fullmatch(r"/images/(\d+)\.\w*", request.path):
            if "api_key" in request.query or not request.headers.get("Referer"):
                return Reply(403)
            upload = next(upload for upload in self.uploads if upload.id == int(found[1]))
            return Reply(body=upload.content, headers={"Content-Type": "image/png", "ETag": '"1"'}, ranges=True)
        one = {name: values[-1] for name, values in request.query.items()}
        if request.path != "/index.php" or (one.get("page"), one.get("s"), one.get("q")) != ("dapi", "post", "index"):
            return Reply(404)
        if self.members and self.members.get(one.get("user_id", ""), "") != one.get("api_key"):
            return Reply(401, b'"Missing authentication."')
        return self._posts(one)

    def _posts(self, one: dict[str, str]) -> Reply:
        wanted = one.get("tags", "").split()
        fitting = [upload for upload in self.uploads if _fits(upload, wanted)]
        fitting.sort(key=lambda upload: -upload.id)
        limit = min(int(one.get("limit", 100)), 100)
        offset = int(one.get("pid", 0)) * limit
        rows = [self._row(upload) for upload in fitting[offset : offset + limit]]
        document: dict[str, Any] = {"@attributes": {"limit": limit, "offset": offset, "count": len(fitting)}}
        if rows:
            document["post"] = rows
        return Reply(body=json.dumps(document).encode(), headers={"Content-Type": "application/json"})

    def _row(self, upload: Upload) -> dict[str, Any]:
        name = f"{upload.digest}{upload.named}"
        return {
            "id": upload.id,
            "width": 48,
            "height": 32,
            "md5": upload.digest,
            "directory": "ab/cd",
            "image": name,
            "rating": upload.rating,
            "source": "",
            "owner": "somebody",
            "tags": upload.tags,
            "file_url": f"{self.elsewhere}/images/{upload.id}{PurePosixPath(name).suffix}",
            **upload.more,
        }


def _fits(upload: Upload, wanted: list[str]) -> bool:
    has = {*upload.tags.split(), f"rating:{upload.rating}"}
    return all(tag[1:] not in has if tag.startswith("-") else tag in has for tag in wanted)
