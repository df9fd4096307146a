// Datagrams. Need a rule `udp` in the pod's annotation akri-krustlet/network.

import { now, subscribeInstant } from "wasi:clocks/monotonic-clock@0.2.12";
import { poll } from "wasi:io/poll@0.2.12";
import { instanceNetwork } from "wasi:sockets/instance-network@0.2.12";
import { createUdpSocket } from "wasi:sockets/udp-create-socket@0.2.12";
import { bytesOf, textOf, why } from "./bytes.js";

const at = (address, port) => ({ tag: "ipv4", val: { address, port } });

// Sends a question, and returns what comes within that time: from whom (ADDRESS:PORT), and what.
export function ask({ address, port }, question, milliseconds) {
  const answers = [];
  // What belongs to a socket has to be gone before it.
  let [socket, incoming, outgoing] = [];
  try {
    socket = createUdpSocket("ipv4");
    socket.startBind(instanceNetwork(), at([0, 0, 0, 0], 0));
    socket.finishBind();
    [incoming, outgoing] = socket.stream(undefined);
    while (outgoing.checkSend() === 0) outgoing.subscribe().block();
    outgoing.send([{ data: bytesOf(question), remoteAddress: at(address, port) }]);
    const until = now() + milliseconds * 1e6;
    while (now() < until) {
      for (const { data, remoteAddress } of incoming.receive(16)) {
        const { address, port } = remoteAddress.val;
        answers.push({ from: `${[...address].join(".")}:${port}`, text: textOf([data]) });
      }
      poll([incoming.subscribe(), subscribeInstant(until)]);
    }
  } catch (error) {
    throw new Error(why(error));
  } finally {
    incoming = outgoing = undefined;
    socket = undefined;
  }
  return answers;
}
