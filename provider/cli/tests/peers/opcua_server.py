"""An OPC UA server: [ADDRESS:]PORT NAME APPLICATION_TYPE [URL of the discovery server that it registers with]. Says `ready`."""

import asyncio
import sys

from asyncua import Server, ua


async def main(place, name, kind, register=None):
    # With an address that others reach, or only a port.
    address, _, port = place.rpartition(":")
    address = address or "127.0.0.1"
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://{address}:{port}/ua")
    server.set_server_name(name)
    server.application_type = ua.ApplicationType[kind]
    await server.set_application_uri(f"urn:akri-krustlet:{name}")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    variable = await server.nodes.objects.add_variable(ua.NodeId("value", 2), "value", 42.5)
    await variable.set_writable()
    async with server:
        if register:
            await server.register_to_discovery(register, 2)
        print("ready", flush=True)
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
