// {{name}}: a server is asked for a list by a connection; each line of it is a device.

import { log } from "akri:host/log@0.1.0";
import { talk } from "./connection.js";
import { devicesOf } from "./devices.js";

// The variable that brokers read.
const DEVICE = "{{VARIABLE}}";
// What is asked, and the line that ends the answer; yours will be others. The time between two questions, in milliseconds.
const QUESTION = "list\n";
const END = ".";
const AGAIN = 10_000;

// What discoveryDetails have to be. The node refuses others, with their place, before the handler sees them.
const schema = {
  type: "object",
  additionalProperties: false,
  required: ["host", "port"],
  properties: {
    host: { type: "string", description: "The server's name or address." },
    port: { type: "integer", minimum: 1, maximum: 65535, description: "Its port." },
  },
};

let place;

export const handler = {
  describe() {
    // shared: whether other nodes see the same devices.
    return { name: "{{name}}", shared: true, detailsSchema: JSON.stringify(schema) };
  },

  open(request) {
    place = JSON.parse(request.details);
  },

  step() {
    const linesOf = (text) => text.split("\n").slice(0, -1).map((line) => line.trim());
    let names;
    try {
      const text = talk(place, QUESTION, (text) => linesOf(text).includes(END));
      const lines = linesOf(text);
      names = devicesOf(lines.slice(0, lines.indexOf(END)));
    } catch (error) {
      // Without an answer the last list stays, and the pod's condition says why.
      throw { tag: "unavailable", val: `${place.host}:${place.port}: ${error.message}` };
    }
    log("info", `${names.length} devices`);
    const devices = names.map((name) => ({ id: name, properties: [[DEVICE, name]], mounts: [], deviceSpecs: [] }));
    return { devices, wakeAfterMs: AGAIN, note: undefined };
  },
};
