// A connection. Needs a rule `tcp` in the pod's annotation akri-krustlet/network, and `dns` for a name.

import { now, subscribeInstant } from "wasi:clocks/monotonic-clock@0.2.12";
import { poll } from "wasi:io/poll@0.2.12";
import { instanceNetwork } from "wasi:sockets/instance-network@0.2.12";
import { resolveAddresses } from "wasi:sockets/ip-name-lookup@0.2.12";
import { createTcpSocket } from "wasi:sockets/tcp-create-socket@0.2.12";
import { bytesOf, textOf, why } from "./bytes.js";

// Longest time for all of it in nanoseconds, and longest answer in bytes.
const TIMEOUT = 5e9;
const MOST = 1 << 20;

// Until something has come, or that time.
function wait(of, until) {
  if (now() >= until) throw new Error("no answer in time");
  poll([of.subscribe(), subscribeInstant(until)]);
}

// What `ask` says as soon as it does not have to wait any more.
function untilDone(of, until, ask) {
  for (;;) {
    try {
      return ask();
    } catch (error) {
      if (why(error) !== "would-block") throw error;
    }
    wait(of, until);
  }
}

// Connects, writes, and reads until the answer is whole.
export function talk({ host, port }, question, isWhole) {
  const until = now() + TIMEOUT;
  const network = instanceNetwork();
  // What belongs to a socket has to be gone before it.
  let [socket, incoming, outgoing] = [];
  try {
    const names = resolveAddresses(network, host);
    let address;
    do {
      address = untilDone(names, until, () => names.resolveNextAddress()) ?? undefined;
    } while (address !== undefined && address.tag !== "ipv4");
    if (address === undefined) throw new Error("its name leads nowhere");
    socket = createTcpSocket("ipv4");
    socket.startConnect(network, { tag: "ipv4", val: { address: address.val, port } });
    [incoming, outgoing] = untilDone(socket, until, () => socket.finishConnect());
    outgoing.blockingWriteAndFlush(bytesOf(question));
    const pieces = [];
    let length = 0;
    while (!isWhole(textOf(pieces))) {
      const piece = incoming.read(65536);
      pieces.push(piece);
      length += piece.length;
      if (length > MOST) throw new Error(`an answer of more than ${MOST} bytes`);
      if (piece.length === 0) wait(incoming, until);
    }
    return textOf(pieces);
  } catch (error) {
    throw new Error(why(error) === "closed" ? "it closed the connection" : why(error));
  } finally {
    incoming = outgoing = undefined;
    socket = undefined;
  }
}
