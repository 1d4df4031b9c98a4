/* Asks the orchestrator for what its arguments say, one step each, and prints what each got: "create vm-1: EACCES".
 *
 * open | create NAME | retrieve NAME | preserve NAME TOKEN KIND BYTES | restore NAME TOKEN | finish NAME | close NAME
 * receive NAME (a child gets the session by a socket) | getfd NAME (it takes it by pidfd_getfd)
 * load FILE (kexec_file_load) | kexec
 * screen (lu top on the serial console, for five seconds)
 * uid N | gid N (the effective one) | cgroup FOLDER (made, and entered)
 * exec FILE (which does the rest; what was open is closed) | fork (a child does the rest, and ends)
 * spoil FILE (it has an error from now on) | wait (a second) | reload (lu run gets SIGHUP) | stay (a child holds what is held, for ever, and the rest is left out)
 */
#include "sessions.h"
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static struct { char name[64]; int fd; } held[64];
static int device = -1;

static int *place(const char *name)
{
	for (int i = 0; i < 64; i++)
		if (held[i].name[0] && !strcmp(held[i].name, name))
			return &held[i].fd;
	for (int i = 0; i < 64; i++)
		if (!held[i].name[0]) {
			strcpy(held[i].name, name);
			held[i].fd = -1;
			return &held[i].fd;
		}
	exit(9);
}

/* What the system call said, as the others: not below 0, or a negated errno. */
static long said(long ret)
{
	return ret < 0 ? -errno : ret;
}

static long file(const char *kind, long bytes)
{
	if (!strcmp(kind, "eventfd"))
		return said(eventfd(0, 0));
	int fd = memfd_create("policy", 0);
	return ftruncate(fd, bytes) ? -errno : fd;
}

static long keep(const char *name, long fd)
{
	if (fd >= 0)
		*place(name) = fd;
	return fd < 0 ? fd : 0;
}

/* Whether a descriptor that was sent over a socket has arrived. */
static long receive(int fd)
{
	int pair[2];
	char control[CMSG_SPACE(sizeof(int))] = { 0 }, byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return -errno;
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	if (sendmsg(pair[0], &msg, 0) < 0)
		return -errno;
	msg.msg_controllen = sizeof(control);
	memset(control, 0, sizeof(control));
	if (recvmsg(pair[1], &msg, 0) < 0)
		return -errno;
	c = CMSG_FIRSTHDR(&msg);
	int arrived = c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int));
	close(pair[0]);
	close(pair[1]);
	/* The kernel drops it without saying why. */
	return arrived ? 0 : -ECANCELED;
}

static long by_pidfd(int fd)
{
	int own = syscall(SYS_pidfd_open, getpid(), 0);
	return own < 0 ? -errno : said(syscall(SYS_pidfd_getfd, own, fd, 0)) < 0 ? -errno : 0;
}

/* Every process called lu; whoever watches it sees when it is done. */
static long reload(void)
{
	int found = 0;
	for (int pid = 1; pid < 4096; pid++) {
		char path[64], name[16] = "";
		snprintf(path, sizeof(path), "/proc/%d/comm", pid);
		FILE *comm = fopen(path, "r");
		if (!comm)
			continue;
		if (fgets(name, sizeof(name), comm) && !strcmp(name, "lu\n") && !kill(pid, SIGHUP))
			found++;
		fclose(comm);
	}
	sleep(2);
	return found ? 0 : -ESRCH;
}

static long screen(void)
{
	int status;
	pid_t top = fork();
	if (!top) {
		int console = open("/dev/ttyS0", O_RDWR);
		for (int fd = 0; fd < 3; fd++)
			dup2(console, fd);
		setenv("TERM", "vt100", 1);
		setenv("COLUMNS", "100", 1);
		setenv("LINES", "30", 1);
		execl("/bin/lu", "lu", "top", (char *)0);
		_exit(127);
	}
	sleep(5);
	kill(top, SIGTERM);
	waitpid(top, &status, 0);
	return WIFEXITED(status) && !WEXITSTATUS(status) ? 0 : -ECHILD;
}

static long step(int n, char **w)
{
	if (!strcmp(w[0], "open")) {
		device = open("/dev/liveupdate", O_RDWR | O_CLOEXEC);
		return said(device) < 0 ? -errno : 0;
	}
	if (!strcmp(w[0], "shut"))
		return said(close(device));
	if (!strcmp(w[0], "create"))
		return keep(w[1], create(device, w[1]));
	if (!strcmp(w[0], "retrieve"))
		return keep(w[1], retrieve(device, w[1]));
	if (!strcmp(w[0], "preserve") && n == 5) {
		long fd = file(w[3], atol(w[4]));
		long ret = fd < 0 ? fd : preserve_fd(*place(w[1]), strtoull(w[2], 0, 0), fd);
		close(fd);
		return ret;
	}
	if (!strcmp(w[0], "restore")) {
		long fd = retrieve_fd(*place(w[1]), strtoull(w[2], 0, 0));
		return fd < 0 ? fd : 0;
	}
	if (!strcmp(w[0], "finish"))
		return finish(*place(w[1]));
	if (!strcmp(w[0], "close"))
		return said(close(*place(w[1])));
	if (!strcmp(w[0], "receive"))
		return receive(*place(w[1]));
	if (!strcmp(w[0], "getfd"))
		return by_pidfd(*place(w[1]));
	if (!strcmp(w[0], "load")) {
		int image = open(w[1], O_RDONLY);
		/* KEXEC_FILE_NO_INITRAMFS */
		long ret = image < 0 ? -errno : said(syscall(SYS_kexec_file_load, image, -1, 1, "", 4));
		close(image);
		return ret;
	}
	if (!strcmp(w[0], "kexec"))
		return said(syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, 0));
	if (!strcmp(w[0], "uid"))
		return said(setresuid(-1, atoi(w[1]), -1));
	if (!strcmp(w[0], "gid"))
		return said(setresgid(-1, atoi(w[1]), -1));
	if (!strcmp(w[0], "cgroup")) {
		char path[256];
		mkdir(w[1], 0755);
		snprintf(path, sizeof(path), "%s/cgroup.procs", w[1]);
		int procs = open(path, O_WRONLY);
		long ret = procs < 0 ? -errno : said(write(procs, "0", 1)) < 0 ? -errno : 0;
		close(procs);
		return ret;
	}
	if (!strcmp(w[0], "spoil")) {
		int spoilt = open(w[1], O_WRONLY | O_APPEND);
		long ret = spoilt < 0 ? -errno : said(write(spoilt, "\nmoed = 1\n", 10));
		close(spoilt);
		return ret;
	}
	if (!strcmp(w[0], "screen"))
		return screen();
	if (!strcmp(w[0], "wait"))
		return sleep(1);
	if (!strcmp(w[0], "reload"))
		return reload();
	if (!strcmp(w[0], "stay")) {
		if (fork() == 0)
			for (;;)
				pause();
		printf("stay: ok\n");
		exit(0);
	}
	if (!strcmp(w[0], "fork")) {
		pid_t child = fork();
		if (child > 0) {
			int status = 0;
			waitpid(child, &status, 0);
			exit(WEXITSTATUS(status));
		}
		return said(child);
	}
	exit(2);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, 0, _IOLBF, 0);
	for (int i = 1; i < argc; i++) {
		char copy[256], *words[6];
		int n = 0;
		snprintf(copy, sizeof(copy), "%s", argv[i]);
		for (char *word = strtok(copy, " "); word && n < 6; word = strtok(0, " "))
			words[n++] = word;
		if (!strcmp(words[0], "exec")) {
			printf("%s: ok\n", argv[i]);
			argv[i] = words[1];
			execv(words[1], argv + i);
		}
		long ret = step(n, words);
		printf("%s: %s\n", argv[i], ret < 0 ? strerrorname_np(-ret) : "ok");
	}
	return 0;
}
