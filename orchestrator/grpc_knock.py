"""Does a gRPC server, as Ray's is, answer at an address? Asked with bare bytes: Ray's own client tries for a minute.

One unary call as gRPC over HTTP/2 prescribes it (RFC 9113; headers without Huffman codes, RFC 7541). Whatever the
server thinks of the call, a gRPC server answers it with HTTP status 200; others close, stay silent, or say 404.
"""

import socket
import struct
import time

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0x0, 0x1, 0x4  # types of frames
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x4, 0x8, 0x20  # flags
_PATH = b"/ray.rpc.NodeInfoGcsService/CheckAlive"
_STATUS_200 = 0x88  # of the static table of header fields


def speaks_grpc(host: str, port: int, seconds: float) -> bool:
    """Return True where a gRPC server answers a call within that time.

    Raises:
        OSError: nothing listens there (ConnectionRefusedError), or it cannot be reached.
    """
    end = time.monotonic() + seconds
    with socket.create_connection((host, port), timeout=seconds) as connection:
        try:
            connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + _call(host.encode()))
            return _answered(connection, end)
        except OSError:  # it went silent, or hung up
            return False


def listens(host: str, port: int, seconds: float) -> bool:
    """Return True where a connection is accepted.

    Raises:
        OSError: none is.
    """
    socket.create_connection((host, port), timeout=seconds).close()
    return True


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _call(host: bytes) -> bytes:
    """Return an empty message to _PATH."""
    fields = b"\x83\x86"  # :method POST, :scheme http
    fields += b"\x04" + _text(_PATH) + b"\x01" + _text(host)  # :path, :authority
    fields += b"\x0f\x10" + _text(b"application/grpc") + b"\x00" + _text(b"te") + _text(b"trailers")
    return _frame(_HEADERS, _END_HEADERS, 1, fields) + _frame(_DATA, _END_STREAM, 1, bytes(5))


def _text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def _answered(connection: socket.socket, end: float) -> bool:
    """Read frames until the answer's headers."""
    while (left := end - time.monotonic()) > 0:
        connection.settimeout(left)
        head = _exactly(connection, 9)
        payload = _exactly(connection, int.from_bytes(head[:3], "big"))
        if head[3] == _HEADERS:
            return _status_byte(head[4], payload) == _STATUS_200
    return False


def _exactly(connection: socket.socket, n: int) -> bytes:
    if n > 1 << 16:
        raise ConnectionError("no frame of HTTP/2")
    found = b""
    while len(found) < n:
        more = connection.recv(n - len(found))
        if not more:
            raise ConnectionError("closed")
        found += more
    return found


def _status_byte(flags: int, payload: bytes) -> int:
    """Return the first header field, behind what a frame may say of padding, priority and the size of its table."""
    payload = payload[(1 if flags & _PADDED else 0) + (5 if flags & _PRIORITY else 0) :]
    while payload and payload[0] & 0xE0 == 0x20:
        payload = payload[1:]
    return payload[0] if payload else 0
