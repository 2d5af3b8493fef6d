"""Run commands and record every name lookup and every packet to another machine, from native code too.

Commands run in separate namespaces (`unshare -rmn`) with only the loopback network, and this file as the only name server:

    python network_kit.py SECONDS HOME COMMAND...

It runs the command with HOME, waits SECONDS, and prints one JSON object: requested names, packets without a route (of IPv4 and
IPv6), new files in HOME, the command's status and output.
"""

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
_OUTSIDE = bytes((192, 0, 2, 1))  # an address for documentation (RFC 5737), without a route here


def available() -> bool:
    """Return whether this system allows such namespaces."""
    command = ["unshare", "-rmn", sys.executable, __file__, "0", "/", "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


def observed(command: list[str], home: Path, seconds: float = 0.0, **env: str) -> dict[str, object]:
    """Run a command in separate namespaces, and return the record."""
    arguments = ["unshare", "-rmn", sys.executable, __file__, str(seconds), str(home), *command]
    dropped = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "ORT_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(arguments, env=kept | env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def raise_loopback() -> None:
    """Bring up the loopback interface of a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(control, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def _serve_names(server: socket.socket, names: list[str]) -> None:
    """Record each requested name, and answer with an external address."""
    while True:
        packet, client = server.recvfrom(1500)
        labels, place = [], 12
        while size := packet[place]:
            labels.append(packet[place + 1 : place + 1 + size].decode())
            place += 1 + size
        names.append(".".join(labels))
        question = packet[12 : place + 5]
        answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + _OUTSIDE if question[-4:-2] == b"\0\1" else b""
        header = packet[:2] + struct.pack(">HHHHH", 0x8180, 1, 1 if answer else 0, 0, 0)
        server.sendto(header + question + answer, client)


def _without_route() -> int:
    """Return the number of packets without a route so far."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines()[:2])
    six = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return int(values[names.index("OutNoRoutes")]) + int(six.get("Ip6OutNoRoutes", 0))


def main() -> None:
    seconds, home, *command = sys.argv[1:]
    raise_loopback()
    with tempfile.NamedTemporaryFile("w") as file, tempfile.TemporaryFile("w+") as output:
        file.write("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        file.flush()
        subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)
        names: list[str] = []
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 53))
        threading.Thread(target=_serve_names, args=(server, names), daemon=True).start()
        before = _without_route()
        status = subprocess.run(command, env=os.environ | {"HOME": home}, stdout=output, stderr=subprocess.STDOUT).returncode
        time.sleep(float(seconds))
        output.seek(0)
        files = [path for path in Path(home).rglob("*") if path.is_file()] if home != "/" else []
        answer = {
            "names": sorted(set(names) - {socket.gethostname()}),
            "without_route": _without_route() - before,
            "files": sorted(path.relative_to(home).as_posix() for path in files),
            "status": status,
            "output": output.read()[-2000:],
        }
        print(json.dumps(answer))


if __name__ == "__main__":
    main()
