/* Asks a resolver over UDP and says how long it took.
 *
 *   dnsload SERVER NAME COUNT WINDOW     NAME may hold one %d, which counts up; WINDOW questions are under way at a time
 *
 * Prints the answers that were NOERROR with data, the median and the 99th percentile in microseconds, and the rate a second. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static double now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1e6 + at.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	struct sockaddr_storage to = { 0 };
	struct sockaddr_in *four = (void *)&to;
	struct sockaddr_in6 *six = (void *)&to;
	if (argc != 5)
		return 2;
	if (inet_pton(AF_INET, argv[1], &four->sin_addr) == 1)
		to.ss_family = AF_INET;
	else if (inet_pton(AF_INET6, argv[1], &six->sin6_addr) == 1)
		to.ss_family = AF_INET6;
	else
		return 2;
	four->sin_port = htons(53);
	int count = atoi(argv[3]), window = atoi(argv[4]), sent = 0, done = 0, good = 0;
	int fd = socket(to.ss_family, SOCK_DGRAM, 0);
	double *sent_at = calloc(65536, sizeof *sent_at), *took = calloc(count, sizeof *took), began = now();
	if (fd < 0 || connect(fd, (void *)&to, sizeof to))
		return 1;
	while (done < count) {
		while (sent < count && sent - done < window) {
			unsigned char query[512] = { sent >> 8, sent, 1, 0, 0, 1 }, *at = query + 12;
			char name[256], *label, *rest = name;
			snprintf(name, sizeof name, argv[2], sent);
			while ((label = strsep(&rest, "."))) {
				*at++ = strlen(label);
				at = (unsigned char *)stpcpy((char *)at, label);
			}
			memcpy(at, "\0\0\1\0\1", 5);
			sent_at[sent++ & 0xffff] = now();
			if (send(fd, query, at + 5 - query, 0) < 0) {
				perror("dnsload: send");
				return 1;
			}
		}
		unsigned char answer[4096];
		struct pollfd waits = { fd, POLLIN, 0 };
		ssize_t length = recv(fd, answer, sizeof answer, MSG_DONTWAIT);
		if (length < 0 && poll(&waits, 1, 2000) == 0)
			break;
		if (length < 12)
			continue;
		took[done++] = now() - sent_at[answer[0] << 8 | answer[1]];
		good += !(answer[3] & 15) && (answer[6] | answer[7]);
	}
	double whole = now() - began;
	qsort(took, done, sizeof *took, compare);
	if (done < count)
		fprintf(stderr, "dnsload: %d of %d answers\n", done, count);
	if (done)
		printf("good %d p50 %.1f p99 %.1f rate %.0f\n", good, took[done / 2], took[done * 99 / 100], done / whole * 1e6);
	return good != count;
}
