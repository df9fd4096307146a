"""{{name}}: what a class of the kernel has is a device, and the list follows the kernel's events."""

import json
import os

from devices import devices_of
from wit_world import exports
from wit_world.exports.handler import Info
from wit_world.imports import log, uevents
from wit_world.imports.types import Device, Outcome

# The variable that brokers read.
DEVICE = "{{VARIABLE}}"

# What discoveryDetails have to be. The node refuses others, with their place, before the handler sees them.
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["class"],
    "properties": {"class": {"type": "string", "pattern": "^[a-z0-9_-]+$", "description": "A class of /sys/class, such as tty or video4linux."}},
}


class Handler(exports.Handler):
    directory = ""
    # Asks for a step when something of the class comes or goes.
    events: uevents.Monitor | None = None

    def describe(self):
        # shared: whether other nodes see the same devices.
        return Info(name="{{name}}", shared=False, details_schema=json.dumps(SCHEMA))

    def open(self, request):
        name = json.loads(request.details)["class"]
        # Before the class is read for the first time: nothing is missed.
        Handler.events = uevents.Monitor.open([name])
        Handler.directory = f"/sys/class/{name}"

    def step(self):
        Handler.events.take()
        if not os.path.isdir(Handler.directory):
            return Outcome(devices=[], wake_after_ms=None, note=f"there is no {Handler.directory}")
        names = devices_of("\n".join(os.listdir(Handler.directory)))
        log.log(log.Level.INFO, f"{len(names)} devices")
        devices = [
            Device(id=name, properties=[(DEVICE, f"{Handler.directory}/{name}")], mounts=[], device_specs=[]) for name in names
        ]
        return Outcome(devices=devices, wake_after_ms=None, note=None)
