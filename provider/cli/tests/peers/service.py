"""A service that announces itself by mDNS: ADDRESS NAME PORT. Says `ready`; says goodbye when it is ended."""

import signal
import socket
import sys

from zeroconf import IPVersion, ServiceInfo, Zeroconf

# Before there are threads, which would take it.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
address, name, port = sys.argv[1:]
responder = Zeroconf(interfaces=[address], ip_version=IPVersion.V4Only)
service = ServiceInfo(
    "_rtsp._tcp.local.",
    f"{name}._rtsp._tcp.local.",
    addresses=[socket.inet_aton(address)],
    port=int(port),
    properties={"path": "/stream", "model": "stand-in"},
    server=f"{name}.local.",
)
responder.register_service(service)
print("ready", flush=True)
signal.sigwait([signal.SIGTERM])
responder.unregister_service(service)
responder.close()
