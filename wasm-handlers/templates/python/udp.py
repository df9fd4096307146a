"""{{name}}: who answers a datagram is a device."""

import ipaddress
import json

from componentize_py_types import Err
from datagrams import Failed, ask
from devices import devices_of
from wit_world import exports
from wit_world.exports.handler import Info
from wit_world.imports import log
from wit_world.imports.types import Device, Error_InvalidDetails, Error_Unavailable, Outcome

# The variable that brokers read.
DEVICE = "{{VARIABLE}}"
# What is asked; yours will be another one. How long answers are waited for, and the time between two questions.
QUESTION = b"who is there?"
WINDOW = 1.0
AGAIN = 10_000

# What discoveryDetails have to be. The node refuses others, with their place, before the handler sees them.
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["ask"],
    "properties": {"ask": {"type": "string", "description": "Where it is asked, ADDRESS:PORT; a multicast group, for example."}},
}


class Handler(exports.Handler):
    place = ("", 0)

    def describe(self):
        # shared: whether other nodes see the same devices.
        return Info(name="{{name}}", shared=True, details_schema=json.dumps(SCHEMA))

    def open(self, request):
        place = json.loads(request.details)["ask"]
        try:
            address, port = place.rsplit(":", 1)
            Handler.place = (str(ipaddress.IPv4Address(address)), int(port))
        except ValueError:
            raise Err(Error_InvalidDetails(f"ask: {place!r} is not ADDRESS:PORT")) from None

    def step(self):
        try:
            answers = ask(Handler.place, QUESTION, WINDOW)
        except Failed as failed:
            raise Err(Error_Unavailable(f"{Handler.place[0]}:{Handler.place[1]}: {failed}")) from None
        found = devices_of(answers)
        log.log(log.Level.INFO, f"{len(found)} devices")
        devices = [
            Device(id=name, properties=[(DEVICE, where)], mounts=[], device_specs=[]) for name, where in sorted(found.items())
        ]
        return Outcome(devices=devices, wake_after_ms=AGAIN, note=None)
