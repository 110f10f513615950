"""Two machines: network namespaces joined by a cable, each with mounts of its own; needs root."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def why_no_machines() -> str | None:
    """Return why none can be made here, or None."""
    if os.getuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare", "mount") if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}; apt-get install iproute2 util-linux"
    name = f"t{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return f"ip netns add: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


@dataclass(frozen=True)
class Machine:
    """One of two.

    Attributes:
        namespace: of its network.
        interface: its end of the cable.
        address: of that.
    """

    namespace: str
    interface: str
    address: str

    def command(self, words: list[str], hidden: Path | None = None) -> list[str]:
        """Return the command that runs another one on this machine.

        Args:
            words: the other one.
            hidden: folder in whose place this machine sees an empty one of its own.
        """
        inside = ["ip", "netns", "exec", self.namespace]
        if hidden is None:
            return [*inside, *words]
        script = 'mount -t tmpfs none "$0" && exec "$@"'
        return [*inside, "unshare", "--mount", "sh", "-c", script, str(hidden), *words]

    def pull_cable(self) -> None:
        """Let nothing through, as a pulled cable does: nobody is told."""
        self._set_link("down")

    def put_cable_back(self) -> None:
        """Let everything through again."""
        self._set_link("up")

    def _set_link(self, state: str) -> None:
        words = ["ip", "-n", self.namespace, "link", "set", self.interface, state]
        subprocess.run(words, check=True)


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Make two machines for the length of a `with` block."""
    name = uuid.uuid4().hex[:6]
    machines = tuple(
        Machine(f"{side}{name}", f"v{side}{name}", f"10.231.77.{number}")
        for number, side in enumerate("ab", 1)
    )
    first, second = machines
    try:
        for machine in machines:
            subprocess.run(["ip", "netns", "add", machine.namespace], check=True)
        link = ["ip", "link", "add", first.interface, "netns", first.namespace, "type", "veth"]
        link += ["peer", "name", second.interface, "netns", second.namespace]
        subprocess.run(link, check=True)
        for machine in machines:
            inside = ["ip", "-n", machine.namespace]
            address = [f"{machine.address}/24", "dev", machine.interface]
            subprocess.run([*inside, "address", "add", *address], check=True)
            for interface in ("lo", machine.interface):
                subprocess.run([*inside, "link", "set", interface, "up"], check=True)
        yield first, second
    finally:
        for machine in machines:
            subprocess.run(["ip", "netns", "delete", machine.namespace], check=False)
