"""What the handler finds out, without WebAssembly: this is what the tests test."""


def devices_of(answers: list[tuple[tuple[str, int], bytes]]) -> dict[str, str]:
    """A device for each address that has answered, and where it is: the newest answer counts."""
    return {address: f"{address}:{port}" for (address, port), _ in answers}
