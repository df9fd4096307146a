// {{name}}: each name in the Configuration's details is a device. A place to begin: what your protocol says comes here.

import { log } from "akri:host/log@0.1.0";
import { devicesOf } from "./devices.js";

// The variable that brokers read.
const DEVICE = "{{VARIABLE}}";

// What discoveryDetails have to be. The node refuses others, with their place, before the handler sees them.
const schema = {
  type: "object",
  additionalProperties: false,
  required: ["names"],
  properties: { names: { type: "array", items: { type: ["string", "number"] }, description: "A device for each." } },
};

let names = [];

export const handler = {
  describe() {
    // shared: whether other nodes see the same devices.
    return { name: "{{name}}", shared: false, detailsSchema: JSON.stringify(schema) };
  },

  open(request) {
    const found = devicesOf(JSON.parse(request.details).names);
    if (found.includes("none")) {
      throw { tag: "invalid-details", val: 'names: "none" is no device' };
    }
    names = found;
  },

  step() {
    log("info", `${names.length} devices`);
    const devices = names.map((name) => ({ id: name, properties: [[DEVICE, name]], mounts: [], deviceSpecs: [] }));
    // wakeAfterMs: when to be asked again; without it, never, since nothing here changes.
    return { devices, wakeAfterMs: undefined, note: undefined };
  },
};
