/*
 * Every cell of the v3 tables, seen by a client that knows nothing of lu.
 *
 * It expects an orchestrator where the first jump after a good freeze fails, where the prepare of
 * token 0xbad, the freeze of 0xdead and the restore of 0xbeef fail with EIO, and nothing else does.
 */
#include "liveupdate.h"
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/eventfd.h>

#define PAGE 4096

static void dispatch_order(int dev)
{
	struct word_call c = { sizeof(c), 0 };
	char *page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct { struct word_call c; char tail[64]; } big = { { sizeof(big), 0 }, { 0 } };

	munmap(page + PAGE, PAGE);
	cell("number out of range before the pointer", call(dev, 0xBA07, NULL), -EINVAL);
	cell("number out of range before the type", call(dev, 0xBB07, &c), -EINVAL);
	cell("the last number", call(dev, 0xBAFF, &c), -EINVAL);
	cell("bad pointer", call(dev, GET_STATE, NULL), -EFAULT);
	cell("bad pointer before the type", call(dev, 0xBB03, NULL), -EFAULT);
	cell("another type", call(dev, 0xBB03, &c), -ENOTTY);
	c.size = 0;
	cell("another type before the size", call(dev, 0xBB03, &c), -ENOTTY);
	cell("a size in the command", call(dev, _IOWR(0xBA, 3, struct word_call), &c), -ENOTTY);
	cell("size 0", call(dev, GET_STATE, &c), -EINVAL);
	c.size = 7;
	cell("size one short", call(dev, GET_STATE, &c), -EINVAL);
	c.size = 4;
	cell("size short, SET_EVENT", call(dev, SET_EVENT, &c), -EINVAL);
	struct fd_call f = { 15, 0, 0 };
	cell("size short, FD_PRESERVE", call(dev, PRESERVE, &f), -EINVAL);
	cell("size short, FD_UNPRESERVE", call(dev, UNPRESERVE, &f), -EINVAL);
	cell("size short, FD_RESTORE", call(dev, RESTORE, &f), -EINVAL);
	cell("size short, GET_FD_STATE", call(dev, GET_FD_STATE, &f), -EINVAL);
	cell("size short, SET_FD_EVENT", call(dev, SET_FD_EVENT, &f), -EINVAL);
	cell("larger with a zero tail", call(dev, GET_STATE, &big), 0);
	cell("its result", big.c.word, NORMAL);
	big.tail[63] = 1;
	cell("larger with a tail", call(dev, GET_STATE, &big), -E2BIG);
	big.c.size = sizeof(big) - 1;
	cell("the tail is what the size says", call(dev, GET_STATE, &big), 0);

	struct word_call *edge = (void *)(page + PAGE - sizeof(*edge));
	*edge = (struct word_call){ sizeof(*edge), 0 };
	cell("the struct ends where memory ends", call(dev, GET_STATE, edge), 0);
	edge->size = 64;
	cell("a tail that is not there", call(dev, GET_STATE, edge), -EFAULT);
	edge = (void *)(page + PAGE - 4);
	edge->size = 8;
	cell("a struct that is half there", call(dev, GET_STATE, edge), -EFAULT);
	cell("the size itself is half there", call(dev, GET_STATE, page + PAGE - 2), -EFAULT);
	edge = (void *)page;
	*edge = (struct word_call){ sizeof(*edge), 0 };
	mprotect(page, PAGE, PROT_READ);
	cell("a result into read-only memory", call(dev, GET_STATE, edge), -EFAULT);
	mprotect(page, PAGE, PROT_READ | PROT_WRITE);
	((struct fd_call *)page)[0] = (struct fd_call){ 16, memfd("ro"), 77 };
	mprotect(page, PAGE, PROT_READ);
	cell("a call without a result from read-only memory", call(dev, UNPRESERVE, page), -ENOENT);
	munmap(page, PAGE);

	char byte;
	cell("read", read(dev, &byte, 1) < 0 ? -errno : 0, -EINVAL);
	cell("write", write(dev, &byte, 1) < 0 ? -errno : 0, -EINVAL);
}

static void opens(void)
{
	int dev = open_device();
	cell("open", dev >= 0, 1);
	cell("a second open", open_device(), -EBUSY);
	int copy = dup(dev);
	close(dev);
	cell("open while a dup exists", open_device(), -EBUSY);
	cell("the dup works", state(copy), NORMAL);

	/* A child that inherited it keeps it open. */
	int ends[2], status;
	if (pipe(ends))
		abort();
	pid_t pid = fork();
	if (!pid) {
		char byte;
		close(ends[1]);
		_exit(read(ends[0], &byte, 1) == 0 && state(copy) == NORMAL ? 0 : 1);
	}
	close(ends[0]);
	close(copy);
	cell("open while a child holds it", open_device(), -EBUSY);
	close(ends[1]);
	waitpid(pid, &status, 0);
	cell("the child's calls", status, 0);

	/* One that is on its way through a socket is open too. */
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		abort();
	dev = open_device();
	cell("open after the child's end", dev >= 0, 1);
	char byte = 0, control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &dev, sizeof(int));
	sendmsg(pair[0], &msg, 0);
	close(dev);
	cell("open while it is in a socket", open_device(), -EBUSY);
	recvmsg(pair[1], &msg, 0);
	memcpy(&copy, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
	cell("the received one works", state(copy), NORMAL);
	close(copy);
	for (int i = 0; i < 100; i++) {
		dev = open_device();
		if (dev < 0)
			break;
		close(dev);
	}
	cell("open after close, a hundred times", dev >= 0, 1);
}

static void tokens(int dev)
{
	int a = memfd("a"), b = memfd("b"), pipes[2], path = open("/", O_PATH);
	if (pipe(pipes))
		abort();
	cell("FD_PRESERVE of no descriptor", preserve(dev, 1, 999), -EBADF);
	cell("of a negative one", preserve(dev, 1, -1), -EBADF);
	cell("of an O_PATH one", preserve(dev, 1, path), -EBADF);
	cell("of a pipe", preserve(dev, 1, pipes[0]), -ENOENT);
	cell("of an eventfd", preserve(dev, 1, eventfd(0, 0)), -ENOENT);
	cell("of a socket", preserve(dev, 1, socket(AF_UNIX, SOCK_STREAM, 0)), -ENOENT);
	cell("of a regular file", preserve(dev, 1, open("/proc/self/exe", O_RDONLY)), -ENOENT);
	cell("of the device itself", preserve(dev, 1, dev), -ENOENT);
	cell("FD_PRESERVE", preserve(dev, 1, a), 0);
	cell("a token twice", preserve(dev, 1, b), -EEXIST);
	cell("EBADF before EEXIST", preserve(dev, 1, 999), -EBADF);
	cell("ENOENT before EEXIST", preserve(dev, 1, pipes[0]), -ENOENT);
	cell("a file under two tokens", preserve(dev, 2, a), 0);
	cell("token 0", preserve(dev, 0, b), 0);
	cell("the largest token", preserve(dev, UINT64_MAX, b), 0);
	cell("FD_UNPRESERVE", unpreserve(dev, 2), 0);
	cell("FD_UNPRESERVE twice", unpreserve(dev, 2), -ENOENT);
	cell("FD_UNPRESERVE of the largest", unpreserve(dev, UINT64_MAX), 0);
	cell("the token is free again", preserve(dev, 2, b), 0);
	cell("FD_RESTORE in NORMAL", restore(dev, 1), -EBUSY);
	cell("FD_RESTORE of an unknown token in NORMAL", restore(dev, 55), -EBUSY);
	cell("GET_FD_STATE outgoing", file_state(dev, 1, 0), NORMAL);
	cell("GET_FD_STATE incoming", file_state(dev, 1, 1), -ENOENT);
	cell("GET_FD_STATE unknown", file_state(dev, 55, 0), -ENOENT);
	struct fd_state c = { .size = 16, .token = 1, .state = 99 };
	cell("GET_FD_STATE at its least size", call(dev, GET_FD_STATE, &c), 0);
	cell("nothing is written beyond it", c.state, 99);
	close(a);
	close(b);
	close(path);
}

static void file_events(int dev)
{
	cell("SET_FD_EVENT unknown event", file_event(dev, 1, 9), -EINVAL);
	cell("PREPARE of an unknown token", file_event(dev, 55, EV_PREPARE), -ENOENT);
	cell("FREEZE of an unknown token", file_event(dev, 55, EV_FREEZE), -ENOENT);
	cell("CANCEL of an unknown token", file_event(dev, 55, EV_CANCEL), -ENOENT);
	cell("FINISH outside UPDATED", file_event(dev, 1, EV_FINISH), -EBUSY);
	cell("FREEZE of a NORMAL file changes nothing", file_event(dev, 1, EV_FREEZE), 0);
	cell("it is NORMAL", file_state(dev, 1, 0), NORMAL);
	cell("PREPARE of one file", file_event(dev, 1, EV_PREPARE), 0);
	cell("it is PREPARED", file_state(dev, 1, 0), PREPARED);
	cell("the others are not", file_state(dev, 0, 0), NORMAL);
	cell("the machine is not", state(dev), NORMAL);
	cell("PREPARE again", file_event(dev, 1, EV_PREPARE), 0);
	cell("FREEZE of one file", file_event(dev, 1, EV_FREEZE), 0);
	cell("it is FROZEN", file_state(dev, 1, 0), FROZEN);
	cell("CANCEL of one file", file_event(dev, 1, EV_CANCEL), 0);
	cell("it is NORMAL again", file_state(dev, 1, 0), NORMAL);
	cell("CANCEL again", file_event(dev, 1, EV_CANCEL), 0);
	cell("a failing prepare of one file", preserve(dev, 0xbad, memfd("bad")), 0);
	cell("its errno", file_event(dev, 0xbad, EV_PREPARE), -EIO);
	cell("it stays NORMAL", file_state(dev, 0xbad, 0), NORMAL);
}

static void refused_in(const char *name, int dev, int st)
{
	char what[128];
#define IN(text) (snprintf(what, sizeof(what), "%s in %s", text, name), what)
	cell(IN("GET_STATE"), state(dev), st);
	cell(IN("FREEZE"), event(dev, EV_FREEZE), -EINVAL);
	cell(IN("an unknown event"), event(dev, 4), -EINVAL);
	cell(IN("the largest event"), event(dev, UINT32_MAX), -EINVAL);
	if (st != NORMAL)
		cell(IN("PREPARE"), event(dev, EV_PREPARE), -EINVAL);
	if (st != UPDATED)
		cell(IN("FINISH"), event(dev, EV_FINISH), -EINVAL);
	if (st == NORMAL || st == UPDATED)
		cell(IN("CANCEL"), event(dev, EV_CANCEL), -ENOENT);
	if (st == PREPARED || st == FROZEN) {
		int fd = memfd("x");
		cell(IN("FD_PRESERVE"), preserve(dev, 70, fd), -EBUSY);
		cell(IN("FD_PRESERVE of no descriptor"), preserve(dev, 70, 999), -EBADF);
		cell(IN("EBUSY before ENOENT and EEXIST"), preserve(dev, 1, fd), -EBUSY);
		cell(IN("FD_UNPRESERVE"), unpreserve(dev, 1), -EBUSY);
		cell(IN("FD_UNPRESERVE of an unknown token"), unpreserve(dev, 55), -EBUSY);
		close(fd);
	}
	if (st != UPDATED)
		cell(IN("FD_RESTORE"), restore(dev, 1), -EBUSY);
#undef IN
}

/* The old kernel: NORMAL, PREPARED, FROZEN, and what goes wrong on the way; it ends with the jump. */
static void old_kernel(void)
{
	int dev = open_device(), fd;

	dispatch_order(dev);
	refused_in("NORMAL", dev, NORMAL);
	tokens(dev);
	file_events(dev);

	/* Prepare fails at 0xbad: what comes before it in token order is cancelled. */
	cell("preserve behind the failing one", preserve(dev, 0xbae, memfd("behind")), 0);
	cell("a failing PREPARE", event(dev, EV_PREPARE), -EIO);
	cell("it leaves NORMAL", state(dev), NORMAL);
	cell("those before are cancelled", file_state(dev, 1, 0), NORMAL);
	cell("the failing one is as it was", file_state(dev, 0xbad, 0), NORMAL);
	cell("those behind were not reached", file_state(dev, 0xbae, 0), NORMAL);
	cell("take it off", unpreserve(dev, 0xbad), 0);

	fd = memfd("0123456789");
	lseek(fd, 4, SEEK_SET);
	cell("preserve one with a position", preserve(dev, 5, fd), 0);
	cell("PREPARE", event(dev, EV_PREPARE), 0);
	cell("the files are PREPARED", file_state(dev, 1, 0), PREPARED);
	refused_in("PREPARED", dev, PREPARED);
	cell("resizing a prepared memfd", ftruncate(fd, 3) ? -errno : 0, -EPERM);
	cell("growing it", fallocate(fd, 0, 0, 100) ? -errno : 0, -EPERM);
	cell("setting the size that it has", ftruncate(fd, 10) ? -errno : 0, 0);
	cell("writing in place", pwrite(fd, "X", 1, 0), 1);
	cell("CANCEL in PREPARED", event(dev, EV_CANCEL), 0);
	cell("it leads to NORMAL", state(dev), NORMAL);
	cell("files and tokens stay", file_state(dev, 1, 0), NORMAL);
	cell("the token is still taken", preserve(dev, 1, fd), -EEXIST);
	cell("the memfd can be resized again", ftruncate(fd, 12) ? -errno : 0, 0);
	ftruncate(fd, 10);

	/* A freeze that fails: no kexec, NORMAL, and those before it are cancelled. */
	cell("preserve the one that will not freeze", preserve(dev, 0xdead, memfd("dead")), 0);
	cell("preserve behind it", preserve(dev, 0xdeae, memfd("behind")), 0);
	cell("PREPARE again", event(dev, EV_PREPARE), 0);
	cell("reboot(KEXEC) with a failing freeze", reboot_kexec(), -EIO);
	cell("it leaves NORMAL", state(dev), NORMAL);
	cell("those before are cancelled", file_state(dev, 1, 0), NORMAL);
	cell("the failing one stays PREPARED", file_state(dev, 0xdead, 0), PREPARED);
	cell("those behind stay PREPARED", file_state(dev, 0xdeae, 0), PREPARED);
	cell("take it off", unpreserve(dev, 0xdead), 0);

	/* A jump that fails after a good freeze: userspace goes on in FROZEN. */
	cell("PREPARE a third time", event(dev, EV_PREPARE), 0);
	cell("reboot(KEXEC) with a failing jump", reboot_kexec(), -EIO);
	cell("the files are FROZEN", file_state(dev, 1, 0), FROZEN);
	refused_in("FROZEN", dev, FROZEN);
	cell("CANCEL in FROZEN", event(dev, EV_CANCEL), 0);
	cell("it leads to NORMAL", state(dev), NORMAL);

	/* For the new kernel. */
	cell("preserve the one that will not restore", preserve(dev, 0xbeef, memfd("beef")), 0);
	cell("preserve one to finish alone", preserve(dev, 6, memfd("six")), 0);
	cell("preserve one to leave", preserve(dev, 8, memfd("eight")), 0);
	cell("preserve for a read-only struct", preserve(dev, 9, memfd("nine")), 0);
	cell("PREPARE for the jump", event(dev, EV_PREPARE), 0);
	printf("%d cells, %d failures\n", cells, failures);
	fflush(stdout);
	if (failures)
		_exit(1);
	cell("reboot(KEXEC) does not return", reboot_kexec(), 1);
}

static void *restore_in_thread(void *arg)
{
	int dev = *(int *)arg;
	return (void *)restore(dev, 2);
}

static void new_kernel(void)
{
	int dev = open_device();
	char content[32] = { 0 };
	struct rlimit limit, none = { 0, 0 };

	refused_in("UPDATED", dev, UPDATED);
	cell("GET_FD_STATE incoming", file_state(dev, 1, 1), UPDATED);
	cell("GET_FD_STATE outgoing", file_state(dev, 1, 0), -ENOENT);

	getrlimit(RLIMIT_NOFILE, &limit);
	none.rlim_max = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &none);
	cell("FD_RESTORE without a free descriptor", restore(dev, 5), -EMFILE);
	cell("EMFILE before ENOENT", restore(dev, 55), -EMFILE);
	setrlimit(RLIMIT_NOFILE, &limit);

	cell("FD_RESTORE of an unknown token", restore(dev, 55), -ENOENT);
	long fd = restore(dev, 5);
	cell("FD_RESTORE", fd >= 0, 1);
	cell("close-on-exec", fcntl(fd, F_GETFD), FD_CLOEXEC);
	cell("read and write", fcntl(fd, F_GETFL) & O_ACCMODE, O_RDWR);
	cell("the position of PREPARE", lseek(fd, 0, SEEK_CUR), 4);
	cell("the size", lseek(fd, 0, SEEK_END), 10);
	pread(fd, content, sizeof(content), 0);
	cell("the content, written to after PREPARE", strcmp(content, "X123456789"), 0);
	cell("it can be resized", ftruncate(fd, 100) ? -errno : 0, 0);
	cell("FD_RESTORE twice", restore(dev, 5), -EINVAL);

	cell("FD_RESTORE that fails", restore(dev, 0xbeef), -EIO);
	cell("FD_RESTORE after a failure", restore(dev, 0xbeef), -EINVAL);

	int before = open_fds();
	struct fd_call *ro = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*ro = (struct fd_call){ sizeof(*ro), -1, 9 };
	mprotect(ro, PAGE, PROT_READ);
	cell("FD_RESTORE into read-only memory", call(dev, RESTORE, ro), -EFAULT);
	cell("no descriptor is left behind", open_fds(), before);
	cell("the token is spent", restore(dev, 9), -EINVAL);

	pthread_t thread;
	void *got;
	pthread_create(&thread, NULL, restore_in_thread, &dev);
	pthread_join(thread, &got);
	cell("FD_RESTORE in a second thread", (long)got >= 0, 1);
	memset(content, 0, sizeof(content));
	pread((long)got, content, sizeof(content), 0);
	cell("its content", strcmp(content, "b"), 0);
	fd = restore(dev, 1);
	memset(content, 0, sizeof(content));
	pread(fd, content, sizeof(content), 0);
	cell("the file whose descriptor was closed", strcmp(content, "a"), 0);

	/* The outgoing set is a space of its own. */
	cell("FD_PRESERVE in UPDATED", preserve(dev, 1, fd), 0);
	cell("FD_UNPRESERVE in UPDATED", unpreserve(dev, 1), 0);
	cell("FD_UNPRESERVE of an incoming token", unpreserve(dev, 8), -ENOENT);
	cell("PREPARE of one outgoing file", preserve(dev, 2, fd), 0);

	cell("FINISH of one file", file_event(dev, 6, EV_FINISH), 0);
	cell("FINISH of an unknown one", file_event(dev, 55, EV_FINISH), -ENOENT);
	cell("it is NORMAL", file_state(dev, 6, 1), NORMAL);
	cell("nothing is left to restore", restore(dev, 6), -EINVAL);

	/* A close drops the outgoing set and nothing else. */
	close(dev);
	dev = open_device();
	cell("UPDATED outlives a close", state(dev), UPDATED);
	cell("the outgoing set does not", file_state(dev, 2, 0), -ENOENT);
	cell("the incoming set does", file_state(dev, 8, 1), UPDATED);
	cell("preserve before FINISH", preserve(dev, 3, fd), 0);

	cell("FINISH", event(dev, EV_FINISH), 0);
	cell("it leads to NORMAL", state(dev), NORMAL);
	cell("the incoming set is gone, unclaimed files included", file_state(dev, 8, 1), -ENOENT);
	cell("FD_RESTORE after FINISH", restore(dev, 8), -EBUSY);
	cell("the outgoing set is there", file_state(dev, 3, 0), NORMAL);
	cell("FINISH twice", event(dev, EV_FINISH), -EINVAL);

	/* A close in PREPARED drops the files; the state stays. */
	cell("PREPARE", event(dev, EV_PREPARE), 0);
	close(dev);
	dev = open_device();
	cell("PREPARED outlives a close", state(dev), PREPARED);
	cell("its files do not", file_state(dev, 3, 0), -ENOENT);
	cell("CANCEL", event(dev, EV_CANCEL), 0);
	cell("preserve for a plain kexec", preserve(dev, 4, fd), 0);
	printf("%d cells, %d failures\n", cells, failures);
	fflush(stdout);
	if (failures)
		_exit(1);
	cell("a plain reboot(KEXEC) does not return", reboot_kexec(), 1);
}

static void after_plain_kexec(void)
{
	int dev = open_device();
	cell("a plain kexec leads to NORMAL", state(dev), NORMAL);
	cell("nothing is preserved", file_state(dev, 4, 0), -ENOENT);
	cell("nothing has come", file_state(dev, 4, 1), -ENOENT);

	/* A kexec in UPDATED is a plain one too. */
	cell("preserve", preserve(dev, 4, memfd("four")), 0);
	cell("PREPARE", event(dev, EV_PREPARE), 0);
	printf("%d cells, %d failures\n", cells, failures);
	fflush(stdout);
	if (failures)
		_exit(1);
	cell("reboot(KEXEC) does not return", reboot_kexec(), 1);
}

static void reboot_in_updated(void)
{
	int dev = open_device();
	cell("UPDATED", state(dev), UPDATED);
	printf("%d cells, %d failures\n", cells, failures);
	fflush(stdout);
	if (failures)
		_exit(1);
	cell("reboot(KEXEC) in UPDATED does not return", reboot_kexec(), 1);
}

static void after_kexec_in_updated(void)
{
	int dev = open_device();
	cell("a kexec in UPDATED leads to NORMAL", state(dev), NORMAL);
	cell("what was not restored is gone", restore(dev, 4), -EBUSY);

	/* With files dropped in PREPARED, the kexec is a live one without files. */
	cell("PREPARE without files", event(dev, EV_PREPARE), 0);
	printf("%d cells, %d failures\n", cells, failures);
	fflush(stdout);
	if (failures)
		_exit(1);
	cell("reboot(KEXEC) does not return", reboot_kexec(), 1);
}

static void after_kexec_without_files(void)
{
	int dev = open_device();
	cell("a kexec without files leads to UPDATED", state(dev), UPDATED);
	cell("FD_RESTORE", restore(dev, 4), -ENOENT);
	cell("FINISH", event(dev, EV_FINISH), 0);
	cell("an ordinary user may not reboot", setuid(65534), 0);
	cell("reboot(KEXEC) without CAP_SYS_BOOT", reboot_kexec(), -EPERM);
}

static void ended_with_the_kernel(const char *what, int status)
{
	cell(what, WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status), SIGKILL);
}

int main(void)
{
	opens();
	ended_with_the_kernel("the old kernel's client ends", stage(old_kernel));
	ended_with_the_kernel("the plain kexec's client ends", stage(new_kernel));
	ended_with_the_kernel("the next client ends", stage(after_plain_kexec));
	ended_with_the_kernel("the one in UPDATED ends", stage(reboot_in_updated));
	ended_with_the_kernel("the one without files ends", stage(after_kexec_in_updated));
	cell("the last one goes on", stage(after_kexec_without_files), 0);
	printf("%d cells, %d failures\n", cells, failures);
	return failures ? 1 : 0;
}
