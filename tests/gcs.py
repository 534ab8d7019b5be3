"""Google Cloud Storage on this machine, for tests: an emulator, with the one precondition that it leaves out."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects


@contextmanager
def emulator(bucket: str) -> Iterator[str]:
    """Runs it with an empty bucket; yields its address. It answers one request after another, so that a check and its upload are one."""
    plain = server.HANDLERS
    server.HANDLERS = tuple((path, {verb: _CREATING.get(does, does) for verb, does in verbs.items()}) for path, verbs in plain)
    running = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket=bucket)
    running.start()
    try:
        yield f"http://127.0.0.1:{running._api._httpd.server_port}"
    finally:
        running.stop()
        server.HANDLERS = plain


def _insert(request, response, storage):
    """An upload with `ifGenerationMatch=0` is refused with 412 where the object is there, as Google's API does; the emulator takes no notice of it."""
    if request.query.get("ifGenerationMatch") == ["0"]:
        name = request.query["name"][0] if "name" in request.query else request.data["meta"]["name"]
        try:
            storage.get_file_obj(request.params["bucket_name"], name)
        except NotFound:
            pass
        else:
            response.status = HTTPStatus.PRECONDITION_FAILED
            response.json({"error": {"code": 412, "message": "At least one of the pre-conditions you specified did not hold."}})
            return
    objects.insert(request, response, storage)


_CREATING = {objects.insert: _insert}
