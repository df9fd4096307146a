"""{{name}}: a server is asked for a list by a connection; each line of it is a device."""

import json

from componentize_py_types import Err
from connection import Failed, talk
from devices import devices_of
from wit_world import exports
from wit_world.exports.handler import Info
from wit_world.imports import log
from wit_world.imports.types import Device, Error_Unavailable, Outcome

# The variable that brokers read.
DEVICE = "{{VARIABLE}}"
# What is asked, and the line that ends the answer; yours will be others. The time between two questions.
QUESTION = b"list\n"
END = b"\n.\n"
AGAIN = 10_000

# What discoveryDetails have to be. The node refuses others, with their place, before the handler sees them.
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["host", "port"],
    "properties": {
        "host": {"type": "string", "description": "The server's name or address."},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535, "description": "Its port."},
    },
}


class Handler(exports.Handler):
    place = ("", 0)

    def describe(self):
        # shared: whether other nodes see the same devices.
        return Info(name="{{name}}", shared=True, details_schema=json.dumps(SCHEMA))

    def open(self, request):
        details = json.loads(request.details)
        Handler.place = (details["host"], details["port"])

    def step(self):
        try:
            answer = talk(*Handler.place, QUESTION, lambda said: (b"\n" + said.replace(b"\r", b"")).endswith(END))
        except Failed as failed:
            # Without an answer the last list stays, and the pod's condition says why.
            raise Err(Error_Unavailable(f"{Handler.place[0]}:{Handler.place[1]}: {failed}")) from None
        names = [name for name in devices_of(answer.decode("utf-8", "replace")) if name != "."]
        log.log(log.Level.INFO, f"{len(names)} devices")
        devices = [Device(id=name, properties=[(DEVICE, name)], mounts=[], device_specs=[]) for name in names]
        return Outcome(devices=devices, wake_after_ms=AGAIN, note=None)
