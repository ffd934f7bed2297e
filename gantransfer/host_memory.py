"""Keeps host memory that a step has freed for the next step on a CPU, or gives freed memory back to the system.

A compiled step allocates all its temporary arrays as one block, tens of megabytes and more, and frees it at the end.
The C library gives so large a block back to the system at once, and the next step pays for every page of it again:
23,000 page faults, an eighth of the time, for a BigGAN-32 with a batch of 16. Huge pages for what is kept save the
processor's address translation a further part (docs/performance.md has the measurements).
"""

import ctypes
import platform
from functools import cache

# Parameters of mallopt (malloc.h) and advice of madvise (mman.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_HUGE_PAGES = 14
_LARGEST = 2**31 - 1
# Addresses that are reserved with the advice; memory is taken only where something is written.
_RESERVED = 2**30
_HUGE_PAGE = 2**21


@cache
def keep_freed_memory() -> bool:
    """Tells the C library to keep what is freed, for the rest of the process; returns whether it could be told.

    It can where the library is glibc (Linux). It has its full effect if nothing has used JAX before, since threads
    keep the arena that they began with.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # One arena: the heaps of others hold no block of more than 64 MB.
    settings = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _LARGEST), (_ARENA_MAX, 1))
    if not all(library.mallopt(*setting) for setting in settings):
        return False
    block = library.malloc(_RESERVED)
    if block is not None:
        first = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        length = (block + _RESERVED - first) // _HUGE_PAGE * _HUGE_PAGE
        # A kernel without huge pages refuses; what is kept is kept all the same.
        library.madvise(first, length, _HUGE_PAGES)
        library.free(block)
    return True


def give_back_freed_memory() -> bool:
    """Returns freed memory that the C library holds to the system; whether it could be asked to (glibc)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0)))
