import assert from "node:assert/strict";
import { test } from "node:test";
import { devicesOf } from "./devices.js";

test("each address is a device once", () => {
  const answers = [{ from: "192.0.2.7:4000" }, { from: "192.0.2.8:1" }, { from: "192.0.2.7:4001" }];
  assert.deepEqual([...devicesOf(answers)], [["192.0.2.7", "192.0.2.7:4001"], ["192.0.2.8", "192.0.2.8:1"]]);
  assert.deepEqual([...devicesOf([])], []);
});
