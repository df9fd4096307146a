"""An OPC UA server: [ADDRESS:]PORT NAME APPLICATION_TYPE [URL of the discovery server that it registers with] [NUMBER: so many servers, at this port
and those after it]. A discovery server with a NUMBER knows so many others, which are nowhere. Says `ready`."""

import asyncio
import sys

from asyncua import Client, Server, ua


async def serve(address, port, name, kind):
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://{address}:{port}/ua")
    server.set_server_name(name)
    server.application_type = ua.ApplicationType[kind]
    await server.set_application_uri(f"urn:akri-krustlet:{name}")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    variable = await server.nodes.objects.add_variable(ua.NodeId("value", 2), "value", 42.5)
    await variable.set_writable()
    await server.start()
    return server


async def register_others(url, number):
    async with Client(url) as client:
        for index in range(number):
            other = ua.RegisteredServer()
            other.ServerUri = f"urn:akri-krustlet:other:{index}"
            other.ProductUri = other.ServerUri
            other.DiscoveryUrls = [f"opc.tcp://192.0.2.1:{10000 + index}/ua"]
            other.ServerType = ua.ApplicationType.Server
            other.ServerNames = [ua.LocalizedText(f"other {index}")]
            other.IsOnline = True
            await client.uaclient.register_server(other)


async def main(place, name, kind, *more):
    # With an address that others reach, or only a port.
    address, _, port = place.rpartition(":")
    address, port = address or "127.0.0.1", int(port)
    register = next((word for word in more if not word.isdigit()), None)
    number = next((int(word) for word in more if word.isdigit()), 0)
    is_discovery = kind == "DiscoveryServer"
    servers = []
    for index in range(1 if is_discovery else max(number, 1)):
        servers.append(await serve(address, port + index, f"{name}{index}" if index else name, kind))
    if is_discovery and number:
        await register_others(f"opc.tcp://{address}:{port}/ua", number)
    if register:
        await servers[0].register_to_discovery(register, 2)
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
