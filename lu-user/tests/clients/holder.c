/* Runs its argument while it has half of what is asked for, and the device; and once it has all, and only its
 * session is open. */
#include "sessions.h"

int main(int argc, char **argv)
{
	int dev = open_device();
	int vm = create(dev, "vm-1");
	cell("the first file", preserve_fd(vm, 2, memfd("two")), 0);
	fflush(stdout);
	if (argc != 2 || system(argv[1]) < 0)
		return 2;
	cell("the second file", preserve_fd(vm, 1, memfd("one")), 0);
	close(dev);
	fflush(stdout);
	if (system(argv[1]) < 0)
		return 2;
	return failures ? 1 : 0;
}
