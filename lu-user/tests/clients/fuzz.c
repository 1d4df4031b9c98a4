/*
 * COUNT calls with random commands, structures and pointers, from SEED on: of v3, or of the sessions
 * interface where a third argument is there.
 */
#include "sessions.h"

static uint64_t seed;

static uint64_t any(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* Whatever it was, the orchestrator still answers: in v3 as before. */
static int still_answers(int dev, int sessions, long before)
{
	if (!sessions)
		return state(dev) == before;
	struct name_call n = { .size = sizeof(n) };
	long on = create(dev, "still here");
	return on >= 0 && !call(on, GET_NAME, &n) && !strcmp(n.name, "still here") && !close(on);
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	seed = strtoull(argv[1], NULL, 10) * 2654435761u + 88172645463325252u;
	long count = atol(argv[2]);
	char *page = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *readonly = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(page + 2 * 4096, 4096);
	int dev = open_device(), sessions = argc > 3, on[] = { dev, dev, dev };
	for (int i = 0; i < 8; i++)
		memfd("fuzz");
	if (sessions) {
		on[1] = create(dev, "one");
		on[2] = create(dev, "two");
	}
	int pipes[2];
	if (dev < 0 || pipe(pipes))
		return 3;
	for (long i = 0; i < count; i++) {
		unsigned long cmd = 0xBA00 | any() % 9;
		if (sessions && any() % 2)
			cmd = 0xBA3F + any() % 6;
		if (any() % 8 == 0)
			cmd ^= 1ul << any() % 32;
		size_t at = any() % 4 ? any() % 4000 : 2 * 4096 - any() % 64;
		for (int b = 0; b < 40 && at + b < 2 * 4096; b++)
			page[at + b] = any() % 3 ? 0 : any();
		if (at + 24 <= 2 * 4096) {
			static const uint32_t sizes[] = { 0, 4, 8, 15, 16, 17, 24, 25, 40, 4096, 8192, UINT32_MAX };
			*(uint32_t *)(page + at) = any() % 4 ? sizes[any() % 12] : any();
			*(uint32_t *)(page + at + 4) = any() % 4 ? any() % 16 : any();
			if (any() % 2)
				*(uint64_t *)(page + at + 8) = any() % 4;
		}
		void *arg = page + at;
		switch (any() % 16) {
		case 0: arg = (void *)any(); break;
		case 1: arg = NULL; break;
		case 2: arg = readonly + any() % 4096; break;
		}
		ioctl(on[any() % 3], cmd, arg);
	}
	long before = sessions ? 0 : state(dev);
	for (int fd = 3; fd < 1024; fd++)
		close(fd);
	dev = open_device();
	return dev >= 0 && still_answers(dev, sessions, before) ? 0 : 1;
}
