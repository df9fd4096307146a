// What the node is at, asked for every two seconds. All that is shown is text: guests and devices have a say in it.
"use strict";

const EVERY = 2000;
let before = null;
let chosen = null;

const place = (id) => document.getElementById(id);

function cell(text, kind) {
  const td = document.createElement("td");
  td.textContent = text;
  if (kind) td.className = kind;
  return td;
}

function fill(id, rows, columns, nothing) {
  const body = place(id);
  const lines = rows.map((cells) => {
    const tr = document.createElement("tr");
    tr.append(...cells);
    return tr;
  });
  if (lines.length === 0) {
    const tr = document.createElement("tr");
    const td = cell(nothing, "none");
    td.colSpan = columns;
    tr.append(td);
    lines.push(tr);
  }
  body.replaceChildren(...lines);
}

function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  for (const [letter, length] of [["d", 86400], ["h", 3600], ["m", 60]]) {
    if (whole >= 2 * length) return Math.floor(whole / length) + letter;
  }
  return whole + "s";
}

function bytes(number) {
  return number >= 1 << 20 ? (number / (1 << 20)).toFixed(1) + " MiB" : (number / 1024).toFixed(0) + " KiB";
}

// Of a core, since the last look.
function share(now, then, seconds) {
  return then === undefined || seconds <= 0 ? "" : ((100 * Math.max(0, now - then)) / seconds).toFixed(1) + " %";
}

function show(overview) {
  const seconds = before ? overview.at - before.at : 0;
  const taken = new Map(before ? before.taken : []);
  place("node").textContent = overview.node;
  place("facts").textContent =
    "version " + overview.version + (overview.inCluster ? ", in a cluster" : ", alone") + ", for " +
    duration(overview.at - overview.started) + ", memory " + bytes(overview.memoryBytes) + ", CPU " +
    (share(overview.cpuSeconds, before ? before.cpu : undefined, seconds) || "-");
  fill("handlers", overview.handlers.map((handler) => {
    const complaint = handler.streams.map((stream) => stream.complaint).filter(Boolean).join("; ");
    const state = complaint || (handler.container ? "serves" : "no container serves it");
    const count = handler.streams.reduce((sum, stream) => sum + stream.count, 0);
    return [
      cell(handler.name + (handler.shared ? " (shared)" : "")), cell(handler.container || "-"),
      cell(handler.streams.length, "number"), cell(count, "number"),
      cell(state, complaint || !handler.container ? "bad" : "good"),
    ];
  }), 5, "There is no handler.");
  fill("devices", overview.handlers.flatMap((handler) => handler.streams.flatMap((stream) =>
    stream.devices.map((device) => [cell(handler.name), cell(device.id), cell(duration(overview.at - device.since), "number")])
  )), 3, "No device is found.");
  const now = [];
  fill("containers", overview.pods.flatMap((pod) => pod.containers.map((container) => {
    const key = pod.namespace + "/" + pod.name + "/" + container.name;
    now.push([key, container.cpuSeconds]);
    const button = document.createElement("button");
    button.textContent = "log";
    button.addEventListener("click", () => { chosen = key; log(); });
    const last = document.createElement("td");
    last.append(button);
    const state = pod.unhealthy && container.state === "running" ? container.state + ": " + pod.unhealthy : container.state;
    const limit = container.memoryLimit ? " of " + bytes(container.memoryLimit) : "";
    return [
      cell(pod.namespace + "/" + pod.name), cell(container.name),
      cell(state, pod.unhealthy || container.state !== "running" ? "bad" : "good"), cell(container.restarts, "number"),
      cell(share(container.cpuSeconds, taken.get(key), seconds), "number"), cell(bytes(container.memoryBytes) + limit, "number"), last,
    ];
  })), 7, "There is no pod.");
  fill("events", overview.events.map((event) => [
    cell(duration(overview.at - event.at), "number"), cell(event.object), cell(event.reason, event.warning ? "bad" : ""), cell(event.message),
  ]), 4, "Nothing was told yet.");
  before = { at: overview.at, cpu: overview.cpuSeconds, taken: now };
}

async function log() {
  if (chosen === null) return;
  const path = chosen.split("/").map(encodeURIComponent).join("/");
  const answer = await fetch("logs/" + path);
  place("logged").textContent = "of " + chosen;
  const pre = place("log");
  const atEnd = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 4;
  pre.textContent = (await answer.text()) || "It has printed nothing.";
  if (atEnd) pre.scrollTop = pre.scrollHeight;
}

async function look() {
  try {
    const answer = await fetch("overview");
    if (!answer.ok) throw new Error("it answered " + answer.status);
    show(await answer.json());
    await log();
  } catch (error) {
    place("facts").textContent = "The node does not answer: " + error.message;
    before = null;
  }
  setTimeout(look, EVERY);
}

look();
