/* One thread calls, another one changes what it asks for all the while: what is allowed and what is not take turns in
 * the very structure that the kernel reads twice. ROUNDS times; says how many got through and how many were refused. */
#include "sessions.h"
#include <pthread.h>

#define FORBIDDEN (1ULL << 63)

static volatile struct fd_call preserved = { .size = sizeof(preserved) };
static volatile struct session_call created = { .size = sizeof(created) };
static volatile int small = -1, big = -1, over;

static void *flip(void *unused)
{
	(void)unused;
	while (!over) {
		preserved.token ^= FORBIDDEN;
		created.name[0] = 'b';
		preserved.fd = big;
		created.name[0] = 'g';
		preserved.token ^= FORBIDDEN;
		preserved.fd = small;
	}
	return 0;
}

static int memory(long bytes)
{
	int fd = memfd_create("flip", 0);
	return ftruncate(fd, bytes) ? -1 : fd;
}

int main(int argc, char **argv)
{
	long rounds = argc > 1 ? atol(argv[1]) : 1000, through = 0, refused = 0, other = 0, session = -1;
	pthread_t thread;
	int dev = open_device();
	pthread_create(&thread, 0, flip, 0);
	for (long round = 0; round < rounds; round++) {
		if (session < 0 || round % 16 == 0) {
			if (session >= 0)
				close(session);
			/* Its name is made of the number too: a forbidden one may be there still. */
			snprintf((char *)created.name + 1, 60, "-%ld", round);
			long ret = ioctl(dev, CREATE_SESSION, &created) < 0 ? -errno : 0;
			session = ret ? -1 : created.fd;
			if (ret == -EBADMSG)
				refused++;
			else if (!ret)
				through++;
			else
				other++;
			if (session < 0)
				continue;
		}
		int one = memory(4096), two = memory(2 << 20);
		small = one;
		big = two;
		preserved.token = (preserved.token & FORBIDDEN) | round;
		long ret = ioctl(session, PRESERVE_FD, &preserved) < 0 ? -errno : 0;
		if (!ret)
			through++;
		else if (ret == -EDOM || ret == -EFBIG)
			refused++;
		else
			other++;
		close(one);
		close(two);
	}
	over = 1;
	pthread_join(thread, 0);
	printf("{\"through\":%ld,\"refused\":%ld,\"other\":%ld}\n", through, refused, other);
	return 0;
}
