"""Runs a program as on a kernel that lacks something: nobody below it gets a socket of that kind.

    without.py nf_tables|ipv6 CMD [ARG...]

A filter of system calls (seccomp(2)) answers socket(AF_NETLINK, ..., NETLINK_NETFILTER), or socket(AF_INET6, ...), with what
such a kernel says.
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
AF_INET6, AF_NETLINK, NETLINK_NETFILTER = 10, 16, 12

CONDITIONS, ANSWER = {
    "nf_tables": ([(FAMILY, AF_NETLINK), (PROTOCOL, NETLINK_NETFILTER)], errno.EPROTONOSUPPORT),
    "ipv6": ([(FAMILY, AF_INET6)], errno.EAFNOSUPPORT),
}[sys.argv[1]]
conditions = [(NUMBER, SOCKET), *CONDITIONS]
steps = []
for left, (where, value) in zip(range(len(conditions), 0, -1), conditions):
    # What is something else goes on past the conditions that are left, and the refusal.
    steps += [(LOAD, 0, 0, where), (JUMP_EQUAL, 0, 2 * left - 1, value)]
steps += [(RETURN, 0, 0, SECCOMP_RET_ERRNO | ANSWER), (RETURN, 0, 0, SECCOMP_RET_ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
# struct sock_fprog: a count, and a pointer after what aligns it.
program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
for arguments in [(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)]:
    if libc.prctl(*arguments) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[2], sys.argv[2:])
