"""Many cameras, each at an address of its own: NETWORK (its first three numbers) FIRST NUMBER. Says `ready`.

They answer probes for everything, each after up to 500 ms and twice, as SOAP-over-UDP has it, and asks of their device services without a password."""

import http.server
import random
import re
import socket
import struct
import sys
import threading
import time

NETWORK, FIRST, NUMBER = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
GROUP, PORT = "239.255.255.250", 3702
ENVELOPE = '<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:tds="http://www.onvif.org/ver10/device/wsdl" ' \
    'xmlns:tt="http://www.onvif.org/ver10/schema" xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" ' \
    'xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery" xmlns:dn="http://www.onvif.org/ver10/network/wsdl">' \
    '<s:Header>{}</s:Header><s:Body>{}</s:Body></s:Envelope>'
TIME = '<tds:GetSystemDateAndTimeResponse><tds:SystemDateAndTime/></tds:GetSystemDateAndTimeResponse>'
INTERFACES = '<tds:GetNetworkInterfacesResponse><tds:NetworkInterfaces token="eth0"><tt:Enabled>true</tt:Enabled><tt:Info><tt:Name>eth0' \
    '</tt:Name><tt:HwAddress>00:11:22:33:44:{:02x}</tt:HwAddress></tt:Info><tt:IPv4><tt:Config><tt:Manual><tt:Address>{}' \
    '</tt:Address><tt:PrefixLength>24</tt:PrefixLength></tt:Manual></tt:Config></tt:IPv4></tds:NetworkInterfaces></tds:GetNetworkInterfacesResponse>'


class Service(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = self.rfile.read(int(self.headers["content-length"])).decode()
        address = self.connection.getsockname()[0]
        body = TIME if "GetSystemDateAndTime" in asked else INTERFACES.format(int(address.rsplit(".", 1)[1]), address)
        content = ENVELOPE.format("", body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/soap+xml")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256


def match(number, asked):
    header = '<a:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/ProbeMatches</a:Action>' \
        f'<a:MessageID>urn:uuid:{random.getrandbits(128):032x}</a:MessageID><a:RelatesTo>{asked}</a:RelatesTo>'
    body = '<d:ProbeMatches><d:ProbeMatch><a:EndpointReference><a:Address>' \
        f'urn:uuid:00000000-0000-4000-8000-{number:012x}</a:Address></a:EndpointReference><d:Types>dn:NetworkVideoTransmitter</d:Types>' \
        f'<d:Scopes>onvif://www.onvif.org/name/{number}</d:Scopes><d:XAddrs>http://{NETWORK}.{number}:8080/onvif/device_service</d:XAddrs>' \
        '<d:MetadataVersion>1</d:MetadataVersion></d:ProbeMatch></d:ProbeMatches>'
    return ENVELOPE.format(header, body).encode()


threading.Thread(target=Server(("", 8080), Service).serve_forever, daemon=True).start()
cameras = {}
for number in range(FIRST, FIRST + NUMBER):
    cameras[number] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    cameras[number].bind((f"{NETWORK}.{number}", 0))
listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((GROUP, PORT))
listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                    struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(f"{NETWORK}.{FIRST}")))
print("ready", flush=True)
due = []
while True:
    due.sort(key=lambda entry: entry[0])
    listener.settimeout(max(due[0][0] - time.monotonic(), 0.0001) if due else None)
    try:
        data, client = listener.recvfrom(65536)
        asked = re.search(rb"<\w*:?MessageID[^>]*>([^<]*)<", data)
        if b"Probe" in data and asked:
            now = time.monotonic()
            for number in cameras:
                at = now + random.uniform(0, 0.5)
                answer = match(number, asked.group(1).decode().strip())
                due += [(at, number, answer, client), (at + 0.1, number, answer, client)]
    except TimeoutError:
        pass
    while due and due[0][0] <= time.monotonic():
        _, number, answer, client = due.pop(0)
        try:
            cameras[number].sendto(answer, client)
        except OSError:
            # The network is away, and with it what was sent.
            pass
