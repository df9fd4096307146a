"""A discovery handler in Python: every word of the Configuration's details is a device.

    componentize-py -d ../../../proto/wit -w discovery-handler componentize handler -o words.wasm
"""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.handler import Info
from wit_world.imports import log
from wit_world.imports.types import Device, Error_InvalidDetails, Outcome

SCHEMA = {
    "type": "object",
    "required": ["words"],
    "properties": {"words": {"type": "array", "items": {"type": ["string", "number", "boolean", "null"]}}},
}


class Handler(exports.Handler):
    words: list[str] = []

    def describe(self):
        return Info(name="words", shared=True, details_schema=json.dumps(SCHEMA))

    def open(self, request):
        words = json.loads(request.details)["words"]
        if "nothing" in words:
            raise Err(Error_InvalidDetails('words: "nothing" is none'))
        log.log(log.Level.INFO, f"{len(words)} words")
        Handler.words = [str(word) for word in words]

    def step(self):
        devices = [Device(id=word, properties=[("WORD", word)], mounts=[], device_specs=[]) for word in Handler.words]
        return Outcome(devices=devices, wake_after_ms=None, note=None)
