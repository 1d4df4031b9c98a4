/* Calls of every sort in a loop, by two threads, until it is killed. PATH is the device. */
#include "liveupdate.h"
#include <pthread.h>

static int dev;

static void *churn(void *arg)
{
	uint64_t base = (uintptr_t)arg;
	for (;;) {
		for (uint64_t token = base; token < base + 8; token++) {
			int fd = memfd("churn");
			preserve(dev, token, fd);
			close(fd);
		}
		for (uint64_t token = 0; token < 64; token++) {
			long fd = restore(dev, token);
			if (fd >= 0)
				close(fd);
		}
		state(dev);
		unpreserve(dev, base);
		event(dev, EV_PREPARE);
		event(dev, EV_CANCEL);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	if (argc < 2)
		return 2;
	while ((dev = open(argv[1], O_RDWR)) < 0)
		usleep(100);
	if (argc > 2) {
		/* Leave something for the next kernel, and wait for it. */
		for (uint64_t token = 0; token < 64; token++) {
			int fd = memfd("kept");
			preserve(dev, token, fd);
			close(fd);
		}
		event(dev, EV_FINISH);
		event(dev, EV_PREPARE);
		puts("prepared");
		fflush(stdout);
		pause();
	}
	pthread_create(&thread, NULL, churn, (void *)100);
	churn((void *)200);
	return 0;
}
