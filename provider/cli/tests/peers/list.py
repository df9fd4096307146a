"""A server with a list of devices by HTTP: ADDRESS PORT NUMBER; each line of /discovery is one. Says `ready`."""

import http.server
import sys

ADDRESS, PORT, NUMBER = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
LINES = "".join(f"http://{ADDRESS}:{PORT}/device/{index}\n" for index in range(NUMBER)).encode()


class Service(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/discovery" else 404)
        self.send_header("content-length", str(len(LINES)))
        self.end_headers()
        self.wfile.write(LINES)

    def log_message(self, *_):
        pass


service = http.server.ThreadingHTTPServer((ADDRESS, PORT), Service)
print("ready", flush=True)
service.serve_forever()
