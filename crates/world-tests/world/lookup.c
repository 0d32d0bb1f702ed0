/* Looks names up by the C library's own resolver: lookup NAME... prints one address a line. Built with musl, without glibc. */
#define _POSIX_C_SOURCE 200112L
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	int failed = argc < 2;
	for (int i = 1; i < argc; i++) {
		struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found, *at;
		if (getaddrinfo(argv[i], NULL, &hints, &found)) {
			failed = 1;
			continue;
		}
		for (at = found; at; at = at->ai_next) {
			char text[INET6_ADDRSTRLEN];
			const void *address = at->ai_family == AF_INET6 ? (void *)&((struct sockaddr_in6 *)at->ai_addr)->sin6_addr
				: (void *)&((struct sockaddr_in *)at->ai_addr)->sin_addr;
			puts(inet_ntop(at->ai_family, address, text, sizeof text));
		}
		freeaddrinfo(found);
	}
	return failed;
}
