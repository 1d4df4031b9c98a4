/*
 * The table of the sessions interface, line by line: which errno, and which of two where both hold.
 * Under an emulator with --fail-prepare 0xbad --fail-freeze 0xdead --fail-restore 0xbeef
 * --busy-finish 0xb.
 */
#include "sessions.h"

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 4U
#endif

static char *page, *readonly;

static void memory(void)
{
	page = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	readonly = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(page + 2 * 4096, 4096);
}

/* The structure at an address from which nothing can be written. */
static long sealed(int on, unsigned long cmd, const void *c, size_t size)
{
	mprotect(readonly, 4096, PROT_READ | PROT_WRITE);
	memcpy(readonly, c, size);
	mprotect(readonly, 4096, PROT_READ);
	return call(on, cmd, readonly);
}

/* Number, pointer, other bits, size, tail: each with everything behind it wrong too. */
static void dispatch(int on, unsigned long cmd, unsigned long unknown, uint32_t size)
{
	cell("an unknown number before a bad pointer", call(on, unknown, NULL), -EINVAL);
	cell("a bad pointer before wrong bits", call(on, cmd | 1 << 8, NULL), -EFAULT);
	memset(page, 0, 8192);
	cell("wrong bits before a wrong size", call(on, cmd ^ 1 << 8, page), -ENOTTY);
	cell("size 0", call(on, cmd, page), -EINVAL);
	*(uint32_t *)page = size - 1;
	cell("a byte less", call(on, cmd, page), -EINVAL);
	*(uint32_t *)page = size + 8;
	page[size + 7] = 1;
	cell("a tail that is not zero", call(on, cmd, page), -E2BIG);
	*(uint32_t *)page = 3 * 4096;
	page[size + 7] = 0;
	cell("a tail that is not there", call(on, cmd, page), -EFAULT);
	*(uint32_t *)(page + 8188) = size;
	cell("an end that is not there", call(on, cmd, page + 8188), -EFAULT);
}

static void names(int dev)
{
	struct session_call c = { .size = sizeof(c), .fd = -1 };
	struct name_call n = { .size = sizeof(n) };
	char longest[64] = { 0 };
	memset(longest, 'x', 63);
	cell("an empty name", create(dev, ""), -EINVAL);
	memset(c.name, 'x', 64);
	cell("a name without an end", call(dev, CREATE_SESSION, &c), -EINVAL);
	long on = create(dev, longest);
	cell("63 bytes", on >= 0, 1);
	cell("the name", call(on, GET_NAME, &n) || strcmp(n.name, longest), 0);
	cell("one to retrieve without an end", call(dev, RETRIEVE_SESSION, &c), -ENOENT);
	n.reserved = 1;
	cell("reserved", call(on, GET_NAME, &n), -EINVAL);
	close(on);
	memset(&c, 0, sizeof(c));
	c.size = sizeof(c);
	memcpy(c.name, "a\0b", 4);
	cell("what lies behind the NUL does not count", call(dev, CREATE_SESSION, &c), 0);
	cell("so it is there", create(dev, "a"), -EEXIST);
	cell("the descriptor is close-on-exec", fcntl(c.fd, F_GETFD), FD_CLOEXEC);
	close(c.fd);
	on = create(dev, "a");
	cell("after its close it is free at once", on >= 0, 1);
	int copy = dup(on);
	close(on);
	cell("a copy holds it", create(dev, "a"), -EEXIST);
	close(copy);
	for (int i = 0; i < 200; i++) {
		on = create(dev, "a");
		cell("closed and made again", on >= 0, 1);
		close(on);
	}
}

static void preserving(int dev)
{
	long on = create(dev, "files"), other = create(dev, "more files");
	int fd = memfd("content"), second = open("/dev/null", O_RDONLY), pipes[2];
	int huge = memfd_create("huge", MFD_HUGETLB);
	struct fd_call c = { sizeof(c), fd, 0 };
	cell("token 0", preserve_fd(on, 0, fd), 0);
	cell("EEXIST before EBADF", preserve_fd(on, 0, -1), -EEXIST);
	cell("EBADF", preserve_fd(on, 1, -1), -EBADF);
	cell("a path alone", preserve_fd(on, 1, open("/", O_PATH)), -EBADF);
	cell("no handler", preserve_fd(on, 1, second), -ENOENT);
	cell("a pipe", pipe(pipes) || preserve_fd(on, 1, pipes[0]) == -ENOENT, 1);
	cell("the device", preserve_fd(on, 1, dev), -ENOENT);
	cell("a session", preserve_fd(on, 1, other), -ENOENT);
	if (huge >= 0)
		cell("huge pages", preserve_fd(on, 1, huge), -ENOENT);
	cell("the same object", preserve_fd(on, 1, fd), -EBUSY);
	cell("in any session", preserve_fd(other, 1, dup(fd)), -EBUSY);
	cell("the handler's errno", preserve_fd(on, 0xbad, memfd("bad")), -EIO);
	cell("after which it is free", preserve_fd(on, UINT64_MAX, memfd("good")), 0);
	cell("a token is a session's", preserve_fd(other, 0, memfd("other")), 0);
	c.token = 7;
	c.fd = memfd("unanswered");
	cell("the answer faults", sealed(on, PRESERVE_FD, &c, sizeof(c)), -EFAULT);
	cell("and the file is preserved", preserve_fd(on, 7, fd), -EEXIST);
	cell("RETRIEVE_FD goes the other way", retrieve_fd(on, 0), -EINVAL);
	cell("FINISH too", finish(on), -EINVAL);
	memset(page, 0, 4096);
	cell("which is found before the size", call(on, FINISH, page), -EINVAL);
	cell("the size may not change", ftruncate(fd, 100) ? -errno : 0, -EPERM);
	cell("to the same it may", ftruncate(fd, 7) ? -errno : 0, 0);
	cell("nor be allocated", fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 7) ? -errno : 0, -EPERM);
	cell("what shmem lacks", fallocate(fd, 0x10, 0, 7) ? -errno : 0, -EOPNOTSUPP);
	cell("written in place", pwrite(fd, "C", 1, 0), 1);
	close(on);
	cell("the close lets go", ftruncate(fd, 100) ? -errno : 0, 0);
	cell("of the object", preserve_fd(other, 1, fd), 0);
	close(other);
	close(fd);
}

static void full(int dev)
{
	struct rlimit was, none;
	long on = create(dev, "full");
	getrlimit(RLIMIT_NOFILE, &was);
	none = was;
	none.rlim_cur = dup(0);
	close(none.rlim_cur);
	setrlimit(RLIMIT_NOFILE, &none);
	cell("EMFILE before EINVAL", create(dev, ""), -EMFILE);
	cell("before ENOENT", retrieve(dev, "nobody"), -EMFILE);
	cell("the direction comes first", retrieve_fd(on, 1), -EINVAL);
	setrlimit(RLIMIT_NOFILE, &was);
	close(on);
}

static void old_kernel(void)
{
	memory();
	int dev = open_device();
	struct session_call c = { .size = sizeof(c), .name = "unanswered" };
	cell("one opens", dev >= 0, 1);
	cell("the device is exclusive", open_device(), -EBUSY);
	cell("nothing is incoming", retrieve(dev, "files"), -ENOENT);
	dispatch(dev, CREATE_SESSION, 0xBA40, 72);
	long on = create(dev, "dispatch");
	dispatch(on, PRESERVE_FD, 0xBA00, 16);
	dispatch(on, GET_NAME, 0xBA44, 72);
	close(on);
	names(dev);
	preserving(dev);
	full(dev);
	int before = open_fds();
	cell("the answer faults", sealed(dev, CREATE_SESSION, &c, sizeof(c)), -EFAULT);
	cell("no descriptor is left", open_fds(), before);
	on = create(dev, "unanswered");
	cell("nor a session", on >= 0, 1);
	close(dev);
	cell("a session has no size", ftruncate(on, 0) ? -errno : 0, -EINVAL);
	cell("a session outlives the device", preserve_fd(on, 1, memfd("x")), 0);
	dev = open_device();
	cell("which is free", dev >= 0, 1);
	cell("and finds it", create(dev, "unanswered"), -EEXIST);
	/* The freeze of one file in a third session fails, and everything goes on. */
	long bad = create(dev, "bad");
	cell("a file whose freeze fails", preserve_fd(bad, 0xdead, memfd("dead")), 0);
	cell("reboot", reboot_kexec(), -EIO);
	cell("all goes on", preserve_fd(on, 2, memfd("y")), 0);
	close(bad);
	close(on);
	/* What the next kernel finds. */
	on = create(dev, "kept");
	int fd = memfd("first");
	cell("kept", preserve_fd(on, 1, fd), 0);
	cell("kept", preserve_fd(on, 2, memfd("second")), 0);
	cell("kept", preserve_fd(on, 0xbeef, memfd("beef")), 0);
	cell("busy", preserve_fd(create(dev, "busy"), 0xb, memfd("busy")), 0);
	cell("closed", preserve_fd(create(dev, "closed"), 1, memfd("closed")), 0);
	cell("faulting", preserve_fd(create(dev, "faulting"), 1, memfd("gone")), 0);
	cell("empty", create(dev, "empty") >= 0, 1);
	pwrite(fd, "F", 1, 0);
	lseek(fd, 3, SEEK_SET);
	printf("%d cells, %d failures\n", cells, failures);
	fflush(stdout);
	if (!failures)
		reboot_kexec();
	_exit(1);
}

static void new_kernel(void)
{
	memory();
	char content[16] = { 0 };
	struct session_call c = { .size = sizeof(c), .name = "faulting" };
	struct word_call reserved = { sizeof(reserved), 1 };
	struct fd_call f = { sizeof(f), -1, 2 };
	int dev = open_device();
	cell("nobody holds the device", dev >= 0, 1);
	long on = retrieve(dev, "kept");
	cell("the session is there", on >= 0, 1);
	cell("once", retrieve(dev, "kept"), -EINVAL);
	cell("a name is one set's", create(dev, "kept") >= 0, 1);
	cell("PRESERVE_FD goes the other way", preserve_fd(on, 9, memfd("x")), -EINVAL);
	cell("an unknown token", retrieve_fd(on, 9), -ENOENT);
	cell("reserved", call(on, FINISH, &reserved), -EINVAL);
	cell("the answer faults", sealed(on, RETRIEVE_FD, &f, sizeof(f)), -EFAULT);
	cell("and may be asked again", retrieve_fd(on, 2) >= 0, 1);
	long fd = retrieve_fd(on, 1), again = retrieve_fd(on, 1);
	cell("the position", lseek(fd, 0, SEEK_CUR), 3);
	cell("the content, written after PRESERVE_FD", pread(fd, content, 15, 0) == 5 && !strcmp(content, "First"), 1);
	lseek(fd, 1, SEEK_SET);
	cell("the same open file", lseek(again, 0, SEEK_CUR), 1);
	cell("close-on-exec", fcntl(again, F_GETFD), FD_CLOEXEC);
	cell("its size may change", ftruncate(fd, 9), 0);
	cell("a failed retrieve", retrieve_fd(on, 0xbeef), -EIO);
	cell("stays failed", retrieve_fd(on, 0xbeef), -EIO);
	long next = create(dev, "next");
	cell("it is the session's until FINISH", preserve_fd(next, 1, fd), -EBUSY);
	cell("FINISH", finish(on), 0);
	cell("and is free then", preserve_fd(next, 1, fd), 0);
	cell("nothing is left", retrieve_fd(on, 2), -ENOENT);
	cell("FINISH again", finish(on), 0);
	cell("the session is there until its close", retrieve(dev, "kept"), -EINVAL);
	close(on);
	cell("it is gone", retrieve(dev, "kept"), -ENOENT);
	on = retrieve(dev, "busy");
	cell("not ready", finish(on), -EBUSY);
	cell("nothing was done", retrieve_fd(on, 0xb) >= 0, 1);
	close(on);
	cell("a zombie", retrieve(dev, "busy"), -EINVAL);
	close(retrieve(dev, "closed"));
	cell("a close finishes", retrieve(dev, "closed"), -ENOENT);
	cell("the answer faults", sealed(dev, RETRIEVE_SESSION, &c, sizeof(c)), -EFAULT);
	cell("and the session is destroyed", retrieve(dev, "faulting"), -ENOENT);
	printf("%d cells, %d failures\n", cells, failures);
	fflush(stdout);
	if (!failures)
		reboot_kexec();
	_exit(1);
}

static void newest_kernel(void)
{
	int dev = open_device();
	cell("the zombie went with its kernel", retrieve(dev, "busy"), -ENOENT);
	cell("what nobody retrieved too", retrieve(dev, "empty"), -ENOENT);
	long on = retrieve(dev, "next");
	cell("what was preserved there is here", lseek(retrieve_fd(on, 1), 0, SEEK_END), 9);
}

int main(void)
{
	int status = stage(old_kernel);
	cell("the old kernel's client ends", WIFSIGNALED(status) ? WTERMSIG(status) : 0, SIGKILL);
	status = stage(new_kernel);
	cell("the new kernel's client ends", WIFSIGNALED(status) ? WTERMSIG(status) : 0, SIGKILL);
	cell("the newest kernel's goes on", stage(newest_kernel), 0);
	return failures ? 1 : 0;
}
