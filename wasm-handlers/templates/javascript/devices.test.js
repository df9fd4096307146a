import assert from "node:assert/strict";
import { test } from "node:test";
import { devicesOf } from "./devices.js";

test("each name is a device once", () => {
  assert.deepEqual(devicesOf(["b", 10, "a", "b"]), ["10", "a", "b"]);
  assert.deepEqual(devicesOf([]), []);
});
