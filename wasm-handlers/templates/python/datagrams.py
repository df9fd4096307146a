"""Datagrams. Need a rule `udp` in the pod's annotation akri-krustlet/network."""

from componentize_py_types import Err
from wit_world.imports import instance_network, monotonic_clock, poll, udp_create_socket
from wit_world.imports.network import IpAddressFamily, IpSocketAddress_Ipv4, Ipv4SocketAddress
from wit_world.imports.udp import OutgoingDatagram


class Failed(Exception):
    """Why nobody was asked."""


def _address(address, port):
    return IpSocketAddress_Ipv4(Ipv4SocketAddress(port, tuple(int(part) for part in address.split("."))))


def ask(place, question, seconds):
    """Sends a question, and returns what comes within that time: from whom (address and port), and what."""
    answers = []
    try:
        with udp_create_socket.create_udp_socket(IpAddressFamily.IPV4) as socket:
            socket.start_bind(instance_network.instance_network(), _address("0.0.0.0", 0))
            socket.finish_bind()
            incoming, outgoing = socket.stream(None)
            with incoming, outgoing:
                while outgoing.check_send() == 0:
                    with outgoing.subscribe() as free:
                        free.block()
                outgoing.send([OutgoingDatagram(question, _address(*place))])
                until = monotonic_clock.now() + int(seconds * 1e9)
                while monotonic_clock.now() < until:
                    for datagram in incoming.receive(16):
                        of = datagram.remote_address.value
                        answers.append(((".".join(map(str, of.address)), of.port), datagram.data))
                    with incoming.subscribe() as arrived, monotonic_clock.subscribe_instant(until) as over:
                        poll.poll([arrived, over])
    except Err as error:
        raise Failed(error.value.name.lower().replace("_", " ")) from None
    return answers
