// {{name}}: what the kernel tells of a subsystem is a device, from when it comes to when it goes.

import { log } from "akri:host/log@0.1.0";
import { Monitor } from "akri:host/uevents@0.1.0";
import { Known } from "./devices.js";

// The variable that brokers read.
const DEVICE = "{{VARIABLE}}";

// What discoveryDetails have to be. The node refuses others, with their place, before the handler sees them.
const schema = {
  type: "object",
  additionalProperties: false,
  required: ["class"],
  properties: { class: { type: "string", pattern: "^[a-z0-9_-]+$", description: "A subsystem, such as tty or net." } },
};

let events;
let known;

export const handler = {
  describe() {
    // shared: whether other nodes see the same devices.
    return { name: "{{name}}", shared: false, detailsSchema: JSON.stringify(schema) };
  },

  open(request) {
    // Asks for a step when something of the subsystem comes or goes.
    events = Monitor.open([JSON.parse(request.details).class]);
    known = new Known();
  },

  step() {
    const [came, lost] = events.take();
    came.forEach(({ action, devpath }) => known.tell(action, devpath));
    // What was there before is not told: a handler that has to know it reads /sys, as those in Rust and Python do.
    const note = lost > 0 ? `${lost} events were lost` : undefined;
    const names = known.names();
    log("info", `${names.length} devices`);
    const devices = names.map((name) => ({ id: name, properties: [[DEVICE, name]], mounts: [], deviceSpecs: [] }));
    return { devices, wakeAfterMs: undefined, note };
  },
};
