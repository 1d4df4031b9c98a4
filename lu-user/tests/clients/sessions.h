/* What a C client of the sessions interface knows (include/uapi/linux/liveupdate.h of Linux 6.19 and later). */
#ifndef SESSIONS_H
#define SESSIONS_H

#include "liveupdate.h"
#include <sys/resource.h>

struct session_call { uint32_t size; int32_t fd; char name[64]; };
struct name_call { uint32_t size, reserved; char name[64]; };

enum { CREATE_SESSION = 0xBA00, RETRIEVE_SESSION };
enum { PRESERVE_FD = 0xBA40, RETRIEVE_FD, FINISH, GET_NAME };

/* The descriptor, or a negated errno. */
CALL long session(int dev, unsigned long cmd, const char *name)
{
	struct session_call c = { .size = sizeof(c), .fd = -1 };
	strncpy(c.name, name, sizeof(c.name));
	long ret = call(dev, cmd, &c);
	return ret ? ret : c.fd;
}

CALL long create(int dev, const char *name)
{
	return session(dev, CREATE_SESSION, name);
}

CALL long retrieve(int dev, const char *name)
{
	return session(dev, RETRIEVE_SESSION, name);
}

CALL long preserve_fd(int on, uint64_t token, int fd)
{
	struct fd_call c = { sizeof(c), fd, token };
	return call(on, PRESERVE_FD, &c);
}

CALL long retrieve_fd(int on, uint64_t token)
{
	struct fd_call c = { sizeof(c), -1, token };
	long ret = call(on, RETRIEVE_FD, &c);
	return ret ? ret : c.fd;
}

CALL long finish(int on)
{
	struct word_call c = { sizeof(c), 0 };
	return call(on, FINISH, &c);
}

#endif
