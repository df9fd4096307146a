"""{{name}}: each line of what a web server answers is a device."""

import json

from devices import devices_of
from web import Failed, get
from wit_world import exports
from wit_world.exports.handler import Info
from wit_world.imports import log
from wit_world.imports.akri_discovery_types import Device, Outcome

# The variable that brokers read.
DEVICE = "{{VARIABLE}}"

# What discoveryDetails have to be. The node refuses others, with their place, before the handler sees them.
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["url"],
    "properties": {
        "url": {"type": "string", "description": "What is asked."},
        "every": {"type": "integer", "minimum": 1, "description": "How often, in seconds; 10 by default."},
    },
}


class Handler(exports.Handler):
    url = ""
    every = 10

    def describe(self):
        # shared: whether other nodes see the same devices.
        return Info(name="{{name}}", shared=True, details_schema=json.dumps(SCHEMA))

    def open(self, request):
        details = json.loads(request.details)
        Handler.url, Handler.every = details["url"], details.get("every", 10)

    def step(self):
        again = 1000 * Handler.every
        try:
            status, text = get(Handler.url)
        except Failed as failed:
            # Without an answer the last list stays, and the pod's condition says why.
            return Outcome(devices=None, wake_after_ms=again, note=f"{Handler.url}: {failed}")
        if status != 200:
            return Outcome(devices=None, wake_after_ms=again, note=f"{Handler.url}: it answered {status}")
        names = devices_of(text)
        log.log(log.Level.INFO, f"{len(names)} devices")
        devices = [Device(id=name, properties=[(DEVICE, name)], mounts=[], device_specs=[]) for name in names]
        return Outcome(devices=devices, wake_after_ms=again, note=None)
