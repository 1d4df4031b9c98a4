/*
 * An ordinary user's client: the device is given to everybody, then uid 65534 preserves, and restores
 * after the kexec. Prints the processes that made calls.
 */
#include "liveupdate.h"
#include <sys/prctl.h>

static void become(void)
{
	if (setgid(65534) || setuid(65534))
		abort();
	prctl(PR_SET_NAME, "lu client\n\"x");
	printf("pid %d\n", getpid());
}

static void old_kernel(void)
{
	become();
	int dev = open_device();
	cell("FD_PRESERVE", preserve(dev, 1, memfd("mine")), 0);
	cell("PREPARE", event(dev, EV_PREPARE), 0);
}

static void new_kernel(void)
{
	char content[8] = { 0 };
	become();
	int dev = open_device();
	long fd = restore(dev, 1);
	cell("FD_RESTORE", fd >= 0, 1);
	pread(fd, content, sizeof(content), 0);
	cell("the content", strcmp(content, "mine"), 0);
	cell("FINISH", event(dev, EV_FINISH), 0);
}

/* Keeps the device open while root reboots. */
static void hold(void)
{
	int dev;
	become();
	/* Root, who looks whether we have it, holds it for moments. */
	do
		dev = open_device();
	while (dev == -EBUSY);
	cell("FD_PRESERVE", preserve(dev, 1, memfd("mine")), 0);
	cell("PREPARE", event(dev, EV_PREPARE), 0);
	fflush(stdout);
	if (failures)
		_exit(1);
	pause();
}

int main(void)
{
	int status;
	if (chmod(DEVICE, 0666))
		return 3;
	cell("a client ends", stage(old_kernel), 0);
	/* It closed the device: its file is gone, the state stays. */
	int dev = open_device();
	cell("the file is gone", file_state(dev, 1, 0), -ENOENT);
	cell("CANCEL", event(dev, EV_CANCEL), 0);
	close(dev);
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		hold();
		_exit(0);
	}
	do {
		usleep(1000);
		dev = open_device();
		if (dev >= 0)
			close(dev);
	} while (dev >= 0);
	usleep(100000);
	pid_t root = fork();
	if (!root) {
		reboot_kexec();
		_exit(1);
	}
	waitpid(root, &status, 0);
	waitpid(pid, &status, 0);
	cell("the holder ends", WIFSIGNALED(status) ? WTERMSIG(status) : 0, SIGKILL);
	cell("the new kernel's client", stage(new_kernel), 0);
	printf("%d cells, %d failures\n", cells, failures);
	return failures ? 1 : 0;
}
