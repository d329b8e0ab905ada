"""Object stores over HTTP for the tests, in a process of their own, with faults on demand.

    python -m tests.vvlm_jax.storage.object_server       prints its port, and serves until killed

/storage, /upload, /download: the requests of Google's JSON API that are needed, from its public
reference (https://cloud.google.com/storage/docs/json_api); /control: what the tests ask for;
anything else: Amazon S3 by moto. One request at a time changes something, as with the real ones.

Buckets: `bucket`, and `forbidden`, to which nobody has access.
"""

import base64
import datetime
import email
import email.policy
import io
import json
import random
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass, field

import google_crc32c
import moto.s3.models
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.exceptions import ClientDisconnected
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

MINUTES = 0.0
"""How far this server's clock is off."""


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=MINUTES)


moto.s3.models.utcnow = lambda: now().replace(tzinfo=None)


@dataclass
class Blob:
    data: bytes
    metadata: dict
    generation: int
    metageneration: int = 1
    updated: str = field(default_factory=lambda: now().isoformat(timespec="milliseconds"))


class Refused(Exception):
    def __init__(self, status, reason, message):
        super().__init__(message)
        self.status, self.reason = status, reason


class Google:
    """Objects of gs://bucket, with generations."""

    def __init__(self):
        self.blobs: dict[str, Blob] = {}
        self.generation = 1_700_000_000_000_000

    @Request.application
    def __call__(self, request):
        try:
            return self.answer(request)
        except Refused as e:
            error = {"code": e.status, "message": str(e), "errors": [{"reason": e.reason}]}
            return self.json({"error": error}, e.status)

    def answer(self, request):
        parts = re.fullmatch(
            r"/(?:upload/|download/)?storage/v1/b/([^/]+)(?:/o)?/?(.*)", request.path
        )
        bucket, name = parts.groups()
        if bucket == "forbidden":
            raise Refused(403, "forbidden", "somebody does not have storage.objects access")
        if bucket != "bucket":
            raise Refused(404, "notFound", "The specified bucket does not exist.")
        if request.path.startswith("/upload/"):
            return self.upload(request)
        if not name and request.path.endswith("/o"):
            return self.list(request.args)
        if not name:
            return self.json({"kind": "storage#bucket", "name": bucket, "location": "HERE"})
        self.check(name, request.args)
        if name not in self.blobs:
            raise Refused(404, "notFound", f"No such object: bucket/{name}")
        blob = self.blobs[name]
        if request.method == "DELETE":
            del self.blobs[name]
            return Response(status=204)
        if request.method == "PATCH":
            blob.metadata |= request.get_json().get("metadata", {})
            blob.metageneration += 1
            blob.updated = now().isoformat(timespec="milliseconds")
        if request.args.get("alt") == "media":
            return self.media(blob, request.headers.get("Range"))
        return self.json(self.resource(name))

    def check(self, name, args):
        wanted = args.get("ifGenerationMatch")
        there = self.blobs[name].generation if name in self.blobs else 0
        if wanted is not None and int(wanted) != there:
            line = "At least one of the pre-conditions you specified did not hold."
            raise Refused(412, "conditionNotMet", line)

    def upload(self, request):
        if request.args["uploadType"] != "multipart":
            raise Refused(501, "notImplemented", "uploads of several requests")
        head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        whole = email.message_from_bytes(head + request.get_data(), policy=email.policy.HTTP)
        about, content = whole.get_payload()
        about = json.loads(about.get_payload(decode=True))
        # Mail's parser may change line ends; the bytes between the last boundaries are exact.
        boundary = b"--" + whole.get_boundary().encode()
        data = request.get_data().split(boundary)[2].split(b"\r\n\r\n", 1)[1][:-2]
        self.check(about["name"], request.args)
        self.generation += 1
        self.blobs[about["name"]] = Blob(data, about.get("metadata", {}), self.generation)
        return self.json(self.resource(about["name"]))

    def list(self, args):
        prefix, delimiter = args.get("prefix", ""), args.get("delimiter")
        names = sorted(n for n in self.blobs if n.startswith(prefix))
        if delimiter:  # what is below a folder counts as one
            tails = ((n, n.removeprefix(prefix).partition(delimiter)) for n in names)
            names = sorted({prefix + tail + slash if slash else n for n, (tail, slash, _) in tails})
        start, size = int(args.get("pageToken", 0)), int(args.get("maxResults", 1000))
        page = names[start : start + size]
        found = {
            "kind": "storage#objects",
            "items": [self.resource(n) for n in page if n in self.blobs],
            "prefixes": [n for n in page if n not in self.blobs],
        }
        if start + size < len(names):
            found["nextPageToken"] = str(start + size)
        return self.json(found)

    def media(self, blob, part):
        data = blob.data[int(part.removeprefix("bytes=").rstrip("-")) :] if part else blob.data
        crc = base64.b64encode(google_crc32c.Checksum(blob.data).digest()).decode()
        headers = {"X-Goog-Hash": f"crc32c={crc}", "X-Goog-Generation": str(blob.generation)}
        if part:
            start = len(blob.data) - len(data)
            headers["Content-Range"] = f"bytes {start}-{len(blob.data) - 1}/{len(blob.data)}"
        return Response(data, status=206 if part else 200, headers=headers)

    def resource(self, name):
        blob = self.blobs[name]
        return {
            "kind": "storage#object",
            "bucket": "bucket",
            "name": name,
            "size": str(len(blob.data)),
            "generation": str(blob.generation),
            "metageneration": str(blob.metageneration),
            "metadata": blob.metadata,
            "updated": blob.updated.replace("+00:00", "Z"),
            "crc32c": base64.b64encode(google_crc32c.Checksum(blob.data).digest()).decode(),
        }

    def json(self, value, status=200):
        return Response(json.dumps(value), status=status, content_type="application/json")


class Server:
    """Faults in front of both."""

    def __init__(self):
        self.google, self.amazon = Google(), create_backend_app("s3")
        moto.s3.models.s3_backends["123456789012"]["aws"].create_bucket("bucket", "us-east-1")
        self.lock, self.rng = threading.Lock(), random.Random(0)
        self.share, self.next, self.counts, self.deaf = 0.0, [], {}, False

    def __call__(self, environ, start):
        path = environ["PATH_INFO"]
        if path == "/control":
            return self.control(environ, start)
        if path.startswith("/forbidden"):
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            return Response(body, 403, content_type="application/xml")(environ, start)
        # Read before anything is answered, or the rest would be taken for the next request.
        try:
            environ["wsgi.input"] = io.BytesIO(Request(environ).get_data())
        except ClientDisconnected:  # killed
            return Response(status=400)(environ, start)
        fault = self.fault(environ)
        self.counts[fault] = self.counts.get(fault, 0) + 1
        if fault == "slow":
            time.sleep(0.2)
        if fault in ("503", "429"):
            return Response("{}", status=int(fault))(environ, start)
        if self.deaf:  # a server that knows no preconditions
            environ.pop("HTTP_IF_NONE_MATCH", None)
            query = environ.get("QUERY_STRING", "")
            environ["QUERY_STRING"] = re.sub(r"ifGenerationMatch=\d+&?", "", query)
        app = self.google if re.match("/(upload/|download/)?storage/", path) else self.amazon
        alone = environ.get("HTTP_IF_NONE_MATCH") == "*"
        alone = alone or "ifGenerationMatch=0" in environ.get("QUERY_STRING", "")
        with self.lock:
            response = Response.from_app(app, environ, buffered=True)
        if alone and response.status_code == 200:
            self.counts["created"] = self.counts.get("created", 0) + 1
        if fault == "lost":  # done, and nobody hears of it
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return response(environ, start)

    def fault(self, environ):
        if environ["REQUEST_METHOD"] in ("PUT", "POST", "PATCH") and self.next:
            return self.next.pop(0)
        if self.rng.random() < self.share:
            return self.rng.choice(("503", "429", "slow", "lost"))
        return ""

    def control(self, environ, start):
        global MINUTES
        request = Request(environ)
        if request.method == "POST":
            asked = request.get_json()
            MINUTES = asked.get("minutes", 0.0)
            self.share, self.next = asked.get("share", 0.0), asked.get("next", [])
            self.deaf, self.counts = asked.get("deaf", False), {}
        return Response(json.dumps(self.counts))(environ, start)


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_):
        pass

    def log_request(self, *_):
        pass


def main() -> None:
    server = make_server("127.0.0.1", 0, Server(), threaded=True, request_handler=Quiet)
    print(server.port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
