// A discovery handler in JavaScript: every word of the Configuration's details is a device.
//
//     npx componentize-qjs --wit ../../../proto/wit --js handler.js -n discovery-handler --sync --opt-size -o words.wasm

import { log } from "akri:host/log@0.1.0";

const schema = {
  type: "object",
  required: ["words"],
  properties: { words: { type: "array", items: { type: ["string", "number", "boolean", "null"] } } },
};

let words = [];

export const handler = {
  describe() {
    return { name: "words", shared: true, detailsSchema: JSON.stringify(schema) };
  },

  open(request) {
    words = JSON.parse(request.details).words.map(String);
    if (words.includes("nothing")) {
      throw { tag: "invalid-details", val: 'words: "nothing" is none' };
    }
    log("info", `${words.length} words`);
  },

  step() {
    const devices = words.map((word) => ({ id: word, properties: [["WORD", word]], mounts: [], deviceSpecs: [] }));
    return { devices, wakeAfterMs: undefined, note: undefined };
  },
};
