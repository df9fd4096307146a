// {{name}}: who answers a datagram is a device.

import { log } from "akri:host/log@0.1.0";
import { ask } from "./datagrams.js";
import { devicesOf } from "./devices.js";

// The variable that brokers read.
const DEVICE = "{{VARIABLE}}";
// What is asked; yours will be another one. How long answers are waited for, and the time between two questions, in milliseconds.
const QUESTION = "who is there?";
const WINDOW = 1000;
const AGAIN = 10_000;

// What discoveryDetails have to be. The node refuses others, with their place, before the handler sees them.
const schema = {
  type: "object",
  additionalProperties: false,
  required: ["ask"],
  properties: { ask: { type: "string", description: "Where it is asked, ADDRESS:PORT; a multicast group, for example." } },
};

let place;

export const handler = {
  describe() {
    // shared: whether other nodes see the same devices.
    return { name: "{{name}}", shared: true, detailsSchema: JSON.stringify(schema) };
  },

  open(request) {
    const { ask } = JSON.parse(request.details);
    const parts = /^(\d+)\.(\d+)\.(\d+)\.(\d+):(\d+)$/.exec(ask);
    const [address, port] = [parts?.slice(1, 5).map(Number), Number(parts?.[5])];
    if (parts === null || address.some((part) => part > 255) || port > 65535) {
      throw { tag: "invalid-details", val: `ask: "${ask}" is not ADDRESS:PORT` };
    }
    place = { address, port };
  },

  step() {
    let answers;
    try {
      answers = ask(place, QUESTION, WINDOW);
    } catch (error) {
      throw { tag: "unavailable", val: `${place.address.join(".")}:${place.port}: ${error.message}` };
    }
    const found = devicesOf(answers);
    log("info", `${found.size} devices`);
    const devices = [...found].sort().map(([id, where]) => ({ id, properties: [[DEVICE, where]], mounts: [], deviceSpecs: [] }));
    return { devices, wakeAfterMs: AGAIN, note: undefined };
  },
};
