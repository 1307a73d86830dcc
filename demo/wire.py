#!/usr/bin/env python3
"""What goes over a network device, as anybody between two nodes could see it.

usage: wire.py DEVICE TEXT

Says "listening", then counts until it is ended (SIGTERM), and says of each TCP port that something was sent to or from below 32768 how many
packets and bytes of payload there were, and how often TEXT was in one of them.
"""
import collections
import signal
import socket
import struct
import sys

ALL_PROTOCOLS = 3
IPV4 = 0x0800
TCP = 6
FIRST_OF_CLIENTS = 32768


class Ended(Exception):
    """Somebody has seen enough."""


def end(_signal, _frame):
    raise Ended


def payload_of(frame):
    """The port of the server and the payload of a frame, if it is one of TCP."""
    if len(frame) < 54 or struct.unpack("!H", frame[12:14])[0] != IPV4:
        return None
    packet = frame[14:]
    head = (packet[0] & 15) * 4
    length = struct.unpack("!H", packet[2:4])[0]
    if packet[9] != TCP:
        return None
    segment = packet[head:length]
    ports = struct.unpack("!HH", segment[:4])
    return min(ports), segment[(segment[12] >> 4) * 4:]


def main():
    device, text = sys.argv[1], sys.argv[2].encode()
    signal.signal(signal.SIGTERM, end)
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    wire.bind((device, 0))
    print("listening", flush=True)
    seen = collections.defaultdict(lambda: [0, 0, 0])
    try:
        while True:
            found = payload_of(wire.recv(1 << 16))
            if found and found[0] < FIRST_OF_CLIENTS and found[1]:
                counts = seen[found[0]]
                counts[0] += 1
                counts[1] += len(found[1])
                counts[2] += text in found[1]
    except Ended:
        pass
    for port, (packets, size, times) in sorted(seen.items()):
        print(f"port {port}: {packets} packets, {size} bytes, \"{text.decode()}\" in {times} of them")


if __name__ == "__main__":
    main()
