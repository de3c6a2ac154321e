/* Preloaded into the daemon by the clock tests: adds an offset, or a standstill, to CLOCK_REALTIME and nothing else.
 *
 * CLAIMD_TEST_CLOCK names a file of two 64-bit numbers of microseconds: an offset, and a time to stand still at (0: none).
 * The test writes them while the daemon runs. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *settings;

__attribute__((constructor)) static void map_settings(void) {
    const char *path = getenv("CLAIMD_TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY) : -1;
    void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, 16, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
        settings = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    long result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME && settings) {
        int64_t us = settings[1] ? settings[1] : (int64_t)time->tv_sec * 1000000 + time->tv_nsec / 1000 + settings[0];
        time->tv_sec = us / 1000000;
        time->tv_nsec = us % 1000000 * 1000;
    }
    return (int)result;
}
