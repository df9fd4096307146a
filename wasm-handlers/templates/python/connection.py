"""A connection. Needs a rule `tcp` in the pod's annotation akri-krustlet/network, and `dns` for a name."""

from componentize_py_types import Err
from wit_world.imports import instance_network, ip_name_lookup, monotonic_clock, poll, tcp_create_socket
from wit_world.imports.network import ErrorCode, IpAddress_Ipv4, IpAddressFamily, IpSocketAddress_Ipv4, Ipv4SocketAddress
from wit_world.imports.streams import StreamError_Closed

# Longest time for all of it in nanoseconds, and longest answer in bytes.
TIMEOUT = 5 * 10**9
MOST = 1 << 20


class Failed(Exception):
    """Why there is no answer."""


def _wait(of, until):
    """Until something has come, or that time."""
    if monotonic_clock.now() >= until:
        raise Failed("no answer in time")
    with of.subscribe() as arrived, monotonic_clock.subscribe_instant(until) as over:
        poll.poll([arrived, over])


def _until_done(of, until, ask):
    """What `ask` says as soon as it does not have to wait any more."""
    while True:
        try:
            return ask()
        except Err as error:
            if error.value != ErrorCode.WOULD_BLOCK:
                raise
        _wait(of, until)


def talk(host, port, question, is_whole):
    """Connects, writes, and reads until the answer is whole."""
    until = monotonic_clock.now() + TIMEOUT
    network = instance_network.instance_network()
    said = bytearray()
    try:
        with ip_name_lookup.resolve_addresses(network, host) as names:
            address = _until_done(names, until, names.resolve_next_address)
            while address is not None and not isinstance(address, IpAddress_Ipv4):
                address = _until_done(names, until, names.resolve_next_address)
        if address is None:
            raise Failed("its name leads nowhere")
        with tcp_create_socket.create_tcp_socket(IpAddressFamily.IPV4) as socket:
            socket.start_connect(network, IpSocketAddress_Ipv4(Ipv4SocketAddress(port, address.value)))
            incoming, outgoing = _until_done(socket, until, socket.finish_connect)
            with incoming, outgoing:
                outgoing.blocking_write_and_flush(question)
                while not is_whole(bytes(said)):
                    came = incoming.read(64 << 10)
                    said += came
                    if len(said) > MOST:
                        raise Failed(f"an answer of more than {MOST} bytes")
                    if not came:
                        _wait(incoming, until)
    except Err as error:
        if isinstance(error.value, StreamError_Closed):
            raise Failed("it closed the connection") from None
        raise Failed(getattr(error.value, "name", "it broke").lower().replace("_", " ")) from None
    return bytes(said)
