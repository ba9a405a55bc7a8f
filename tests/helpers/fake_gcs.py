"""A server on this machine that stands for Google Cloud Storage, with objects in memory.

It answers the part of the JSON API that gcsfs (all small files) and TensorStore (the arrays of
checkpoints) use: upload at once, in two parts or piece by piece; download of ranges; lists; copies;
deletion; and conditions on the generation of an object.

As a program it prints its address and serves until it is ended:

    PYTHONPATH=tests python -m helpers.fake_gcs
"""

import base64
import dataclasses
import email
import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

OBJECT = re.compile(r'(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)')
COPY = re.compile(OBJECT.pattern + r'/(?:copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)')
LIST = re.compile(r'(?:/upload)?/storage/v1/b/([^/]+)/o')


def environment(address: str) -> dict[str, str]:
    """Variables with which gcsfs, TensorStore and array_record take this server for the store."""
    return {
        'STORAGE_EMULATOR_HOST': address,
        'TENSORSTORE_GCS_HTTP_URL': address,
        'CLOUD_STORAGE_EMULATOR_ENDPOINT': address,
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # It asks another service, by gRPC.
        'NO_GCE_CHECK': 'true',
    }


@dataclasses.dataclass(frozen=True)
class Stored:
    """One object: it is replaced as a whole."""

    bucket: str
    name: str
    content: bytes
    generation: int
    created: str

    def resource(self) -> dict[str, str]:
        """What the API says of the object."""
        return {
            'kind': 'storage#object',
            'bucket': self.bucket,
            'name': self.name,
            'size': str(len(self.content)),
            'generation': str(self.generation),
            'metageneration': '1',
            'timeCreated': self.created,
            'updated': self.created,
            'md5Hash': base64.b64encode(hashlib.md5(self.content).digest()).decode(),
            'etag': str(self.generation),
        }


class FakeGcs(ThreadingHTTPServer):
    """The server: `with FakeGcs() as server: environment(server.address)`.

    Attributes:
        objects: all that is stored, by (bucket, name).
        requests: (method, path) of each request, oldest first.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0):
        super().__init__(('127.0.0.1', port), Handler)
        self.address = f'http://127.0.0.1:{self.server_address[1]}'
        self.objects: dict[tuple[str, str], Stored] = {}
        self.uploads: dict[str, tuple[str, dict[str, str], bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self._generation = 0

    def __enter__(self) -> 'FakeGcs':
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.shutdown()
        self.server_close()

    def allows(self, bucket: str, name: str, query: Mapping[str, str]) -> bool:
        """Whether an object has the generation that a request wants; 0: there is none."""
        found = self.objects.get((bucket, name))
        generation = str(found.generation if found else 0)
        return (
            query.get('ifGenerationMatch', generation) == generation
            and query.get('ifGenerationNotMatch') != generation
        )

    def put(
        self, bucket: str, name: str, content: bytes, query: Mapping[str, str]
    ) -> tuple[int, dict]:
        """Store an object, unless a condition forbids it: (status, answer)."""
        with self.lock:
            if not self.allows(bucket, name, query):
                return 412, failure(412, 'conditionNotMet')
            self._generation += 1
            now = time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime())
            stored = Stored(bucket, name, content, self._generation, now)
            self.objects[bucket, name] = stored
            return 200, stored.resource()

    def delete(self, bucket: str, name: str, query: Mapping[str, str]) -> tuple[int, dict]:
        """Delete an object: (status, answer)."""
        with self.lock:
            if (bucket, name) not in self.objects:
                return 404, failure(404, 'notFound')
            if not self.allows(bucket, name, query):
                return 412, failure(412, 'conditionNotMet')
            del self.objects[bucket, name]
            return 204, {}

    def list(self, bucket: str, query: Mapping[str, str]) -> dict:
        """List objects and, with a delimiter, the common beginnings of their names."""
        prefix, delimiter = query.get('prefix', ''), query.get('delimiter', '')
        start, end = query.get('startOffset', ''), query.get('endOffset', '')
        items, prefixes = [], set()
        with self.lock:
            found = sorted(name for of, name in self.objects if of == bucket)
            for name in found:
                if not name.startswith(prefix) or name < start or (end and name >= end):
                    continue
                head, mark, _ = name[len(prefix) :].partition(delimiter) if delimiter else (0, 0, 0)
                if mark:
                    prefixes.add(f'{prefix}{head}{mark}')
                else:
                    items.append(self.objects[bucket, name].resource())
        return {'kind': 'storage#objects', 'items': items, 'prefixes': sorted(prefixes)}


def failure(code: int, reason: str) -> dict:
    """The body of an answer that is an error."""
    return {'error': {'code': code, 'message': reason, 'errors': [{'reason': reason}]}}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = 'HTTP/1.1'
    server: FakeGcs

    def log_message(self, format: str, *values) -> None:
        """Print nothing."""

    def handle_one_request(self) -> None:
        """Read and answer a request; a client that is killed is no error."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_any(self) -> None:
        """Answer a request."""
        parts = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        self.server.requests.append((self.command, parts.path))
        self.send(*self.route(self.command, parts.path, dict(parse_qsl(parts.query))))

    do_GET = do_POST = do_PUT = do_DELETE = do_any

    def send(self, status: int, answer: dict | bytes, headers: Mapping[str, str] = {}) -> None:
        """Write status, headers and body."""
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        if status in (204, 304):
            content = b''
        self.send_response(status)
        for name, value in {'Content-Type': 'application/json', **headers}.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def route(self, method: str, path: str, query: dict[str, str]) -> tuple:
        """Do what a request asks: (status, answer) or (status, answer, headers)."""
        server = self.server
        if method == 'PUT' or 'upload_id' in query:
            return self.continue_upload(query)
        if found := COPY.fullmatch(path):
            return self.copy(query, *map(unquote, found.groups()))
        if found := LIST.fullmatch(path):
            if method == 'POST':
                return self.upload(unquote(found[1]), query)
            return 200, server.list(unquote(found[1]), query)
        if found := OBJECT.fullmatch(path):
            name = tuple(map(unquote, found.groups()))
            return server.delete(*name, query) if method == 'DELETE' else self.get(*name, query)
        if method == 'GET' and re.fullmatch('/storage/v1/b/[^/]+', path):
            return 200, {'kind': 'storage#bucket', 'name': path.rpartition('/')[2]}
        return 501, failure(501, f'not implemented: {method} {path}')

    def get(self, bucket: str, name: str, query: Mapping[str, str]) -> tuple:
        """Answer with an object's facts or, with alt=media, its content or a range of it."""
        with self.server.lock:
            stored = self.server.objects.get((bucket, name))
            if stored is None:
                return 404, failure(404, 'notFound')
            if not self.server.allows(bucket, name, query):
                code = 304 if 'ifGenerationNotMatch' in query else 412
                return code, failure(code, 'conditionNotMet')
        if query.get('alt') != 'media':
            return 200, stored.resource()
        headers = {
            'Content-Type': 'application/octet-stream',
            'x-goog-generation': str(stored.generation),
            'x-goog-hash': f'md5={stored.resource()["md5Hash"]}',
        }
        content, size = stored.content, len(stored.content)
        if not (found := re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))):
            return 200, content, headers
        start = int(found[1]) if found[1] else max(0, size - int(found[2]))
        stop = min(size, int(found[2]) + 1) if found[1] and found[2] else size
        if start >= size:
            return 416, failure(416, 'requestedRangeNotSatisfiable')
        headers['Content-Range'] = f'bytes {start}-{stop - 1}/{size}'
        return 206, content[start:stop], headers

    def upload(self, bucket: str, query: Mapping[str, str]) -> tuple:
        """Store a new object, or begin an upload piece by piece."""
        kind, content, about = query['uploadType'], self.body, {}
        if kind == 'multipart':
            header = f'Content-Type: {self.headers["Content-Type"]}\r\n\r\n'.encode()
            boundary = email.message_from_bytes(header).get_boundary()
            parts = content.split(f'--{boundary}'.encode())
            bodies = [part.partition(b'\r\n\r\n')[2].removesuffix(b'\r\n') for part in parts]
            if b'\r\n\r\n' not in parts[1]:
                bodies = [part.partition(b'\n\n')[2].removesuffix(b'\n') for part in parts]
            about, content = json.loads(bodies[1]), bodies[2]
        elif kind == 'resumable' and content:
            about = json.loads(content)
        name = query.get('name') or about['name']
        if kind != 'resumable':
            return self.server.put(bucket, name, content, query)
        with self.server.lock:
            key = str(len(self.server.uploads))
            self.server.uploads[key] = bucket, {**query, 'name': name}, b''
        path = f'/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}'
        return 200, {}, {'Location': self.server.address + path}

    def continue_upload(self, query: Mapping[str, str]) -> tuple:
        """Take the next piece of an upload; the last one stores the object."""
        bucket, begun, content = self.server.uploads[query['upload_id']]
        content += self.body
        self.server.uploads[query['upload_id']] = bucket, begun, content
        said = self.headers.get('Content-Range', 'bytes */*')
        total = said.rpartition('/')[2]
        if total == '*' or int(total) > len(content):
            return 308, {}, {'Range': f'bytes=0-{len(content) - 1}'} if content else {}
        return self.server.put(bucket, begun['name'], content, begun)

    def copy(
        self, query: Mapping[str, str], bucket: str, name: str, to_bucket: str, to_name: str
    ) -> tuple:
        """Copy an object."""
        stored = self.server.objects.get((bucket, name))
        if stored is None:
            return 404, failure(404, 'notFound')
        status, answer = self.server.put(to_bucket, to_name, stored.content, query)
        if status == 200 and '/rewriteTo/' in self.path:
            answer = {'kind': 'storage#rewriteResponse', 'done': True, 'resource': answer}
        return status, answer


if __name__ == '__main__':
    with FakeGcs() as running:
        print(running.address, flush=True)
        threading.Event().wait()
