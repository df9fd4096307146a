"""What the handler finds out, without WebAssembly: this is what the tests test."""


def devices_of(text: str) -> list[str]:
    """A device for each line, each once: ids are unique."""
    return sorted({line.strip() for line in text.splitlines()} - {""})
