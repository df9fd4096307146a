"""A camera: ADDRESS PORT AUTHENTICATION (none, token or digest) [lenient: it answers probes for whatever types]. Says `ready UUID`; says bye when it is ended.

Its device service behaves as ONVIF's core specification has it: the time is told to everybody, the network interfaces to users."""

import base64
import hashlib
import http.server
import re
import signal
import sys
import threading

from wsdiscovery import QName, Scope
from wsdiscovery.publishing import ThreadedWSPublishing

# Before there are threads, which would take it.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
ADDRESS, PORT, AUTHENTICATION = sys.argv[1], int(sys.argv[2]), sys.argv[3]
USER, PASSWORD = "admin", "secret"
ENVELOPE = '<?xml version="1.0"?><SOAP-ENV:Envelope xmlns:SOAP-ENV="http://www.w3.org/2003/05/soap-envelope" ' \
    'xmlns:tds="http://www.onvif.org/ver10/device/wsdl" xmlns:tt="http://www.onvif.org/ver10/schema">' \
    '<SOAP-ENV:Body>{}</SOAP-ENV:Body></SOAP-ENV:Envelope>'
# Long ago: its clock was never set.
TIME = '<tds:GetSystemDateAndTimeResponse><tds:SystemDateAndTime><tt:UTCDateTime><tt:Time><tt:Hour>1</tt:Hour><tt:Minute>2</tt:Minute>' \
    '<tt:Second>3</tt:Second></tt:Time><tt:Date><tt:Year>2001</tt:Year><tt:Month>2</tt:Month><tt:Day>3</tt:Day></tt:Date>' \
    '</tt:UTCDateTime></tds:SystemDateAndTime></tds:GetSystemDateAndTimeResponse>'
INTERFACES = '<tds:GetNetworkInterfacesResponse><tds:NetworkInterfaces token="eth0"><tt:Enabled>true</tt:Enabled><tt:Info><tt:Name>eth0' \
    f'</tt:Name><tt:HwAddress>00:11:22:33:44:{PORT % 100:02d}</tt:HwAddress></tt:Info><tt:IPv4><tt:Config><tt:Manual><tt:Address>{ADDRESS}' \
    '</tt:Address><tt:PrefixLength>24</tt:PrefixLength></tt:Manual></tt:Config></tt:IPv4></tds:NetworkInterfaces></tds:GetNetworkInterfacesResponse>'
FAULT = '<SOAP-ENV:Fault><SOAP-ENV:Code><SOAP-ENV:Value>SOAP-ENV:Sender</SOAP-ENV:Value></SOAP-ENV:Code></SOAP-ENV:Fault>'


def md5(text):
    return hashlib.md5(text.encode()).hexdigest()


class Service(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = self.rfile.read(int(self.headers["content-length"])).decode()
        if "GetSystemDateAndTime" in asked:
            return self.answer(200, TIME)
        if "GetNetworkInterfaces" not in asked:
            return self.answer(400, FAULT)
        if AUTHENTICATION == "digest" and not self.has_digest():
            return self.answer(401, "", [("WWW-Authenticate", 'Digest realm="camera", qop="auth", nonce="0123456789", algorithm=MD5')])
        if AUTHENTICATION == "token" and not self.has_token(asked):
            return self.answer(400, FAULT)
        return self.answer(200, INTERFACES)

    def has_digest(self):
        given = dict(re.findall(r'(\w+)="?([^",]*)"?', self.headers.get("authorization", "")))
        if given.get("username") != USER or given.get("uri") != self.path:
            return False
        user, request = md5(f"{USER}:camera:{PASSWORD}"), md5(f"POST:{self.path}")
        return given["response"] == md5(f"{user}:0123456789:{given['nc']}:{given['cnonce']}:auth:{request}")

    def has_token(self, asked):
        found = [re.search(rf"<\w+:{name}(?:\s[^>]*)?>([^<]*)<", asked) for name in ("Username", "Password", "Nonce", "Created")]
        if not all(found):
            return False
        user, digest, nonce, created = [match.group(1) for match in found]
        expected = hashlib.sha1(base64.b64decode(nonce) + created.encode() + PASSWORD.encode()).digest()
        # A token of another time than the camera's is an old one.
        return user == USER and base64.b64decode(digest) == expected and created.startswith("2001-02-03T01:0")

    def answer(self, status, body, headers=()):
        content = ENVELOPE.format(body).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-type", "application/soap+xml")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


service = http.server.ThreadingHTTPServer((ADDRESS, PORT), Service)
threading.Thread(target=service.serve_forever, daemon=True).start()


class Lenient(ThreadedWSPublishing):
    def _handle_probe(self, env, addr):
        self._sendProbeMatch(list(self._localServices.values()), env.getMessageId(), addr)


publishing = Lenient() if "lenient" in sys.argv else ThreadedWSPublishing()
publishing.start()
publishing.publishService(
    types=[QName("http://www.onvif.org/ver10/network/wsdl", "NetworkVideoTransmitter")],
    scopes=[Scope("onvif://www.onvif.org/name/stand-in")],
    xAddrs=[f"http://{ADDRESS}:{PORT}/onvif/device_service"],
)
epr = next(iter(publishing._localServices))
print("ready", epr.removeprefix("urn:uuid:"), flush=True)
signal.sigwait([signal.SIGTERM])
# Says bye.
publishing.clearLocalServices()
publishing.stop()
