/* One thread restores in a loop, another ends the process after so many MICROSECONDS, with status 7. */
#include "liveupdate.h"
#include <pthread.h>

static long pause_us;

static void *end(void *arg)
{
	usleep(pause_us);
	_exit(7);
	return arg;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	pause_us = argc > 1 ? atol(argv[1]) : 1000;
	int dev = open_device();
	if (dev < 0)
		return 3;
	pthread_create(&thread, NULL, end, NULL);
	for (;;)
		restore(dev, 1);
}
