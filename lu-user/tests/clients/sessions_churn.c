/* Sessions made, filled, retrieved and closed in a loop, by two threads, until it is killed. PATH is the device. */
#include "sessions.h"
#include <pthread.h>

static int dev;

static void *churn(void *arg)
{
	char name[64];
	for (unsigned i = 0;; i++) {
		snprintf(name, sizeof(name), "%s-%u", (char *)arg, i % 8);
		long on = i % 2 ? create(dev, name) : retrieve(dev, name);
		for (uint64_t token = 0; token < 4; token++) {
			int fd = memfd("churn");
			preserve_fd(on, token, fd);
			close(fd);
			long got = retrieve_fd(on, token);
			if (got >= 0)
				close(got);
		}
		if (i % 3)
			finish(on);
		if (on >= 0)
			close(on);
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
		for (int i = 0; i < 16; i++) {
			char name[64];
			snprintf(name, sizeof(name), "%s-%d", i % 2 ? "one" : "two", i / 2);
			long on = create(dev, name);
			for (uint64_t token = 0; token < 4; token++) {
				int fd = memfd("kept");
				preserve_fd(on, token, fd);
				close(fd);
			}
		}
		puts("preserved");
		fflush(stdout);
		pause();
	}
	pthread_create(&thread, NULL, churn, "one");
	churn("two");
	return 0;
}
