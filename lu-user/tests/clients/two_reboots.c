/* Two threads of one client call reboot(KEXEC): there is one kexec, and the files arrive. */
#include "liveupdate.h"
#include <pthread.h>

static void *reboot_in_thread(void *arg)
{
	reboot_kexec();
	return arg;
}

static void old_kernel(void)
{
	pthread_t thread;
	int dev = open_device();
	preserve(dev, 1, memfd("one"));
	event(dev, EV_PREPARE);
	pthread_create(&thread, NULL, reboot_in_thread, NULL);
	reboot_kexec();
	pause();
}

static void new_kernel(void)
{
	int dev = open_device();
	cell("UPDATED", state(dev), UPDATED);
	usleep(300000);
	cell("still UPDATED", state(dev), UPDATED);
	cell("the file is there", restore(dev, 1) >= 0, 1);
}

int main(void)
{
	int status = stage(old_kernel);
	cell("the old kernel's client ends", WIFSIGNALED(status) ? WTERMSIG(status) : 0, SIGKILL);
	cell("the new kernel's goes on", stage(new_kernel), 0);
	return failures ? 1 : 0;
}
