"""Runs a program as on a kernel without nf_tables: nobody below it gets a netlink socket for netfilter.

    without_nft.py CMD [ARG...]

A filter of system calls (seccomp(2)) answers socket(AF_NETLINK, ..., NETLINK_NETFILTER) with what such a kernel says.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

# linux/prctl.h, linux/seccomp.h, linux/filter.h.
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW = 0x0005_0000, 0x7FFF_0000
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
# Offsets in seccomp_data: the number of the call, and the lower half of its arguments.
NUMBER, FAMILY, PROTOCOL = 0, 16, 32
SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
AF_NETLINK, NETLINK_NETFILTER = 16, 12

steps = [
    (LOAD, 0, 0, NUMBER), (JUMP_EQUAL, 0, 5, SOCKET),
    (LOAD, 0, 0, FAMILY), (JUMP_EQUAL, 0, 3, AF_NETLINK),
    (LOAD, 0, 0, PROTOCOL), (JUMP_EQUAL, 0, 1, NETLINK_NETFILTER),
    (RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EPROTONOSUPPORT), (RETURN, 0, 0, SECCOMP_RET_ALLOW),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
# struct sock_fprog: a count, and a pointer after what aligns it.
program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
for arguments in [(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)]:
    if libc.prctl(*arguments) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
