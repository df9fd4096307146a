"""Calls a node's sockets as grpcio does, whose :authority is the socket's path.

Usage: client.py KUBELET_SOCKET POD_RESOURCES_SOCKET HANDLER_SOCKET
"""

import sys

import grpc


def field(number, text):
    """A string of a protobuf message."""
    data = text.encode()
    return bytes([number << 3 | 2, len(data)]) + data


def main():
    kubelet, pod_resources, handler = (f"unix:{path}" for path in sys.argv[1:])
    register = field(1, "v1beta1") + field(2, "none.sock") + field(3, "example.com/python")
    details = field(1, "descriptions: [foo]")
    for options in [], [("grpc.default_authority", "a b/c[")]:
        with grpc.insecure_channel(kubelet, options) as channel:
            # More than once: later calls refer to the headers of the first.
            for _ in range(3):
                channel.unary_unary("/v1beta1.Registration/Register")(register, timeout=60)
        with grpc.insecure_channel(pod_resources, options) as channel:
            channel.unary_unary("/v1.PodResourcesLister/List")(b"", timeout=60)
        with grpc.insecure_channel(handler, options) as channel:
            next(channel.unary_stream("/v0.DiscoveryHandler/Discover")(details, timeout=60))
    print("all answered")


main()
