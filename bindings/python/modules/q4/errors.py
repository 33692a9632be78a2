"""What q4 raises: always a RuntimeError, and the built-in exception that says the same, with the library's text."""


class Error(RuntimeError):
    """Base of every error of the library; itself a defect in q4."""


class InvalidArgument(Error, ValueError):
    """A value that the caller passed."""


class Unsupported(Error, NotImplementedError):
    """Valid in principle, not available here: no such device, no such kernel."""


class OutOfMemory(Error, MemoryError):
    """Host or device memory."""


class DeviceError(Error):
    """The driver or a launch reported an error."""


class CompileError(Error):
    """A kernel did not compile; the text carries the compiler's log."""


class IoError(Error, OSError):
    """The file system refused."""


class CorruptFile(Error, ValueError):
    """A file's content contradicts itself or its format."""


class NotFound(Error, LookupError):
    """A name (tensor, file, device) that does not exist."""
