"""{{name}}: each line of a file in a volume is a device, and the list follows the file."""

import json
import os.path

from componentize_py_types import Err
from devices import devices_of
from wit_world import exports
from wit_world.exports.handler import Info
from wit_world.imports import log, watch
from wit_world.imports.types import Device, Error_InvalidDetails, Outcome

# Where the pod mounts the volume, and the variable that brokers read.
DIRECTORY = "/etc/devices"
DEVICE = "{{VARIABLE}}"

# What discoveryDetails have to be. The node refuses others, with their place, before the handler sees them.
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["file"],
    "properties": {"file": {"type": "string", "description": "Name of a file of the volume.", "pattern": "^[^/]+$"}},
}


class Handler(exports.Handler):
    path = ""
    # Asks for a step when something in the directory has changed.
    changes: watch.Watch | None = None

    def describe(self):
        # shared: whether other nodes see the same devices.
        return Info(name="{{name}}", shared=False, details_schema=json.dumps(SCHEMA))

    def open(self, request):
        file = json.loads(request.details)["file"]
        if file in (".", ".."):
            raise Err(Error_InvalidDetails(f"file: {file!r} is no file"))
        Handler.path = os.path.join(DIRECTORY, file)
        Handler.changes = watch.Watch.open(DIRECTORY)

    def step(self):
        Handler.changes.take()
        if not os.path.exists(Handler.path):
            # No file, no devices. A file that cannot be read is another matter: then the last list stays.
            return Outcome(devices=[], wake_after_ms=None, note=f"there is no file {Handler.path}")
        with open(Handler.path, encoding="utf-8") as file:
            names = devices_of(file.read())
        log.log(log.Level.INFO, f"{len(names)} devices")
        devices = [Device(id=name, properties=[(DEVICE, name)], mounts=[], device_specs=[]) for name in names]
        return Outcome(devices=devices, wake_after_ms=None, note=None)
