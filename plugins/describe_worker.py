"""The child process of a build that asks a new library what it holds: prints what it says, as JSON.

Whatever loading a library does, it does not do it to the process that builds.
"""

import ctypes
import sys

if __name__ == "__main__":
    library = ctypes.CDLL(sys.argv[1])
    library.trtcDescribe.restype = ctypes.c_char_p
    print(library.trtcDescribe().decode())
