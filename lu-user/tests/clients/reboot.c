/* Calls reboot(KEXEC) once and tells the errno; where it goes through nobody is left to tell. */
#include "liveupdate.h"

int main(void)
{
	reboot_kexec();
	printf("errno %d\n", errno);
	return 0;
}
