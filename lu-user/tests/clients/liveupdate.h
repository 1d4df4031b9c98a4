/* What a C client of the v3 interface knows: the structures and commands of patches 16 and 18. */
#ifndef LIVEUPDATE_H
#define LIVEUPDATE_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct fd_call { uint32_t size; int32_t fd; uint64_t token; };
struct word_call { uint32_t size; uint32_t word; };
struct fd_state { uint32_t size; uint8_t incoming, pad[3]; uint64_t token; uint32_t state, pad2; };
struct fd_event { uint32_t size; uint32_t event; uint64_t token; };

enum { PRESERVE = 0xBA00, UNPRESERVE, RESTORE, GET_STATE, SET_EVENT, GET_FD_STATE, SET_FD_EVENT };
enum { UNDEFINED, NORMAL, PREPARED, FROZEN, UPDATED };
enum { EV_PREPARE, EV_FREEZE, EV_FINISH, EV_CANCEL };

#define DEVICE "/dev/liveupdate"

static int failures, cells;

/* A client need not make every call. */
#define CALL static __attribute__((unused))

/* One cell of a table: what was done, what came, what has to come. */
CALL void cell(const char *what, long got, long expected)
{
	cells++;
	if (got == expected)
		return;
	failures++;
	printf("FAIL %s: %ld (%s), expected %ld (%s)\n", what, got, strerror(got < 0 ? -got : 0),
	       expected, strerror(expected < 0 ? -expected : 0));
}

CALL long call(int dev, unsigned long cmd, void *arg)
{
	return ioctl(dev, cmd, arg) < 0 ? -errno : 0;
}

CALL int open_device(void)
{
	int fd = open(DEVICE, O_RDWR);
	return fd < 0 ? -errno : fd;
}

CALL long preserve(int dev, uint64_t token, int fd)
{
	struct fd_call c = { sizeof(c), fd, token };
	return call(dev, PRESERVE, &c);
}

CALL long unpreserve(int dev, uint64_t token)
{
	struct fd_call c = { sizeof(c), 0, token };
	return call(dev, UNPRESERVE, &c);
}

/* The descriptor, or a negated errno. */
CALL long restore(int dev, uint64_t token)
{
	struct fd_call c = { sizeof(c), -1, token };
	long ret = call(dev, RESTORE, &c);
	return ret ? ret : c.fd;
}

CALL long event(int dev, uint32_t ev)
{
	struct word_call c = { sizeof(c), ev };
	return call(dev, SET_EVENT, &c);
}

/* The state, or a negated errno. */
CALL long state(int dev)
{
	struct word_call c = { sizeof(c), 99 };
	long ret = call(dev, GET_STATE, &c);
	return ret ? ret : (long)c.word;
}

CALL long file_state(int dev, uint64_t token, int incoming)
{
	struct fd_state c = { .size = sizeof(c), .incoming = incoming, .token = token, .state = 99 };
	long ret = call(dev, GET_FD_STATE, &c);
	return ret ? ret : (long)c.state;
}

CALL long file_event(int dev, uint64_t token, uint32_t ev)
{
	struct fd_event c = { sizeof(c), ev, token };
	return call(dev, SET_FD_EVENT, &c);
}

/* reboot(LINUX_REBOOT_CMD_KEXEC): returns only if it fails. */
CALL long reboot_kexec(void)
{
	return syscall(SYS_reboot, 0xfee1dead, 672274793, 0x45584543, 0) < 0 ? -errno : 0;
}

CALL int memfd(const char *content)
{
	int fd = memfd_create("client", 0);
	if (fd < 0 || write(fd, content, strlen(content)) != (ssize_t)strlen(content))
		abort();
	return fd;
}

CALL int open_fds(void)
{
	int n = 0;
	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* Runs a stage as a process of its own, which may end with the old kernel. */
CALL int stage(void (*run)(void))
{
	int status;
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		run();
		printf("%d cells, %d failures\n", cells, failures);
		fflush(stdout);
		_exit(failures ? 1 : 0);
	}
	waitpid(pid, &status, 0);
	return status;
}

#endif
