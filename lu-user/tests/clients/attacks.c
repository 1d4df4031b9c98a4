/* Tries to get past a policy, and prints what came of each attempt: "token in a page not in memory: EDOM".
 *
 * attacks ROUNDS: the policy refuses sessions "bad*", token 666, files of 1 MiB and more, to receive "secret", the device to
 * /bin/other, and to kexec.
 * attacks open PATH: only whether that opens.
 */
#include "sessions.h"
#include <linux/reboot.h>
#include <pthread.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

#define BIG (2 << 20)

static int device, small, big;

static const char *errno_name(long ret)
{
	return ret < 0 ? strerrorname_np(-ret) : "ok";
}

static void say(const char *what, long ret)
{
	printf("%s: %s\n", what, errno_name(ret));
}

static int sized(long bytes)
{
	int fd = memfd_create("attack", 0);
	if (fd < 0 || ftruncate(fd, bytes))
		exit(3);
	return fd;
}

/* What flips, and between what. */
static struct { uint32_t size; int32_t fd; union { uint64_t token; char name[64]; }; } flipped
	__attribute__((aligned(8)));
static volatile int what, stop;
static int slot;
static uint64_t good_word, bad_word;
enum { TOKEN, FD, FILE_OF_FD, NAME };

static void *flip(void *unused)
{
	for (unsigned n = 0; !stop; n++) {
		int odd = n & 1;
		if (what == TOKEN)
			*(volatile uint64_t *)&flipped.token = odd ? 666 : 1;
		else if (what == FD)
			*(volatile int32_t *)&flipped.fd = odd ? big : small;
		else if (what == FILE_OF_FD)
			dup2(odd ? big : small, slot);
		else
			*(volatile uint64_t *)flipped.name = odd ? bad_word : good_word;
		for (volatile unsigned wait = n * 7 % 61; wait; wait--)
			;
	}
	return unused;
}

/* The inner state of session_id_of (lu-common) after a word. */
static uint64_t mixed(uint64_t id, uint64_t word)
{
	id = (id ^ word) * 0xff51afd7ed558ccd;
	return id << 29 | id >> 35;
}

static void flips(int kind, const char *name, int rounds)
{
	int other = sized(1), refused = 0, kept = 0, forbidden = 0, failed = 0;
	long session = create(device, "flips");
	pthread_t thread;
	memset(&flipped, 0, sizeof(flipped));
	flipped.size = kind == NAME ? sizeof(struct session_call) : sizeof(struct fd_call);
	slot = dup(small);
	flipped.fd = kind == FILE_OF_FD ? slot : small;
	flipped.token = 1;
	if (kind == NAME) {
		/* Two names with one id: what differs after the first word is made up for by the second. */
		memcpy(&good_word, "aaaaaaaa", 8);
		memcpy(&bad_word, "badx\0\0\0", 8);
		uint64_t start = 0x9e3779b97f4a7c15;
		uint64_t second = mixed(start, good_word) ^ mixed(start, bad_word);
		memcpy(flipped.name, &good_word, 8);
		memcpy(flipped.name + 8, &second, 8);
		if (strlen(flipped.name) != 16)
			exit(4);
	}
	what = kind;
	stop = 0;
	pthread_create(&thread, 0, flip, 0);
	for (int round = 0; round < rounds; round++) {
		if (kind == NAME) {
			struct { uint32_t size; int32_t fd; } *head = (void *)&flipped;
			long ret = call(device, CREATE_SESSION, &flipped);
			if (ret) {
				ret == -EBADMSG ? refused++ : failed++;
				continue;
			}
			struct name_call named = { .size = sizeof(named) };
			if (call(head->fd, GET_NAME, &named))
				exit(5);
			forbidden += !strncmp(named.name, "bad", 3);
			kept++;
			close(head->fd);
			continue;
		}
		long ret = call(session, PRESERVE_FD, &flipped);
		if (ret) {
			ret == (kind == TOKEN ? -EDOM : -EFBIG) ? refused++ : failed++;
			continue;
		}
		kept++;
		/* Which was it? */
		ret = kind == TOKEN ? preserve_fd(session, 1, other) : preserve_fd(session, 2, small);
		forbidden += !ret;
		if (ret && ret != (kind == TOKEN ? -EEXIST : -EBUSY))
			exit(6);
		close(session);
		session = create(device, "flips");
	}
	stop = 1;
	pthread_join(thread, 0);
	close(session);
	close(other);
	printf("flipped %s: %d rounds, %d refused, %d kept, %d failed, %d forbidden\n", name, rounds, refused, kept, failed, forbidden);
}

/* A name that need not end. */
static long create_raw(const char *name, size_t len)
{
	struct session_call c = { .size = sizeof(c), .fd = -1 };
	memcpy(c.name, name, len);
	long ret = call(device, CREATE_SESSION, &c);
	if (ret)
		return ret;
	close(c.fd);
	return 0;
}

/* The errno that a child ends with. */
#define CHILD(ret) ({ \
	int status; \
	fflush(stdout); \
	pid_t pid = fork(); \
	if (!pid) \
		_exit(-(ret)); \
	waitpid(pid, &status, 0); \
	WIFEXITED(status) ? -(long)WEXITSTATUS(status) : -(long)EFAULT; })

static long opens(const char *program, const char *path)
{
	return CHILD(({ execl(program, program, "open", path, (char *)0); 99; }));
}

static void copy(const char *from, const char *to)
{
	char block[65536];
	int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0755);
	ssize_t n;
	while ((n = read(in, block, sizeof(block))) > 0)
		if (write(out, block, n) != n)
			exit(7);
	close(in);
	close(out);
}

/* A mapped file with this, whose page is not in this process's tables. */
static char *absent(const void *content, size_t len, size_t at)
{
	int fd = sized(8192);
	if (pwrite(fd, content, len, at) != (ssize_t)len)
		exit(8);
	char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	madvise(page, 8192, MADV_DONTNEED);
	close(fd);
	return page + at;
}

/* A system call as a 32-bit program makes it. */
static long int80(long number, long first, long second, long third)
{
	int ret;
	asm volatile("int $0x80" : "=a"(ret) : "a"(number), "b"(first), "c"(second), "d"(third) : "memory");
	return ret;
}

/* Numbers of 32-bit system calls (arch/x86/entry/syscalls/syscall_32.tbl). */
enum { GETPID_32 = 20, IOCTL_32 = 54, REBOOT_32 = 88 };

static long preserve_32(int session, uint64_t token)
{
	struct fd_call *c = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	*c = (struct fd_call){ sizeof(*c), small, token };
	return int80(IOCTL_32, session, PRESERVE_FD, (long)c);
}

static long passed(int fd)
{
	int pair[2];
	char control[CMSG_SPACE(sizeof(int))] = { 0 }, byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return -errno;
	*c = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	if (sendmsg(pair[0], &msg, 0) < 0)
		return -errno;
	msg.msg_controllen = sizeof(control);
	if (recvmsg(pair[1], &msg, 0) < 0)
		return -errno;
	/* The kernel drops it without saying why. */
	return msg.msg_controllen >= CMSG_LEN(sizeof(int)) ? 0 : -ECANCELED;
}

static long taken(int fd)
{
	int own = syscall(SYS_pidfd_open, getppid(), 0);
	return syscall(SYS_pidfd_getfd, own, fd, 0) < 0 ? -errno : 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, 0, _IOLBF, 0);
	if (!strcmp(argv[1], "open"))
		return open(argv[2], O_RDWR) < 0 ? errno : 0;
	device = open_device();
	if (device < 0)
		return 2;
	small = sized(4096);
	big = sized(BIG);
	long session = create(device, "good");
	long secret = create(device, "secret");

	say("session over a socket", CHILD(passed(secret)));
	say("session by pidfd_getfd", CHILD(taken(secret)));

	say("executable", opens("/bin/other", DEVICE));
	if (link("/bin/other", "/bin/linked"))
		return 10;
	say("executable by another name", opens("/bin/linked", DEVICE));
	copy("/bin/other", "/bin/copied");
	say("copy of the executable", opens("/bin/copied", DEVICE));
	rename("/bin/copied", "/bin/other");
	say("another under the executable's name", opens("/bin/other", DEVICE));
	say("executable that lost its name", opens("/bin/linked", DEVICE));

	struct stat node;
	stat(DEVICE, &node);
	mknod("/bin/node", S_IFCHR | 0600, node.st_rdev);
	say("another name of the device", opens("/bin/linked", "/bin/node"));

	say("name with odd bytes", create_raw("bad\n\"\x80\xff\x01", 8));
	char longest[64];
	memset(longest, 'x', sizeof(longest));
	say("name of 63 bytes", create_raw(longest, 63));
	say("name without an end", create_raw(longest, 64));
	memcpy(longest, "bad", 3);
	say("bad name of 63 bytes", create_raw(longest, 63));
	say("bad name without an end", create_raw(longest, 64));
	say("bad name behind the end of a good one", create_raw("fine\0bad", 8));
	say("good name behind the end of a bad one", create_raw("bad\0fine", 8));
	say("name that is no UTF-8", create_raw("\x80odd\xfe", 5));

	int doubled = dup(session), device_doubled = dup(device);
	say("dup of a session", preserve_fd(doubled, 666, small));
	say("dup of the device", create(device_doubled, "bad"));
	say("session in a child", CHILD(preserve_fd(session, 666, small)));
	say("device in a child", CHILD(create(device, "bad")));
	say("dup of a large file", preserve_fd(session, 5, dup(big)));

	struct fd_call c = { sizeof(c), small, 666 };
	struct session_call n = { .size = sizeof(n), .fd = -1, .name = "bad" };
	say("token in a page not in memory", call(session, PRESERVE_FD, absent(&c, sizeof(c), 0)));
	say("token in two pages not in memory", call(session, PRESERVE_FD, absent(&c, sizeof(c), 4088)));
	say("name in a page not in memory", call(device, CREATE_SESSION, absent(&n, sizeof(n), 0)));
	say("name in two pages not in memory", call(device, CREATE_SESSION, absent(&n, sizeof(n), 4088)));

	say("kexec", reboot(LINUX_REBOOT_CMD_KEXEC) < 0 ? -errno : 0);
	say("32-bit system calls", CHILD(int80(GETPID_32, 0, 0, 0) < 0 ? -ENOSYS : 0));
	say("32-bit ioctl", CHILD(preserve_32(session, 666)));
	say("32-bit kexec", CHILD(int80(REBOOT_32, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC)));
	close(session);

	int rounds = atoi(argv[1]);
	flips(TOKEN, "token", rounds);
	flips(FD, "descriptor", rounds);
	flips(FILE_OF_FD, "file", rounds);
	flips(NAME, "name", rounds);
	return 0;
}
