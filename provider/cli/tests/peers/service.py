"""A service that announces itself by mDNS: ADDRESS NAME PORT [NUMBER: so many, with numbers in their names]. Says `ready`; says goodbye when it is ended."""

import signal
import socket
import sys

from zeroconf import IPVersion, ServiceInfo, Zeroconf

# Before there are threads, which would take it.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
address, name, port, *number = sys.argv[1:]
names = [f"{name}{index}" for index in range(int(number[0]))] if number else [name]


def service(name):
    return ServiceInfo(
        "_rtsp._tcp.local.",
        f"{name}._rtsp._tcp.local.",
        addresses=[socket.inet_aton(address)],
        port=int(port),
        properties={"path": "/stream", "model": "stand-in"},
        server=f"{name}.local.",
    )


responder = Zeroconf(interfaces=[address], ip_version=IPVersion.V4Only)
services = [service(name) for name in names]
for one in services:
    responder.register_service(one)
print("ready", flush=True)
signal.sigwait([signal.SIGTERM])
for one in services:
    responder.unregister_service(one)
responder.close()
