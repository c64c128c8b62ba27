"""Output whose reader may close it: neither the measurement nor the exit status may depend on the reader."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EBADF, errno.ENXIO)


class Tolerant(io.TextIOBase):
    """A text stream that drops its output once the reader has closed the pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write; drop the text if the reader has closed the pipe."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._drop(error)
        except UnicodeEncodeError:  # a terminal that is not UTF-8, or a lone surrogate
            self._stream.write(text.encode("ascii", "backslashreplace").decode())
        return len(text)

    def flush(self) -> None:
        """Flush likewise."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Redirect the descriptor of the stream to /dev/null, so that its buffer is flushed there."""
        if error.errno not in _GONE:
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        self._stream.flush()

    def isatty(self) -> bool:
        """Same as the stream."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Same as the stream."""
        return self._stream.fileno()

    def writable(self) -> bool:
        """True."""
        return True

    def __getattr__(self, name: str) -> Any:
        """Attribute of the stream: `buffer` and the like, for code that expects a standard stream."""
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Same as the stream."""
        return self._stream.encoding


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Let standard output and error be closed, before the block or in it, without an error.

    A closed descriptor is opened on /dev/null first. Otherwise the next opened file would get its number and receive
    everything that is printed.
    """
    _open_missing()
    out, err = Tolerant(sys.stdout), Tolerant(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()
            err.flush()


def _open_missing() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
