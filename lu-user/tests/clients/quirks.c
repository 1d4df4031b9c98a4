/* The two faults of patch 16, as an orchestrator with --quirks has them. */
#include "liveupdate.h"

static void old_kernel(void)
{
	int dev = open_device(), pipes[2];
	if (pipe(pipes))
		abort();
	cell("FD_PRESERVE of no descriptor", preserve(dev, 1, 999), 0);
	cell("it preserved nothing", file_state(dev, 1, 0), -ENOENT);
	cell("FD_PRESERVE of a pipe", preserve(dev, 1, pipes[0]), 0);
	cell("it preserved nothing", file_state(dev, 1, 0), -ENOENT);
	cell("FD_PRESERVE", preserve(dev, 1, memfd("one")), 0);
	cell("it preserved", file_state(dev, 1, 0), NORMAL);
	cell("a token twice", preserve(dev, 1, memfd("two")), 0);
	struct fd_call *ro = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*ro = (struct fd_call){ sizeof(*ro), 999, 3 };
	mprotect(ro, 4096, PROT_READ);
	cell("a failure into read-only memory", call(dev, PRESERVE, ro), -EFAULT);
	cell("FD_UNPRESERVE has no such fault", unpreserve(dev, 3), -ENOENT);
	cell("PREPARE", event(dev, EV_PREPARE), 0);
	cell("FD_PRESERVE in PREPARED", preserve(dev, 4, memfd("four")), 0);
	printf("%d cells, %d failures\n", cells, failures);
	fflush(stdout);
	if (failures)
		_exit(1);
	cell("reboot(KEXEC) does not return", reboot_kexec(), 1);
}

static void new_kernel(void)
{
	int dev = open_device(), before = open_fds() + 0;
	struct fd_call *ro = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*ro = (struct fd_call){ sizeof(*ro), -1, 1 };
	mprotect(ro, 4096, PROT_READ);
	cell("FD_RESTORE into read-only memory", call(dev, RESTORE, ro), -EFAULT);
	cell("a descriptor is left behind", open_fds(), before + 1);
}

int main(void)
{
	int status = stage(old_kernel);
	cell("the old kernel's client ends", WIFSIGNALED(status) ? WTERMSIG(status) : 0, SIGKILL);
	cell("the new kernel's goes on", stage(new_kernel), 0);
	printf("%d cells, %d failures\n", cells, failures);
	return failures ? 1 : 0;
}
