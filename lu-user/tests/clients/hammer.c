/* COUNT calls as fast as one client can make them, each with a token of its own, in order. */
#include "liveupdate.h"

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 1000;
	int dev = open_device();
	for (long token = 0; token < count; token++)
		if (unpreserve(dev, token) != -ENOENT)
			return 1;
	return 0;
}
