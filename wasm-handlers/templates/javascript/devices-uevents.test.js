import assert from "node:assert/strict";
import { test } from "node:test";
import { Known } from "./devices.js";

test("what comes is there until it goes", () => {
  const known = new Known();
  for (const [action, path] of [["add", "/devices/b"], ["add", "/devices/a"], ["change", "/devices/a"], ["remove", "/devices/b"]]) {
    known.tell(action, path);
  }
  assert.deepEqual(known.names(), ["/devices/a"]);
});
